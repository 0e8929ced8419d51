//! The traffic of a room: totals, and rates over about ten seconds.
//!
//! Counted once per publish, not once per subscriber.
use parking_lot::Mutex;
use serde::Serialize;
use std::time::Duration;
use tokio::time::Instant;

const WINDOW: Duration = Duration::from_secs(10);

/// Traffic of a room: a total, or a rate per second.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Flow {
    /// Published messages.
    pub messages_in: f64,
    /// Bytes of their payloads.
    pub bytes_in: f64,
    /// Messages enqueued to subscribers: one per receiver.
    pub messages_out: f64,
    /// Bytes of the enqueued frames, with envelope and header.
    pub bytes_out: f64,
}

/// Traffic of a room since its first subscriber joined.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Traffic {
    /// Totals.
    pub total: Flow,
    /// Rates per second over about the last ten seconds.
    pub rate: Flow,
}

#[derive(Debug)]
pub(super) struct Counter(Mutex<State>);

#[derive(Debug)]
struct State {
    window_ends: Instant,
    /// The flow of this window, of the window before it, and of all earlier windows.
    now: Flow,
    before: Flow,
    earlier: Flow,
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
        Self(Mutex::new(State { window_ends: now + WINDOW, now: none, before: none, earlier: none }))
    }

    pub(super) fn count(&self, now: Instant, flow: Flow) {
        let mut state = self.0.lock();
        state.roll_window(now);
        state.now = state.now + flow;
    }

    pub(super) fn read(&self, now: Instant) -> Traffic {
        let mut state = self.0.lock();
        state.roll_window(now);
        let left = (state.window_ends - now).as_secs_f64() / WINDOW.as_secs_f64();
        let recent = state.before.times(left) + state.now;
        let total = state.earlier + state.before + state.now;
        Traffic { total, rate: recent.times(1.0 / WINDOW.as_secs_f64()) }
    }
}

impl State {
    /// Starts the window that contains `now`.
    fn roll_window(&mut self, now: Instant) {
        if now < self.window_ends {
            return;
        }
        let (before, current) = (self.before, std::mem::take(&mut self.now));
        self.earlier = self.earlier + before;
        self.before = current;
        self.window_ends += WINDOW;
        // More than one window has passed without traffic: the previous window was empty.
        if now >= self.window_ends {
            self.earlier = self.earlier + current;
            self.before = Flow::default();
            self.window_ends = now + WINDOW;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn rates_follow_traffic_and_totals_keep_everything() {
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
