//! Connected remote agents: those that track presence on `agent:<id>` with a token of that agent.
//!
//! A state and not a queue, so no event can be lost: the changes are a set of ids, bounded by the connected agents,
//! and a reader gets the current state of each. A channel that leaves, closes or loses its right is removed at once,
//! because it holds a [`PresenceGuard`].
use super::observers::Observers;
use crate::{
    auth::{Claims, Denied, Principal},
    hub::{Room, SubscriberId},
    id::{AgentId, OrgId},
};
use parking_lot::{Mutex, RwLock};
use serde_json::{Map, Value};
use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};
use tokio::sync::Notify;

/// Bytes of the metadata of one agent, which the daemon keeps parsed and shows to its org.
pub(super) const META_BYTES_MAX: usize = 64 << 10;

/// Why an agent cannot connect.
#[derive(Debug, thiserror::Error)]
pub enum NotConnected {
    /// It belongs to another org than the token.
    #[error(transparent)]
    Denied(#[from] Denied),
    /// Its metadata is too large.
    #[error("the presence of an agent has at most {META_BYTES_MAX} bytes")]
    TooLarge,
}

/// The bytes of the metadata of an agent as JSON.
///
/// # Errors
/// [`NotConnected::TooLarge`].
pub(super) fn check_size(meta: &Map<String, Value>) -> Result<usize, NotConnected> {
    let bytes = serde_json::to_vec(meta).map_or(usize::MAX, |text| text.len());
    if bytes > META_BYTES_MAX { Err(NotConnected::TooLarge) } else { Ok(bytes) }
}

/// The connected agents of a daemon. Clones share one list.
#[derive(Clone, Debug, Default)]
pub struct ConnectedAgents(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    state: Mutex<State>,
    /// The org of each agent that is registered or has a definition.
    orgs: RwLock<HashMap<AgentId, OrgId>>,
    observers: Observers,
    wake: Notify,
}

#[derive(Debug, Default)]
struct State {
    /// The channels of each agent, the one that tracked last at the end.
    connected: HashMap<AgentId, Vec<AgentConnection>>,
    changed: HashSet<AgentId>,
}

/// One channel on which an agent is present.
#[derive(Clone, Debug)]
pub struct AgentConnection {
    /// The channel, for messages to it alone.
    pub channel: SubscriberId,
    /// The claims of its token, which is this agent's or the service's.
    pub claims: Arc<Claims>,
    /// The metadata that it tracks.
    pub meta: Arc<Map<String, Value>>,
}

impl AgentConnection {
    /// The org of its token.
    fn org(&self) -> OrgId {
        Principal::of(self.claims.clone()).org()
    }

    /// Whether its token may act as an agent of this org.
    fn may_be_of(&self, owner: &OrgId) -> bool {
        self.claims.is_service() || self.org() == *owner
    }
}

impl ConnectedAgents {
    /// Takes the agents that have changed since the last call.
    #[must_use]
    pub fn take_changes(&self) -> HashSet<AgentId> {
        std::mem::take(&mut self.0.state.lock().changed)
    }

    /// Waits until [`Self::take_changes`] may return an agent. Cancel safe.
    pub async fn changed(&self) {
        self.0.wake.notified().await;
    }

    /// The connection of an agent that tracked last. `None` if the agent is not connected.
    #[must_use]
    pub fn latest(&self, agent: &AgentId) -> Option<AgentConnection> {
        self.of_its_org(agent).pop()
    }

    /// The connections of an agent, without those of another org that connected before the agent's org was known.
    fn of_its_org(&self, agent: &AgentId) -> Vec<AgentConnection> {
        let owner = self.0.orgs.read().get(agent).cloned();
        let connections = self.0.state.lock().connected.get(agent).cloned().unwrap_or_default();
        connections.into_iter().filter(|it| owner.as_ref().is_none_or(|owner| it.may_be_of(owner))).collect()
    }

    /// The channels of an agent, only those of its org.
    #[must_use]
    pub fn channels(&self, agent: &AgentId) -> Vec<SubscriberId> {
        self.of_its_org(agent).iter().map(|it| it.channel).collect()
    }

    /// All channels that are connected with this id, also those of another org, which must receive the refusal.
    #[must_use]
    pub fn all_channels(&self, agent: &AgentId) -> Vec<SubscriberId> {
        let connections = self.0.state.lock().connected.get(agent).cloned().unwrap_or_default();
        connections.iter().map(|it| it.channel).collect()
    }

