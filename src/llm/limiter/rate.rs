//! The rate of an account for one resource: requests, or tokens, a minute.
use std::time::Duration;
use tokio::time::Instant;

/// Part of a minute whose amount may be used at once, of a declared or reported limit.
const BURST_OF_MINUTE: f64 = 1.0 / 6.0;
/// The same of a learned limit: it is known less well.
const BURST_OF_MINUTE_LEARNED: f64 = 1.0 / 30.0;
/// Factor of the rate after a 429 (multiplicative decrease).
const CUT: f64 = 0.7;
/// The same where the rate had come near the one of the last cut: the limit is about there.
const CUT_NEAR: f64 = 0.85;
/// Part of the rate of the last cut from which the limit is near.
const NEAR: f64 = 0.95;
/// Least amount of a minute from which the first cut learns a rate.
const FIRST_CUT_MIN: f64 = 10.0;
/// Least rate after any number of cuts, a minute.
const FLOOR: f64 = 1.0;
/// Growth for each interval in which a request waited (additive increase), as a part of the rate.
const GROWTH: f64 = 0.05;
/// The same until the second cut: the first one learns a rate from a few requests, and it may be much too low.
const GROWTH_FIRST: f64 = 0.5;
/// The same near the rate of the last cut.
const GROWTH_NEAR: f64 = 0.002;
/// Interval of the growth.
const GROWTH_EVERY: Duration = Duration::from_secs(10);
/// Factor by which a reset exceeds the time that a continuously refilled limit needs if the limit has fixed windows.
const WINDOW_FACTOR: f64 = 1.5;
/// Resets are whole seconds at many endpoints.
const RESET_GRACE: f64 = 2.0;

/// What an answer says of a limit: `x-ratelimit-limit-…`, `-remaining-…`, `-reset-…` and their like.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(in crate::llm) struct Reported {
    /// The limit a minute; `None` if it is not reported.
    pub(in crate::llm) limit: Option<f64>,
    /// What is left of it.
    pub(in crate::llm) remaining: f64,
    /// Time until all of it is there again; `None` if it is not reported.
    pub(in crate::llm) reset: Option<Duration>,
}

/// Where the limit comes from. A better source is never replaced by a worse one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Source {
    /// Nothing is known: no limit.
    Unknown,
    /// Learned from refusals.
    Learned,
    /// Reported by the endpoint.
    Reported,
    /// Declared in the settings.
    Declared,
}

/// The rate of one resource: a token bucket, and what is left of the endpoint's window if it has fixed windows.
#[derive(Clone, Debug)]
pub(in crate::llm) struct Rate {
    source: Source,
    /// `None` while no limit is known.
    per_minute: Option<f64>,
    level: f64,
    refilled_at: Instant,
    /// The rate at the last cut.
    cut_at_rate: f64,
    /// Whether the rate was cut more than once.
    is_confirmed: bool,
    grown_at: Instant,
    /// Whether the endpoint has fixed windows. One report tells; a report near the end of a window does not.
    has_windows: bool,
    /// What is left until the window ends.
    window: Option<(f64, Instant)>,
    /// Uses since a time at most two minutes ago, for the first cut: the current minute, and the one before.
    used: (Instant, f64, f64),
}

impl Rate {
    /// Creates a rate; `per_minute` is the declared limit.
    pub(in crate::llm) fn new(now: Instant, per_minute: Option<f64>) -> Self {
        let mut rate = Self {
            source: if per_minute.is_some() { Source::Declared } else { Source::Unknown },
            per_minute: per_minute.map(|rate| rate.max(FLOOR)),
            level: 0.0,
            refilled_at: now,
            cut_at_rate: f64::INFINITY,
            is_confirmed: false,
            grown_at: now,
            has_windows: false,
            window: None,
            used: (now, 0.0, 0.0),
        };
        rate.level = rate.capacity();
        rate
    }

    /// The rate a minute; `None` while no limit is known.
    pub(in crate::llm) fn per_minute(&self) -> Option<f64> {
        self.per_minute
    }

    fn capacity(&self) -> f64 {
        let burst = if self.source == Source::Learned { BURST_OF_MINUTE_LEARNED } else { BURST_OF_MINUTE };
        self.per_minute.map_or(f64::INFINITY, |rate| (rate * burst).max(1.0))
    }

    fn refill(&mut self, now: Instant) {
        self.window = self.window.filter(|(_, end)| *end > now);
        let elapsed = now.saturating_duration_since(self.refilled_at).as_secs_f64();
        self.refilled_at = now;
        if let Some(rate) = self.per_minute {
            self.level = (self.level + elapsed * rate / 60.0).min(self.capacity());
        }
    }

