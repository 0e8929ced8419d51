//! The actor that owns the presence of every room.
use super::state::{Diff, Dot, Owner, State};
use crate::{
    hub::{Hub, Message, Outbox, Room, SubscriberId, SubscriptionHandle},
    scope::{OnExit, Scope},
    telemetry::Registry,
    wire::{Frame, Ref, Version, text},
};
use bytes::Bytes;
use parking_lot::Mutex;
use prometheus_client::metrics::{counter::Counter, gauge::Gauge};
use serde_json::{Map, Value};
use std::{
    collections::{HashMap, HashSet, VecDeque, hash_map::Entry},
    sync::Arc,
    time::Duration,
};
use tokio::{
    sync::{Notify, oneshot},
    time::{Instant, sleep_until},
};
use tokio_util::sync::CancellationToken;

/// The debounce interval of a room for each of its subscribers: a difference costs one delivery for each of them,
/// so a larger room gets fewer, coalesced differences. A room of up to 79 subscribers gets each difference at once.
const PERIOD_PER_LISTENER: Duration = Duration::from_micros(25);
const PERIOD_MAX: Duration = Duration::from_millis(500);
/// A shorter interval counts as none.
const PERIOD_MIN: Duration = Duration::from_millis(2);

/// The least time between two differences of hosted agents.
pub const HOSTED_PERIOD: Duration = Duration::from_millis(50);
/// Queued commands above which clients wait before they track.
const COMMANDS_MAX: usize = 4096;
/// Commands handled before the actor yields to other tasks.
const BATCH: usize = 256;

/// The latest meta of each hosted agent in each room; `None` if it left.
type Hosted = HashMap<(Room, Arc<str>), Option<Map<String, Value>>>;

/// A handle to the presence actor. Clones share the actor.
#[derive(Clone)]
pub struct Tracker(Arc<Shared>);

struct Shared {
    /// Clients wait at [`COMMANDS_MAX`]. Untracking does not wait; it is bounded by the number of tracked channels.
    commands: Mutex<VecDeque<Command>>,
    /// Pending changes of hosted agents. The last value wins, so it is bounded by the number of agents and rooms.
    hosted: Mutex<Hosted>,
    /// The keys of hosted agents in their rooms.
    hosted_keys: Mutex<HashSet<(Room, Arc<str>)>>,
    wake: Notify,
    wait_for_space: Notify,
}

enum Command {
    Track { room: Room, id: SubscriberId, key: Arc<str>, meta: Map<String, Value> },
    Untrack { room: Room, id: SubscriberId },
    Send { room: Room, request: StateRequest },
    Reply { room: Room, reply: Reply },
    Snapshot { room: Room, answer: oneshot::Sender<Bytes> },
}

/// A reply frame for one socket that must follow the differences before it.
struct Reply {
    outbox: Arc<Outbox>,
    frame: Frame,
}

impl Reply {
    fn write(&self) {
        // A closed outbox means that the connection is ending: the reply has no receiver.
        let _closed = self.outbox.push(&self.frame);
    }
}

/// A channel's request for its `presence_state`.
pub struct StateRequest {
    /// The channel's subscription. It receives presence differences from this state on.
    pub handle: SubscriptionHandle,
    /// The outbox of its socket.
    pub outbox: Arc<Outbox>,
    /// The serializer of its socket.
    pub version: Version,
    /// The reference of its join.
    pub join_ref: Option<Ref>,
}

impl Tracker {
    /// Starts the actor in `scope`. Registers the metrics `presence_…` in `registry`.
    #[must_use]
    pub fn start(scope: &Scope, hub: Hub, registry: &Registry) -> Self {
        let shared = Arc::new(Shared {
            commands: Mutex::default(),
            hosted: Mutex::default(),
            hosted_keys: Mutex::default(),
            wake: Notify::new(),
            wait_for_space: Notify::new(),
        });
        let actor = Actor {
            hub,
            rooms: HashMap::new(),
            pending_rooms: HashSet::new(),
            replica: rand::random(),
            counter: 0,
            diffs: Counter::default(),
            room_count: Gauge::default(),
        };
        registry.register("presence_diffs", "Presence differences published to rooms", actor.diffs.clone());
        registry.register(
            "presence_rooms",
            "Rooms with at least one presence entry",
            actor.room_count.clone(),
        );
        let tracker = Self(shared.clone());
        scope.spawn("presence", OnExit::StopDaemon, |stop| actor.run(shared, stop));
        tracker
    }

