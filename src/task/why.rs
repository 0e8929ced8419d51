//! Why a task went where it went, from its offers and its events.
//!
//! Every round with every agent that could have done it: its offer with the score vector, or why it made
//! none, and in words why the winner won. What was true at the time stands in the events, so agents that
//! are gone are explained as well. Reads only.
use super::store::sql;
use super::{Award, Error, TaskId, Tasks, plain};
use serde_json::{Map, Value, json};
use tokio_postgres::Row;

/// Events that are read for an explanation.
const EVENTS_MAX: i64 = 10_000;

impl Tasks {
    /// Why a task went where it went: `{task, rounds: [{round, award, offers, silent, winner, because}],
    /// attempts}`.
    ///
    /// # Errors
    /// `UnknownTask`.
    pub async fn why(&self, id: TaskId) -> Result<Value, Error> {
        let task = self.get(id).await?;
        let offers = self.read(sql!("why_offers"), &[&id.as_uuid()]).await?;
        let attempts = self.read(sql!("why_attempts"), &[&id.as_uuid()]).await?;
        let events = self.read(sql!("why_events"), &[&id.as_uuid(), &EVENTS_MAX]).await?;
        let events: Vec<Told> = events.iter().map(Told::from).collect();
        let rounds = (1..=task.round).map(|number| {
            let of_round = offers.iter().filter(|row| row.get::<_, i32>("round") == number);
            let events = events.iter().filter(|event| event.round() == Some(number));
            round(number, &of_round.collect::<Vec<_>>(), &events.collect::<Vec<_>>())
        });
        Ok(json!({
            "rounds": rounds.collect::<Vec<_>>(),
            "attempts": attempts.iter().map(attempt).collect::<Vec<_>>(),
            "task": task,
        }))
    }
}

/// An event about a round.
struct Told {
    kind: String,
    agent: Option<String>,
    body: Value,
}

impl From<&Row> for Told {
    fn from(row: &Row) -> Self {
        Self { kind: row.get("type"), agent: row.get("agent_id"), body: row.get("body") }
    }
}

impl Told {
    fn round(&self) -> Option<i32> {
        self.body.get("round")?.as_i64()?.try_into().ok()
    }
}

fn round(number: i32, offers: &[&Row], events: &[&Told]) -> Value {
    let awards: Vec<&Told> = events.iter().filter(|event| event.kind == "awarded").copied().collect();
    let award = awards.last().and_then(|event| event.body.get("award")).cloned();
    let winner = awards.last().and_then(|event| event.agent.clone());
    let because = awards.last().map(|event| because(event, awards.len()));
    let mut members = json!({
        "round": number,
        "award": award,
        "offers": offers.iter().filter(|row| row.get::<_, &str>("state") != "declined").map(|row| offer(row)).collect::<Vec<_>>(),
        "winner": winner,
        "because": because,
        "silent": silent(offers, events),
    });
    if awards.len() > 1
        && let Some(object) = members.as_object_mut()
    {
        // The best offer was refused or lost, and the next one got it.
        let agents: Vec<&Option<String>> = awards.iter().map(|event| &event.agent).collect();
        object.insert("awarded_in_turn".into(), json!(agents));
    }
    members
}

