//! How much is said in a room: totals, and rates of the last ten seconds or so.
//!
//! Counted once a publish, however many hear it.
use parking_lot::Mutex;
use serde::Serialize;
use std::time::Duration;
use tokio::time::Instant;

const WINDOW: Duration = Duration::from_secs(10);

/// What was said in a room, or how much of it a second.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Flow {
    /// Messages that were said.
    pub messages_in: f64,
    /// Bytes of their payloads.
    pub bytes_in: f64,
    /// Messages put out for those who hear them: one for each.
    pub messages_out: f64,
    /// Bytes of those, with everything around the payload.
    pub bytes_out: f64,
}

/// What was counted in a room since somebody entered it.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Traffic {
    /// In all.
    pub total: Flow,
    /// A second, lately.
    pub rate: Flow,
}

#[derive(Debug)]
pub(super) struct Counter(Mutex<State>);

#[derive(Debug)]
struct State {
    window_ends: Instant,
    /// Of this window, of the one before it, and of all that went before.
    now: Flow,
    before: Flow,
    long_ago: Flow,
}

impl std::ops::Add for Flow {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self {
            messages_in: self.messages_in + other.messages_in,
            bytes_in: self.bytes_in + other.bytes_in,
            messages_out: self.messages_out + other.messages_out,
            bytes_out: self.bytes_out + other.bytes_out,
        }
    }
}

impl Flow {
    fn times(self, factor: f64) -> Self {
        Self {
            messages_in: self.messages_in * factor,
            bytes_in: self.bytes_in * factor,
            messages_out: self.messages_out * factor,
            bytes_out: self.bytes_out * factor,
        }
    }
}

impl Counter {
    pub(super) fn new(now: Instant) -> Self {
        let none = Flow::default();
        Self(Mutex::new(State { window_ends: now + WINDOW, now: none, before: none, long_ago: none }))
    }

    pub(super) fn count(&self, now: Instant, flow: Flow) {
        let mut state = self.0.lock();
        state.turn(now);
        state.now = state.now + flow;
    }

    pub(super) fn read(&self, now: Instant) -> Traffic {
        let mut state = self.0.lock();
        state.turn(now);
        let left = (state.window_ends - now).as_secs_f64() / WINDOW.as_secs_f64();
        let lately = state.before.times(left) + state.now;
        let total = state.long_ago + state.before + state.now;
        Traffic { total, rate: lately.times(1.0 / WINDOW.as_secs_f64()) }
    }
}

impl State {
    /// Begins the window that `now` is in.
    fn turn(&mut self, now: Instant) {
        if now < self.window_ends {
            return;
        }
        let (before, current) = (self.before, std::mem::take(&mut self.now));
        self.long_ago = self.long_ago + before;
        self.before = current;
        self.window_ends += WINDOW;
        if now >= self.window_ends {
            self.long_ago = self.long_ago + current;
            self.before = Flow::default();
            self.window_ends = now + WINDOW;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn rates_follow_what_is_said_and_totals_forget_nothing() {
        let start = Instant::now();
        let counter = Counter::new(start);
        let one = Flow { messages_in: 1.0, bytes_in: 10.0, messages_out: 3.0, bytes_out: 60.0 };
        for second in 0..20 {
            counter.count(start + Duration::from_secs(second), one);
        }
        let traffic = counter.read(start + Duration::from_secs(20));
        assert_eq!((traffic.total.messages_in, traffic.total.bytes_out), (20.0, 1200.0));
        assert!((traffic.rate.messages_in - 1.0).abs() < 0.01, "{traffic:?}");
        assert!((traffic.rate.messages_out - 3.0).abs() < 0.01, "{traffic:?}");
        let later = counter.read(start + Duration::from_secs(500));
        assert_eq!((later.rate, later.total), (Flow::default(), traffic.total));
    }
}
