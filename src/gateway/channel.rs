//! One topic of one socket as a pure state machine: events in, actions out.
//!
//! It does no I/O and reads no clock. The result of a check and the end of a delay
//! arrive as events; the session performs the actions. While a join is
//! checked or its refusal delayed, frames of this topic are queued here, in order and
//! bounded; other topics continue (`docs/spec/realtime-protocol.md` §3, §4, §6).
mod events;
mod waiting;

pub(super) use events::{Action, Admitted, ChannelEvent, Limits, PolicyAnswer, Refusal};

use super::{
    Rejection,
    join::{AskedReplay, Join},
    joined::{Asking, Joined},
    rejection,
};
use crate::{
    access,
    auth::Claims,
    hub::Interests,
    id::Topic,
    wire::{Inbound, Payload, Ref, text},
};
use serde_json::json;
use std::sync::Arc;
use tokio::time::Instant;
use waiting::{WaitingFrames, frame_bytes};

/// Frames queued during a join. Later ones are refused.
const WAITING_MAX: usize = 128;
/// Their bytes: refused joins must not be usable to fill memory.
const WAITING_BYTES_MAX: usize = 1 << 20;
/// The same limits while a member's rights are checked.
const MEMBER_WAITING_MAX: usize = 4096;
const MEMBER_WAITING_BYTES_MAX: usize = 8 << 20;

#[derive(Debug)]
pub(super) struct Channel {
    sub_topic: String,
    phase: Phase,
    waiting: WaitingFrames,
}

#[derive(Debug)]
enum Phase {
    Closed,
    Checking(Joining),
    Refusing(Joining, Refusal),
    Joined(Box<Joined>),
}

#[derive(Debug)]
struct Joining {
    join_ref: Option<Ref>,
    reference: Option<Ref>,
    join: Join,
    /// The join_ref of the channel that this join replaces, if any.
    replaced: Option<Option<Ref>>,
}

impl Channel {
    pub(super) fn new(sub_topic: &str) -> Self {
        Self { sub_topic: sub_topic.to_owned(), phase: Phase::Closed, waiting: WaitingFrames::default() }
    }

    /// Whether it can be dropped.
    pub(super) fn is_idle(&self) -> bool {
        matches!(self.phase, Phase::Closed) && self.waiting.is_empty()
    }

    /// The claims of a joined channel.
    pub(super) fn claims(&self) -> Option<&Arc<Claims>> {
        match &self.phase {
            Phase::Joined(joined) => Some(&joined.claims),
            _ => None,
        }
    }

    /// The presence key and the claims of a joined channel.
    pub(super) fn who(&self) -> Option<(Arc<str>, Arc<Claims>)> {
        match &self.phase {
            Phase::Joined(joined) => Some((joined.key.clone(), joined.claims.clone())),
            _ => None,
        }
    }

    /// Bytes of the presence key of a joined channel.
    pub(super) fn presence_key_bytes(&self) -> usize {
        match &self.phase {
            Phase::Joined(joined) => joined.key.len(),
            _ => 0,
        }
    }

    /// Whether a joined channel receives its own broadcasts, and the join_ref of its pushes.
    pub(super) fn terms(&self) -> Option<(bool, Option<Ref>)> {
        match &self.phase {
            Phase::Joined(joined) => Some((joined.to_self, joined.push_ref.clone())),
            _ => None,
        }
    }

    pub(super) fn sub_topic(&self) -> &str {
        &self.sub_topic
    }

    /// Handles an event and appends the resulting actions to `out`.
    pub(super) fn on(&mut self, event: ChannelEvent, limits: &Limits, now: Instant, out: &mut Vec<Action>) {
        match event {
            ChannelEvent::Frame(frame) if self.is_busy() => return self.enqueue(frame, out),
            ChannelEvent::Frame(frame) => self.frame(frame, limits, now, out),
            ChannelEvent::TooFast(frame, retry_after_ms) => self.too_fast(frame, retry_after_ms, out),
            ChannelEvent::Rejection(frame, code, why) => {
                if let Phase::Joined(joined) = &self.phase {
                    joined.refuse(frame, code, &why, out);
                }
            }
            ChannelEvent::ThrottleNotice(count, retry_after_ms) => {
                self.throttle_notice(count, retry_after_ms, out)
            }
            ChannelEvent::Checked(outcome) => self.checked(outcome, limits, out),
            ChannelEvent::DelayOver => self.refuse(out),
            ChannelEvent::Renewed(outcome) => self.renewed(outcome, out),
            ChannelEvent::PolicyAnswer(outcome) => self.rights_known(outcome, out),
            ChannelEvent::Streams(streams) => self.streams(streams, out),
            ChannelEvent::Shutdown(message) => self.shutdown(&message, out),
        }
        // Queued frames follow in order as soon as nothing is pending; each may start a check that queues the rest again.
        while !self.is_busy() {
            let Some(frame) = self.waiting.pop_front() else { break };
            self.frame(frame, limits, now, out);
        }
    }

