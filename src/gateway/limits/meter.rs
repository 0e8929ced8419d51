//! The averages of Supabase mode, which are compared with a limit instead of being consumed.
use parking_lot::Mutex;
use std::{collections::VecDeque, time::Duration};
use tokio::time::Instant;

const TICK: Duration = Duration::from_secs(5);
const BUCKETS: usize = 12;

/// An average per second over at most a minute, in buckets of 5 s (`docs/spec/realtime-protocol.md` §4.6).
#[derive(Debug)]
pub(in crate::gateway) struct Meter(Mutex<State>);

#[derive(Debug)]
struct State {
    bucket_ends: Instant,
    current: u64,
    buckets: VecDeque<u64>,
}

impl Meter {
    pub(in crate::gateway) fn new(now: Instant) -> Self {
        Self(Mutex::new(State { bucket_ends: now + TICK, current: 0, buckets: VecDeque::from([0]) }))
    }

    /// Counts `events`. Returns the average per second before them; the current bucket does not count.
    pub(in crate::gateway) fn count(&self, now: Instant, events: u64) -> u64 {
        let mut state = self.0.lock();
        let mut ticks = 0;
        while now >= state.bucket_ends && ticks < BUCKETS {
            let counted = std::mem::take(&mut state.current);
            state.buckets.push_back(counted);
            if state.buckets.len() > BUCKETS {
                state.buckets.pop_front();
            }
            state.bucket_ends += TICK;
            ticks += 1;
        }
        // After a long pause the window starts anew, instead of catching up bucket by bucket.
        state.bucket_ends = state.bucket_ends.max(now);
        state.current += events;
        state.buckets.iter().sum::<u64>() / (state.buckets.len() as u64 * TICK.as_secs()).max(1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn average_follows_the_events_and_forgets_old_ones() {
        let start = Instant::now();
        let meter = Meter::new(start);
        assert_eq!(meter.count(start, 1000), 0, "a bucket counts when it is full");
        assert_eq!(meter.count(start + TICK, 0), 100, "half of the buckets is the empty first one");
        assert_eq!(meter.count(start + TICK * 3, 0), 50);
        assert_eq!(meter.count(start + TICK * 100, 0), 0);
    }
}
