//! Any bytes as a frame of either serializer: what is taken can be encoded and is taken again.
//!
//! The first byte chooses text or binary and the serializer. Run: `fuzz/run.sh wire 600`.
#![no_main]
use bytes::Bytes;
use convoke::wire::{
    Encoding, Frame, Payload, Version, decode_binary, decode_text, is_json, text, user_broadcast,
};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Some((&choice, rest)) = data.split_first() else { return };
    let version = if choice & 1 == 0 { Version::V1 } else { Version::V2 };
    let bytes = Bytes::copy_from_slice(rest);
    let decoded = if choice & 2 == 0 { decode_text(version, &bytes) } else { decode_binary(&bytes) };
    let Ok(frame) = decoded else { return };
    let (join_ref, reference) = (frame.join_ref.as_ref(), frame.reference.as_ref());
    match frame.payload {
        Payload::Json(json) => {
            let Frame::Text(again) =
                text::encode(version, join_ref, reference, &frame.topic, &frame.event, &json)
            else {
                panic!("text became binary")
            };
            let again = decode_text(version, &again).expect("what was encoded is a frame");
            assert_eq!(
                (again.topic, again.event, again.payload),
                (frame.topic, frame.event, Payload::Json(json))
            );
        }
        Payload::User { event, encoding, data } => {
            assert!(encoding == Encoding::Binary || is_json(&data));
            if encoding == Encoding::Json {
                assert!(is_json(&text::user_object(&event, &data, None)));
            }
            // Both names came from headers of the same sizes.
            assert!(user_broadcast(&frame.topic, &event, None, encoding, &data).is_some());
        }
    }
});
