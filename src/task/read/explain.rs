//! Explains the course of a task from its offers and its events.
//!
//! Lists every round with every capable agent: its offer with the score vector, or why it made none, and a sentence
//! why the winner won. The events record what was true at the time, so agents that are gone are explained as well.
use crate::task::model::offer_state::OfferState;
use crate::task::storage::rows::{self, Columns, Unreadable};
use crate::task::storage::statement::sql;
use crate::task::{Award, Error, TaskId, TaskReader, plain};
use chrono::{DateTime, Utc};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use tokio_postgres::Row;

/// Events that are read for an explanation.
const EVENTS_MAX: i64 = 10_000;

impl TaskReader {
    /// Explains the course of a task: `{task, award, rounds: [{round, award, weights, offers, silent, winner, because,
    /// announced_at, bids_close_at, closed_at, awards}], attempts: [{…, error, paid}], runs, paid, waits_for}`. `runs`
    /// are those of an agent that thinks, without contents. `award` is the policy of its next award. Times and `weights` are null where the event log has none:
    /// a round that was announced and awarded in one commit has no `announced_at`. `paid` is
    /// `{tokens, microdollars, presumed}`; `presumed` if it was not reported and the reservation counts.
    ///
    /// # Errors
    /// `UnknownTask`.
    pub async fn why(&self, id: TaskId) -> Result<Value, Error> {
        let task = self.get(id).await?;
        let offers = self.query(sql!("why_offers"), &[&id.as_uuid()]).await?;
        let attempts = self.query(sql!("why_attempts"), &[&id.as_uuid()]).await?;
        let events = self.query(sql!("why_events"), &[&id.as_uuid(), &EVENTS_MAX]).await?;
        let events: Vec<RoundEvent> = events.iter().map(RoundEvent::from_row).collect::<Result<_, _>>()?;
        let offers: Vec<OfferRow> = offers.iter().map(OfferRow::from_row).collect::<Result<_, _>>()?;
        // Only rounds that happened: the number in an offer or event written by hand may be anything.
        let numbers: BTreeSet<i32> = (offers.iter().map(|offer| offer.round))
            .chain(events.iter().filter_map(RoundEvent::round))
            .filter(|number| (1..=task.round).contains(number))
            .collect();
        let rounds = numbers.into_iter().map(|number| {
            let of_round = offers.iter().filter(|offer| offer.round == number);
            let events = events.iter().filter(|event| event.round() == Some(number));
            round(number, &of_round.collect::<Vec<_>>(), &events.collect::<Vec<_>>())
        });
        let attempts: Vec<Value> = attempts.iter().map(attempt).collect::<Result<_, _>>()?;
        let policy = self.query("select policy from convoke.tasks where id = $1", &[&id.as_uuid()]).await?;
        let policy = policy.first().map(|row| rows::json(row, "policy")).unwrap_or_default();
        // A policy that cannot be read has no award: the task will end, and `unreadable` says why.
        let award = self.policies.of_task(&task.kind, &policy).ok().map(|policy| policy.award);
        Ok(json!({
            "award": award,
            "rounds": rounds.collect::<Vec<_>>(),
            "waits_for": self.waits_for(&task).await?,
            "paid": paid_in_all(&attempts),
            "attempts": attempts,
            "runs": self.steps(id, false).await?,
            "task": task,
        }))
    }
}

/// An event about a round.
struct RoundEvent {
    kind: String,
    agent: Option<String>,
    epoch: Option<i64>,
    at: Option<DateTime<Utc>>,
    body: Value,
}

impl RoundEvent {
    fn from_row(row: &Row) -> Result<Self, Unreadable> {
        let body = rows::json(row, "body");
        let at = rows::time(row, "at").unwrap_or_default();
        Ok(Self {
            kind: row.read("type")?,
            agent: row.read("agent_id")?,
            epoch: row.read("epoch")?,
            at,
            body,
        })
    }

    fn round(&self) -> Option<i32> {
        self.body.get("round")?.as_i64()?.try_into().ok()
    }
}

