//! Throttles log lines, so that they do not grow with traffic.
use parking_lot::Mutex;
use std::time::Duration;
use tokio::time::Instant;

/// Most lines of one kind in one window.
const LINES_MAX: u32 = 20;
const WINDOW: Duration = Duration::from_secs(60);

/// Passes at most twenty log lines of one kind in a minute. The next line reports how many were suppressed. The
/// caller counts every event in a metric.
#[derive(Debug, Default)]
pub struct Throttle(Mutex<Window>);

#[derive(Debug, Default)]
struct Window {
    since: Option<Instant>,
    lines: u32,
    suppressed: u64,
}

impl Throttle {
    /// Returns the number of lines suppressed since the last one if a line may be written now; `None` if it
    /// is suppressed.
    #[must_use]
    pub fn pass(&self) -> Option<u64> {
        self.pass_at(Instant::now())
    }

    fn pass_at(&self, now: Instant) -> Option<u64> {
        let mut window = self.0.lock();
        if window.since.is_none_or(|since| now.duration_since(since) >= WINDOW) {
            (window.since, window.lines) = (Some(now), 0);
        }
        if window.lines >= LINES_MAX {
            window.suppressed += 1;
            return None;
        }
        window.lines += 1;
        Some(std::mem::take(&mut window.suppressed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_beyond_the_limit_are_suppressed_and_counted_in_the_next_window() {
        let throttle = Throttle::default();
        let now = Instant::now();
        for _ in 0..LINES_MAX {
            assert_eq!(throttle.pass_at(now), Some(0));
        }
        assert_eq!((throttle.pass_at(now), throttle.pass_at(now)), (None, None));
        assert_eq!(throttle.pass_at(now + WINDOW), Some(2));
        assert_eq!(throttle.pass_at(now + WINDOW), Some(0));
    }
}
