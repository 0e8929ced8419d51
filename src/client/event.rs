//! What a channel says, and the bounded queue by which a program hears it.
use super::{Change, Error, PresenceSync, channel::Inner};
use bytes::Bytes;
use futures_util::{Stream, stream};
use serde::de::DeserializeOwned;
use serde_json::Value;
use std::{fmt, sync::Arc};
use tokio::sync::broadcast::{self, error::RecvError};

/// How a channel stands. It subscribes again by itself until it is [`Status::Closed`].
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Status {
    /// Not subscribed yet, or on its way.
    Joining,
    /// The server has taken it: what is said from now on is heard.
    Subscribed,
    /// It is not subscribed, and it will be tried again.
    Failed(Error),
    /// For good, until somebody subscribes it again.
    Closed(Error),
}

/// Something that a channel says. Clones share what is large.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Event {
    /// How the channel stands, in its order among the rest.
    Status(Status),
    /// Somebody said something.
    Broadcast(Broadcast),
    /// Somebody came, went, or says something else about themselves.
    Presence(Arc<PresenceSync>),
    /// A row changed.
    Change(Arc<Change>),
    /// The server about the channel, like `Subscribed to PostgreSQL`.
    System(Arc<Value>),
}

/// One message to everybody on the channel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Broadcast {
    /// Chosen by the sender.
    pub event: Arc<str>,
    /// What was sent.
    pub payload: Payload,
    /// What the server adds, like `{"id":…}` for messages from the database and `"replayed":true`; a JSON object.
    pub meta: Option<Bytes>,
}

/// What a broadcast carries.
#[derive(Clone, PartialEq, Eq)]
pub enum Payload {
    /// Well-formed JSON of any type.
    Json(Bytes),
    /// Any bytes.
    Binary(Bytes),
}

impl Broadcast {
    /// The payload as a Rust value.
    ///
    /// # Errors
    /// [`Error::Payload`] when it has another shape, or is bytes.
    pub fn json<T: DeserializeOwned>(&self) -> Result<T, Error> {
        match &self.payload {
            Payload::Json(json) => serde_json::from_slice(json).map_err(|e| Error::Payload(e.to_string())),
            Payload::Binary(_) => Err(Error::Payload("the payload is bytes, not JSON".into())),
        }
    }

    /// The payload as it came.
    #[must_use]
    pub fn bytes(&self) -> &Bytes {
        match &self.payload {
            Payload::Json(bytes) | Payload::Binary(bytes) => bytes,
        }
    }

    /// The server's own id of the message, where it has one.
    #[must_use]
    pub fn id(&self) -> Option<String> {
        let meta: Value = serde_json::from_slice(self.meta.as_ref()?).ok()?;
        meta.get("id")?.as_str().map(str::to_owned)
    }
}

impl fmt::Debug for Payload {
    /// Its size, since logs must not hold payloads.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Json(json) => write!(f, "Json({} bytes)", json.len()),
            Self::Binary(bytes) => write!(f, "Binary({} bytes)", bytes.len()),
        }
    }
}

/// A listener was too slow: so many events are gone. It goes on with the oldest that are left.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0} events were missed, because the listener was too slow")]
pub struct Missed(pub u64);

/// Hears a channel from the moment it was made; keeps the channel subscribed while it lives.
///
/// Its queue has the length of [`Builder::queue`](super::Builder::queue). When it is full the oldest event is
/// dropped, and the listener is told how many with [`Missed`]: a slow listener slows nobody.
pub struct Listener<T> {
    events: broadcast::Receiver<Event>,
    select: Box<dyn Fn(Event) -> Option<T> + Send + Sync>,
    ended: bool,
    _channel: Arc<Inner>,
}

impl<T> Listener<T> {
    pub(super) fn new(
        channel: Arc<Inner>,
        select: impl Fn(Event) -> Option<T> + Send + Sync + 'static,
    ) -> Self {
        let events = channel.voice.events.subscribe();
        Self { events, select: Box::new(select), ended: false, _channel: channel }
    }

    /// The next one; nothing when the channel is closed. Cancel safe.
    ///
    /// # Errors
    /// [`Missed`], after which it goes on.
    pub async fn next(&mut self) -> Option<Result<T, Missed>> {
        while !self.ended {
            match self.events.recv().await {
                Ok(event) => {
                    self.ended = matches!(event, Event::Status(Status::Closed(_)));
                    if let Some(wanted) = (self.select)(event) {
                        return Some(Ok(wanted));
                    }
                }
                Err(RecvError::Lagged(count)) => return Some(Err(Missed(count))),
                Err(RecvError::Closed) => self.ended = true,
            }
        }
        None
    }

    /// As a stream, for the combinators of `futures`.
    pub fn into_stream(self) -> impl Stream<Item = Result<T, Missed>> + Send
    where
        T: Send + 'static,
    {
        stream::unfold(self, |mut listener| async { Some((listener.next().await?, listener)) })
    }
}

impl<T> fmt::Debug for Listener<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Listener").field("ended", &self.ended).finish_non_exhaustive()
    }
}
