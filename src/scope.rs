//! Every spawned future belongs to a [`Scope`], so that a stop knows them all.
//!
//! A scope watches its tasks (a panic or an error is logged and decided about),
//! stops them through a token and drains them within a limit. Nothing else in
//! the daemon may call `tokio::spawn`.
use std::{future::Future, time::Duration};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::{Instrument, Span, error};

/// What the daemon does when a task ends before it was told to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnExit {
    /// The daemon cannot do its job without it: stop, with exit code 1.
    StopDaemon,
    /// It served one client or one job: log an error and go on; a good end is its normal end.
    Log,
}

/// A group of tasks that stop together. Clones name the same group.
#[derive(Clone, Debug, Default)]
pub struct Scope {
    stop: CancellationToken,
    failed: CancellationToken,
    tracker: TaskTracker,
}

/// Tasks that did not stop in time.
#[derive(Debug, thiserror::Error)]
#[error("{left} tasks did not stop within {within:?}")]
pub struct Stuck {
    /// How many are still running.
    pub left: usize,
    /// How long they were given.
    pub within: Duration,
}

impl Scope {
    /// A group that stops when its parent does and can be stopped and drained alone.
    /// Draining the parent stops it but does not wait for it.
    #[must_use]
    pub fn child(&self) -> Self {
        Self { stop: self.stop.child_token(), failed: self.failed.clone(), tracker: TaskTracker::new() }
    }

    /// Runs `body` in the current tracing span until it ends; it is told to stop by the token.
    pub fn spawn<F>(&self, name: &'static str, on_exit: OnExit, body: impl FnOnce(CancellationToken) -> F)
    where
        F: Future<Output = anyhow::Result<()>> + Send + 'static,
    {
        let (stop, failed) = (self.stop.clone(), self.failed.clone());
        // Boxed, because the task that waits for it would otherwise be as large as it is.
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

    /// The token that is cancelled when this scope stops.
    #[must_use]
    pub fn stopping(&self) -> CancellationToken {
        self.stop.clone()
    }

    /// Tells every task to stop, without waiting.
    pub fn stop(&self) {
        self.stop.cancel();
    }

    /// Resolves when a task that the daemon needs has failed, here or in any related scope.
    pub async fn failed(&self) {
        self.failed.cancelled().await;
    }

    /// Tells every task to stop and waits for them.
    ///
    /// # Errors
    /// [`Stuck`] when some are still running after `within`; they keep running.
    pub async fn drain(&self, within: Duration) -> Result<(), Stuck> {
        self.stop.cancel();
        self.tracker.close();
        let left = || Stuck { left: self.tracker.len(), within };
        tokio::time::timeout(within, self.tracker.wait()).await.map_err(|_| left())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_panic_in_a_needed_task_stops_the_daemon() {
        let scope = Scope::default();
        scope.child().spawn("wal", OnExit::StopDaemon, |_| async { panic!("boom") });
        scope.failed().await;
        scope.drain(Duration::from_secs(1)).await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn drain_reports_what_did_not_stop() {
        let scope = Scope::default();
        scope.spawn("deaf", OnExit::Log, |_| std::future::pending());
        assert_eq!(scope.drain(Duration::from_secs(5)).await.unwrap_err().left, 1);
    }
}
