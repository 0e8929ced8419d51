//! The cost of an agent in the last hour, by minutes.
use std::{collections::VecDeque, time::Duration};
use tokio::time::Instant;

const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(3_600);

/// Money spent in the last hour. Lost when the daemon stops.
#[derive(Debug, Default)]
pub(super) struct RollingSpend {
    /// The start and the sum of each minute.
    minutes: VecDeque<(Instant, u64)>,
}

impl RollingSpend {
    /// Adds a cost.
    pub(super) fn add(&mut self, microdollars: u64, now: Instant) {
        if microdollars == 0 {
            return;
        }
        self.forget(now);
        match self.minutes.back_mut() {
            Some((since, sum)) if now.duration_since(*since) < MINUTE => {
                *sum = sum.saturating_add(microdollars)
            }
            _ => self.minutes.push_back((now, microdollars)),
        }
    }

    /// Reserves the most that an action may cost; false if that is over the limit, or nothing of the limit is left.
    pub(super) fn reserve(&mut self, most: u64, limit: Option<u64>, now: Instant) -> bool {
        let fits = limit.is_none_or(|limit| self.last_hour(now).saturating_add(most.max(1)) <= limit);
        if fits {
            self.add(most, now);
        }
        fits
    }

    /// Replaces a reservation by the real cost.
    pub(super) fn settle(&mut self, most: u64, cost: u64, now: Instant) {
        self.add(cost.saturating_sub(most), now);
        let mut back = most.saturating_sub(cost);
        for (_, sum) in self.minutes.iter_mut().rev() {
            let taken = back.min(*sum);
            *sum -= taken;
            back -= taken;
        }
    }

    /// The cost of the hour before now.
    pub(super) fn last_hour(&mut self, now: Instant) -> u64 {
        self.forget(now);
        self.minutes.iter().fold(0, |sum, (_, spent)| sum.saturating_add(*spent))
    }

    fn forget(&mut self, now: Instant) {
        while self.minutes.front().is_some_and(|(since, _)| now.duration_since(*since) >= HOUR) {
            self.minutes.pop_front();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reservation_counts_until_the_cost_is_known() {
        let (mut spend, start) = (RollingSpend::default(), Instant::now());
        assert!(spend.reserve(60, Some(100), start));
        assert!(!spend.reserve(60, Some(100), start), "the first may cost as much");
        let later = start + MINUTE;
        assert!(spend.reserve(40, Some(100), later));
        spend.settle(60, 10, later);
        assert_eq!(spend.last_hour(later), 50);
        spend.settle(40, 45, later);
        assert_eq!(spend.last_hour(later), 55);
        assert!(spend.reserve(0, Some(56), later) && !spend.reserve(0, Some(55), later));
    }

    #[test]
    fn costs_older_than_an_hour_do_not_count() {
        let (mut spend, start) = (RollingSpend::default(), Instant::now());
        for second in 0..7_200 {
            spend.add(1, start + Duration::from_secs(second));
        }
        let now = start + Duration::from_secs(7_200);
        assert!((3_540..=3_600).contains(&spend.last_hour(now)));
        assert!(spend.minutes.len() <= 61);
        assert_eq!(spend.last_hour(now + HOUR), 0);
    }
}
