//! Starts of assignments: the statement, and the answers with the input of each task.
use crate::id::TraceContext;
use crate::task::commands::command::{BatchOutcome, CommandReply};
use crate::task::storage::columns::columns;
use crate::task::storage::rows::{self, Columns, Unreadable, UnreadableTask};
use crate::task::storage::statement::{millis, run, sql};
use crate::task::storage::transaction::Transaction;
use crate::task::{AssignmentKey, Error, Notice, POLL_EVERY, Policy, Start, TaskId, Update};
use serde_json::Value;
use std::{collections::HashMap, time::Duration};
use tokio_postgres::Row;
use uuid::Uuid;

/// An assignment that starts, or whose start is repeated: the index of its command, and its policy.
pub(in crate::task) struct StartEffect {
    pub(in crate::task) at: usize,
    pub(in crate::task) key: AssignmentKey,
    pub(in crate::task) policy: Policy,
    pub(in crate::task) again: bool,
    /// The task when it runs. The statement says its version.
    pub(in crate::task) running: Update,
}

/// Starts the accepted assignments; the answers carry the input. Returns the tasks whose input cannot be read.
pub(in crate::task) async fn start(
    tx: &Transaction<'_>,
    starts: &[StartEffect],
    outcome: &mut BatchOutcome,
) -> Result<Vec<UnreadableTask>, Error> {
    let mut broken = Vec::new();
    for again in starts.iter().filter(|start| start.again) {
        let key = again.key;
        let found = run(tx, sql!("restart_answer"), &[&key.task_id.as_uuid(), &key.epoch.0]).await?;
        broken.extend(answer_starts(&found, &[again], outcome)?);
    }
    let starting: Vec<&StartEffect> = starts.iter().filter(|start| !start.again).collect();
    let found = write_starts(tx, &starting, false).await?;
    broken.extend(answer_starts(&found, &starting, outcome)?);
    Ok(broken)
}

/// When the timers of a running task are first due.
fn first_due(policy: &Policy) -> Duration {
    policy.lease.min(policy.attempt).min(policy.progress)
}

/// Starts the assignments whose tasks await it. Returns a row of each that has started. `unread`: nothing was read of them
/// in this transaction, so one that is late does not start.
pub(in crate::task) async fn write_starts(
    tx: &Transaction<'_>,
    starting: &[&StartEffect],
    unread: bool,
) -> Result<Vec<Row>, Error> {
    if starting.is_empty() {
        return Ok(Vec::new());
    }
    let columns = columns!("start", starting, |start| {
        task_id: Uuid = start.key.task_id.as_uuid(),
        assignment_id: Uuid = start.key.assignment_id.as_uuid(),
        lease_ms: i64 = millis(start.policy.lease),
        attempt_ms: i64 = millis(start.policy.attempt),
        due_ms: i64 = millis(first_due(&start.policy)),
    });
    columns.run(tx, &[&unread]).await
}

/// Answers the commands whose assignments have started, with the rows of `start.sql` or `restart_answer.sql`. Returns
/// the tasks whose input cannot be read.
pub(in crate::task) fn answer_starts(
    found: &[Row],
    starts: &[&StartEffect],
    outcome: &mut BatchOutcome,
) -> Result<Vec<UnreadableTask>, Error> {
    let mut broken = Vec::new();
    let by_task: HashMap<TaskId, &StartEffect> =
        starts.iter().map(|start| (start.key.task_id, *start)).collect();
    for row in found {
        let id = rows::task_id(row, "id")?;
        let Some(start) = by_task.get(&id) else { continue };
        let (policy, running) = (&start.policy, &start.running);
        if !start.again {
            outcome.soon |= first_due(policy) < POLL_EVERY;
            outcome
                .notices
                .push(Notice::Updated(Update { version: row.read("version")?, ..running.clone() }));
        }
        let begun = Start {
            key: start.key,
            org: running.org.clone(),
            kind: running.kind.clone(),
            input: Value::Null,
            attempt: 0,
            lease: policy.lease,
            attempt_timeout: policy.attempt,
            checkpoint: None,
            result_schema: policy.result_schema.clone(),
            deadline: None,
            answers: Vec::new(),
            rejected: None,
            traceparent: None,
            budgeted: false,
            priority: 0,
        };
        match begun.filled(row) {
            Ok(begun) => {
                if let Some(answer) = outcome.answers.get_mut(start.at) {
                    *answer = Ok(CommandReply::Started(Box::new(begun)));
                }
            }
            Err(why) => broken.push(UnreadableTask::new(id, &why)),
        }
    }
    Ok(broken)
}

impl Start {
    /// With the columns of `start.sql` or `restart_answer.sql`.
    fn filled(self, row: &Row) -> Result<Self, Unreadable> {
        let answers: Option<Value> = row.read("answers")?;
        // One that was written by hand and cannot be read is none.
        let trace =
            row.read::<Option<&str>>("traceparent")?.and_then(|text| text.parse::<TraceContext>().ok());
        let assignment = self.key.assignment_id;
        Ok(Self {
            input: row.read("input")?,
            attempt: row.read("attempt")?,
            checkpoint: row.read("checkpoint")?,
            deadline: rows::time(row, "deadline_at")?,
            answers: answers.and_then(|answers| answers.as_array().cloned()).unwrap_or_default(),
            rejected: row.read("rejected")?,
            traceparent: trace.map(|trace| trace.assignment(assignment)),
            budgeted: row.read("budgeted")?,
            priority: row.read("priority")?,
            ..self
        })
    }
}
