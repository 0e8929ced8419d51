//! The actor that owns the presence of every room.
use super::state::{Diff, Dot, Owner, State};
use crate::{
    hub::{Ear, Hub, Message, Outbox, Room, SubscriberId},
    scope::{OnExit, Scope},
    telemetry::Registry,
    wire::{Ref, Version, text},
};
use bytes::Bytes;
use parking_lot::Mutex;
use prometheus_client::metrics::{counter::Counter, gauge::Gauge};
use serde_json::{Map, Value};
use std::{
    collections::{HashMap, VecDeque, hash_map::Entry},
    sync::Arc,
    time::Duration,
};
use tokio::{
    sync::{Notify, oneshot},
    time::{Instant, sleep_until},
};
use tokio_util::sync::CancellationToken;

/// Shortest time between two differences of hosted agents.
pub const HOSTED_PERIOD: Duration = Duration::from_millis(50);
/// Commands of clients that may wait before the next client has to.
const COMMANDS_MAX: usize = 4096;
/// Commands that are worked off before others may run.
const BATCH: usize = 256;

/// What each hosted agent said last in each room; nothing when it left.
type Hosted = HashMap<(Room, Arc<str>), Option<Map<String, Value>>>;

/// Says who is present. Clones speak to the same actor.
#[derive(Clone)]
pub struct Tracker(Arc<Shared>);

struct Shared {
    /// Clients wait at [`COMMANDS_MAX`]; leaving does not, and is bounded by those who came.
    commands: Mutex<VecDeque<Command>>,
    /// What hosted agents last said: the last value wins, so it is bounded by the number of agents.
    hosted: Mutex<Hosted>,
    wake: Notify,
    space: Notify,
}

enum Command {
    Track { room: Room, id: SubscriberId, key: Arc<str>, meta: Map<String, Value> },
    Untrack { room: Room, id: SubscriberId },
    Send { room: Room, request: StateRequest },
    Look { room: Room, answer: oneshot::Sender<Bytes> },
}

/// Where a channel wants its `presence_state`.
pub struct StateRequest {
    /// The channel's; it hears presence from this state on.
    pub ear: Ear,
    /// The socket's.
    pub outbox: Arc<Outbox>,
    /// The socket's.
    pub version: Version,
    /// Of the channel's join.
    pub join_ref: Option<Ref>,
}

impl Tracker {
    /// Starts the actor in `scope`; its metrics are `presence_…` in `registry`.
    #[must_use]
    pub fn start(scope: &Scope, hub: Hub, registry: &Registry) -> Self {
        let shared = Arc::new(Shared {
            commands: Mutex::default(),
            hosted: Mutex::default(),
            wake: Notify::new(),
            space: Notify::new(),
        });
        let actor = Actor {
            hub,
            rooms: HashMap::new(),
            replica: rand::random(),
            counter: 0,
            diffs: Counter::default(),
            room_count: Gauge::default(),
        };
        registry.register("presence_diffs", "Differences of presence told to rooms", actor.diffs.clone());
        registry.register("presence_rooms", "Rooms in which somebody is present", actor.room_count.clone());
        let tracker = Self(shared.clone());
        scope.spawn("presence", OnExit::StopDaemon, |stop| actor.run(shared, stop));
        tracker
    }

    /// Says what the hosted agent `key` does in `room`, in place of what it said before. Never waits; what is
    /// said within one [`HOSTED_PERIOD`] is told once, and saying the same again is not told.
    pub fn set(&self, room: Room, key: &str, meta: Map<String, Value>) {
        self.0.hosted.lock().insert((room, key.into()), Some(meta));
        self.0.wake.notify_one();
    }

    /// The hosted agent `key` is no longer in `room`. Never waits.
    pub fn clear(&self, room: Room, key: &str) {
        self.0.hosted.lock().insert((room, key.into()), None);
        self.0.wake.notify_one();
    }

    /// The `presence_state` payload of a room as it is now.
    pub async fn look(&self, room: Room) -> Bytes {
        let (answer, answered) = oneshot::channel();
        self.put(Command::Look { room, answer });
        answered.await.unwrap_or_else(|_| Bytes::from_static(b"{}"))
    }

    /// The presence of one channel of a client; dropping it leaves the room.
    #[must_use]
    pub fn member(&self, room: Room, id: SubscriberId) -> Member {
        Member { tracker: self.clone(), room, id, tracked: false }
    }

    fn put(&self, command: Command) {
        self.0.commands.lock().push_back(command);
        self.0.wake.notify_one();
    }

