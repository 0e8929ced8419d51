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
    collections::{HashMap, HashSet, VecDeque, hash_map::Entry},
    sync::Arc,
    time::Duration,
};
use tokio::{
    sync::{Notify, oneshot},
    time::{Instant, sleep_until},
};
use tokio_util::sync::CancellationToken;

/// A room of so many listeners hears its differences at most so often: telling one costs a visit to each, so
/// thousands who come at once are told together, and presence takes a small part of the time. A room of a few
/// hears each at once.
const PERIOD_PER_LISTENER: Duration = Duration::from_micros(25);
const PERIOD_MAX: Duration = Duration::from_millis(500);
/// What is shorter is no wait at all.
const PERIOD_MIN: Duration = Duration::from_millis(2);

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
    /// The keys under which hosted agents are in their rooms.
    hosted_keys: Mutex<HashSet<(Room, Arc<str>)>>,
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
            hosted_keys: Mutex::default(),
            wake: Notify::new(),
            space: Notify::new(),
        });
        let actor = Actor {
            hub,
            rooms: HashMap::new(),
            untold: HashSet::new(),
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
        let place: (Room, Arc<str>) = (room, key.into());
        self.0.hosted_keys.lock().insert(place.clone());
        self.0.hosted.lock().insert(place, Some(meta));
        self.0.wake.notify_one();
    }

    /// The hosted agent `key` is no longer in `room`. Never waits.
    pub fn clear(&self, room: Room, key: &str) {
        let place: (Room, Arc<str>) = (room, key.into());
        self.0.hosted_keys.lock().remove(&place);
        self.0.hosted.lock().insert(place, None);
        self.0.wake.notify_one();
    }

    /// Whether a hosted agent is in `room` under this key.
    #[must_use]
    pub fn is_hosted(&self, room: &Room, key: &str) -> bool {
        self.0.hosted_keys.lock().contains(&(room.clone(), key.into()))
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
    rooms: HashMap<Room, Place>,
    /// Rooms with something that has not been told.
    untold: HashSet<Room>,
    replica: u32,
    counter: u64,
    diffs: Counter,
    room_count: Gauge,
}

/// One room.
#[derive(Default)]
struct Place {
    state: State,
    /// What has happened since it was last told.
    pending: Diff,
    /// Who gets the state after that, and hears every later difference.
    newcomers: Vec<StateRequest>,
    told: Option<Instant>,
    /// The payload of the state, until it changes.
    payload: Option<Bytes>,
}

