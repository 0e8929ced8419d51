//! The outbox of one socket: a queue of encoded frames, bounded in frames and in bytes.
use super::SocketWriter;
use crate::wire::{Frame, socket};
use bytes::{Buf, Bytes, BytesMut};
use parking_lot::{Mutex, MutexGuard};
use std::{
    collections::VecDeque,
    future::poll_fn,
    sync::{Arc, OnceLock, Weak},
    task::{Context, Poll, Waker},
};

/// Capacity that an empty queue keeps. More would hold the memory of a past burst.
const CHUNKS_KEPT: usize = 32;

/// Frames that are enqueued together, with their websocket headers. Clones share the bytes.
#[derive(Clone, Debug)]
pub(super) struct Chunk {
    pub(super) bytes: Bytes,
    pub(super) frames: usize,
}

/// Why an outbox accepts or yields nothing more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Closed {
    /// The subscriber was too slow. The queue was dropped, except the rest of a partly written frame.
    #[error("reader too slow")]
    Slow {
        /// Whether this push closed the outbox.
        first: bool,
    },
    /// Closed by the owner. Frames queued before can still be taken.
    #[error("closed")]
    Done,
}

/// The queue of websocket frames between publishers and the writer of one socket.
///
/// When a frame would not fit, the outbox closes as [`Closed::Slow`]. A single
/// frame larger than the limit fits into an empty outbox.
#[derive(Debug)]
pub struct Outbox {
    frames_max: usize,
    bytes_max: usize,
    socket: OnceLock<Weak<SocketWriter>>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    chunks: VecDeque<Bytes>,
    /// The first chunk is the rest of a partly written frame: no other frame may come before it.
    begun: bool,
    frames: usize,
    bytes: usize,
    /// Bytes that the writer has taken and may not have written yet.
    in_flight: usize,
    /// Bytes of messages that subscribers of this socket buffer; see [`BufferedCharge`].
    buffered: usize,
    closed: Option<Closed>,
    /// The task in [`Outbox::take`]. Set only while the queue is empty and no taken bytes are unwritten.
    writer: Option<Waker>,
    /// The task in [`Outbox::too_slow`]. Apart from `writer`, so that a frame does not wake it.
    watcher: Option<Waker>,
    /// The tasks in [`Outbox::emptied`].
    waiting: Vec<Waker>,
}

impl Outbox {
    /// An empty outbox for at most `frames_max` frames and `bytes_max` bytes.
    #[must_use]
    pub fn new(frames_max: usize, bytes_max: usize) -> Self {
        Self { frames_max, bytes_max, socket: OnceLock::new(), state: Mutex::default() }
    }

    /// Sets the socket for inline writes. The taker must write everything it took to `socket` before it takes more.
    pub fn attach(&self, socket: &Arc<SocketWriter>) {
        let _only_the_first = self.socket.set(Arc::downgrade(socket));
    }

    /// Enqueues a frame. Never waits.
    ///
    /// # Errors
    /// [`Closed`] if it was closed before, or is closed by this push because the subscriber is too slow.
    pub fn push(&self, frame: &Frame) -> Result<(), Closed> {
        let mut bytes = BytesMut::with_capacity(frame.size() + socket::HEADER_BYTES_MAX);
        socket::put_frame(&mut bytes, frame);
        self.push_chunk(Chunk { bytes: bytes.freeze(), frames: 1 })
    }

    /// Enqueues a text frame whose payload is shared with other outboxes; `before` and `after` belong to this frame
    /// alone. Never waits.
    ///
    /// # Errors
    /// Those of [`Outbox::push`].
    pub fn push_around(&self, before: &[u8], payload: Bytes, after: Bytes) -> Result<(), Closed> {
        let size = before.len() + payload.len() + after.len();
        let mut first = BytesMut::with_capacity(before.len() + socket::HEADER_BYTES_MAX);
        socket::put_text_header(&mut first, size);
        first.extend_from_slice(before);
        self.put(1, [first.freeze(), payload, after])
    }

