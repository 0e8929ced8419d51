//! What a session says to others: broadcasts, presence, and words for agents; and what it counts.
use super::{Core, Entered, Slot, brake::Call};
use crate::{
    auth::Claims,
    gateway::{Attendant, Coordination, Refused, attendance},
    hub::{Message, Room},
    wire::{Encoding, Payload},
};
use serde_json::{Map, Value};
use std::{cell::Cell, sync::Arc};
use tokio::{sync::mpsc::error::TrySendError, time::Instant};

/// What was counted since the last look, so that a frame costs no shared counter.
#[derive(Default)]
pub(super) struct Tally {
    pub(super) frames_in: u64,
    pub(super) bytes_in: u64,
    pub(super) dropped: u64,
    pub(super) frames_out: Cell<u64>,
    /// Whether something was said to a room.
    pub(super) published: bool,
}

impl Core {
    /// Passes on what was said, and counts what came since the last call; the last of it was read at `heard`.
    pub(super) fn settle(&mut self, heard: Option<Instant>) {
        self.flush();
        let (tally, metrics) = (std::mem::take(&mut self.tally), &self.shared.metrics);
        metrics.frames_in.inc_by(tally.frames_in);
        metrics.bytes_in.inc_by(tally.bytes_in);
        metrics.frames_dropped.inc_by(tally.dropped);
        metrics.frames_out.inc_by(tally.frames_out.get());
        if let (true, Some(heard)) = (tally.published, heard) {
            metrics.relay_seconds.observe(heard.elapsed().as_secs_f64());
        }
    }

    /// Says what a channel says about its presence.
    pub(super) async fn say_presence(&mut self, slot: &mut Slot, call: Call) {
        let (Some(claims), Some(entered)) = (slot.channel.claims().cloned(), slot.entered.as_mut()) else {
            return;
        };
        match call {
            Call::Track { key, meta } => {
                let room = entered.subscription.room();
                // Who was let through before its token was known is only noted: it has its answer.
                let agent = meta.get("agent_id").and_then(Value::as_str);
                if let Some(why) = self.shared.impostor(room, &claims, &key, agent) {
                    let refused = Refused::push("presence", "impostor", &why);
                    self.shared.refused(Some(room), room.topic.as_str(), Some(self.conn), refused);
                    return;
                }
                self.attend(entered, claims, &meta);
                entered.member.track(key, meta).await;
            }
            Call::Untrack => {
                entered.attending = None;
                entered.member.untrack();
            }
        }
    }

    /// An agent is here, if this is its own channel and token.
    fn attend(&self, entered: &mut Entered, claims: Arc<Claims>, meta: &Map<String, Value>) {
        let Some(agent) = attendance::agent_of(entered.subscription.room(), &claims) else { return };
        let channel = entered.subscription.id();
        let attendant = Attendant { channel, claims, meta: Arc::new(meta.clone()) };
        match &entered.attending {
            // In place: an agent that says something new has not been away.
            Some(part) => part.say(attendant),
            None => entered.attending = Some(self.shared.attendance.attend(agent, attendant)),
        }
    }

    pub(super) fn publish(&mut self, slot: &Slot, payload: Payload, to_self: bool) {
        let Some(entered) = &slot.entered else { return };
        let room = entered.subscription.room();
        if !self.pass_on(slot, room, &payload) {
            let refused = Refused::push(
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
        let client = entered.place.as_ref().map(|place| place.client().id);
        if !self.said.is_together(room, except) {
            let room = room.clone();
            self.flush();
            self.said.begin(&self.shared.hub, room, except, client);
        }
        self.said.add(message);
    }

    pub(super) fn flush(&mut self) {
        if let Some((room, receivers, except)) = self.said.flush(&self.shared.hub, &self.outbox) {
            self.tally.published = true;
            self.heard(&room, receivers, except);
        }
    }

    /// Gives an agent's message to the coordination of this daemon, when somebody takes it; whether the room
    /// hears it as well.
    fn pass_on(&self, slot: &Slot, room: &Room, payload: &Payload) -> bool {
        let Some(queue) = &self.shared.coordination else { return true };
        let name = room.topic.as_str();
        if !name.starts_with("agent:") && !name.starts_with("org:") {
            return true;
        }
        let said = match payload {
            Payload::User { event, encoding: Encoding::Json, data } => {
                Coordination::event(event).map(|event| (event, data.clone()))
            }
            Payload::Json(json) => Coordination::inner(json),
            Payload::User { .. } => None,
        };
        let (Some((event, payload)), Some(claims), Some(entered)) =
            (said, slot.channel.claims().cloned(), &slot.entered)
        else {
            return true;
        };
        let channel = entered.subscription.id();
        let said = Coordination { conn: self.conn, channel, event, claims, room: room.clone(), payload };
        let heard = room.private || said.is_heard(&self.shared.attendance);
        if let Err(TrySendError::Full(_)) = queue.try_send(said) {
            self.shared.metrics.coordination_dropped.inc();
        }
        heard
    }
}
