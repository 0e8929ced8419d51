//! The daily partitions of `realtime.messages`: created ahead, dropped after the retention time.
//!
//! Partitions from yesterday to three days ahead exist, whether clients are connected or not. A message for a
//! day without a partition goes into the default partition; a day that has rows there gets no partition of
//! its own. Data is dropped only from a schema that the daemon created. A failed run is retried. A lock is
//! waited for at most 250 ms, because every sender waits behind it.
use crate::{
    db::Database,
    scope::{OnExit, Scope},
};
use std::time::Duration;
use tokio_postgres::error::SqlState;

/// Interval between two runs.
const INTERVAL: Duration = Duration::from_secs(15 * 60);
/// Interval after a failed run.
const RETRY_INTERVAL: Duration = Duration::from_secs(20);

/// Starts the task that maintains the partitions until the scope stops.
pub fn start(scope: &Scope, database: &Database, retention: Duration) {
    let database = database.clone();
    scope.spawn("messages", OnExit::Log, |stop| async move {
        loop {
            let pause = match keep(&database, retention).await {
                Ok(()) => INTERVAL,
                Err(error) => {
                    let sqlstate = error.sqlstate().map(|code| code.code().to_owned());
                    tracing::warn!(%error, sqlstate, "partition maintenance of realtime.messages failed, will retry");
                    RETRY_INTERVAL
                }
            };
            if tokio::time::timeout(pause, stop.cancelled()).await.is_ok() {
                return Ok(());
            }
        }
    });
}

/// Creates the missing partitions, and drops data older than `retention`.
///
/// # Errors
/// [`crate::db::Error`]; partitions created or dropped before the failure stay so.
pub async fn keep(database: &Database, retention: Duration) -> Result<(), crate::db::Error> {
    let client = database.client().await?;
    let days = client.query(include_str!("sql/days_to_make.sql"), &[]).await?;
    for day in &days {
        let make: String = day.try_get(0)?;
        match client.batch_execute(&with_lock_timeout(&make)).await {
            Ok(()) => {}
            Err(e) => {
                client.batch_execute("rollback").await?;
                // CHECK_VIOLATION: the default partition has rows of that day, and they stay there.
                // DUPLICATE_TABLE: another daemon created the partition first.
                let harmless = [&SqlState::CHECK_VIOLATION, &SqlState::DUPLICATE_TABLE];
                if !e.code().is_some_and(|code| harmless.contains(&code)) {
                    return Err(e.into());
                }
            }
        }
    }
    let seconds = retention.as_secs_f64();
    for day in client.query(include_str!("sql/days_to_drop.sql"), &[&seconds]).await? {
        let drop: String = day.try_get(0)?;
        if let Err(e) = client.batch_execute(&with_lock_timeout(&drop)).await {
            client.batch_execute("rollback").await?;
            return Err(e.into());
        }
    }
    client.execute(include_str!("sql/forget_order.sql"), &[&seconds]).await?;
    Ok(())
}

/// The statement in a transaction with a short lock timeout: senders queue behind a lock that is waited for.
fn with_lock_timeout(statement: &str) -> String {
    format!("begin; set local lock_timeout = '250ms'; {statement}; commit")
}
