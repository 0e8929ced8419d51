//! The events of a channel, and the bounded queue that delivers them.
use super::{Change, Error, PresenceSync};
use bytes::Bytes;
use futures_util::{Stream, stream};
use serde::de::DeserializeOwned;
use serde_json::Value;
use std::{any::Any, fmt, sync::Arc};
use tokio::sync::broadcast::{self, error::RecvError};

/// The status of a channel. It resubscribes by itself until it is [`Status::Closed`].
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Status {
    /// Not subscribed yet; a join is in progress or waits for the connection.
    Joining,
    /// The server has accepted the join. Broadcasts from now on are delivered.
    Subscribed,
    /// Not subscribed; the next attempt follows after a backoff.
    Failed(Error),
    /// Closed until the program subscribes again.
    Closed(Error),
}

/// An event of a channel. Clones share large parts.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Event {
    /// A change of the status, in order with the other events.
    Status(Status),
    /// A broadcast message.
    Broadcast(Broadcast),
    /// A presence change.
    Presence(Arc<PresenceSync>),
    /// A row change.
    Change(Arc<Change>),
    /// A system message about the channel, like `Subscribed to PostgreSQL`.
    System(Arc<Value>),
}

/// A broadcast message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Broadcast {
    /// The event, chosen by the sender.
    pub event: Arc<str>,
    /// The content.
    pub payload: Payload,
    /// Metadata of the server, like `{"id":…}` for messages from the database and `"replayed":true`; a JSON object.
    pub meta: Option<Bytes>,
}

/// The content of a broadcast.
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
    /// [`Error::Payload`] if it has another shape, or is binary.
    pub fn json<T: DeserializeOwned>(&self) -> Result<T, Error> {
        match &self.payload {
            Payload::Json(json) => serde_json::from_slice(json).map_err(|e| Error::Payload(e.to_string())),
            Payload::Binary(_) => Err(Error::Payload("the payload is bytes, not JSON".into())),
        }
    }

    /// The received bytes.
    #[must_use]
    pub fn bytes(&self) -> &Bytes {
        match &self.payload {
            Payload::Json(bytes) | Payload::Binary(bytes) => bytes,
        }
    }

    /// The id that the server assigned to the message; `None` if it has none.
    #[must_use]
    pub fn id(&self) -> Option<String> {
        let meta: Value = serde_json::from_slice(self.meta.as_ref()?).ok()?;
        meta.get("id")?.as_str().map(str::to_owned)
    }
}

impl fmt::Debug for Payload {
    /// Formats only the size, because logs must not hold payloads.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Json(json) => write!(f, "Json({} bytes)", json.len()),
            Self::Binary(bytes) => write!(f, "Binary({} bytes)", bytes.len()),
        }
    }
}

/// The listener was too slow and lost this many events. It continues with the oldest event that is left.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0} events were missed, because the listener was too slow")]
pub struct Missed(pub u64);

/// Receives the events of a channel from the moment it was made. Keeps the channel subscribed while it lives.
///
/// Its queue has the length of [`Builder::queue`](super::Builder::queue). When it is full the oldest event is
/// dropped, and [`Missed`] reports the number. A slow listener does not delay the channel or other listeners.
pub struct Listener<T> {
    events: broadcast::Receiver<Event>,
    select: Box<dyn Fn(Event) -> Option<T> + Send + Sync>,
    ended: bool,
    /// The channel stays subscribed until its last handle is dropped; this is one.
    _channel: Arc<dyn Any + Send + Sync>,
}

impl<T> Listener<T> {
    pub(super) fn new(
        channel: Arc<dyn Any + Send + Sync>,
        events: broadcast::Receiver<Event>,
        select: impl Fn(Event) -> Option<T> + Send + Sync + 'static,
    ) -> Self {
        Self { events, select: Box::new(select), ended: false, _channel: channel }
    }

    /// The next event; `None` when the channel is closed. Cancel safe.
    ///
    /// # Errors
    /// [`Missed`]; the listener can be used afterwards.
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
