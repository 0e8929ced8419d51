//! Throttles a session: refuses frames over a rate, coalesces presence calls, and sends the
//! notices about both.
use super::{Core, Session, Slot, Timer, memory::parsed_bytes};
use crate::gateway::{
    Rejection,
    channel::ChannelEvent,
    limits::{OfChannel, TooMuch},
    rejection::RATE_LIMITED,
};
use crate::{
    hub::SubscriberId,
    remote::{Coordination, ObserverGuard, is_digest_room},
    wire::{Inbound, Payload},
};
use serde::Deserialize;
use serde_json::{Map, Value};
use std::{sync::Arc, time::Duration};
use tokio::time::Instant;

/// The least time between two notices on one channel.
const NOTICE_PERIOD: Duration = Duration::from_secs(1);

/// The throttle state of a channel.
#[derive(Debug, Default)]
pub(super) struct Throttle {
    used: OfChannel,
    /// Boxed, because few channels need it.
    delayed: Option<Box<Delayed>>,
}

#[derive(Debug, Default)]
struct Delayed {
    /// The latest delayed presence call, and the timer that performs it.
    call: Option<(u64, Call)>,
    /// The timer until the next notice may be sent, and the rejections since the last one.
    notice: Option<(u64, u64)>,
    retry_after_ms: u64,
}

/// The agent that a presence call names.
#[derive(Deserialize)]
struct Claimed {
    payload: Option<ClaimedAgent>,
}

#[derive(Deserialize)]
struct ClaimedAgent {
    agent_id: Option<Value>,
}

/// A presence call. A later one replaces a delayed one.
#[derive(Debug)]
pub(super) enum Call {
    Track { key: Arc<str>, meta: Map<String, Value> },
    Untrack,
}

impl Session {
    /// Ends the channels of this socket that received a broadcast over the limit of Supabase mode, or have no right to
    /// their room or presence key any more.
    pub(in crate::gateway) async fn end_marked(&mut self) {
        let marked =
            self.channels.iter().filter_map(|(topic, slot)| Some((topic.clone(), end_reason(slot)?)));
        for (topic, reason) in marked.collect::<Vec<_>>() {
            self.run(&topic, ChannelEvent::Shutdown(reason)).await;
        }
    }
}

/// Why a channel must end; `None` if it need not.
fn end_reason(slot: &Slot) -> Option<String> {
    let entered = slot.entered.as_ref()?;
    let is_lost = |it: &Option<ObserverGuard>| it.as_ref().is_some_and(ObserverGuard::must_end);
    let topic = slot.channel.sub_topic();
    if entered.registration.take_over_limit() {
        Some("Too many messages per second".into())
    } else if is_lost(&entered.observer) {
        Some(format!("You no longer have permission to read from this Channel topic: {topic}"))
    } else if is_lost(&entered.named) {
        Some(format!("You no longer have permission to use this presence key: {topic}"))
    } else {
        None
    }
}

impl Core {
    /// Wraps a frame in an event: the frame itself, or its refusal by a rate, an identity or a memory limit.
    pub(super) fn admit_frame(&self, slot: &mut Slot, frame: Inbound) -> ChannelEvent {
        if slot.entered.is_none() {
            return ChannelEvent::Frame(frame);
        }
        let (rates, now) = (&self.shared.rates, Instant::now());
        if let Some((code, why)) = self.refused_presence(slot, &frame) {
            return ChannelEvent::Rejection(frame, code, why);
        }
        // The key is part of each presence message.
        let presence_bytes = frame.payload.size() + slot.channel.presence_key_bytes();
        // What an agent tracks in its room is kept in its parsed form, too.
        let is_agents = slot.channel.sub_topic().starts_with("agent:");
        let parsed = if is_agents { parsed_bytes(&frame.payload) } else { 0 };
        if frame.event == "presence" && !self.charge_presence(slot, presence_bytes.max(parsed)) {
            let why = "Presence takes too much memory: say less, or on fewer channels";
            return ChannelEvent::Rejection(frame, "memory", why.to_owned());
        }
        let allowed = match frame.event.as_str() {
            "broadcast" => rates.broadcast(&self.used, &slot.throttle.used, now, frame.payload.size()),
            "access_token" => rates.token(&self.used, now),
            "presence" if self.presence_too_fast(now, 1) => {
                return ChannelEvent::Shutdown("Too many presence messages per second".into());
            }
            "presence" => rates.presence_bytes(&self.used, now, presence_bytes),
            "phx_join" | "phx_leave" => Ok(()),
            _ => {
                rates.unknown_event(now);
                Ok(())
            }
        };
        match allowed {
            Ok(()) => ChannelEvent::Frame(frame),
            Err(too_much) => ChannelEvent::TooFast(frame, too_much.millis()),
        }
    }

