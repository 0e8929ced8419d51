//! A limit on requests in a minute, of one client and of all.
use parking_lot::Mutex;
use std::{collections::HashMap, hash::Hash, time::Duration};
use tokio::time::Instant;

const WINDOW: Duration = Duration::from_secs(60);

/// Counts requests in windows of a minute. The counts of a window are bounded by the limit of all clients.
#[derive(Debug)]
pub(crate) struct RateLimit<K> {
    of_one: u32,
    of_all: u32,
    window: Mutex<Window<K>>,
}

#[derive(Debug)]
struct Window<K> {
    began: Instant,
    all: u32,
    each: HashMap<K, u32>,
}

impl<K> Window<K> {
    fn new() -> Self {
        Self { began: Instant::now(), all: 0, each: HashMap::new() }
    }
}

impl<K: Eq + Hash> RateLimit<K> {
    pub(crate) fn new((of_one, of_all): (u32, u32)) -> Self {
        Self { of_one, of_all, window: Mutex::new(Window::new()) }
    }

    /// Counts a request. A refused one is not counted, so that one client cannot use up the limit of all.
    ///
    /// # Errors
    /// How long to wait, if there were too many in this minute.
    pub(crate) fn admit(&self, client: K) -> Result<(), Duration> {
        let mut window = self.window.lock();
        let age = window.began.elapsed();
        if age >= WINDOW {
            *window = Window::new();
        }
        let of_one = window.each.get(&client).copied().unwrap_or(0);
        if of_one >= self.of_one || window.all >= self.of_all {
            return Err(WINDOW.saturating_sub(age));
        }
        window.all += 1;
        window.each.insert(client, of_one + 1);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn client_that_asks_too_often_is_refused_for_a_minute_and_others_are_not() {
        let limit = RateLimit::new((2, 3));
        let admits = |client: &'static str| limit.admit(client).is_ok();
        assert!(admits("a") && admits("a") && !admits("a"));
        assert!(admits("b") && !admits("c"), "the limit of all is reached");
        tokio::time::advance(WINDOW / 4).await;
        assert_eq!(limit.admit("a"), Err(WINDOW / 4 * 3));
        tokio::time::advance(WINDOW / 4 * 3).await;
        assert!(admits("a"));
        assert_eq!(limit.window.lock().each.len(), 1);
    }
}
