//! The settings of a client.
use super::{Backoff, Client, Endpoint, Error, session, transport::Dial};
use crate::wire::Version;
use futures_util::future::BoxFuture;
use std::{fmt, future::Future, sync::Arc, time::Duration};

/// Returns the current token; `None` means the rights of the key.
pub(super) type TokenSource =
    Arc<dyn Fn() -> BoxFuture<'static, Result<Option<String>, String>> + Send + Sync>;

/// Settings of a [`Client`]. The defaults are those of the JavaScript client, except where a method names another.
#[derive(Clone)]
pub struct Builder {
    pub(super) endpoint: Endpoint,
    pub(super) key: String,
    pub(super) version: Version,
    pub(super) params: Vec<(String, String)>,
    pub(super) heartbeat: Duration,
    pub(super) timeout: Duration,
    pub(super) backoff: Backoff,
    pub(super) queue: usize,
    pub(super) message_bytes_max: usize,
    pub(super) token: Option<Arc<str>>,
    pub(super) source: Option<TokenSource>,
    pub(super) dial: Option<Dial>,
}

impl Builder {
    pub(super) fn new(url: &str, key: &str) -> Result<Self, Error> {
        Ok(Self {
            endpoint: Endpoint::parse(url)?,
            key: key.to_owned(),
            version: Version::V2,
            params: Vec::new(),
            heartbeat: Duration::from_secs(25),
            timeout: Duration::from_secs(10),
            backoff: Backoff::default(),
            queue: 256,
            message_bytes_max: 16 << 20,
            token: None,
            source: None,
            dial: None,
        })
    }

    /// The serializer. Defaults to 2.0.0; use 1.0.0 for old servers. 1.0.0 cannot carry binary payloads.
    #[must_use]
    pub fn serializer(self, version: Version) -> Self {
        Self { version, ..self }
    }
    /// Adds a query parameter to the handshake, like Convoke's `client_id`.
    #[must_use]
    pub fn param(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.params.push((name.into(), value.into()));
        self
    }
    /// The user's token. Defaults to none: channels have the rights of the key.
    #[must_use]
    pub fn token(self, token: impl Into<String>) -> Self {
        Self { token: Some(token.into().into()), ..self }
    }
    /// The source of tokens. It is called before each connection attempt, after every answered heartbeat, and when a
    /// channel was refused or closed. A new token goes to all channels, and a channel that the server closed is rejoined.
    /// If the source fails, the previous token stays.
    #[must_use]
    pub fn token_source<F, E>(self, source: impl Fn() -> F + Send + Sync + 'static) -> Self
    where
        F: Future<Output = Result<Option<String>, E>> + Send + 'static,
        E: fmt::Display,
    {
        let source = move || -> BoxFuture<'static, _> {
            let token = source();
            Box::pin(async move { token.await.map_err(|e| e.to_string()) })
        };
        Self { source: Some(Arc::new(source)), ..self }
    }
    /// The heartbeat interval. A heartbeat unanswered for this long ends the connection. Defaults to 25 s.
    #[must_use]
    pub fn heartbeat(self, every: Duration) -> Self {
        Self { heartbeat: every.max(Duration::from_millis(10)), ..self }
    }
    /// The timeout of connecting, joining and every reply. Defaults to 10 s.
    #[must_use]
    pub fn timeout(self, timeout: Duration) -> Self {
        Self { timeout, ..self }
    }
    /// The waits between attempts to connect, and between attempts to join.
    #[must_use]
    pub fn backoff(self, backoff: Backoff) -> Self {
        Self { backoff, ..self }
    }
    /// The queue of each listener. When it is full the oldest event is dropped. Defaults to 256.
    #[must_use]
    pub fn queue(self, events: usize) -> Self {
        Self { queue: events.clamp(1, 1 << 20), ..self }
    }
    /// The largest message of the server. A larger one ends the connection. Defaults to 16 MiB.
    #[must_use]
    pub fn message_bytes_max(self, bytes: usize) -> Self {
        Self { message_bytes_max: bytes, ..self }
    }
    /// Starts the client. It connects when its first channel joins. Must be called in a Tokio runtime.
    #[must_use]
    pub fn start(self) -> Client {
        Client::start(self)
    }

    pub(super) fn session(&self) -> session::Config {
        session::Config {
            version: self.version,
            heartbeat: self.heartbeat,
            timeout: self.timeout,
            backoff: self.backoff.clone(),
            renews: self.source.is_some(),
        }
    }
}

impl fmt::Debug for Builder {
    /// Omits the key and the token.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Builder").field("endpoint", &self.endpoint).finish_non_exhaustive()
    }
}
