//! Agents that are connected by HTTP: each has an inbox that subscribes to its room and is read by long polls.
//!
//! An inbox is a listener of the room `agent:<id>` with a connection among the [`ConnectedAgents`], so that other
//! parts treat such an agent like one with a websocket. The agent is connected while a poll is open and for its
//! lease after its last request; then its connection ends at once. An inbox keeps each message until the next poll
//! confirms it, bounded in messages and bytes: the oldest are evicted first, and the agent gets their number.
use super::{
    connected_agents::{AgentConnection, ConnectedAgents, NotConnected, PresenceGuard, check_size},
    coordination::Coordination,
    identity::Identity,
    observers::{Held, ObserverGuard, Watched},
};
use crate::{
    auth::{Claims, Principal},
    hub::{Hub, Listener, Message, Room, SubscriberId, memory::Charge},
    id::{AgentId, ConnId, OrgId, Topic},
    scope::{OnExit, Scope},
};
use bytes::Bytes;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, value::RawValue};
use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
    time::Duration,
};
use tokio::{
    sync::Notify,
    time::{Instant, sleep_until, timeout_at},
};
use tokio_util::sync::CancellationToken;

/// How long an agent stays connected after its last request, by default.
pub const INBOX_LEASE: Duration = Duration::from_secs(10);
/// The shortest lease that an agent may ask for.
pub const INBOX_LEASE_MIN: Duration = Duration::from_secs(1);
/// The longest lease that an agent may ask for.
pub const INBOX_LEASE_MAX: Duration = Duration::from_secs(60);
/// Open inboxes of a daemon.
const INBOXES_MAX: usize = 10_000;
/// Messages of one inbox, and their bytes.
const MESSAGES_MAX: usize = 1_000;
const BYTES_MAX: usize = 1 << 20;
/// Memory of one value of the metadata beside its text, and of one object.
const VALUE_BYTES: usize = 32;
const OBJECT_BYTES: usize = 640;
/// Messages between the room and one inbox.
const LISTEN_MAX: usize = 256;

/// The inboxes of a daemon, and messages to agents over HTTP. Clones share one state.
#[derive(Clone)]
pub struct Inboxes(Arc<Inner>);

struct Inner {
    hub: Hub,
    identity: Identity,
    scope: Scope,
    inboxes: Mutex<HashMap<AgentId, Arc<Inbox>>>,
}

struct Inbox {
    channel: SubscriberId,
    state: Mutex<State>,
    changed: Notify,
    /// Notified when the observer must end.
    observer_wake: Arc<Notify>,
    /// Cancelled when the agent disconnects.
    closed: CancellationToken,
}

struct State {
    /// `None` once the inbox is closed.
    guard: Option<PresenceGuard>,
    observer: ObserverGuard,
    org: OrgId,
    lease: Duration,
    until: Instant,
    polls: usize,
    last_seq: u64,
    messages: VecDeque<InboxMessage>,
    bytes: usize,
    /// Memory of the agent's metadata.
    meta_bytes: usize,
    /// Counts both with the memory of all clients.
    charge: Option<Charge>,
    dropped: u64,
}

impl State {
    /// Updates the charge; false if the memory of all clients has no room for it.
    fn fits(&mut self) -> bool {
        let bytes = self.bytes + self.meta_bytes;
        self.charge.as_mut().is_none_or(|charge| charge.fits(bytes))
    }
}

/// The memory of an agent's metadata: its text and what the parsed values take beside it, twice, because its org sees a
/// copy in the presence of its room.
fn meta_bytes(meta: &Map<String, Value>) -> Result<usize, NotConnected> {
    fn values(value: &Value) -> usize {
        match value {
            Value::Array(list) => VALUE_BYTES + list.iter().map(values).sum::<usize>(),
            Value::Object(members) => OBJECT_BYTES + members.values().map(values).sum::<usize>(),
            _ => VALUE_BYTES,
        }
    }
    let text = check_size(meta)?;
    Ok(2 * (text + OBJECT_BYTES + meta.values().map(values).sum::<usize>()))
}

