//! The rows, made again from the events (`reference/negotiation.md` §7, I8).
//!
//! Folding a task's events is pure; what comes out is compared with what the tables hold, member by member, in
//! one snapshot. A task whose first event is not its request (the log before it was thrown away) cannot be
//! made again and is counted apart. Changes nothing.
use super::Error;
use super::store::sql;
use crate::db::{self, Database};
use serde_json::{Map, Value, json};
use tokio_postgres::{IsolationLevel, Row};
use uuid::Uuid;

/// Tasks that are compared together.
const TOGETHER: i64 = 500;
/// Differences that are told.
const DIFFERENCES_MAX: usize = 100;

/// What came of a replay.
#[derive(Clone, Debug, Default)]
pub struct Replayed {
    /// Tasks that were made again and compared.
    pub tasks: u64,
    /// Events that it took.
    pub events: u64,
    /// Tasks whose first events are gone.
    pub without_beginning: u64,
    /// Where the tables differ from the events: `<task>: <member> is <row>, replayed <events>`, at most a hundred.
    pub differences: Vec<String>,
}

/// Makes every task and assignment again from the events and compares.
///
/// # Errors
/// `Unavailable`.
pub async fn replay(database: &Database) -> Result<Replayed, Error> {
    let mut client = database.client().await?;
    let start = client.build_transaction().isolation_level(IsolationLevel::RepeatableRead).read_only(true);
    let tx = start.start().await.map_err(db::Error::from)?;
    let mut replayed = Replayed::default();
    let mut after = Uuid::nil();
    loop {
        let rows = tx.query(sql!("replay_tasks"), &[&after, &TOGETHER]).await.map_err(db::Error::from)?;
        let ids: Vec<Uuid> = rows.iter().map(|row| row.get("id")).collect();
        let Some(last) = ids.last() else { return Ok(replayed) };
        after = *last;
        let events = tx.query(sql!("replay_events"), &[&ids]).await.map_err(db::Error::from)?;
        let mut events = events.iter().peekable();
        for row in &rows {
            let id: Uuid = row.get("id");
            let mut made: Option<Made> = None;
            let mut first = true;
            while let Some(event) = events.next_if(|event| event.get::<_, Uuid>("task_id") == id) {
                replayed.events += 1;
                let event = Told::from(event);
                match &mut made {
                    None if first && event.kind == "requested" => made = Some(Made::request(&event)),
                    None => {}
                    Some(made) => made.apply(&event),
                }
                first = false;
            }
            match made {
                None => replayed.without_beginning += 1,
                Some(made) => {
                    replayed.tasks += 1;
                    made.compare(&id, &row.get("row"), &mut replayed.differences);
                }
            }
        }
    }
}

/// An event as it is folded.
struct Told {
    org: String,
    agent: Option<String>,
    epoch: i64,
    kind: String,
    body: Value,
}

impl From<&Row> for Told {
    fn from(row: &Row) -> Self {
        Self {
            org: row.get("org"),
            agent: row.get("agent_id"),
            epoch: row.get::<_, Option<i64>>("epoch").unwrap_or(0),
            kind: row.get("type"),
            body: row.get("body"),
        }
    }
}

/// A task that is being made again.
#[derive(Debug)]
struct Made {
    members: Map<String, Value>,
    assignments: Map<String, Value>,
}

impl Made {
    fn request(event: &Told) -> Self {
        let mut members = Map::new();
        members.insert("org".into(), json!(event.org));
        for name in ["kind", "requires", "requester", "priority"] {
            members.insert(name.into(), event.body.get(name).cloned().unwrap_or_default());
        }
        // One that was requested in SQL says no more; what is not said is not compared.
        let row = event.body.get("row").and_then(Value::as_object).cloned().unwrap_or_default();
        members.extend(row);
        for name in ["reason", "agent_id", "result", "error"] {
            members.insert(name.into(), Value::Null);
        }
        for name in ["round", "epoch", "attempt"] {
            members.insert(name.into(), json!(0));
        }
        Self { members, assignments: Map::new() }
    }

