//! Forgetting tasks that ended long ago, with all that belongs to them, a few hundred at a time.
//!
//! A sweep goes through the tasks in the order of their ids, which is that of their making, beside everything
//! else: no lock is held for longer than one small transaction, and what is locked is left for the next
//! sweep. What another task still waits for is kept. Fails by trying again later.
use super::store::{run, sql};
use super::{Error, Shared};
use crate::db;
use std::{sync::Arc, time::Duration};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

/// Between two sweeps.
const SWEEP_EVERY: Duration = Duration::from_secs(600);
/// Between two transactions of a sweep, so that it takes little from those who work.
const PAUSE: Duration = Duration::from_millis(100);
/// Tasks that one transaction forgets.
const BATCH_MAX: usize = 500;

pub(super) async fn serve(shared: Arc<Shared>, stop: CancellationToken) -> anyhow::Result<()> {
    let Some(keep) = shared.retention else { return Ok(()) };
    loop {
        if let Err(error) = sweep(&shared, keep, &stop).await {
            tracing::warn!(%error, "old tasks are not forgotten yet");
        }
        if tokio::time::timeout(SWEEP_EVERY, stop.cancelled()).await.is_ok() {
            return Ok(());
        }
    }
}

async fn sweep(shared: &Shared, keep: Duration, stop: &CancellationToken) -> Result<(), Error> {
    let mut after = Uuid::nil();
    let mut forgotten = 0;
    while let Some(last) = batch(shared, keep, after, &mut forgotten).await? {
        after = last;
        if tokio::time::timeout(PAUSE, stop.cancelled()).await.is_ok() {
            break;
        }
    }
    if forgotten > 0 {
        tracing::debug!(forgotten, "old tasks forgotten");
    }
    Ok(())
}

/// Forgets some tasks after this one; gives the last of them while there may be more.
async fn batch(
    shared: &Shared,
    keep: Duration,
    after: Uuid,
    forgotten: &mut usize,
) -> Result<Option<Uuid>, Error> {
    let mut client = shared.database.client().await?;
    let tx = client.transaction().await.map_err(db::Error::from)?;
    run(&tx, "select set_config('convoke.retention', 'on', true)", &[]).await?;
    let keep_ms = super::store::millis(keep);
    let rows = run(&tx, sql!("forget_tasks"), &[&after, &keep_ms]).await?;
    tx.commit().await.map_err(db::Error::from)?;
    *forgotten += rows.len();
    let last = rows.iter().map(|row| row.get::<_, Uuid>("id")).max();
    Ok(last.filter(|_| rows.len() >= BATCH_MAX))
}
