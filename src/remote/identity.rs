//! The one check of identity in agents' rooms, for websockets, HTTP and binary frames: the sender and recipient of a
//! message, the agent of a presence entry, and the observers of a room.
//!
//! A message between agents names its true sender and stays in its org, or it is delivered to no one. What an agent
//! sends about tasks in its own room is delivered there; what others send about tasks goes only to the daemon, so
//! that no one in a public room can impersonate the daemon.
use super::{
    connected_agents::{
        AgentConnection, ConnectedAgents, META_BYTES_MAX, NotConnected, PresenceGuard, agent_of, check_size,
    },
    coordination::Coordination,
    digest::{self, Digests},
    forbidden,
    observers::{self, Held, ObserverGuard, Watched},
};
use crate::{
    auth::{Claims, Principal},
    hub::{Room, SubscriberId, SubscriptionHandle},
    id::{AgentId, ConnId, OrgId},
    presence::Tracker,
    task::{Error, TaskReader},
    wire::Payload,
};
use std::sync::Arc;
use tokio::sync::{Notify, mpsc};

/// Checks identities and queues messages for the daemon. Clones share one state.
#[derive(Clone)]
pub struct Identity(Arc<Inner>);

struct Inner {
    connected: ConnectedAgents,
    tracker: Tracker,
    queue: Option<mpsc::Sender<Coordination>>,
    audience: Audience,
    digests: Digests,
}

/// Who hears the rooms `org:<org>` and `agent:<id>`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Audience {
    /// Every holder of a key.
    Everybody,
    /// Tokens of the room's org, and the service.
    Org,
    /// The same without viewers of the dashboard: messages in these rooms contain inputs of tasks.
    OrgWithoutViewers,
}

/// The door that a broadcast came through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BroadcastSource {
    /// A channel of a websocket, which can be answered.
    Socket {
        /// The websocket.
        conn: ConnId,
        /// The channel.
        channel: SubscriberId,
    },
    /// An HTTP request, which is answered by its status.
    Http,
}

/// The result of [`Identity::relay`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Relay {
    /// Whether the room may receive the broadcast.
    pub deliver: bool,
    /// Whether the daemon missed the message because the queue was full.
    pub dropped: bool,
}

impl Identity {
    /// Identity checks with no connected agent. Messages for the daemon go into `queue` and are dropped while it is
    /// full; without a queue no message is checked. `audience` may subscribe to the rooms of agents.
    #[must_use]
    pub fn new(tracker: Tracker, queue: Option<mpsc::Sender<Coordination>>, audience: Audience) -> Self {
        let (connected, digests) = (ConnectedAgents::default(), Digests::default());
        Self(Arc::new(Inner { connected, tracker, queue, audience, digests }))
    }

    /// Tells dashboards of the org that its agents changed.
    pub fn agents_changed(&self, org: &OrgId) {
        self.0.digests.agents(org);
    }

    /// The number of the last digest of an org's room; `None` while it has no subscriber.
    #[must_use]
    pub fn last_digest(&self, org: &OrgId) -> Option<u64> {
        self.0.digests.last(org)
    }

    pub(super) fn digests(&self) -> &Digests {
        &self.0.digests
    }

    /// The connected agents.
    #[must_use]
    pub fn connected_agents(&self) -> &ConnectedAgents {
        &self.0.connected
    }

    /// Checks a broadcast, and queues it for the daemon if it is a message of agents. Never blocks.
    #[must_use]
    pub fn relay(
        &self,
        source: BroadcastSource,
        claims: &Arc<Claims>,
        room: &Room,
        payload: &Payload,
    ) -> Relay {
        let no_message = |deliver| Relay { deliver, dropped: false };
        if digest::is_digest_room(room) {
            return no_message(false);
        }
        // A private room of that name is no agents' room: its policies decide about delivery, and the daemon takes
        // neither commands nor messages from it.
        let Some(queue) = self.0.queue.as_ref().filter(|_| Coordination::is_agents_room(room)) else {
            return no_message(true);
        };
        let (event, payload) = match Coordination::read(payload) {
            Ok(Some(message)) => message,
            Ok(None) => return no_message(true),
            Err(_) => return no_message(false),
        };
        let (conn, channel) = match source {
            BroadcastSource::Socket { conn, channel } => (conn, channel),
            BroadcastSource::Http => (ConnId(0), SubscriberId(0)),
        };
        let message =
            Coordination { conn, channel, event, claims: claims.clone(), room: room.clone(), payload };
        let deliver = self.may_deliver(&message);
        let is_queued = match source {
            // A refused message is queued too: the dispatcher answers it with the reason.
            BroadcastSource::Socket { .. } => true,
            // A command needs a channel for its answer; HTTP has `/v1` for commands.
            BroadcastSource::Http => deliver && event != Coordination::EVENT,
        };
        Relay { deliver, dropped: is_queued && queue.try_send(message).is_err() }
    }

