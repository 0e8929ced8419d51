//! Which agents are here by a socket of their own: who tracks presence on `agent:<id>` with a token of that agent.
//!
//! A state and not a queue, so nothing can be lost by it: what changed is a set of names, bounded by the
//! agents that are here, and whoever asks gets the present truth about each. A channel that leaves, closes
//! or loses its right takes its part away at once, because it holds an [`Attending`].
use crate::{
    auth::Claims,
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

/// Who is here by a socket. Clones are the same list.
#[derive(Clone, Debug, Default)]
pub struct Attendance(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    state: Mutex<State>,
    /// Of the agents that have a file.
    orgs: RwLock<HashMap<AgentId, OrgId>>,
    wake: Notify,
}

#[derive(Debug, Default)]
struct State {
    /// Each agent's channels, the latest to speak last.
    here: HashMap<AgentId, Vec<Attendant>>,
    changed: HashSet<AgentId>,
}

/// One channel on which an agent is present.
#[derive(Clone, Debug)]
pub struct Attendant {
    /// The channel, to say something to it alone.
    pub channel: SubscriberId,
    /// Of its token, which is this agent's or the service's.
    pub claims: Arc<Claims>,
    /// What it tracks.
    pub meta: Arc<Map<String, Value>>,
}

impl Attendance {
    /// The agents about whom something changed since the last call.
    #[must_use]
    pub fn changes(&self) -> HashSet<AgentId> {
        std::mem::take(&mut self.0.state.lock().changed)
    }

    /// Waits until [`Self::changes`] may have something; cancel safe.
    pub async fn changed(&self) {
        self.0.wake.notified().await;
    }

    /// The channel of an agent that spoke last, if the agent is here.
    #[must_use]
    pub fn latest(&self, agent: &AgentId) -> Option<Attendant> {
        self.0.state.lock().here.get(agent).and_then(|channels| channels.last().cloned())
    }

    /// All channels of an agent.
    #[must_use]
    pub fn channels(&self, agent: &AgentId) -> Vec<SubscriberId> {
        let state = self.0.state.lock();
        state
            .here
            .get(agent)
            .map(|channels| channels.iter().map(|it| it.channel).collect())
            .unwrap_or_default()
    }

    /// Everybody who is here.
    #[must_use]
    pub fn agents(&self) -> Vec<AgentId> {
        self.0.state.lock().here.keys().cloned().collect()
    }

    /// Whose these agents are, wherever they are.
    pub fn know(&self, orgs: impl IntoIterator<Item = (AgentId, OrgId)>) {
        self.0.orgs.write().extend(orgs);
    }

    /// Whose an agent is, if it is known or here.
    #[must_use]
    pub fn org_of(&self, agent: &AgentId) -> Option<OrgId> {
        let known = self.0.orgs.read().get(agent).cloned();
        known.or_else(|| OrgId::try_from(super::coordination::org_of(&self.latest(agent)?.claims)).ok())
    }

    /// A channel is here from now on, until its part is dropped.
    pub(super) fn attend(&self, agent: AgentId, attendant: Attendant) -> Attending {
        let part = Attending { list: self.clone(), agent, channel: attendant.channel };
        part.say(attendant);
        part
    }

    fn leave(&self, agent: &AgentId, channel: SubscriberId) {
        {
            let mut state = self.0.state.lock();
            if let Some(channels) = state.here.get_mut(agent) {
                channels.retain(|it| it.channel != channel);
                if channels.is_empty() {
                    state.here.remove(agent);
                }
            }
            state.changed.insert(agent.clone());
        }
        self.0.wake.notify_one();
    }
}

/// The agent that a channel of this room may be present as.
pub(super) fn agent_of(room: &Room, claims: &Claims) -> Option<AgentId> {
    let agent: AgentId = room.topic.as_str().strip_prefix("agent:")?.parse().ok()?;
    let entitled = claims.is_service() || claims.agent_id.as_ref() == Some(&agent);
    (!room.private && entitled).then_some(agent)
}

/// A channel's part in the list; dropping it takes it away.
#[derive(Debug)]
pub(super) struct Attending {
    list: Attendance,
    agent: AgentId,
    channel: SubscriberId,
}

impl Attending {
    /// What it tracks now, in place of what it tracked before.
    pub(super) fn say(&self, attendant: Attendant) {
        {
            let mut state = self.list.0.state.lock();
            let channels = state.here.entry(self.agent.clone()).or_default();
            channels.retain(|it| it.channel != self.channel);
            channels.push(attendant);
            state.changed.insert(self.agent.clone());
        }
        self.list.0.wake.notify_one();
    }

    /// The claims changed: whether it may stay.
    pub(super) fn may_stay(&self, room: &Room, claims: &Claims) -> bool {
        agent_of(room, claims).as_ref() == Some(&self.agent)
    }
}

impl Drop for Attending {
    fn drop(&mut self) {
        self.list.leave(&self.agent, self.channel);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::Topic;

    fn attendant(channel: u64) -> Attendant {
        let claims = Claims {
            role: "authenticated".into(),
            org: None,
            agent_id: "x".parse().ok(),
            exp: chrono::DateTime::UNIX_EPOCH,
            sub: None,
            raw: Map::new(),
        };
        Attendant { channel: SubscriberId(channel), claims: claims.into(), meta: Map::new().into() }
    }

    #[test]
    fn an_agent_is_here_while_one_of_its_channels_is() {
        let (list, x) = (Attendance::default(), AgentId::try_from("x").unwrap());
        let first = list.attend(x.clone(), attendant(1));
        let second = list.attend(x.clone(), attendant(2));
        assert_eq!(list.changes().len(), 1);
        assert_eq!(list.latest(&x).unwrap().channel, SubscriberId(2));
        drop(second);
        assert_eq!(list.latest(&x).unwrap().channel, SubscriberId(1));
        drop(first);
        assert!(list.latest(&x).is_none() && list.agents().is_empty());
        assert_eq!(list.changes().len(), 1);
    }

    #[test]
    fn only_its_own_token_and_the_service_may_be_an_agent() {
        let room = |name: &str, private| Room { topic: Topic::new(name).unwrap(), private };
        let mut claims = (*attendant(1).claims).clone();
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