    async fn space(&self) {
        loop {
            let freed = self.0.space.notified();
            if self.0.commands.lock().len() < COMMANDS_MAX {
                return;
            }
            freed.await;
        }
    }
}

/// One channel's right to be present.
pub struct Member {
    tracker: Tracker,
    room: Room,
    id: SubscriberId,
    tracked: bool,
}

impl Member {
    /// Says `meta` under `key`, in place of what this channel said before. Waits when the actor is far behind;
    /// dropping the future says nothing.
    pub async fn track(&mut self, key: Arc<str>, meta: Map<String, Value>) {
        self.tracker.space().await;
        self.tracked = true;
        self.tracker.put(Command::Track { room: self.room.clone(), id: self.id, key, meta });
    }

    /// Takes back what it said; never waits.
    pub fn untrack(&mut self) {
        if std::mem::take(&mut self.tracked) {
            self.tracker.put(Command::Untrack { room: self.room.clone(), id: self.id });
        }
    }

    /// Sends the whole state to a channel, which hears every later difference; never waits.
    pub fn send_state(&self, request: StateRequest) {
        self.tracker.put(Command::Send { room: self.room.clone(), request });
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        self.untrack();
    }
}

struct Actor {
    hub: Hub,
    rooms: HashMap<Room, State>,
    replica: u32,
    counter: u64,
    diffs: Counter,
    room_count: Gauge,
}

impl Actor {
    async fn run(mut self, shared: Arc<Shared>, stop: CancellationToken) -> anyhow::Result<()> {
        let mut hosted_due = Instant::now();
        while !stop.is_cancelled() {
            let mut wait = false;
            if Instant::now() >= hosted_due {
                let said = std::mem::take(&mut *shared.hosted.lock());
                if !said.is_empty() {
                    self.hosted(said);
                    hosted_due = Instant::now() + HOSTED_PERIOD;
                }
            } else {
                wait = !shared.hosted.lock().is_empty();
            }
            let batch: Vec<_> = {
                let mut commands = shared.commands.lock();
                let size = commands.len().min(BATCH);
                commands.drain(..size).collect()
            };
            if !batch.is_empty() {
                shared.space.notify_waiters();
                batch.into_iter().for_each(|command| self.handle(command));
                tokio::task::yield_now().await;
                continue;
            }
            tokio::select! {
                biased;
                () = stop.cancelled() => break,
                () = shared.wake.notified() => {}
                () = sleep_until(hosted_due), if wait => {}
            }
        }
        Ok(())
    }

    fn handle(&mut self, command: Command) {
        match command {
            Command::Track { room, id, key, meta } => {
                let diff = self.track(&room, Owner::Channel(id.0), &key, meta);
                self.tell(&room, &diff);
            }
            Command::Untrack { room, id } => {
                let diff = self.untrack(&room, &Owner::Channel(id.0));
                self.tell(&room, &diff);
            }
            Command::Send { room, request } => {
                let payload = self.payload(&room);
                let (join_ref, topic) = (request.join_ref.as_ref(), room.wire_topic());
                let frame = text::encode(request.version, join_ref, None, &topic, "presence_state", &payload);
                // Nothing is published between the two: this actor is the only one that tells differences.
                let _closed = request.outbox.push(&frame);
                request.ear.set_presence(true);
            }
            Command::Look { room, answer } => {
                let _gone = answer.send(self.payload(&room));
            }
        }
    }

    fn hosted(&mut self, said: Hosted) {
        let mut diffs: HashMap<Room, Diff> = HashMap::new();
        for ((room, key), meta) in said {
            let owner = Owner::Hosted(key.clone());
            let diff = match meta {
                Some(meta) => self.track(&room, owner, &key, meta),
                None => self.untrack(&room, &owner),
            };
            diffs.entry(room).or_default().extend(diff);
        }
        diffs.iter().for_each(|(room, diff)| self.tell(room, diff));
    }

    fn track(&mut self, room: &Room, owner: Owner, key: &str, meta: Map<String, Value>) -> Diff {
        self.counter += 1;
        let dot = Dot { replica: self.replica, counter: self.counter };
        let state = match self.rooms.entry(room.clone()) {
            Entry::Occupied(state) => state.into_mut(),
            Entry::Vacant(vacant) => {
                self.room_count.inc();
                vacant.insert(State::default())
            }
        };
        state.track(dot, owner, key, meta)
    }

    fn untrack(&mut self, room: &Room, owner: &Owner) -> Diff {
        let Some(state) = self.rooms.get_mut(room) else { return Diff::default() };
        let diff = state.untrack(owner);
        if state.is_empty() {
            self.rooms.remove(room);
            self.room_count.dec();
        }
        diff
    }

