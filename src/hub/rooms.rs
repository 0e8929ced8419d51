//! Who is in which room.
//!
//! Lists are changed under a lock of one of a few shards; a fan-out works on a
//! snapshot that is made when the first message after a change needs it, so that
//! ten thousand joins in a row cost ten thousand inserts and not their square.
use super::{Hub, Kind, Message, Outbox, Room, aside::Aside, history::Gate, traffic::Counter};
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

const SHARDS: usize = 64;

/// Beside the bits of [`Hears`]: the subscriber gets something otherwise than as it comes.
const ASIDE: u8 = 8;

/// One listener of one room, unique in this run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SubscriberId(pub u64);

/// Which kinds of message a subscriber gets; it can change while it listens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hears {
    /// What others say.
    pub broadcast: bool,
    /// Who comes and goes.
    pub presence: bool,
}

impl Hears {
    /// Everything.
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
    hears: AtomicU8,
    gate: Mutex<Gate>,
    aside: Aside,
}

/// Among the bits of what is heard: the gate is not open.
const GATED: u8 = 4;

impl Subscriber {
    pub(super) fn hears(&self, kind: Kind) -> bool {
        let hears = Hears::from_bits(self.hears.load(Ordering::Acquire));
        match kind {
            Kind::Broadcast => hears.broadcast,
            Kind::Presence => hears.presence,
            Kind::System => true,
        }
    }

    /// Whether the messages are behind a gate that takes care of them.
    pub(super) fn hold(&self, messages: &[(u64, Message)]) -> bool {
        self.hears.load(Ordering::Acquire) & GATED != 0 && self.gate.lock().take(messages)
    }

    /// Whether the messages were taken care of otherwise; one look at a bit for nearly everybody.
    pub(super) fn takes_aside(&self, messages: &[Message], topic: &str) -> bool {
        self.hears.load(Ordering::Acquire) & ASIDE != 0 && self.aside.take(messages, &self.sink, topic)
    }
}

/// A place in a room; dropping it leaves the room.
pub struct Subscription {
    pub(super) hub: Hub,
    pub(super) room: Room,
    pub(super) subscriber: Arc<Subscriber>,
}

impl Subscription {
    /// What [`Hub::publish`] takes to leave this one out.
    #[must_use]
    pub fn id(&self) -> SubscriberId {
        self.subscriber.id
    }
    /// Which room.
    #[must_use]
    pub fn room(&self) -> &Room {
        &self.room
    }
    /// Lets go what [`Hub::subscribe_held`] held back: those of `first`, each with its `meta.id`, that are not among
    /// what was said since, and then that; later, none of them comes again. One without a frame is nothing for this
    /// subscriber. False when more was said than could be held.
    pub fn release(&self, first: Vec<(String, Option<Frame>)>) -> bool {
        let Subscriber { aside, sink, hears, .. } = &*self.subscriber;
        let (complete, skips) = aside.release(first, sink, &self.room.wire_topic());
        if !skips {
            hears.fetch_and(!ASIDE, Ordering::AcqRel);
        }
        complete
    }
    /// A handle that changes what it hears, and writes to it, while the subscription lives elsewhere.
    #[must_use]
    pub fn ear(&self) -> Ear {
        Ear(self.subscriber.clone())
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        self.hub.leave(&self.room, self.subscriber.id);
    }
}

/// Changes what a subscriber hears. Clones name the same subscriber.
#[derive(Clone)]
pub struct Ear(Arc<Subscriber>);

impl Ear {
    /// From the next message on.
    pub fn set(&self, hears: Hears) {
        let others_kept = |bits: u8| Some(hears.bits() | bits & !3);
        let _never_fails = self.0.hears.fetch_update(Ordering::AcqRel, Ordering::Acquire, others_kept);
    }
    /// Changes what becomes of live messages of rooms with a history; `change` sees what it was.
    pub(super) fn set_gate<T>(&self, change: impl FnOnce(&mut Gate) -> T) -> T {
        let mut gate = self.0.gate.lock();
        let outcome = change(&mut gate);
        // Under the lock: who sees the bit and finds the gate open puts messages behind those let out.
        if matches!(*gate, Gate::Open) {
            self.0.hears.fetch_and(!GATED, Ordering::AcqRel);
        } else {
            self.0.hears.fetch_or(GATED, Ordering::AcqRel);
        }
        outcome
    }
    /// What it hears now.
    #[must_use]
    pub fn hears(&self) -> Hears {
        Hears::from_bits(self.0.hears.load(Ordering::Acquire))
    }
    /// From the next message on, presence is heard or not; broadcasts as before.
    pub fn set_presence(&self, heard: bool) {
        if heard {
            self.0.hears.fetch_or(2, Ordering::AcqRel);
        } else {
            self.0.hears.fetch_and(!2, Ordering::AcqRel);
        }
    }
}

/// Hears one room from inside the daemon.
pub struct Listener {
    pub(super) queue: mpsc::Receiver<(Room, Message)>,
    pub(super) subscription: Subscription,
}

impl Listener {
    /// The next message, with the room it was said in. Cancel safe.
    pub async fn recv(&mut self) -> Option<(Room, Message)> {
        self.queue.recv().await
    }
    /// What [`Hub::publish`] takes to leave this one out.
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
        (hears, held): (Hears, bool),
    ) -> Arc<Subscriber> {
        let (aside, bit) = if held { (Aside::holding(), ASIDE) } else { (Aside::default(), 0) };
        let (hears, gate) = (AtomicU8::new(hears.bits() | bit), Mutex::default());
        let subscriber = Arc::new(Subscriber { id, sink, hears, gate, aside });
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

    /// Who is there, and where to count what is said to them.
    pub(super) fn snapshot(&self, room: &Room) -> Option<(Snapshot, Arc<Counter>)> {
        let mut shard = self.shard(room).lock();
        let members = shard.get_mut(room)?;
        let everybody = members.snapshot.get_or_insert_with(|| members.by_id.values().cloned().collect());
        Some((everybody.clone(), members.traffic.clone()))
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