/// An offer as a row.
struct OfferRow {
    round: i32,
    agent: String,
    state: OfferState,
    note: Option<String>,
    shown: Value,
}

impl OfferRow {
    fn from_row(row: &Row) -> Result<Self, Unreadable> {
        let (agent, word): (String, &str) = (row.read("agent_id")?, row.read("state")?);
        let state = OfferState::parse(word).ok_or_else(|| rows::newer_schema(word, "state"))?;
        let note: Option<String> = row.read("note")?;
        let shown = json!({
            "agent_id": agent,
            "state": word,
            "cost_microdollars": row.read::<i64>("cost_microdollars")?,
            "eta_ms": row.read::<i64>("eta_ms")?,
            "confidence": plain(row.read("confidence")?),
            "note": note,
            "chosen": row.read::<bool>("chosen")?,
            "offered_at": time(row, "offered_at"),
            "valid_until": time(row, "valid_until"),
            "score": rows::json(row, "score"),
        });
        Ok(Self { round: row.read("round")?, agent, state, note, shown })
    }

    fn declined(&self) -> bool {
        self.state == OfferState::Declined
    }
}

fn round(number: i32, offers: &[&OfferRow], events: &[&RoundEvent]) -> Value {
    let awards: Vec<&RoundEvent> = events.iter().filter(|event| event.kind == "awarded").copied().collect();
    let award = awards.last().and_then(|event| event.body.get("award")).cloned();
    let winner = awards.last().and_then(|event| event.agent.clone());
    let because = awards.last().map(|event| because(event, awards.len()));
    let announced = events.iter().find(|event| event.kind == "announced");
    let closing = events.iter().find(|event| matches!(event.kind.as_str(), "awarded" | "no_offers"));
    let mut members = json!({
        "round": number,
        "award": award,
        "offers": offers.iter().filter(|offer| !offer.declined()).map(|offer| &offer.shown).collect::<Vec<_>>(),
        "winner": winner,
        "because": because,
        "silent": silent(offers, events),
        "announced_at": announced.and_then(|event| event.at),
        "bids_close_at": announced.and_then(|event| event.body.get("bids_close_at")),
        "closed_at": closing.and_then(|event| event.at),
        "weights": awards.last().and_then(|event| event.body.get("weights")),
        "awards": awards.iter().map(|event| json!({
            "epoch": event.epoch,
            "agent_id": event.agent,
            "assignment_id": event.body.get("assignment_id"),
            "awarded_at": event.at,
            "confirm_by": event.body.get("confirm_by"),
        })).collect::<Vec<_>>(),
    });
    if awards.len() > 1
        && let Some(object) = members.as_object_mut()
    {
        // The award of the best offer was refused or lost, so the next offer got it.
        let agents: Vec<&Option<String>> = awards.iter().map(|event| &event.agent).collect();
        object.insert("awarded_in_turn".into(), json!(agents));
    }
    members
}

/// Capable agents without an offer: `[{agent_id, reason}]`, or one text about all of them.
fn silent(offers: &[&OfferRow], events: &[&RoundEvent]) -> Value {
    let mut silent: Vec<Value> = Vec::new();
    let mut add = |agent: &Value, reason: &str| silent.push(json!({ "agent_id": agent, "reason": reason }));
    for offer in offers.iter().filter(|offer| offer.declined()) {
        let note = offer.note.as_ref().map_or_else(String::new, |note| format!(": {note}"));
        add(&json!(offer.agent), &format!("it declined{note}"));
    }
    let answered = |agent: &Value| offers.iter().any(|offer| agent.as_str() == Some(offer.agent.as_str()));
    let over = events.iter().any(|event| matches!(event.kind.as_str(), "awarded" | "no_offers"));
    for event in events {
        let eligible = event.body.get("eligible").and_then(Value::as_array);
        for agent in eligible.into_iter().flatten().filter(|agent| !answered(agent)) {
            add(agent, if over { "no answer before the round closed" } else { "has not answered yet" });
        }
        let reasons = event.body.get("silent").and_then(Value::as_object);
        for (reason, agents) in reasons.into_iter().flatten() {
            agents.as_array().into_iter().flatten().for_each(|agent| add(agent, reason));
        }
    }
    let reasons = events.iter().find(|event| event.kind == "no_offers").and_then(|it| it.body.get("reasons"));
    match reasons {
        Some(reasons) if silent.is_empty() => reasons.clone(),
        _ => silent.into(),
    }
}

