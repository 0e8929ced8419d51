//! One websocket connection: reads frames and writes the outbox.
//!
//! Reader, writer and timers of a socket are one task. The reader passes messages to
//! the [`Session`]; the writer drains the outbox, whose frames already have websocket headers,
//! many in one call; neither waits for the other. A read buffer exists only
//! during the read, so an idle socket holds none. The way it ends decides the
//! close code (`docs/spec/realtime-protocol.md` §1.5).
use super::{metrics::CloseCodeLabel, session::Session, shared::Shared};
use crate::{
    hub::{Closed, Outbox, SocketWriter},
    wire::socket::{self, Decoder, Incoming, Violation},
};
use bytes::Bytes;
use std::{
    collections::VecDeque,
    future::poll_fn,
    io::{self, Cursor},
    mem::MaybeUninit,
    pin::{Pin, pin},
    sync::Arc,
    task::{Poll, ready},
    time::Duration,
};
use tokio::{
    io::{AsyncRead, AsyncReadExt, Chain, ReadBuf},
    net::{TcpStream, tcp::OwnedReadHalf},
    time::{Instant, sleep_until, timeout},
};

/// Close code of a slow subscriber: Convoke's own, in the range for applications.
pub(super) const CLOSE_SLOW: u16 = 4008;
/// Close code of a client that exceeds a memory limit.
pub(super) const CLOSE_NO_ROOM: u16 = 1013;
const CLOSE_NORMAL: u16 = 1000;
const CLOSE_RESTART: u16 = 1012;
const CLOSE_ABNORMAL: u16 = 1006;
/// Bytes of one read, on the stack.
const READ_BYTES: usize = 16 << 10;
/// Messages that are handled before the writer runs: far fewer than the replies that fit into an outbox.
const MESSAGES_PER_TURN: u32 = 64;
/// A larger message is read and handled on threads of low priority: on a worker it would delay the messages of others
/// by milliseconds. The payload of a join is never larger.
pub(super) const LARGE_MESSAGE_BYTES: usize = 64 << 10;
/// The timeout of the last frames and the close handshake.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);
/// The same for a slow subscriber.
const SLOW_CLOSE_TIMEOUT: Duration = Duration::from_secs(5);

/// Why a connection ends.
enum Ending {
    /// The server closes it with this code.
    Close(u16),
    /// The client closed it, with this code.
    ByClient(Option<u16>),
    /// The TCP connection ended.
    Broken,
}

/// The bytes of a client: those that arrived with its request, then its socket.
type Input = Chain<Cursor<Box<[u8]>>, OwnedReadHalf>;

/// Serves a socket to its end. `early` holds the bytes that the client sent before the handshake's response. The session
/// is boxed, because a future keeps the space of an argument beside that of the variable that it becomes.
pub(super) async fn serve(
    socket: TcpStream,
    early: Box<[u8]>,
    mut session: Box<Session>,
    outbox: Arc<Outbox>,
    shared: Arc<Shared>,
) {
    let (outbox, shared) = (&*outbox, &*shared);
    let (input, output) = socket.into_split();
    let mut input = AsyncReadExt::chain(Cursor::new(early), input);
    let socket_writer = Arc::new(SocketWriter::new(output, shared.metrics.bytes_out.clone()));
    outbox.attach(&socket_writer);
    let mut unsent = VecDeque::new();
    let stop = shared.stop_token();
    let ending = {
        let reader = pin!(read(&mut input, &mut session, outbox, shared));
        let writer = pin!(write(&socket_writer, outbox, &mut unsent));
        tokio::select! {
            biased;
            () = outbox.too_slow() => Ending::Close(CLOSE_SLOW),
            ending = reader => ending,
            ending = writer => ending,
            () = stop.cancelled() => Ending::Close(CLOSE_RESTART),
        }
    };
    if let Ending::Close(CLOSE_RESTART) = ending {
        session.notify_shutdown();
    }
    let code = match ending {
        Ending::Close(code) => code,
        Ending::ByClient(_) => CLOSE_NORMAL,
        Ending::Broken => CLOSE_ABNORMAL,
    };
    shared.metrics.closed.get_or_create(&CloseCodeLabel { why: code.to_string() }).inc();
    tracing::debug!(conn = %session.id(), code, "websocket ended");
    // The last messages are still published. Presence and subscriptions end now, not after the close handshake,
    // which a client can delay.
    session.flush(Instant::now());
    outbox.close();
    let evicted = session.is_evicted();
    drop(session);
    if evicted {
        // The memory is needed now: the writer's unsent bytes are dropped too.
        return;
    }
    let close = async {
        let last = match ending {
            Ending::Close(CLOSE_SLOW) => socket::close(Some(CLOSE_SLOW), "reader too slow"),
            Ending::Close(code) => socket::close(Some(code), ""),
            Ending::ByClient(code) => socket::close(code, ""),
            Ending::Broken => return Ok(()),
        };
        // Queued frames are written before the close frame.
        let _ = write(&socket_writer, outbox, &mut unsent).await;
        unsent.push_back(last);
        socket_writer.write_all(&mut unsent).await?;
        drop(socket_writer);
        // Unread input would make the kernel send a reset, which can discard the close frame. So it reads on until
        // the client closes too.
        while read_some(&mut input, |_| ()).await?.is_some() {}
        io::Result::Ok(())
    };
    let slow = matches!(ending, Ending::Close(CLOSE_SLOW));
    let _ = timeout(if slow { SLOW_CLOSE_TIMEOUT } else { CLOSE_TIMEOUT }, close).await;
}

