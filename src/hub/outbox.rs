//! What waits to be written to one socket: bounded in frames and in bytes.
use super::Line;
use crate::wire::{Frame, socket};
use bytes::{Buf, Bytes, BytesMut};
use parking_lot::{Mutex, MutexGuard};
use std::{
    collections::VecDeque,
    future::poll_fn,
    sync::{Arc, OnceLock, Weak},
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
    /// The reader was too slow; what waited is thrown away, but for the rest of a frame that has begun.
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
    line: OnceLock<Weak<Line>>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    chunks: VecDeque<Bytes>,
    /// The first of them is the rest of a frame that is partly written: nothing else may come after that part.
    begun: bool,
    frames: usize,
    bytes: usize,
    closed: Option<Closed>,
    /// Of [`Outbox::take`]: there only while it waits, with nothing in its hands and nothing in here.
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
        Self { frames_max, bytes_max, line: OnceLock::new(), state: Mutex::default() }
    }

    /// Says where it is emptied to: whoever takes from it writes everything to `line` before it takes more.
    pub fn attach(&self, line: &Arc<Line>) {
        let _the_first_stays = self.line.set(Arc::downgrade(line));
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

    /// As [`Outbox::push_chunk`], but where nothing waits, the bytes go to the line at once; what it does not take
    /// now waits.
    pub(super) fn write_chunk(&self, mut chunk: Chunk) -> Result<(), Closed> {
        let mut state = self.state.lock();
        if state.closed.is_none()
            && state.chunks.is_empty()
            && state.writer.is_some()
            && let Some(line) = self.line.get().and_then(Weak::upgrade)
        {
            // An error is found again by the writer, which ends the connection.
            let written = line.try_write(&chunk.bytes).unwrap_or(0);
            if written == chunk.bytes.len() {
                return Ok(());
            }
            chunk.bytes.advance(written);
            state.begun = written > 0;
        }
        self.put_into(state, chunk.frames, [chunk.bytes])
    }

    /// So many whole frames, in parts that nothing may come between.
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
        let outcome = if fits || state.chunks.is_empty() {
            (state.bytes, state.frames) = (bytes, frames);
            state.chunks.extend(parts);
            Ok(())
        } else {
            state.closed = Some(Closed::Slow { first: false });
            let kept = usize::from(state.begun);
            state.chunks.truncate(kept);
            state.chunks.shrink_to(kept);
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
            (state.begun, state.bytes, state.frames) = (false, 0, 0);
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
    use prometheus_client::metrics::counter::Counter;
    use tokio::{
        io::AsyncReadExt,
        net::{TcpListener, TcpStream},
    };

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

    /// An outbox on a real socket, and the other end of it.
    async fn attached(frames_max: usize) -> (Arc<Outbox>, Arc<Line>, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (_, socket) = listener.accept().await.unwrap().0.into_split();
        let line = Arc::new(Line::new(socket, Counter::default()));
        let outbox = Arc::new(Outbox::new(frames_max, usize::MAX));
        outbox.attach(&line);
        (outbox, line, client)
    }

    /// What the task of a socket does.
    async fn serve(outbox: &Outbox, line: Arc<Line>) -> Closed {
        let mut chunks = VecDeque::new();
        loop {
            line.write_all(&mut chunks).await.unwrap();
            if let Err(closed) = outbox.take(&mut chunks).await {
                return closed;
            }
        }
    }

    fn chunk(bytes: impl Into<Bytes>) -> Chunk {
        Chunk { bytes: bytes.into(), frames: 1 }
    }

    #[tokio::test]
    async fn what_nothing_waits_before_is_written_without_the_sockets_own_task() {
        let (outbox, line, mut client) = attached(10).await;
        outbox.write_chunk(chunk("a")).unwrap();
        assert_eq!(outbox.state.lock().frames, 1, "nobody knows what the writer has in its hands");
        let mut serving = Box::pin(serve(&outbox, line.clone()));
        assert!(futures_util::poll!(&mut serving).is_pending());
        outbox.write_chunk(chunk("b")).unwrap();
        outbox.push_chunk(chunk("c")).unwrap();
        outbox.write_chunk(chunk("d")).unwrap();
        assert_eq!(outbox.state.lock().frames, 2, "c waits, and d behind it");
        let mut got = [0; 2];
        client.read_exact(&mut got).await.unwrap();
        assert_eq!(&got, b"ab");
        outbox.close();
        assert_eq!(serving.await, Closed::Done);
        client.read_exact(&mut got).await.unwrap();
        assert_eq!(&got, b"cd");
        assert_eq!(line.written.get(), 4);
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn whoever_writes_every_byte_comes_once_and_in_order() {
        let (outbox, line, mut client) = attached(usize::MAX).await;
        let (frames, said) = (6000_u32, outbox.clone());
        // Some fit into what a socket has left only in part.
        let frame = |n: u32| n.to_be_bytes().repeat(1 + (n as usize).pow(2) % 9001);
        let say = async move {
            for n in 0..frames {
                let chunk = chunk(frame(n));
                if n % 3 == 0 { said.push_chunk(chunk) } else { said.write_chunk(chunk) }.unwrap();
                // Mostly nothing waits, while the writer has everything in its hands or nothing.
                if n % 5 == 0 {
                    said.emptied().await.unwrap();
                }
            }
            said.close();
        };
        #[expect(
            clippy::disallowed_methods,
            reason = "waited for below: on another processor than the writer"
        )]
        let say = tokio::spawn(say);
        let hear = async {
            for n in 0..frames {
                let mut bytes = vec![0; frame(n).len()];
                client.read_exact(&mut bytes).await.unwrap();
                assert!(bytes == frame(n), "{n}");
            }
        };
        let (said, closed, ()) = tokio::join!(say, serve(&outbox, line), hear);
        said.unwrap();
        assert_eq!(closed, Closed::Done);
    }

    #[tokio::test]
    async fn a_reader_found_too_slow_still_gets_the_rest_of_the_frame_that_has_begun() {
        let (outbox, line, mut client) = attached(1).await;
        let mut serving = Box::pin(serve(&outbox, line));
        assert!(futures_util::poll!(&mut serving).is_pending());
        let (size, mut whole) = (100_003, 0);
        while outbox.write_chunk(chunk(vec![b'x'; size])).is_ok() {
            whole += 1;
        }
        assert!(matches!(outbox.state.lock().closed, Some(Closed::Slow { .. })));
        let hear = async {
            let mut got = Vec::new();
            client.read_to_end(&mut got).await.unwrap();
            got.len()
        };
        let (closed, got) = tokio::join!(serving, hear);
        assert_eq!(closed, Closed::Slow { first: false });
        assert_eq!(got % size, 0, "a frame is cut off after {} bytes", got % size);
        assert!((whole - 1..=whole).contains(&(got / size)), "{got} bytes of {whole} frames");
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
