//! How long to wait before the next attempt. Pure.
use std::time::Duration;

/// Waits that grow with the attempts, each cut short by chance, so that clients do not come back together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Backoff(Vec<Duration>);

impl Default for Backoff {
    /// 1, 2, 5 and then always 10 seconds.
    fn default() -> Self {
        Self::new([1, 2, 5, 10].map(Duration::from_secs))
    }
}

impl Backoff {
    /// The waits after the first failure, the second and so on; the last of them for all later ones.
    /// Without any there is no wait, which nobody should do to a server that is not his own.
    pub fn new(waits: impl IntoIterator<Item = Duration>) -> Self {
        Self(waits.into_iter().collect())
    }

    /// After so many failures (the first is 0): between half of the wait (`chance` 0) and all of it (`chance` 1).
    pub(super) fn wait(&self, failures: u32, chance: f64) -> Duration {
        let at = usize::try_from(failures).unwrap_or(usize::MAX).min(self.0.len().saturating_sub(1));
        let whole = self.0.get(at).copied().unwrap_or_default();
        whole.mul_f64(0.5 + chance.clamp(0.0, 1.0) / 2.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_to_the_last_and_chance_takes_up_to_half() {
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
