//! Rooms, their subscribers, and the fan-out of a message to all subscribers of a room.
//!
//! Owns the subscriber lists and each socket's [`Outbox`]. [`Hub::publish`] never
//! waits: it takes a snapshot of the list, encodes the message once per
//! serializer, and puts the shared bytes into outboxes that are bounded in frames
//! and bytes. While the hub is idle it writes past an empty outbox to the socket inline.
//! A slow subscriber is disconnected; it is never sent a reordered stream and
//! never delays other subscribers. No lock is held across a fan-out, except the write permit,
//! which other publishers only try. The order of one
//! publisher in one room is kept. Only rooms with a [`History`] are stored.
//! Frames follow `docs/spec/realtime-protocol.md` §4.2.
mod held_buffer;
mod held_messages;
pub mod history;
mod inline_write;
pub mod memory;
mod message;
mod metrics;
mod outbox;
mod rooms;
mod socket_writer;
mod traffic;

pub use history::{History, Origin};
pub use memory::Memory;
pub use message::{Kind, Message};
pub use outbox::{Closed, Outbox};
pub use rooms::{Interests, Listener, SubscriberId, Subscription, SubscriptionHandle};
pub use socket_writer::SocketWriter;
pub use traffic::{Flow, Traffic};

use crate::{
    id::Topic,
    telemetry,
    wire::{Version, socket},
};
use bytes::{Bytes, BytesMut};
use inline_write::InlineWrite;
use metrics::Metrics;
use outbox::Chunk;
use rooms::{Rooms, Sink, Subscriber};
use std::{
    cell::OnceCell,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU64, Ordering},
    },
};
use tokio::{sync::mpsc, time::Instant};

/// The destination of a message. The public and the private room of one topic are different rooms.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Room {
    /// The topic without `realtime:`.
    pub topic: Topic,
    /// Whether the room admits only authorized tokens.
    pub private: bool,
}

impl Room {
    /// The public room of a topic.
    #[must_use]
    pub fn public(topic: Topic) -> Self {
        Self { topic, private: false }
    }
    /// The topic as frames carry it, with `realtime:`.
    #[must_use]
    pub fn wire_topic(&self) -> String {
        format!("{}{}", crate::wire::TOPIC_PREFIX, self.topic)
    }
}

/// All rooms of a daemon. Clones share the same rooms.
#[derive(Clone)]
pub struct Hub(Arc<Inner>);

struct Inner {
    rooms: Rooms,
    next_id: AtomicU64,
    metrics: Metrics,
    history: OnceLock<History>,
    inline: InlineWrite,
    counting: memory::Counting,
}

impl Hub {
    /// A hub without rooms; its metrics are `hub_…` in `registry`.
    #[must_use]
    pub fn new(registry: &telemetry::Registry) -> Self {
        let metrics = Metrics::register(registry);
        let (rooms, next_id, history) = (Rooms::default(), AtomicU64::new(1), OnceLock::new());
        let (inline, counting) = (InlineWrite::new(), memory::Counting::default());
        Self(Arc::new(Inner { rooms, next_id, metrics, history, inline, counting }))
    }

    /// Charges messages to `memory` until they are written. Only the first call has an effect.
    pub fn count_in(&self, memory: Memory) {
        self.0.counting.set(memory);
    }

    /// Charges bytes that several outboxes share until the last outbox has written them.
    #[must_use]
    pub fn counted(&self, bytes: Bytes) -> Bytes {
        self.0.counting.counted(bytes, None)
    }

    /// Sets the store of histories. Only the first call has an effect.
    fn keep(&self, history: History) {
        let _only_the_first = self.0.history.set(history);
    }

    /// The history if broadcasts in this room are kept, else `None`.
    #[must_use]
    pub fn history(&self, room: &Room) -> Option<&History> {
        self.0.history.get().filter(|history| history.keeps(room))
    }