    /// The ids of all connected agents.
    #[must_use]
    pub fn agents(&self) -> Vec<AgentId> {
        self.0.state.lock().connected.keys().cloned().collect()
    }

    /// Sets the org of agents, connected or not. Channels without a right to the rooms of those that changed end.
    pub fn set_orgs(&self, orgs: impl IntoIterator<Item = (AgentId, OrgId)>) {
        let changed: Vec<_> = {
            let mut known = self.0.orgs.write();
            let is_new = |(agent, org): &(AgentId, OrgId)| {
                known.insert(agent.clone(), org.clone()) != Some(org.clone())
            };
            orgs.into_iter().filter(is_new).collect()
        };
        // Written first: a channel that enters meanwhile is in the list already, or reads the new org.
        changed.iter().for_each(|(agent, org)| self.0.observers.judge(agent, org));
    }

    /// Whether the agent is registered or has a definition, as far as this daemon knows.
    #[must_use]
    pub fn is_registered(&self, agent: &AgentId) -> bool {
        self.0.orgs.read().contains_key(agent)
    }

    /// Whether the agent is registered in this org or has a definition there, connected or not.
    pub(super) fn is_of(&self, agent: &str, org: &OrgId) -> bool {
        agent.parse::<AgentId>().is_ok_and(|agent| self.0.orgs.read().get(&agent) == Some(org))
    }

    /// Agents whose rooms are heard here although their org is not known, at most `max`.
    pub(super) fn heard_unregistered(&self, max: usize) -> Vec<AgentId> {
        self.0.observers.heard(max, |agent| !self.is_registered(agent))
    }

    pub(super) fn observers(&self) -> &Observers {
        &self.0.observers
    }

    /// The org of an agent: the registered one, else that of its connection. `None` if the agent is unknown.
    #[must_use]
    pub fn org_of(&self, agent: &AgentId) -> Option<OrgId> {
        let known = self.0.orgs.read().get(agent).cloned();
        known.or_else(|| Some(Principal::of(self.latest(agent)?.claims).org()))
    }

    /// Refuses a bearer that acts as an agent of another org: the org is part of an agent's identity.
    ///
    /// # Errors
    /// [`Denied`] for an agent of another org. An unknown agent is not refused.
    pub fn check_org(&self, agent: &AgentId, principal: &Principal) -> Result<(), Denied> {
        self.org_of(agent).map_or(Ok(()), |owner| principal.may_be(agent, &owner))
    }

    /// Adds a connection. Dropping the guard removes it.
    ///
    /// # Errors
    /// [`Denied`] if the agent belongs to another org.
    pub(super) fn connect(
        &self,
        agent: AgentId,
        connection: AgentConnection,
    ) -> Result<PresenceGuard, Denied> {
        let (owner, org) = (self.0.orgs.read().get(&agent).cloned(), connection.org());
        let principal = Principal::of(connection.claims.clone());
        owner.as_ref().map_or(Ok(()), |owner| principal.may_be(&agent, owner))?;
        let mut state = self.0.state.lock();
        let connections = state.connected.entry(agent.clone()).or_default();
        // Until the agent is registered, it belongs to the org that connected first. One that connected before the agent
        // was registered in another org is about to end.
        let first = connections.iter().map(AgentConnection::org).find(|other| *other != org);
        if let Some(other) = first.filter(|_| owner.is_none()) {
            principal.may_be(&agent, &other)?;
        }
        let guard = PresenceGuard { list: self.clone(), agent, channel: connection.channel };
        connections.push(connection);
        state.changed.insert(guard.agent.clone());
        // Notify without the lock: the reader takes it first thing.
        drop(state);
        self.0.wake.notify_one();
        // The org of a service token says nothing about the agent.
        if !principal.is_service() && !self.is_registered(&guard.agent) {
            self.0.observers.judge(&guard.agent, &org);
        }
        Ok(guard)
    }

