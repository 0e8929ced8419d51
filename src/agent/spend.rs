//! What an agent spent in the last hour, by minutes.
use std::{collections::VecDeque, time::Duration};
use tokio::time::Instant;

const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(3_600);

/// Money spent in the last hour; forgotten when the daemon stops.
#[derive(Debug, Default)]
pub(super) struct Spend {
    /// Since when, and how much; an entry collects for a minute.
    minutes: VecDeque<(Instant, u64)>,
}

impl Spend {
    /// Adds what was spent now.
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

    /// Adds the most that something may cost before it is done; false when the limit has no room for it, or
    /// none at all.
    pub(super) fn reserve(&mut self, most: u64, limit: Option<u64>, now: Instant) -> bool {
        let fits = limit.is_none_or(|limit| self.last_hour(now).saturating_add(most.max(1)) <= limit);
        if fits {
            self.add(most, now);
        }
        fits
    }

    /// Puts what something has cost in the place of the most that was reserved for it.
    pub(super) fn settle(&mut self, most: u64, cost: u64, now: Instant) {
        self.add(cost.saturating_sub(most), now);
        let mut back = most.saturating_sub(cost);
        for (_, sum) in self.minutes.iter_mut().rev() {
            let taken = back.min(*sum);
            *sum -= taken;
            back -= taken;
        }
    }

    /// What was spent in the hour before now.
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
    fn what_is_reserved_counts_until_it_is_known_what_it_cost() {
        let (mut spend, start) = (Spend::default(), Instant::now());
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
    fn an_hour_is_remembered_and_no_more() {
        let (mut spend, start) = (Spend::default(), Instant::now());
        for second in 0..7_200 {
            spend.add(1, start + Duration::from_secs(second));
        }
        let now = start + Duration::from_secs(7_200);
        assert!((3_540..=3_600).contains(&spend.last_hour(now)));
        assert!(spend.minutes.len() <= 61);
        assert_eq!(spend.last_hour(now + HOUR), 0);
    }
}