    /// How long until `amount` is there; zero if it is. An amount over the burst needs a full bucket only.
    pub(in crate::llm) fn wait(&mut self, now: Instant, amount: f64) -> Duration {
        self.refill(now);
        let Some(rate) = self.per_minute else { return Duration::ZERO };
        let missing = amount.min(self.capacity()) - self.level;
        let refilled = match missing > 0.0 {
            // A millisecond more, so that rounding never leads to a look just before the time.
            true => Duration::from_secs_f64(missing * 60.0 / rate) + Duration::from_millis(1),
            false => Duration::ZERO,
        };
        match self.window {
            Some((left, end)) if left < amount => refilled.max(end.saturating_duration_since(now)),
            _ => refilled,
        }
    }

    /// Uses an amount. The level may become negative: then later requests wait longer.
    pub(in crate::llm) fn take(&mut self, now: Instant, amount: f64) {
        self.refill(now);
        self.add(-amount);
        let (since, current, _) = &mut self.used;
        if now.saturating_duration_since(*since) >= Duration::from_secs(60) {
            self.used = (now, amount, *current);
        } else {
            *current += amount;
        }
    }

    /// Corrects the amount of an earlier `take` to what was used in fact.
    pub(in crate::llm) fn correct(&mut self, taken: f64, used: f64) {
        self.add(taken - used);
    }

    fn add(&mut self, amount: f64) {
        if self.per_minute.is_some() {
            self.level += amount;
        }
        if let Some((left, _)) = &mut self.window {
            *left += amount;
        }
    }

    /// Learns from an answer; `sent_after` is the amount that was taken after its request was sent.
    pub(in crate::llm) fn report(&mut self, now: Instant, reported: Reported, sent_after: f64) {
        if self.source != Source::Declared
            && let Some(limit) = reported.limit.filter(|limit| *limit >= FLOOR)
        {
            self.source = Source::Reported;
            self.per_minute = Some(limit);
        }
        self.refill(now);
        let Some(rate) = self.per_minute else { return };
        let left = reported.remaining - sent_after;
        self.level = self.level.min(left);
        let Some(reset) = reported.reset else { return };
        let missing = (reported.limit.unwrap_or(rate) - reported.remaining).max(0.0);
        self.has_windows |= reset.as_secs_f64() > missing * 60.0 / rate * WINDOW_FACTOR + RESET_GRACE;
        self.window = self.has_windows.then_some((left, now + reset));
    }

    /// Cuts the rate after a refusal. A declared or reported rate stays: the pause is enough.
    pub(in crate::llm) fn cut(&mut self, now: Instant) {
        self.refill(now);
        if self.source >= Source::Reported {
            return;
        }
        let (_, current, before) = self.used;
        // The rate may have grown far beyond what the endpoint accepted in the last minute.
        let observed = current.max(before).max(FLOOR);
        let rate = match self.per_minute {
            Some(rate) if observed >= FIRST_CUT_MIN => rate.min(observed),
            Some(rate) => rate,
            None => observed,
        };
        // The first refusal after a few requests says that the limit is used up, and not how large it is.
        if self.source == Source::Unknown && rate < FIRST_CUT_MIN {
            return;
        }
        self.is_confirmed = self.source == Source::Learned;
        self.source = Source::Learned;
        let factor = if self.is_near_cut(rate) { CUT_NEAR } else { CUT };
        self.cut_at_rate = rate;
        self.per_minute = Some((rate * factor).max(FLOOR));
        self.level = self.level.min(0.0);
        self.grown_at = now;
    }

    fn is_near_cut(&self, rate: f64) -> bool {
        rate >= self.cut_at_rate * NEAR
    }

    /// Grows a learned rate, once an interval in which a request waited.
    pub(in crate::llm) fn grow(&mut self, now: Instant) {
        if self.source != Source::Learned || now.saturating_duration_since(self.grown_at) < GROWTH_EVERY {
            return;
        }
        self.refill(now);
        self.grown_at = now;
        if let Some(rate) = self.per_minute {
            let near = self.cut_at_rate * NEAR;
            self.per_minute = Some(match (self.is_confirmed, self.is_near_cut(rate)) {
                (false, _) => rate + rate * GROWTH_FIRST,
                (true, true) => rate + rate * GROWTH_NEAR,
                (true, false) => (rate + rate * GROWTH).min(near),
            });
        }
    }
}
