//! One websocket: the only place that knows the websocket library.
//!
//! Reader, writer and timers of a socket are one task. The reader gives messages to
//! the [`Session`]; the writer empties the outbox, many frames a flush; neither waits
//! for the other. How it ends decides the close code
//! (`reference/realtime-protocol.md` §1.5).
use super::{metrics::Why, session::Session, shared::Shared};
use crate::{
    hub::{Closed, Outbox},
    wire::Frame,
};
use axum::extract::ws::{CloseFrame, Message, Utf8Bytes, WebSocket};
use bytes::Bytes;
use futures_util::{
    SinkExt, StreamExt,
    stream::{SplitSink, SplitStream},
};
use std::{collections::VecDeque, future::poll_fn, pin::pin, time::Duration};
use tokio::time::{Instant, sleep_until, timeout};

/// The reader was too slow; of our own, in the range for applications.
pub(super) const CLOSE_SLOW: u16 = 4008;
const CLOSE_NORMAL: u16 = 1000;
const CLOSE_PROTOCOL: u16 = 1002;
const CLOSE_NOT_TEXT: u16 = 1007;
const CLOSE_TOO_BIG: u16 = 1009;
const CLOSE_RESTART: u16 = 1012;
const CLOSE_ABNORMAL: u16 = 1006;
/// What a read takes at most; a socket keeps this much while it lives.
pub(super) const READ_BUFFER_BYTES: usize = 4 << 10;
/// Frames are written when so many bytes are together, or nothing else waits.
pub(super) const WRITE_BUFFER_BYTES: usize = 32 << 10;
/// Messages that are handled before the writer gets its turn.
const MESSAGES_A_TURN: u32 = 64;
/// How long the last frames and the close handshake may take.
const FAREWELL: Duration = Duration::from_secs(1);

/// How a socket ends.
enum Ending {
    /// With a close frame of ours.
    Close(u16),
    /// The client closed it; the library has answered.
    ByClient,
    /// It broke.
    Gone,
}

/// Serves a socket to its end.
pub(super) async fn serve(socket: WebSocket, mut session: Session, outbox: &Outbox, shared: &Shared) {
    let (mut sink, mut stream) = socket.split();
    let mut unsent = VecDeque::new();
    let stop = shared.stop_token();
    let ending = {
        let reader = pin!(read(&mut stream, &mut session, shared));
        let writer = pin!(write(&mut sink, outbox, &mut unsent));
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
        Ending::ByClient => CLOSE_NORMAL,
        Ending::Gone => CLOSE_ABNORMAL,
    };
    shared.metrics.closed.get_or_create(&Why { why: code.to_string() }).inc();
    tracing::debug!(conn = %session.id(), code, "websocket ends");
    outbox.close();
    // Presence and subscriptions end now, not when the client has answered.
    drop(session);
    let farewell = async {
        if let Ending::Close(code) = ending {
            let _ = write(&mut sink, outbox, &mut unsent).await;
            let reason = Utf8Bytes::from_static(if code == CLOSE_SLOW { "reader too slow" } else { "" });
            sink.send(Message::Close(Some(CloseFrame { code, reason }))).await?;
        }
        // Reading on until the client has closed too keeps the close frame from being reset away.
        if !matches!(ending, Ending::Gone) {
            while let Some(Ok(_)) = stream.next().await {}
        }
        sink.close().await
    };
    let _ = timeout(FAREWELL, farewell).await;
}

async fn read(stream: &mut SplitStream<WebSocket>, session: &mut Session, shared: &Shared) -> Ending {
    let idle = shared.config.idle_timeout;
    let mut heard = Instant::now();
    let mut turn = 0;
    let mut timer = pin!(sleep_until(heard + idle));
    loop {
        let due = session.due().map_or(heard + idle, |due| due.min(heard + idle));
        // A timer that is early only wakes once for nothing; moving it for every message would cost more.
        if due < timer.deadline() {
            timer.as_mut().reset(due);
        }
        tokio::select! {
            biased;
            message = stream.next() => {
                heard = Instant::now();
                match handle(message, session, shared).await {
                    Some(ending) => return ending,
                    None => turn += 1,
                }
            }
            () = timer.as_mut() => {
                let now = Instant::now();
                if now >= heard + idle {
                    return Ending::Close(CLOSE_NORMAL);
                }
                session.tick(now).await;
                timer.as_mut().reset(session.due().map_or(heard + idle, |due| due.min(heard + idle)));
            }
        }
        if let Some(code) = session.closing() {
            return Ending::Close(code);
        }
        if turn >= MESSAGES_A_TURN {
            turn = 0;
            tokio::task::yield_now().await;
        }
    }
}

async fn handle(
    message: Option<Result<Message, axum::Error>>,
    session: &mut Session,
    shared: &Shared,
) -> Option<Ending> {
    let bytes: Bytes = match message {
        None => return Some(Ending::Gone),
        Some(Err(error)) => {
            return Some(broken(&error));
        }
        Some(Ok(Message::Close(_))) => return Some(Ending::ByClient),
        Some(Ok(Message::Ping(_) | Message::Pong(_))) => return None,
        Some(Ok(Message::Text(text))) => {
            let bytes = Bytes::from(text);
            if bytes.len() <= shared.config.message_bytes_max {
                session.text(bytes).await;
                return None;
            }
            bytes
        }
        Some(Ok(Message::Binary(bytes))) => {
            if bytes.len() <= shared.config.message_bytes_max {
                session.binary(bytes).await;
                return None;
            }
            bytes
        }
    };
    tracing::debug!(conn = %session.id(), bytes = bytes.len(), "message too big");
    Some(Ending::Close(CLOSE_TOO_BIG))
}

/// How a socket ends whose stream cannot be read on. The library tells the kind of error only by its text.
fn broken(error: &axum::Error) -> Ending {
    let text = error.to_string();
    match () {
        () if text.contains("too long") => Ending::Close(CLOSE_TOO_BIG),
        () if text.contains("UTF-8") => Ending::Close(CLOSE_NOT_TEXT),
        () if text.contains("without closing handshake") => Ending::Gone,
        () if text.contains("protocol error") => Ending::Close(CLOSE_PROTOCOL),
        () => Ending::Gone,
    }
}

/// Writes what the outbox gives until it is closed and empty, or the socket breaks.
/// Cancel safe: a frame is in `unsent` or with the library.
async fn write(
    sink: &mut SplitSink<WebSocket, Message>,
    outbox: &Outbox,
    unsent: &mut VecDeque<Frame>,
) -> Ending {
    loop {
        while !unsent.is_empty() {
            if poll_fn(|cx| sink.poll_ready_unpin(cx)).await.is_err() {
                return Ending::Gone;
            }
            let Some(message) = unsent.pop_front().and_then(to_message) else { continue };
            if sink.start_send_unpin(message).is_err() {
                return Ending::Gone;
            }
        }
        if sink.flush().await.is_err() {
            return Ending::Gone;
        }
        match outbox.take().await {
            Ok(frames) => *unsent = frames,
            Err(Closed::Slow { .. }) => return Ending::Close(CLOSE_SLOW),
            Err(Closed::Done) => return Ending::Gone,
        }
    }
}

fn to_message(frame: Frame) -> Option<Message> {
    match frame {
        // Frames are made of text, so this never fails.
        Frame::Text(bytes) => Utf8Bytes::try_from(bytes).ok().map(Message::Text),
        Frame::Binary(bytes) => Some(Message::Binary(bytes)),
    }
}
