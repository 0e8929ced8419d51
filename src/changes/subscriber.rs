//! One channel that gets row changes: its position in the change log, and what can be sent to it.
use crate::{
    hub::{Hub, Outbox},
    wire::{Ref, Version, text},
};
use parking_lot::Mutex;
use serde_json::json;
use std::sync::Arc;
use tokio_util::sync::CancellationToken;

use super::registry::Spec;

/// One channel. Its place in the registry is known by it.
#[derive(Debug)]
pub(super) struct ChangeSubscriber {
    pub(super) outbox: Arc<Outbox>,
    pub(super) version: Version,
    /// As frames carry it.
    pub(super) topic: Arc<str>,
    pub(super) channel: String,
    pub(super) join_ref: Option<Ref>,
    gone: CancellationToken,
    pub(super) at: Mutex<At>,
}

/// Where it is.
#[derive(Debug)]
pub(super) struct At {
    /// Everything up to it was put out.
    pub(super) number: u64,
    /// What is numbered up to this was missed.
    pub(super) missed_upto: u64,
    /// What is missing up to this was told with the join.
    pub(super) told_upto: u64,
    /// Changes before this one were put out, though the part that has them was not as a whole.
    pub(super) from: (u64, u32),
    /// Which lane it is in; none that is shared: a task of its own.
    pub(super) lane: usize,
    /// It is where all are that listen in its lane.
    pub(super) live: bool,
    /// A task of its own says what it missed.
    pub(super) apart: bool,
    /// What it wants now; another one when its token changes.
    pub(super) spec: Spec,
    /// Another spec that it shall have.
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

    /// It goes on in the next lane, from that change on. Whether its own task, if it has one, sees to that.
    pub(super) fn moves_on(&self, from: (u64, u32)) -> bool {
        let mut at = self.at.lock();
        (at.number, at.from, at.live) = (from.0 - 1, from, false);
        at.lane += 1;
        at.apart
    }

    /// Whole frames with their websocket headers.
    pub(super) fn put(&self, hub: &Hub, frames: &bytes::Bytes, count: usize) {
        if !self.is_gone() {
            hub.enqueue(&self.outbox, frames.clone(), count);
        }
    }

    /// A system message about row changes.
    pub(super) fn send_status(&self, status: &str, message: &str) {
        self.system(&json!({
            "extension": "postgres_changes",
            "status": status,
            "message": message,
            "channel": self.channel,
        }));
    }

    /// A system message.
    pub(super) fn system(&self, payload: &serde_json::Value) {
        if self.is_gone() {
            return;
        }
        let payload = payload.to_string();
        let (topic, join_ref) = (&self.topic, self.join_ref.as_ref());
        let frame = text::encode(self.version, join_ref, None, topic, "system", payload.as_bytes());
        // A closed outbox is seen by its connection.
        let _closed = self.outbox.push(&frame);
    }
}
