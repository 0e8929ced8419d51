//! The actor that owns the socket: it performs what the session asks for, and connects again.
//!
//! One loop waits for commands, frames, due times and tokens. Commands are taken only while little waits to be
//! written, so a socket that does not take more makes the callers wait and nobody else.
use super::{
    Builder, Connection, Error, Stats,
    error::one_line,
    line::{Answer, Line, Push},
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

/// Commands that may wait; more make their callers wait.
pub(super) const COMMANDS_MAX: usize = 256;
/// Frames that may wait for the socket before commands have to.
const OUT_MAX: usize = 256;
/// How long the last frames may take.
const FAREWELL: Duration = Duration::from_secs(1);

pub(super) enum Command {
    Join(Box<Line>, Answer),
    Push(Arc<str>, Push),
    Leave(Arc<str>, Answer),
    Token(Option<Arc<str>>, Answer),
}

/// What an actor shares with the handles.
#[derive(Debug, Default)]
pub(super) struct Shared {
    /// A handle is gone.
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

/// Where the socket is.
enum Phase {
    /// Nobody needs one.
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

/// What a source of tokens gave; nothing: it was not asked.
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
            // A socket that nobody needs is kept for a while, as a page that changes joins again at once.
            let linger = unused_since.map(|since| since + self.settings.heartbeat * 2);
            let due = self.session.due();
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
                        self.renewed(token);
                        self.shared.stats.lock().connects += 1;
                        self.connection.send_replace(Connection::Open);
                        phase = Phase::Open(socket);
                        self.session.opened(Instant::now());
                    }
                    Progress::Connected(token, Err(error)) => {
                        self.renewed(token);
                        phase = self.lost(error, &mut failures);
                    }
                    Progress::Message(message) => {
                        let before = self.session.garbage();
                        if self.message(message) {
                            renewal = renewal.or_else(|| self.ask());
                        }
                        // Only a server that speaks the protocol ends the waits that grow.
                        if self.session.garbage() == before {
                            failures = 0;
                        }
                    }
                    Progress::Lost(why) => phase = self.lost(Error::Lost { why }, &mut failures),
                    Progress::PauseOver => phase = Phase::Idle,
                },
                token = of(&mut renewal) => {
                    renewal = None;
                    self.renewed(token);
                }
                command = self.commands.recv(), if room => match command {
                    Some(command) => self.command(command),
                    None => break,
                },
                () = until(linger), if !matches!(phase, Phase::Idle) => {
                    farewell(&mut phase, self.session.out()).await;
                    self.connection.send_replace(Connection::Idle);
                    phase = Phase::Idle;
                    self.session.lost(&Error::Lost { why: "nobody needs it".into() }, Instant::now());
                }
            }
        }
        self.session.close();
        self.connection.send_replace(Connection::Closed);
        farewell(&mut phase, self.session.out()).await;
        Ok(())
    }

    fn command(&mut self, command: Command) {
        let now = Instant::now();
        let (answer, outcome) = match command {
            Command::Join(line, answer) => {
                // What was let go of before this was asked for makes room for it.
                self.session.sweep();
                (answer, self.session.add(*line, now))
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
        // Whoever asked may have stopped waiting.
        let _gone = answer.send(outcome);
    }

    /// True when it is time for a fresh token.
    fn message(&mut self, message: Message) -> bool {
        let version = self.settings.version;
        let (size, frame) = match message {
            Message::Text(text) => (text.len(), client::read_text(version, &Bytes::from(text))),
            Message::Binary(bytes) if version == Version::V2 => (bytes.len(), client::read_binary(&bytes)),
            Message::Binary(bytes) => (bytes.len(), Err(Dropped::UnknownKind(bytes.first().copied()))),
            // Pongs are sent by the websocket itself; a close comes as the end of the stream.
            _ => return false,
        };
        let fresh = match frame {
            Ok(frame) => self.session.frame(frame, Instant::now()),
            Err(why) => {
                tracing::debug!(%why, "frame of the server dropped");
                self.session.garbage_came();
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
        tracing::debug!(%error, ?wait, "no connection");
        self.session.lost(&error, now);
        self.connection.send_replace(Connection::Waiting { error, wait });
        Phase::Pausing(now + wait)
    }

    fn connect(&self) -> BoxFuture<'static, (Token, Result<Box<Socket>, Error>)> {
        let settings = self.settings.clone();
        let token = self.ask();
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

    fn ask(&self) -> Option<BoxFuture<'static, Token>> {
        let (source, within) = (self.settings.source.as_ref()?, self.settings.timeout);
        let token = source();
        Some(Box::pin(async move {
            let late = |_| format!("the source gave none within {within:?}");
            Some(timeout(within, token).await.unwrap_or_else(|e| Err(late(e))))
        }))
    }

    fn renewed(&mut self, token: Token) {
        match token {
            None => {}
            Some(Ok(token)) => self.session.set_token(token.map(Into::into)),
            Some(Err(why)) => {
                self.shared.stats.lock().token_failures += 1;
                tracing::warn!(error = one_line(&why), "no fresh token; the one before it stays");
            }
        }
    }
}

impl Phase {
    /// The next thing that happens to the socket; meanwhile what waits is written. Cancel safe.
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
        Poll::Ready(None) => lost(&"the server is gone"),
        Poll::Pending => Poll::Pending,
    }
}

/// Ready when everything is written.
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

/// The last frames and a close frame, if the server takes them in time.
async fn farewell(phase: &mut Phase, out: &mut VecDeque<Frame>) {
    if let Phase::Open(socket) = phase {
        let last = async {
            if poll_fn(|cx| poll_write(socket, out, cx)).await.is_ok() {
                let _gone = socket.close(None).await;
            }
        };
        let _too_slow = timeout(FAREWELL, last).await;
    }
}

async fn until(at: Option<Instant>) {
    match at {
        Some(at) => sleep_until(at).await,
        None => pending().await,
    }
}

async fn of(renewal: &mut Option<BoxFuture<'static, Token>>) -> Token {
    match renewal {
        Some(renewal) => renewal.await,
        None => pending().fuse().await,
    }
}
