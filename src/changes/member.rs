//! One channel that hears row changes: where it is in the log, and what it can be told.
use crate::{
    hub::{Hub, Outbox},
    wire::{Ref, Version, text},
};
use parking_lot::Mutex;
use serde_json::json;
use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use super::registry::Spec;

/// One channel. Its place in the registry is known by it.
#[derive(Debug)]
pub(super) struct Member {
    pub(super) outbox: Arc<Outbox>,
    pub(super) version: Version,
    /// As frames carry it.
    pub(super) topic: Arc<str>,
    pub(super) channel: String,
    pub(super) join_ref: Option<Ref>,
    gone: AtomicBool,
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
    /// It is where all are that listen.
    pub(super) live: bool,
    /// A task of its own says what it missed.
    pub(super) apart: bool,
    /// What it wants now; another one when its token changes.
    pub(super) spec: Spec,
    /// Another spec that it shall have.
    pub(super) next: Option<Spec>,
}

impl Member {
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
            live: false,
            apart: false,
            spec,
            next: None,
        });
        let channel = channel.to_owned();
        Self { outbox, version, topic, channel, join_ref, gone: AtomicBool::new(false), at }
    }

    /// It hears nothing from now on.
    pub(super) fn leave(&self) {
        self.gone.store(true, Ordering::Release);
    }

    pub(super) fn is_gone(&self) -> bool {
        self.gone.load(Ordering::Acquire)
    }

    /// Whole frames with their websocket headers.
    pub(super) fn put(&self, hub: &Hub, frames: &bytes::Bytes, count: usize) {
        if !self.is_gone() {
            hub.put_out(&self.outbox, frames.clone(), count);
        }
    }

    /// A system message about row changes.
    pub(super) fn tell(&self, status: &str, message: &str) {
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
