//! Tasks that hang on other tasks: dependencies, verifications, and the parts of one that was canceled.
//!
//! Whoever makes a task that hangs on another marks the other in the same transaction, under its lock. The
//! end of a marked task is found by its mark, at the next look or after a restart: those that hang on it are
//! moved, and the mark goes in the same commit. So no end is missed, and an end that concerns nobody costs
//! nothing. Dependencies must exist when they are named, so they cannot form a cycle.
use super::desk::{Act, Command};
use super::store::{Locked, run, sql};
use super::{Error, Shared, TaskId, TaskState, Verifier};
use deadpool_postgres::Transaction;
use serde_json::{Value, json};
use std::collections::HashMap;
use tokio_postgres::Row;
use uuid::Uuid;

/// Tasks that one look moves because others have ended.
const FOLLOWERS_MAX: i64 = 500;

/// How it stands with what a task hangs on.
#[derive(Clone, Debug)]
pub(super) struct Outlook {
    pub(super) all_ended: bool,
    pub(super) one_failed: bool,
    pub(super) verdict: Verdict,
}

/// What a verifier says of a result.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    Pending,
    Accepted,
    Rejected(String),
    /// It ended without saying anything.
    None(String),
}

/// A verification that is to be requested.
#[derive(Clone, Debug)]
pub(super) struct Verification {
    pub(super) id: TaskId,
    of: TaskId,
    verifier: Verifier,
    attempts_max: i32,
}

impl Verification {
    pub(super) fn of(shared: &Shared, task: TaskId, verifier: Verifier) -> Self {
        let attempts_max = shared
            .policy(&verifier.kind, &Value::Object(verifier.policy.clone()))
            .map_or(3, |policy| i32::try_from(policy.attempts_max).unwrap_or(i32::MAX));
        Self { id: TaskId::generate(), of: task, verifier, attempts_max }
    }

    /// Its policy: what it says is of this shape, and is not verified itself.
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

/// How it stands with what these locked tasks hang on; only those that hang on something are looked up.
pub(super) async fn outlooks(
    tx: &Transaction<'_>,
    rows: impl Iterator<Item = &Locked>,
) -> Result<HashMap<TaskId, Outlook>, Error> {
    let ids: Vec<Uuid> = rows.filter(|row| row.waits_for_others()).map(|row| row.id.as_uuid()).collect();
    if ids.is_empty() {
        return Ok(HashMap::new());
    }
    let rows = run(tx, sql!("outlooks"), &[&ids]).await?;
    Ok(rows.iter().map(|row| (TaskId::from(row.get::<_, Uuid>("id")), outlook(row))).collect())
}

fn outlook(row: &Row) -> Outlook {
    let verifier = row.get::<_, Option<&str>>("verifier_state").and_then(TaskState::parse);
    let result: Option<Value> = row.get("verdict");
    Outlook {
        all_ended: row.get("all_ended"),
        one_failed: row.get("one_failed"),
        verdict: verdict(verifier, result.as_ref()),
    }
}

fn verdict(verifier: Option<TaskState>, result: Option<&Value>) -> Verdict {
    let reason = result.and_then(|result| result.get("reason")).and_then(Value::as_str);
    match verifier {
        Some(TaskState::Completed) => {
            match result.and_then(|result| result.get("accepted")).and_then(Value::as_bool) {
                Some(true) => Verdict::Accepted,
                Some(false) => {
                    let reason = reason.unwrap_or("the verifier gave no reason");
                    Verdict::Rejected(super::request::one_line(reason, 1000))
                }
                None => Verdict::None("the verifier said neither yes nor no".into()),
            }
        }
        Some(state) if !state.is_final() => Verdict::Pending,
        Some(state) => Verdict::None(format!("its verification is {}", state.as_str())),
        None => Verdict::None("its verification is gone".into()),
    }
}

/// Requests the verifications of results that were just delivered.
pub(super) async fn verify(tx: &Transaction<'_>, made: &[Verification]) -> Result<(), Error> {
    if made.is_empty() {
        return Ok(());
    }
    let ids: Vec<Uuid> = made.iter().map(|one| one.id.as_uuid()).collect();
    let of: Vec<Uuid> = made.iter().map(|one| one.of.as_uuid()).collect();
    let kinds: Vec<&str> = made.iter().map(|one| one.verifier.kind.as_str()).collect();
    let requires: Vec<Value> = made.iter().map(|one| json!(one.verifier.requires)).collect();
    let policies: Vec<Value> = made.iter().map(Verification::policy).collect();
    let attempts: Vec<i32> = made.iter().map(|one| one.attempts_max).collect();
    run(tx, sql!("verify"), &[&ids, &of, &kinds, &requires, &policies, &attempts]).await.map(drop)
}

/// Marked tasks that have ended, and the commands that follow from that.
pub(super) struct Ends {
    pub(super) commands: Vec<Command>,
    followed: Vec<Uuid>,
    canceled: Vec<Uuid>,
}

/// Finds what the ends of marked tasks move; locks the marked ones.
pub(super) async fn ends(tx: &Transaction<'_>) -> Result<Ends, Error> {
    let rows = run(tx, sql!("ends"), &[]).await?;
    let marked = |column: &str| -> Vec<Uuid> {
        rows.iter().filter(|row| row.get::<_, bool>(column)).map(|row| row.get("id")).collect()
    };
    let mut ends = Ends { commands: Vec::new(), followed: marked("followed"), canceled: marked("cascades") };
    if rows.is_empty() {
        return Ok(ends);
    }
    let found = run(tx, sql!("followers"), &[&ends.followed, &ends.canceled, &FOLLOWERS_MAX]).await?;
    ends.commands = found.iter().map(command).collect();
    if i64::try_from(found.len()).is_ok_and(|count| count >= FOLLOWERS_MAX) {
        // There may be more of them: the marks stay for the next look.
        (ends.followed, ends.canceled) = (Vec::new(), Vec::new());
    }
    Ok(ends)
}

fn command(row: &Row) -> Command {
    let act = if row.get("child") {
        Act::Cancel { reason: format!("its parent is {}", row.get::<_, &str>("why")) }
    } else {
        Act::Timer
    };
    Command { task: TaskId::from(row.get::<_, Uuid>("id")), holder: None, act }
}

impl Ends {
    /// Those that hang on them have been moved, or wait for others still.
    pub(super) async fn unmark(&self, tx: &Transaction<'_>) -> Result<(), Error> {
        if self.followed.is_empty() && self.canceled.is_empty() {
            return Ok(());
        }
        run(tx, sql!("unmark"), &[&self.followed, &self.canceled]).await.map(drop)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.commands.is_empty() && self.followed.is_empty() && self.canceled.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_verifier_says_yes_no_or_nothing() {
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
