//! What slows a session down: frames that come too fast, presence calls that are put together, and the
//! words about both.
use super::{Core, Session, Slot, Timer};
use crate::gateway::{
    Refused,
    channel::Event,
    limits::{OfChannel, TooMuch},
    refused::RATE_LIMITED,
    shared::Shared,
};
use crate::{
    hub::SubscriberId,
    wire::{Inbound, Payload},
};
use serde::Deserialize;
use serde_json::{Map, Value};
use std::{sync::Arc, time::Duration};
use tokio::time::Instant;

/// Shortest time between two system messages about what was refused on a channel.
const NOTICE_PERIOD: Duration = Duration::from_secs(1);

/// What slows a channel down.
#[derive(Debug, Default)]
pub(super) struct Brake {
    used: OfChannel,
    /// Rare, so elsewhere.
    late: Option<Box<Late>>,
}

#[derive(Debug, Default)]
struct Late {
    /// The last presence call that was too many, and the timer with which it is done.
    call: Option<(u64, Call)>,
    /// While it is set, the client is told nothing: its timer, and what was refused meanwhile.
    notice: Option<(u64, u64)>,
    retry_after_ms: u64,
}

/// Who a presence call says that it is.
#[derive(Deserialize)]
struct Claimed {
    payload: Option<ClaimedAgent>,
}

#[derive(Deserialize)]
struct ClaimedAgent {
    agent_id: Option<Value>,
}

/// What a channel wants to say about its presence; the last word counts.
#[derive(Debug)]
pub(super) enum Call {
    Track { key: Arc<str>, meta: Map<String, Value> },
    Untrack,
}

impl Session {
    /// Ends the channels of this socket that heard something when too much was said.
    pub(in crate::gateway) async fn cut(&mut self) {
        let is_cut = |slot: &Slot| slot.entered.as_ref().is_some_and(|entered| entered.listed.is_cut());
        let cut = self.channels.iter().filter(|(_, slot)| is_cut(slot)).map(|(topic, _)| topic.clone());
        for topic in cut.collect::<Vec<_>>() {
            self.run(&topic, Event::Shutdown("Too many messages per second".into())).await;
        }
    }
}

impl Core {
    /// A frame for its channel, or that it comes too fast.
    pub(super) fn gate(&self, slot: &Slot, frame: Inbound) -> Event {
        if slot.entered.is_none() {
            return Event::Frame(frame);
        }
        let (rates, now) = (&self.shared.rates, Instant::now());
        if let Some(why) = self.impostor(slot, &frame) {
            return Event::Impostor(frame, why);
        }
        let allowed = match frame.event.as_str() {
            "broadcast" => rates.broadcast(&self.used, &slot.brake.used, now, frame.payload.size()),
            "access_token" => rates.token(&self.used, now),
            "presence" if self.presence_too_fast(now, 1) => {
                return Event::Shutdown("Too many presence messages per second".into());
            }
            "presence" => rates.presence_bytes(&self.used, now, frame.payload.size()),
            "phx_join" | "phx_leave" => Ok(()),
            _ => {
                rates.unknown_event(now);
                Ok(())
            }
        };
        match allowed {
            Ok(()) => Event::Frame(frame),
            Err(too_much) => Event::TooFast(frame, too_much.millis()),
        }
    }

    /// Why a presence call may not be done in a room of agents.
    fn impostor(&self, slot: &Slot, frame: &Inbound) -> Option<String> {
        let entered = slot.entered.as_ref().filter(|_| frame.event == "presence")?;
        let room = entered.subscription.room();
        if !Shared::is_of_agents(room) {
            return None;
        }
        let Payload::Json(json) = &frame.payload else { return None };
        // What cannot be read is refused by the machine.
        let agent = serde_json::from_slice::<Claimed>(json).ok().and_then(|it| it.payload?.agent_id);
        let agent = agent.as_ref().map(|agent| agent.as_str().unwrap_or_default());
        let (key, claims) = slot.channel.who()?;
        self.shared.impostor(room, &claims, &key, agent)
    }

    /// In the original's way: whether so many presence events more are too many, with those that were heard
    /// since the last look.
    pub(super) fn presence_too_fast(&self, now: Instant, events: u64) -> bool {
        let shared = &self.shared;
        shared.rates.cuts_off() && shared.rates.presence_too_fast(now, events + shared.presence_heard())
    }

    /// After a broadcast was heard by so many: in the original's way, too much of it ends their channels.
    pub(super) fn heard(&self, room: &crate::hub::Room, receivers: usize, except: Option<SubscriberId>) {
        if self.shared.rates.cuts_off() && self.shared.rates.heard(Instant::now(), receivers) {
            self.shared.directory.cut(room, except);
        }
    }

    /// Does a presence call, or keeps it until its time comes, in place of what was kept before.
    pub(super) async fn call(&mut self, topic: &str, slot: &mut Slot, call: Call) {
        if let Some((_, waiting)) = slot.brake.late.as_mut().and_then(|late| late.call.as_mut()) {
            *waiting = call;
            self.shared.metrics.presence_coalesced.inc();
            return;
        }
        match self.shared.rates.presence(&self.used, &slot.brake.used, Instant::now()) {
            Ok(()) => self.say_presence(slot, call).await,
            Err(TooMuch(wait)) => {
                self.shared.metrics.presence_coalesced.inc();
                let timer = self.start_timer(Instant::now() + wait, topic);
                slot.brake.late.get_or_insert_default().call = Some((timer, call));
            }
        }
    }

    /// Notes what was refused; who was not told is told together with what else was refused within a second.
    pub(super) fn note(
        &mut self,
        topic: &str,
        slot: &mut Slot,
        refused: Refused,
        told: bool,
    ) -> Option<Event> {
        tracing::debug!(conn = %self.conn, topic, what = refused.what, code = %refused.code, "refused");
        let tell = !told && refused.code == RATE_LIMITED;
        let retry_after_ms = refused.retry_after_ms.unwrap_or_default();
        let room = slot.entered.as_ref().map(|entered| entered.subscription.room());
        self.shared.refused(room, slot.channel.sub_topic(), Some(self.conn), refused);
        if !tell {
            return None;
        }
        let late = slot.brake.late.get_or_insert_default();
        late.retry_after_ms = retry_after_ms;
        if let Some((_, count)) = &mut late.notice {
            *count += 1;
            return None;
        }
        let timer = self.start_timer(Instant::now() + NOTICE_PERIOD, topic);
        slot.brake.late.get_or_insert_default().notice = Some((timer, 0));
        Some(Event::Slowed(1, retry_after_ms))
    }

    /// Does what waited for this timer, if anything did.
    pub(super) async fn release(&mut self, timer: &Timer, slot: &mut Slot) -> Option<Event> {
        let late = slot.brake.late.as_mut()?;
        if late.call.as_ref().is_some_and(|(id, _)| *id == timer.id) {
            let (_, call) = late.call.take()?;
            self.call(&timer.topic, slot, call).await;
            return None;
        }
        let (_, count) = late.notice.take_if(|(id, _)| *id == timer.id)?;
        if count == 0 {
            return None;
        }
        let retry_after_ms = late.retry_after_ms;
        let next = self.start_timer(Instant::now() + NOTICE_PERIOD, &timer.topic);
        slot.brake.late.get_or_insert_default().notice = Some((next, 0));
        Some(Event::Slowed(count, retry_after_ms))
    }
}

impl Brake {
    /// The channel is left: what waited is not said any more.
    pub(super) fn forget(&mut self) {
        self.late = None;
    }
}