    /// Memory of the queued frames, in bytes.
    pub(super) fn waiting_bytes(&self) -> usize {
        self.waiting.bytes()
    }

    fn is_busy(&self) -> bool {
        match &self.phase {
            Phase::Closed => false,
            Phase::Checking(_) | Phase::Refusing(..) => true,
            Phase::Joined(joined) => joined.asking.is_some(),
        }
    }

    /// Queues a frame until the pending check is finished, or refuses it.
    fn enqueue(&mut self, frame: Inbound, out: &mut Vec<Action>) {
        let bytes = self.waiting.bytes() + frame_bytes(&frame);
        let (frames_max, bytes_max) = match &self.phase {
            Phase::Joined(_) => (MEMBER_WAITING_MAX, MEMBER_WAITING_BYTES_MAX),
            _ => (WAITING_MAX, WAITING_BYTES_MAX),
        };
        if self.waiting.len() < frames_max && bytes <= bytes_max {
            self.waiting.push_back(frame);
        } else if let Phase::Joined(joined) = &self.phase {
            joined.refuse(frame, "crowded", "Too many messages wait for the database", out);
        } else {
            queue_full(frame, out);
        }
    }

    fn rights_known(&mut self, outcome: Result<PolicyAnswer, access::Error>, out: &mut Vec<Action>) {
        let Phase::Joined(joined) = &mut self.phase else { return };
        if joined.asking != Some(Asking::Rights) {
            return;
        }
        joined.asking = None;
        match outcome {
            // The frame that needed the rights is the first of the queue.
            Ok(notified) => joined.learn(notified),
            Err(error) => {
                if let (Some(frame), Some(topic)) = (self.waiting.pop_front(), Topic::new(&self.sub_topic)) {
                    joined.refuse(frame, "unavailable", &error.join_text(&topic), out);
                }
            }
        }
    }

    fn frame(&mut self, frame: Inbound, limits: &Limits, now: Instant, out: &mut Vec<Action>) {
        if frame.event == "phx_join" {
            return self.join(frame, limits, out);
        }
        let Phase::Joined(joined) = &mut self.phase else {
            out.push(not_joined(frame));
            return;
        };
        if let Some(unknown) = joined.unknown(&frame) {
            joined.asking = Some(Asking::Rights);
            // Back to the front: it is handled first when the rights are known.
            self.waiting.push_front(frame);
            out.push(Action::Ask(unknown));
            return;
        }
        match frame.event.as_str() {
            "broadcast" => joined.broadcast(frame, &self.sub_topic, limits, out),
            "presence" => {
                if let Err(message) = joined.presence(&frame, limits, now, out) {
                    self.shutdown(message, out);
                }
            }
            "access_token" => joined.access_token(&frame, out),
            "phx_leave" => self.leave(frame, out),
            unknown => {
                let refused = Rejection::push("push", "unknown_event", &format!("unknown event {unknown}"));
                out.push(Action::RecordRejection { refused, notified: false });
            }
        }
    }

    /// Refuses a frame over the rate. A push with a reply gets one; other refusals are reported by a coalesced notice.
    fn too_fast(&self, frame: Inbound, retry_after_ms: u64, out: &mut Vec<Action>) {
        let Phase::Joined(joined) = &self.phase else { return };
        let (what, notified) = match frame.event.as_str() {
            "broadcast" => ("broadcast", joined.ack),
            "presence" => ("presence", true),
            _ => ("access_token", false),
        };
        if notified {
            out.push(joined.reply(frame.reference, false, &rejection::rate_limited(retry_after_ms)));
        }
        out.push(Action::RecordRejection { refused: Rejection::rate(what, retry_after_ms), notified });
    }

    fn throttle_notice(&self, count: u64, retry_after_ms: u64, out: &mut Vec<Action>) {
        let Phase::Joined(joined) = &self.phase else { return };
        let payload = json!({
            "extension": "system",
            "status": "error",
            "message": format!("rate_limited: {count} messages were refused, try again after {retry_after_ms} ms"),
            "channel": self.sub_topic,
            "refused": count,
            "retry_after_ms": retry_after_ms,
        });
        let (join_ref, payload) = (joined.push_ref.clone(), payload.to_string());
        out.push(Action::Push { join_ref, reference: None, event: "system", payload });
    }

