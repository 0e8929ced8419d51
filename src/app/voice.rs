//! How the daemon itself speaks on channels: broadcasts `coordination` in the words of
//! `reference/negotiation.md` §6, to a whole room or to single channels in it.
//!
//! Never waits. What nobody would hear is not even made.
use crate::{
    clock::Clock,
    gateway::Coordination,
    hub::{Hub, Message, Room, SubscriberId},
    id::{AgentId, OrgId, Topic},
};
use serde_json::Value;

/// The daemon's voice. Clones are the same.
#[derive(Clone)]
pub(super) struct Voice {
    pub(super) hub: Hub,
    pub(super) clock: Clock,
}

impl Voice {
    /// Says it to everybody in the room, if anyone is there. `agent`: whom it concerns.
    pub(super) fn say(
        &self,
        room: Room,
        kind: &str,
        agent: Option<&AgentId>,
        members: impl FnOnce() -> Value,
    ) {
        if self.hub.watchers(&room) == 0 && self.hub.history(&room).is_none() {
            return;
        }
        let message = self.message(kind, agent.map(AgentId::as_str), members());
        self.hub.publish(&room, message, None);
    }

    /// Says it to these channels of the room alone.
    pub(super) fn tell(
        &self,
        room: &Room,
        channels: &[SubscriberId],
        kind: &str,
        agent: Option<&str>,
        members: Value,
    ) {
        self.hub.publish_to(room, self.message(kind, agent, members), channels);
    }

    fn message(&self, kind: &str, agent: Option<&str>, members: Value) -> Message {
        let mut payload = members;
        if let Some(object) = payload.as_object_mut() {
            object.insert("type".into(), kind.into());
            object.insert("agent_id".into(), agent.into());
            object.insert("timestamp".into(), self.clock.now().to_rfc3339().into());
        }
        Message::broadcast(Coordination::EVENT, &payload)
    }
}

pub(super) fn org_room(org: &OrgId) -> Room {
    Room::public(Topic::org(org))
}

pub(super) fn agent_room(agent: &AgentId) -> Room {
    Room::public(Topic::agent(agent))
}
