//! One channel: what it asks for, how it is spoken on, and how it is heard.
use super::{
    Broadcast, Change, ChangeFilter, Client, Error, Event, Listener, PresenceState, PresenceSync, Status,
    connection::{Command, Shared},
    line::{Body, Line, Push, Voice, Wish},
};
use crate::wire::{Encoding, TOPIC_PREFIX};
use bytes::Bytes;
use serde::Serialize;
use std::{fmt, sync::Arc};
use tokio::sync::{broadcast, oneshot, watch};

/// What a channel will ask for when it joins.
#[derive(Clone, Debug)]
pub struct ChannelBuilder {
    client: Client,
    topic: Arc<str>,
    wish: Wish,
}

/// A channel of a [`Client`]. Clones are the same channel; when the last of them and the last [`Listener`] are
/// gone, it is left.
///
/// Once subscribed, it subscribes again by itself after every loss, and says again what it tracked.
#[derive(Clone)]
pub struct Channel(Arc<Inner>);

pub(super) struct Inner {
    client: Client,
    topic: Arc<str>,
    wire_topic: Arc<str>,
    wish: Wish,
    pub(super) voice: Voice,
    handle: Arc<()>,
    shared: Arc<Shared>,
}

impl Drop for Inner {
    fn drop(&mut self) {
        // The actor looks for handles that are gone: this one is, before it looks.
        self.handle = Arc::new(());
        self.shared.dropped.notify_one();
    }
}

impl ChannelBuilder {
    pub(super) fn new(client: Client, topic: &str) -> Self {
        let topic = topic.strip_prefix(TOPIC_PREFIX).unwrap_or(topic);
        Self { client, topic: topic.into(), wish: Wish::default() }
    }

    fn wish(mut self, change: impl FnOnce(&mut Wish)) -> Self {
        change(&mut self.wish);
        self
    }
    /// A private channel: who may read and write is for the database's policies to say.
    #[must_use]
    pub fn private(self) -> Self {
        self.wish(|wish| wish.private = true)
    }
    /// Hears its own broadcasts too.
    #[must_use]
    pub fn receive_own(self) -> Self {
        self.wish(|wish| wish.own = true)
    }
    /// A broadcast waits for the server's word that it was taken; otherwise only until it is on its way.
    #[must_use]
    pub fn acknowledged(self) -> Self {
        self.wish(|wish| wish.ack = true)
    }
    /// Hears who is there, and may be there under a key of the server's making.
    #[must_use]
    pub fn presence(self) -> Self {
        self.wish(|wish| wish.presence = true)
    }
    /// As [`ChannelBuilder::presence`], under this key.
    #[must_use]
    pub fn presence_key(self, key: impl Into<String>) -> Self {
        self.wish(|wish| {
            wish.presence = true;
            wish.key = key.into();
        })
    }
    /// On a private channel: first what the database broadcast since then (milliseconds since 1970), at most `limit`
    /// (25) messages.
    #[must_use]
    pub fn replay(self, since_ms: i64, limit: u32) -> Self {
        self.wish(|wish| wish.replay = Some(serde_json::json!({ "since": since_ms, "limit": limit })))
    }
    /// Hears these row changes; may be called several times.
    #[must_use]
    pub fn changes(self, filter: ChangeFilter) -> Self {
        self.wish(|wish| wish.filters.push(Arc::new(filter)))
    }
    /// The channel, not yet subscribed: the time to make listeners that miss nothing.
    #[must_use]
    pub fn build(self) -> Channel {
        let voice = Voice {
            events: broadcast::Sender::new(self.client.queue()),
            status: watch::Sender::new(Status::Closed(Error::ChannelClosed {
                topic: self.topic.clone(),
                reason: "it was never subscribed".into(),
            })),
            presence: Arc::default(),
        };
        let shared = self.client.shared();
        Channel(Arc::new(Inner {
            wire_topic: format!("{TOPIC_PREFIX}{}", self.topic).into(),
            client: self.client,
            topic: self.topic,
            wish: self.wish,
            voice,
            handle: Arc::new(()),
            shared,
        }))
    }
    /// [`ChannelBuilder::build`] and [`Channel::subscribe`].
    ///
    /// # Errors
    /// As of [`Channel::subscribe`].
    pub async fn subscribe(self) -> Result<Channel, Error> {
        let channel = self.build();
        channel.subscribe().await?;
        Ok(channel)
    }
}