impl Actor {
    async fn run(mut self, shared: Arc<Shared>, stop: CancellationToken) -> anyhow::Result<()> {
        let mut hosted_due = Instant::now();
        while !stop.is_cancelled() {
            let mut wait = None;
            if Instant::now() >= hosted_due {
                let said = std::mem::take(&mut *shared.hosted.lock());
                if !said.is_empty() {
                    self.hosted(said);
                    hosted_due = Instant::now() + HOSTED_PERIOD;
                }
            } else if !shared.hosted.lock().is_empty() {
                wait = Some(hosted_due);
            }
            let batch: Vec<_> = {
                let mut commands = shared.commands.lock();
                let size = commands.len().min(BATCH);
                commands.drain(..size).collect()
            };
            let busy = !batch.is_empty();
            if busy {
                shared.space.notify_waiters();
                batch.into_iter().for_each(|command| self.handle(command));
            }
            let due = self.tell_due(Instant::now());
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
                self.tell_now_or_later(room);
            }
            Command::Untrack { room, id } => {
                self.untrack(&room, &Owner::Channel(id.0));
                self.tell_now_or_later(room);
            }
            Command::Send { room, request } => {
                self.place(&room).newcomers.push(request);
                self.tell_now_or_later(room);
            }
            Command::Look { room, answer } => {
                let payload = self.rooms.get_mut(&room).map(Place::payload);
                let _gone = answer.send(payload.unwrap_or(Bytes::from_static(b"{}")));
            }
        }
    }

    fn hosted(&mut self, said: Hosted) {
        let mut rooms = HashSet::new();
        for ((room, key), meta) in said {
            let owner = Owner::Hosted(key.clone());
            match meta {
                Some(meta) => self.track(&room, owner, &key, meta),
                None => self.untrack(&room, &owner),
            }
            rooms.insert(room);
        }
        rooms.into_iter().for_each(|room| self.tell_now_or_later(room));
    }

    fn track(&mut self, room: &Room, owner: Owner, key: &str, meta: Map<String, Value>) {
        let dot = Dot { replica: self.replica, counter: self.counter + 1 };
        let place = self.place(room);
        let diff = place.state.track(dot, owner, key, meta);
        place.changed(diff);
        self.counter += 1;
    }

    fn untrack(&mut self, room: &Room, owner: &Owner) {
        if let Some(place) = self.rooms.get_mut(room) {
            let diff = place.state.untrack(owner);
            place.changed(diff);
        }
    }

    fn place(&mut self, room: &Room) -> &mut Place {
        let last = Dot { replica: self.replica, counter: self.counter };
        match self.rooms.entry(room.clone()) {
            Entry::Occupied(place) => place.into_mut(),
            Entry::Vacant(vacant) => {
                self.room_count.inc();
                vacant.insert(Place { state: State::since(last), ..Place::default() })
            }
        }
    }

    /// At once when the room is small or has been told nothing for a while.
    fn tell_now_or_later(&mut self, room: Room) {
        if self.due(&room) <= Instant::now() {
            self.tell(&room);
        } else {
            self.untold.insert(room);
        }
    }

    /// When the room may be told something.
    fn due(&self, room: &Room) -> Instant {
        let now = Instant::now();
        let told = self.rooms.get(room).and_then(|place| place.told);
        let listeners = u32::try_from(self.hub.watchers(room)).unwrap_or(u32::MAX);
        let period = PERIOD_PER_LISTENER.saturating_mul(listeners).min(PERIOD_MAX);
        told.filter(|_| period >= PERIOD_MIN).map_or(now, |told| told + period)
    }

    /// Tells what is due; gives when the next is.
    fn tell_due(&mut self, now: Instant) -> Option<Instant> {
        let mut next: Option<Instant> = None;
        for room in std::mem::take(&mut self.untold) {
            let due = self.due(&room);
            if due <= now {
                self.tell(&room);
            } else {
                next = Some(next.map_or(due, |next| next.min(due)));
                self.untold.insert(room);
            }
        }
        next
    }

    /// First the difference to all who know the state before it, then the state to those who are new: every
    /// difference that they hear applies to it.
    fn tell(&mut self, room: &Room) {
        let Some(place) = self.rooms.get_mut(room) else { return };
        let diff = std::mem::take(&mut place.pending);
        if !diff.is_empty() {
            self.diffs.inc();
            if self.hub.watchers(room) > 0 {
                self.hub.publish(room, Message::presence_diff(diff.payload()), None);
            }
            place.told = Some(Instant::now());
        }
        if !place.newcomers.is_empty() {
            let (payload, topic) = (place.payload(), room.wire_topic());
            for StateRequest { ear, outbox, version, join_ref } in std::mem::take(&mut place.newcomers) {
                let (before, after) =
                    text::envelope(version, join_ref.as_ref(), None, &topic, "presence_state");
                // A closed outbox means that the socket is going.
                let _closed = outbox.push_around(&before, payload.clone(), after);
                ear.set_presence(true);
            }
            place.told = Some(Instant::now());
        }
        if place.state.is_empty() {
            self.rooms.remove(room);
            self.room_count.dec();
        }
    }
}

impl Place {
    fn changed(&mut self, diff: Diff) {
        if !diff.is_empty() {
            self.payload = None;
            self.pending.extend(diff);
        }
    }

