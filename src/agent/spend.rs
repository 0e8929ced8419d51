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
