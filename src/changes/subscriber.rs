//! One channel that receives row changes: its position in the change log, and its output.
use crate::{
    hub::{Hub, Outbox},
    wire::{Ref, Version, text},
};
use parking_lot::Mutex;
use serde_json::json;
use std::sync::Arc;
use tokio_util::sync::CancellationToken;

use super::registry::Spec;

/// One channel; the registry identifies it by address.
#[derive(Debug)]
pub(super) struct ChangeSubscriber {
    pub(super) outbox: Arc<Outbox>,
    pub(super) version: Version,
    /// The topic in frames.
    pub(super) topic: Arc<str>,
    pub(super) channel: String,
    pub(super) join_ref: Option<Ref>,
    gone: CancellationToken,
    pub(super) at: Mutex<At>,
}

/// Position, lane and spec of a channel.
#[derive(Debug)]
pub(super) struct At {
    /// The last number that was delivered as a whole.
    pub(super) number: u64,
    /// Changes up to this number were missed, and are marked as replayed.
    pub(super) missed_upto: u64,
    /// The reply to the join reported the gaps up to this number.
    pub(super) told_upto: u64,
    /// Number and index of the first change to deliver. The part that contains it may be delivered up to here.
    pub(super) from: (u64, u32),
    /// Index of its lane; past the shared lanes it has a task of its own.
    pub(super) lane: usize,
    /// It is registered in its lane, at the position of the lane.
    pub(super) live: bool,
    /// A task of its own delivers to it.
    pub(super) apart: bool,
    /// The current subscription.
    pub(super) spec: Spec,
    /// The subscription to switch to, after a change of its token.
    pub(super) next: Option<Spec>,
}

impl ChangeSubscriber {
    pub(super) fn new(
        (outbox, version): (Arc<Outbox>, Version),
        spec: Spec,
        channel: &str,
        join_ref: Option<Ref>,
        number: u64,
    ) -> Self {
        let topic = spec.topic.clone();
        let at = Mutex::new(At {
            number,
            missed_upto: 0,
            told_upto: 0,
            from: (0, 0),
            lane: 0,
            live: false,
            apart: false,
            spec,
            next: None,
        });
        let channel = channel.to_owned();
        Self { outbox, version, topic, channel, join_ref, gone: CancellationToken::new(), at }
    }

    /// Ends its subscription.
    pub(super) fn leave(&self) {
        self.gone.cancel();
    }

    pub(super) fn is_gone(&self) -> bool {
        self.gone.is_cancelled()
    }

    /// Resolves when its subscription has ended.
    pub(super) async fn left(&self) {
        self.gone.cancelled().await;
    }

    /// Moves it to the next lane, from the change `from` on. Returns true if a task of its own performs the move.
    pub(super) fn moves_on(&self, from: (u64, u32)) -> bool {
        let mut at = self.at.lock();
        (at.number, at.from, at.live) = (from.0 - 1, from, false);
        at.lane += 1;
        at.apart
    }

    /// Enqueues `count` frames with their websocket headers.
    pub(super) fn put(&self, hub: &Hub, frames: &bytes::Bytes, count: usize) {
        if !self.is_gone() {
            hub.enqueue(&self.outbox, frames.clone(), count);
        }
    }

    /// Sends a system message about row changes.
    pub(super) fn send_status(&self, status: &str, message: &str) {
        self.system(&json!({
            "extension": "postgres_changes",
            "status": status,
            "message": message,
            "channel": self.channel,
        }));
    }

    /// Sends a system message.
    pub(super) fn system(&self, payload: &serde_json::Value) {
        if self.is_gone() {
            return;
        }
        let payload = payload.to_string();
        let (topic, join_ref) = (&self.topic, self.join_ref.as_ref());
        let frame = text::encode(self.version, join_ref, None, topic, "system", payload.as_bytes());
        // The connection notices a closed outbox.
        let _closed = self.outbox.push(&frame);
    }
}
