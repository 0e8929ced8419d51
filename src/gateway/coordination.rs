//! What clients say to the daemon on agents' channels.
use crate::{
    auth::Claims,
    hub::{Room, SubscriberId},
    id::ConnId,
};
use bytes::Bytes;
use serde::Deserialize;
use serde_json::value::RawValue;
use std::{borrow::Cow, sync::Arc};

/// A broadcast of a client to agents on a room `agent:…` or `org:…`, beside its delivery to the room.
///
/// Who said it is known by `claims`; nothing in the payload has been checked but that it is JSON.
#[derive(Clone, Debug)]
pub struct Coordination {
    /// The socket it came from.
    pub conn: ConnId,
    /// The channel it was said on, to answer it alone.
    pub channel: SubscriberId,
    /// One of [`Coordination::EVENTS`].
    pub event: &'static str,
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
    /// The negotiation's own event.
    pub const EVENT: &'static str = "coordination";
    /// The events of these broadcasts: the negotiation, a word to one agent, a word to all of an org.
    pub const EVENTS: [&'static str; 3] = [Self::EVENT, "agent_message", "agent_broadcast"];

    /// The event, if it is one of these.
    pub(super) fn event(name: &str) -> Option<&'static str> {
        Self::EVENTS.into_iter().find(|event| *event == name)
    }

    /// The event and user payload of a text broadcast with one of these events.
    pub(super) fn inner(json: &Bytes) -> Option<(&'static str, Bytes)> {
        let envelope: Envelope<'_> = serde_json::from_str(std::str::from_utf8(json).ok()?).ok()?;
        let event = Self::event(&envelope.event)?;
        Some((event, json.slice_ref(envelope.payload.get().as_bytes())))
    }
}
