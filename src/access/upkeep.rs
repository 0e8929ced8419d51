//! The days of `realtime.messages`: made ahead, dropped when they are old.
//!
//! Whoever connects or not, yesterday to three days ahead are there. What is sent
//! for a day that has none goes into the default partition, where a day with rows is
//! left. Only a schema of our own loses anything. What fails is tried again; a send
//! never waits longer than the lock of a quarter of a second.
use crate::{
    db::Database,
    scope::{OnExit, Scope},
};
use std::time::Duration;
use tokio_postgres::error::SqlState;

/// How often it is looked at.
const EVERY: Duration = Duration::from_secs(15 * 60);
/// The same after something failed.
const AGAIN: Duration = Duration::from_secs(20);

/// Keeps the days from now on.
pub fn start(scope: &Scope, database: &Database, retention: Duration) {
    let database = database.clone();
    scope.spawn("messages", OnExit::Log, |stop| async move {
        loop {
            let pause = match keep(&database, retention).await {
                Ok(()) => EVERY,
                Err(error) => {
                    let sqlstate = error.sqlstate().map(|code| code.code().to_owned());
                    tracing::warn!(%error, sqlstate, "the days of realtime.messages are not kept yet");
                    AGAIN
                }
            };
            if tokio::time::timeout(pause, stop.cancelled()).await.is_ok() {
                return Ok(());
            }
        }
    });
}

/// Makes the days that lack, and drops what is older than `retention`.
///
/// # Errors
/// [`crate::db::Error`]; what was done stays.
pub async fn keep(database: &Database, retention: Duration) -> Result<(), crate::db::Error> {
    let client = database.client().await?;
    let days = client.query(include_str!("sql/days_to_make.sql"), &[]).await?;
    for day in &days {
        let make: String = day.try_get(0)?;
        match client.batch_execute(&in_short(&make)).await {
            Ok(()) => {}
            Err(e) => {
                client.batch_execute("rollback").await?;
                // Rows of that day are in the default partition and stay there, or another daemon was faster.
                let fine = [&SqlState::CHECK_VIOLATION, &SqlState::DUPLICATE_TABLE];
                if !e.code().is_some_and(|code| fine.contains(&code)) {
                    return Err(e.into());
                }
            }
        }
    }
    let seconds = retention.as_secs_f64();
    for day in client.query(include_str!("sql/days_to_drop.sql"), &[&seconds]).await? {
        let drop: String = day.try_get(0)?;
        if let Err(e) = client.batch_execute(&in_short(&drop)).await {
            client.batch_execute("rollback").await?;
            return Err(e.into());
        }
    }
    client.execute(include_str!("sql/forget_order.sql"), &[&seconds]).await?;
    Ok(())
}

/// Those who send wait while the lock is waited for.
fn in_short(statement: &str) -> String {
    format!("begin; set local lock_timeout = '250ms'; {statement}; commit")
}
