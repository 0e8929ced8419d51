//! What waits to be written to one socket: bounded in frames and in bytes.
use crate::wire::{Frame, socket};
use bytes::{Bytes, BytesMut};
use parking_lot::Mutex;
use std::{
    collections::VecDeque,
    future::poll_fn,
    task::{Context, Poll, Waker},
};

/// Room that an empty queue may keep, so that a burst does not stay in memory.
const CHUNKS_KEPT: usize = 32;

/// Frames that travel together, with their websocket headers. Clones share the bytes.
#[derive(Clone, Debug)]
pub(super) struct Chunk {
    pub(super) bytes: Bytes,
    pub(super) frames: usize,
}

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

/// The queue of websocket frames between those who say something and the writer of one socket.
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
    chunks: VecDeque<Bytes>,
    frames: usize,
    bytes: usize,
    closed: Option<Closed>,
    writer: Option<Waker>,
    /// Of [`Outbox::too_slow`]: a writer that waits for the socket is not woken by every frame.
    watcher: Option<Waker>,
    /// Of [`Outbox::emptied`].
    waiting: Vec<Waker>,
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
    pub fn push(&self, frame: &Frame) -> Result<(), Closed> {
        let mut bytes = BytesMut::with_capacity(frame.size() + socket::HEADER_BYTES_MAX);
        socket::put_frame(&mut bytes, frame);
        self.push_chunk(Chunk { bytes: bytes.freeze(), frames: 1 })
    }

    /// Puts a text frame in whose payload is shared with others; never waits. What stands before and after it is
    /// this frame's own.
    ///
    /// # Errors
    /// As of [`Outbox::push`].
    pub fn push_around(&self, before: &[u8], payload: Bytes, after: Bytes) -> Result<(), Closed> {
        let size = before.len() + payload.len() + after.len();
        let mut first = BytesMut::with_capacity(before.len() + socket::HEADER_BYTES_MAX);
        socket::put_text_header(&mut first, size);
        first.extend_from_slice(before);
        self.put(1, [first.freeze(), payload, after])
    }

    /// Puts a websocket frame in that is no message, such as a pong, with its header; never waits.
    ///
    /// # Errors
    /// As of [`Outbox::push`].
    pub fn push_control(&self, bytes: Bytes) -> Result<(), Closed> {
        self.push_chunk(Chunk { bytes, frames: 1 })
    }

    pub(super) fn push_chunk(&self, chunk: Chunk) -> Result<(), Closed> {
        self.put(chunk.frames, [chunk.bytes])
    }

    /// So many whole frames, in parts that nothing may come between.
    fn put<const N: usize>(&self, frames: usize, parts: [Bytes; N]) -> Result<(), Closed> {
        let mut state = self.state.lock();
        if let Some(closed) = state.closed {
            return Err(closed);
        }
        let bytes = state.bytes + parts.iter().map(Bytes::len).sum::<usize>();
        let frames = state.frames + frames;
        let fits = frames <= self.frames_max && bytes <= self.bytes_max;
        let mut watcher = None;
        let outcome = if fits || state.chunks.is_empty() {
            (state.bytes, state.frames) = (bytes, frames);
            state.chunks.extend(parts);
            Ok(())
        } else {
            state.closed = Some(Closed::Slow { first: false });
            state.chunks = VecDeque::new();
            (state.bytes, state.frames) = (0, 0);
            watcher = state.watcher.take();
            state.waiting.drain(..).for_each(Waker::wake);
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
        state.waiting.drain(..).for_each(Waker::wake);
        let writer = state.writer.take();
        drop(state);
        if let Some(writer) = writer {
            writer.wake();
        }
    }

    /// Moves everything that waits into `into`, which must be empty: whole websocket frames in order, at
    /// least one. For one taker at a time; cancel safe.
    ///
    /// # Errors
    /// [`Closed`] when nothing is left and nothing more comes.
    pub async fn take(&self, into: &mut VecDeque<Bytes>) -> Result<(), Closed> {
        poll_fn(|cx| self.poll_take(cx, into)).await
    }

    /// Resolves when the reader has been found too slow. For one watcher at a time; cancel safe.
    pub async fn too_slow(&self) {
        poll_fn(|cx| {
            let mut state = self.state.lock();
            if matches!(state.closed, Some(Closed::Slow { .. })) {
                return Poll::Ready(());
            }
            remember(&mut state.watcher, cx);
            Poll::Pending
        })
        .await;
    }

    /// Resolves when nothing waits, because the writer took everything: whoever has much to say says it in
    /// pieces. Cancel safe.
    ///
    /// # Errors
    /// [`Closed`].
    pub async fn emptied(&self) -> Result<(), Closed> {
        poll_fn(|cx| {
            let mut state = self.state.lock();
            if let Some(closed) = state.closed {
                return Poll::Ready(Err(closed));
            }
            if state.chunks.is_empty() {
                return Poll::Ready(Ok(()));
            }
            if !state.waiting.iter().any(|waker| waker.will_wake(cx.waker())) {
                state.waiting.push(cx.waker().clone());
            }
            Poll::Pending
        })
        .await
    }

    fn poll_take(&self, cx: &mut Context<'_>, into: &mut VecDeque<Bytes>) -> Poll<Result<(), Closed>> {
        let mut state = self.state.lock();
        if !state.chunks.is_empty() {
            (state.bytes, state.frames) = (0, 0);
            // The empty one stays here, so that nothing is allocated while a socket keeps up.
            into.shrink_to(CHUNKS_KEPT);
            std::mem::swap(&mut state.chunks, into);
            state.waiting.drain(..).for_each(Waker::wake);
            return Poll::Ready(Ok(()));
        }
        if let Some(closed) = state.closed {
            return Poll::Ready(Err(closed));
        }
        remember(&mut state.writer, cx);
        Poll::Pending
    }

    /// What waits, as frames.
    #[cfg(test)]
    pub(crate) async fn frames(&self) -> Result<Vec<Frame>, Closed> {
        let mut chunks = VecDeque::new();
        self.take(&mut chunks).await?;
        let bytes: Vec<u8> = chunks.into_iter().flatten().collect();
        let (mut rest, mut frames) = (&bytes[..], Vec::new());
        while let [opcode, size, ..] = *rest {
            let (header, size) = match size {
                126 => (4, usize::from(u16::from_be_bytes([rest[2], rest[3]]))),
                127 => (10, u64::from_be_bytes(rest[2..10].try_into().unwrap()) as usize),
                size => (2, size.into()),
            };
            let payload = Bytes::copy_from_slice(&rest[header..header + size]);
            frames.push(if opcode == 0x81 { Frame::Text(payload) } else { Frame::Binary(payload) });
            rest = &rest[header + size..];
        }
        Ok(frames)
    }
}

fn remember(place: &mut Option<Waker>, cx: &Context<'_>) {
    if !place.as_ref().is_some_and(|waker| waker.will_wake(cx.waker())) {
        *place = Some(cx.waker().clone());
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
        let outbox = Outbox::new(100, 14);
        outbox.push(&frame(50)).unwrap();
        assert_eq!(outbox.frames().await.unwrap().len(), 1);
        outbox.push(&frame(6)).unwrap();
        outbox.push(&frame(4)).unwrap();
        assert_eq!(outbox.push(&frame(1)), Err(Closed::Slow { first: true }));
        assert_eq!(outbox.push(&frame(1)), Err(Closed::Slow { first: false }));
        outbox.too_slow().await;
        assert!(outbox.frames().await.is_err());
    }

    #[tokio::test]
    async fn what_was_in_it_when_it_closed_is_still_taken() {
        let outbox = Outbox::new(2, 10);
        outbox.push(&frame(1)).unwrap();
        outbox.close();
        assert_eq!(outbox.push(&frame(1)), Err(Closed::Done));
        assert_eq!(outbox.frames().await.unwrap().len(), 1);
        assert_eq!(outbox.frames().await, Err(Closed::Done));
    }
}
