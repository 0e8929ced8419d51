//! A token bucket in one atomic number, the time when it is full again (generic cell rate algorithm).
//!
//! Taking is one compare-and-swap loop, so a bucket can belong to one channel or to the whole daemon.
//! An unused bucket needs no maintenance.
use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

/// The rate of a bucket and its capacity.
#[derive(Clone, Copy, Debug)]
pub(in crate::gateway) struct Rate {
    pub(in crate::gateway) per_second: u64,
    /// The bucket holds the tokens of this time.
    pub(in crate::gateway) burst: Duration,
}

impl Rate {
    /// The time in which `tokens` accrue, in nanoseconds.
    fn nanos(self, tokens: u64) -> u64 {
        if self.per_second == 0 {
            return u64::MAX;
        }
        let nanos = u128::from(tokens) * 1_000_000_000 / u128::from(self.per_second);
        u64::try_from(nanos).unwrap_or(u64::MAX)
    }

    /// The tokens of a full bucket.
    pub(in crate::gateway) fn capacity(self) -> u64 {
        let tokens = u128::from(self.per_second) * self.burst.as_millis() / 1000;
        u64::try_from(tokens).unwrap_or(u64::MAX)
    }

    fn burst_nanos(self) -> u64 {
        u64::try_from(self.burst.as_nanos()).unwrap_or(u64::MAX)
    }
}

/// The state of a bucket. Times are nanoseconds since any fixed moment.
#[derive(Debug, Default)]
pub(in crate::gateway) struct Bucket {
    /// The time when it is full.
    full_at: AtomicU64,
}

impl Bucket {
    /// Takes `tokens` that are available now.
    #[cfg(test)]
    fn take(&self, rate: Rate, now: u64, tokens: u64) -> Result<(), Duration> {
        self.reserve(rate, now, tokens, Duration::ZERO).map(drop)
    }

    /// Takes `tokens` that are available within `patience`, and returns the wait until then. A full bucket lends more
    /// tokens than its capacity.
    ///
    /// # Errors
    /// How long to wait before the next attempt; nothing is taken then.
    pub(in crate::gateway) fn reserve(
        &self,
        rate: Rate,
        now: u64,
        tokens: u64,
        patience: Duration,
    ) -> Result<Duration, Duration> {
        let (cost, burst) = (rate.nanos(tokens), rate.burst_nanos());
        let patience = u64::try_from(patience.as_nanos()).unwrap_or(u64::MAX);
        let mut outcome = Ok(Duration::ZERO);
        let _ = self.full_at.fetch_update(Ordering::AcqRel, Ordering::Acquire, |full_at| {
            let full_at = full_at.max(now);
            let wait = (full_at - now).saturating_add(cost.min(burst)).saturating_sub(burst);
            let lent = wait <= patience && cost < u64::MAX;
            outcome = if lent { Ok(Duration::from_nanos(wait)) } else { Err(Duration::from_nanos(wait)) };
            lent.then(|| full_at.saturating_add(cost))
        });
        outcome
    }

    /// Takes from all of these buckets, or from none.
    ///
    /// # Errors
    /// How long to wait until the first bucket that refused has enough.
    pub(in crate::gateway) fn take_all<const N: usize>(
        now: u64,
        from: [(&Self, Rate, u64); N],
    ) -> Result<(), Duration> {
        Self::reserve_all(now, from, Duration::ZERO).map(drop)
    }

    /// As [`Bucket::reserve`] from all of these buckets, or from none. Returns the longest wait.
    ///
    /// # Errors
    /// How long to wait until the first bucket that refused has enough.
    pub(in crate::gateway) fn reserve_all<const N: usize>(
        now: u64,
        from: [(&Self, Rate, u64); N],
        patience: Duration,
    ) -> Result<Duration, Duration> {
        let mut longest = Duration::ZERO;
        for (at, (bucket, rate, tokens)) in from.iter().enumerate() {
            match bucket.reserve(*rate, now, *tokens, patience) {
                Ok(wait) => longest = longest.max(wait),
                Err(wait) => {
                    // Not atomic: a concurrent caller may be refused by tokens that are returned here. It only waits a
                    // little longer.
                    from.iter().take(at).for_each(|(bucket, rate, tokens)| bucket.give_back(*rate, *tokens));
                    return Err(wait);
                }
            }
        }
        Ok(longest)
    }

