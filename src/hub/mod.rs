//! Rooms, who listens to them, and saying something to everybody in one.
//!
//! Owns the subscriber lists and each socket's [`Outbox`]. [`Hub::publish`] never
//! waits: it takes a snapshot of the list, encodes the message once per
//! serializer, and puts the shared bytes into outboxes that are bounded in frames
//! and bytes, or, while there is little to do, past an empty outbox to the socket at
//! once. A reader that is too slow loses its connection, not its order, and
//! never slows anyone else. No lock is held across a fan-out. The order of one
//! publisher in one room is kept; nothing is stored.
//! Frames follow `reference/realtime-protocol.md` §4.2.
mod aside;
mod at_once;
pub mod history;
mod line;
mod message;
mod metrics;
mod outbox;
mod rooms;
mod traffic;

pub use history::{By, History};
pub use line::Line;
pub use message::{Kind, Message};
pub use outbox::{Closed, Outbox};
pub use rooms::{Ear, Hears, Listener, SubscriberId, Subscription};
pub use traffic::{Flow, Traffic};

use crate::{
    id::Topic,
    telemetry,
    wire::{Version, socket},
};
use at_once::{AtOnce, Turn};
use bytes::{Bytes, BytesMut};
use metrics::Metrics;
use outbox::Chunk;
use rooms::{Rooms, Sink, Subscriber};
use std::sync::{
    Arc, OnceLock,
    atomic::{AtomicU64, Ordering},
};
use tokio::{sync::mpsc, time::Instant};

/// Where a message goes: public and private rooms of one topic are two rooms.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Room {
    /// The topic without `realtime:`.
    pub topic: Topic,
    /// Whether only permitted tokens may enter.
    pub private: bool,
}

impl Room {
    /// The public room of a topic.
    #[must_use]
    pub fn public(topic: Topic) -> Self {
        Self { topic, private: false }
    }
    /// The topic as frames carry it.
    #[must_use]
    pub fn wire_topic(&self) -> String {
        format!("{}{}", crate::wire::TOPIC_PREFIX, self.topic)
    }
}

/// All rooms of a daemon. Clones name the same rooms.
#[derive(Clone)]
pub struct Hub(Arc<Inner>);

struct Inner {
    rooms: Rooms,
    next_id: AtomicU64,
    metrics: Metrics,
    history: OnceLock<History>,
    at_once: AtOnce,
}

impl Hub {
    /// A hub without rooms; its metrics are `hub_…` in `registry`.
    #[must_use]
    pub fn new(registry: &telemetry::Registry) -> Self {
        let metrics = Metrics::register(registry);
        let (rooms, next_id, history) = (Rooms::default(), AtomicU64::new(1), OnceLock::new());
        Self(Arc::new(Inner { rooms, next_id, metrics, history, at_once: AtOnce::new() }))
    }

    /// From now on rooms have the histories that it keeps; the first one counts.
    fn keep(&self, history: History) {
        let _the_first_counts = self.0.history.set(history);
    }

    /// The history, when broadcasts in this room are kept.
    #[must_use]
    pub fn history(&self, room: &Room) -> Option<&History> {
        self.0.history.get().filter(|history| history.keeps(room))
    }

    /// The histories, when any topic has one.
    #[must_use]
    pub fn histories(&self) -> Option<&History> {
        self.0.history.get()
    }

