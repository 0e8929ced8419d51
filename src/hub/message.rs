//! What is said to a room, before it is frames.
use crate::wire::{self, Encoding, Frame, Version, text};
use bytes::{Buf, BufMut, Bytes, BytesMut};
use serde::Serialize;
use serde_json::{Map, Value, value::RawValue};
use std::{collections::BTreeMap, sync::Arc};

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

    /// The `meta.id` of a user broadcast: messages that come from the database have one.
    #[must_use]
    pub fn id(&self) -> Option<String> {
        #[derive(serde::Deserialize)]
        struct Meta {
            id: String,
        }
        match &*self.0 {
            Body::User { meta: Some(meta), .. } => Some(serde_json::from_slice::<Meta>(meta).ok()?.id),
            _ => None,
        }
    }

    /// The frame for receivers of `version` on `topic` (with prefix), or nothing when they cannot have it.
    pub(in crate::hub) fn encode(&self, version: Version, topic: &str) -> Option<Frame> {
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

/// How a kept message begins: what it is.
const TEXT: u8 = 0;
const USER_JSON: u8 = 1;
const USER_BYTES: u8 = 2;

impl Message {
    /// Appends a broadcast as it is kept.
    pub(super) fn put(&self, out: &mut BytesMut) {
        match &*self.0 {
            Body::Text { payload, .. } => {
                out.put_u8(TEXT);
                out.put_slice(payload);
            }
            Body::User { event, encoding, data, meta } => {
                out.put_u8(if *encoding == Encoding::Json { USER_JSON } else { USER_BYTES });
                for part in [event.as_bytes(), meta.as_deref().unwrap_or_default()] {
                    out.put_u32_le(u32::try_from(part.len()).unwrap_or(u32::MAX));
                    out.put_slice(part);
                }
                out.put_slice(data);
            }
        }
    }

    /// Reads what [`Message::put`] wrote.
    pub(super) fn get(mut bytes: Bytes) -> Option<Self> {
        let encoding = match bytes.try_get_u8().ok()? {
            TEXT => return Some(Self::relayed(bytes)),
            USER_JSON => Encoding::Json,
            USER_BYTES => Encoding::Binary,
            _ => return None,
        };
        let mut part = || {
            let size = bytes.try_get_u32_le().ok()? as usize;
            (size <= bytes.len()).then(|| bytes.split_to(size))
        };
        let (event, meta) = (part()?, part()?);
        let event = std::str::from_utf8(&event).ok()?;
        Some(Self::user(event, encoding, bytes, Some(meta).filter(|meta| !meta.is_empty())))
    }

    /// The same broadcast with `meta.id`, unless it has one, and `meta.replayed` when it is said again.
    #[must_use]
    pub(super) fn numbered(&self, id: u64, replayed: bool) -> Self {
        match &*self.0 {
            Body::User { event, encoding, data, meta } => {
                let meta = meta_of(meta.as_deref(), id, replayed);
                Self::user(event, *encoding, data.clone(), Some(meta))
            }
            Body::Text { kind: Kind::Broadcast, payload, .. } => {
                Self::relayed(payload_with_meta(payload, id, replayed))
            }
            Body::Text { .. } => self.clone(),
        }
    }
}

fn meta_of(meta: Option<&[u8]>, id: u64, replayed: bool) -> Bytes {
    let given = meta.and_then(|meta| serde_json::from_slice::<Map<String, Value>>(meta).ok());
    let Some(mut meta) = given else {
        let replayed = if replayed { ",\"replayed\":true" } else { "" };
        return format!("{{\"id\":\"{id}\"{replayed}}}").into();
    };
    meta.entry("id").or_insert_with(|| id.to_string().into());
    meta.remove("replayed");
    if replayed {
        meta.insert("replayed".to_owned(), true.into());
    }
    Value::Object(meta).to_string().into()
}

/// Puts `meta` into a JSON object without touching anything else in it, unless it has one already.
fn payload_with_meta(payload: &[u8], id: u64, replayed: bool) -> Bytes {
    const NAME: &[u8] = b"\"meta\"";
    if payload.windows(NAME.len()).any(|part| part == NAME)
        && let Ok(mut object) = serde_json::from_slice::<BTreeMap<String, &RawValue>>(payload)
        && let Some(meta) = object.get("meta")
    {
        let meta = meta_of(Some(meta.get().as_bytes()), id, replayed);
        let meta = std::str::from_utf8(&meta).ok().and_then(|meta| serde_json::from_str(meta).ok());
        object.extend(meta.map(|meta| ("meta".to_owned(), meta)));
        return serde_json::to_vec(&object).map_or_else(|_| Bytes::copy_from_slice(payload), Bytes::from);
    }
    let trimmed = payload.trim_ascii_end();
    let inner = trimmed.strip_suffix(b"}").unwrap_or(trimmed).trim_ascii_end();
    let mut out = BytesMut::with_capacity(payload.len() + 64);
    out.put_slice(inner);
    out.put_slice(if inner.ends_with(b"{") { b"\"meta\":" } else { b",\"meta\":" });
    out.put_slice(&meta_of(None, id, replayed));
    out.put_u8(b'}');
    out.freeze()
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

    #[test]
    fn what_is_kept_comes_back_as_it_was() {
        let user = |encoding, data: &'static [u8], meta: Option<&'static [u8]>| {
            Message::user("é", encoding, Bytes::from_static(data), meta.map(Bytes::from_static))
        };
        for message in [
            Message::relayed(Bytes::from_static(b"{}")),
            user(Encoding::Json, b"[1]", None),
            user(Encoding::Binary, b"\xff\x00", Some(b"{\"id\":\"a\"}")),
            user(Encoding::Binary, b"", None),
        ] {
            let mut out = BytesMut::new();
            message.put(&mut out);
            let bytes = out.freeze();
            let again = Message::get(bytes.clone()).unwrap();
            assert_eq!(format!("{again:?}"), format!("{message:?}"));
            for end in 0..bytes.len().min(8) {
                let _ = Message::get(bytes.slice(..end));
            }
        }
    }

    #[test]
    fn ids_are_added_and_nothing_else_is_touched() {
        for (payload, replayed, expected) in [
            ("{}", false, r#"{"meta":{"id":"7"}}"#),
            (
                r#"{"b":"meta", "a":[1] } "#,
                true,
                r#"{"b":"meta", "a":[1],"meta":{"id":"7","replayed":true}}"#,
            ),
            (r#"{"x":1,"meta":{"id":"own"}}"#, true, r#"{"meta":{"id":"own","replayed":true},"x":1}"#),
            (r#"{"meta":{"replayed":true,"y":2}}"#, false, r#"{"meta":{"id":"7","y":2}}"#),
            (r#"{"meta":5}"#, false, r#"{"meta":{"id":"7"}}"#),
        ] {
            let message = Message::relayed(Bytes::from_static(payload.as_bytes())).numbered(7, replayed);
            assert_eq!(message.object().unwrap(), expected, "{payload}");
        }
        let user = Message::user("e", Encoding::Json, Bytes::from_static(b"1"), None).numbered(7, true);
        let expected = r#"{"type":"broadcast","event":"e","payload":1,"meta":{"id":"7","replayed":true}}"#;
        assert_eq!(user.object().unwrap(), expected);
    }
}
