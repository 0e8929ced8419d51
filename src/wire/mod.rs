//! The wire format: Phoenix frames 1.0.0 (JSON objects) and 2.0.0 (JSON
//! arrays, binary kind 3 in and kind 4 out), the websocket frames around them, and the
//! texts of error replies.
//!
//! Pure: bytes in, frames out, and back. Envelopes are parsed; payloads stay the
//! received bytes, so relaying a message never rebuilds it. No decoder panics,
//! and none allocates more than the length of the frame. Invalid input is a [`Dropped`] with
//! its reason, which the caller counts, because the protocol sends no reply to it.
//! Follows `docs/spec/realtime-protocol.md` §2.
mod binary;
pub mod client;
mod frame;
pub mod socket;
pub mod text;

pub use binary::{decode_binary, user_broadcast};
pub use frame::{Encoding, Frame, Inbound, Payload, Ref, Version};
pub use text::decode_text;

/// The prefix of every topic on the wire. The sub-topic follows it.
pub const TOPIC_PREFIX: &str = "realtime:";

/// The topic of heartbeats.
pub const PHOENIX_TOPIC: &str = "phoenix";

/// Why a frame was dropped without an answer (`docs/spec/realtime-protocol.md` §2.6).
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Dropped {
    /// Not JSON, or not the shape of this serializer.
    #[error("text frame is not a {0} message")]
    NotText(Version),
    /// A first byte other than 0 or 3, or a serializer without binary frames.
    #[error("binary frame of unknown kind {0:?}")]
    UnknownKind(Option<u8>),
    /// The sizes in the header go beyond the frame.
    #[error("binary frame is truncated")]
    Truncated,
    /// A header string is not UTF-8, or the metadata or a payload declared as JSON is not JSON.
    #[error("binary frame has an invalid {0}")]
    Invalid(&'static str),
    /// Kind 0 of stock Phoenix, which clients of this protocol never send.
    #[error("binary push of kind 0 is not used by this protocol")]
    GenericPush,
}

/// Whether `bytes` are one well-formed JSON document in UTF-8.
#[must_use]
pub fn is_json(bytes: &[u8]) -> bool {
    std::str::from_utf8(bytes).is_ok() && serde_json::from_slice::<serde::de::IgnoredAny>(bytes).is_ok()
}

/// Whether well-formed JSON is an object.
#[must_use]
pub fn is_object(json: &[u8]) -> bool {
    json.iter().find(|b| !b.is_ascii_whitespace()) == Some(&b'{')
}
