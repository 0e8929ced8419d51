//! The parts of `/health`: whether the database accepts writes, whether each worker makes progress, and whether
//! the journals on disk are written.
use super::Edge;
use crate::{
    api::{Health, PartState},
    db::Database,
    hub::Memory,
    llm::Models,
    scope::{OnExit, Scope, Watched},
    task::{self, Tasks},
};
use std::{collections::HashSet, time::Duration};
use tokio::sync::watch;

/// Interval of the checks.
const EVERY: Duration = Duration::from_secs(2);
/// Time limit for the database to answer.
const WITHIN: Duration = Duration::from_secs(2);
/// Time without progress after which a worker that has work is stalled: longer than any statement may take.
pub(super) const STALLED_AFTER: Duration = Duration::from_secs(15);

pub(super) fn start(
    scope: &Scope,
    (database, tasks, models): (Database, Tasks, Models),
    edge: Edge,
    health: Health,
) {
    let workers = scope.clone();
    scope.spawn("health", OnExit::StopDaemon, |stop| async move {
        let mut stalled = HashSet::new();
        loop {
            show_workers(&workers, &tasks, &health, &mut stalled);
            match tokio::time::timeout(WITHIN, database.is_writable()).await {
                Ok(Ok(true)) => health.set("database", PartState::Ready, "answers"),
                Ok(Ok(false)) => health.set("database", PartState::Down, "is read-only"),
                Ok(Err(error)) => {
                    tracing::debug!(%error, "database does not answer");
                    health.set_down("database", "does not answer", error.to_string());
                }
                Err(_) => health.set("database", PartState::Down, "does not answer in time"),
            }
            show_connections(&edge, &health);
            show_memory(edge.memory(), &health);
            show_models(&models, &health);
            if tokio::time::timeout(EVERY, stop.cancelled()).await.is_ok() {
                return Ok(());
            }
        }
    });
}

fn show_connections(edge: &Edge, health: &Health) {
    let (open, max, refused) = edge.connections();
    let (state, more) = match refused {
        true => (PartState::Degraded, "; some were refused in the last minute"),
        false => (PartState::Ready, ""),
    };
    health.set("connections", state, format!("{open} of {max} open{more}"));
}

/// Shows whether each worker makes progress, and logs when that changes.
fn show_workers(scope: &Scope, tasks: &Tasks, health: &Health, stalled: &mut HashSet<&'static str>) {
    for Watched { name, stalled_for } in scope.watched() {
        let Some(silent) = stalled_for else {
            if stalled.remove(name) {
                tracing::info!(worker = name, "worker makes progress again");
            }
            let is_elsewhere = name == task::ARBITER_WORKER && !tasks.arbitrates();
            health.set(name, PartState::Ready, if is_elsewhere { "on the node that leads" } else { "moves" });
            continue;
        };
        let seconds = silent.as_secs();
        if stalled.insert(name) {
            tracing::error!(worker = name, seconds, "worker stalled: it has work and makes no progress");
        }
        health.set(name, PartState::Down, format!("stalled: has work and has not moved for {seconds} s"));
    }
}

fn show_memory(memory: &Memory, health: &Health) {
    let (held, max, evicted) = memory.state();
    let (state, more) = match evicted {
        true => (PartState::Degraded, "; connections were evicted in the last minute"),
        false => (PartState::Ready, ""),
    };
    health.set("memory", state, format!("clients hold {} of {} KiB{more}", held >> 10, max >> 10));
}

/// Shows whether the journal `part` is written.
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

/// Shows whether the models' endpoints answer. The line is public: it names no account, host or model.
fn show_models(models: &Models, health: &Health) {
    let accounts = models.accounts();
    if accounts.is_empty() {
        return;
    }
    let held = accounts.iter().filter(|account| !account.open_breakers.is_empty()).count();
    let paused = accounts.iter().filter(|account| account.paused_seconds.is_some()).count();
    let waiting: usize = accounts.iter().map(|account| account.waiting).sum();
    let passed_over: u64 = accounts.iter().map(|account| account.passed_over).sum();
    let unlimited: usize = accounts.iter().map(|account| account.limit_ignored.len()).sum();
    let state = if held + unlimited == 0 { PartState::Ready } else { PartState::Degraded };
    let of = accounts.len();
    let mut detail =
        format!("{held} of {of} accounts hold requests, {paused} pause after a 429; {waiting} requests wait");
    if passed_over > 0 {
        detail.push_str(&format!("; {passed_over} questions went to another model"));
    }
    if unlimited > 0 {
        detail.push_str(&format!("; {unlimited} models ignore the limit of an answer"));
    }
    health.set("models", state, detail);
}
