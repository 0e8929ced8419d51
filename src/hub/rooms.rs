//! The subscriber lists of all rooms.
//!
//! Lists are sharded; each shard has a lock. A fan-out works on a snapshot of the list. A change
//! only invalidates the snapshot, and the next message rebuilds it: n joins in a row cost n
//! inserts, not n copies of the list.
use super::{Hub, Kind, Message, Outbox, Room, held_messages::HeldMessages, history::Gate, traffic::Counter};
use crate::wire::{Frame, Version};
use parking_lot::Mutex;
use std::{
    collections::{BTreeMap, HashMap},
    hash::{BuildHasher, RandomState},
    sync::{
        Arc,
        atomic::{AtomicU8, Ordering},
    },
};
use tokio::{sync::mpsc, time::Instant};

/// Shards of the subscriber lists: few threads meet on one lock.
const SHARDS: usize = 64;

/// A bit beside those of [`Interests`]: live messages are buffered or deduplicated because a replay is in progress.
const INTERCEPTED: u8 = 8;

/// Identifies one subscriber of one room; unique for the life of the process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SubscriberId(pub u64);

/// The kinds of message that a subscriber receives; can change while it is subscribed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Interests {
    /// Broadcasts.
    pub broadcast: bool,
    /// Presence differences.
    pub presence: bool,
}

impl Interests {
    /// Every kind.
    #[must_use]
    pub fn all() -> Self {
        Self { broadcast: true, presence: true }
    }
    fn bits(self) -> u8 {
        u8::from(self.broadcast) | u8::from(self.presence) << 1
    }
    fn from_bits(bits: u8) -> Self {
        Self { broadcast: bits & 1 != 0, presence: bits & 2 != 0 }
    }
}

pub(super) enum Sink {
    Socket { version: Version, outbox: Arc<Outbox> },
    Local(mpsc::Sender<(Room, Message)>),
}

pub(super) struct Subscriber {
    pub(super) id: SubscriberId,
    pub(super) sink: Sink,
    /// Bits of [`Interests`], `GATED` and `INTERCEPTED` in one atomic: a fan-out reads one word for each subscriber.
    interests: AtomicU8,
    gate: Mutex<Gate>,
    held: HeldMessages,
}

/// A bit beside those of [`Interests`]: the gate is not open.
const GATED: u8 = 4;

impl Subscriber {
    pub(super) fn receives(&self, kind: Kind) -> bool {
        let interests = Interests::from_bits(self.interests.load(Ordering::Acquire));
        match kind {
            Kind::Broadcast => interests.broadcast,
            Kind::Presence => interests.presence,
            Kind::System => true,
        }
    }

    /// True if the gate has taken the messages. Locks the gate only if it is not open.
    pub(super) fn hold<'a>(&self, messages: impl FnOnce() -> &'a [(u64, Message)]) -> bool {
        if self.interests.load(Ordering::Acquire) & GATED == 0 {
            return false;
        }
        // Before the gate is locked: counting may evict a connection.
        let messages = messages();
        self.gate.lock().take(messages)
    }

    /// Whether the messages were taken care of otherwise; one look at a bit for nearly every subscriber.
    pub(super) fn intercept<'a>(&self, messages: impl FnOnce() -> &'a [Message], topic: &str) -> bool {
        self.interests.load(Ordering::Acquire) & INTERCEPTED != 0
            && self.held.intercept(messages(), &self.sink, topic)
    }
}

/// Membership of a room. Dropping it unsubscribes.
pub struct Subscription {
    pub(super) hub: Hub,
    pub(super) room: Room,
    pub(super) subscriber: Arc<Subscriber>,
}

impl Subscription {
    /// The id that [`Hub::publish`] takes to exclude this subscriber.
    #[must_use]
    pub fn id(&self) -> SubscriberId {
        self.subscriber.id
    }
    /// The room.
    #[must_use]
    pub fn room(&self) -> &Room {
        &self.room
    }
    /// Ends the buffering of [`Hub::subscribe_held`]. Delivers `first`, each with its `meta.id`, then the messages
    /// buffered since that are not in it; live messages with an id of `first` are deduplicated from then on. An item
    /// without a frame is one that this subscriber may not or need not receive. Returns false if the buffer
    /// overflowed, so that messages are missing.
    pub fn release(&self, first: Vec<(String, Option<Frame>)>) -> bool {
        let Subscriber { held, sink, interests, .. } = &*self.subscriber;
        let (complete, skips) = held.release(first, sink, &self.room.wire_topic());
        // Cleared only after the buffer is delivered: until then a publisher must meet the lock of `held`.
        if !skips {
            interests.fetch_and(!INTERCEPTED, Ordering::AcqRel);
        }
        complete
    }
    /// A handle that changes the interests of the subscriber and its gate while the subscription is owned elsewhere.
    #[must_use]
    pub fn handle(&self) -> SubscriptionHandle {
        SubscriptionHandle(self.subscriber.clone())
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        self.hub.leave(&self.room, self.subscriber.id);
    }
}

/// Changes what a subscriber receives. Clones name the same subscriber.
#[derive(Clone)]
pub struct SubscriptionHandle(Arc<Subscriber>);