/// Why the winner won, as a sentence.
fn because(event: &RoundEvent, turn: usize) -> String {
    let none = Vec::new();
    let offers = event.body.get("offers").and_then(Value::as_array).unwrap_or(&none);
    let part = |offer: &Value, name: &str| offer.get("score").and_then(|score| score.get(name)?.as_i64());
    let (Some(first), second) = (offers.first(), offers.get(1)) else { return "it was awarded".into() };
    let award: Award =
        event.body.get("award").and_then(|it| serde_json::from_value(it.clone()).ok()).unwrap_or_default();
    let total = |offer: &Value| part(offer, "total").unwrap_or(0);
    let again = if turn > 1 { ", the next of the standing offers" } else { "" };
    let by = match award {
        Award::Requester if total(first) > crate::task::rounds::score::ONE => {
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

/// A time that is only shown: `None` if it is unset or cannot be read.
fn time(row: &Row, name: &str) -> Option<DateTime<Utc>> {
    rows::time(row, name).unwrap_or_default()
}

fn attempt(row: &Row) -> Result<Value, Unreadable> {
    let outcome = rows::json(row, "outcome");
    let charge: Option<&str> = row.read("charge")?;
    let paid = match charge {
        // A charge has the reservation and the figures of a late report.
        Some(charge) => json!({
            "tokens": row.read::<Option<i64>>("tokens")?,
            "microdollars": row.read::<Option<i64>>("microdollars")?,
            "presumed": charge != "spent",
        }),
        None if outcome.is_null() => Value::Null,
        None => json!({
            "tokens": outcome.get("tokens"),
            "microdollars": outcome.get("microdollars"),
            "presumed": outcome.pointer("/body/usage/presumed") == Some(&Value::Bool(true)),
        }),
    };
    Ok(json!({
        "assignment_id": row.read::<uuid::Uuid>("id")?,
        "epoch": row.read::<i64>("epoch")?,
        "agent_id": row.read::<&str>("agent_id")?,
        "state": row.read::<&str>("state")?,
        "awarded_at": time(row, "awarded_at"),
        "started_at": time(row, "started_at"),
        "ended_at": time(row, "ended_at"),
        "confirm_by": time(row, "confirm_by"),
        "lease_until": time(row, "lease_until"),
        "progress_at": time(row, "progress_at"),
        "deadline_at": time(row, "attempt_deadline_at"),
        "progress": row.read::<Option<f32>>("progress")?.map(plain),
        "activity": row.read::<Option<String>>("activity")?,
        "error": error(&outcome),
        "paid": paid,
        "outcome": outcome,
    }))
}

/// Why an attempt ended without a result, as a sentence.
fn error(outcome: &Value) -> Option<&str> {
    let ended_well = matches!(outcome.pointer("/body/assignment")?.as_str()?, "finished" | "waiting");
    outcome.pointer("/body/message").and_then(Value::as_str).filter(|_| !ended_well)
}

/// The cost of all attempts together.
fn paid_in_all(attempts: &[Value]) -> Value {
    let sum = |name: &str| -> i64 {
        let each = attempts.iter().filter_map(|attempt| attempt.pointer(&format!("/paid/{name}"))?.as_i64());
        each.fold(0, i64::saturating_add)
    };
    let presumed =
        attempts.iter().any(|attempt| attempt.pointer("/paid/presumed") == Some(&Value::Bool(true)));
    json!({ "tokens": sum("tokens"), "microdollars": sum("microdollars"), "presumed": presumed })
}
