//! What waits to be written to one socket: bounded in frames and in bytes.
use crate::wire::Frame;
use parking_lot::Mutex;
use std::{
    collections::VecDeque,
    future::poll_fn,
    task::{Context, Poll, Waker},
};

/// Room that an empty queue may keep, so that a burst does not stay in memory.
const FRAMES_KEPT: usize = 32;

/// Why nothing more can be put in or taken out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Closed {
    /// The reader was too slow; what waited is thrown away.
    #[error("reader too slow")]
    Slow {
        /// Whether this push was the one that found out.
        first: bool,
    },
    /// By the owner; what waited before can still be taken.
    #[error("closed")]
    Done,
}

/// The queue between those who say something and the writer of one socket.
///
/// When a frame would not fit, the outbox closes as [`Closed::Slow`]. A single
/// frame larger than the limit fits into an empty outbox.
#[derive(Debug)]
pub struct Outbox {
    frames_max: usize,
    bytes_max: usize,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    frames: VecDeque<Frame>,
    bytes: usize,
    closed: Option<Closed>,
    writer: Option<Waker>,
    /// Of [`Outbox::too_slow`]: a writer that waits for the socket is not woken by every frame.
    watcher: Option<Waker>,
}

impl Outbox {
    /// An empty outbox for at most `frames_max` frames of together `bytes_max` bytes.
    #[must_use]
    pub fn new(frames_max: usize, bytes_max: usize) -> Self {
        Self { frames_max, bytes_max, state: Mutex::default() }
    }

    /// Puts a frame in; never waits.
    ///
    /// # Errors
    /// [`Closed`] when it was closed before, or now because the reader is too slow.
    pub fn push(&self, frame: Frame) -> Result<(), Closed> {
        let mut state = self.state.lock();
        if let Some(closed) = state.closed {
            return Err(closed);
        }
        let bytes = state.bytes + frame.size();
        let fits = state.frames.len() < self.frames_max && bytes <= self.bytes_max;
        let mut watcher = None;
        let outcome = if fits || state.frames.is_empty() {
            state.bytes = bytes;
            state.frames.push_back(frame);
            Ok(())
        } else {
            state.closed = Some(Closed::Slow { first: false });
            state.frames = VecDeque::new();
            state.bytes = 0;
            watcher = state.watcher.take();
            Err(Closed::Slow { first: true })
        };
        let writer = state.writer.take();
        drop(state);
        writer.into_iter().chain(watcher).for_each(Waker::wake);
        outcome
    }

    /// Lets nothing more in; what is in it can still be taken.
    pub fn close(&self) {
        let mut state = self.state.lock();
        state.closed.get_or_insert(Closed::Done);
        let writer = state.writer.take();
        drop(state);
        if let Some(writer) = writer {
            writer.wake();
        }
    }

    /// Everything that waits, in order, at least one frame. For one taker at a time; cancel safe.
    ///
    /// # Errors
    /// [`Closed`] when nothing is left and nothing more comes.
    pub async fn take(&self) -> Result<VecDeque<Frame>, Closed> {
        poll_fn(|cx| self.poll_take(cx)).await
    }

    /// Resolves when the reader has been found too slow. For one watcher at a time; cancel safe.
    pub async fn too_slow(&self) {
        poll_fn(|cx| {
            let mut state = self.state.lock();
            if matches!(state.closed, Some(Closed::Slow { .. })) {
                return Poll::Ready(());
            }
            state.watcher = Some(cx.waker().clone());
            Poll::Pending
        })
        .await;
    }

    fn poll_take(&self, cx: &mut Context<'_>) -> Poll<Result<VecDeque<Frame>, Closed>> {
        let mut state = self.state.lock();
        if !state.frames.is_empty() {
            state.bytes = 0;
            let kept = if state.frames.len() > FRAMES_KEPT { FRAMES_KEPT } else { 0 };
            let next = VecDeque::with_capacity(kept);
            return Poll::Ready(Ok(std::mem::replace(&mut state.frames, next)));
        }
        if let Some(closed) = state.closed {
            return Poll::Ready(Err(closed));
        }
        state.writer = Some(cx.waker().clone());
        Poll::Pending
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(size: usize) -> Frame {
        Frame::Text(vec![b'x'; size].into())
    }

    #[tokio::test]
    async fn bytes_are_bounded_too_but_one_big_frame_fits() {
        let outbox = Outbox::new(100, 10);
        outbox.push(frame(50)).unwrap();
        assert_eq!(outbox.take().await.unwrap().len(), 1);
        outbox.push(frame(6)).unwrap();
        outbox.push(frame(4)).unwrap();
        assert_eq!(outbox.push(frame(1)), Err(Closed::Slow { first: true }));
        assert_eq!(outbox.push(frame(1)), Err(Closed::Slow { first: false }));
        outbox.too_slow().await;
        assert!(outbox.take().await.is_err());
    }

    #[tokio::test]
    async fn what_was_in_it_when_it_closed_is_still_taken() {
        let outbox = Outbox::new(2, 10);
        outbox.push(frame(1)).unwrap();
        outbox.close();
        assert_eq!(outbox.push(frame(1)), Err(Closed::Done));
        assert_eq!(outbox.take().await.unwrap().len(), 1);
        assert_eq!(outbox.take().await, Err(Closed::Done));
    }
}
