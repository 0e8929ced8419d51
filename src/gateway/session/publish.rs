//! Publishes a session's broadcasts, presence and coordination messages, and counts traffic.
use super::{Core, Entered, Slot, throttle::Call};
use crate::{
    gateway::Rejection,
    hub::Message,
    remote::{AgentConnection, BroadcastSource, NotConnected},
    wire::Payload,
};
use serde_json::Value;
use std::{cell::Cell, sync::Arc};
use tokio::time::Instant;

/// Counters that are added to the shared metrics once per read, so that a frame touches no shared atomic.
#[derive(Default)]
pub(super) struct LocalCounters {
    pub(super) frames_in: u64,
    pub(super) bytes_in: u64,
    pub(super) dropped: u64,
    pub(super) frames_out: Cell<u64>,
    /// Whether anything was published to a room.
    pub(super) published: bool,
}

impl Core {
    /// Publishes what was said, and counts what came since the last call; the last of it was read at `heard`.
    pub(super) fn flush_and_count(&mut self, read_at: Option<Instant>) {
        self.flush();
        let (counters, metrics) = (std::mem::take(&mut self.counters), &self.shared.metrics);
        metrics.frames_in.inc_by(counters.frames_in);
        metrics.bytes_in.inc_by(counters.bytes_in);
        metrics.frames_dropped.inc_by(counters.dropped);
        metrics.frames_out.inc_by(counters.frames_out.get());
        if let (true, Some(read_at)) = (counters.published, read_at) {
            metrics.relay_seconds.observe(read_at.elapsed().as_secs_f64());
        }
    }

    /// Performs a presence call.
    pub(super) async fn perform_presence(&mut self, slot: &mut Slot, call: Call) {
        let (Some(claims), Some(entered)) = (slot.channel.claims().cloned(), slot.entered.as_mut()) else {
            return;
        };
        match call {
            Call::Track { key, meta } => {
                let room = entered.subscription.room().clone();
                // A call that was accepted before the token was known already has its reply: only record the refusal.
                let agent = meta.get("agent_id").and_then(Value::as_str);
                if let Some(why) = self.shared.identity.spoofed_presence(&room, &claims, &key, agent) {
                    let refused = Rejection::push("presence", "impostor", &why);
                    self.shared.refused(Some(&room), room.topic.as_str(), Some(self.conn), refused);
                    return;
                }
                let (channel, handle) = (entered.subscription.id(), entered.subscription.handle());
                entered.named =
                    self.shared.identity.observe_key(&room, &key, &claims, handle, self.wake.clone());
                let connection = AgentConnection { channel, claims, meta: Arc::new(meta.clone()) };
                if let Err(why) = self.shared.identity.connect(&mut entered.agent, &room, connection) {
                    let code = match why {
                        NotConnected::Denied(_) => "impostor",
                        NotConnected::TooLarge => "too_large",
                    };
                    let refused = Rejection::push("presence", code, &why.to_string());
                    self.shared.refused(Some(&room), room.topic.as_str(), Some(self.conn), refused);
                    return;
                }
                entered.member.track(key, meta).await;
            }
            Call::Untrack => {
                (entered.agent, entered.named) = (None, None);
                entered.member.untrack();
            }
        }
        self.reply_follows_presence = true;
    }

    pub(super) fn publish(&mut self, slot: &Slot, payload: Payload, to_self: bool) {
        let Some(entered) = &slot.entered else { return };
        let room = entered.subscription.room();
        if !self.may_relay(slot, entered, &payload) {
            let refused = Rejection::push(
                "broadcast",
                "unauthorized",
                "not from the agent that it names, or not to its org",
            );
            self.shared.refused(Some(room), room.topic.as_str(), Some(self.conn), refused);
            return;
        }
        let message = match payload {
            Payload::Json(json) => Message::relayed(json),
            Payload::User { event, encoding, data } => Message::user(&event, encoding, data, None),
        };
        let except = (!to_self).then(|| entered.subscription.id());
        let client = entered.cursor.as_ref().map(|cursor| cursor.client().id);
        if !self.batch.is_together(room, except) {
            let room = room.clone();
            self.flush();
            self.batch.begin(&self.shared.hub, room, except, client);
        }
        self.batch.add(message);
    }

    pub(super) fn flush(&mut self) {
        if let Some((room, receivers, except)) =
            self.batch.flush(&self.shared.hub, &self.outbox, &self.account)
        {
            self.counters.published = true;
            self.count_deliveries(&room, receivers, except);
        }
    }

    /// Whether the room may receive this broadcast of the channel.
    fn may_relay(&self, slot: &Slot, entered: &Entered, payload: &Payload) -> bool {
        let Some(claims) = slot.channel.claims() else { return true };
        let source = BroadcastSource::Socket { conn: self.conn, channel: entered.subscription.id() };
        self.shared.may_relay(source, claims, entered.subscription.room(), payload)
    }
}
