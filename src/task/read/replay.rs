//! Replays the event log and compares the result with the rows (`docs/spec/negotiation.md` §7, I8).
//!
//! The fold over the events of a task is pure. Its result is compared with the tables in one snapshot, member by
//! member. A task whose first event is not its request, because earlier events were deleted, cannot be replayed and is
//! counted apart. It only reads.
use crate::db::{self, Database};
use crate::task::Error;
use crate::task::storage::rows::{Columns, Unreadable, all};
use crate::task::storage::statement::sql;
use serde_json::{Map, Value, json};
use tokio_postgres::{IsolationLevel, Row};
use uuid::Uuid;

/// Tasks of one batch.
const TOGETHER: i64 = 500;
/// Most differences that are reported.
const DIFFERENCES_MAX: usize = 100;

/// The outcome of a replay.
#[derive(Clone, Debug, Default)]
pub struct Replayed {
    /// Tasks that were replayed and compared.
    pub tasks: u64,
    /// Events that were read.
    pub events: u64,
    /// Tasks whose first events were deleted.
    pub without_beginning: u64,
    /// Tasks with a row or an event that cannot be read; they are not compared.
    pub unreadable: u64,
    /// Where the tables differ from the events: `<task>: <member> is <row>, replayed <events>`, at most a hundred.
    pub differences: Vec<String>,
}

/// Replays every task and assignment from the event log and compares them with the rows.
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
        let ids: Vec<Uuid> = all(&rows, "id")?;
        let Some(last) = ids.last() else { return Ok(replayed) };
        after = *last;
        let events = tx.query(sql!("replay_events"), &[&ids]).await.map_err(db::Error::from)?;
        let mut events = events.iter().peekable();
        for row in &rows {
            let id: Uuid = row.read("id")?;
            let mut made: Result<Option<ReplayedTask>, Unreadable> = Ok(None);
            let mut first = true;
            while let Some(event) = events.next_if(|event| event.read::<Uuid>("task_id") == Ok(id)) {
                replayed.events += 1;
                match (FoldedEvent::read(event), &mut made) {
                    (Err(why), _) => made = Err(why),
                    (Ok(event), Ok(None)) if first && event.kind == "requested" => {
                        made = Ok(Some(ReplayedTask::request(&event)));
                    }
                    (Ok(event), Ok(Some(made))) => made.apply(&event),
                    (Ok(_), _) => {}
                }
                first = false;
            }
            match (made, row.read::<Value>("row")) {
                (Err(_), _) | (Ok(Some(_)), Err(_)) => replayed.unreadable += 1,
                (Ok(None), _) => replayed.without_beginning += 1,
                (Ok(Some(made)), Ok(row)) => {
                    replayed.tasks += 1;
                    made.compare(&id, &row, &mut replayed.differences);
                }
            }
        }
    }
}

/// An event of the fold.
struct FoldedEvent {
    org: String,
    agent: Option<String>,
    epoch: i64,
    kind: String,
    body: Value,
}

impl FoldedEvent {
    fn read(row: &Row) -> Result<Self, Unreadable> {
        Ok(Self {
            org: row.read("org")?,
            agent: row.read("agent_id")?,
            epoch: row.read::<Option<i64>>("epoch")?.unwrap_or(0),
            kind: row.read("type")?,
            body: row.read("body")?,
        })
    }
}

/// A task during the fold.
#[derive(Debug)]
struct ReplayedTask {
    members: Map<String, Value>,
    assignments: Map<String, Value>,
}

impl ReplayedTask {
    fn request(event: &FoldedEvent) -> Self {
        let mut members = Map::new();
        members.insert("org".into(), json!(event.org));
        for name in ["kind", "requires", "requester", "priority"] {
            members.insert(name.into(), event.body.get(name).cloned().unwrap_or_default());
        }
        // The event of a request by SQL has no more members; a member that is missing is not compared.
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

    fn apply(&mut self, event: &FoldedEvent) {
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
            // A report after the end changes nothing.
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

    fn event(kind: &str, epoch: i64, agent: Option<&str>, body: Value) -> FoldedEvent {
        FoldedEvent { org: "demo".into(), agent: agent.map(str::to_owned), epoch, kind: kind.into(), body }
    }

    #[test]
    fn replay_rebuilds_a_task_and_reports_every_difference() {
        let request = json!({ "kind": "k", "requires": [], "requester": "r", "priority": 0,
            "row": { "state": "open", "input": { "n": null } } });
        let mut made = ReplayedTask::request(&event("requested", 0, None, request));
        made.apply(&event("awarded", 1, Some("a"), json!({ "assignment_id": "x", "round": 1 })));
        made.apply(&event("started", 1, Some("a"), json!({ "assignment_id": "x", "attempt": 1 })));
        let row = json!({ "reason": null, "agent_id": "a", "attempt": 1, "result": 42 });
        let end = json!({ "state": "completed", "assignment": "finished", "assignment_id": "x", "row": row });
        made.apply(&event("finished", 1, Some("a"), end));
        made.apply(&event("orphan_result", 1, Some("b"), json!({ "result": 1, "state": "open" })));
        let is = json!({ "org": "demo", "kind": "k", "requires": [], "requester": "r", "priority": 0,
            "input": { "n": null }, "state": "completed", "round": 1, "epoch": 1, "attempt": 1, "agent_id": "a",
            "result": 42, "assignments": { "x": { "epoch": 1, "agent_id": "a", "state": "finished" } } });
        let mut differences = Vec::new();
        let mut other = is.clone();
        other["state"] = json!("failed");
        let copy = ReplayedTask { members: made.members.clone(), assignments: made.assignments.clone() };
        copy.compare(&Uuid::nil(), &is, &mut differences);
        assert_eq!(differences, Vec::<String>::new());
        made.compare(&Uuid::nil(), &other, &mut differences);
        assert_eq!(differences.len(), 1, "{differences:?}");
        assert!(differences[0].contains("state is \"failed\", replayed \"completed\""), "{differences:?}");
    }
}