impl Channel {
    /// The topic without `realtime:`.
    #[must_use]
    pub fn topic(&self) -> &str {
        &self.0.topic
    }

    /// Joins, and waits until the server has said yes. Cancelled, it goes on trying.
    ///
    /// # Errors
    /// The first thing that went wrong: [`Error::Connect`], [`Error::Handshake`], [`Error::Lost`],
    /// [`Error::Refused`], [`Error::TimedOut`] – after it nothing is tried any more, unlike after
    /// [`Channel::start`]. [`Error::TopicInUse`] when the client has the topic already.
    pub async fn subscribe(&self) -> Result<(), Error> {
        self.start().await?;
        match self.settled().await {
            Ok(()) => Ok(()),
            Err(error) => {
                self.leave().await?;
                Err(error)
            }
        }
    }

    /// Joins without waiting: it is tried until it works, as [`Channel::status`] tells.
    ///
    /// # Errors
    /// [`Error::TopicInUse`], or [`Error::Closed`].
    pub async fn start(&self) -> Result<(), Error> {
        let Inner { wire_topic, topic, wish, voice, handle, .. } = &*self.0;
        let line =
            Line::new(wire_topic.clone(), topic.clone(), wish.clone(), voice.clone(), Arc::downgrade(handle));
        self.ask(|answer| Command::Join(Box::new(line), answer)).await
    }

    /// Waits until it is known whether the channel is subscribed.
    async fn settled(&self) -> Result<(), Error> {
        let mut status = self.0.voice.status.subscribe();
        let settled = status.wait_for(|status| !matches!(status, Status::Joining)).await;
        match settled.map(|status| status.clone()) {
            Ok(Status::Failed(error) | Status::Closed(error)) => Err(error),
            Ok(_) => Ok(()),
            Err(_) => Err(Error::Closed),
        }
    }

    /// How the channel stands, now and whenever it changes.
    #[must_use]
    pub fn status(&self) -> watch::Receiver<Status> {
        self.0.voice.status.subscribe()
    }

    /// Everything that the channel says from now on.
    #[must_use]
    pub fn events(&self) -> Listener<Event> {
        self.listen(Some)
    }
    /// The broadcasts of one event; `*` for all. As in the JavaScript client, case does not count.
    #[must_use]
    pub fn broadcasts(&self, event: &str) -> Listener<Broadcast> {
        let wanted = event.to_owned();
        self.listen(move |event| match event {
            Event::Broadcast(said) if wanted == "*" || said.event.eq_ignore_ascii_case(&wanted) => Some(said),
            _ => None,
        })
    }
    /// Who comes and goes; after each of these [`Channel::present`] is up to date.
    #[must_use]
    pub fn presences(&self) -> Listener<Arc<PresenceSync>> {
        self.listen(|event| match event {
            Event::Presence(sync) => Some(sync),
            _ => None,
        })
    }
    /// The row changes that passed any of the channel's filters.
    #[must_use]
    pub fn changes(&self) -> Listener<Arc<Change>> {
        self.listen(|event| match event {
            Event::Change(change) => Some(change),
            _ => None,
        })
    }
    /// The row changes that passed this filter, which the channel must have been built with.
    #[must_use]
    pub fn changes_of(&self, filter: &ChangeFilter) -> Listener<Arc<Change>> {
        let wanted = filter.clone();
        self.listen(move |event| match event {
            Event::Change(change) if change.filters.iter().any(|filter| **filter == wanted) => Some(change),
            _ => None,
        })
    }
    fn listen<T>(&self, select: impl Fn(Event) -> Option<T> + Send + Sync + 'static) -> Listener<T> {
        Listener::new(self.0.clone(), select)
    }

