//! Channels and their builder.
use super::{
    Broadcast, Change, ChangeFilter, Client, Error, Event, Listener, PresenceState, PresenceSync, Status,
    channel_state::{Body, ChannelOutput, ChannelState, JoinConfig, Push},
    connection::{Command, Shared},
};
use crate::wire::{Encoding, TOPIC_PREFIX};
use bytes::Bytes;
use serde::Serialize;
use std::{fmt, sync::Arc};
use tokio::sync::{broadcast, oneshot, watch};

/// The configuration of a channel before it joins.
#[derive(Clone, Debug)]
pub struct ChannelBuilder {
    client: Client,
    topic: Arc<str>,
    join_config: JoinConfig,
}

/// A channel of a [`Client`]. Clones share the subscription, which ends when the last clone and the last
/// [`Listener`] are dropped.
///
/// Once subscribed, it resubscribes after every loss and sends its tracked meta again.
#[derive(Clone)]
pub struct Channel(Arc<Inner>);

pub(super) struct Inner {
    client: Client,
    topic: Arc<str>,
    wire_topic: Arc<str>,
    join_config: JoinConfig,
    pub(super) output: ChannelOutput,
    handle: Arc<()>,
    shared: Arc<Shared>,
}

impl Drop for Inner {
    fn drop(&mut self) {
        // The sweep looks for dangling handles. Replacing `handle` drops it before the notification, so that the sweep
        // that follows finds it dangling.
        self.handle = Arc::new(());
        self.shared.dropped.notify_one();
    }
}

impl ChannelBuilder {
    pub(super) fn new(client: Client, topic: &str) -> Self {
        let topic = topic.strip_prefix(TOPIC_PREFIX).unwrap_or(topic);
        Self { client, topic: topic.into(), join_config: JoinConfig::default() }
    }