    /// The histories if any topic has one, else `None`.
    #[must_use]
    pub fn histories(&self) -> Option<&History> {
        self.0.history.get()
    }

    /// Enqueues `count` whole websocket frames to one socket. Never waits.
    pub fn enqueue(&self, outbox: &Outbox, frames: Bytes, count: usize) {
        let metrics = &self.0.metrics;
        let bytes = frames.len() as u64;
        match outbox.push_chunk(Chunk { bytes: frames, frames: count }) {
            Ok(()) => {
                metrics.delivered.inc_by(count as u64);
                metrics.bytes.inc_by(bytes);
            }
            Err(Closed::Slow { first: true }) => {
                metrics.slow.inc();
            }
            Err(_) => {}
        }
    }

    /// An empty charge that belongs to no connection; `None` until memory is counted.
    #[must_use]
    pub fn charge(&self) -> Option<memory::Charge> {
        self.0.counting.charge()
    }

    /// The charge of the index of histories, and its limit in bytes; `None` until memory is counted.
    fn index_charge(&self) -> Option<(memory::Charge, usize)> {
        self.0.counting.index()
    }

    /// Backpressure for publishers: resolves at once unless more than 4 MiB wait to be written to histories,
    /// else when everything published before this call is written. Cancel safe.
    pub async fn wait_for_capacity(&self) {
        if let Some(history) = self.0.history.get().filter(|history| history.is_crowded()) {
            history.wait_delivered().await;
        }
    }

    /// Resolves when every broadcast published before this call to a room with a history is written and
    /// enqueued. Such a broadcast survives a kill of the daemon, unless the disk failed: then it is enqueued
    /// without being kept. Cancel safe.
    pub async fn wait_delivered(&self) {
        if let Some(history) = self.0.history.get() {
            history.wait_delivered().await;
        }
    }

    /// Publishes `message` to every subscriber of `room` but `except`. Never waits. Returns the number of deliveries.
    pub fn publish(&self, room: &Room, message: Message, except: Option<SubscriberId>) -> usize {
        self.publish_all(room, &[message], except)
    }

    /// Publishes several messages of one kind, in order. Each outbox is locked and its writer woken once for all
    /// of them. Returns the number of enqueued frames. In a room with a history the messages are written first
    /// and enqueued later; the number is then an estimate: the present subscribers times the messages.
    pub fn publish_all(&self, room: &Room, messages: &[Message], except: Option<SubscriberId>) -> usize {
        self.publish_by(room, messages, Origin { except, ..Origin::default() })
    }

    /// As [`Hub::publish_all`], with the sender, its acknowledgements and its memory account.
    pub fn publish_by(&self, room: &Room, messages: &[Message], origin: Origin) -> usize {
        let is_kept = messages.first().is_some_and(|message| message.kind() == Kind::Broadcast);
        // In a room with a history the writer delivers: a subscriber must not receive what is not yet kept.
        if let Some(history) = self.history(room).filter(|_| is_kept) {
            history.append(room, &self.0.counting, messages, origin);
            return self.watchers(room) * messages.len();
        }
        let sender = origin.sender.as_ref();
        let delivered = self.deliver(room, messages, sender, |it| Some(it.id) != origin.except);
        for (outbox, frame) in origin.acknowledgements {
            // A closed outbox means that the sender is disconnected: the acknowledgement has no receiver.
            let _closed = outbox.push(&frame);
        }
        delivered
    }

    /// Publishes `message` only to those of `only` that subscribe to `room`. Never waits. Returns the number of
    /// deliveries.
    pub fn publish_to(&self, room: &Room, message: Message, only: &[SubscriberId]) -> usize {
        self.deliver(room, &[message], None, |it| only.contains(&it.id))
    }