    fn give_back(&self, rate: Rate, tokens: u64) {
        let less = |full_at: u64| Some(full_at.saturating_sub(rate.nanos(tokens)));
        let _ = self.full_at.fetch_update(Ordering::AcqRel, Ordering::Acquire, less);
    }

    /// Takes `tokens` in any case, and returns how long to pause for them.
    pub(in crate::gateway) fn spend(&self, rate: Rate, now: u64, tokens: u64) -> Duration {
        self.reserve(rate, now, tokens, Duration::MAX).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SECOND: u64 = 1_000_000_000;
    const TEN: Rate = Rate { per_second: 10, burst: Duration::from_secs(2) };

    #[test]
    fn full_bucket_yields_its_burst_and_then_the_rate() {
        let bucket = Bucket::default();
        assert_eq!(TEN.capacity(), 20);
        for _ in 0..20 {
            bucket.take(TEN, SECOND, 1).unwrap();
        }
        assert_eq!(bucket.take(TEN, SECOND, 1), Err(Duration::from_millis(100)));
        bucket.take(TEN, SECOND + SECOND / 10, 1).unwrap();
        assert!(bucket.take(TEN, SECOND + SECOND / 10, 1).is_err());
        assert_eq!((0..100).filter(|_| bucket.take(TEN, 10 * SECOND, 1).is_ok()).count(), 20, "not more");
    }

    #[test]
    fn request_over_the_capacity_is_granted_once_and_paid_off() {
        let bucket = Bucket::default();
        bucket.take(TEN, 0, 50).unwrap();
        assert_eq!(bucket.take(TEN, 0, 1), Err(Duration::from_millis(3100)));
        assert_eq!(bucket.take(TEN, 0, 1000), Err(Duration::from_secs(5)));
    }

    #[test]
    fn waiting_requests_are_granted_in_turn() {
        let bucket = Bucket::default();
        bucket.take(TEN, 0, 20).unwrap();
        let patience = Duration::from_millis(250);
        let waits: Vec<_> = (0..4).map(|_| bucket.reserve(TEN, 0, 1, patience)).collect();
        let ms = Duration::from_millis;
        assert_eq!(waits, [Ok(ms(100)), Ok(ms(200)), Err(ms(300)), Err(ms(300))]);
        assert_eq!(bucket.spend(TEN, 0, 10), ms(1200));
    }

    #[test]
    fn refused_take_all_charges_no_bucket() {
        let (wide, narrow) = (Bucket::default(), Bucket::default());
        narrow.take(TEN, 0, 19).unwrap();
        assert!(Bucket::take_all(0, [(&wide, TEN, 20), (&narrow, TEN, 1)]).is_ok());
        wide.give_back(TEN, 20);
        assert!(Bucket::take_all(0, [(&wide, TEN, 20), (&narrow, TEN, 1)]).is_err());
        assert!(wide.take(TEN, 0, 20).is_ok());
    }

    #[test]
    fn zero_rate_yields_nothing() {
        let none = Rate { per_second: 0, ..TEN };
        assert!(Bucket::default().take(none, SECOND, 1).is_err());
        assert!(Bucket::default().reserve(none, SECOND, 1, Duration::MAX).is_err());
    }

    proptest! {
        #[test]
        fn usage_never_exceeds_burst_plus_rate(steps in proptest::collection::vec((0u64..SECOND, 1u64..5), 1..200)) {
            let (bucket, mut now, mut taken) = (Bucket::default(), 0, 0);
            for (passed, tokens) in steps {
                now += passed;
                match bucket.take(TEN, now, tokens) {
                    Ok(()) => taken += tokens,
                    Err(wait) => prop_assert!(bucket.take(TEN, now + wait.as_nanos() as u64, 0).is_ok()),
                }
                prop_assert!(taken <= 20 + now * 10 / SECOND);
            }
        }
    }
}