    /// Code and reason with which a presence call is refused in a room of agents; `None` if it is not.
    fn refused_presence(&self, slot: &Slot, frame: &Inbound) -> Option<(&'static str, String)> {
        let entered = slot.entered.as_ref().filter(|_| frame.event == "presence")?;
        let room = entered.subscription.room();
        if !Coordination::is_agents_room(room) && !is_digest_room(room) {
            return None;
        }
        let Payload::Json(json) = &frame.payload else { return None };
        let (key, claims) = slot.channel.who()?;
        if let Some(why) = self.shared.identity.oversized_presence(room, &claims, json.len()) {
            return Some(("too_large", why));
        }
        // The state machine refuses what cannot be parsed.
        let agent = serde_json::from_slice::<Claimed>(json).ok().and_then(|it| it.payload?.agent_id);
        let agent = agent.as_ref().map(|agent| agent.as_str().unwrap_or_default());
        let why = self.shared.identity.spoofed_presence(room, &claims, &key, agent)?;
        Some(("impostor", why))
    }

    /// In Supabase mode: whether `events` more presence events exceed the limit, with the deliveries since the last
    /// call.
    pub(super) fn presence_too_fast(&self, now: Instant, events: u64) -> bool {
        let shared = &self.shared;
        shared.rates.is_supabase_mode()
            && shared.rates.presence_too_fast(now, events + shared.presence_heard())
    }

    /// In Supabase mode: ends the receiving channels if a broadcast to so many receivers exceeds the limit.
    pub(super) fn count_deliveries(
        &self,
        room: &crate::hub::Room,
        receivers: usize,
        except: Option<SubscriberId>,
    ) {
        if self.shared.rates.is_supabase_mode()
            && self.shared.rates.count_deliveries(Instant::now(), receivers)
        {
            self.shared.directory.mark_over_limit(room, except);
        }
    }

    /// Performs a presence call, or delays it and replaces the delayed one.
    pub(super) async fn presence_call(&mut self, topic: &str, slot: &mut Slot, call: Call) {
        if let Some((_, waiting)) = slot.throttle.delayed.as_mut().and_then(|delayed| delayed.call.as_mut()) {
            *waiting = call;
            self.shared.metrics.presence_coalesced.inc();
            return;
        }
        match self.shared.rates.presence(&self.used, &slot.throttle.used, Instant::now()) {
            Ok(()) => self.perform_presence(slot, call).await,
            Err(TooMuch(wait)) => {
                self.shared.metrics.presence_coalesced.inc();
                let timer = self.start_timer(Instant::now() + wait, topic);
                slot.throttle.delayed.get_or_insert_default().call = Some((timer, call));
            }
        }
    }

    /// Records a rejection. At most one notice per second is sent; later rejections are counted into the next one.
    pub(super) fn record_rejection(
        &mut self,
        topic: &str,
        slot: &mut Slot,
        refused: Rejection,
        notified: bool,
    ) -> Option<ChannelEvent> {
        tracing::debug!(conn = %self.conn, topic, what = refused.what, code = %refused.code, "refused");
        let tell = !notified && refused.code == RATE_LIMITED;
        let retry_after_ms = refused.retry_after_ms.unwrap_or_default();
        let room = slot.entered.as_ref().map(|entered| entered.subscription.room());
        self.shared.refused(room, slot.channel.sub_topic(), Some(self.conn), refused);
        if !tell {
            return None;
        }
        let delayed = slot.throttle.delayed.get_or_insert_default();
        delayed.retry_after_ms = retry_after_ms;
        if let Some((_, count)) = &mut delayed.notice {
            *count += 1;
            return None;
        }
        let timer = self.start_timer(Instant::now() + NOTICE_PERIOD, topic);
        slot.throttle.delayed.get_or_insert_default().notice = Some((timer, 0));
        Some(ChannelEvent::ThrottleNotice(1, retry_after_ms))
    }

    /// Performs the delayed call or sends the notice that belongs to this timer.
    pub(super) async fn release(&mut self, timer: &Timer, slot: &mut Slot) -> Option<ChannelEvent> {
        let delayed = slot.throttle.delayed.as_mut()?;
        if delayed.call.as_ref().is_some_and(|(id, _)| *id == timer.id) {
            let (_, call) = delayed.call.take()?;
            self.presence_call(&timer.topic, slot, call).await;
            // The client got its reply when the call was delayed.
            self.reply_follows_presence = false;
            return None;
        }
        let (_, count) = delayed.notice.take_if(|(id, _)| *id == timer.id)?;
        if count == 0 {
            return None;
        }
        let retry_after_ms = delayed.retry_after_ms;
        let next = self.start_timer(Instant::now() + NOTICE_PERIOD, &timer.topic);
        slot.throttle.delayed.get_or_insert_default().notice = Some((next, 0));
        Some(ChannelEvent::ThrottleNotice(count, retry_after_ms))
    }
}

impl Throttle {
    /// The channel is left: drops the delayed call and notice.
    pub(super) fn drop_delayed(&mut self) {
        self.delayed = None;
    }
}
