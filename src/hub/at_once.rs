//! When a message is written to its hearers by whoever says it.
//!
//! Waking the task of each socket costs about a fifth of a delivery, and none of them is written to before all are
//! woken. So a message that comes alone, while the hub is calm, is written at once. That is one processor's work
//! though, and puts nothing together: under load the sockets' own tasks do it, on all processors, and write what came
//! meanwhile in one call. Load is when messages come in bursts, or when a third of one processor's time would not be
//! left between two such messages.
use parking_lot::{Mutex, MutexGuard};
use tokio::time::Instant;

/// Sockets that one message is written to at once: the caller works that long without a pause.
const SOCKETS_MAX: usize = 1024;

/// Who may write at once: one at a time, and not all the time.
#[derive(Debug)]
pub(super) struct AtOnce {
    /// From when on the next may.
    free_at: Mutex<Instant>,
}

/// One message that is written at once.
pub(super) struct Turn<'a> {
    free_at: MutexGuard<'a, Instant>,
    began: Instant,
    sockets: usize,
}

impl AtOnce {
    pub(super) fn new() -> Self {
        Self { free_at: Mutex::new(Instant::now()) }
    }

    /// Nothing while somebody else does, or has just done; nobody waits.
    pub(super) fn turn(&self) -> Option<Turn<'_>> {
        let free_at = self.free_at.try_lock()?;
        let began = Instant::now();
        (*free_at <= began).then(|| Turn { free_at, began, sockets: 0 })
    }
}

impl Turn<'_> {
    /// Whether one more socket is written to.
    pub(super) fn takes_one(&mut self) -> bool {
        self.sockets += 1;
        self.sockets <= SOCKETS_MAX
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        let now = Instant::now();
        *self.free_at = now + (now - self.began) / 2;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[tokio::test(start_paused = true)]
    async fn one_at_a_time_and_a_third_of_the_time_nobody() {
        let at_once = AtOnce::new();
        let first = at_once.turn().unwrap();
        assert!(at_once.turn().is_none(), "one at a time");
        tokio::time::advance(Duration::from_millis(6)).await;
        drop(first);
        tokio::time::advance(Duration::from_millis(2)).await;
        assert!(at_once.turn().is_none(), "the others come first");
        tokio::time::advance(Duration::from_millis(1)).await;
        let mut next = at_once.turn().unwrap();
        assert_eq!((0..2000).filter(|_| next.takes_one()).count(), 1024);
    }
}