    /// Delivers messages with their numbers, after they are written or have failed to be written.
    fn deliver_kept(&self, room: &Room, messages: &[(u64, Message)], except: Option<SubscriberId>) {
        let frames: Vec<_> = messages.iter().map(|(id, message)| message.numbered(*id, false)).collect();
        // Built when the first gate buffers: almost every subscriber's gate is open.
        let held: OnceCell<Vec<(u64, Message)>> = OnceCell::new();
        let counted = || {
            let count = |(id, message): &(u64, Message)| (*id, message.counted(&self.0.counting, None));
            held.get_or_init(|| messages.iter().map(count).collect()).as_slice()
        };
        self.deliver(room, &frames, None, |it| Some(it.id) != except && !it.hold(counted));
    }

    fn deliver(
        &self,
        room: &Room,
        messages: &[Message],
        sender: Option<&Arc<memory::Account>>,
        wanted: impl Fn(&Subscriber) -> bool,
    ) -> usize {
        let Some(kind) = messages.first().map(Message::kind) else { return 0 };
        let metrics = &self.0.metrics;
        metrics.published.inc_by(messages.len() as u64);
        // The clone of the snapshot is independent of the list: joins and leaves go on during the fan-out.
        let Some((subscribers, traffic)) = self.0.rooms.snapshot(room) else { return 0 };
        let (topic, counting) = (room.wire_topic(), (&self.0.counting, sender));
        let mut chunks = Encoded { messages, topic, counting, v1: None, v2: None };
        let held: OnceCell<Vec<Message>> = OnceCell::new();
        let counted = || {
            let count = |message: &Message| message.counted(&self.0.counting, sender);
            held.get_or_init(|| messages.iter().map(count).collect()).as_slice()
        };
        let (mut delivered, mut bytes) = (0, 0);
        // A batch is never written inline: its bytes are better coalesced by the sockets' own tasks.
        let mut permit = if messages.len() == 1 { self.0.inline.try_acquire() } else { None };
        for subscriber in subscribers.iter() {
            if !subscriber.receives(kind) || !wanted(subscriber) {
                continue;
            }
            if subscriber.intercept(counted, &chunks.topic) {
                delivered += messages.len();
                continue;
            }
            match &subscriber.sink {
                Sink::Socket { version, outbox } => {
                    let Some(chunk) = chunks.get(*version) else { continue };
                    let pushed =
                        if permit.as_mut().is_some_and(|permit| permit.admits_socket(chunk.bytes.len())) {
                            outbox.write_chunk(chunk.clone())
                        } else {
                            outbox.push_chunk(chunk.clone())
                        };
                    match pushed {
                        Ok(()) => {
                            delivered += chunk.frames;
                            bytes += chunk.bytes.len();
                        }
                        Err(Closed::Slow { first: true }) => {
                            metrics.slow.inc();
                        }
                        Err(_) => {}
                    }
                }
                Sink::Local(queue) => {
                    for message in messages {
                        match queue.try_send((room.clone(), message.clone())) {
                            Ok(()) => delivered += 1,
                            Err(_) => {
                                metrics.local_dropped.inc();
                            }
                        }
                    }
                }
            }
        }
        drop(permit);
        metrics.delivered.inc_by(delivered as u64);
        metrics.bytes.inc_by(bytes as u64);
        if kind == Kind::Presence {
            metrics.presence.inc_by(delivered as u64);
        }
        let bytes_in: usize = messages.iter().map(Message::size).sum();
        let flow = [messages.len(), bytes_in, delivered, bytes].map(|count| count as f64);
        let [messages_in, bytes_in, messages_out, bytes_out] = flow;
        traffic.count(Instant::now(), Flow { messages_in, bytes_in, messages_out, bytes_out });
        delivered
    }

    /// The number of subscribers of `room`. Cheap; callers use it to skip building a message without receivers.
    #[must_use]
    pub fn watchers(&self, room: &Room) -> usize {
        self.0.rooms.count(room)
    }

    /// The traffic of `room`; `None` if it has no subscribers.
    #[must_use]
    pub fn traffic(&self, room: &Room) -> Option<Traffic> {
        self.0.rooms.traffic(room).map(|counter| counter.read(Instant::now()))
    }