async fn read(input: &mut Input, session: &mut Session, outbox: &Outbox, shared: &Shared) -> Ending {
    let idle = shared.config.idle_timeout;
    let wake = session.wake();
    // The throttle: the socket is not read before this time.
    let mut resume = None;
    let mut read_at = Instant::now();
    let mut turn = 0;
    let mut decoder = Decoder::new(shared.config.message_bytes_max);
    let mut messages = Vec::new();
    let mut timer = pin!(sleep_until(read_at + idle));
    loop {
        let due = session.due().into_iter().chain(resume).fold(read_at + idle, Instant::min);
        // A timer that fires early costs one wake-up. Moving it for every message would cost more.
        if due < timer.deadline() {
            timer.as_mut().reset(due);
        }
        tokio::select! {
            biased;
            read = read_some(input, |bytes| decode(&mut decoder, bytes, &mut messages)), if resume.is_none() => {
                let Ok(Some(decoded)) = read else { return Ending::Broken };
                if session.becomes_large(decoder.expected()) {
                    // Pending once, so that this future moves before it reads the rest of the message.
                    tokio::task::yield_now().await;
                }
                read_at = Instant::now();
                let pause = session.pace(read_at, messages.len() as u64);
                resume = (!pause.is_zero()).then(|| read_at + pause);
                for message in messages.drain(..) {
                    if let Some(ending) = handle(message, session, outbox).await {
                        return ending;
                    }
                    if let Some(code) = session.closing() {
                        return Ending::Close(code);
                    }
                    turn += 1;
                    // Yields so that the writer can drain the outbox.
                    if turn >= MESSAGES_PER_TURN {
                        turn = 0;
                        session.flush(read_at);
                        tokio::task::yield_now().await;
                    }
                }
                session.flush(read_at);
                // Frees the buffer: an idle socket holds no memory.
                messages = Vec::new();
                if !session.holds_partial(decoder.held()) {
                    return Ending::Close(CLOSE_NO_ROOM);
                }
                if let Err(violation) = decoded {
                    tracing::debug!(conn = %session.id(), %violation, "websocket protocol violation");
                    return Ending::Close(violation.code());
                }
                session.set_large(decoder.expected());
            }
            () = wake.notified() => session.end_marked().await,
            answer = session.next_check() => {
                session.check_finished(answer).await;
                session.flush(read_at);
                session.set_large(decoder.expected());
            }
            () = timer.as_mut() => {
                let now = Instant::now();
                if now >= read_at + idle {
                    return Ending::Close(CLOSE_NORMAL);
                }
                if resume.is_some_and(|resume| resume <= now) {
                    resume = None;
                    read_at = now;
                }
                session.tick(now).await;
                timer.as_mut().reset(session.due().into_iter().chain(resume).fold(read_at + idle, Instant::min));
            }
        }
        if let Some(code) = session.closing() {
            return Ending::Close(code);
        }
    }
}

/// Decodes every complete message. Messages before a violation are still valid.
fn decode(decoder: &mut Decoder, mut bytes: &[u8], messages: &mut Vec<Incoming>) -> Result<(), Violation> {
    while let Some(message) = decoder.next(&mut bytes)? {
        messages.push(message);
    }
    Ok(())
}

async fn handle(message: Incoming, session: &mut Session, outbox: &Outbox) -> Option<Ending> {
    if let Incoming::Text(bytes) | Incoming::Binary(bytes) = &message
        && bytes.len() > LARGE_MESSAGE_BYTES
    {
        session.count_large();
    }
    match message {
        Incoming::Text(text) => session.text(text).await,
        Incoming::Binary(bytes) => session.binary(bytes).await,
        Incoming::Ping(payload) => {
            // A closed outbox means that the connection is ending.
            let _closed = outbox.push_control(socket::pong(&payload));
        }
        Incoming::Pong => session.on_pong(),
        Incoming::Close(code) => return Some(Ending::ByClient(code)),
    }
    None
}

/// Passes the next bytes to `look` and returns its result; `None` at the end of the stream. Cancel safe.
async fn read_some<T>(input: &mut Input, mut consume: impl FnMut(&[u8]) -> T) -> io::Result<Option<T>> {
    poll_fn(|cx| {
        let mut space = [MaybeUninit::uninit(); READ_BYTES];
        let mut buffer = ReadBuf::uninit(&mut space);
        ready!(Pin::new(&mut *input).poll_read(cx, &mut buffer))?;
        let bytes = buffer.filled();
        Poll::Ready(Ok((!bytes.is_empty()).then(|| consume(bytes))))
    })
    .await
}

/// Writes the outbox until it is closed and empty, or the connection breaks. Cancel safe: unwritten bytes stay in
/// `unsent`.
async fn write(socket_writer: &SocketWriter, outbox: &Outbox, unsent: &mut VecDeque<Bytes>) -> Ending {
    loop {
        if socket_writer.write_all(unsent).await.is_err() {
            return Ending::Broken;
        }
        match outbox.take(unsent).await {
            Ok(()) => {}
            Err(Closed::Slow { .. }) => return Ending::Close(CLOSE_SLOW),
            Err(Closed::Done) => return Ending::Broken,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Most of the memory of an idle socket. A new state of the future is rarely needed: box it then.
    const FUTURE_BYTES_MAX: usize = 5 << 10;

    fn bytes_of_future<A, B, C, D, E, F>(_: impl Fn(A, B, C, D, E) -> F) -> usize {
        size_of::<F>()
    }

    #[test]
    fn future_of_a_connection_is_small() {
        let bytes = bytes_of_future(serve);
        assert!(bytes <= FUTURE_BYTES_MAX, "{bytes}");
    }
}