    fn configure(mut self, change: impl FnOnce(&mut JoinConfig)) -> Self {
        change(&mut self.join_config);
        self
    }
    /// Makes the channel private: the database's policies decide who may read and write.
    #[must_use]
    pub fn private(self) -> Self {
        self.configure(|join_config| join_config.private = true)
    }
    /// The channel also receives its own broadcasts.
    #[must_use]
    pub fn receive_own(self) -> Self {
        self.configure(|join_config| join_config.own = true)
    }
    /// Broadcasts resolve when the server acknowledges them. By default they resolve when they are queued for the socket.
    #[must_use]
    pub fn acknowledged(self) -> Self {
        self.configure(|join_config| join_config.ack = true)
    }
    /// The channel receives presence and may track under a key that the server generates.
    #[must_use]
    pub fn presence(self) -> Self {
        self.configure(|join_config| join_config.presence = true)
    }
    /// As [`ChannelBuilder::presence`], with this key.
    #[must_use]
    pub fn presence_key(self, key: impl Into<String>) -> Self {
        self.configure(|join_config| {
            join_config.presence = true;
            join_config.key = key.into();
        })
    }
    /// On a private channel: replays the database's broadcasts since `since_ms` (milliseconds since 1970), at most
    /// `limit` messages (25 or fewer).
    #[must_use]
    pub fn replay(self, since_ms: i64, limit: u32) -> Self {
        self.configure(|join_config| {
            join_config.replay = Some(serde_json::json!({ "since": since_ms, "limit": limit }))
        })
    }
    /// The channel receives these row changes. May be called several times.
    #[must_use]
    pub fn changes(self, filter: ChangeFilter) -> Self {
        self.configure(|join_config| join_config.filters.push(Arc::new(filter)))
    }
    /// Builds the channel without subscribing. Listeners made now miss no event.
    #[must_use]
    pub fn build(self) -> Channel {
        let output = ChannelOutput {
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
            join_config: self.join_config,
            output,
            handle: Arc::new(()),
            shared,
        }))
    }
    /// As [`ChannelBuilder::build`] followed by [`Channel::subscribe`].
    ///
    /// # Errors
    /// Those of [`Channel::subscribe`].
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

    /// Joins, and resolves when the server has accepted. If the future is dropped, the channel goes on trying.
    ///
    /// # Errors
    /// The first failure: [`Error::Connect`], [`Error::Handshake`], [`Error::Lost`], [`Error::Refused`] or
    /// [`Error::TimedOut`]. The channel is left then, unlike after [`Channel::start`]. [`Error::TopicInUse`] if the
    /// client already has a channel on the topic.
    pub async fn subscribe(&self) -> Result<(), Error> {
        self.start().await?;
        match self.wait_subscribed().await {
            Ok(()) => Ok(()),
            Err(error) => {
                self.leave().await?;
                Err(error)
            }
        }
    }

    /// Starts to join without waiting. Retries until it succeeds; see [`Channel::status`].
    ///
    /// # Errors
    /// [`Error::TopicInUse`], or [`Error::Closed`].
    pub async fn start(&self) -> Result<(), Error> {
        let Inner { wire_topic, topic, join_config, output, handle, .. } = &*self.0;
        let state = ChannelState::new(
            wire_topic.clone(),
            topic.clone(),
            join_config.clone(),
            output.clone(),
            Arc::downgrade(handle),
        );
        self.ask(|answer| Command::Join(Box::new(state), answer)).await
    }

    /// Waits until the join has succeeded or failed.
    async fn wait_subscribed(&self) -> Result<(), Error> {
        let mut status = self.0.output.status.subscribe();
        let wait_subscribed = status.wait_for(|status| !matches!(status, Status::Joining)).await;
        match wait_subscribed.map(|status| status.clone()) {
            Ok(Status::Failed(error) | Status::Closed(error)) => Err(error),
            Ok(_) => Ok(()),
            Err(_) => Err(Error::Closed),
        }
    }

    /// The status of the channel; the receiver sees every change.
    #[must_use]
    pub fn status(&self) -> watch::Receiver<Status> {
        self.0.output.status.subscribe()
    }

    /// A listener for every event from now on.
    #[must_use]
    pub fn events(&self) -> Listener<Event> {
        self.listen(Some)
    }
    /// A listener for the broadcasts of one event; `*` for all. Case-insensitive, as in the JavaScript client.
    #[must_use]
    pub fn broadcasts(&self, event: &str) -> Listener<Broadcast> {
        let wanted = event.to_owned();
        self.listen(move |event| match event {
            Event::Broadcast(broadcast) if wanted == "*" || broadcast.event.eq_ignore_ascii_case(&wanted) => {
                Some(broadcast)
            }
            _ => None,
        })
    }
    /// A listener for presence changes. After each one [`Channel::present`] is up to date.
    #[must_use]
    pub fn presences(&self) -> Listener<Arc<PresenceSync>> {
        self.listen(|event| match event {
            Event::Presence(sync) => Some(sync),
            _ => None,
        })
    }
    /// A listener for the row changes that passed any filter of the channel.
    #[must_use]
    pub fn changes(&self) -> Listener<Arc<Change>> {
        self.listen(|event| match event {
            Event::Change(change) => Some(change),
            _ => None,
        })
    }
    /// A listener for the row changes that passed this filter, which must be one of the channel's.
    #[must_use]
    pub fn changes_of(&self, filter: &ChangeFilter) -> Listener<Arc<Change>> {
        let wanted = filter.clone();
        self.listen(move |event| match event {
            Event::Change(change) if change.filters.iter().any(|filter| **filter == wanted) => Some(change),
            _ => None,
        })
    }
    fn listen<T>(&self, select: impl Fn(Event) -> Option<T> + Send + Sync + 'static) -> Listener<T> {
        Listener::new(self.0.clone(), self.0.output.events.subscribe(), select)
    }

    /// Broadcasts a JSON payload. Before the channel is subscribed, at most 100 messages are queued.
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

    /// Broadcasts bytes to receivers with serializer 2.0.0. This client must use 2.0.0 too.
    ///
    /// # Errors
    /// Those of [`Channel::broadcast`].
    pub async fn broadcast_bytes(&self, event: &str, data: impl Into<Bytes>) -> Result<(), Error> {
        let (event, encoding) = (event.to_owned(), Encoding::Binary);
        self.push(Body::Broadcast { event, encoding, data: data.into() }).await
    }

    /// Broadcasts over HTTP, without a subscription. Resolves when the server has accepted the message.
    ///
    /// # Errors
    /// [`Error::Http`] with the server's reason, [`Error::Payload`].
    pub async fn http_send(&self, event: &str, payload: impl Serialize) -> Result<(), Error> {
        let data = serde_json::to_vec(&payload).map_err(|e| Error::Payload(e.to_string()))?;
        self.0
            .client
            .post(&self.0.topic, event, self.0.join_config.private, Encoding::Json, data.into())
            .await
    }

    /// As [`Channel::http_send`], with bytes.
    ///
    /// # Errors
    /// Those of [`Channel::http_send`].
    pub async fn http_send_bytes(&self, event: &str, data: impl Into<Bytes>) -> Result<(), Error> {
        self.0
            .client
            .post(&self.0.topic, event, self.0.join_config.private, Encoding::Binary, data.into())
            .await
    }

    /// Sets this channel's presence meta, which replaces the previous one. It is sent again after a reconnect.
    ///
    /// # Errors
    /// [`Error::Payload`] if `meta` is not a JSON object, else those of [`Channel::broadcast`] on an acknowledged
    /// channel.
    pub async fn track(&self, meta: impl Serialize) -> Result<(), Error> {
        let meta = serde_json::to_value(&meta).map_err(|e| Error::Payload(e.to_string()))?;
        if !meta.is_object() {
            return Err(Error::Payload("tracked metadata must be a JSON object".into()));
        }
        self.push(Body::Track(meta.to_string().into())).await
    }

    /// Removes this channel's presence meta.
    ///
    /// # Errors
    /// Those of [`Channel::track`].
    pub async fn untrack(&self) -> Result<(), Error> {
        self.push(Body::Untrack).await
    }

    /// The presence state as of the last frame. Cheap to clone: metas are shared.
    #[must_use]
    pub fn present(&self) -> PresenceState {
        self.0.output.presence.read().clone()
    }

    /// Leaves at once. The topic can be joined again, also by this handle. Listeners end.
    ///
    /// # Errors
    /// [`Error::Closed`] if the client is closed already.
    pub async fn leave(&self) -> Result<(), Error> {
        let topic = self.0.wire_topic.clone();
        self.ask(|answer| Command::Leave(topic, answer)).await
    }

    /// The client of the channel.
    #[must_use]
    pub fn client(&self) -> &Client {
        &self.0.client
    }

    pub(super) fn is_private(&self) -> bool {
        self.0.join_config.private
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