    /// Queues a message for the daemon, if it takes any; false if the queue is full.
    pub(super) fn queue(&self, message: Coordination) -> bool {
        self.0.queue.as_ref().is_none_or(|queue| queue.try_send(message).is_ok())
    }

    fn may_deliver(&self, message: &Coordination) -> bool {
        if message.event == Coordination::EVENT {
            // In any other room of agents it could be mistaken for a message of the daemon.
            let own = message.claims.agent_id.as_ref().map(|agent| format!("agent:{agent}"));
            let is_own_room = own.as_deref() == Some(message.room.topic.as_str());
            if !is_own_room && !message.claims.is_service() {
                return false;
            }
        }
        self.check_message(message).is_ok()
    }

    /// Checks that a message names its true sender, and that the sender may address its room.
    ///
    /// # Errors
    /// The reason, one line.
    pub(super) fn check_message(&self, message: &Coordination) -> Result<(), String> {
        let principal = Principal::of(message.claims.clone());
        if principal.is_service() {
            return Ok(());
        }
        principal.may_negotiate().map_err(|denied| denied.to_string())?;
        principal.may_change().map_err(|denied| denied.to_string())?;
        principal.check_sender(message.named_sender()?.as_deref()).map_err(|denied| denied.to_string())?;
        if let Some(agent) = &message.claims.agent_id {
            self.0.connected.check_org(agent, &principal).map_err(|denied| denied.to_string())?;
        }
        match self.owner(&message.room) {
            Some(owner) if owner != principal.org() => {
                Err(format!("{} is of another org than the token", message.room.topic.as_str()))
            }
            _ => Ok(()),
        }
    }

    /// Refuses a bearer that acts as an agent of another org. Reads the registration of an agent that is not known
    /// yet.
    ///
    /// # Errors
    /// `Forbidden`, or why the registration cannot be read. An agent that is registered nowhere is not refused.
    pub async fn check_org(
        &self,
        tasks: &TaskReader,
        principal: &Principal,
        agent: &AgentId,
    ) -> Result<(), Error> {
        let connected = &self.0.connected;
        // Also of one that is merely connected: another daemon may have registered it for another org.
        if !connected.is_registered(agent) {
            match tasks.agent(agent).await {
                Ok(status) => connected.set_orgs([(agent.clone(), status.org)]),
                Err(Error::UnknownAgent(_)) => {}
                Err(error) => return Err(error),
            }
        }
        connected.check_org(agent, principal).map_err(forbidden)
    }

    /// The org of a room. `None` for the room of an unknown agent, and for one that belongs to no org.
    fn owner(&self, room: &Room) -> Option<OrgId> {
        match room.topic.as_str().split_once(':')? {
            ("org", name) => name.parse().ok(),
            ("agent", name) => self.0.connected.org_of(&name.parse().ok()?),
            _ => None,
        }
    }

    /// Whether a bearer may subscribe and publish to this room: one of the audience. An agent may enter its own room
    /// before it is known. A room of digests is only for bearers of its org, whatever the setting. True for every other
    /// room.
    #[must_use]
    pub fn may_observe(&self, room: &Room, claims: &Arc<Claims>) -> bool {
        if digest::is_digest_room(room) {
            let principal = Principal::of(claims.clone());
            let org = digest::org_of(room).filter(|org| principal.sees(org));
            org.clone().into_iter().for_each(|org| self.0.digests.enter(org));
            return org.is_some();
        }
        if self.0.audience == Audience::Everybody || !Coordination::is_agents_room(room) {
            return true;
        }
        let principal = Principal::of(claims.clone());
        if self.0.audience == Audience::OrgWithoutViewers && principal.is_viewer() {
            return false;
        }
        match self.owner(room) {
            Some(org) => principal.sees(&org),
            None => agent_of(room, claims).is_some() || principal.is_service(),
        }
    }

