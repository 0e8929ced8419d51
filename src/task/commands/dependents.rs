//! Tasks that follow others: dependents, verified tasks, the next of a thread, and the parts of a task that was
//! canceled.
//!
//! The transaction that inserts a dependent task locks and marks the task that it depends on. The arbiter finds the
//! end of a marked task by its mark, at the next poll or after a restart: it moves the dependents and removes the mark
//! in the same commit. So no end is missed, and the end of an unmarked task costs nothing. Dependencies must exist
//! when they are named, so they cannot form a cycle.
use crate::task::commands::command::{Action, TaskCommand};
use crate::task::model::{policies::Policies, validate::one_line};
use crate::task::storage::columns::columns;
use crate::task::storage::locked_task::LockedTask;
use crate::task::storage::rows::{self, Columns, Unreadable};
use crate::task::storage::statement::{run, sql};
use crate::task::storage::transaction::Transaction;
use crate::task::{Error, TaskId, TaskState, Verifier};
use serde_json::{Value, json};
use std::collections::HashMap;
use tokio_postgres::{Row, types::Json};
use uuid::Uuid;

/// Tasks that one batch moves because others have ended.
const FOLLOWERS_MAX: i64 = 500;

/// The state of the tasks that a task depends on, and the verdict on its result.
#[derive(Clone, Debug)]
pub(in crate::task) struct Outlook {
    pub(in crate::task) all_ended: bool,
    pub(in crate::task) one_failed: bool,
    pub(in crate::task) verdict: Verdict,
}

/// The verdict of a verifier on a result.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::task) enum Verdict {
    Pending,
    Accepted,
    Rejected(String),
    /// The verification ended without a verdict.
    None(String),
}

/// A verification to insert.
#[derive(Clone, Debug)]
pub(in crate::task) struct Verification {
    pub(in crate::task) id: TaskId,
    of: TaskId,
    verifier: Verifier,
    attempts_max: i32,
}

impl Verification {
    /// The verification `id` of the result of a task.
    pub(in crate::task) fn of(policies: &Policies, id: TaskId, task: TaskId, verifier: Verifier) -> Self {
        let attempts_max = policies
            .of_task(&verifier.kind, &Value::Object(verifier.policy.clone()))
            .map_or(3, |policy| i32::try_from(policy.attempts_max).unwrap_or(i32::MAX));
        Self { id, of: task, verifier, attempts_max }
    }

    /// Its policy: the result has this schema and is not verified itself.
    fn policy(&self) -> Value {
        let mut policy = self.verifier.policy.clone();
        policy.insert(
            "result_schema".into(),
            json!({
                "type": "object",
                "required": ["accepted"],
                "properties": { "accepted": { "type": "boolean" }, "reason": { "type": "string" } },
            }),
        );
        policy.insert("verifier".into(), Value::Null);
        Value::Object(policy)
    }
}

/// The outlooks of the locked tasks that wait for others.
pub(in crate::task) async fn outlooks(
    tx: &Transaction<'_>,
    rows: impl Iterator<Item = &LockedTask>,
) -> Result<HashMap<TaskId, Outlook>, Error> {
    let ids: Vec<Uuid> = rows.filter(|row| row.waits_for_others()).map(|row| row.id.as_uuid()).collect();
    if ids.is_empty() {
        return Ok(HashMap::new());
    }
    let rows = run(tx, sql!("outlooks"), &[&ids]).await?;
    rows.iter().map(|row| Ok((rows::task_id(row, "id")?, outlook(row)?))).collect()
}

fn outlook(row: &Row) -> Result<Outlook, Unreadable> {
    let verifier = row.read::<Option<&str>>("verifier_state")?;
    let verifier = verifier.map(|word| rows::known_state(word, "verifier_state")).transpose();
    let verdict = match (verifier, row.read::<Option<Value>>("verdict")) {
        // A verification in a state of a newer schema is not over for this daemon.
        (Err(_), _) => Verdict::Pending,
        (Ok(verifier), Ok(result)) => verdict(verifier, result.as_ref()),
        (Ok(_), Err(why)) => Verdict::None(format!("the verifier's result cannot be used: {why}")),
    };
    Ok(Outlook { all_ended: row.read("all_ended")?, one_failed: row.read("one_failed")?, verdict })
}