    fn disconnect(&self, agent: &AgentId, channel: SubscriberId) {
        {
            let mut state = self.0.state.lock();
            if let Some(connections) = state.connected.get_mut(agent) {
                connections.retain(|it| it.channel != channel);
                if connections.is_empty() {
                    state.connected.remove(agent);
                }
            }
            state.changed.insert(agent.clone());
        }
        self.0.wake.notify_one();
    }
}

/// The agent that a token may connect as in this room. `None` if the room is not an agent's public room, or the
/// token is neither that agent's nor the service's.
pub(super) fn agent_of(room: &Room, claims: &Claims) -> Option<AgentId> {
    let agent: AgentId = room.topic.as_str().strip_prefix("agent:")?.parse().ok()?;
    let own = claims.may_act() && claims.agent_id.as_ref() == Some(&agent);
    let entitled = claims.is_service() || own;
    (!room.private && entitled).then_some(agent)
}

/// The connection of one channel; dropping it disconnects the agent.
#[derive(Debug)]
pub struct PresenceGuard {
    list: ConnectedAgents,
    agent: AgentId,
    channel: SubscriberId,
}

impl PresenceGuard {
    /// Replaces the connection in place: an agent with new metadata has not been disconnected.
    pub(super) fn update(&self, connection: AgentConnection) {
        {
            let mut state = self.list.0.state.lock();
            let connections = state.connected.entry(self.agent.clone()).or_default();
            connections.retain(|it| it.channel != self.channel);
            connections.push(connection);
            state.changed.insert(self.agent.clone());
        }
        self.list.0.wake.notify_one();
    }

    /// Whether the connection is still allowed with these claims, after the channel got a new token.
    #[must_use]
    pub fn is_allowed(&self, room: &Room, claims: &Arc<Claims>) -> bool {
        agent_of(room, claims).as_ref() == Some(&self.agent)
            && self.list.check_org(&self.agent, &Principal::of(claims.clone())).is_ok()
    }
}

impl Drop for PresenceGuard {
    fn drop(&mut self) {
        self.list.disconnect(&self.agent, self.channel);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::Topic;

    fn connection(channel: u64) -> AgentConnection {
        let claims = Claims { agent_id: "x".parse().ok(), ..Claims::of_role("authenticated") };
        AgentConnection { channel: SubscriberId(channel), claims: claims.into(), meta: Map::new().into() }
    }

    #[test]
    fn agent_is_connected_while_one_of_its_channels_is() {
        let (list, x) = (ConnectedAgents::default(), AgentId::try_from("x").unwrap());
        let first = list.connect(x.clone(), connection(1)).unwrap();
        let second = list.connect(x.clone(), connection(2)).unwrap();
        assert_eq!(list.take_changes().len(), 1);
        assert_eq!(list.latest(&x).unwrap().channel, SubscriberId(2));
        drop(second);
        assert_eq!(list.latest(&x).unwrap().channel, SubscriberId(1));
        drop(first);
        assert!(list.latest(&x).is_none() && list.agents().is_empty());
        assert_eq!(list.take_changes().len(), 1);
    }

    #[test]
    fn connection_of_another_org_is_refused() {
        let (list, x) = (ConnectedAgents::default(), AgentId::try_from("x").unwrap());
        let of = |channel, org: &str, role: &str| {
            let mut it = connection(channel);
            let claims = Claims { org: org.parse().ok(), role: role.into(), ..(*it.claims).clone() };
            it.claims = claims.into();
            it
        };
        let _first = list.connect(x.clone(), of(1, "demo", "authenticated")).unwrap();
        assert!(list.connect(x.clone(), of(2, "else", "authenticated")).is_err(), "demo connected first");
        let _service = list.connect(x.clone(), of(3, "else", "service_role")).unwrap();
        list.set_orgs([(x.clone(), "else".parse().unwrap())]);
        assert_eq!(list.channels(&x), [SubscriberId(3)], "registered on another node by another org");
        assert_eq!(list.all_channels(&x).len(), 2);
        assert!(list.connect(x.clone(), of(4, "demo", "authenticated")).is_err());
    }

    #[test]
    fn only_its_own_token_and_the_service_connect_as_an_agent() {
        let room = |name: &str, private| Room { topic: Topic::new(name).unwrap(), private };
        let mut claims = (*connection(1).claims).clone();
        assert_eq!(agent_of(&room("agent:x", false), &claims), "x".parse().ok());
        for other in
            [room("agent:y", false), room("agent:x", true), room("org:x", false), room("agent:X", false)]
        {
            assert_eq!(agent_of(&other, &claims), None);
        }
        claims.role = "service_role".into();
        assert_eq!(agent_of(&room("agent:y", false), &claims), "y".parse().ok());
    }
}