    /// Why a bearer may not track presence in this room under this key and as this agent: in rooms of agents,
    /// `agent_id` and the keys of agents need that agent's token or the service's. `None` if it may.
    #[must_use]
    pub fn spoofed_presence(
        &self,
        room: &Room,
        claims: &Claims,
        key: &str,
        agent: Option<&str>,
    ) -> Option<String> {
        if digest::is_digest_room(room) {
            return Some("this room is the daemon's own: it has no presence".into());
        }
        if !Coordination::is_agents_room(room) || claims.is_service() {
            return None;
        }
        // A token of another org is no agent of this one, whatever its `agent_id`.
        let owner = self.owner(room);
        let of = owner.clone().unwrap_or_else(|| claims.org.clone().unwrap_or_default());
        if let Some(agent) = agent.filter(|agent| !observers::is_own(claims, agent, &of)) {
            return Some(format!("agent_id {agent:?} may be said here only with that agent's token"));
        }
        // An agent that is not connected keeps its key, too.
        let taken = match room.topic.as_str().split_once(':') {
            Some(("agent", name)) => name == key,
            _ => owner.is_some_and(|org| self.0.connected.is_of(key, &org)),
        };
        let taken = taken || self.0.tracker.is_hosted(room, key);
        (taken && !observers::is_own(claims, key, &of)).then(|| taken_key(key))
    }

    /// Watches a channel in the room of an agent, and ends it once the agent is known to be of another org. `None` where
    /// everybody may hear.
    #[must_use]
    pub fn observe(
        &self,
        room: &Room,
        claims: &Arc<Claims>,
        handle: SubscriptionHandle,
        wake: Arc<Notify>,
    ) -> Option<ObserverGuard> {
        if self.0.audience == Audience::Everybody || !Coordination::is_agents_room(room) {
            return None;
        }
        let agent: AgentId = room.topic.as_str().strip_prefix("agent:")?.parse().ok()?;
        Some(self.watch(agent, Held::Room, Watched { claims: claims.clone(), handle, wake }))
    }

    /// Watches a channel that is present in the room of an org under a key, and ends it once an agent of the org has this
    /// id. `None` if no agent can have it.
    #[must_use]
    pub fn observe_key(
        &self,
        room: &Room,
        key: &str,
        claims: &Arc<Claims>,
        handle: SubscriptionHandle,
        wake: Arc<Notify>,
    ) -> Option<ObserverGuard> {
        let org = room.topic.as_str().strip_prefix("org:").filter(|_| Coordination::is_agents_room(room))?;
        let (org, agent) = (org.parse().ok()?, key.parse().ok()?);
        Some(self.watch(agent, Held::Key(org), Watched { claims: claims.clone(), handle, wake }))
    }

    pub(super) fn watch(&self, agent: AgentId, held: Held, watched: Watched) -> ObserverGuard {
        ObserverGuard::new(&self.0.connected, agent, held, watched)
    }

    /// Why an agent may not track so many bytes in its room; `None` if it may, or if the bearer is not that agent.
    #[must_use]
    pub fn oversized_presence(&self, room: &Room, claims: &Claims, bytes: usize) -> Option<String> {
        agent_of(room, claims)?;
        (bytes > META_BYTES_MAX).then(|| NotConnected::TooLarge.to_string())
    }

    /// Connects the agent of this room, or updates its connection in `guard`. Does nothing if the bearer is not
    /// that agent.
    ///
    /// # Errors
    /// [`NotConnected`]. A connection that was there before stays as it was.
    pub fn connect(
        &self,
        guard: &mut Option<PresenceGuard>,
        room: &Room,
        connection: AgentConnection,
    ) -> Result<(), NotConnected> {
        let Some(agent) = agent_of(room, &connection.claims) else { return Ok(()) };
        check_size(&connection.meta)?;
        match guard {
            Some(guard) => guard.update(connection),
            None => *guard = Some(self.0.connected.connect(agent, connection)?),
        }
        Ok(())
    }
}