    fn apply(&mut self, event: &Told) {
        let body = &event.body;
        let mut set = |name: &str, value: Value| self.members.insert(name.to_owned(), value);
        match event.kind.as_str() {
            "awarded" => {
                set("state", json!("awarded"));
                set("reason", Value::Null);
                set("epoch", json!(event.epoch));
                set("agent_id", json!(event.agent));
                let assignment = json!({ "epoch": event.epoch, "agent_id": event.agent, "state": "awarded" });
                if let Some(id) = body.get("assignment_id").and_then(Value::as_str) {
                    self.assignments.insert(id.to_owned(), assignment);
                }
            }
            "started" => {
                set("state", json!("running"));
                self.end(body, "running");
            }
            "requeued" => {
                for name in ["reason", "agent_id", "result", "error"] {
                    set(name, Value::Null);
                }
                set("attempt", json!(0));
            }
            // What is reported after the end changes nothing; that a round closes moves nothing yet.
            "orphan_result" => return,
            _ => {}
        }
        for name in ["state", "round", "attempt"] {
            if let Some(value) = body.get(name) {
                self.members.insert(name.to_owned(), value.clone());
            }
        }
        if let Some(state) = body.get("assignment").and_then(Value::as_str) {
            self.end(body, state);
        }
        if let Some(row) = body.get("row").and_then(Value::as_object) {
            self.members.extend(row.clone());
            let state = self.members.get("state").and_then(Value::as_str);
            if !matches!(state, Some("completed" | "verifying")) {
                self.members.insert("result".into(), Value::Null);
            }
        }
    }

    fn end(&mut self, body: &Value, state: &str) {
        let id = body.get("assignment_id").and_then(Value::as_str).unwrap_or_default();
        if let Some(assignment) = self.assignments.get_mut(id).and_then(Value::as_object_mut) {
            assignment.insert("state".into(), json!(state));
        }
    }

    fn compare(mut self, id: &Uuid, row: &Value, differences: &mut Vec<String>) {
        self.members.insert("assignments".into(), Value::Object(self.assignments));
        for (name, made) in &self.members {
            let is = row.get(name).unwrap_or(&Value::Null);
            if is != made && differences.len() < DIFFERENCES_MAX {
                let short = |value: &Value| value.to_string().chars().take(300).collect::<String>();
                differences.push(format!("{id}: {name} is {}, replayed {}", short(is), short(made)));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(kind: &str, epoch: i64, agent: Option<&str>, body: Value) -> Told {
        Told { org: "demo".into(), agent: agent.map(str::to_owned), epoch, kind: kind.into(), body }
    }

    #[test]
    fn a_life_is_made_again_and_every_difference_is_told() {
        let request = json!({ "kind": "k", "requires": [], "requester": "r", "priority": 0,
            "row": { "state": "open", "input": { "n": null } } });
        let mut made = Made::request(&told("requested", 0, None, request));
        made.apply(&told("awarded", 1, Some("a"), json!({ "assignment_id": "x", "round": 1 })));
        made.apply(&told("started", 1, Some("a"), json!({ "assignment_id": "x", "attempt": 1 })));
        let row = json!({ "reason": null, "agent_id": "a", "attempt": 1, "result": 42 });
        let end = json!({ "state": "completed", "assignment": "finished", "assignment_id": "x", "row": row });
        made.apply(&told("finished", 1, Some("a"), end));
        made.apply(&told("orphan_result", 1, Some("b"), json!({ "result": 1, "state": "open" })));
        let is = json!({ "org": "demo", "kind": "k", "requires": [], "requester": "r", "priority": 0,
            "input": { "n": null }, "state": "completed", "round": 1, "epoch": 1, "attempt": 1, "agent_id": "a",
            "result": 42, "assignments": { "x": { "epoch": 1, "agent_id": "a", "state": "finished" } } });
        let mut differences = Vec::new();
        let mut other = is.clone();
        other["state"] = json!("failed");
        let copy = Made { members: made.members.clone(), assignments: made.assignments.clone() };
        copy.compare(&Uuid::nil(), &is, &mut differences);
        assert_eq!(differences, Vec::<String>::new());
        made.compare(&Uuid::nil(), &other, &mut differences);
        assert_eq!(differences.len(), 1, "{differences:?}");
        assert!(differences[0].contains("state is \"failed\", replayed \"completed\""), "{differences:?}");
    }
}
