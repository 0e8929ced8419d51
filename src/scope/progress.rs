//! Detects stalled workers, for `/health`.
//!
//! A worker reports each step while it has work, and reports idle when it has none. A worker with work and
//! without a step for longer than its limit is stalled, whatever the cause: a lock, a query that does not
//! return, a loop that does not yield. A report is one atomic write and never blocks.
use parking_lot::Mutex;
use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};
use tokio::time::Instant;

/// The value for an idle worker. Other values are microseconds since the worker's registration, plus one.
const IDLE: u64 = 0;

/// The workers of a scope. Clones share them.
#[derive(Clone, Debug, Default)]
pub(super) struct Workers(Arc<Mutex<Vec<WorkerProgress>>>);

/// The reporter of one worker. Clones report for the same worker.
#[derive(Clone, Debug)]
pub struct WorkerProgress(Arc<Worker>);

#[derive(Debug)]
struct Worker {
    name: &'static str,
    limit: Duration,
    since: Instant,
    last_step: AtomicU64,
}

/// The state of a worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Watched {
    /// Its name, as `/health` shows it.
    pub name: &'static str,
    /// Time with work and without a step, if it exceeds the limit.
    pub stalled_for: Option<Duration>,
}

impl Workers {
    pub(super) fn watch(&self, name: &'static str, limit: Duration) -> WorkerProgress {
        let (since, last_step) = (Instant::now(), AtomicU64::new(IDLE));
        let progress = WorkerProgress(Arc::new(Worker { name, limit, since, last_step }));
        self.0.lock().push(progress.clone());
        progress
    }

    pub(super) fn watched(&self) -> Vec<Watched> {
        self.0.lock().iter().map(WorkerProgress::watched).collect()
    }
}

impl WorkerProgress {
    /// Reports that the worker has begun or continued its work.
    ///
    /// Relaxed: only this value is shared, and a slightly old one changes nothing.
    pub fn step(&self) {
        let micros = u64::try_from(self.0.since.elapsed().as_micros()).unwrap_or(u64::MAX - 1);
        self.0.last_step.store(micros.saturating_add(1), Ordering::Relaxed);
    }

    /// Reports that the worker has no work.
    pub fn idle(&self) {
        self.0.last_step.store(IDLE, Ordering::Relaxed);
    }

    /// Time with work and without a step, if it exceeds the limit.
    #[must_use]
    pub fn stalled_for(&self) -> Option<Duration> {
        let Worker { limit, since, last_step, .. } = &*self.0;
        match last_step.load(Ordering::Relaxed) {
            IDLE => None,
            last => {
                let silent = since.elapsed().saturating_sub(Duration::from_micros(last - 1));
                (silent > *limit).then_some(silent)
            }
        }
    }

    fn watched(&self) -> Watched {
        Watched { name: self.0.name, stalled_for: self.stalled_for() }
    }
}