    fn join(&mut self, frame: Inbound, limits: &Limits, out: &mut Vec<Action>) {
        let replaced = match std::mem::replace(&mut self.phase, Phase::Closed) {
            Phase::Joined(old) => {
                out.push(Action::Exit);
                Some(old.join_ref)
            }
            _ => None,
        };
        let Payload::Json(payload) = &frame.payload else { return };
        let (join, refused) = match Join::parse(payload, &self.sub_topic, limits.changes_max) {
            Ok(join) => (join, None),
            Err(reason) => (Join::default(), Some(Refusal::new(reason))),
        };
        let joining = Joining { join_ref: frame.join_ref, reference: frame.reference, join, replaced };
        self.phase = match refused {
            Some(refusal) => {
                note_join(&refusal, out);
                out.push(Action::Delay);
                Phase::Refusing(joining, refusal)
            }
            None => {
                out.push(Action::Check(joining.join.clone()));
                Phase::Checking(joining)
            }
        };
    }

    fn checked(&mut self, outcome: Result<Admitted, Refusal>, limits: &Limits, out: &mut Vec<Action>) {
        let joining = match std::mem::replace(&mut self.phase, Phase::Closed) {
            Phase::Checking(joining) => joining,
            other => {
                self.phase = other;
                return;
            }
        };
        match outcome {
            Ok(admitted) => self.phase = Phase::Joined(Box::new(self.enter(joining, admitted, limits, out))),
            Err(refusal) => {
                note_join(&refusal, out);
                // The configuration is dropped during the delay, to free its memory.
                let joining = Joining { join: Join::default(), ..joining };
                let at_once = refusal.at_once;
                self.phase = Phase::Refusing(joining, refusal);
                if at_once { self.refuse(out) } else { out.push(Action::Delay) }
            }
        }
    }

    fn enter(&self, joining: Joining, admitted: Admitted, limits: &Limits, out: &mut Vec<Action>) -> Joined {
        let Joining { join_ref, reference, join, replaced } = joining;
        let response = join.response();
        let push_ref = join_ref.clone().or_else(|| reference.clone());
        out.push(Action::Reply { join_ref: join_ref.clone(), reference, ok: true, response });
        out.extend(replaced.map(close));
        let Admitted { token, claims, grant, fresh_key, changes } = admitted;
        let presence = join.presence || limits.presence_enabled;
        // A channel with presence gets the state first, then differences.
        let interests = Interests { broadcast: grant.broadcast_read, presence: !join.private && !presence };
        out.push(Action::Enter { private: join.private, interests });
        if matches!(join.replay, AskedReplay::Yes(_)) {
            out.push(Action::Replay { join_ref: push_ref.clone() });
        }
        self.subscribed(changes, push_ref.as_ref(), out);
        if join.when_ready {
            out.push(Action::AwaitReplication);
        }
        if presence && grant.sees_presence() {
            out.push(Action::SendState { join_ref: push_ref.clone() });
        }
        let key = if join.presence_key.is_empty() { fresh_key } else { join.presence_key };
        Joined {
            join_ref,
            push_ref,
            private: join.private,
            to_self: join.to_self,
            ack: join.ack,
            presence,
            key: key.into(),
            token,
            claims,
            grant,
            interests: Interests {
                presence: interests.presence || (presence && grant.sees_presence()),
                ..interests
            },
            asking: None,
            asked_for_track: false,
            calls: 0,
            calls_since: None,
        }
    }

    /// Sends the result of the row change subscription and starts it.
    fn subscribed(&self, changes: Option<Result<(), String>>, join_ref: Option<&Ref>, out: &mut Vec<Action>) {
        let Some(outcome) = changes else { return };
        let (status, message) = match &outcome {
            Ok(()) => ("ok", "Subscribed to PostgreSQL"),
            Err(why) => ("error", why.as_str()),
        };
        let payload = system("postgres_changes", status, message, &self.sub_topic);
        out.push(Action::Push { join_ref: join_ref.cloned(), reference: None, event: "system", payload });
        match outcome {
            Ok(()) => out.push(Action::StartChanges),
            Err(why) => {
                let refused = Rejection::push("postgres_changes", "refused", &why);
                out.push(Action::RecordRejection { refused, notified: true });
                out.push(Action::StopChanges);
            }
        }
    }

    fn refuse(&mut self, out: &mut Vec<Action>) {
        match std::mem::replace(&mut self.phase, Phase::Closed) {
            Phase::Refusing(joining, refusal) => {
                let Joining { join_ref, reference, replaced, .. } = joining;
                let limited = refusal.retry_after_ms.map(rejection::rate_limited);
                let response = limited.unwrap_or_else(|| text::reason(&refusal.reason));
                out.push(Action::Reply { join_ref, reference, ok: false, response });
                out.extend(replaced.map(close));
                out.extend(refusal.close.map(Action::CloseSocket));
            }
            other => self.phase = other,
        }
    }

