//! Replays stored messages of a private channel to a joining client (`docs/spec/postgres-changes.md` §6).
//!
//! The channel subscribes before the messages are read, and buffers live messages meanwhile: no message is
//! lost between stored and live ones, and duplicates are removed.
use super::{channel::Refusal, shared::Shared};
use crate::{
    access::{Asker, Missing, Payload, Replay, Stored, unauthorized},
    hub::{Interests, Outbox, Room, Subscription},
    wire::{self, Encoding, Frame, Ref, Version, text},
};
use parking_lot::Mutex;
use serde_json::json;
use std::sync::Arc;

/// A subscription that buffers live messages, and the stored messages to deliver first.
pub(super) struct HeldReplay {
    pub(super) subscription: Subscription,
    pub(super) old: StoredMessages,
}

/// The stored messages to deliver first.
pub(super) struct StoredMessages {
    messages: Vec<Stored>,
    missing: Option<Missing>,
}

/// The replay of a join, which its check stores here.
pub(super) type ReplaySlot = Arc<Mutex<Option<HeldReplay>>>;

/// Subscribes and reads. Must be called after all other checks of the join.
pub(super) async fn read(
    shared: &Shared,
    room: &Room,
    (asker, may_hear): (&Asker, bool),
    replay: Replay,
    (version, outbox): (Version, Arc<Outbox>),
) -> Result<HeldReplay, Refusal> {
    if !may_hear {
        return Err(Refusal::new(unauthorized(&room.topic)));
    }
    let subscription = shared.hub.subscribe_held(room.clone(), version, outbox, Interests::all());
    let (messages, missing) = shared
        .access
        .replay(asker, &room.topic, replay)
        .await
        .map_err(|_| Refusal::new("UnableToReplayMessages: Realtime was unable to replay messages"))?;
    Ok(HeldReplay { subscription, old: StoredMessages { messages, missing } })
}

impl StoredMessages {
    /// Delivers the stored messages, then the buffered ones. Returns what may be missing.
    pub(super) fn deliver(
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

/// Encodes a stored message; `None` for a binary payload that the receiver cannot have.
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

/// The notice about an incomplete replay.
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
