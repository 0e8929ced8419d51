//! One websocket: reads the bytes of one, and writes what its outbox gives.
//!
//! Reader, writer and timers of a socket are one task. The reader gives messages to
//! the [`Session`]; the writer empties the outbox, whose frames carry their headers
//! already, many in one call; neither waits for the other. A read needs memory only
//! while it is looked at, so a socket that is still keeps none. How it ends decides the
//! close code (`reference/realtime-protocol.md` §1.5).
use super::{metrics::Why, session::Session, shared::Shared};
use crate::{
    hub::{Closed, Line, Outbox},
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

/// The reader was too slow; of our own, in the range for applications.
pub(super) const CLOSE_SLOW: u16 = 4008;
const CLOSE_NORMAL: u16 = 1000;
const CLOSE_RESTART: u16 = 1012;
const CLOSE_ABNORMAL: u16 = 1006;
/// What a read takes at most, on the stack.
const READ_BYTES: usize = 16 << 10;
/// Messages that are handled before the writer gets its turn: many fewer than answers fit into an outbox.
const MESSAGES_A_TURN: u32 = 64;
/// How long the last frames and the close handshake may take.
const FAREWELL: Duration = Duration::from_secs(1);
/// The same for who was too slow already.
const FAREWELL_OF_THE_SLOW: Duration = Duration::from_secs(5);

/// How a socket ends.
enum Ending {
    /// With a close frame of ours.
    Close(u16),
    /// The client closed it, with this code.
    ByClient(Option<u16>),
    /// It broke.
    Gone,
}

/// What a client sends: what came with its request, then its socket.
type Input = Chain<Cursor<Box<[u8]>>, OwnedReadHalf>;

/// Serves a socket to its end. `early` is what the client sent before it had an answer.
pub(super) async fn serve(
    socket: TcpStream,
    early: Box<[u8]>,
    mut session: Session,
    outbox: &Outbox,
    shared: &Shared,
) {
    let (input, output) = socket.into_split();
    let mut input = AsyncReadExt::chain(Cursor::new(early), input);
    let line = Arc::new(Line::new(output, shared.metrics.bytes_out.clone()));
    outbox.attach(&line);
    let mut unsent = VecDeque::new();
    let stop = shared.stop_token();
    let ending = {
        let reader = pin!(read(&mut input, &mut session, outbox, shared));
        let writer = pin!(write(&line, outbox, &mut unsent));
        tokio::select! {
            biased;
            () = outbox.too_slow() => Ending::Close(CLOSE_SLOW),
            ending = reader => ending,
            ending = writer => ending,
            () = stop.cancelled() => Ending::Close(CLOSE_RESTART),
        }
    };
    if let Ending::Close(CLOSE_RESTART) = ending {
        session.say_goodbye();
    }
    let code = match ending {
        Ending::Close(code) => code,
        Ending::ByClient(_) => CLOSE_NORMAL,
        Ending::Gone => CLOSE_ABNORMAL,
    };
    shared.metrics.closed.get_or_create(&Why { why: code.to_string() }).inc();
    tracing::debug!(conn = %session.id(), code, "websocket ends");
    // What the client said last is still passed on, and presence and subscriptions end now, not when the
    // client has answered.
    session.flush(Instant::now());
    outbox.close();
    drop(session);
    let farewell = async {
        let last = match ending {
            Ending::Close(CLOSE_SLOW) => socket::close(Some(CLOSE_SLOW), "reader too slow"),
            Ending::Close(code) => socket::close(Some(code), ""),
            Ending::ByClient(code) => socket::close(code, ""),
            Ending::Gone => return Ok(()),
        };
        // What was said before the end is written before the last frame.
        let _ = write(&line, outbox, &mut unsent).await;
        unsent.push_back(last);
        line.write_all(&mut unsent).await?;
        drop(line);
        // Reading on until the client has closed too keeps the close frame from being reset away.
        while read_some(&mut input, |_| ()).await?.is_some() {}
        io::Result::Ok(())
    };
    let slow = matches!(ending, Ending::Close(CLOSE_SLOW));
    let _ = timeout(if slow { FAREWELL_OF_THE_SLOW } else { FAREWELL }, farewell).await;
}

async fn read(input: &mut Input, session: &mut Session, outbox: &Outbox, shared: &Shared) -> Ending {
    let idle = shared.config.idle_timeout;
    let wake = session.wake();
    // What comes too fast is not read before this time.
    let mut resume = None;
    let mut heard = Instant::now();
    let mut turn = 0;
    let mut decoder = Decoder::new(shared.config.message_bytes_max);
    let mut messages = Vec::new();
    let mut timer = pin!(sleep_until(heard + idle));
    loop {
        let due = session.due().into_iter().chain(resume).fold(heard + idle, Instant::min);
        // A timer that is early only wakes once for nothing; moving it for every message would cost more.
        if due < timer.deadline() {
            timer.as_mut().reset(due);
        }
        tokio::select! {
            biased;
            read = read_some(input, |bytes| decode(&mut decoder, bytes, &mut messages)), if resume.is_none() => {
                let Ok(Some(decoded)) = read else { return Ending::Gone };
                heard = Instant::now();
                let pause = session.pace(heard, messages.len() as u64);
                resume = (!pause.is_zero()).then(|| heard + pause);
                for message in messages.drain(..) {
                    if let Some(ending) = handle(message, session, outbox).await {
                        return ending;
                    }
                    if let Some(code) = session.closing() {
                        return Ending::Close(code);
                    }
                    turn += 1;
                    if turn >= MESSAGES_A_TURN {
                        turn = 0;
                        session.flush(heard);
                        tokio::task::yield_now().await;
                    }
                }
                session.flush(heard);
                // An idle socket keeps nothing.
                messages = Vec::new();
                if let Err(violation) = decoded {
                    tracing::debug!(conn = %session.id(), %violation, "socket cannot be read on");
                    return Ending::Close(violation.code());
                }
            }
            () = wake.notified() => session.cut().await,
            answer = session.next_answer() => {
                session.answered(answer).await;
                session.flush(heard);
            }
            () = timer.as_mut() => {
                let now = Instant::now();
                if now >= heard + idle {
                    return Ending::Close(CLOSE_NORMAL);
                }
                if resume.is_some_and(|resume| resume <= now) {
                    resume = None;
                    heard = now;
                }
                session.tick(now).await;
                timer.as_mut().reset(session.due().into_iter().chain(resume).fold(heard + idle, Instant::min));
            }
        }
        if let Some(code) = session.closing() {
            return Ending::Close(code);
        }
    }
}

/// Every message that is whole now; those before a violation are still good.
fn decode(decoder: &mut Decoder, mut bytes: &[u8], messages: &mut Vec<Incoming>) -> Result<(), Violation> {
    while let Some(message) = decoder.next(&mut bytes)? {
        messages.push(message);
    }
    Ok(())
}

async fn handle(message: Incoming, session: &mut Session, outbox: &Outbox) -> Option<Ending> {
    match message {
        Incoming::Text(text) => session.text(text).await,
        Incoming::Binary(bytes) => session.binary(bytes).await,
        Incoming::Ping(payload) => {
            // A closed outbox means that the socket is going.
            let _closed = outbox.push_control(socket::pong(&payload));
        }
        Incoming::Pong => session.ponged(),
        Incoming::Close(code) => return Some(Ending::ByClient(code)),
    }
    None
}

/// What `look` makes of the next bytes; nothing at the end of the stream. Cancel safe.
async fn read_some<T>(input: &mut Input, mut look: impl FnMut(&[u8]) -> T) -> io::Result<Option<T>> {
    poll_fn(|cx| {
        let mut space = [MaybeUninit::uninit(); READ_BYTES];
        let mut buffer = ReadBuf::uninit(&mut space);
        ready!(Pin::new(&mut *input).poll_read(cx, &mut buffer))?;
        let bytes = buffer.filled();
        Poll::Ready(Ok((!bytes.is_empty()).then(|| look(bytes))))
    })
    .await
}

/// Writes what the outbox gives until it is closed and empty, or the socket breaks.
/// Cancel safe: what is not written is in `unsent`.
async fn write(line: &Line, outbox: &Outbox, unsent: &mut VecDeque<Bytes>) -> Ending {
    loop {
        if line.write_all(unsent).await.is_err() {
            return Ending::Gone;
        }
        match outbox.take(unsent).await {
            Ok(()) => {}
            Err(Closed::Slow { .. }) => return Ending::Close(CLOSE_SLOW),
            Err(Closed::Done) => return Ending::Gone,
        }
    }
}
