//! Messages of clients on agents' rooms, read from a broadcast. Pure.
//!
//! A broadcast counts as a message between agents if any client would read it as one, whatever its case or
//! encoding. One that two readers may read differently is refused.
use crate::{
    auth::Claims,
    hub::{Room, SubscriberId},
    id::ConnId,
    wire::{Encoding, Payload, is_object},
};
use bytes::Bytes;
use serde::{
    Deserializer,
    de::{MapAccess, Visitor},
};
use serde_json::value::RawValue;
use std::{collections::HashSet, fmt, sync::Arc};

/// A broadcast of a client in a room `agent:…` or `org:…`, as the daemon receives it.
///
/// The claims identify the sender. Of the payload only its JSON syntax has been checked.
#[derive(Clone, Debug)]
pub struct Coordination {
    /// The socket of the sender; 0 over HTTP.
    pub conn: ConnId,
    /// The channel of the sender, to answer it alone; 0 over HTTP.
    pub channel: SubscriberId,
    /// One of [`Coordination::EVENTS`].
    pub event: &'static str,
    /// The claims of the sender.
    pub claims: Arc<Claims>,
    /// The room that it was sent to.
    pub room: Room,
    /// The user payload (`docs/spec/negotiation.md` §6).
    pub payload: Bytes,
}

impl Coordination {
    /// The event of the negotiation.
    pub const EVENT: &'static str = "coordination";
    /// A message to one agent.
    pub const MESSAGE: &'static str = "agent_message";
    /// A message to all agents of an org.
    pub const BROADCAST: &'static str = "agent_broadcast";
    /// All events that are checked.
    pub const EVENTS: [&'static str; 3] = [Self::EVENT, Self::MESSAGE, Self::BROADCAST];

    /// Whether the room is one of agents, in which the daemon itself publishes: public `agent:<id>` and `org:<org>`.
    #[must_use]
    pub fn is_agents_room(room: &Room) -> bool {
        let topic = room.topic.as_str();
        !room.private && (topic.starts_with("agent:") || topic.starts_with("org:"))
    }

    /// The sender that the payload names. `None` if it names none or is not an object.
    ///
    /// # Errors
    /// One line, if the member `agent_id` is not a text or not given once.
    pub(super) fn named_sender(&self) -> Result<Option<String>, String> {
        if !is_object(&self.payload) {
            return Ok(None);
        }
        let members = members(&self.payload)?;
        match members.iter().find(|(name, _)| name == "agent_id").map(|(_, value)| value.get()) {
            None | Some("null") => Ok(None),
            Some(name) => serde_json::from_str(name).map(Some).map_err(|_| "agent_id is no text".into()),
        }
    }

    /// The event of these that a client reads from this name: supabase-js ignores case, by the rules of its own
    /// locale. `None` for any other name.
    #[must_use]
    pub fn event(name: &str) -> Option<&'static str> {
        // A Turkish locale reads U+0130 as i; every other one lowers it to i and U+0307.
        let folded = name.to_lowercase().replace("i\u{307}", "i");
        Self::EVENTS.into_iter().find(|event| *event == folded)
    }

    /// The event and user payload of a broadcast that a client reads as one of these. `None` for any other.
    ///
    /// # Errors
    /// One line, if two readers may read the broadcast differently.
    pub(super) fn read(payload: &Payload) -> Result<Option<(&'static str, Bytes)>, String> {
        match payload {
            Payload::User { event, encoding, data } => match (Self::event(event), encoding) {
                (Some(event), Encoding::Json) => Ok(Some((event, data.clone()))),
                (Some(event), Encoding::Binary) => Err(format!("{event} is JSON and not bytes")),
                (None, _) => Ok(None),
            },
            Payload::Json(json) => {
                let members = members(json)?;
                let member =
                    |name: &str| members.iter().find(|(own, _)| own == name).map(|(_, value)| *value);
                // supabase-js reads a message with `ids` as a row change.
                if member("ids").is_some() {
                    return Err("a broadcast has no member ids".into());
                }
                let Some(event) = member("event") else { return Ok(None) };
                let event: String = serde_json::from_str(event.get()).map_err(|_| "event is no text")?;
                let Some(event) = Self::event(&event) else { return Ok(None) };
                let payload = member("payload").ok_or("the message has no payload")?;
                Ok(Some((event, json.slice_ref(payload.get().as_bytes()))))
            }
        }
    }
}

/// The members of an object. A duplicate member is an error: one reader takes the first and another the last.
fn members(json: &[u8]) -> Result<Vec<(String, &RawValue)>, String> {
    struct Members;
    impl<'de> Visitor<'de> for Members {
        type Value = Vec<(String, &'de RawValue)>;
        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("an object")
        }
        fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
            let mut members: Self::Value = Vec::new();
            let mut seen = HashSet::new();
            while let Some((name, value)) = map.next_entry::<String, &RawValue>()? {
                if !seen.insert(name.clone()) {
                    return Err(serde::de::Error::custom("a member is given twice"));
                }
                members.push((name, value));
            }
            Ok(members)
        }
    }
    let text = std::str::from_utf8(json).map_err(|_| "the message is not UTF-8")?;
    let mut reader = serde_json::Deserializer::from_str(text);
    reader
        .deserialize_map(Members)
        .map_err(|_| "the message is no object whose members are given once".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn broadcast_that_a_client_reads_as_a_message_of_agents_is_one() {
        let text = |json: &str| Coordination::read(&Payload::Json(Bytes::copy_from_slice(json.as_bytes())));
        for name in
            ["coordination", "Coordination", "COORDINATION", "COORD\u{130}NATION", "coordi\u{307}nation"]
        {
            let read =
                text(&format!(r#"{{"type":"broadcast","event":"{name}","payload":{{"a":1}}}}"#)).unwrap();
            assert_eq!(read, Some((Coordination::EVENT, Bytes::from_static(br#"{"a":1}"#))), "{name}");
            let user = |encoding| Payload::User {
                event: name.to_owned(),
                encoding,
                data: Bytes::from_static(b"{}"),
            };
            assert!(Coordination::read(&user(Encoding::Json)).unwrap().is_some(), "{name}");
            assert!(Coordination::read(&user(Encoding::Binary)).is_err(), "{name}");
        }
        assert_eq!(Coordination::event("AGENT_Message"), Some(Coordination::MESSAGE));
        for escaped in
            [r#"{"\u0065vent":"coordination","payload":1}"#, r#"{"event":"\u0043oordination","payload":1}"#]
        {
            assert!(text(escaped).unwrap().is_some(), "{escaped}");
        }
        for uncertain in [
            r#"{"event":"chat","event":"coordination","payload":{}}"#,
            r#"{"event":"coordination","event":"chat","payload":{}}"#,
            r#"{"event":"chat","\u0065vent":"coordination","payload":{}}"#,
            r#"{"event":"coordination","payload":{},"payload":{"agent_id":"x"}}"#,
            r#"{"event":"coordination"}"#,
            r#"{"event":["coordination"],"payload":{}}"#,
            r#"{"event":"\ud800","payload":{}}"#,
            r#"{"event":"chat","payload":{},"ids":[1]}"#,
        ] {
            assert!(text(uncertain).is_err(), "{uncertain}");
        }
        for other in [r#"{"event":"chat","payload":{}}"#, r#"{"payload":{"event":"coordination"}}"#, "{}"] {
            assert_eq!(text(other), Ok(None), "{other}");
        }
    }
}
