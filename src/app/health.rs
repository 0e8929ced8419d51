//! Whether the database answers, asked now and then for `/health`; and whether the disk takes what is kept.
use crate::{
    api::{Health, PartState},
    db::Database,
    scope::{OnExit, Scope},
};
use std::time::Duration;
use tokio::sync::watch;

/// How often the database is asked.
const EVERY: Duration = Duration::from_secs(2);
/// How long it may take to answer.
const WITHIN: Duration = Duration::from_secs(2);

pub(super) fn start(scope: &Scope, database: Database, health: Health) {
    scope.spawn("health", OnExit::StopDaemon, |stop| async move {
        loop {
            let asked = tokio::time::timeout(WITHIN, async {
                let client = database.client().await.map_err(|error| error.to_string())?;
                client.simple_query("select 1").await.map_err(|error| error.to_string())
            });
            match asked.await {
                Ok(Ok(_)) => health.set("database", PartState::Ready, "answers"),
                Ok(Err(error)) => {
                    tracing::debug!(error, "the database does not answer");
                    health.set("database", PartState::Down, "does not answer");
                }
                Err(_) => health.set("database", PartState::Down, "does not answer in time"),
            }
            if tokio::time::timeout(EVERY, stop.cancelled()).await.is_ok() {
                return Ok(());
            }
        }
    });
}

/// Shows whether what is kept on disk under the name of `part` is written.
pub(super) fn show_degraded(
    scope: &Scope,
    health: &Health,
    part: &'static str,
    mut degraded: watch::Receiver<bool>,
) {
    let health = health.clone();
    scope.spawn("disk health", OnExit::Log, move |stop| async move {
        loop {
            if *degraded.borrow_and_update() {
                health.set(part, PartState::Degraded, "not written; the log says why");
            } else {
                health.set(part, PartState::Ready, "kept");
            }
            tokio::select! {
                () = stop.cancelled() => return Ok(()),
                changed = degraded.changed() => if changed.is_err() { return Ok(()) },
            }
        }
    });
}
