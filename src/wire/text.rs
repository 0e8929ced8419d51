//! Text frames of both serializers, in and out (`docs/spec/realtime-protocol.md` §2.1, §2.2).
use super::{Dropped, Frame, Inbound, Payload, Ref, Version};
use bytes::{BufMut, Bytes, BytesMut};
use serde::{
    Deserialize, Deserializer,
    de::{IgnoredAny, SeqAccess, Visitor},
};
use serde_json::value::RawValue;
use std::{borrow::Cow, fmt};

/// Decodes a text frame. The payload is a slice of `frame`.
///
/// # Errors
/// [`Dropped::NotText`] if it is not UTF-8, not JSON, or not an array of at least five (2.0.0) or an
/// object with `topic`, `event`, `payload` and `ref` (1.0.0).
pub fn decode_text(version: Version, frame: &Bytes) -> Result<Inbound, Dropped> {
    let parsed = std::str::from_utf8(frame).ok().and_then(|text| {
        let parts: FrameParts<'_> = match version {
            // Serde also reads a derived struct from an array, which is the shape of the other serializer.
            Version::V1 if !super::is_object(frame) => return None,
            Version::V1 => serde_json::from_str::<Object<'_>>(text).ok()?.into(),
            Version::V2 => serde_json::from_str(text).ok()?,
        };
        Some(Inbound {
            join_ref: parts.join_ref.and_then(|raw| Ref::from_json(raw.get())),
            reference: Ref::from_json(parts.reference.get()),
            topic: parts.topic.into_owned(),
            event: parts.event.into_owned(),
            payload: Payload::Json(frame.slice_ref(parts.payload.get().as_bytes())),
        })
    });
    parsed.ok_or(Dropped::NotText(version))
}

/// Encodes a text frame to a client. `payload` must be a JSON object. 1.0.0 omits `join_ref`.
#[must_use]
pub fn encode(
    version: Version,
    join_ref: Option<&Ref>,
    reference: Option<&Ref>,
    topic: &str,
    event: &str,
    payload: &[u8],
) -> Frame {
    let (before, after) = envelope(version, join_ref, reference, topic, event);
    let mut out = BytesMut::with_capacity(before.len() + payload.len() + after.len());
    out.put_slice(&before);
    out.put_slice(payload);
    out.put_slice(&after);
    Frame::Text(out.freeze())
}

/// The bytes before and after the payload of [`encode`], for a large payload that many frames share.
#[must_use]
pub fn envelope(
    version: Version,
    join_ref: Option<&Ref>,
    reference: Option<&Ref>,
    topic: &str,
    event: &str,
) -> (BytesMut, Bytes) {
    let mut before = BytesMut::with_capacity(topic.len() + event.len() + 64);
    let reference = reference.map_or("null", Ref::as_json);
    match version {
        Version::V1 => {
            before.put_slice(b"{\"topic\":");
            put_string(&mut before, topic);
            before.put_slice(b",\"event\":");
            put_string(&mut before, event);
            before.put_slice(b",\"payload\":");
            (before, Bytes::from(format!(",\"ref\":{reference}}}")))
        }
        Version::V2 => {
            before.put_u8(b'[');
            before.put_slice(join_ref.map_or("null", Ref::as_json).as_bytes());
            before.put_u8(b',');
            before.put_slice(reference.as_bytes());
            before.put_u8(b',');
            put_string(&mut before, topic);
            before.put_u8(b',');
            put_string(&mut before, event);
            before.put_u8(b',');
            (before, Bytes::from_static(b"]"))
        }
    }
}

/// The payload of a `phx_reply`. `response` must be JSON.
#[must_use]
pub fn reply(ok: bool, response: &str) -> Vec<u8> {
    let status = if ok { "ok" } else { "error" };
    format!("{{\"status\":\"{status}\",\"response\":{response}}}").into_bytes()
}

/// The JSON object of error replies, with the one member `reason`.
#[must_use]
pub fn reason(text: &str) -> String {
    serde_json::json!({ "reason": text }).to_string()
}

/// The JSON object of a user broadcast: for 1.0.0 receivers, and for 2.0.0 ones if a binary header cannot hold it.
#[must_use]
pub fn user_object(event: &str, payload: &[u8], meta: Option<&[u8]>) -> Bytes {
    let mut out = BytesMut::with_capacity(payload.len() + event.len() + 64);
    out.put_slice(b"{\"type\":\"broadcast\",\"event\":");
    put_string(&mut out, event);
    out.put_slice(b",\"payload\":");
    out.put_slice(payload);
    if let Some(meta) = meta {
        out.put_slice(b",\"meta\":");
        out.put_slice(meta);
    }
    out.put_u8(b'}');
    out.freeze()
}

/// Appends `text` as a JSON string.
pub fn put_string(out: &mut BytesMut, text: &str) {
    if text.bytes().all(|b| b >= 0x20 && b != b'"' && b != b'\\') {
        out.put_u8(b'"');
        out.put_slice(text.as_bytes());
        out.put_u8(b'"');
    } else {
        out.put_slice(serde_json::Value::from(text).to_string().as_bytes());
    }
}

