//! The actor that owns the socket: it writes the session's frames, reads the server's, and reconnects.
//!
//! One loop waits for commands, frames, timers and tokens. Commands are taken only while few frames wait to be
//! written: a socket with backpressure makes callers wait and delays nothing else.
use super::{
    Builder, Connection, Error, Stats,
    channel_state::{Answer, ChannelState, Push},
    error::one_line,
    session::Session,
    transport::{self, Socket},
};
use crate::wire::{Dropped, Frame, Version, client};
use bytes::Bytes;
use futures_util::{FutureExt, Sink, Stream, future::BoxFuture};
use parking_lot::Mutex;
use std::{
    collections::VecDeque,
    future::{pending, poll_fn},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};
use tokio::{
    sync::{Notify, mpsc, watch},
    time::{Instant, sleep_until, timeout},
};
use tokio_tungstenite::tungstenite::{Message, Utf8Bytes};
use tokio_util::sync::CancellationToken;

/// Queued commands. More make their callers wait.
pub(super) const COMMANDS_MAX: usize = 256;
/// Frames that may wait for the socket before commands are no longer taken.
const OUT_MAX: usize = 256;
/// The timeout for the last frames and the close frame.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);

pub(super) enum Command {
    Join(Box<ChannelState>, Answer),
    Push(Arc<str>, Push),
    Leave(Arc<str>, Answer),
    Token(Option<Arc<str>>, Answer),
}

/// State that the actor shares with the handles.
#[derive(Debug, Default)]
pub(super) struct Shared {
    /// Notified when a handle is dropped.
    pub(super) dropped: Notify,
    pub(super) stats: Mutex<Stats>,
}

pub(super) struct Actor {
    pub(super) settings: Builder,
    pub(super) session: Session,
    pub(super) commands: mpsc::Receiver<Command>,
    pub(super) shared: Arc<Shared>,
    pub(super) connection: watch::Sender<Connection>,
}

/// The state of the socket.
enum Phase {
    /// No channel needs a socket.
    Idle,
    Connecting(BoxFuture<'static, (Token, Result<Box<Socket>, Error>)>),
    Open(Box<Socket>),
    Pausing(Instant),
}

enum Progress {
    Connected(Token, Result<Box<Socket>, Error>),
    Message(Message),
    Lost(String),
    PauseOver,
}

/// The result of a token source; `None` if there is none.
type Token = Option<Result<Option<String>, String>>;

impl Actor {
    pub(super) async fn run(mut self, stop: CancellationToken) -> anyhow::Result<()> {
        let mut phase = Phase::Idle;
        let mut renewal: Option<BoxFuture<'static, Token>> = None;
        let mut failures = 0;
        let mut unused_since: Option<Instant> = None;
        loop {
            if self.session.is_empty() {
                unused_since.get_or_insert_with(Instant::now);
            } else {
                unused_since = None;
                if matches!(phase, Phase::Idle) {
                    self.connection.send_replace(Connection::Connecting);
                    phase = Phase::Connecting(self.connect());
                }
            }
            // An unused socket is kept for two heartbeats: a program that replaces its channels does not reconnect.
            let linger = unused_since.map(|since| since + self.settings.heartbeat * 2);
            let due = self.session.due();
            // Backpressure: while the socket lags, commands stay in their bounded queue.
            let room = self.session.out().len() < OUT_MAX;
            tokio::select! {
                () = stop.cancelled() => break,
                () = self.shared.dropped.notified() => self.session.sweep(),
                () = until(due) => {
                    if let Err(error) = self.session.tick(Instant::now()) {
                        phase = self.lost(error, &mut failures);
                    }
                }
                progress = phase.progress(self.session.out()) => match progress {
                    Progress::Connected(token, Ok(socket)) => {
                        self.apply_token(token);
                        self.shared.stats.lock().connects += 1;
                        self.connection.send_replace(Connection::Open);
                        phase = Phase::Open(socket);
                        self.session.opened(Instant::now());
                    }
                    Progress::Connected(token, Err(error)) => {
                        self.apply_token(token);
                        phase = self.lost(error, &mut failures);
                    }
                    Progress::Message(message) => {
                        let before = self.session.garbage();
                        if self.message(message) {
                            renewal = renewal.or_else(|| self.request_token());
                        }
                        // Only a valid frame resets the backoff: a server that accepts and then sends garbage is not retried quickly.
                        if self.session.garbage() == before {
                            failures = 0;
                        }
                    }
                    Progress::Lost(why) => phase = self.lost(Error::Lost { why }, &mut failures),
                    Progress::PauseOver => phase = Phase::Idle,
                },
                token = next_token(&mut renewal) => {
                    renewal = None;
                    self.apply_token(token);
                }
                command = self.commands.recv(), if room => match command {
                    Some(command) => self.command(command),
                    None => break,
                },
                () = until(linger), if !matches!(phase, Phase::Idle) => {
                    flush_and_close(&mut phase, self.session.out()).await;
                    self.connection.send_replace(Connection::Idle);
                    phase = Phase::Idle;
                    self.session.lost(&Error::Lost { why: "connection unused".into() }, Instant::now());
                }
            }
        }
        self.session.close();
        self.connection.send_replace(Connection::Closed);
        flush_and_close(&mut phase, self.session.out()).await;
        Ok(())
    }

