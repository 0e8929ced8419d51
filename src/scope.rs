//! Ownership of spawned tasks: every spawned future belongs to a [`Scope`].
//!
//! A scope watches its tasks (a panic or an error is logged and handled by [`OnExit`]), stops them through a
//! token, and drains them within a time limit. Nothing else in the daemon may call `tokio::spawn`. Workers
//! report their [`WorkerProgress`] to it, so that a stalled one is detected.
#[cfg(feature = "daemon")]
mod background;
#[cfg(feature = "daemon")]
mod fair_queue;
#[cfg(feature = "daemon")]
mod priority;
mod progress;

#[cfg(feature = "daemon")]
pub use background::Background;
#[cfg(feature = "daemon")]
pub use fair_queue::{FairQueue, QueueFull, Turn, TurnOwner};
#[cfg(feature = "daemon")]
pub use priority::{lower_priority_of_process, lower_priority_of_this_thread};
pub use progress::{Watched, WorkerProgress};

use progress::Workers;
use std::{future::Future, time::Duration};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::{Instrument, Span, error};

/// The reaction to a task that ends before it was asked to stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnExit {
    /// The task is required: stop the daemon, with exit code 1.
    StopDaemon,
    /// The task served one client or one job: log an error or a panic, and continue. A successful end is
    /// normal.
    Log,
}

/// A group of tasks that stop together. Clones share the group.
#[derive(Clone, Debug, Default)]
pub struct Scope {
    stop: CancellationToken,
    failed: CancellationToken,
    tracker: TaskTracker,
    workers: Workers,
}

/// Tasks that did not stop in time.
#[derive(Debug, thiserror::Error)]
#[error("{left} tasks did not stop within {within:?}")]
pub struct Stuck {
    /// Number of tasks that still run.
    pub left: usize,
    /// The time limit.
    pub within: Duration,
}

impl Scope {
    /// Creates a group that stops when its parent stops, and can be stopped and drained alone. Draining the
    /// parent stops it, but does not wait for it.
    #[must_use]
    pub fn child(&self) -> Self {
        Self {
            stop: self.stop.child_token(),
            // Shared, so that a failed task stops the daemon from any scope.
            failed: self.failed.clone(),
            tracker: TaskTracker::new(),
            workers: self.workers.clone(),
        }
    }

    /// Runs `body` in the current tracing span. The token asks it to stop.
    pub fn spawn<F>(&self, name: &'static str, on_exit: OnExit, body: impl FnOnce(CancellationToken) -> F)
    where
        F: Future<Output = anyhow::Result<()>> + Send + 'static,
    {
        let (stop, failed) = (self.stop.clone(), self.failed.clone());
        // Boxed, because the watching task would otherwise store the whole future inline.
        let body = Box::pin(body(stop.clone()).instrument(Span::current()));
        self.tracker.spawn(async move {
            #[expect(clippy::disallowed_methods, reason = "the join handle is how a panic is seen")]
            let outcome = tokio::spawn(body).await;
            match outcome {
                Ok(Ok(())) if stop.is_cancelled() || on_exit == OnExit::Log => return,
                Ok(Ok(())) => error!(name, "task ended early"),
                Ok(Err(e)) => error!(name, error = format!("{e:#}"), "task failed"),
                Err(e) => error!(name, error = %e, "task panicked"),
            }
            if on_exit == OnExit::StopDaemon {
                failed.cancel();
            }
        });
    }

    /// Registers a worker, which is stalled if it has work and takes no step for `limit`.
    #[must_use]
    pub fn watch(&self, name: &'static str, limit: Duration) -> WorkerProgress {
        self.workers.watch(name, limit)
    }

    /// Returns the states of the workers that were registered here or in any related scope.
    #[must_use]
    pub fn watched(&self) -> Vec<Watched> {
        self.workers.watched()
    }

    /// The token that is canceled when this scope stops.
    #[must_use]
    pub fn stopping(&self) -> CancellationToken {
        self.stop.clone()
    }

    /// Asks every task to stop, without waiting.
    pub fn stop(&self) {
        self.stop.cancel();
    }

    /// Waits until a required task has failed, here or in any related scope.
    pub async fn failed(&self) {
        self.failed.cancelled().await;
    }

    /// Asks every task to stop and waits for them.
    ///
    /// # Errors
    /// [`Stuck`] if tasks still run after `within`; they keep running.
    pub async fn drain(&self, within: Duration) -> Result<(), Stuck> {
        self.stop.cancel();
        // `wait` returns only once the tracker is closed and empty.
        self.tracker.close();
        let left = || Stuck { left: self.tracker.len(), within };
        tokio::time::timeout(within, self.tracker.wait()).await.map_err(|_| left())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn panic_of_a_required_task_stops_the_daemon() {
        let scope = Scope::default();
        scope.child().spawn("wal", OnExit::StopDaemon, |_| async { panic!("boom") });
        scope.failed().await;
        scope.drain(Duration::from_secs(1)).await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn drain_reports_tasks_that_did_not_stop() {
        let scope = Scope::default();
        scope.spawn("never ends", OnExit::Log, |_| std::future::pending());
        assert_eq!(scope.drain(Duration::from_secs(5)).await.unwrap_err().left, 1);
    }

    #[tokio::test(start_paused = true)]
    async fn worker_with_work_and_no_step_is_stalled() {
        let scope = Scope::default();
        let progress = scope.child().watch("arbiter", Duration::from_secs(10));
        let stalled = || scope.watched().into_iter().find_map(|worker| worker.stalled_for);
        tokio::time::advance(Duration::from_secs(60)).await;
        assert_eq!(stalled(), None, "an idle worker is never stalled");
        progress.step();
        tokio::time::advance(Duration::from_secs(10)).await;
        assert_eq!(stalled(), None);
        tokio::time::advance(Duration::from_secs(1)).await;
        assert_eq!(stalled(), Some(Duration::from_secs(11)));
        progress.step();
        assert_eq!(stalled(), None);
        tokio::time::advance(Duration::from_secs(11)).await;
        progress.idle();
        assert_eq!(stalled(), None);
    }
}