impl SubscriptionHandle {
    /// Replaces the interests from the next message on.
    pub fn set(&self, interests: Interests) {
        // Keeps the bits of the gate and of the interception, which other tasks change.
        let merge = |bits: u8| Some(interests.bits() | bits & !3);
        let _never_fails = self.0.interests.fetch_update(Ordering::AcqRel, Ordering::Acquire, merge);
    }
    /// Changes the gate for live messages of rooms with a history. `change` gets the present gate.
    pub(super) fn set_gate<T>(&self, change: impl FnOnce(&mut Gate) -> T) -> T {
        let mut gate = self.0.gate.lock();
        let outcome = change(&mut gate);
        // Under the gate's lock: a publisher that sees the bit and then finds the gate open delivers behind
        // the messages that `change` released.
        if matches!(*gate, Gate::Open) {
            self.0.interests.fetch_and(!GATED, Ordering::AcqRel);
        } else {
            self.0.interests.fetch_or(GATED, Ordering::AcqRel);
        }
        outcome
    }
    /// The present interests.
    #[must_use]
    pub fn interests(&self) -> Interests {
        Interests::from_bits(self.0.interests.load(Ordering::Acquire))
    }
    /// Turns presence on or off from the next message on; broadcasts are unchanged.
    pub fn set_presence(&self, on: bool) {
        if on {
            self.0.interests.fetch_or(2, Ordering::AcqRel);
        } else {
            self.0.interests.fetch_and(!2, Ordering::AcqRel);
        }
    }
}

/// A subscription to one room inside the daemon.
pub struct Listener {
    pub(super) queue: mpsc::Receiver<(Room, Message)>,
    pub(super) subscription: Subscription,
}

impl Listener {
    /// The next message, with its room. `None` if the hub is gone. Cancel safe.
    pub async fn recv(&mut self) -> Option<(Room, Message)> {
        self.queue.recv().await
    }
    /// A handle that changes what this listener receives.
    #[must_use]
    pub fn handle(&self) -> SubscriptionHandle {
        self.subscription.handle()
    }
    /// The id that [`Hub::publish`] takes to exclude this listener.
    #[must_use]
    pub fn id(&self) -> SubscriberId {
        self.subscription.id()
    }
}

type Snapshot = Arc<[Arc<Subscriber>]>;

struct Members {
    by_id: BTreeMap<SubscriberId, Arc<Subscriber>>,
    snapshot: Option<Snapshot>,
    traffic: Arc<Counter>,
}

impl Members {
    fn new() -> Self {
        let traffic = Arc::new(Counter::new(Instant::now()));
        Self { by_id: BTreeMap::new(), snapshot: None, traffic }
    }
}

pub(super) struct Rooms {
    hasher: RandomState,
    shards: [Mutex<HashMap<Room, Members>>; SHARDS],
}

impl Default for Rooms {
    fn default() -> Self {
        Self { hasher: RandomState::new(), shards: std::array::from_fn(|_| Mutex::default()) }
    }
}

impl Rooms {
    pub(super) fn insert(
        &self,
        room: &Room,
        id: SubscriberId,
        sink: Sink,
        (interests, is_held): (Interests, bool),
    ) -> Arc<Subscriber> {
        let (held, bit) =
            if is_held { (HeldMessages::holding(&sink), INTERCEPTED) } else { (HeldMessages::default(), 0) };
        let (interests, gate) = (AtomicU8::new(interests.bits() | bit), Mutex::default());
        let subscriber = Arc::new(Subscriber { id, sink, interests, gate, held });
        let mut shard = self.shard(room).lock();
        if !shard.contains_key(room) {
            shard.insert(room.clone(), Members::new());
        }
        if let Some(members) = shard.get_mut(room) {
            members.snapshot = None;
            members.by_id.insert(id, subscriber.clone());
        }
        subscriber
    }

    pub(super) fn remove(&self, room: &Room, id: SubscriberId) {
        let mut shard = self.shard(room).lock();
        let Some(members) = shard.get_mut(room) else { return };
        members.snapshot = None;
        members.by_id.remove(&id);
        if members.by_id.is_empty() {
            shard.remove(room);
        }
    }

    /// The subscribers of a room and its traffic counter; `None` if it has no subscribers.
    pub(super) fn snapshot(&self, room: &Room) -> Option<(Snapshot, Arc<Counter>)> {
        let mut shard = self.shard(room).lock();
        let members = shard.get_mut(room)?;
        // Ids ascend, and a BTreeMap iterates by id: a fan-out visits subscribers in the order of their joins.
        let subscribers = members.snapshot.get_or_insert_with(|| members.by_id.values().cloned().collect());
        Some((subscribers.clone(), members.traffic.clone()))
    }

    pub(super) fn traffic(&self, room: &Room) -> Option<Arc<Counter>> {
        self.shard(room).lock().get(room).map(|members| members.traffic.clone())
    }

    pub(super) fn count(&self, room: &Room) -> usize {
        self.shard(room).lock().get(room).map_or(0, |members| members.by_id.len())
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.shards.iter().map(|shard| shard.lock().len()).sum()
    }

    fn shard(&self, room: &Room) -> &Mutex<HashMap<Room, Members>> {
        let at = usize::try_from(self.hasher.hash_one(room) % SHARDS as u64).unwrap_or_default();
        #[expect(clippy::indexing_slicing, reason = "the remainder is less than the number of shards")]
        &self.shards[at]
    }
}