/// One message of an inbox.
#[derive(Clone, Debug, Serialize)]
pub struct InboxMessage {
    /// Its number in this inbox, from 1.
    pub seq: u64,
    /// `coordination`, `agent_message` or `agent_broadcast`.
    pub event: String,
    /// The user payload.
    pub payload: Box<RawValue>,
}

/// The messages that a poll returns.
#[derive(Debug, Serialize)]
pub struct InboxPage {
    /// In the order of the room.
    pub messages: Vec<InboxMessage>,
    /// The `after` with which the next poll confirms them.
    pub next: u64,
    /// Messages that were evicted since the agent connected, because the inbox was full.
    pub dropped: u64,
}

/// Why an agent cannot connect by HTTP.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// It belongs to another org than the token, or its metadata is too large.
    #[error(transparent)]
    NotConnected(#[from] NotConnected),
    /// Too many inboxes are open.
    #[error("too many agents are connected by HTTP; try again later")]
    Full,
    /// The memory of all clients has no room for the metadata.
    #[error("clients hold too much memory; try again later")]
    NoMemory,
}

/// Why a message was not sent.
#[derive(Debug, thiserror::Error)]
pub enum SendError {
    /// The sender may not send it to this room.
    #[error("{0}")]
    Forbidden(String),
    /// The queue of the daemon is full.
    #[error("too many messages wait; try again")]
    Full,
}

impl Inboxes {
    /// No inboxes yet. They close when `scope` stops.
    #[must_use]
    pub fn new(scope: &Scope, hub: Hub, identity: Identity) -> Self {
        let (scope, inboxes) = (scope.child(), Mutex::default());
        Self(Arc::new(Inner { hub, identity, scope, inboxes }))
    }

    /// Closes all inboxes, which disconnects their agents.
    pub fn stop(&self) {
        self.0.scope.stop();
    }

    /// Connects an agent with this presence metadata, or updates its connection.
    ///
    /// # Errors
    /// [`OpenError`].
    pub fn open(
        &self,
        agent: &AgentId,
        claims: Arc<Claims>,
        meta: Map<String, Value>,
        lease: Duration,
    ) -> Result<(), OpenError> {
        let lease = lease.clamp(INBOX_LEASE_MIN, INBOX_LEASE_MAX);
        let meta_bytes = meta_bytes(&meta)?;
        let mut inboxes = self.0.inboxes.lock();
        let principal = Principal::of(claims.clone());
        // The org of a service token says nothing about the agent that it acts as.
        let known = self.connected().org_of(agent).filter(|_| principal.is_service());
        let org = known.unwrap_or_else(|| principal.org());
        let meta = Arc::new(meta);
        if let Some(inbox) = inboxes.get(agent).filter(|inbox| !inbox.closed.is_cancelled()) {
            let mut state = inbox.state.lock();
            // One that is about to end, because it is of another org, is replaced.
            let is_open = state.guard.is_some() && !state.observer.must_end();
            if is_open {
                principal.may_be(agent, &state.org).map_err(NotConnected::from)?;
                let before = std::mem::replace(&mut state.meta_bytes, meta_bytes);
                if !state.fits() {
                    state.meta_bytes = before;
                    return Err(OpenError::NoMemory);
                }
            }
            if let Some(guard) = state.guard.as_ref().filter(|_| is_open) {
                guard.update(AgentConnection { channel: inbox.channel, claims: claims.clone(), meta });
                state.observer.renew(claims);
                (state.lease, state.until) = (lease, Instant::now() + lease);
                return Ok(());
            }
        }
        if inboxes.len() >= INBOXES_MAX {
            return Err(OpenError::Full);
        }
        let mut charge = self.0.hub.charge();
        if charge.as_mut().is_some_and(|charge| !charge.fits(meta_bytes)) {
            return Err(OpenError::NoMemory);
        }
        let listener = self.0.hub.listen(Room::public(Topic::agent(agent)), LISTEN_MAX);
        let channel = listener.id();
        let connection = AgentConnection { channel, claims: claims.clone(), meta };
        let guard = self.connected().connect(agent.clone(), connection).map_err(NotConnected::from)?;
        let observer_wake = Arc::new(Notify::new());
        let watched = Watched { claims, handle: listener.handle(), wake: observer_wake.clone() };
        let state = State {
            guard: Some(guard),
            observer: self.0.identity.watch(agent.clone(), Held::Room, watched),
            org,
            lease,
            until: Instant::now() + lease,
            polls: 0,
            last_seq: 0,
            messages: VecDeque::new(),
            bytes: 0,
            meta_bytes,
            charge,
            dropped: 0,
        };
        let (changed, closed) = (Notify::new(), self.0.scope.stopping().child_token());
        let inbox = Inbox { channel, state: Mutex::new(state), changed, observer_wake, closed };
        let inbox = Arc::new(inbox);
        inboxes.insert(agent.clone(), inbox.clone());
        // Unlock before the spawn: the new task takes this lock when it ends.
        drop(inboxes);
        let (inner, agent) = (self.0.clone(), agent.clone());
        self.0.scope.spawn("agent inbox", OnExit::Log, |_| async move {
            inbox.serve(listener).await;
            inner.forget(&agent, &inbox);
            Ok(())
        });
        Ok(())
    }

