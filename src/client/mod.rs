//! A Rust client for realtime channels of Convoke or Supabase Realtime.
//!
//! A [`Client`] owns one websocket and its [`Channel`]s. Usable alone: the feature `client` without `daemon`
//! brings none of the daemon's dependencies. A pure state machine (`session`, `channel_state`) implements the
//! protocol. One actor owns the socket, reconnects with backoff and jitter, and rejoins every channel. Every queue is
//! bounded: callers wait for the socket; a slow listener loses the oldest events and gets [`Missed`]. No failure is
//! silent: a failed call returns an [`Error`], a lost subscription a [`Status`]. No payload, key or token is logged.
//! Also here: a [`Manager`] of shared channels, a [`Batcher`], and [`testing`].
//! Follows `docs/spec/realtime-protocol.md`, §9 for timers. See `examples/realtime_client.rs` for a complete program.
mod backoff;
mod batcher;
mod builder;
mod changes;
mod channel;
mod channel_state;
mod connection;
mod endpoint;
mod error;
mod event;
#[cfg(any(test, fuzzing))]
mod fuzz;
mod manager;
mod presence;
mod session;
pub mod testing;
mod transport;

pub use backoff::Backoff;
pub use batcher::{BATCH_EVENT, Batcher};
pub use builder::Builder;
pub use changes::{Change, ChangeFilter, ChangeKind, Column};
pub use channel::{Channel, ChannelBuilder};
pub use error::Error;
pub use event::{Broadcast, Event, Listener, Missed, Payload, Status};
#[cfg(fuzzing)]
pub use fuzz::fuzz;
pub use manager::{Lease, Manager};
pub use presence::{Meta, PresenceChange, PresenceState, PresenceSync};

use crate::{
    scope::{OnExit, Scope},
    wire::Encoding,
};
use bytes::Bytes;
use connection::{Actor, COMMANDS_MAX, Command, Shared};
use endpoint::Endpoint;
use session::Session;
use std::{
    fmt,
    sync::{Arc, OnceLock},
    time::Duration,
};
use tokio::sync::{mpsc, oneshot, watch};

/// The timeout of [`Client::close`] for the last frames.
const CLOSE_WITHIN: Duration = Duration::from_secs(5);

/// A client of one server. Clones share the connection, which closes when the last clone and the last channel are
/// dropped.
#[derive(Clone)]
pub struct Client(Arc<Inner>);

struct Inner {
    settings: Builder,
    commands: mpsc::Sender<Command>,
    connection: watch::Receiver<Connection>,
    shared: Arc<Shared>,
    http: OnceLock<reqwest::Client>,
    token: watch::Sender<Option<Arc<str>>>,
    scope: Scope,
}

/// The state of the connection.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Connection {
    /// No channel needs a connection.
    Idle,
    /// A connection attempt is in progress.
    Connecting,
    /// Connected.
    Open,
    /// Not connected; the next attempt starts after a backoff.
    Waiting {
        /// Why the last attempt or connection failed.
        error: Error,
        /// The backoff, from the failure on.
        wait: Duration,
    },
    /// The client was closed.
    Closed,
}

/// Counters of a client.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Successful connection attempts.
    pub connects: u64,
    /// Messages from the server.
    pub frames: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Messages that could not be decoded, or that violate the protocol.
    pub garbage: u64,
    /// Failed calls of the token source.
    pub token_failures: u64,
}

impl Client {
    /// Settings for a client of the server at `url` (`https://x.supabase.co/realtime/v1`, `http://127.0.0.1:4000`,
    /// `ws://host/socket`) with its `key`: the anon key, or another key that the server accepts.
    ///
    /// # Errors
    /// [`Error::Url`].
    pub fn builder(url: &str, key: &str) -> Result<Builder, Error> {
        Builder::new(url, key)
    }

    /// A client with default settings. Must be called in a Tokio runtime.
    ///
    /// # Errors
    /// [`Error::Url`].
    pub fn new(url: &str, key: &str) -> Result<Self, Error> {
        Ok(Self::builder(url, key)?.start())
    }

    fn start(settings: Builder) -> Self {
        let (commands, inbox) = mpsc::channel(COMMANDS_MAX);
        let (state, connection) = watch::channel(Connection::Idle);
        let (shared, scope) = (Arc::new(Shared::default()), Scope::default());
        let token = watch::Sender::new(settings.token.clone());
        let actor = Actor {
            session: Session::new(settings.session(), settings.token.clone(), rand::random::<f64>),
            settings: settings.clone(),
            commands: inbox,
            shared: shared.clone(),
            connection: state,
        };
        scope.spawn("client", OnExit::Log, |stop| actor.run(stop));
        Self(Arc::new(Inner { settings, commands, connection, shared, http: OnceLock::new(), token, scope }))
    }

