//! A message to a room before it is encoded as frames, and its stored form.
use super::memory::{Account, Counting};
use crate::wire::{self, Encoding, Frame, Version, text};
use bytes::{Buf, BufMut, Bytes, BytesMut};
use serde::Serialize;
use serde_json::{Map, Value, value::RawValue};
use std::{collections::BTreeMap, sync::Arc};

/// The kind of a message. A subscriber may receive one kind and not another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// From a client or from the database.
    Broadcast,
    /// A presence difference.
    Presence,
    /// From the server, about the channel.
    System,
}

/// One message to a room. Clones share it.
#[derive(Clone, Debug)]
pub struct Message(Arc<Body>);

#[derive(Debug)]
enum Body {
    /// A text frame for both serializers. The payload is a JSON object.
    Text { kind: Kind, event: &'static str, payload: Bytes },
    /// A user broadcast: a binary frame for 2.0.0, a JSON object for 1.0.0. A binary payload is never sent to 1.0.0.
    User { event: String, encoding: Encoding, data: Bytes, meta: Option<Bytes> },
}

impl Message {
    /// A broadcast of the daemon itself: `{"type":"broadcast","event":…,"payload":…}` as text, for every client.
    /// A payload that cannot be JSON (a map with non-string keys) is sent as `{}`.
    #[must_use]
    pub fn broadcast(event: &str, payload: &impl Serialize) -> Self {
        let payload = serde_json::to_vec(payload).unwrap_or_else(|_| b"{}".to_vec());
        Self::relayed(text::user_object(event, &payload, None))
    }

    /// A text broadcast whose payload is forwarded unchanged. `payload` must be a well-formed JSON object.
    #[must_use]
    pub fn relayed(payload: Bytes) -> Self {
        Self(Arc::new(Body::Text { kind: Kind::Broadcast, event: "broadcast", payload }))
    }

    /// A user broadcast. `data` must be well-formed JSON if `encoding` is JSON, and `meta` always.
    #[must_use]
    pub fn user(event: &str, encoding: Encoding, data: Bytes, meta: Option<Bytes>) -> Self {
        Self(Arc::new(Body::User { event: event.to_owned(), encoding, data, meta }))
    }

    /// A `presence_diff`; `payload` is the whole object with `joins` and `leaves`.
    #[must_use]
    pub fn presence_diff(payload: Bytes) -> Self {
        Self(Arc::new(Body::Text { kind: Kind::Presence, event: "presence_diff", payload }))
    }

    /// A system message to every subscriber of the room.
    #[must_use]
    pub fn system(payload: Bytes) -> Self {
        Self(Arc::new(Body::Text { kind: Kind::System, event: "system", payload }))
    }

    /// A copy whose payload is charged to the clients' memory until its last clone is dropped.
    #[must_use]
    pub(super) fn counted(&self, counting: &Counting, sender: Option<&Arc<Account>>) -> Self {
        Self(Arc::new(match &*self.0 {
            Body::Text { kind, event, payload } => {
                Body::Text { kind: *kind, event, payload: counting.counted(payload.clone(), sender) }
            }
            Body::User { event, encoding, data, meta } => Body::User {
                event: event.clone(),
                encoding: *encoding,
                data: counting.counted(data.clone(), sender),
                meta: meta.clone(),
            },
        }))
    }

    /// Bytes of the payload.
    #[must_use]
    pub fn size(&self) -> usize {
        match &*self.0 {
            Body::Text { payload, .. } => payload.len(),
            Body::User { data, .. } => data.len(),
        }
    }

    /// The kind.
    #[must_use]
    pub fn kind(&self) -> Kind {
        match &*self.0 {
            Body::Text { kind, .. } => *kind,
            Body::User { .. } => Kind::Broadcast,
        }
    }

    /// The JSON object of a broadcast as text clients receive it: `{"type","event","payload"}`. `None` for a binary
    /// payload.
    #[must_use]
    pub fn object(&self) -> Option<Bytes> {
        match &*self.0 {
            Body::Text { payload, .. } => Some(payload.clone()),
            Body::User { encoding: Encoding::Binary, .. } => None,
            Body::User { event, data, meta, .. } => Some(text::user_object(event, data, meta.as_deref())),
        }
    }

    /// The `meta.id` of a user broadcast, or `None`. Messages from the database have one.
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

    /// The frame for receivers of `version` on `topic` (with prefix); `None` if they cannot receive the message.
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
        // Serializer 1.0.0, and names too long for a binary header.
        user.or_else(|| Some(text::encode(version, None, None, topic, "broadcast", &self.object()?)))
    }
}

/// The first byte of a stored message: its form.
const TEXT: u8 = 0;
const USER_JSON: u8 = 1;
const USER_BYTES: u8 = 2;

impl Message {
    /// Appends a broadcast in its stored form.
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

    /// Reads the form that [`Message::put`] writes. `None` if the bytes are not of that form.
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

    /// A copy with `meta.id` (an existing id is kept), and with `meta.replayed` if `replayed`.
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

/// Adds `meta` to a JSON object and keeps every other byte. An existing `meta` is merged.
fn payload_with_meta(payload: &[u8], id: u64, replayed: bool) -> Bytes {
    const NAME: &[u8] = b"\"meta\"";
    // A scan for the name avoids parsing the payload in the usual case; a match may be in a string or nested.
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
    fn topic_too_long_for_a_binary_header_is_sent_as_text() {
        let topic = format!("realtime:{}", "x".repeat(300));
        let json = Message::user("e", Encoding::Json, Bytes::from_static(b"[1]"), None);
        let Some(Frame::Text(text)) = json.encode(Version::V2, &topic) else { panic!("not text") };
        assert!(text.ends_with(br#","broadcast",{"type":"broadcast","event":"e","payload":[1]}]"#));
        let bytes = Message::user("e", Encoding::Binary, Bytes::from_static(b"1"), None);
        assert_eq!(bytes.encode(Version::V2, &topic), None);
    }

    #[test]
    fn stored_message_decodes_to_the_original() {
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
    fn numbered_adds_meta_and_keeps_other_bytes() {
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