    /// Enqueues a websocket control frame, such as a pong, with its header. Never waits.
    ///
    /// # Errors
    /// Those of [`Outbox::push`].
    pub fn push_control(&self, bytes: Bytes) -> Result<(), Closed> {
        self.push_chunk(Chunk { bytes, frames: 1 })
    }

    pub(super) fn push_chunk(&self, chunk: Chunk) -> Result<(), Closed> {
        self.put(chunk.frames, [chunk.bytes])
    }

    /// As [`Outbox::push_chunk`], but if nothing is queued or in flight, writes to the socket inline and enqueues
    /// only the rest.
    pub(super) fn write_chunk(&self, mut chunk: Chunk) -> Result<(), Closed> {
        // The lock is held during the write, which does not block: another publisher cannot write between the
        // two halves of a frame. A parked writer (`writer` is set) proves that no bytes are in flight.
        let mut state = self.state.lock();
        if state.closed.is_none()
            && state.chunks.is_empty()
            && state.writer.is_some()
            && let Some(socket) = self.socket.get().and_then(Weak::upgrade)
        {
            // The writer meets the same error at its next write and ends the connection.
            let written = socket.try_write(&chunk.bytes).unwrap_or(0);
            if written == chunk.bytes.len() {
                return Ok(());
            }
            chunk.bytes.advance(written);
            state.begun = written > 0;
        }
        self.put_into(state, chunk.frames, [chunk.bytes])
    }

    /// Enqueues `frames` whole frames in `parts` that no other frame may separate.
    fn put<const N: usize>(&self, frames: usize, parts: [Bytes; N]) -> Result<(), Closed> {
        self.put_into(self.state.lock(), frames, parts)
    }

    fn put_into<const N: usize>(
        &self,
        mut state: MutexGuard<'_, State>,
        frames: usize,
        parts: [Bytes; N],
    ) -> Result<(), Closed> {
        if let Some(closed) = state.closed {
            return Err(closed);
        }
        let bytes = state.bytes + parts.iter().map(Bytes::len).sum::<usize>();
        let frames = state.frames + frames;
        let fits = frames <= self.frames_max && bytes <= self.bytes_max;
        let mut watcher = None;
        // An empty queue takes a frame of any size, else one larger than `bytes_max` could never be sent.
        let outcome = if fits || state.chunks.is_empty() {
            (state.bytes, state.frames) = (bytes, frames);
            state.chunks.extend(parts);
            Ok(())
        } else {
            watcher = state.disconnect_slow();
            Err(Closed::Slow { first: true })
        };
        // Wakes after the lock is released, so that a woken task does not block on it.
        let writer = state.writer.take();
        drop(state);
        writer.into_iter().chain(watcher).for_each(Waker::wake);
        outcome
    }

    /// Bytes that wait, those that the writer may not have written yet, and those that subscribers hold back.
    #[must_use]
    pub fn held(&self) -> usize {
        let state = self.state.lock();
        state.bytes + state.in_flight + state.buffered
    }

    /// Closes it as [`Closed::Slow`] and frees the queue.
    pub fn close_as_slow(&self) {
        let mut state = self.state.lock();
        if matches!(state.closed, Some(Closed::Slow { .. })) {
            return;
        }
        let watcher = state.disconnect_slow();
        let writer = state.writer.take();
        drop(state);
        writer.into_iter().chain(watcher).for_each(Waker::wake);
    }

    /// Closes it for publishers. Queued frames can still be taken.
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

    /// Moves the whole queue into `into`, which must be empty: at least one whole websocket frame, in order. Only
    /// one task may take at a time. Cancel safe.
    ///
    /// # Errors
    /// [`Closed`] if the queue is empty and closed.
    pub async fn take(&self, into: &mut VecDeque<Bytes>) -> Result<(), Closed> {
        poll_fn(|cx| self.poll_take(cx, into)).await
    }

    /// Resolves when the outbox is closed as [`Closed::Slow`]. Only one task may wait at a time. Cancel safe.
    pub async fn too_slow(&self) {
        poll_fn(|cx| {
            let mut state = self.state.lock();
            if matches!(state.closed, Some(Closed::Slow { .. })) {
                return Poll::Ready(());
            }
            register(&mut state.watcher, cx);
            Poll::Pending
        })
        .await;
    }

