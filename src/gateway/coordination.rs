//! What clients say to the daemon on agents' channels, and who may say it.
//!
//! A message between agents names its sender truly and stays in its org, or nobody hears it. What an agent
//! says of a task is heard by all in its own room; what others say there goes to the daemon alone, so that
//! nobody in a public room can pass for the daemon.
use super::Attendance;
use crate::{
    auth::Claims,
    hub::{Room, SubscriberId},
    id::{AgentId, ConnId, OrgId},
};
use bytes::Bytes;
use serde::Deserialize;
use serde_json::value::RawValue;
use std::{borrow::Cow, collections::HashMap, sync::Arc};

/// A broadcast of a client to agents on a room `agent:…` or `org:…`, beside its delivery to the room.
///
/// Who said it is known by `claims`; nothing in the payload has been checked but that it is JSON.
#[derive(Clone, Debug)]
pub struct Coordination {
    /// The socket it came from.
    pub conn: ConnId,
    /// The channel it was said on, to answer it alone.
    pub channel: SubscriberId,
    /// One of [`Coordination::EVENTS`].
    pub event: &'static str,
    /// Of the channel it was said on.
    pub claims: Arc<Claims>,
    /// Where it was said.
    pub room: Room,
    /// The user payload (`reference/negotiation.md` §6).
    pub payload: Bytes,
}

#[derive(Deserialize)]
struct Envelope<'a> {
    #[serde(borrow)]
    event: Cow<'a, str>,
    #[serde(borrow)]
    payload: &'a RawValue,
}

impl Coordination {
    /// The negotiation's own event.
    pub const EVENT: &'static str = "coordination";
    /// The events of these broadcasts: the negotiation, a word to one agent, a word to all of an org.
    pub const EVENTS: [&'static str; 3] = [Self::EVENT, "agent_message", "agent_broadcast"];

    /// What an agent says to one other.
    pub const MESSAGE: &'static str = "agent_message";
    /// What an agent says to all of its org.
    pub const BROADCAST: &'static str = "agent_broadcast";

    /// Whether the others in the room hear it.
    #[must_use]
    pub fn is_heard(&self, attendance: &Attendance) -> bool {
        if self.event != Self::EVENT {
            return self.check_sender(attendance).is_ok();
        }
        let own = self.claims.agent_id.as_ref().map(|agent| format!("agent:{agent}"));
        let elsewhere = self.room.topic.as_str().starts_with("agent:")
            && own.as_deref() != Some(self.room.topic.as_str())
            && !self.claims.is_service();
        !elsewhere && self.check_sender(attendance).is_ok()
    }

    /// Whether it says truly who sends it, and to whom the sender may speak.
    ///
    /// # Errors
    /// Why not, one line.
    pub fn check_sender(&self, attendance: &Attendance) -> Result<(), String> {
        let claims = &self.claims;
        if claims.is_service() {
            return Ok(());
        }
        if claims.role == ANON {
            return Err("an anon key may not speak to agents: use an agent's or user's token".into());
        }
        if let Some(named) = sender(&self.payload)?
            && claims.agent_id.as_ref().map(AgentId::as_str) != Some(&*named)
        {
            return Err(format!("the token is not {named}'s: nobody speaks as another"));
        }
        let topic = self.room.topic.as_str();
        let to = match topic.split_once(':') {
            Some(("org", name)) => OrgId::try_from(name).ok(),
            Some(("agent", name)) => AgentId::try_from(name).ok().and_then(|agent| attendance.org_of(&agent)),
            _ => None,
        };
        match to {
            Some(to) if to.as_str() != org_of(claims) => {
                Err(format!("{topic} is of another org than the token"))
            }
            _ => Ok(()),
        }
    }

    /// The event, if it is one of these.
    pub(super) fn event(name: &str) -> Option<&'static str> {
        Self::EVENTS.into_iter().find(|event| *event == name)
    }

    /// The event and user payload of a text broadcast with one of these events.
    pub(super) fn inner(json: &Bytes) -> Option<(&'static str, Bytes)> {
        let envelope: Envelope<'_> = serde_json::from_str(std::str::from_utf8(json).ok()?).ok()?;
        let event = Self::event(&envelope.event)?;
        Some((event, json.slice_ref(envelope.payload.get().as_bytes())))
    }
}

const ANON: &str = "anon";
const ORG_DEFAULT: &str = "default";

/// The org of a token.
pub(super) fn org_of(claims: &Claims) -> &str {
    claims.org.as_ref().map_or(ORG_DEFAULT, OrgId::as_str)
}

/// Who the payload says that it is from.
fn sender(payload: &Bytes) -> Result<Option<String>, String> {
    // A payload that is no object names nobody.
    let members: HashMap<Cow<'_, str>, &RawValue> = serde_json::from_slice(payload).unwrap_or_default();
    match members.get("agent_id").map(|name| name.get()) {
        None | Some("null") => Ok(None),
        Some(name) => serde_json::from_str(name).map(Some).map_err(|_| "agent_id is no text".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::Topic;

    fn said(event: &'static str, room: &str, claims: Claims, payload: &str) -> Coordination {
        Coordination {
            conn: ConnId(1),
            channel: SubscriberId(1),
            event,
            claims: Arc::new(claims),
            room: Room::public(Topic::new(room).unwrap()),
            payload: payload.to_owned().into(),
        }
    }

    fn claims(role: &str, org: &str, agent: Option<&str>) -> Claims {
        Claims {
            role: role.into(),
            org: org.parse().ok(),
            agent_id: agent.and_then(|agent| agent.parse().ok()),
            exp: chrono::DateTime::UNIX_EPOCH,
            sub: None,
            raw: serde_json::Map::new(),
        }
    }

    #[test]
    fn a_message_is_heard_when_it_says_truly_who_sends_it_and_stays_in_its_org() {
        let list = Attendance::default();
        list.know([("near".parse().unwrap(), "demo".parse().unwrap())]);
        let heard = |event, room, claims, payload| said(event, room, claims, payload).is_heard(&list);
        let other = || claims("authenticated", "demo", Some("other"));
        for (room, who, payload, expected) in [
            ("agent:near", other(), "{}", true),
            ("agent:near", other(), r#"{"agent_id":"other"}"#, true),
            ("agent:near", other(), r#"{"agent_id":"near"}"#, false),
            ("agent:near", other(), r#"{"agent_id":7}"#, false),
            ("agent:near", claims("authenticated", "else", Some("other")), "{}", false),
            ("agent:near", claims("anon", "demo", None), "{}", false),
            ("agent:near", claims("service_role", "else", None), r#"{"agent_id":"near"}"#, true),
            ("org:demo", other(), "[1]", true),
            ("org:else", other(), "{}", false),
        ] {
            assert_eq!(
                heard(Coordination::MESSAGE, room, who.clone(), payload),
                expected,
                "{room} {payload}"
            );
        }
        // Only the agent itself is heard in its room about tasks: anything else could pass for the daemon.
        assert!(!heard(Coordination::EVENT, "agent:near", other(), r#"{"type":"task_cancel"}"#));
        let near = claims("authenticated", "demo", Some("near"));
        assert!(heard(Coordination::EVENT, "agent:near", near, r#"{"type":"task_progress"}"#));
    }
}