    fn streams(&mut self, streams: bool, out: &mut Vec<Action>) {
        let Phase::Joined(joined) = &self.phase else { return };
        if !streams {
            return self.shutdown("Replication connection was not established in time", out);
        }
        let payload = system("system", "ok", "Replication connection established", &self.sub_topic);
        out.push(Action::Push {
            join_ref: joined.push_ref.clone(),
            reference: None,
            event: "system",
            payload,
        });
    }

    fn leave(&mut self, frame: Inbound, out: &mut Vec<Action>) {
        let Phase::Joined(joined) = &self.phase else { return };
        if joined.join_ref.is_some() && joined.join_ref != frame.join_ref {
            return;
        }
        let (join_ref, push_ref) = (joined.join_ref.clone(), joined.push_ref.clone());
        self.phase = Phase::Closed;
        let (reference, response) = (frame.reference, "{}".to_owned());
        out.push(Action::DeletePositions);
        out.push(Action::Exit);
        out.push(Action::Reply { join_ref: push_ref, reference, ok: true, response });
        out.push(close(join_ref));
    }

    fn renewed(&mut self, mut outcome: Result<Admitted, String>, out: &mut Vec<Action>) {
        let changes = outcome.as_mut().ok().and_then(|admitted| admitted.changes.take());
        let Phase::Joined(joined) = &mut self.phase else { return };
        joined.asking = None;
        let topic = &self.sub_topic;
        let refused = match outcome {
            Err(message) => Some(message),
            Ok(new) if !new.grant.may_enter() => {
                Some(format!("You do not have permissions to read from this Channel topic: {topic}"))
            }
            Ok(new) => {
                let (old, now) = (joined.grant, new.grant);
                let lost = (old.broadcast_read && !now.broadcast_read)
                    || (old.sees_presence() && !now.sees_presence());
                joined.accept(new, out);
                lost.then(|| {
                    format!("You no longer have permission to read from this Channel topic: {topic}")
                })
            }
        };
        let join_ref = joined.push_ref.clone();
        match refused {
            Some(message) => self.shutdown(&message, out),
            None => self.subscribed(changes, join_ref.as_ref(), out),
        }
    }

    /// Ends a joined channel: a system message gives the reason, and the client does not rejoin.
    fn shutdown(&mut self, message: &str, out: &mut Vec<Action>) {
        match std::mem::replace(&mut self.phase, Phase::Closed) {
            Phase::Joined(joined) => {
                let payload = system("system", "error", message, &self.sub_topic);
                let refused = Rejection::push("channel", "shutdown", message);
                out.push(Action::RecordRejection { refused, notified: true });
                out.push(Action::Exit);
                out.push(Action::Push {
                    join_ref: joined.push_ref,
                    reference: None,
                    event: "system",
                    payload,
                });
                out.push(close(joined.join_ref));
            }
            other => self.phase = other,
        }
    }
}

/// A system message of one channel (`docs/spec/realtime-protocol.md` §3.6).
pub(super) fn system(extension: &str, status: &str, message: &str, sub_topic: &str) -> String {
    json!({ "extension": extension, "status": status, "message": message, "channel": sub_topic }).to_string()
}

fn note_join(refusal: &Refusal, out: &mut Vec<Action>) {
    let refused = match refusal.retry_after_ms {
        Some(retry_after_ms) => Rejection::rate("phx_join", retry_after_ms),
        None => Rejection::join(&refusal.reason),
    };
    out.push(Action::RecordRejection { refused, notified: true });
}

/// Refuses a frame because the queue of the pending join is full.
fn queue_full(frame: Inbound, out: &mut Vec<Action>) {
    const WHY: &str = "too much waits for the join";
    out.push(Action::RecordRejection { refused: Rejection::push("push", "crowded", WHY), notified: true });
    let Inbound { join_ref, reference, .. } = frame;
    out.push(Action::Reply { join_ref, reference, ok: false, response: text::reason(WHY) });
}

fn close(join_ref: Option<Ref>) -> Action {
    Action::Push {
        join_ref: join_ref.clone(),
        reference: join_ref,
        event: "phx_close",
        payload: "{}".to_owned(),
    }
}

/// The reply to a push on a topic that is not joined.
pub(super) fn not_joined(frame: Inbound) -> Action {
    if frame.event == "phx_leave" {
        let (join_ref, reference) = (frame.join_ref, frame.reference);
        return Action::Reply { join_ref, reference, ok: true, response: "{}".to_owned() };
    }
    let response = text::reason("unmatched topic");
    Action::Reply { join_ref: None, reference: frame.reference, ok: false, response }
}

#[cfg(any(test, fuzzing))]
mod drive;
#[cfg(fuzzing)]
pub use drive::fuzz;

#[cfg(test)]
mod tests;