    /// Resolves when the writer has taken the whole queue. Producers of large replays wait for it between two
    /// pieces, so that a replay cannot fill the outbox. Cancel safe.
    ///
    /// # Errors
    /// [`Closed`] if the outbox is closed.
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
            state.in_flight = state.bytes;
            (state.begun, state.bytes, state.frames) = (false, 0, 0);
            // The queues are swapped, so that a socket that keeps up causes no allocation.
            into.shrink_to(CHUNKS_KEPT);
            std::mem::swap(&mut state.chunks, into);
            state.waiting.drain(..).for_each(Waker::wake);
            return Poll::Ready(Ok(()));
        }
        // The taker calls again only after it has written everything.
        state.in_flight = 0;
        if let Some(closed) = state.closed {
            return Poll::Ready(Err(closed));
        }
        register(&mut state.writer, cx);
        Poll::Pending
    }

    /// The queued frames, decoded.
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

/// The bytes of messages that a subscriber buffers, charged to the outbox of its socket. Dropping it frees them.
///
/// All subscriptions of a socket share the limit of its outbox, so many channels buffer no more than one.
#[derive(Debug)]
pub(super) struct BufferedCharge {
    outbox: Arc<Outbox>,
    bytes: usize,
}

impl BufferedCharge {
    /// An empty charge.
    pub(super) fn new(outbox: Arc<Outbox>) -> Self {
        Self { outbox, bytes: 0 }
    }

    /// Charges `bytes` more. Returns false, and charges nothing, if the outbox is closed or they do not fit.
    pub(super) fn grow(&mut self, bytes: usize) -> bool {
        let mut state = self.outbox.state.lock();
        let fits = state.bytes + state.buffered + bytes <= self.outbox.bytes_max;
        if state.closed.is_some() || !fits {
            return false;
        }
        state.buffered += bytes;
        self.bytes += bytes;
        true
    }
}

impl Drop for BufferedCharge {
    fn drop(&mut self) {
        self.outbox.state.lock().buffered -= self.bytes;
    }
}

impl State {
    /// Disconnects a slow subscriber: the connection sees it in [`Outbox::too_slow`] and closes the socket. Frees the
    /// queue, except the rest of a partly written frame: without it the client would read the next
    /// bytes, such as the close frame, as part of that frame. Returns the watcher, to be woken after unlocking.
    fn disconnect_slow(&mut self) -> Option<Waker> {
        self.closed = Some(Closed::Slow { first: false });
        let kept = usize::from(self.begun);
        self.chunks.truncate(kept);
        self.chunks.shrink_to(kept);
        (self.bytes, self.frames) = (0, 0);
        self.waiting.drain(..).for_each(Waker::wake);
        self.watcher.take()
    }
}