    /// A builder for a channel on this topic. Nothing is sent yet. A prefix `realtime:` is ignored.
    #[must_use]
    pub fn channel(&self, topic: &str) -> ChannelBuilder {
        ChannelBuilder::new(self.clone(), topic)
    }

    /// The state of the connection; the receiver sees every change.
    #[must_use]
    pub fn connection(&self) -> watch::Receiver<Connection> {
        self.0.connection.clone()
    }

    /// The counters so far.
    #[must_use]
    pub fn stats(&self) -> Stats {
        *self.0.shared.stats.lock()
    }

    /// Sets the user's token for subscribed channels, later channels and HTTP. `None`: later channels have the rights of
    /// the key.
    ///
    /// # Errors
    /// [`Error::Closed`].
    pub async fn set_token(&self, token: Option<&str>) -> Result<(), Error> {
        let token: Option<Arc<str>> = token.map(Into::into);
        self.0.token.send_replace(token.clone());
        self.ask(|answer| Command::Token(token, answer)).await
    }

    /// Broadcasts one message over HTTP to a public channel. Resolves when the server has accepted it.
    ///
    /// # Errors
    /// [`Error::Http`] with the server's reason, [`Error::Payload`].
    pub async fn http_send(
        &self,
        topic: &str,
        event: &str,
        payload: impl serde::Serialize,
    ) -> Result<(), Error> {
        self.channel(topic).build().http_send(event, payload).await
    }

    /// Leaves every channel, writes the queued frames and closes the connection.
    ///
    /// # Errors
    /// [`Error::TimedOut`] if this takes longer than 5 s. The connection is closed all the same.
    pub async fn close(&self) -> Result<(), Error> {
        let late = |_| Error::TimedOut { what: "the end of the connection", after: CLOSE_WITHIN };
        self.0.scope.drain(CLOSE_WITHIN).await.map_err(late)
    }

    /// A new client with the same settings and its own connection.
    #[must_use]
    pub fn sibling(&self) -> Self {
        Self::start(Builder { token: self.0.token.borrow().clone(), ..self.0.settings.clone() })
    }

    fn queue(&self) -> usize {
        self.0.settings.queue
    }
    fn shared(&self) -> Arc<Shared> {
        self.0.shared.clone()
    }
    fn scope(&self) -> &Scope {
        &self.0.scope
    }

    async fn ask(
        &self,
        command: impl FnOnce(oneshot::Sender<Result<(), Error>>) -> Command,
    ) -> Result<(), Error> {
        let (answer, answered) = oneshot::channel();
        self.0.commands.send(command(answer)).await.map_err(|_| Error::Closed)?;
        answered.await.map_err(|_| Error::Closed)?
    }

    async fn post(
        &self,
        topic: &str,
        event: &str,
        private: bool,
        encoding: Encoding,
        data: Bytes,
    ) -> Result<(), Error> {
        let Inner { settings, http, .. } = &*self.0;
        let http = match http.get() {
            Some(http) => http,
            None => {
                // Two concurrent first calls may build two HTTP clients; only one is kept.
                let made = transport::http(&settings.endpoint, settings.timeout)?;
                http.get_or_init(|| made)
            }
        };
        let kind = if encoding == Encoding::Json { "application/json" } else { "application/octet-stream" };
        let token = self.bearer().await?;
        let request = http
            .post(settings.endpoint.broadcast(topic, event, private))
            .header("apikey", &settings.key)
            .header("content-type", kind)
            .bearer_auth(token.as_deref().unwrap_or(&settings.key))
            .body(data);
        let failed = |status, why: &str| Error::Http { status, why: error::one_line(why) };
        // Without the address, which the caller knows.
        let unsent = |e: reqwest::Error| failed(None, &e.without_url().to_string());
        let response = request.send().await.map_err(unsent)?;
        let status = response.status().as_u16();
        if status == 202 {
            return Ok(());
        }
        let body = response.bytes().await.unwrap_or_default();
        Err(failed(Some(status), &transport::error_text(&body)))
    }

    /// The token for HTTP: from the token source if there is one.
    async fn bearer(&self) -> Result<Option<Arc<str>>, Error> {
        let Some(source) = &self.0.settings.source else { return Ok(self.0.token.borrow().clone()) };
        let token = tokio::time::timeout(self.0.settings.timeout, source()).await;
        let after = self.0.settings.timeout;
        let token = token.map_err(|_| Error::TimedOut { what: "the token", after })?;
        token.map(|token| token.map(Into::into)).map_err(|why| Error::Token(error::one_line(&why)))
    }
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client").field("settings", &self.0.settings).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
