//! Renewal of leases: every report of an assignee renews the lease of its assignment.
//!
//! A lease that is not renewed in time is found by the arbiter as due (`LeaseLost` in
//! [`decide`](super::decide::decide)), and the task goes to another agent.
use crate::task::commands::command::Report;
use crate::task::storage::columns::columns;
use crate::task::storage::transaction::Transaction;
use crate::task::{Error, Notice, context::TaskContext, storage::rows};
use serde_json::Value;
use std::{collections::HashSet, sync::Arc};
use uuid::Uuid;

/// Renews the leases of a batch of reports with one statement, and stores their evidence of work. A report whose
/// assignment is over gets `Fenced`.
pub(in crate::task) async fn renew(
    context: Arc<TaskContext>,
    batch: Arc<Vec<Report>>,
) -> Result<Vec<Result<(), Error>>, Error> {
    let mut client = context.database.client().await?;
    let tx = Transaction::begin_async(&mut client);
    let columns = columns!("renew_lease", batch.iter(), |report| {
        task_id: Uuid = report.key.task_id.as_uuid(),
        assignment_id: Uuid = report.key.assignment_id.as_uuid(),
        epoch: i64 = report.key.epoch.0,
        agent_id: &str = report.agent.as_str(),
        evidence: bool = report.evidence.is_some(),
        progress: Option<f32> = report.evidence.as_ref().and_then(|it| it.progress),
        activity: Option<&str> = report.evidence.as_ref().and_then(|it| it.activity.as_deref()),
        checkpoint: Option<&Value> = report.evidence.as_ref().and_then(|it| it.checkpoint.as_ref()),
    });
    // Not flushed: a report that is lost with the machine is followed by the next one.
    let (rows, _) = tx.commit_after(columns.run(&tx, &[]), false).await?;
    let renewed: HashSet<Uuid> = rows::all(&rows, "id")?.into_iter().collect();
    let has_moved =
        |report: &&Report| report.evidence.is_some() && renewed.contains(&report.key.assignment_id.as_uuid());
    let moved = batch.iter().filter(has_moved);
    context.publish(
        moved
            .map(|report| Notice::Progressed { agent_id: report.agent.clone(), task: report.key.task_id })
            .collect(),
    );
    let answer = |report: &Report| {
        let renewed = renewed.contains(&report.key.assignment_id.as_uuid());
        renewed.then_some(()).ok_or(Error::Fenced)
    };
    Ok(batch.iter().map(answer).collect())
}