    /// Puts whole websocket frames out to one socket; never waits.
    pub fn put_out(&self, outbox: &Outbox, frames: Bytes, count: usize) {
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

    /// Resolves when whoever says much should say more: at once, unless the rooms with a history have got
    /// more than they can write. Cancel safe.
    pub async fn has_room(&self) {
        if let Some(history) = self.0.history.get().filter(|history| history.is_crowded()) {
            history.heard().await;
        }
    }

    /// Resolves when everything that was said in rooms with a history is kept and on its way: what outlives
    /// this, outlives the daemon. Cancel safe.
    pub async fn settled(&self) {
        if let Some(history) = self.0.history.get() {
            history.heard().await;
        }
    }

    /// Says `message` to everybody in `room` but `except`; never waits. Gives how many it was put out for.
    pub fn publish(&self, room: &Room, message: Message, except: Option<SubscriberId>) -> usize {
        self.publish_all(room, &[message], except)
    }

    /// Says several messages of one kind, in order, as [`Hub::publish`] says one: each outbox is visited,
    /// and its writer woken, once for all of them. Gives how many frames were put out. In a room with a history
    /// they are written first, and put out later: the number is how many listen.
    pub fn publish_all(&self, room: &Room, messages: &[Message], except: Option<SubscriberId>) -> usize {
        self.publish_by(room, messages, By { except, ..By::default() })
    }

    /// As [`Hub::publish_all`], by somebody of whom more is known.
    pub fn publish_by(&self, room: &Room, messages: &[Message], by: By) -> usize {
        let is_kept = messages.first().is_some_and(|message| message.kind() == Kind::Broadcast);
        if let Some(history) = self.history(room).filter(|_| is_kept) {
            history.say(room, messages.iter().cloned(), by);
            return self.watchers(room) * messages.len();
        }
        let delivered = self.deliver(room, messages, |it| Some(it.id) != by.except);
        for (outbox, frame) in by.then {
            // A closed outbox means that nobody is left to be told.
            let _closed = outbox.push(&frame);
        }
        delivered
    }

    /// Says `message` to these subscribers of `room` alone, of those that are there; never waits. Gives how
    /// many it was put out for.
    pub fn publish_to(&self, room: &Room, message: Message, only: &[SubscriberId]) -> usize {
        self.deliver(room, &[message], |it| only.contains(&it.id))
    }

    /// Puts out messages that are written, or that cannot be, with their numbers.
    fn deliver_kept(&self, room: &Room, messages: &[(u64, Message)], except: Option<SubscriberId>) {
        let frames: Vec<_> = messages.iter().map(|(id, message)| message.numbered(*id, false)).collect();
        self.deliver(room, &frames, |it| Some(it.id) != except && !it.hold(messages));
    }

    fn deliver(&self, room: &Room, messages: &[Message], wanted: impl Fn(&Subscriber) -> bool) -> usize {
        let Some(kind) = messages.first().map(Message::kind) else { return 0 };
        let metrics = &self.0.metrics;
        metrics.published.inc_by(messages.len() as u64);
        let Some((everybody, traffic)) = self.0.rooms.snapshot(room) else { return 0 };
        let mut chunks = Encoded { messages, topic: room.wire_topic(), v1: None, v2: None };
        let (mut delivered, mut bytes) = (0, 0);
        let mut turn = if messages.len() == 1 { self.0.at_once.turn() } else { None };
        for subscriber in everybody.iter() {
            if !subscriber.hears(kind) || !wanted(subscriber) {
                continue;
            }
            if subscriber.takes_aside(messages, &chunks.topic) {
                delivered += messages.len();
                continue;
            }
            match &subscriber.sink {
                Sink::Socket { version, outbox } => {
                    let Some(chunk) = chunks.get(*version) else { continue };
                    let pushed = if turn.as_mut().is_some_and(Turn::takes_one) {
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
        drop(turn);
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

    /// How many listen to `room`: cheap, to skip making a message that nobody hears.
    #[must_use]
    pub fn watchers(&self, room: &Room) -> usize {
        self.0.rooms.count(room)
    }

    /// How much is said in `room`; nothing when nobody is there.
    #[must_use]
    pub fn traffic(&self, room: &Room) -> Option<Traffic> {
        self.0.rooms.traffic(room).map(|counter| counter.read(Instant::now()))
    }

    /// How many differences of presence were ever put into outboxes.
    #[must_use]
    pub fn presence_deliveries(&self) -> u64 {
        self.0.metrics.presence.get()
    }

    /// Puts a socket's channel into a room, until the subscription is dropped.
    #[must_use]
    pub fn subscribe(&self, room: Room, version: Version, outbox: Arc<Outbox>, hears: Hears) -> Subscription {
        self.enter(room, Sink::Socket { version, outbox }, (hears, false))
    }

    /// As [`Hub::subscribe`], but what is said is held back until [`Subscription::release`].
    #[must_use]
    pub fn subscribe_held(
        &self,
        room: Room,
        version: Version,
        outbox: Arc<Outbox>,
        hears: Hears,
    ) -> Subscription {
        self.enter(room, Sink::Socket { version, outbox }, (hears, true))
    }

    /// Hears a room from inside the daemon; messages beyond `capacity` unread ones are dropped and counted.
    #[must_use]
    pub fn listen(&self, room: Room, capacity: usize) -> Listener {
        let (sender, queue) = mpsc::channel(capacity.max(1));
        let subscription = self.enter(room, Sink::Local(sender), (Hears::all(), false));
        Listener { queue, subscription }
    }

    fn enter(&self, room: Room, sink: Sink, hears: (Hears, bool)) -> Subscription {
        let id = SubscriberId(self.0.next_id.fetch_add(1, Ordering::Relaxed));
        let subscriber = self.0.rooms.insert(&room, id, sink, hears);
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

/// The frames of some messages, made for each serializer when its first receiver needs them.
struct Encoded<'a> {
    messages: &'a [Message],
    topic: String,
    v1: Option<Chunk>,
    v2: Option<Chunk>,
}

impl Encoded<'_> {
    /// Nothing when receivers of this version can have none of them.
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
            Chunk { bytes: bytes.freeze(), frames }
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
    async fn everybody_but_the_sender_hears_it_in_their_own_serializer() {
        let hub = Hub::new(&telemetry::Registry::default());
        let boxes = [socket(), socket(), socket()];
        let versions = [Version::V1, Version::V2, Version::V2];
        let subscriptions: Vec<_> = boxes
            .iter()
            .zip(versions)
            .map(|(outbox, version)| hub.subscribe(room(false), version, outbox.clone(), Hears::all()))
            .collect();
        let _elsewhere = hub.subscribe(room(true), Version::V2, socket(), Hears::all());
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
    async fn an_old_serializer_never_gets_bytes() {
        let hub = Hub::new(&telemetry::Registry::default());
        let (old, new) = (socket(), socket());
        let _a = hub.subscribe(room(false), Version::V1, old, Hears::all());
        let _b = hub.subscribe(room(false), Version::V2, new, Hears::all());
        let message = Message::user("raw", crate::wire::Encoding::Binary, Bytes::from_static(b"\xff"), None);
        assert_eq!(hub.publish(&room(false), message, None), 1);
    }

    #[tokio::test]
    async fn a_reader_that_stands_still_is_closed_and_counted_once() {
        let registry = telemetry::Registry::default();
        let hub = Hub::new(&registry);
        let (still, brisk) = (socket(), socket());
        let _a = hub.subscribe(room(false), Version::V2, still.clone(), Hears::all());
        let _b = hub.subscribe(room(false), Version::V2, brisk.clone(), Hears::all());
        for n in 0..20 {
            hub.publish(&room(false), Message::broadcast("tick", &serde_json::json!({ "n": n })), None);
            assert_eq!(brisk.frames().await.unwrap().len(), 1);
        }
        assert!(matches!(still.frames().await, Err(Closed::Slow { .. })));
        assert!(registry.encode().unwrap().contains("convoke_hub_slow_disconnects_total 1\n"));
    }

    #[tokio::test]
    async fn a_listener_inside_the_daemon_hears_the_message_itself() {
        let hub = Hub::new(&telemetry::Registry::default());
        let mut listener = hub.listen(room(false), 1);
        let message = || Message::broadcast("tick", &serde_json::json!({}));
        assert_eq!(hub.publish(&room(false), message(), None), 1);
        assert_eq!(hub.publish(&room(false), message(), None), 0, "full: dropped");
        let (from, _) = listener.recv().await.unwrap();
        assert_eq!(from, room(false));
    }

    #[tokio::test]
    async fn what_is_said_while_old_messages_are_read_comes_after_them_and_once() {
        let hub = Hub::new(&telemetry::Registry::default());
        let outbox = socket();
        let held = hub.subscribe_held(room(false), Version::V1, outbox.clone(), Hears::all());
        let message = |id: &str| {
            let meta = format!("{{\"id\":\"{id}\"}}").into();
            Message::user(id, crate::wire::Encoding::Json, Bytes::from_static(b"{}"), Some(meta))
        };
        let frame = |id: &str| message(id).encode(Version::V1, "realtime:den").unwrap();
        hub.publish(&room(false), message("b"), None);
        hub.publish(&room(false), message("c"), None);
        held.ear().set(Hears::all());
        assert!(held.release(["a", "b", "x"].map(|id| (id.to_owned(), Some(frame(id)))).into()));
        hub.publish_all(&room(false), &[message("x"), message("d")], None);
        hub.publish(&room(false), message("e"), None);
        assert_eq!(outbox.frames().await.unwrap(), ["a", "x", "b", "c", "d", "e"].map(frame));
    }
}