    fn payload(&mut self) -> Bytes {
        self.payload.get_or_insert_with(|| self.state.payload()).clone()
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

    /// A member with a socket: hears presence from its state on, as a channel does.
    fn member(b: &Bench, outbox: &Arc<Outbox>) -> (crate::hub::Subscription, Member) {
        let hears = Hears { broadcast: true, presence: false };
        let subscription = b.hub.subscribe(b.room.clone(), Version::V2, outbox.clone(), hears);
        let member = b.tracker.member(b.room.clone(), subscription.id());
        let (ear, outbox) = (subscription.ear(), outbox.clone());
        member.send_state(StateRequest { ear, outbox, version: Version::V2, join_ref: None });
        (subscription, member)
    }

    /// What a client knows after these frames, and how many there were; it must never hear of one who leaves
    /// without having come, or comes twice.
    async fn known(outbox: &Outbox) -> (std::collections::BTreeMap<String, String>, usize) {
        let frames = outbox.frames().await.unwrap();
        let mut known: Option<std::collections::BTreeMap<String, String>> = None;
        let metas = |value: &Value| -> Vec<(String, String)> {
            let all = value.as_object().unwrap().iter();
            let refs = all.flat_map(|(key, value)| {
                let metas = value["metas"].as_array().unwrap().iter();
                metas.map(move |meta| (meta["phx_ref"].as_str().unwrap().to_owned(), key.clone()))
            });
            refs.collect()
        };
        for frame in &frames {
            let Frame::Text(text) = frame else { panic!("binary") };
            let frame: Value = serde_json::from_slice(text).unwrap();
            match (frame[3].as_str().unwrap(), &mut known) {
                ("presence_state", None) => known = Some(metas(&frame[4]).into_iter().collect()),
                ("presence_diff", Some(known)) => {
                    for (reference, key) in metas(&frame[4]["joins"]) {
                        assert_eq!(known.insert(reference, key), None, "came twice");
                    }
                    for (reference, key) in metas(&frame[4]["leaves"]) {
                        assert_eq!(known.remove(&reference), Some(key), "left without having come");
                    }
                }
                other => panic!("{other:?}"),
            }
        }
        (known.unwrap(), frames.len())
    }

    #[tokio::test(start_paused = true)]
    async fn ten_thousand_who_come_and_go_at_once_are_told_together_and_everybody_knows_the_same() {
        const MEMBERS: usize = 10_000;
        let b = bench();
        let (mut members, mut outboxes) = (Vec::new(), Vec::new());
        for n in 0..MEMBERS {
            let outbox = Arc::new(Outbox::new(100_000, usize::MAX));
            let (subscription, mut member) = member(&b, &outbox);
            member.track(format!("key-{n}").into(), meta(0)).await;
            members.push((subscription, member));
            outboxes.push(outbox);
        }
        // Some say something else, some go, some come back: all of it while others are still being told.
        for (n, (_, member)) in members.iter_mut().enumerate().take(3000) {
            member.track(format!("key-{n}").into(), meta(1)).await;
        }
        for (_, member) in members.iter_mut().skip(2000).take(2000) {
            member.untrack();
        }
        tokio::time::sleep(PERIOD_MAX * 2).await;
        let truth: Value = serde_json::from_slice(&b.tracker.look(b.room.clone()).await).unwrap();
        assert_eq!(truth.as_object().unwrap().len(), MEMBERS - 2000);
        let mut frames = 0;
        for outbox in outboxes.iter().step_by(1499) {
            let (known, count) = known(outbox).await;
            frames = frames.max(count);
            let keys: std::collections::BTreeSet<_> = known.into_values().collect();
            assert_eq!(keys.len(), MEMBERS - 2000);
            assert!(keys.iter().all(|key| truth.get(key).is_some()));
        }
        // One by one, the first would have heard 17,000 differences.
        assert!(frames < 200, "{frames}");
        assert!(b.tracker.look(b.room.clone()).await.len() < MEMBERS * 80);
        // And when all sockets close, the room is forgotten.
        drop(members);
        tokio::time::sleep(PERIOD_MAX * 2).await;
        assert_eq!(&b.tracker.look(b.room.clone()).await[..], b"{}");
        b.scope.drain(Duration::from_secs(1)).await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn a_large_room_that_was_quiet_hears_at_once() {
        let b = bench();
        let outbox = Arc::new(Outbox::new(100_000, usize::MAX));
        let mut members: Vec<_> = (0..1000).map(|_| member(&b, &outbox)).collect();
        tokio::time::sleep(PERIOD_MAX).await;
        outbox.frames().await.unwrap();
        let before = Instant::now();
        members[0].1.track("ada".into(), meta(1)).await;
        assert_eq!(outbox.frames().await.unwrap().len(), 1000);
        assert_eq!(before.elapsed(), Duration::ZERO);
        members[0].1.track("ada".into(), meta(2)).await;
        members[0].1.track("ada".into(), meta(3)).await;
        assert_eq!(outbox.frames().await.unwrap().len(), 1000, "told together");
        assert_eq!(before.elapsed().as_millis(), 25);
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
