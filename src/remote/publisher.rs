//! Messages of the daemon itself: broadcasts `coordination` (`docs/spec/negotiation.md` §6) to a room or to single
//! channels of it.
//!
//! Never blocks. A message without subscribers is not built.
use super::coordination::Coordination;
use crate::{
    clock::Clock,
    hub::{Hub, Message, Room, SubscriberId},
    id::{AgentId, OrgId, Topic},
};
use serde_json::Value;

/// Publishes messages of the daemon. Cloning is cheap.
#[derive(Clone)]
pub(super) struct CoordinationPublisher {
    pub(super) hub: Hub,
    pub(super) clock: Clock,
}

impl CoordinationPublisher {
    /// Sends to every subscriber of the room. `agent` is the agent that the message is about. `members` is called
    /// only if the room has a subscriber or a history.
    pub(super) fn broadcast(
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

    /// Sends to these channels of the room only.
    pub(super) fn send_to(
        &self,
        room: &Room,
        channels: &[SubscriberId],
        kind: &str,
        agent: Option<&str>,
        members: Value,
    ) {
        self.hub.publish_to(room, self.message(kind, agent, members), channels);
    }

    /// Sends a digest to every subscriber of its room.
    pub(super) fn digest(&self, room: &Room, payload: &Value) {
        self.hub.publish(room, Message::broadcast("digest", payload), None);
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
