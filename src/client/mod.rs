//! A client of the channels, for programs in Rust, against Convoke or Supabase Realtime.
//!
//! [`Client`] owns one websocket, [`Channel`]s live on it. Usable alone: the feature `client` without `daemon`
//! brings none of the daemon's libraries. A pure machine (`session`, `line`) speaks the protocol; one actor owns
//! the socket, connects again with growing, scattered waits, and joins every channel again. Every queue has a limit:
//! callers wait for the socket, a slow listener loses the oldest events and is told so. Nothing fails in silence:
//! what cannot be done is an [`Error`], what was lost a [`Status`] or [`Missed`]. No payload, key or token is logged.
//! Beside it stand a [`Manager`] of shared channels, a [`Batcher`], and [`testing`].
//! Follows `reference/realtime-protocol.md`, §9 for timers. `examples/realtime_client.rs` shows it all.
mod backoff;
mod batcher;
mod builder;
mod changes;
mod channel;
mod connection;
mod endpoint;
mod error;
mod event;
#[cfg(any(test, fuzzing))]
mod fuzz;
mod line;
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

/// How long [`Client::close`] waits for the last frames.
const CLOSE_WITHIN: Duration = Duration::from_secs(5);

/// A client of one server. Clones are the same client; when the last of them and of its channels is gone, the
/// connection is closed.
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

/// How the connection stands.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Connection {
    /// There is no channel that needs one.
    Idle,
    /// It is being made.
    Connecting,
    /// There is one.
    Open,
    /// There is none; it will be tried again.
    Waiting {
        /// Why.
        error: Error,
        /// So long after it failed.
        wait: Duration,
    },
    /// The client was closed.
    Closed,
}

/// What a client has counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Connections that came about.
    pub connects: u64,
    /// Messages from the server.
    pub frames: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Messages that were not understood.
    pub garbage: u64,
    /// Times that the source of tokens gave none.
    pub token_failures: u64,
}

impl Client {
    /// Settings for a client of the server at `url` (`https://x.supabase.co/realtime/v1`, `http://127.0.0.1:4000`,
    /// `ws://host/socket`) with its `key`: the anon key, or whatever else the server takes for one.
    ///
    /// # Errors
    /// [`Error::Url`].
    pub fn builder(url: &str, key: &str) -> Result<Builder, Error> {
        Builder::new(url, key)
    }

    /// A client with the usual settings. To be called in a Tokio runtime.
    ///
    /// # Errors
    /// [`Error::Url`].
    pub fn new(url: &str, key: &str) -> Result<Self, Error> {
        Ok(Self::builder(url, key)?.start())
    }

    fn start(settings: Builder) -> Self {
        let (commands, inbox) = mpsc::channel(COMMANDS_MAX);
        let (told, connection) = watch::channel(Connection::Idle);
        let (shared, scope) = (Arc::new(Shared::default()), Scope::default());
        let token = watch::Sender::new(settings.token.clone());
        let actor = Actor {
            session: Session::new(settings.session(), settings.token.clone(), rand::random::<f64>),
            settings: settings.clone(),
            commands: inbox,
            shared: shared.clone(),
            connection: told,
        };
        scope.spawn("client", OnExit::Log, |stop| actor.run(stop));
        Self(Arc::new(Inner { settings, commands, connection, shared, http: OnceLock::new(), token, scope }))
    }

    /// What a channel on this topic will ask for; nothing happens yet. A prefix `realtime:` does not count.
    #[must_use]
    pub fn channel(&self, topic: &str) -> ChannelBuilder {
        ChannelBuilder::new(self.clone(), topic)
    }

    /// How the connection stands, now and whenever it changes.
    #[must_use]
    pub fn connection(&self) -> watch::Receiver<Connection> {
        self.0.connection.clone()
    }

    /// What was counted so far.
    #[must_use]
    pub fn stats(&self) -> Stats {
        *self.0.shared.stats.lock()
    }

    /// The user's token from now on: for channels that are subscribed, for later ones and for HTTP.
    /// Nothing: later channels have the rights of the key.
    ///
    /// # Errors
    /// [`Error::Closed`].
    pub async fn set_token(&self, token: Option<&str>) -> Result<(), Error> {
        let token: Option<Arc<str>> = token.map(Into::into);
        self.0.token.send_replace(token.clone());
        self.ask(|answer| Command::Token(token, answer)).await
    }

    /// Broadcasts one message over HTTP to a public channel; waits until the server has taken it.
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

    /// Leaves every channel and closes the connection, after what waited to be written.
    ///
    /// # Errors
    /// [`Error::TimedOut`] when the server took too long; then it is closed all the same.
    pub async fn close(&self) -> Result<(), Error> {
        let late = |_| Error::TimedOut { what: "the end of the connection", after: CLOSE_WITHIN };
        self.0.scope.drain(CLOSE_WITHIN).await.map_err(late)
    }

    /// Another client with the same settings, on a connection of its own.
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
        // Without the address, which is of no use to the reader.
        let unsent = |e: reqwest::Error| failed(None, &e.without_url().to_string());
        let response = request.send().await.map_err(unsent)?;
        let status = response.status().as_u16();
        if status == 202 {
            return Ok(());
        }
        let body = response.bytes().await.unwrap_or_default();
        Err(failed(Some(status), &transport::words(&body)))
    }

    /// The token for HTTP, from the source where there is one.
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
