//! Old messages of a private channel for whoever joins it (`reference/postgres-changes.md` §6).
//!
//! The channel listens before they are read, and what is said meanwhile is held back, so that nothing is
//! lost between the old and the new; what is both comes once.
use super::{channel::Refusal, shared::Shared};
use crate::{
    access::{Missing, Payload, Replay, Stored, unauthorized},
    hub::{Hears, Outbox, Room, Subscription},
    wire::{self, Encoding, Frame, Ref, Version, text},
};
use parking_lot::Mutex;
use serde_json::json;
use std::sync::Arc;

/// A place in a room that holds its breath, and what is to be said first.
pub(super) struct Held {
    pub(super) subscription: Subscription,
    pub(super) old: Old,
}

/// What is to be said first.
pub(super) struct Old {
    messages: Vec<Stored>,
    missing: Option<Missing>,
}

/// Where a join leaves what it has read.
pub(super) type Place = Arc<Mutex<Option<Held>>>;

/// Listens and reads; to be called when everything else about the join is checked.
pub(super) async fn read(
    shared: &Shared,
    room: &Room,
    may_hear: bool,
    replay: Replay,
    (version, outbox): (Version, Arc<Outbox>),
) -> Result<Held, Refusal> {
    if !may_hear {
        return Err(Refusal::new(unauthorized(&room.topic)));
    }
    let subscription = shared.hub.subscribe_held(room.clone(), version, outbox, Hears::all());
    let (messages, missing) = shared
        .access
        .replay(&room.topic, replay)
        .await
        .map_err(|_| Refusal::new("UnableToReplayMessages: Realtime was unable to replay messages"))?;
    Ok(Held { subscription, old: Old { messages, missing } })
}

impl Old {
    /// Says it, and lets go what was held back. Gives what may be missing.
    pub(super) fn say(
        self,
        subscription: &Subscription,
        version: Version,
        join_ref: Option<&Ref>,
    ) -> Option<Missing> {
        let topic = subscription.room().wire_topic();
        let frames = self.messages.into_iter().map(|message| {
            let frame = frame(&message, version, join_ref, &topic);
            (message.id, frame)
        });
        let whole = subscription.release(frames.collect());
        self.missing.or((!whole).then_some(Missing::Later))
    }
}

/// Nothing for bytes that the receiver cannot have.
fn frame(message: &Stored, version: Version, join_ref: Option<&Ref>, topic: &str) -> Option<Frame> {
    let mut meta = json!({ "id": message.id, "replayed": true });
    if let (Some(cursor), Some(meta)) = (&message.cursor, meta.as_object_mut()) {
        meta.insert("cursor".to_owned(), cursor.as_str().into());
    }
    let meta = meta.to_string();
    match &message.payload {
        Payload::Json(payload) => {
            let object = text::user_object(&message.event, payload, Some(meta.as_bytes()));
            Some(text::encode(version, join_ref, None, topic, "broadcast", &object))
        }
        Payload::Binary(payload) if version == Version::V2 => {
            wire::user_broadcast(topic, &message.event, Some(meta.as_bytes()), Encoding::Binary, payload)
        }
        Payload::Binary(_) => None,
    }
}

/// What a channel is told when there was more than could be said.
pub(super) fn incomplete(sub_topic: &str, missing: Missing) -> String {
    let message = match missing {
        Missing::Later => "Replay is incomplete: more messages were missed than can be replayed at once",
        Missing::Earlier => "Replay may be incomplete: the message of the cursor is not kept any more",
    };
    json!({
        "extension": "system", "status": "error", "message": message, "channel": sub_topic, "meta": { "gap": true }
    })
    .to_string()
}