struct FrameParts<'a> {
    join_ref: Option<&'a RawValue>,
    reference: &'a RawValue,
    topic: Cow<'a, str>,
    event: Cow<'a, str>,
    payload: &'a RawValue,
}

#[derive(Deserialize)]
struct Object<'a> {
    // Borrowed raw text distinguishes an explicit null from a missing key.
    #[serde(borrow, default)]
    join_ref: Option<&'a RawValue>,
    #[serde(borrow, rename = "ref")]
    reference: &'a RawValue,
    #[serde(borrow)]
    topic: Cow<'a, str>,
    #[serde(borrow)]
    event: Cow<'a, str>,
    #[serde(borrow)]
    payload: &'a RawValue,
}

impl<'a> From<Object<'a>> for FrameParts<'a> {
    fn from(o: Object<'a>) -> Self {
        Self {
            join_ref: o.join_ref,
            reference: o.reference,
            topic: o.topic,
            event: o.event,
            payload: o.payload,
        }
    }
}

impl<'de: 'a, 'a> Deserialize<'de> for FrameParts<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Five;
        impl<'de> Visitor<'de> for Five {
            type Value = FrameParts<'de>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("[join_ref, ref, topic, event, payload]")
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<FrameParts<'de>, A::Error> {
                fn next<'de, A: SeqAccess<'de>, T: Deserialize<'de>>(
                    seq: &mut A,
                    at: usize,
                ) -> Result<T, A::Error> {
                    seq.next_element()?.ok_or_else(|| serde::de::Error::invalid_length(at, &Five))
                }
                let parts = FrameParts {
                    join_ref: Some(next(&mut seq, 0)?),
                    reference: next(&mut seq, 1)?,
                    topic: next::<_, Text<'de>>(&mut seq, 2)?.0,
                    event: next::<_, Text<'de>>(&mut seq, 3)?.0,
                    payload: next(&mut seq, 4)?,
                };
                while seq.next_element::<IgnoredAny>()?.is_some() {}
                Ok(parts)
            }
        }
        deserializer.deserialize_seq(Five)
    }
}

#[derive(Deserialize)]
#[serde(transparent)]
struct Text<'a>(#[serde(borrow)] Cow<'a, str>);

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn v2(text: &str) -> Result<Inbound, Dropped> {
        decode_text(Version::V2, &Bytes::copy_from_slice(text.as_bytes()))
    }

    #[test]
    fn array_of_five_is_decoded_and_its_payload_bytes_are_kept() {
        let frame = v2(r#"["1",null,"realtime:den","broadcast",{"b" : 1, "a":[]}, "more"]"#).unwrap();
        assert_eq!(frame.join_ref.unwrap().as_json(), "\"1\"");
        assert_eq!(frame.reference, None);
        assert_eq!(frame.payload, Payload::Json(Bytes::from_static(br#"{"b" : 1, "a":[]}"#)));
    }

    #[test]
    fn wrong_shape_is_dropped() {
        let object = r#"{"topic":"phoenix","event":"heartbeat","payload":{},"ref":"1"}"#;
        for bad in ["", "[", "null", r#"["1","1","t","e"]"#, r#"["1","1",3,"e",{}]"#, object] {
            assert_eq!(v2(bad), Err(Dropped::NotText(Version::V2)), "{bad}");
        }
        let v1 = |text: &'static str| decode_text(Version::V1, &Bytes::from_static(text.as_bytes()));
        assert!(v1(r#"{"topic":"phoenix","event":"heartbeat","payload":{},"ref":null}"#).is_ok());
        assert!(v1(r#"{"topic":"phoenix","event":"heartbeat","payload":{}}"#).is_err());
        assert!(v1(r#"["1","1","t","e",{}]"#).is_err());
    }

    #[test]
    fn server_object_has_no_join_ref() {
        let one = Ref::from_string("1");
        let frame = encode(Version::V1, Some(&one), Some(&one), "realtime:\"ö", "phx_reply", b"{}");
        let Frame::Text(text) = frame else { panic!("not text") };
        assert_eq!(
            &text[..],
            r#"{"topic":"realtime:\"ö","event":"phx_reply","payload":{},"ref":"1"}"#.as_bytes()
        );
    }

    proptest! {
        #[test]
        fn decoding_arbitrary_bytes_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let bytes = Bytes::from(bytes);
            let _ = decode_text(Version::V1, &bytes);
            let _ = decode_text(Version::V2, &bytes);
        }

        #[test]
        fn encoded_frame_decodes_to_the_original(topic in ".*", event in ".*", n in any::<i64>(), join in proptest::option::of("[0-9]{1,4}")) {
            let payload = format!("{{\"n\":{n}}}");
            let join = join.map(|j| Ref::from_string(&j));
            for version in [Version::V1, Version::V2] {
                let Frame::Text(bytes) = encode(version, join.as_ref(), join.as_ref(), &topic, &event, payload.as_bytes()) else {
                    unreachable!()
                };
                let frame = decode_text(version, &bytes).unwrap();
                prop_assert_eq!(&frame.topic, &topic);
                prop_assert_eq!(&frame.event, &event);
                prop_assert_eq!(&frame.reference, &join);
                prop_assert_eq!(frame.payload, Payload::Json(payload.clone().into()));
            }
        }
    }
}
