//! What is said to a room, before it is frames.
use crate::wire::{self, Encoding, Frame, Version, text};
use bytes::Bytes;
use serde::Serialize;
use std::sync::Arc;

/// What a message is about: a subscriber may hear one kind and not another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Said by somebody.
    Broadcast,
    /// Who came and went.
    Presence,
    /// By the server, about the channel.
    System,
}

/// One message to a room. Clones share it.
#[derive(Clone, Debug)]
pub struct Message(Arc<Body>);

#[derive(Debug)]
enum Body {
    /// A text frame for both serializers; the payload is a JSON object.
    Text { kind: Kind, event: &'static str, payload: Bytes },
    /// A user broadcast: binary frame for 2.0.0, object for 1.0.0, which never gets bytes.
    User { event: String, encoding: Encoding, data: Bytes, meta: Option<Bytes> },
}

impl Message {
    /// A broadcast of the daemon itself: `{"type":"broadcast","event":…,"payload":…}` as text, for every client.
    /// A payload that cannot be JSON (a map with keys that are no strings) is sent as `{}`.
    #[must_use]
    pub fn broadcast(event: &str, payload: &impl Serialize) -> Self {
        let payload = serde_json::to_vec(payload).unwrap_or_else(|_| b"{}".to_vec());
        Self::relayed(text::user_object(event, &payload, None))
    }

    /// A text broadcast that is passed on as it came; `payload` must be a well-formed JSON object.
    #[must_use]
    pub fn relayed(payload: Bytes) -> Self {
        Self(Arc::new(Body::Text { kind: Kind::Broadcast, event: "broadcast", payload }))
    }

    /// A user broadcast; `data` and `meta` must be well-formed JSON where they are said to be.
    #[must_use]
    pub fn user(event: &str, encoding: Encoding, data: Bytes, meta: Option<Bytes>) -> Self {
        Self(Arc::new(Body::User { event: event.to_owned(), encoding, data, meta }))
    }

    /// A `presence_diff`; `payload` is the whole object with `joins` and `leaves`.
    #[must_use]
    pub fn presence_diff(payload: Bytes) -> Self {
        Self(Arc::new(Body::Text { kind: Kind::Presence, event: "presence_diff", payload }))
    }

    /// A system message to everybody in the room.
    #[must_use]
    pub fn system(payload: Bytes) -> Self {
        Self(Arc::new(Body::Text { kind: Kind::System, event: "system", payload }))
    }

    /// Bytes of its payload.
    #[must_use]
    pub fn size(&self) -> usize {
        match &*self.0 {
            Body::Text { payload, .. } => payload.len(),
            Body::User { data, .. } => data.len(),
        }
    }

    /// What it is about.
    #[must_use]
    pub fn kind(&self) -> Kind {
        match &*self.0 {
            Body::Text { kind, .. } => *kind,
            Body::User { .. } => Kind::Broadcast,
        }
    }

    /// The JSON object of a broadcast as text clients see it: `{"type","event","payload"}`; nothing for bytes.
    #[must_use]
    pub fn object(&self) -> Option<Bytes> {
        match &*self.0 {
            Body::Text { payload, .. } => Some(payload.clone()),
            Body::User { encoding: Encoding::Binary, .. } => None,
            Body::User { event, data, meta, .. } => Some(text::user_object(event, data, meta.as_deref())),
        }
    }

    /// The frame for receivers of `version` on `topic` (with prefix), or nothing when they cannot have it.
    pub(super) fn encode(&self, version: Version, topic: &str) -> Option<Frame> {
        let user = match &*self.0 {
            Body::Text { event, payload, .. } => {
                return Some(text::encode(version, None, None, topic, event, payload));
            }
            Body::User { event, encoding, data, meta } if version == Version::V2 => {
                wire::user_broadcast(topic, event, meta.as_deref(), *encoding, data)
            }
            Body::User { .. } => None,
        };
        // 1.0.0, and names too long for a binary header.
        user.or_else(|| Some(text::encode(version, None, None, topic, "broadcast", &self.object()?)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_topic_too_long_for_a_binary_header_goes_as_text() {
        let topic = format!("realtime:{}", "x".repeat(300));
        let json = Message::user("e", Encoding::Json, Bytes::from_static(b"[1]"), None);
        let Some(Frame::Text(text)) = json.encode(Version::V2, &topic) else { panic!("not text") };
        assert!(text.ends_with(br#","broadcast",{"type":"broadcast","event":"e","payload":[1]}]"#));
        let bytes = Message::user("e", Encoding::Binary, Bytes::from_static(b"1"), None);
        assert_eq!(bytes.encode(Version::V2, &topic), None);
    }
}