/// Who could have offered and did not, and why: `[{agent_id, reason}]`, or a text about everybody.
fn silent(offers: &[&Row], events: &[&Told]) -> Value {
    let mut silent: Vec<Value> = Vec::new();
    let mut say = |agent: &Value, reason: &str| silent.push(json!({ "agent_id": agent, "reason": reason }));
    for row in offers.iter().filter(|row| row.get::<_, &str>("state") == "declined") {
        let note = row.get::<_, Option<&str>>("note").map_or_else(String::new, |note| format!(": {note}"));
        say(&json!(row.get::<_, &str>("agent_id")), &format!("it declined{note}"));
    }
    let answered =
        |agent: &Value| offers.iter().any(|row| agent.as_str() == Some(row.get::<_, &str>("agent_id")));
    let over = events.iter().any(|event| matches!(event.kind.as_str(), "awarded" | "no_offers"));
    for event in events {
        let eligible = event.body.get("eligible").and_then(Value::as_array);
        for agent in eligible.into_iter().flatten().filter(|agent| !answered(agent)) {
            say(agent, if over { "no answer before the round closed" } else { "has not answered yet" });
        }
        let reasons = event.body.get("silent").and_then(Value::as_object);
        for (reason, agents) in reasons.into_iter().flatten() {
            agents.as_array().into_iter().flatten().for_each(|agent| say(agent, reason));
        }
    }
    let reasons = events.iter().find(|event| event.kind == "no_offers").and_then(|it| it.body.get("reasons"));
    match reasons {
        Some(reasons) if silent.is_empty() => reasons.clone(),
        _ => silent.into(),
    }
}

/// In words, why the winner won.
fn because(event: &Told, turn: usize) -> String {
    let none = Vec::new();
    let offers = event.body.get("offers").and_then(Value::as_array).unwrap_or(&none);
    let part = |offer: &Value, name: &str| offer.get("score").and_then(|score| score.get(name)?.as_i64());
    let (Some(first), second) = (offers.first(), offers.get(1)) else { return "it was awarded".into() };
    let award: Award =
        event.body.get("award").and_then(|it| serde_json::from_value(it.clone()).ok()).unwrap_or_default();
    let total = |offer: &Value| part(offer, "total").unwrap_or(0);
    let again = if turn > 1 { ", the next of the standing offers" } else { "" };
    let by = match award {
        Award::Requester if total(first) > super::score::ONE => {
            return format!("the requester chose it{again}");
        }
        Award::Requester => "nothing was chosen in time; by the fallback it has",
        Award::Direct => return format!("the policy names it{again}"),
        Award::First => "it came first:",
        Award::Cheapest => "it is the cheapest:",
        Award::Fastest => "it is the fastest:",
        Award::LeastLoaded => "it has the most free slots:",
        Award::Weighted => "cost, speed, confidence, load and reputation give it",
        Award::Calibrated => "confidence, as far as it was right before, gives it",
    };
    let Some(second) = second else { return format!("the only offer{again}") };
    let score = |offer: &Value| plain(total(offer) as f32 / 1e6);
    if total(first) > total(second) {
        return format!("{by} {} before {}{again}", score(first), score(second));
    }
    let tie = if part(first, "waited") == part(second, "waited") {
        "its name comes first"
    } else {
        "it has waited longer for an award"
    };
    format!("{by} {}, as another has; {tie}{again}", score(first))
}

fn offer(row: &Row) -> Value {
    json!({
        "agent_id": row.get::<_, &str>("agent_id"),
        "state": row.get::<_, &str>("state"),
        "cost_microdollars": row.get::<_, i64>("cost_microdollars"),
        "eta_ms": row.get::<_, i64>("eta_ms"),
        "confidence": plain(row.get("confidence")),
        "note": row.get::<_, Option<&str>>("note"),
        "chosen": row.get::<_, bool>("chosen"),
        "score": row.get::<_, Option<Value>>("score"),
    })
}

fn attempt(row: &Row) -> Value {
    let time = |name: &str| row.get::<_, Option<chrono::DateTime<chrono::Utc>>>(name);
    let mut members = Map::new();
    members.insert("assignment_id".into(), json!(row.get::<_, uuid::Uuid>("id")));
    members.insert("epoch".into(), json!(row.get::<_, i64>("epoch")));
    members.insert("agent_id".into(), json!(row.get::<_, &str>("agent_id")));
    members.insert("state".into(), json!(row.get::<_, &str>("state")));
    for name in ["awarded_at", "started_at", "ended_at"] {
        members.insert(name.into(), json!(time(name)));
    }
    members.insert("outcome".into(), json!(row.get::<_, Option<Value>>("outcome")));
    members.into()
}
