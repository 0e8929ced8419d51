//! Limits the log lines of an operation that is tried again until it succeeds.
use std::{fmt::Display, time::Duration};
use tokio::time::Instant;

/// Time between two log lines while the operation fails.
const INTERVAL: Duration = Duration::from_secs(10);

/// The failures of one operation: the first one is logged, then one in 10 seconds with the number of failures, and
/// the first success after them.
#[derive(Debug)]
pub struct Outage {
    operation: &'static str,
    failures: u64,
    began: Instant,
    logged: Instant,
}

impl Outage {
    /// No failure yet. `operation` is a noun phrase for the log, like `opening of rounds`.
    #[must_use]
    pub fn of(operation: &'static str) -> Self {
        let now = Instant::now();
        Self { operation, failures: 0, began: now, logged: now }
    }

    /// Counts a failure. Returns whether it was logged.
    pub fn failed(&mut self, error: &dyn Display) -> bool {
        let now = Instant::now();
        let is_first = self.failures == 0;
        if is_first {
            self.began = now;
        }
        self.failures += 1;
        if !is_first && now.duration_since(self.logged) < INTERVAL {
            return false;
        }
        self.logged = now;
        let (operation, failures) = (self.operation, self.failures);
        tracing::error!(operation, failures, %error, "operation failed, will retry");
        true
    }

    /// Ends the outage, if there is one. Returns whether that was logged.
    pub fn succeeded(&mut self) -> bool {
        let failures = std::mem::take(&mut self.failures);
        if failures > 0 {
            let (operation, seconds) = (self.operation, self.began.elapsed().as_secs_f32());
            tracing::info!(operation, failures, seconds, "operation succeeded again");
        }
        failures > 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn outage_logs_the_first_failure_one_in_ten_seconds_and_the_end() {
        let mut outage = Outage::of("test");
        assert!(!outage.succeeded());
        let mut logged = 0;
        for _ in 0..150 {
            logged += u32::from(outage.failed(&"away"));
            tokio::time::advance(Duration::from_millis(200)).await;
        }
        assert_eq!(logged, 3, "at 0, 10 and 20 seconds of 30");
        assert!(outage.succeeded() && !outage.succeeded());
        assert!(outage.failed(&"away again"));
    }
}
