//! Deletes tasks that ended long ago, with all their rows, a few hundred at a time.
//!
//! A sweep goes through the tasks by id, which is their order in time, beside all other work: it holds no lock for
//! longer than one small transaction, and leaves locked rows for the next sweep. A task that another one still waits
//! for is kept. A failure is retried at the next sweep.
use crate::task::storage::statement::{millis, run, sql};
use crate::task::storage::transaction::Transaction;
use crate::task::{Error, TaskContext};
use std::{sync::Arc, time::Duration};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

/// Time between two sweeps.
const SWEEP_EVERY: Duration = Duration::from_secs(600);
/// Pause between two transactions of a sweep, so that it takes little from other work.
const PAUSE: Duration = Duration::from_millis(100);
/// Tasks that one transaction deletes.
const BATCH_MAX: usize = 500;

pub(in crate::task) async fn serve(context: Arc<TaskContext>, stop: CancellationToken) -> anyhow::Result<()> {
    let Some(keep) = context.retention else { return Ok(()) };
    loop {
        if let Err(error) = sweep(&context, keep, &stop).await {
            tracing::warn!(%error, "failed to delete old tasks, will retry");
        }
        if tokio::time::timeout(SWEEP_EVERY, stop.cancelled()).await.is_ok() {
            return Ok(());
        }
    }
}

async fn sweep(context: &TaskContext, keep: Duration, stop: &CancellationToken) -> Result<(), Error> {
    let mut after = Uuid::nil();
    let mut deleted = 0;
    while let Some(last) = batch(context, keep, after, &mut deleted).await? {
        after = last;
        if tokio::time::timeout(PAUSE, stop.cancelled()).await.is_ok() {
            break;
        }
    }
    if deleted > 0 {
        tracing::debug!(deleted, "old tasks deleted");
    }
    Ok(())
}

/// Deletes some tasks after this one. Returns the last of them while there may be more.
async fn batch(
    context: &TaskContext,
    keep: Duration,
    after: Uuid,
    deleted: &mut usize,
) -> Result<Option<Uuid>, Error> {
    let mut client = context.database.client().await?;
    let tx = Transaction::begin(&mut client);
    run(&tx, "select set_config('convoke.retention', 'on', true)", &[]).await?;
    let keep_ms = millis(keep);
    let rows = run(&tx, sql!("forget_tasks"), &[&after, &keep_ms]).await?;
    tx.commit().await?;
    *deleted += rows.len();
    let last = crate::task::storage::rows::all::<Uuid>(&rows, "id")?.into_iter().max();
    Ok(last.filter(|_| rows.len() >= BATCH_MAX))
}