    /// Says something to everybody on the channel. Not yet subscribed: it waits for that, 100 messages at most.
    ///
    /// # Errors
    /// [`Error::Payload`] for what cannot be sent, [`Error::Full`], [`Error::ChannelClosed`]; and on an
    /// [acknowledged](ChannelBuilder::acknowledged) channel [`Error::Rejected`] with the server's reason,
    /// [`Error::TimedOut`] and [`Error::Lost`].
    pub async fn broadcast(&self, event: &str, payload: impl Serialize) -> Result<(), Error> {
        let data = serde_json::to_vec(&payload).map_err(|e| Error::Payload(e.to_string()))?;
        let (event, encoding) = (event.to_owned(), Encoding::Json);
        self.push(Body::Broadcast { event, encoding, data: data.into() }).await
    }

    /// Says bytes to everybody on the channel whose client speaks serializer 2.0.0, as this one must.
    ///
    /// # Errors
    /// As of [`Channel::broadcast`].
    pub async fn broadcast_bytes(&self, event: &str, data: impl Into<Bytes>) -> Result<(), Error> {
        let (event, encoding) = (event.to_owned(), Encoding::Binary);
        self.push(Body::Broadcast { event, encoding, data: data.into() }).await
    }

    /// Says it over HTTP, which needs no subscription; waits until the server has taken it.
    ///
    /// # Errors
    /// [`Error::Http`] with the server's reason, [`Error::Payload`].
    pub async fn http_send(&self, event: &str, payload: impl Serialize) -> Result<(), Error> {
        let data = serde_json::to_vec(&payload).map_err(|e| Error::Payload(e.to_string()))?;
        self.0.client.post(&self.0.topic, event, self.0.wish.private, Encoding::Json, data.into()).await
    }

    /// As [`Channel::http_send`], with bytes.
    ///
    /// # Errors
    /// As of [`Channel::http_send`].
    pub async fn http_send_bytes(&self, event: &str, data: impl Into<Bytes>) -> Result<(), Error> {
        self.0.client.post(&self.0.topic, event, self.0.wish.private, Encoding::Binary, data.into()).await
    }

    /// Is there, and says `meta` about itself, in place of what it said before; said again after a reconnect.
    ///
    /// # Errors
    /// [`Error::Payload`] for what is no JSON object, and the rest as [`Channel::broadcast`] on an acknowledged
    /// channel.
    pub async fn track(&self, meta: impl Serialize) -> Result<(), Error> {
        let meta = serde_json::to_value(&meta).map_err(|e| Error::Payload(e.to_string()))?;
        if !meta.is_object() {
            return Err(Error::Payload("what is tracked must be an object".into()));
        }
        self.push(Body::Track(meta.to_string().into())).await
    }

    /// Is not there any more.
    ///
    /// # Errors
    /// As of [`Channel::track`].
    pub async fn untrack(&self) -> Result<(), Error> {
        self.push(Body::Untrack).await
    }

    /// Who is there, as far as the server has told. Cheap to copy: what was tracked is shared.
    #[must_use]
    pub fn present(&self) -> PresenceState {
        self.0.voice.presence.read().clone()
    }

    /// Leaves at once; the topic may be joined again, also by this handle. Listeners end.
    ///
    /// # Errors
    /// [`Error::Closed`] when the client is closed already.
    pub async fn leave(&self) -> Result<(), Error> {
        let topic = self.0.wire_topic.clone();
        self.ask(|answer| Command::Leave(topic, answer)).await
    }

    /// The client that it belongs to.
    #[must_use]
    pub fn client(&self) -> &Client {
        &self.0.client
    }

    pub(super) fn is_private(&self) -> bool {
        self.0.wish.private
    }

    async fn push(&self, body: Body) -> Result<(), Error> {
        let topic = self.0.wire_topic.clone();
        self.ask(|answer| Command::Push(topic, Push { body, answer })).await
    }

    async fn ask(
        &self,
        command: impl FnOnce(oneshot::Sender<Result<(), Error>>) -> Command,
    ) -> Result<(), Error> {
        self.0.client.ask(command).await
    }
}

impl fmt::Debug for Channel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Channel").field("topic", &self.0.topic).finish_non_exhaustive()
    }
}