    /// The number of `presence_diff` frames ever enqueued.
    #[must_use]
    pub fn presence_deliveries(&self) -> u64 {
        self.0.metrics.presence.get()
    }

    /// Subscribes a socket's channel to a room until the subscription is dropped.
    #[must_use]
    pub fn subscribe(
        &self,
        room: Room,
        version: Version,
        outbox: Arc<Outbox>,
        interests: Interests,
    ) -> Subscription {
        self.enter(room, Sink::Socket { version, outbox }, (interests, false))
    }

    /// As [`Hub::subscribe`], but buffers live messages until [`Subscription::release`].
    #[must_use]
    pub fn subscribe_held(
        &self,
        room: Room,
        version: Version,
        outbox: Arc<Outbox>,
        interests: Interests,
    ) -> Subscription {
        self.enter(room, Sink::Socket { version, outbox }, (interests, true))
    }

    /// Subscribes to a room inside the daemon. Messages beyond `capacity` unread ones are dropped and counted.
    #[must_use]
    pub fn listen(&self, room: Room, capacity: usize) -> Listener {
        let (sender, queue) = mpsc::channel(capacity.max(1));
        let subscription = self.enter(room, Sink::Local(sender), (Interests::all(), false));
        Listener { queue, subscription }
    }

    fn enter(&self, room: Room, sink: Sink, interests: (Interests, bool)) -> Subscription {
        // Relaxed: the id only has to be unique.
        let id = SubscriberId(self.0.next_id.fetch_add(1, Ordering::Relaxed));
        let subscriber = self.0.rooms.insert(&room, id, sink, interests);
        Subscription { hub: self.clone(), room, subscriber }
    }

    fn leave(&self, room: &Room, id: SubscriberId) {
        self.0.rooms.remove(room, id);
    }
}

impl std::fmt::Debug for Hub {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Hub")
    }
}

/// The frames of some messages, encoded for each serializer when its first receiver needs them.
struct Encoded<'a> {
    messages: &'a [Message],
    topic: String,
    /// The memory that the frames are charged to, and the sender's account.
    counting: (&'a memory::Counting, Option<&'a Arc<memory::Account>>),
    v1: Option<Chunk>,
    v2: Option<Chunk>,
}

