//! Backoff with jitter. Pure.
use std::time::Duration;

/// Waits that grow with the number of failures. Jitter shortens each wait, so that clients do not reconnect in step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Backoff(Vec<Duration>);

impl Default for Backoff {
    /// 1, 2, 5, and then 10 seconds.
    fn default() -> Self {
        Self::new([1, 2, 5, 10].map(Duration::from_secs))
    }
}

impl Backoff {
    /// The waits after the first failure, the second and so on. The last one applies to all later failures. An empty
    /// list means no wait; use it only against your own server.
    pub fn new(waits: impl IntoIterator<Item = Duration>) -> Self {
        Self(waits.into_iter().collect())
    }

    /// The wait after `failures` earlier failures: from half of the wait (`jitter` 0) to all of it (`jitter` 1).
    pub(super) fn wait(&self, failures: u32, jitter: f64) -> Duration {
        let at = usize::try_from(failures).unwrap_or(usize::MAX).min(self.0.len().saturating_sub(1));
        let whole = self.0.get(at).copied().unwrap_or_default();
        whole.mul_f64(0.5 + jitter.clamp(0.0, 1.0) / 2.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_to_the_last_and_jitter_removes_up_to_half() {
        let backoff = Backoff::default();
        let seconds = [1, 2, 5, 10, 10].map(Duration::from_secs);
        for (failures, whole) in (0..).zip(seconds) {
            assert_eq!(backoff.wait(failures, 1.0), whole);
            assert_eq!(backoff.wait(failures, 0.0), whole / 2);
        }
        assert_eq!(backoff.wait(u32::MAX, 1.0), Duration::from_secs(10));
        assert_eq!(Backoff::new([]).wait(3, 1.0), Duration::ZERO);
    }
}