    /// Disconnects an agent; false if it was not connected by HTTP.
    #[must_use]
    pub fn close(&self, agent: &AgentId) -> bool {
        let inbox = self.0.inboxes.lock().get(agent).cloned();
        inbox.is_some_and(|inbox| {
            inbox.close();
            true
        })
    }

    /// Renews the lease of an agent, if it is connected by HTTP.
    pub fn renew(&self, agent: &AgentId) {
        if let Some(inbox) = self.0.inboxes.lock().get(agent) {
            let mut state = inbox.state.lock();
            state.until = Instant::now() + state.lease;
        }
    }

    /// Confirms the messages up to `after` and returns the later ones: as soon as there is one, or at `until`. The
    /// agent is connected meanwhile. `None` if it was not connected.
    pub async fn collect(&self, agent: &AgentId, after: u64, until: Instant) -> Option<InboxPage> {
        let inbox = self.0.inboxes.lock().get(agent).filter(|inbox| !inbox.closed.is_cancelled()).cloned()?;
        let poll = Poll::begin(&inbox, after);
        loop {
            // Register before the read: a message between the two would notify no one.
            let changed = inbox.changed.notified();
            let page = inbox.page();
            if !page.messages.is_empty() || inbox.closed.is_cancelled() {
                return Some(page);
            }
            let waited = tokio::select! {
                () = inbox.closed.cancelled() => return Some(inbox.page()),
                waited = timeout_at(until, changed) => waited,
            };
            if waited.is_err() {
                drop(poll);
                return Some(inbox.page());
            }
        }
    }

    /// The agents of an org that are connected by HTTP, with their channels.
    #[must_use]
    pub fn of_org(&self, org: &OrgId) -> Vec<(AgentId, SubscriberId)> {
        let inboxes = self.0.inboxes.lock();
        let of = inboxes.iter().filter(|(_, inbox)| inbox.state.lock().org == *org);
        of.map(|(agent, inbox)| (agent.clone(), inbox.channel)).collect()
    }

    /// Sends a message to a room as a client with a websocket does. `event` is [`Coordination::MESSAGE`] or
    /// [`Coordination::BROADCAST`].
    ///
    /// # Errors
    /// [`SendError`]; then nothing was sent.
    pub fn send(
        &self,
        claims: Arc<Claims>,
        event: &'static str,
        room: Room,
        payload: Bytes,
    ) -> Result<(), SendError> {
        let broadcast = Message::user(event, crate::wire::Encoding::Json, payload.clone(), None);
        let (conn, channel) = (ConnId(0), SubscriberId(0));
        let message = Coordination { conn, channel, event, claims, room: room.clone(), payload };
        self.0.identity.check_message(&message).map_err(SendError::Forbidden)?;
        if !self.0.identity.queue(message) {
            return Err(SendError::Full);
        }
        self.0.hub.publish(&room, broadcast, None);
        Ok(())
    }

    fn connected(&self) -> &ConnectedAgents {
        self.0.identity.connected_agents()
    }
}