    /// Sets the meta of the hosted agent `key` in `room`. Never waits. Changes within one [`HOSTED_PERIOD`] are
    /// coalesced to the last; an unchanged meta is not published.
    pub fn set(&self, room: Room, key: &str, meta: Map<String, Value>) {
        // `hosted_keys` is updated at once, not by the actor: `is_hosted` must not lag behind `set`.
        let entry: (Room, Arc<str>) = (room, key.into());
        self.0.hosted_keys.lock().insert(entry.clone());
        self.0.hosted.lock().insert(entry, Some(meta));
        self.0.wake.notify_one();
    }

    /// Removes the hosted agent `key` from `room`. Never waits.
    pub fn clear(&self, room: Room, key: &str) {
        let entry: (Room, Arc<str>) = (room, key.into());
        self.0.hosted_keys.lock().remove(&entry);
        self.0.hosted.lock().insert(entry, None);
        self.0.wake.notify_one();
    }

    /// Whether a hosted agent is in `room` under this key.
    #[must_use]
    pub fn is_hosted(&self, room: &Room, key: &str) -> bool {
        self.0.hosted_keys.lock().contains(&(room.clone(), key.into()))
    }

    /// The current `presence_state` payload of a room.
    pub async fn snapshot(&self, room: Room) -> Bytes {
        let (answer, probe_answered) = oneshot::channel();
        self.send(Command::Snapshot { room, answer });
        probe_answered.await.unwrap_or_else(|_| Bytes::from_static(b"{}"))
    }

    /// The presence of one channel. Dropping the handle removes its meta.
    #[must_use]
    pub fn member(&self, room: Room, id: SubscriberId) -> PresenceHandle {
        PresenceHandle { tracker: self.clone(), room, id, tracked: false }
    }

    fn send(&self, command: Command) {
        self.0.commands.lock().push_back(command);
        self.0.wake.notify_one();
    }

    async fn wait_for_space(&self) {
        loop {
            // Registered before the length is read: a notification in between is not lost.
            let freed = self.0.wait_for_space.notified();
            if self.0.commands.lock().len() < COMMANDS_MAX {
                return;
            }
            freed.await;
        }
    }
}

/// The presence of one channel.
pub struct PresenceHandle {
    tracker: Tracker,
    room: Room,
    id: SubscriberId,
    tracked: bool,
}

impl PresenceHandle {
    /// Sets the meta of this channel under `key`. Waits while [`COMMANDS_MAX`] commands are queued. Dropping the
    /// future before it resolves sets nothing.
    pub async fn track(&mut self, key: Arc<str>, meta: Map<String, Value>) {
        self.tracker.wait_for_space().await;
        self.tracked = true;
        self.tracker.send(Command::Track { room: self.room.clone(), id: self.id, key, meta });
    }

    /// Removes the meta of this channel. Never waits.
    pub fn untrack(&mut self) {
        if std::mem::take(&mut self.tracked) {
            self.tracker.send(Command::Untrack { room: self.room.clone(), id: self.id });
        }
    }

    /// Writes `frame` to `outbox` after the differences of the preceding calls. Never waits. Must be called once for
    /// each [`PresenceHandle::track`] and [`PresenceHandle::untrack`]: a client that has the reply has the difference too.
    pub fn reply(&self, outbox: Arc<Outbox>, frame: Frame) {
        let reply = Reply { outbox, frame };
        self.tracker.send(Command::Reply { room: self.room.clone(), reply });
    }

