//! What a task waits for, as a sentence for `why`.
use crate::task::storage::rows::{self, Columns, Unreadable};
use crate::task::{Error, Task, TaskReader, TaskState, storage::statement::sql};
use serde_json::Value;
use tokio_postgres::Row;

/// The columns that explain what a task waits for.
struct Waiting {
    due_at: Option<String>,
    bids_close_at: Option<String>,
    unattended_since: Option<String>,
    outage_since: Option<String>,
    outages: i32,
    verifier: Option<uuid::Uuid>,
    depends_on: Option<Value>,
    away: Option<Value>,
}

impl TaskReader {
    /// What a task waits for, one line; `None` if it has ended.
    pub(in crate::task) async fn waits_for(&self, task: &Task) -> Result<Option<String>, Error> {
        let rows = self.query(sql!("why_waits"), &[&task.id.as_uuid()]).await?;
        let Some(row) = rows.first() else { return Ok(None) };
        let waiting = waiting(row)?;
        Ok(text(task, &waiting))
    }
}

fn waiting(row: &Row) -> Result<Waiting, Unreadable> {
    Ok(Waiting {
        due_at: time(row, "due_at"),
        bids_close_at: time(row, "bids_close_at"),
        unattended_since: time(row, "unattended_since"),
        outage_since: time(row, "outage_since"),
        outages: row.read("outages")?,
        verifier: row.read("verifier_id")?,
        depends_on: row.read("depends_on")?,
        away: row.read("away")?,
    })
}

/// The time of a column as text. One that cannot be read must not hide what else is known of the task.
fn time(row: &Row, column: &str) -> Option<String> {
    rows::time(row, column).map_or_else(
        |_| Some("a time that cannot be read".to_owned()),
        |time| time.map(|time| time.to_rfc3339()),
    )
}

fn text(task: &Task, waiting: &Waiting) -> Option<String> {
    let at = |time: &Option<String>| time.clone().unwrap_or_else(|| "now".to_owned());
    let agent = task.agent_id.as_ref().map_or("the agent", |agent| agent.as_str());
    Some(match task.state {
        TaskState::Completed | TaskState::Failed | TaskState::Canceled => return None,
        TaskState::Blocked => {
            let member =
                |it: &Value, name: &str| it.get(name).and_then(Value::as_str).unwrap_or("?").to_owned();
            let each = waiting.depends_on.iter().flat_map(|list| list.as_array()).flatten();
            let each: Vec<String> = each
                .map(|it| format!("{} {} ({})", member(it, "kind"), member(it, "id"), member(it, "state")))
                .collect();
            format!("for the end of {}", each.join(", "))
        }
        TaskState::Scheduled => format!("for its run_at, {}", at(&task.run_at.map(|time| time.to_rfc3339()))),
        TaskState::Open if waiting.bids_close_at.is_some() => {
            format!("for offers, until {} at the latest", at(&waiting.bids_close_at))
        }
        TaskState::Open => open(waiting, &at),
        TaskState::Awarded => format!("for {agent} to accept, until {}", at(&waiting.due_at)),
        TaskState::Running => format!("for {agent} to finish"),
        TaskState::Verifying => match waiting.verifier {
            Some(id) => format!("for its verification, task {id}"),
            None => "for its verification".into(),
        },
        TaskState::Waiting => {
            format!("for an answer ({})", task.state_reason.as_deref().unwrap_or("input"))
        }
        TaskState::Canceling => format!("for {agent} to stop, until {}", at(&waiting.due_at)),
    })
}

fn open(waiting: &Waiting, at: &dyn Fn(&Option<String>) -> String) -> String {
    if let Some(since) = &waiting.unattended_since {
        let away: Vec<&str> = waiting
            .away
            .iter()
            .flat_map(|list| list.as_array())
            .flatten()
            .filter_map(Value::as_str)
            .collect();
        let who = if away.is_empty() {
            "no capable agent offers".to_owned()
        } else {
            format!("of the capable agents these are away: {}", away.join(", "))
        };
        return format!("for an agent since {since}: {who}; the next round is at {}", at(&waiting.due_at));
    }
    match (&waiting.outage_since, &waiting.due_at) {
        (Some(since), Some(_)) => {
            let (outages, next) = (waiting.outages, at(&waiting.due_at));
            format!("for the end of an outage since {since}, after {outages} attempts; the next is at {next}")
        }
        (None, Some(_)) => format!("for its back-off until {}", at(&waiting.due_at)),
        (_, None) => "for a free slot of a capable agent".into(),
    }
}