/// Why a presence key is refused.
fn taken_key(key: &str) -> String {
    format!("the presence key {key:?} is an agent's and needs that agent's token")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{hub::Hub, id::Topic, scope::Scope, telemetry::Registry};

    fn message(event: &'static str, room: &str, claims: Claims, payload: &str) -> Coordination {
        Coordination {
            conn: ConnId(1),
            channel: SubscriberId(1),
            event,
            claims: Arc::new(claims),
            room: Room::public(Topic::new(room).unwrap()),
            payload: payload.to_owned().into(),
        }
    }

    #[tokio::test]
    async fn broadcast_in_a_private_room_is_no_message_of_agents() {
        let (scope, registry) = (Scope::default(), Registry::default());
        let tracker = Tracker::start(&scope, Hub::new(&registry), &registry);
        let (queue, mut queued) = mpsc::channel(8);
        let identity = Identity::new(tracker, Some(queue), Audience::Everybody);
        let claims = Arc::new(Claims::in_org("authenticated", "demo", Some("other")));
        let socket = BroadcastSource::Socket { conn: ConnId(1), channel: SubscriberId(1) };
        for (source, private, event, expected) in [
            (socket, true, Coordination::EVENT, (true, false)),
            (socket, true, Coordination::MESSAGE, (true, false)),
            (BroadcastSource::Http, true, Coordination::EVENT, (true, false)),
            (BroadcastSource::Http, true, Coordination::MESSAGE, (true, false)),
            (socket, false, Coordination::EVENT, (false, true)),
            (socket, false, Coordination::MESSAGE, (true, true)),
            (BroadcastSource::Http, false, Coordination::EVENT, (false, false)),
            (BroadcastSource::Http, false, Coordination::MESSAGE, (true, true)),
        ] {
            let room = Room { topic: Topic::new("agent:near").unwrap(), private };
            let encoding = crate::wire::Encoding::Json;
            let payload = Payload::User { event: event.into(), encoding, data: "{}".into() };
            let relay = identity.relay(source, &claims, &room, &payload);
            assert!(!relay.dropped);
            let outcome = (relay.deliver, queued.try_recv().is_ok());
            assert_eq!(outcome, expected, "{source:?} {event} in a private room: {private}");
        }
    }

    #[tokio::test]
    async fn message_is_delivered_if_its_sender_is_true_and_its_recipient_in_its_org() {
        let (scope, registry) = (Scope::default(), Registry::default());
        let tracker = Tracker::start(&scope, Hub::new(&registry), &registry);
        let identity = Identity::new(tracker, None, Audience::Everybody);
        identity.connected_agents().set_orgs([("near".parse().unwrap(), "demo".parse().unwrap())]);
        let delivered =
            |event, room, claims, payload| identity.may_deliver(&message(event, room, claims, payload));
        let other = || Claims::in_org("authenticated", "demo", Some("other"));
        for (room, who, payload, expected) in [
            ("agent:near", other(), "{}", true),
            ("agent:near", other(), r#"{"agent_id":"other"}"#, true),
            ("agent:near", other(), r#"{"agent_id":"near"}"#, false),
            ("agent:near", other(), r#"{"agent_id":7}"#, false),
            ("agent:near", other(), r#"{"agent_id":"near","agent_id":"other"}"#, false),
            ("agent:near", other(), r#"{"agent_id":"other","agent\u005fid":"near"}"#, false),
            // An agent id of another org, in a room of its own org.
            ("org:else", Claims::in_org("authenticated", "else", Some("near")), "{}", false),
            ("agent:near", Claims::in_org("authenticated", "else", Some("other")), "{}", false),
            ("agent:near", Claims::in_org("anon", "demo", None), "{}", false),
            ("agent:near", Claims::in_org("service_role", "else", None), r#"{"agent_id":"near"}"#, true),
            ("org:demo", other(), "[1]", true),
            ("org:else", other(), "{}", false),
        ] {
            assert_eq!(
                delivered(Coordination::MESSAGE, room, who.clone(), payload),
                expected,
                "{room} {payload}"
            );
        }
        // In a room of agents only the agent itself publishes about tasks.
        assert!(!delivered(Coordination::EVENT, "agent:near", other(), r#"{"type":"task_cancel"}"#));
        assert!(!delivered(Coordination::EVENT, "org:demo", other(), r#"{"type":"task_update"}"#));
        let near = Claims::in_org("authenticated", "demo", Some("near"));
        assert!(delivered(Coordination::EVENT, "agent:near", near, r#"{"type":"task_progress"}"#));
    }
}
