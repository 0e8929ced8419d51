//! The client's side of the wire format: encodes pushes, decodes frames of a server.
//!
//! Text frames of a server are read by [`decode_text`], like those of a client.
use super::{
    Dropped, Encoding, Frame, Ref, Version,
    binary::{Cursor, USER_BROADCAST, USER_PUSH},
    decode_text, is_json, text,
};
use bytes::{BufMut, Bytes, BytesMut};

/// A frame from a server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FromServer {
    /// A text frame.
    Message(super::Inbound),
    /// A binary frame of kind 4.
    User(UserBroadcast),
}

/// A user broadcast as a receiver gets it. `data` and `meta` are slices of the frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UserBroadcast {
    /// The topic with its prefix.
    pub topic: String,
    /// The event that the application chose.
    pub event: String,
    /// The encoding of `data`. JSON is checked to be well-formed.
    pub encoding: Encoding,
    /// The user payload.
    pub data: Bytes,
    /// Well-formed JSON.
    pub meta: Option<Bytes>,
}

/// Decodes a text frame of a server.
///
/// # Errors
/// [`Dropped::NotText`] if it does not have the shape of this serializer.
pub fn read_text(version: Version, frame: &Bytes) -> Result<FromServer, Dropped> {
    decode_text(version, frame).map(FromServer::Message)
}

/// Decodes a binary frame of a 2.0.0 server. Only kind 4 is accepted.
///
/// # Errors
/// [`Dropped`] for every other kind, for sizes beyond the frame, and for invalid strings or JSON.
pub fn read_binary(frame: &Bytes) -> Result<FromServer, Dropped> {
    let mut rest = Cursor(frame.clone());
    match frame.first() {
        Some(&USER_BROADCAST) => rest.take(1)?,
        kind => return Err(Dropped::UnknownKind(kind.copied())),
    };
    let header = rest.take(4)?;
    let &[topic, event, meta, encoding] = header.as_ref() else { return Err(Dropped::Truncated) };
    let topic = rest.string(topic, "topic")?;
    let event = rest.string(event, "event")?;
    let meta = rest.take(meta.into())?;
    if !meta.is_empty() && !is_json(&meta) {
        return Err(Dropped::Invalid("metadata"));
    }
    let encoding = if encoding == 0 { Encoding::Binary } else { Encoding::Json };
    let data = rest.0;
    if encoding == Encoding::Json && !is_json(&data) {
        return Err(Dropped::Invalid("payload"));
    }
    let meta = (!meta.is_empty()).then_some(meta);
    Ok(FromServer::User(UserBroadcast { topic, event, encoding, data, meta }))
}

/// Encodes a text frame to a server. `payload` must be a JSON object. Unlike a server's, a 1.0.0 frame carries
/// `join_ref`.
#[must_use]
pub fn push(
    version: Version,
    join_ref: Option<&Ref>,
    reference: &Ref,
    topic: &str,
    event: &str,
    payload: &[u8],
) -> Frame {
    let frame = text::encode(version, join_ref, Some(reference), topic, event, payload);
    match (version, join_ref, frame) {
        (Version::V1, Some(join_ref), Frame::Text(object)) => {
            let mut out = BytesMut::with_capacity(object.len() + 32);
            out.put_slice(object.strip_suffix(b"}").unwrap_or(&object));
            out.put_slice(b",\"join_ref\":");
            out.put_slice(join_ref.as_json().as_bytes());
            out.put_u8(b'}');
            Frame::Text(out.freeze())
        }
        (_, _, frame) => frame,
    }
}

/// Encodes a user broadcast to a 2.0.0 server (kind 3); `None` if topic or event is longer than 255 bytes.
///
/// `data` must be well-formed JSON if `encoding` is JSON.
#[must_use]
pub fn user_push(
    join_ref: u64,
    reference: u64,
    topic: &str,
    event: &str,
    encoding: Encoding,
    data: &[u8],
) -> Option<Frame> {
    let (join_ref, reference) = (join_ref.to_string(), reference.to_string());
    let mut out = BytesMut::with_capacity(7 + 40 + topic.len() + event.len() + data.len());
    out.put_u8(USER_PUSH);
    for part in [&join_ref, &reference, topic, event] {
        out.put_u8(u8::try_from(part.len()).ok()?);
    }
    out.put_slice(&[0, u8::from(encoding == Encoding::Json)]);
    for part in [&join_ref, &reference, topic, event] {
        out.put_slice(part.as_bytes());
    }
    out.put_slice(data);
    Some(Frame::Binary(out.freeze()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::{Payload, decode_binary, user_broadcast};
    use proptest::prelude::*;

    #[test]
    fn push_of_serializer_1_carries_its_join_ref() {
        let (one, two) = (Ref::from_count(1), Ref::from_count(2));
        let Frame::Text(text) = push(Version::V1, Some(&one), &two, "realtime:den", "phx_leave", b"{}")
        else {
            panic!("not text")
        };
        let expected =
            r#"{"topic":"realtime:den","event":"phx_leave","payload":{},"ref":"2","join_ref":"1"}"#;
        assert_eq!(&text[..], expected.as_bytes());
    }

    #[test]
    fn metadata_is_separate_from_the_payload() {
        let frame = Bytes::from_static(b"\x04\x01\x04\x0a\x00tping{\"id\":\"7\"}\xde\xad");
        let Ok(FromServer::User(got)) = read_binary(&frame) else { panic!("not read") };
        assert_eq!((&got.topic[..], &got.event[..], &got.data[..]), ("t", "ping", &b"\xde\xad"[..]));
        assert_eq!(got.meta.as_deref(), Some(&b"{\"id\":\"7\"}"[..]));
        for end in 0..frame.len() - 2 {
            assert!(read_binary(&frame.slice(..end)).is_err(), "cut at {end}");
        }
        for bad in [&b"\x03\0\0\0\0\0\0"[..], b"", b"\x04\x00\x00\x01\x00{", b"\x04\x00\x00\x00\x01"] {
            assert!(read_binary(&Bytes::from_static(bad)).is_err(), "{bad:?}");
        }
    }

    proptest! {
        #[test]
        fn server_decodes_what_a_client_encodes(
            join in any::<u64>(), own in any::<u64>(), topic in ".{0,60}", event in ".{0,60}", n in any::<i32>(),
        ) {
            let data = n.to_string();
            let Some(Frame::Binary(frame)) = user_push(join, own, &topic, &event, Encoding::Json, data.as_bytes()) else {
                panic!("fits")
            };
            let read = decode_binary(&frame).unwrap();
            prop_assert_eq!(read.join_ref.unwrap().count(), Some(join));
            prop_assert_eq!(read.reference.unwrap().count(), Some(own));
            let Payload::User { event: got, data: payload, .. } = read.payload else { panic!("not a user push") };
            prop_assert_eq!((&read.topic, &got, &payload[..]), (&topic, &event, data.as_bytes()));
            let Some(Frame::Binary(out)) = user_broadcast(&topic, &event, None, Encoding::Json, &payload) else {
                panic!("fits")
            };
            let Ok(FromServer::User(user)) = read_binary(&out) else { panic!("not read") };
            prop_assert_eq!((user.topic, user.event, user.data), (topic, event, payload));
        }

        #[test]
        fn decoding_arbitrary_bytes_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..80), kind in 0u8..6) {
            let mut frame = vec![kind];
            frame.extend(bytes);
            let _ = read_binary(&frame.into());
        }
    }
}