    fn command(&mut self, command: Command) {
        let now = Instant::now();
        let (answer, outcome) = match command {
            Command::Join(channel, answer) => {
                // Channels dropped before this command free their topics first.
                self.session.sweep();
                (answer, self.session.add(*channel, now))
            }
            Command::Push(topic, push) => return self.session.push(&topic, push, now),
            Command::Leave(topic, answer) => {
                self.session.leave(&topic);
                (answer, Ok(()))
            }
            Command::Token(token, answer) => {
                self.session.set_token(token);
                (answer, Ok(()))
            }
        };
        // The caller may have stopped waiting.
        let _gone = answer.send(outcome);
    }

    /// Handles a message. Returns true if a fresh token should be requested.
    fn message(&mut self, message: Message) -> bool {
        let version = self.settings.version;
        let (size, frame) = match message {
            Message::Text(text) => (text.len(), client::read_text(version, &Bytes::from(text))),
            Message::Binary(bytes) if version == Version::V2 => (bytes.len(), client::read_binary(&bytes)),
            Message::Binary(bytes) => (bytes.len(), Err(Dropped::UnknownKind(bytes.first().copied()))),
            // The websocket library answers pings itself. A close frame ends the stream.
            _ => return false,
        };
        let fresh = match frame {
            Ok(frame) => self.session.frame(frame, Instant::now()),
            Err(why) => {
                tracing::debug!(%why, "server frame dropped");
                self.session.count_garbage();
                false
            }
        };
        let mut stats = self.shared.stats.lock();
        stats.frames += 1;
        stats.bytes += size as u64;
        stats.garbage = self.session.garbage();
        fresh
    }

    fn lost(&mut self, error: Error, failures: &mut u32) -> Phase {
        let now = Instant::now();
        let wait = self.settings.backoff.wait(*failures, rand::random());
        *failures = failures.saturating_add(1);
        tracing::debug!(%error, ?wait, "client not connected");
        self.session.lost(&error, now);
        self.connection.send_replace(Connection::Waiting { error, wait });
        Phase::Pausing(now + wait)
    }

    fn connect(&self) -> BoxFuture<'static, (Token, Result<Box<Socket>, Error>)> {
        let settings = self.settings.clone();
        let token = self.request_token();
        Box::pin(async move {
            let token = match token {
                Some(token) => token.await,
                None => None,
            };
            let Builder { endpoint, key, params, version, .. } = &settings;
            let url = endpoint.socket(key, params, *version);
            let (max, dial) = (settings.message_bytes_max, settings.dial.as_ref());
            (token, transport::connect(endpoint, url.as_str(), max, dial, settings.timeout).await)
        })
    }