impl Encoded<'_> {
    /// `None` if receivers of this version can receive none of the messages.
    fn get(&mut self, version: Version) -> Option<&Chunk> {
        let slot = match version {
            Version::V1 => &mut self.v1,
            Version::V2 => &mut self.v2,
        };
        let chunk = slot.get_or_insert_with(|| {
            let (mut bytes, mut frames) = (BytesMut::new(), 0);
            for frame in self.messages.iter().filter_map(|message| message.encode(version, &self.topic)) {
                bytes.reserve(frame.size() + socket::HEADER_BYTES_MAX);
                socket::put_frame(&mut bytes, &frame);
                frames += 1;
            }
            let (counting, sender) = self.counting;
            Chunk { bytes: counting.counted(bytes.freeze(), sender), frames }
        });
        (chunk.frames > 0).then_some(chunk)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::Frame;

    fn room(private: bool) -> Room {
        Room { topic: Topic::new("den").unwrap(), private }
    }

    fn socket() -> Arc<Outbox> {
        Arc::new(Outbox::new(10, 1000))
    }

    #[tokio::test]
    async fn publish_reaches_every_subscriber_but_the_sender_in_its_serializer() {
        let hub = Hub::new(&telemetry::Registry::default());
        let boxes = [socket(), socket(), socket()];
        let versions = [Version::V1, Version::V2, Version::V2];
        let subscriptions: Vec<_> = boxes
            .iter()
            .zip(versions)
            .map(|(outbox, version)| hub.subscribe(room(false), version, outbox.clone(), Interests::all()))
            .collect();
        let _elsewhere = hub.subscribe(room(true), Version::V2, socket(), Interests::all());
        assert_eq!(hub.watchers(&room(false)), 3);

        let message =
            Message::user("ping", crate::wire::Encoding::Json, Bytes::from_static(b"{\"n\":1}"), None);
        assert_eq!(hub.publish(&room(false), message, Some(subscriptions[2].id())), 2);
        let object = r#"{"topic":"realtime:den","event":"broadcast","payload":{"type":"broadcast","event":"ping","payload":{"n":1}},"ref":null}"#;
        assert_eq!(boxes[0].frames().await.unwrap(), [Frame::Text(object.into())]);
        let binary = b"\x04\x0c\x04\x00\x01realtime:denping{\"n\":1}";
        assert_eq!(boxes[1].frames().await.unwrap(), [Frame::Binary(Bytes::from_static(binary))]);

        drop(subscriptions);
        assert_eq!(hub.watchers(&room(false)), 0);
        assert_eq!(hub.0.rooms.len(), 1, "an empty room is forgotten");
    }

    #[tokio::test]
    async fn binary_payload_is_never_sent_to_serializer_1() {
        let hub = Hub::new(&telemetry::Registry::default());
        let (old, new) = (socket(), socket());
        let _a = hub.subscribe(room(false), Version::V1, old, Interests::all());
        let _b = hub.subscribe(room(false), Version::V2, new, Interests::all());
        let message = Message::user("raw", crate::wire::Encoding::Binary, Bytes::from_static(b"\xff"), None);
        assert_eq!(hub.publish(&room(false), message, None), 1);
    }

    #[tokio::test]
    async fn slow_subscriber_is_closed_and_counted_once() {
        let registry = telemetry::Registry::default();
        let hub = Hub::new(&registry);
        let (still, brisk) = (socket(), socket());
        let _a = hub.subscribe(room(false), Version::V2, still.clone(), Interests::all());
        let _b = hub.subscribe(room(false), Version::V2, brisk.clone(), Interests::all());
        for n in 0..20 {
            hub.publish(&room(false), Message::broadcast("tick", &serde_json::json!({ "n": n })), None);
            assert_eq!(brisk.frames().await.unwrap().len(), 1);
        }
        assert!(matches!(still.frames().await, Err(Closed::Slow { .. })));
        assert!(registry.encode().unwrap().contains("convoke_hub_slow_disconnects_total 1\n"));
    }

    #[tokio::test]
    async fn local_listener_receives_the_unencoded_message() {
        let hub = Hub::new(&telemetry::Registry::default());
        let mut listener = hub.listen(room(false), 1);
        let message = || Message::broadcast("tick", &serde_json::json!({}));
        assert_eq!(hub.publish(&room(false), message(), None), 1);
        assert_eq!(hub.publish(&room(false), message(), None), 0, "full: dropped");
        let (from, _) = listener.recv().await.unwrap();
        assert_eq!(from, room(false));
    }

    #[tokio::test]
    async fn live_messages_follow_the_replay_and_are_deduplicated() {
        let hub = Hub::new(&telemetry::Registry::default());
        let outbox = socket();
        let held = hub.subscribe_held(room(false), Version::V1, outbox.clone(), Interests::all());
        let message = |id: &str| {
            let meta = format!("{{\"id\":\"{id}\"}}").into();
            Message::user(id, crate::wire::Encoding::Json, Bytes::from_static(b"{}"), Some(meta))
        };
        let frame = |id: &str| message(id).encode(Version::V1, "realtime:den").unwrap();
        hub.publish(&room(false), message("b"), None);
        hub.publish(&room(false), message("c"), None);
        held.handle().set(Interests::all());
        assert!(held.release(["a", "b", "x"].map(|id| (id.to_owned(), Some(frame(id)))).into()));
        hub.publish_all(&room(false), &[message("x"), message("d")], None);
        hub.publish(&room(false), message("e"), None);
        assert_eq!(outbox.frames().await.unwrap(), ["a", "x", "b", "c", "d", "e"].map(frame));
    }

    fn counted(hub: &Hub, total: usize) -> Memory {
        let limits = memory::Limits { total, per_org: total, per_connection: total };
        let memory = Memory::new(limits, &telemetry::Registry::default());
        hub.count_in(memory.clone());
        memory
    }

    fn large(size: usize) -> Message {
        Message::user("e", crate::wire::Encoding::Binary, vec![b'x'; size].into(), None)
    }

    #[test]
    fn buffered_messages_count_once_in_total_and_for_each_buffering_socket() {
        let hub = Hub::new(&telemetry::Registry::default());
        let memory = counted(&hub, 100_000);
        let boxes = [1, 2].map(|_| Arc::new(Outbox::new(100, 4000)));
        let held = boxes
            .clone()
            .map(|outbox| hub.subscribe_held(room(false), Version::V2, outbox, Interests::all()));
        for _ in 0..3 {
            hub.publish(&room(false), large(1000), None);
        }
        assert_eq!((memory.state().0, boxes[0].held(), boxes[1].held()), (3000, 3000, 3000));
        // Exceeds the outboxes: the buffers are freed, and the loss is reported.
        for _ in 0..2 {
            hub.publish(&room(false), large(1000), None);
        }
        assert_eq!((memory.state().0, boxes[0].held()), (0, 0));
        assert!(held.iter().all(|held| !held.release(Vec::new())));
        hub.publish(&room(false), large(10), None);
        assert!(boxes[0].held() > 0, "live messages come");
    }

    #[test]
    fn socket_that_buffers_the_most_is_evicted() {
        let hub = Hub::new(&telemetry::Registry::default());
        let memory = counted(&hub, 5000);
        let boxes = [1, 2].map(|_| Arc::new(Outbox::new(100, 100_000)));
        let accounts = boxes.clone().map(|outbox| memory.account(None, &outbox));
        let den = |name: &str| Room::public(Topic::new(name).unwrap());
        let _held = ["a", "b"].map(|name| {
            let outbox = boxes[usize::from(name == "b")].clone();
            hub.subscribe_held(den(name), Version::V2, outbox, Interests::all())
        });
        hub.publish(&den("a"), large(1000), None);
        for _ in 0..5 {
            hub.publish(&den("b"), large(1000), None);
        }
        assert_eq!(accounts.map(|account| account.is_evicted()), [false, true]);
    }

    #[tokio::test]
    async fn messages_that_wait_for_the_history_are_charged_to_their_sender() {
        let (hub, registry) = (Hub::new(&telemetry::Registry::default()), telemetry::Registry::default());
        let (scope, folder) = (crate::scope::Scope::default(), tempfile::tempdir().unwrap());
        let minute = std::time::Duration::from_secs(60);
        let rule = history::Rule { topic: "*".into(), history: minute, resume: true };
        let (rules, config) = (history::Rules::new(vec![rule]), history::Config::default());
        let clock = crate::clock::Clock::System;
        let history = history::start(&scope, &hub, folder.path(), rules, &config, clock, &registry).unwrap();
        let memory = counted(&hub, 5000);
        let outbox = socket();
        let sender = memory.account(None, &outbox);
        let publish = |size| {
            let origin = Origin { sender: Some(sender.clone()), ..Origin::default() };
            hub.publish_by(&room(false), &[large(size)], origin);
        };
        // Nothing is written before this test waits: its runtime has one thread.
        publish(3000);
        assert_eq!(memory.state().0, 3000);
        publish(3000);
        assert_eq!(memory.state().0, 3000, "refused: the sender is the one that holds the most");
        assert!(registry.encode().unwrap().contains("convoke_history_refused_total 1\n"));
        history.wait_delivered().await;
        assert!((1..1000).contains(&memory.state().0), "written; its entry in the index counts");
        assert!(!sender.is_evicted());
        scope.drain(std::time::Duration::from_secs(5)).await.unwrap();
    }
}