fn verdict(verifier: Option<TaskState>, result: Option<&Value>) -> Verdict {
    let reason = result.and_then(|result| result.get("reason")).and_then(Value::as_str);
    match verifier {
        Some(TaskState::Completed) => {
            match result.and_then(|result| result.get("accepted")).and_then(Value::as_bool) {
                Some(true) => Verdict::Accepted,
                Some(false) => {
                    let reason = reason.unwrap_or("the verifier gave no reason");
                    Verdict::Rejected(one_line(reason, 1000))
                }
                None => Verdict::None("the verifier said neither yes nor no".into()),
            }
        }
        Some(state) if !state.is_final() => Verdict::Pending,
        Some(state) => Verdict::None(format!("its verification is {}", state.as_str())),
        None => Verdict::None("its verification is gone".into()),
    }
}

/// Inserts the verifications of results that were just delivered.
pub(in crate::task) async fn verify(tx: &Transaction<'_>, made: &[Verification]) -> Result<(), Error> {
    if made.is_empty() {
        return Ok(());
    }
    let columns = columns!("verify", made, |one| {
        id: Uuid = one.id.as_uuid(),
        of: Uuid = one.of.as_uuid(),
        kind: &str = one.verifier.kind.as_str(),
        needs: Json<&Vec<String>> = Json(&one.verifier.requires),
        policy: Value = one.policy(),
        attempts_max: i32 = one.attempts_max,
    });
    columns.run(tx, &[]).await.map(drop)
}

/// Marked tasks that have ended, and the commands for the tasks that follow them.
pub(in crate::task) struct Ends {
    pub(in crate::task) commands: Vec<TaskCommand>,
    followed: Vec<Uuid>,
    canceled: Vec<Uuid>,
}

/// Finds the marked tasks that have ended, locks them, and finds the tasks that follow them.
pub(in crate::task) async fn ends(tx: &Transaction<'_>) -> Result<Ends, Error> {
    let rows = run(tx, sql!("ends"), &[]).await?;
    let (mut followed, mut canceled) = (Vec::new(), Vec::new());
    for row in &rows {
        let id: Uuid = row.read("id")?;
        followed.extend(row.read::<bool>("followed")?.then_some(id));
        canceled.extend(row.read::<bool>("cascades")?.then_some(id));
    }
    let mut ends = Ends { commands: Vec::new(), followed, canceled };
    if rows.is_empty() {
        return Ok(ends);
    }
    let found = run(tx, sql!("followers"), &[&ends.followed, &ends.canceled, &FOLLOWERS_MAX]).await?;
    ends.commands = found.iter().map(command).collect::<Result<_, _>>()?;
    if i64::try_from(found.len()).is_ok_and(|count| count >= FOLLOWERS_MAX) {
        // There may be more: the marks stay for the next poll.
        (ends.followed, ends.canceled) = (Vec::new(), Vec::new());
    }
    Ok(ends)
}

fn command(row: &Row) -> Result<TaskCommand, Unreadable> {
    let action = if row.read("child")? {
        Action::Cancel { reason: format!("its parent is {}", row.read::<&str>("why")?), by: None }
    } else {
        Action::Timer
    };
    Ok(TaskCommand { task: rows::task_id(row, "id")?, holder: None, action })
}

impl Ends {
    /// Removes the marks: the tasks that follow were moved, or still wait for others. The next of a thread is due now.
    pub(in crate::task) async fn unmark(&self, tx: &Transaction<'_>) -> Result<(), Error> {
        if self.followed.is_empty() && self.canceled.is_empty() {
            return Ok(());
        }
        run(tx, sql!("thread_next"), &[&self.followed]).await?;
        run(tx, sql!("unmark_followed"), &[&self.followed, &self.canceled]).await.map(drop)
    }

    pub(in crate::task) fn is_empty(&self) -> bool {
        self.commands.is_empty() && self.followed.is_empty() && self.canceled.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn verdict_is_accepted_rejected_none_or_pending() {
        let completed = |result: Value| verdict(Some(TaskState::Completed), Some(&result));
        assert_eq!(completed(json!({ "accepted": true })), Verdict::Accepted);
        let no = completed(json!({ "accepted": false, "reason": "too\nshort" }));
        assert_eq!(no, Verdict::Rejected("too short".into()));
        assert!(matches!(completed(json!({ "accepted": "yes" })), Verdict::None(_)));
        assert!(matches!(verdict(Some(TaskState::Failed), None), Verdict::None(_)));
        assert_eq!(verdict(Some(TaskState::Running), None), Verdict::Pending);
        assert!(matches!(verdict(None, None), Verdict::None(_)));
    }
}