fn register(place: &mut Option<Waker>, cx: &Context<'_>) {
    if !place.as_ref().is_some_and(|waker| waker.will_wake(cx.waker())) {
        *place = Some(cx.waker().clone());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use prometheus_client::metrics::counter::Counter;
    use tokio::{
        io::AsyncReadExt,
        net::{TcpListener, TcpStream},
    };

    fn frame(size: usize) -> Frame {
        Frame::Text(vec![b'x'; size].into())
    }

    #[tokio::test]
    async fn bytes_are_bounded_but_one_large_frame_fits() {
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

    /// An outbox on a real socket, and the other end of it.
    async fn attached(frames_max: usize) -> (Arc<Outbox>, Arc<SocketWriter>, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (_, socket) = listener.accept().await.unwrap().0.into_split();
        let socket = Arc::new(SocketWriter::new(socket, Counter::default()));
        let outbox = Arc::new(Outbox::new(frames_max, usize::MAX));
        outbox.attach(&socket);
        (outbox, socket, client)
    }

    /// The writer task of a socket.
    async fn serve(outbox: &Outbox, socket: Arc<SocketWriter>) -> Closed {
        let mut chunks = VecDeque::new();
        loop {
            socket.write_all(&mut chunks).await.unwrap();
            if let Err(closed) = outbox.take(&mut chunks).await {
                return closed;
            }
        }
    }

    fn chunk(bytes: impl Into<Bytes>) -> Chunk {
        Chunk { bytes: bytes.into(), frames: 1 }
    }

    #[tokio::test]
    async fn frame_is_written_inline_when_nothing_is_queued() {
        let (outbox, socket, mut client) = attached(10).await;
        outbox.write_chunk(chunk("a")).unwrap();
        assert_eq!(outbox.state.lock().frames, 1, "the writer may have bytes in flight");
        let mut serving = Box::pin(serve(&outbox, socket.clone()));
        assert!(futures_util::poll!(&mut serving).is_pending());
        outbox.write_chunk(chunk("b")).unwrap();
        outbox.push_chunk(chunk("c")).unwrap();
        outbox.write_chunk(chunk("d")).unwrap();
        assert_eq!(outbox.state.lock().frames, 2, "c is queued, and d behind it");
        let mut got = [0; 2];
        client.read_exact(&mut got).await.unwrap();
        assert_eq!(&got, b"ab");
        outbox.close();
        assert_eq!(serving.await, Closed::Done);
        client.read_exact(&mut got).await.unwrap();
        assert_eq!(&got, b"cd");
        assert_eq!(socket.written.get(), 4);
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn inline_and_queued_writes_keep_the_order_of_bytes() {
        let (outbox, socket, mut client) = attached(usize::MAX).await;
        let (frames, publisher) = (6000_u32, outbox.clone());
        // Some sizes fit only in part into the socket's buffer.
        let frame = |n: u32| n.to_be_bytes().repeat(1 + (n as usize).pow(2) % 9001);
        let publish = async move {
            for n in 0..frames {
                let chunk = chunk(frame(n));
                if n % 3 == 0 { publisher.push_chunk(chunk) } else { publisher.write_chunk(chunk) }.unwrap();
                // Pauses now and then, so that the queue is empty with the writer parked or with bytes in flight.
                if n % 5 == 0 {
                    publisher.emptied().await.unwrap();
                }
            }
            publisher.close();
        };
        #[expect(
            clippy::disallowed_methods,
            reason = "waited for below: on another processor than the writer"
        )]
        let publish = tokio::spawn(publish);
        let receive = async {
            for n in 0..frames {
                let mut bytes = vec![0; frame(n).len()];
                client.read_exact(&mut bytes).await.unwrap();
                assert!(bytes == frame(n), "{n}");
            }
        };
        let (publisher, closed, ()) = tokio::join!(publish, serve(&outbox, socket), receive);
        publisher.unwrap();
        assert_eq!(closed, Closed::Done);
    }

    #[tokio::test]
    async fn slow_subscriber_gets_the_rest_of_a_partly_written_frame() {
        let (outbox, socket, mut client) = attached(1).await;
        let mut serving = Box::pin(serve(&outbox, socket));
        assert!(futures_util::poll!(&mut serving).is_pending());
        let (size, mut whole) = (100_003, 0);
        while outbox.write_chunk(chunk(vec![b'x'; size])).is_ok() {
            whole += 1;
        }
        assert!(matches!(outbox.state.lock().closed, Some(Closed::Slow { .. })));
        let receive = async {
            let mut got = Vec::new();
            client.read_to_end(&mut got).await.unwrap();
            got.len()
        };
        let (closed, got) = tokio::join!(serving, receive);
        assert_eq!(closed, Closed::Slow { first: false });
        assert_eq!(got % size, 0, "a frame is cut off after {} bytes", got % size);
        assert!((whole - 1..=whole).contains(&(got / size)), "{got} bytes of {whole} frames");
    }

    #[tokio::test]
    async fn queued_frames_can_be_taken_after_close() {
        let outbox = Outbox::new(2, 10);
        outbox.push(&frame(1)).unwrap();
        outbox.close();
        assert_eq!(outbox.push(&frame(1)), Err(Closed::Done));
        assert_eq!(outbox.frames().await.unwrap().len(), 1);
        assert_eq!(outbox.frames().await, Err(Closed::Done));
    }
}
