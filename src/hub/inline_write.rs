//! Decides when a publisher writes a message to the sockets inline.
//!
//! Waking the task of each socket costs about a fifth of a delivery, and the first write starts only after all
//! wakes. A single message on an idle hub is therefore written by the publisher. Inline writes use one processor
//! and coalesce nothing. Under load the sockets' tasks write instead, on all processors, several messages in one
//! call. Load means: messages come in batches, or inline writes would use more than two thirds of one processor.
use parking_lot::{Mutex, MutexGuard};
use tokio::time::Instant;

/// Sockets, and bytes to all of them, that one message is written to inline. Both bound how long the publisher works
/// without yielding.
const SOCKETS_MAX: usize = 1024;
const BYTES_MAX: usize = 1 << 20;

/// Hands out the permit for inline writes: one publisher at a time, at most two thirds of the time.
#[derive(Debug)]
pub(super) struct InlineWrite {
    /// The earliest time of the next permit.
    free_at: Mutex<Instant>,
}

/// The permit to write one message inline. Holds the lock until it is dropped.
pub(super) struct WritePermit<'a> {
    free_at: MutexGuard<'a, Instant>,
    began: Instant,
    sockets: usize,
    bytes: usize,
}

impl InlineWrite {
    pub(super) fn new() -> Self {
        Self { free_at: Mutex::new(Instant::now()) }
    }

    /// Returns `None` if another publisher writes inline, or the pause after the last permit is not over. Never
    /// blocks.
    pub(super) fn try_acquire(&self) -> Option<WritePermit<'_>> {
        let free_at = self.free_at.try_lock()?;
        let began = Instant::now();
        (*free_at <= began).then(|| WritePermit { free_at, began, sockets: 0, bytes: 0 })
    }
}

impl WritePermit<'_> {
    /// True if `bytes` may be written to one more socket; false after [`SOCKETS_MAX`] and over [`BYTES_MAX`].
    pub(super) fn admits_socket(&mut self, bytes: usize) -> bool {
        self.sockets += 1;
        self.bytes += bytes;
        self.sockets <= SOCKETS_MAX && self.bytes <= BYTES_MAX
    }
}

impl Drop for WritePermit<'_> {
    fn drop(&mut self) {
        let now = Instant::now();
        // The pause is half of the time that was used, which leaves a third of the processor to the sockets' tasks.
        *self.free_at = now + (now - self.began) / 2;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[tokio::test(start_paused = true)]
    async fn permit_is_exclusive_and_held_two_thirds_of_the_time_at_most() {
        let inline = InlineWrite::new();
        let first = inline.try_acquire().unwrap();
        assert!(inline.try_acquire().is_none(), "one at a time");
        tokio::time::advance(Duration::from_millis(6)).await;
        drop(first);
        tokio::time::advance(Duration::from_millis(2)).await;
        assert!(inline.try_acquire().is_none(), "the pause is not over");
        tokio::time::advance(Duration::from_millis(1)).await;
        let mut next = inline.try_acquire().unwrap();
        assert_eq!((0..2000).filter(|_| next.admits_socket(100)).count(), 1024);
        drop(next);
        tokio::time::advance(Duration::from_millis(1)).await;
        let mut large = inline.try_acquire().unwrap();
        assert_eq!((0..2000).filter(|_| large.admits_socket(100 << 10)).count(), 10);
    }
}