impl Inner {
    /// Removes a closed inbox, unless the agent has opened another one meanwhile.
    fn forget(&self, agent: &AgentId, closed: &Arc<Inbox>) {
        let mut inboxes = self.inboxes.lock();
        if inboxes.get(agent).is_some_and(|inbox| Arc::ptr_eq(inbox, closed)) {
            inboxes.remove(agent);
        }
    }
}

/// An open poll: the agent stays connected until it is dropped.
struct Poll<'a>(&'a Inbox);

impl<'a> Poll<'a> {
    fn begin(of: &'a Inbox, after: u64) -> Self {
        let mut state = of.state.lock();
        state.polls += 1;
        while state.messages.front().is_some_and(|message| message.seq <= after) {
            let bytes = state.messages.pop_front().map_or(0, |message| message.payload.get().len());
            state.bytes = state.bytes.saturating_sub(bytes);
            let _less_fits = state.fits();
        }
        drop(state);
        Self(of)
    }
}

impl Drop for Poll<'_> {
    fn drop(&mut self) {
        let mut state = self.0.state.lock();
        state.polls = state.polls.saturating_sub(1);
        state.until = Instant::now() + state.lease;
    }
}

impl Inbox {
    /// Stores the messages of the room until the lease ends or the inbox is closed.
    async fn serve(&self, mut listener: Listener) {
        loop {
            let until = {
                let state = self.state.lock();
                if state.polls > 0 { Instant::now() + state.lease } else { state.until }
            };
            tokio::select! {
                biased;
                () = self.closed.cancelled() => break,
                // Before the queue: the agent is of another org, whose messages may be in it.
                () = self.observer_wake.notified() => if self.state.lock().observer.must_end() { break },
                received = listener.recv() => match received {
                    Some((_, message)) => self.put(&message),
                    None => break,
                },
                () = sleep_until(until) => {
                    let state = self.state.lock();
                    if state.polls == 0 && state.until <= Instant::now() {
                        break;
                    }
                }
            }
        }
        self.close();
    }

    fn close(&self) {
        self.state.lock().guard = None;
        self.closed.cancel();
    }

    fn put(&self, message: &Message) {
        #[derive(Deserialize)]
        struct Envelope {
            event: String,
            payload: Box<RawValue>,
        }
        let Some(object) = message.object() else { return };
        let Ok(Envelope { event, payload }) = serde_json::from_slice(&object) else { return };
        if !Coordination::EVENTS.contains(&event.as_str()) {
            return;
        }
        let bytes = payload.get().len();
        let mut state = self.state.lock();
        state.last_seq += 1;
        let seq = state.last_seq;
        state.bytes += bytes;
        state.messages.push_back(InboxMessage { seq, event, payload });
        while state.messages.len() > MESSAGES_MAX || state.bytes > BYTES_MAX || !state.fits() {
            let Some(oldest) = state.messages.pop_front() else { break };
            state.bytes = state.bytes.saturating_sub(oldest.payload.get().len());
            state.dropped += 1;
        }
        drop(state);
        self.changed.notify_waiters();
    }

