//! Tasks whose rows cannot be read end `failed(unreadable)`, each alone.
//!
//! A row may hold values that Postgres stores and the daemon cannot decode: JSON that is nested too deeply, a number
//! outside of a float, an infinite time, a null in a list. The code that reads such a row ends its task here, in the
//! transaction that has locked it. The columns keep their values for repair; nothing is computed with them. A row of
//! a newer schema stays as it is.
use crate::fault;
use crate::task::commands::after_commit::{publish, release_slots};
use crate::task::commands::command::BatchOutcome;
use crate::task::model::validate::one_line;
use crate::task::storage::charges::{self, Charge};
use crate::task::storage::rows::{Columns, UnreadableTask, all};
use crate::task::storage::statement::{run, sql};
use crate::task::storage::store;
use crate::task::storage::transaction::Transaction;
use crate::task::{
    AssignmentKey, Epoch, Error, Notice, TaskContext, TaskId, TaskState, Update, storage::rows,
};
use std::collections::HashMap;
use tokio_postgres::Row;
use uuid::Uuid;

/// Longest reason that is stored, in bytes.
const WHY_BYTES_MAX: usize = 500;

/// Ends these tasks, whose rows this transaction has locked. Returns the states that they have then, without those
/// of a newer schema.
pub(in crate::task) async fn end(
    tx: &Transaction<'_>,
    context: &TaskContext,
    broken: &[UnreadableTask],
    outcome: &mut BatchOutcome,
) -> Result<HashMap<TaskId, TaskState>, Error> {
    for one in broken.iter().filter(|one| one.newer_schema) {
        tracing::warn!(task = %one.id, why = one.why, "task left to a newer daemon");
    }
    let broken: Vec<&UnreadableTask> = broken.iter().filter(|one| !one.newer_schema).collect();
    if broken.is_empty() {
        return Ok(HashMap::new());
    }
    let tasks: Vec<Uuid> = broken.iter().map(|one| one.id.as_uuid()).collect();
    let reasons: Vec<String> = broken.iter().map(|one| one_line(&one.why, WHY_BYTES_MAX)).collect();
    let held = run(tx, sql!("held_tasks"), &[&tasks]).await?;
    store::lock_agents(tx, all(&held, "agent_id")?).await?;
    let (ids, slots) = (all::<Uuid>(&held, "assignment_id")?, all::<bool>(&held, "holds_slot")?);
    let charges = ids.into_iter().zip(slots).map(|(id, holds_slot)| Charge::presumed(id, holds_slot));
    charges::settle(tx, &charges.collect::<Vec<_>>()).await?;
    let mut states = HashMap::new();
    for row in run(tx, sql!("unreadable"), &[&tasks, &reasons]).await? {
        let id = rows::task_id(&row, "id")?;
        states.insert(id, TaskState::Failed);
        context.metrics.unreadable.inc();
        let why = broken.iter().find(|one| one.id == id).map_or("", |one| one.why.as_str());
        tracing::warn!(task = %id, why, "task failed: its row cannot be read");
        outcome.leads_on |= row.read::<bool>("leads_on")?;
        if row.read::<bool>("held_slot")? {
            outcome.freed.extend(rows::agent(&row, "assignee")?);
        }
        outcome.notices.extend(cancel_notice(&row, id)?);
        // A text that is not an org id has no subscribers, so a notice is not needed.
        outcome.notices.extend(Update::from_row(&row).ok().map(Notice::Updated));
    }
    if states.len() < broken.len() {
        for row in run(tx, sql!("states"), &[&tasks]).await? {
            let id = rows::task_id(&row, "id")?;
            match rows::state(&row, "state") {
                Ok(state) => drop(states.insert(id, state)),
                Err(why) => tracing::warn!(task = %id, %why, "task left to a newer daemon"),
            }
        }
    }
    Ok(states)
}

/// The notice to the assignee, if there is one.
fn cancel_notice(row: &Row, task_id: TaskId) -> Result<Option<Notice>, Error> {
    let (Some(agent_id), Some(assignment)) =
        (rows::agent(row, "assignee")?, row.read::<Option<Uuid>>("assignment_id")?)
    else {
        return Ok(None);
    };
    let epoch = Epoch(row.read("assignment_epoch")?);
    let key = AssignmentKey { task_id, assignment_id: assignment.into(), epoch };
    Ok(Some(Notice::Cancel { agent_id, key, reason: "unreadable".into() }))
}

/// Ends one task in a transaction of its own.
pub(in crate::task) async fn end_one_by_one(
    context: &TaskContext,
    id: TaskId,
    why: &str,
) -> Result<(), Error> {
    let mut client = context.database.client().await?;
    let tx = Transaction::begin(&mut client);
    run(&tx, sql!("lock_tasks"), &[&vec![id.as_uuid()]]).await?;
    let mut outcome = BatchOutcome::default();
    end(&tx, context, &[UnreadableTask { id, why: why.to_owned(), newer_schema: false }], &mut outcome)
        .await?;
    tx.commit().await?;
    fault::point(fault::Point::TaskUnreadable);
    release_slots(context, &outcome.freed);
    publish(context, &outcome.freed, outcome.notices);
    Ok(())
}