    fn request_token(&self) -> Option<BoxFuture<'static, Token>> {
        let (source, within) = (self.settings.source.as_ref()?, self.settings.timeout);
        let token = source();
        Some(Box::pin(async move {
            let late = |_| format!("the token source returned nothing within {within:?}");
            Some(timeout(within, token).await.unwrap_or_else(|e| Err(late(e))))
        }))
    }

    fn apply_token(&mut self, token: Token) {
        match token {
            None => {}
            Some(Ok(token)) => self.session.set_token(token.map(Into::into)),
            Some(Err(why)) => {
                self.shared.stats.lock().token_failures += 1;
                tracing::warn!(
                    error = one_line(&why),
                    "token source failed, the previous token stays in use"
                );
            }
        }
    }
}

impl Phase {
    /// The next event of the socket. Writes queued frames meanwhile. Cancel safe.
    async fn progress(&mut self, out: &mut VecDeque<Frame>) -> Progress {
        match self {
            Self::Idle => pending().await,
            Self::Connecting(attempt) => {
                let (token, outcome) = attempt.await;
                Progress::Connected(token, outcome)
            }
            Self::Open(socket) => poll_fn(|cx| poll_open(socket, out, cx)).await,
            Self::Pausing(until) => {
                sleep_until(*until).await;
                Progress::PauseOver
            }
        }
    }
}

fn poll_open(socket: &mut Socket, out: &mut VecDeque<Frame>, cx: &mut Context<'_>) -> Poll<Progress> {
    let lost = |why: &dyn std::fmt::Display| Poll::Ready(Progress::Lost(one_line(&why.to_string())));
    // Writes before reads: a fast server must not starve the frames that wait.
    if let Poll::Ready(Err(error)) = poll_write(socket, out, cx) {
        return lost(&error);
    }
    match Pin::new(socket).poll_next(cx) {
        Poll::Ready(Some(Ok(Message::Close(frame)))) => match frame {
            Some(frame) => lost(&format!("closed with {}: {}", u16::from(frame.code), frame.reason)),
            None => lost(&"closed by the server"),
        },
        Poll::Ready(Some(Ok(message))) => Poll::Ready(Progress::Message(message)),
        Poll::Ready(Some(Err(error))) => lost(&error),
        Poll::Ready(None) => lost(&"closed by the server without a close frame"),
        Poll::Pending => Poll::Pending,
    }
}

/// Ready when all frames are written.
fn poll_write(
    socket: &mut Socket,
    out: &mut VecDeque<Frame>,
    cx: &mut Context<'_>,
) -> Poll<Result<(), tokio_tungstenite::tungstenite::Error>> {
    let mut socket = Pin::new(socket);
    while !out.is_empty() {
        std::task::ready!(socket.as_mut().poll_ready(cx))?;
        if let Some(frame) = out.pop_front() {
            socket.as_mut().start_send(message(frame))?;
        }
    }
    socket.poll_flush(cx)
}

fn message(frame: Frame) -> Message {
    match frame {
        Frame::Binary(bytes) => Message::Binary(bytes),
        Frame::Text(text) => match Utf8Bytes::try_from(text) {
            Ok(text) => Message::Text(text),
            Err(_) => Message::Text(Utf8Bytes::default()),
        },
    }
}

/// Writes the queued frames and a close frame, for at most [`CLOSE_TIMEOUT`].
async fn flush_and_close(phase: &mut Phase, out: &mut VecDeque<Frame>) {
    if let Phase::Open(socket) = phase {
        let last = async {
            if poll_fn(|cx| poll_write(socket, out, cx)).await.is_ok() {
                let _gone = socket.close(None).await;
            }
        };
        let _too_slow = timeout(CLOSE_TIMEOUT, last).await;
    }
}

async fn until(at: Option<Instant>) {
    match at {
        Some(at) => sleep_until(at).await,
        None => pending().await,
    }
}

async fn next_token(renewal: &mut Option<BoxFuture<'static, Token>>) -> Token {
    match renewal {
        Some(renewal) => renewal.await,
        None => pending().fuse().await,
    }
}
