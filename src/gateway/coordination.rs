//! What clients say to the daemon on agents' channels.
use crate::{auth::Claims, hub::Room, id::ConnId};
use bytes::Bytes;
use serde::Deserialize;
use serde_json::value::RawValue;
use std::{borrow::Cow, sync::Arc};

/// A `coordination` broadcast of a client on a room `agent:…` or `org:…`, beside its delivery to the room.
///
/// Who said it is known by `claims`; nothing in the payload has been checked but that it is JSON.
#[derive(Clone, Debug)]
pub struct Coordination {
    /// The socket it came from.
    pub conn: ConnId,
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
    /// The event of these broadcasts.
    pub const EVENT: &'static str = "coordination";

    /// The user payload of a text broadcast with this event.
    pub(super) fn inner(json: &Bytes) -> Option<Bytes> {
        let envelope: Envelope<'_> = serde_json::from_str(std::str::from_utf8(json).ok()?).ok()?;
        (envelope.event == Self::EVENT).then(|| json.slice_ref(envelope.payload.get().as_bytes()))
    }
}