    /// Sends the whole state to a channel, which receives every later difference. Never waits.
    pub fn send_state(&self, request: StateRequest) {
        self.tracker.send(Command::Send { room: self.room.clone(), request });
    }
}

impl Drop for PresenceHandle {
    fn drop(&mut self) {
        self.untrack();
    }
}

struct Actor {
    hub: Hub,
    rooms: HashMap<Room, RoomState>,
    /// Rooms with a debounced difference, state request or reply.
    pending_rooms: HashSet<Room>,
    replica: u32,
    counter: u64,
    diffs: Counter,
    room_count: Gauge,
}

/// The presence of one room.
#[derive(Default)]
struct RoomState {
    state: State,
    /// The difference since the last publication.
    pending: Diff,
    /// Requests for the state. Each receives every difference after it.
    state_requests: Vec<StateRequest>,
    /// Replies to the calls whose differences are pending. Each call adds at most one.
    replies: Vec<Reply>,
    last_sent: Option<Instant>,
    /// The encoded state, until it changes.
    payload: Option<Bytes>,
}

impl Actor {
    async fn run(mut self, shared: Arc<Shared>, stop: CancellationToken) -> anyhow::Result<()> {
        let mut hosted_due = Instant::now();
        while !stop.is_cancelled() {
            let mut wait = None;
            if Instant::now() >= hosted_due {
                let changes = std::mem::take(&mut *shared.hosted.lock());
                if !changes.is_empty() {
                    self.hosted(changes);
                    hosted_due = Instant::now() + HOSTED_PERIOD;
                }
            } else if !shared.hosted.lock().is_empty() {
                wait = Some(hosted_due);
            }
            // The lock is held only to take a batch, never while commands are handled.
            let batch: Vec<_> = {
                let mut commands = shared.commands.lock();
                let size = commands.len().min(BATCH);
                commands.drain(..size).collect()
            };
            let busy = !batch.is_empty();
            if busy {
                shared.wait_for_space.notify_waiters();
                batch.into_iter().for_each(|command| self.handle(command));
            }
            let due = self.flush_due(Instant::now());
            if busy {
                tokio::task::yield_now().await;
                continue;
            }
            wait = wait.into_iter().chain(due).min();
            tokio::select! {
                biased;
                () = stop.cancelled() => break,
                () = shared.wake.notified() => {}
                () = sleep_until(wait.unwrap_or_else(Instant::now)), if wait.is_some() => {}
            }
        }
        Ok(())
    }

    fn handle(&mut self, command: Command) {
        match command {
            Command::Track { room, id, key, meta } => {
                self.track(&room, Owner::Channel(id.0), &key, meta);
                self.flush_or_schedule(room);
            }
            Command::Untrack { room, id } => {
                self.untrack(&room, &Owner::Channel(id.0));
                self.flush_or_schedule(room);
            }
            Command::Send { room, request } => {
                self.room_mut(&room).state_requests.push(request);
                self.flush_or_schedule(room);
            }
            // The difference of the preceding call may be debounced; the reply must not overtake it.
            Command::Reply { room, reply } => match self.rooms.get_mut(&room) {
                Some(entry) if self.pending_rooms.contains(&room) => entry.replies.push(reply),
                _ => reply.write(),
            },
            Command::Snapshot { room, answer } => {
                let payload = self.rooms.get_mut(&room).map(|entry| entry.payload(&self.hub));
                let _gone = answer.send(payload.unwrap_or(Bytes::from_static(b"{}")));
            }
        }
    }

    fn hosted(&mut self, changes: Hosted) {
        let mut rooms = HashSet::new();
        for ((room, key), meta) in changes {
            let owner = Owner::Hosted(key.clone());
            match meta {
                Some(meta) => self.track(&room, owner, &key, meta),
                None => self.untrack(&room, &owner),
            }
            rooms.insert(room);
        }
        rooms.into_iter().for_each(|room| self.flush_or_schedule(room));
    }

