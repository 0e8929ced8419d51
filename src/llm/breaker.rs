//! The circuit breaker of one model of an account (`docs/spec/thinking-agents.md` §5, A11).
use std::{collections::VecDeque, time::Duration};
use tokio::time::Instant;

/// Least failures that open it.
const FAILURES_MIN: usize = 5;
/// Outcomes that count.
const OUTCOMES_MAX: usize = 20;
/// Age of the oldest outcome that counts.
const WINDOW: Duration = Duration::from_secs(30);
/// First time that it stays open; it doubles with each failed trial.
const OPEN_FIRST: Duration = Duration::from_secs(5);
/// Longest time that it stays open before a trial.
const OPEN_MAX: Duration = Duration::from_secs(60);

/// How a request ended, as far as the breaker is concerned. A 429 is not an outcome: the limiter handles it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// The endpoint works. It may have refused the request itself.
    Works,
    /// The endpoint failed, or could not be reached.
    Fails,
    /// The endpoint refused the key: no other request of the account can succeed.
    KeyRefused,
}

/// The breaker: pure, the caller gives the time.
#[derive(Debug)]
pub(super) struct Breaker {
    outcomes: VecDeque<(Instant, bool)>,
    open_until: Option<Instant>,
    open_for: Duration,
    /// Whether the one request of the half-open state is under way.
    is_trying: bool,
}

impl Default for Breaker {
    fn default() -> Self {
        Self { outcomes: VecDeque::new(), open_until: None, open_for: OPEN_FIRST, is_trying: false }
    }
}

impl Breaker {
    /// The time until which no request may be sent; `None` if one may be sent now.
    ///
    /// While a trial is under way, this is the present: ask again when it ends.
    pub(super) fn closed_until(&self, now: Instant) -> Option<Instant> {
        self.open_until.map(|until| until.max(now)).filter(|until| *until > now || self.is_trying)
    }

    /// Whether requests are held back.
    pub(super) fn is_open(&self) -> bool {
        self.open_until.is_some()
    }

    /// Records that a request is sent. In the half-open state it is the trial.
    pub(super) fn sent(&mut self) {
        self.is_trying = self.open_until.is_some();
    }

    /// Records that a request was dropped without an outcome.
    pub(super) fn dropped(&mut self) {
        self.is_trying = false;
    }

    /// Records an outcome. Returns whether the breaker opened or closed with it.
    pub(super) fn ended(&mut self, now: Instant, outcome: Outcome) -> bool {
        let was_open = self.is_open();
        self.is_trying = false;
        if outcome == Outcome::Works {
            // An answer to a request that was sent before it opened is good news, too.
            self.open_until = None;
            self.open_for = OPEN_FIRST;
            if was_open {
                self.outcomes.clear();
            }
        }
        self.outcomes.push_back((now, outcome == Outcome::Works));
        while self.outcomes.len() > OUTCOMES_MAX
            || self.outcomes.front().is_some_and(|(at, _)| now.saturating_duration_since(*at) > WINDOW)
        {
            self.outcomes.pop_front();
        }
        let failures = self.outcomes.iter().filter(|(_, works)| !works).count();
        let opens = failures >= FAILURES_MIN && failures * 2 >= self.outcomes.len();
        // A failure while it is open is one of a request that was sent before; only the trial prolongs.
        let is_due = self.open_until.is_none_or(|until| until <= now);
        let holds = outcome == Outcome::KeyRefused || (outcome == Outcome::Fails && (opens || was_open));
        if holds && is_due {
            self.open_until = Some(now + self.open_for);
            self.open_for = (self.open_for * 2).min(OPEN_MAX);
        }
        was_open != self.is_open()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(start: Instant, seconds: u64) -> Instant {
        start + Duration::from_secs(seconds)
    }

    #[test]
    fn five_failures_open_it_and_one_trial_closes_it() {
        let (mut breaker, start) = (Breaker::default(), Instant::now());
        for _ in 0..4 {
            assert!(!breaker.ended(start, Outcome::Fails));
        }
        assert!(breaker.ended(start, Outcome::Fails), "the fifth opens it");
        assert_eq!(breaker.closed_until(start), Some(at(start, 5)));
        assert_eq!(breaker.closed_until(at(start, 5)), None, "a trial may be sent");
        breaker.sent();
        assert!(breaker.closed_until(at(start, 5)).is_some(), "one trial at a time");
        assert!(breaker.ended(at(start, 6), Outcome::Works));
        assert_eq!(breaker.closed_until(at(start, 6)), None);
        assert!(!breaker.ended(at(start, 6), Outcome::Fails), "earlier failures are forgotten");
    }

    #[test]
    fn failed_trials_double_the_time_up_to_a_minute() {
        let (mut breaker, mut now) = (Breaker::default(), Instant::now());
        breaker.ended(now, Outcome::KeyRefused);
        let mut open = Vec::new();
        for _ in 0..6 {
            let until = breaker.closed_until(now).unwrap();
            open.push((until - now).as_secs());
            now = until;
            breaker.sent();
            breaker.ended(now, Outcome::Fails);
        }
        assert_eq!(open, [5, 10, 20, 40, 60, 60]);
    }

    #[test]
    fn late_failures_do_not_prolong_it_and_a_dropped_trial_makes_way_for_another() {
        let (mut breaker, start) = (Breaker::default(), Instant::now());
        breaker.ended(start, Outcome::KeyRefused);
        breaker.ended(at(start, 1), Outcome::Fails);
        assert_eq!(breaker.closed_until(at(start, 1)), Some(at(start, 5)));
        breaker.sent();
        breaker.dropped();
        assert_eq!(breaker.closed_until(at(start, 5)), None);
    }

    #[test]
    fn failures_among_many_successes_do_not_open_it() {
        let (mut breaker, start) = (Breaker::default(), Instant::now());
        for second in 0..20 {
            let outcome = if second % 3 == 0 { Outcome::Fails } else { Outcome::Works };
            assert!(!breaker.ended(at(start, second), outcome), "{second}");
        }
        // Old outcomes do not count: four failures later than the window do not open it.
        for _ in 0..4 {
            assert!(!breaker.ended(at(start, 120), Outcome::Fails));
        }
    }
}
