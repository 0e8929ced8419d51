//! Binary frames of serializer 2.0.0: kind 3 in, kind 4 out (`docs/spec/realtime-protocol.md` §2.4).
use super::{Dropped, Encoding, Frame, Inbound, Payload, Ref, is_json};
use bytes::{BufMut, Bytes, BytesMut};

const GENERIC_PUSH: u8 = 0;
pub(super) const USER_PUSH: u8 = 3;
pub(super) const USER_BROADCAST: u8 = 4;

/// Decodes a binary frame of a 2.0.0 socket. The payload is a slice of `frame`.
///
/// Metadata is checked and discarded. A JSON payload is checked to be well-formed, because
/// receivers fail on a malformed one.
///
/// # Errors
/// [`Dropped`] for every kind but 3, for sizes beyond the frame, and for invalid strings or JSON.
pub fn decode_binary(frame: &Bytes) -> Result<Inbound, Dropped> {
    let mut rest = Cursor(frame.clone());
    match frame.first() {
        Some(&USER_PUSH) => rest.take(1)?,
        Some(&GENERIC_PUSH) => return Err(Dropped::GenericPush),
        kind => return Err(Dropped::UnknownKind(kind.copied())),
    };
    let header = rest.take(6)?;
    let &[join_ref, reference, topic, event, metadata, encoding] = header.as_ref() else {
        return Err(Dropped::Truncated);
    };
    let join_ref = rest.string(join_ref, "join_ref")?;
    let reference = rest.string(reference, "ref")?;
    let topic = rest.string(topic, "topic")?;
    let event = rest.string(event, "event")?;
    let metadata = rest.take(metadata.into())?;
    if !metadata.is_empty() && !is_json(&metadata) {
        return Err(Dropped::Invalid("metadata"));
    }
    let encoding = if encoding == 0 { Encoding::Binary } else { Encoding::Json };
    let data = rest.0;
    if encoding == Encoding::Json && !is_json(&data) {
        return Err(Dropped::Invalid("payload"));
    }
    Ok(Inbound {
        join_ref: Some(Ref::from_string(&join_ref)),
        reference: Some(Ref::from_string(&reference)),
        topic,
        event: "broadcast".to_owned(),
        payload: Payload::User { event, encoding, data },
    })
}

/// Encodes a kind 4 frame; `None` if topic, event or metadata is longer than 255 bytes.
///
/// `topic` has its prefix. `data` must be well-formed JSON if `encoding` is JSON.
#[must_use]
pub fn user_broadcast(
    topic: &str,
    event: &str,
    meta: Option<&[u8]>,
    encoding: Encoding,
    data: &[u8],
) -> Option<Frame> {
    let meta = meta.unwrap_or_default();
    let (topic_size, event_size) = (u8::try_from(topic.len()).ok()?, u8::try_from(event.len()).ok()?);
    let meta_size = u8::try_from(meta.len()).ok()?;
    let mut out = BytesMut::with_capacity(5 + topic.len() + event.len() + meta.len() + data.len());
    out.put_slice(&[USER_BROADCAST, topic_size, event_size, meta_size, u8::from(encoding == Encoding::Json)]);
    out.put_slice(topic.as_bytes());
    out.put_slice(event.as_bytes());
    out.put_slice(meta);
    out.put_slice(data);
    Some(Frame::Binary(out.freeze()))
}

pub(super) struct Cursor(pub(super) Bytes);

impl Cursor {
    pub(super) fn take(&mut self, size: usize) -> Result<Bytes, Dropped> {
        if self.0.len() < size { Err(Dropped::Truncated) } else { Ok(self.0.split_to(size)) }
    }

    pub(super) fn string(&mut self, size: u8, what: &'static str) -> Result<String, Dropped> {
        let bytes = self.take(size.into())?;
        std::str::from_utf8(&bytes).map(str::to_owned).map_err(|_| Dropped::Invalid(what))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const PUSH: &[u8] = b"\x03\x01\x01\x0c\x04\x00\x0149realtime:denping{\"n\":1}";

    #[test]
    fn protocol_example_is_decoded_and_encoded() {
        let frame = decode_binary(&Bytes::from_static(PUSH)).unwrap();
        assert_eq!(frame.join_ref.unwrap().as_json(), "\"4\"");
        assert_eq!(frame.reference.unwrap().as_json(), "\"9\"");
        let Payload::User { event, encoding, data } = frame.payload else { panic!("not a user broadcast") };
        assert_eq!((event.as_str(), encoding), ("ping", Encoding::Json));
        let out = user_broadcast(&frame.topic, &event, None, encoding, &data).unwrap();
        assert_eq!(out, Frame::Binary(Bytes::from_static(b"\x04\x0c\x04\x00\x01realtime:denping{\"n\":1}")));
    }

    #[test]
    fn every_truncation_is_dropped() {
        for end in 0..PUSH.len() {
            assert!(decode_binary(&Bytes::copy_from_slice(&PUSH[..end])).is_err(), "cut at {end}");
        }
    }

    #[test]
    fn malformed_json_and_strings_are_dropped() {
        for bad in [&b""[..], b"{", b"\"\xff\""] {
            let mut frame = b"\x03\x00\x00\x01\x01\x00\x01te".to_vec();
            frame.extend_from_slice(bad);
            assert_eq!(decode_binary(&frame.into()), Err(Dropped::Invalid("payload")));
        }
        assert_eq!(decode_binary(&Bytes::from_static(b"\x00\x00")), Err(Dropped::GenericPush));
        assert_eq!(decode_binary(&Bytes::from_static(b"\x07")), Err(Dropped::UnknownKind(Some(7))));
        assert_eq!(decode_binary(&Bytes::new()), Err(Dropped::UnknownKind(None)));
    }

    #[test]
    fn lengths_are_bytes_up_to_255() {
        let event = "é".repeat(127);
        let Some(Frame::Binary(frame)) =
            user_broadcast("t", &event, Some(b"{}"), Encoding::Binary, &[0xde, 0xad])
        else {
            panic!("fits")
        };
        assert_eq!(&frame[..5], &[4, 1, 254, 2, 0]);
        assert_eq!(user_broadcast("t", &"é".repeat(128), None, Encoding::Binary, &[]), None);
    }

    proptest! {
        #[test]
        fn decoding_arbitrary_bytes_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..64), kind in 0u8..6) {
            let mut frame = vec![kind];
            frame.extend(bytes);
            let _ = decode_binary(&frame.into());
        }
    }
}