    fn track(&mut self, room: &Room, owner: Owner, key: &str, meta: Map<String, Value>) {
        let dot = Dot { replica: self.replica, counter: self.counter + 1 };
        let entry = self.room_mut(room);
        let diff = entry.state.track(dot, owner, key, meta);
        entry.changed(diff);
        self.counter += 1;
    }

    fn untrack(&mut self, room: &Room, owner: &Owner) {
        if let Some(entry) = self.rooms.get_mut(room) {
            let diff = entry.state.untrack(owner);
            entry.changed(diff);
        }
    }

    fn room_mut(&mut self, room: &Room) -> &mut RoomState {
        let last = Dot { replica: self.replica, counter: self.counter };
        match self.rooms.entry(room.clone()) {
            Entry::Occupied(entry) => entry.into_mut(),
            Entry::Vacant(vacant) => {
                self.room_count.inc();
                vacant.insert(RoomState { state: State::since(last), ..RoomState::default() })
            }
        }
    }

    /// Publishes at once if the room is small or its debounce interval is over, else at the end of the interval.
    fn flush_or_schedule(&mut self, room: Room) {
        if self.due(&room) <= Instant::now() {
            self.flush(&room);
        } else {
            self.pending_rooms.insert(room);
        }
    }

    /// The earliest time of the room's next publication.
    fn due(&self, room: &Room) -> Instant {
        let now = Instant::now();
        let last_sent = self.rooms.get(room).and_then(|entry| entry.last_sent);
        let listeners = u32::try_from(self.hub.watchers(room)).unwrap_or(u32::MAX);
        let period = PERIOD_PER_LISTENER.saturating_mul(listeners).min(PERIOD_MAX);
        last_sent.filter(|_| period >= PERIOD_MIN).map_or(now, |last_sent| last_sent + period)
    }

    /// Publishes the rooms that are due. Returns when the next one is.
    fn flush_due(&mut self, now: Instant) -> Option<Instant> {
        let mut next: Option<Instant> = None;
        for room in std::mem::take(&mut self.pending_rooms) {
            let due = self.due(&room);
            if due <= now {
                self.flush(&room);
            } else {
                next = Some(next.map_or(due, |next| next.min(due)));
                self.pending_rooms.insert(room);
            }
        }
        next
    }

    /// Sends the difference to all subscribers that have the state before it, then the state to new ones, so that
    /// every difference that a subscriber receives applies to its state. Replies come last.
    fn flush(&mut self, room: &Room) {
        let Some(entry) = self.rooms.get_mut(room) else { return };
        let diff = std::mem::take(&mut entry.pending);
        if !diff.is_empty() {
            self.diffs.inc();
            if self.hub.watchers(room) > 0 {
                self.hub.publish(room, Message::presence_diff(diff.payload()), None);
            }
            entry.last_sent = Some(Instant::now());
        }
        if !entry.state_requests.is_empty() {
            let (payload, topic) = (entry.payload(&self.hub), room.wire_topic());
            for StateRequest { handle, outbox, version, join_ref } in
                std::mem::take(&mut entry.state_requests)
            {
                let (before, after) =
                    text::envelope(version, join_ref.as_ref(), None, &topic, "presence_state");
                // A closed outbox means that the connection is ending.
                let _closed = outbox.push_around(&before, payload.clone(), after);
                // Set after the state is enqueued: the subscriber must not receive a difference before its state.
                handle.set_presence(true);
            }
            entry.last_sent = Some(Instant::now());
        }
        entry.replies.drain(..).for_each(|reply| reply.write());
        // An empty room is dropped. `State::since` keeps its old dots from reappearing.
        if entry.state.is_empty() {
            self.rooms.remove(room);
            self.room_count.dec();
        }
    }
}

impl RoomState {
    fn changed(&mut self, diff: Diff) {
        if !diff.is_empty() {
            self.payload = None;
            self.pending.extend(diff);
        }
    }

    fn payload(&mut self, hub: &Hub) -> Bytes {
        self.payload.get_or_insert_with(|| hub.counted(self.state.payload())).clone()
    }
}

#[cfg(test)]
mod tests;