    fn page(&self) -> InboxPage {
        let state = self.state.lock();
        let messages: Vec<InboxMessage> = state.messages.iter().cloned().collect();
        InboxPage { next: state.last_seq, dropped: state.dropped, messages }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{hub::memory, presence::Tracker, remote::Audience, telemetry::Registry};

    fn claims() -> Arc<Claims> {
        Claims::in_org("authenticated", "demo", Some("x")).into()
    }

    struct Rig {
        _scope: Scope,
        hub: Hub,
        connected: ConnectedAgents,
        inboxes: Inboxes,
        agent: AgentId,
    }

    fn rig() -> Rig {
        let (scope, registry) = (Scope::default(), Registry::default());
        let hub = Hub::new(&registry);
        let tracker = Tracker::start(&scope, hub.clone(), &registry);
        let identity = Identity::new(tracker, None, Audience::Everybody);
        let (connected, inboxes) =
            (identity.connected_agents().clone(), Inboxes::new(&scope, hub.clone(), identity));
        Rig { _scope: scope, hub, connected, inboxes, agent: "x".parse().unwrap() }
    }

    fn publish(hub: &Hub, n: usize, size: usize) {
        let payload = serde_json::json!({ "n": n, "text": "x".repeat(size) });
        hub.publish(
            &Room::public(Topic::new("agent:x").unwrap()),
            Message::broadcast("coordination", &payload),
            None,
        );
    }

    #[tokio::test(start_paused = true)]
    async fn agent_is_connected_while_it_polls_and_for_its_lease_after() {
        let Rig { _scope, hub: _, connected, inboxes, agent } = rig();
        assert!(inboxes.collect(&agent, 0, Instant::now()).await.is_none(), "not connected");
        inboxes.open(&agent, claims(), Map::new(), Duration::from_secs(2)).unwrap();
        let empty = inboxes.collect(&agent, 0, Instant::now() + Duration::from_secs(30)).await.unwrap();
        assert!(
            empty.messages.is_empty() && connected.latest(&agent).is_some(),
            "a poll longer than the lease"
        );
        tokio::time::sleep(Duration::from_millis(1500)).await;
        inboxes.renew(&agent);
        tokio::time::sleep(Duration::from_millis(1500)).await;
        assert!(connected.latest(&agent).is_some(), "a report renews the lease");
        tokio::time::sleep(Duration::from_secs(2)).await;
        assert!(connected.latest(&agent).is_none());
        assert!(inboxes.collect(&agent, 0, Instant::now()).await.is_none());
        inboxes.open(&agent, claims(), Map::new(), INBOX_LEASE).unwrap();
        assert!(inboxes.close(&agent));
        assert!(connected.latest(&agent).is_none(), "closed at once");
    }

    #[tokio::test(start_paused = true)]
    async fn messages_stay_until_they_are_confirmed_and_a_full_inbox_evicts_the_oldest() {
        let Rig { _scope, hub, connected: _, inboxes, agent } = rig();
        inboxes.open(&agent, claims(), Map::new(), INBOX_LEASE).unwrap();
        let soon = || Instant::now() + Duration::from_secs(5);
        let (got, ()) = tokio::join!(inboxes.collect(&agent, 0, soon()), async { publish(&hub, 1, 0) });
        assert_eq!(got.unwrap().messages.len(), 1);
        publish(&hub, 2, 0);
        tokio::task::yield_now().await;
        let again = inboxes.collect(&agent, 0, soon()).await.unwrap();
        assert_eq!(
            again.messages.iter().map(|message| message.seq).collect::<Vec<_>>(),
            [1, 2],
            "not confirmed"
        );
        let rest = inboxes.collect(&agent, 1, soon()).await.unwrap();
        assert_eq!((rest.messages.len(), rest.next), (1, 2));
        for n in 0..8 {
            publish(&hub, n, BYTES_MAX / 4);
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        let full = inboxes.collect(&agent, 2, soon()).await.unwrap();
        assert_eq!((full.messages.len(), full.dropped, full.next), (3, 6, 10));
    }

    #[tokio::test(start_paused = true)]
    async fn inbox_without_room_among_all_clients_evicts_the_oldest() {
        let Rig { _scope, hub, connected: _, inboxes, agent } = rig();
        let limits = memory::Limits { total: 10_000, per_org: 10_000, per_connection: 10_000 };
        let memory = memory::Memory::new(limits, &Registry::default());
        hub.count_in(memory.clone());
        inboxes.open(&agent, claims(), Map::new(), INBOX_LEASE).unwrap();
        for n in 0..4 {
            publish(&hub, n, 4000);
            tokio::time::sleep(Duration::from_millis(1)).await;
            assert!(memory.state().0 <= 10_000);
        }
        let got = inboxes.collect(&agent, 0, Instant::now() + Duration::from_secs(5)).await.unwrap();
        assert_eq!((got.messages.len(), got.dropped), (2, 2));
        assert!(memory.state().0 > 8000, "kept messages are counted");
        assert_eq!(inboxes.collect(&agent, 4, Instant::now()).await.unwrap().messages.len(), 0);
        let meta = meta_bytes(&Map::new()).unwrap();
        assert_eq!(memory.state(), (meta, 10_000, false), "confirmed, and no client was evicted");
    }
}
