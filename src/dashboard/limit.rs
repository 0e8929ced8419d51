//! A limit on requests in a minute, of one address and of all.
use parking_lot::Mutex;
use std::{collections::HashMap, net::IpAddr, time::Duration};
use tokio::time::Instant;

const WINDOW: Duration = Duration::from_secs(60);

/// Counts requests in windows of a minute. The counts of a window are bounded by the limit of all addresses.
#[derive(Debug)]
pub(super) struct RateLimit {
    of_one: u32,
    of_all: u32,
    window: Mutex<Window>,
}

#[derive(Debug)]
struct Window {
    began: Instant,
    all: u32,
    each: HashMap<IpAddr, u32>,
}

impl RateLimit {
    pub(super) fn new((of_one, of_all): (u32, u32)) -> Self {
        let window = Window { began: Instant::now(), all: 0, each: HashMap::new() };
        Self { of_one, of_all, window: Mutex::new(window) }
    }

    /// Counts a request; false if there were too many in this minute. A refused request is not counted, so that one
    /// address cannot use up the limit of all.
    pub(super) fn admit(&self, address: IpAddr) -> bool {
        let mut window = self.window.lock();
        if window.began.elapsed() >= WINDOW {
            *window = Window { began: Instant::now(), all: 0, each: HashMap::new() };
        }
        let of_one = window.each.get(&address).copied().unwrap_or(0);
        if of_one >= self.of_one || window.all >= self.of_all {
            return false;
        }
        window.all += 1;
        window.each.insert(address, of_one + 1);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn address_that_asks_too_often_is_refused_for_a_minute_and_others_are_not() {
        let limit = RateLimit::new((2, 3));
        let address = |last| IpAddr::from([127, 0, 0, last]);
        assert!(limit.admit(address(1)) && limit.admit(address(1)) && !limit.admit(address(1)));
        assert!(limit.admit(address(2)) && !limit.admit(address(3)), "the limit of all is reached");
        tokio::time::advance(WINDOW).await;
        assert!(limit.admit(address(1)));
        assert_eq!(limit.window.lock().each.len(), 1);
    }
}