    fn payload(&self, room: &Room) -> Bytes {
        self.rooms.get(room).map_or(Bytes::from_static(b"{}"), State::payload)
    }

    fn tell(&self, room: &Room, diff: &Diff) {
        if !diff.is_empty() {
            self.diffs.inc();
            if self.hub.watchers(room) > 0 {
                self.hub.publish(room, Message::presence_diff(diff.payload()), None);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{hub::Hears, id::Topic, wire::Frame};
    use serde_json::json;

    struct Bench {
        scope: Scope,
        hub: Hub,
        tracker: Tracker,
        room: Room,
    }

    fn bench() -> Bench {
        let (scope, registry) = (Scope::default(), Registry::default());
        let hub = Hub::new(&registry);
        let tracker = Tracker::start(&scope, hub.clone(), &registry);
        Bench { scope, hub, tracker, room: Room::public(Topic::new("org:demo").unwrap()) }
    }

    fn meta(n: u32) -> Map<String, Value> {
        json!({ "n": n }).as_object().cloned().unwrap()
    }

    fn payload(message: &Message) -> Value {
        serde_json::from_slice(&message.object().unwrap()).unwrap()
    }

    #[tokio::test(start_paused = true)]
    async fn what_a_hosted_agent_says_in_a_burst_is_told_once_and_the_last_word_counts() {
        let b = bench();
        let mut heard = b.hub.listen(b.room.clone(), 100);
        for n in 0..1000 {
            b.tracker.set(b.room.clone(), "triage", meta(n % 10));
            b.tracker.set(b.room.clone(), "other", meta(1));
        }
        let first = payload(&heard.recv().await.unwrap().1);
        assert_eq!(first["joins"]["triage"]["metas"][0]["n"], 9);
        assert_eq!(first["joins"]["other"]["metas"][0]["n"], 1);
        b.tracker.set(b.room.clone(), "other", meta(1));
        b.tracker.clear(b.room.clone(), "triage");
        let second = payload(&heard.recv().await.unwrap().1);
        assert_eq!(second["joins"], json!({}));
        assert_eq!(
            second["leaves"],
            first["joins"].as_object().map(|j| json!({"triage": j["triage"]})).unwrap()
        );
        b.scope.drain(Duration::from_secs(1)).await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn a_state_and_the_differences_after_it_are_the_whole_truth() {
        let b = bench();
        let outbox = Arc::new(Outbox::new(1000, 1_000_000));
        let mut others: Vec<_> =
            (0..50).map(|n| b.tracker.member(b.room.clone(), SubscriberId(1000 + n))).collect();
        for (n, other) in others.iter_mut().enumerate() {
            other.track(format!("k{n}").into(), meta(0)).await;
            if n == 25 {
                let hears = Hears { broadcast: true, presence: false };
                let subscription = b.hub.subscribe(b.room.clone(), Version::V2, outbox.clone(), hears);
                let request = StateRequest {
                    ear: subscription.ear(),
                    outbox: outbox.clone(),
                    version: Version::V2,
                    join_ref: None,
                };
                b.tracker.member(b.room.clone(), subscription.id()).send_state(request);
                std::mem::forget(subscription);
            }
        }
        others.truncate(40);
        let truth: Value = serde_json::from_slice(&b.tracker.look(b.room.clone()).await).unwrap();
        let mut known: Option<Map<String, Value>> = None;
        for frame in outbox.frames().await.unwrap() {
            let Frame::Text(text) = frame else { panic!("binary") };
            let frame: Value = serde_json::from_slice(&text).unwrap();
            match (frame[3].as_str().unwrap(), &mut known) {
                ("presence_state", None) => known = frame[4].as_object().cloned(),
                ("presence_diff", Some(known)) => {
                    known.extend(frame[4]["joins"].as_object().cloned().unwrap());
                    known.retain(|key, _| frame[4]["leaves"].get(key).is_none());
                }
                other => panic!("{other:?}"),
            }
        }
        assert_eq!(Value::Object(known.unwrap()), truth);
        assert_eq!(truth.as_object().unwrap().len(), 40);
    }

    #[tokio::test(start_paused = true)]
    async fn a_channel_that_goes_takes_its_presence_with_it() {
        let b = bench();
        let mut member = b.tracker.member(b.room.clone(), SubscriberId(1));
        member.track("ada".into(), meta(1)).await;
        drop(member);
        assert_eq!(&b.tracker.look(b.room.clone()).await[..], b"{}");
    }
}
