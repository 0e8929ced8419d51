//! One topic of one socket as a pure machine: events in, actions out.
//!
//! It does no I/O and reads no clock: whether a join is admitted, and when a delay is
//! over, come in as events, and the session performs what it asks for. While a join is
//! checked or its refusal delayed, frames of this topic wait here, in order and
//! bounded, and every other topic goes on (`reference/realtime-protocol.md` §3, §4, §6).
use super::{
    join::Join,
    joined::{Asking, Joined, Unknown},
};
use crate::{
    access::{self, Grant, Rights},
    auth::Claims,
    id::Topic,
    wire::{Inbound, Payload, Ref, text},
};
use serde_json::{Map, Value, json};
use std::{collections::VecDeque, sync::Arc};
use tokio::time::Instant;

/// Frames that may wait for a join; later ones are dropped.
const WAITING_MAX: usize = 128;
/// Bytes that may wait with them, so that refused joins cannot be used to fill the memory.
const WAITING_BYTES_MAX: usize = 1 << 20;
/// The same while a member's rights are asked for; what is beyond is refused.
const MEMBER_WAITING_MAX: usize = 4096;
const MEMBER_WAITING_BYTES_MAX: usize = 8 << 20;
const CHANGES_UNAVAILABLE: &str = "Postgres changes are not available on this server yet";

/// What happened to a channel.
#[derive(Debug)]
pub(super) enum Event {
    Frame(Inbound),
    /// The answer to [`Action::Check`].
    Checked(Result<Admitted, Refusal>),
    /// The answer to [`Action::Delay`].
    DelayOver,
    /// The answer to [`Action::Verify`].
    Renewed(Result<Admitted, String>),
    /// The answer to [`Action::Ask`].
    Told(Result<Told, access::Error>),
    /// The server ends this channel with this message.
    Shutdown(String),
}

/// What a channel wants done, in this order.
#[derive(Debug, PartialEq)]
pub(super) enum Action {
    /// May it be joined?
    Check(Join),
    /// Wait as long as a refusal waits.
    Delay,
    /// Is this token good for this room?
    Verify {
        token: String,
        private: bool,
        /// Whether it matters who is there.
        presence: bool,
    },
    /// May it say something here, or see who is here?
    Ask(Unknown),
    /// Write a reply.
    Reply {
        join_ref: Option<Ref>,
        reference: Option<Ref>,
        ok: bool,
        response: String,
    },
    /// Write another frame.
    Push {
        join_ref: Option<Ref>,
        reference: Option<Ref>,
        event: &'static str,
        payload: String,
    },
    /// Subscribe, and check the token when it ends.
    Enter {
        private: bool,
        hears: Hearing,
    },
    /// Check the new token when it ends.
    WatchToken,
    /// Hear otherwise from now on.
    Hear(Hearing),
    /// Unsubscribe and leave presence.
    Exit,
    /// Say it in the room.
    Publish {
        payload: Payload,
        to_self: bool,
    },
    Track {
        key: Arc<str>,
        meta: Map<String, Value>,
    },
    Untrack,
    /// Send the presence state, and presence from then on.
    SendState {
        join_ref: Option<Ref>,
    },
    /// Close the whole socket.
    CloseSocket(u16),
}

/// What a channel hears.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Hearing {
    pub(super) broadcast: bool,
    pub(super) presence: bool,
}

/// A join or token that was found good.
#[derive(Clone, Debug)]
pub(super) struct Admitted {
    pub(super) token: Arc<str>,
    pub(super) claims: Arc<Claims>,
    pub(super) grant: Grant,
    /// For a channel that did not choose a presence key.
    pub(super) fresh_key: String,
}

/// What policies said about a joined channel.
#[derive(Clone, Copy, Debug)]
pub(super) struct Told {
    pub(super) write: Option<Rights>,
    pub(super) presence_read: Option<bool>,
}

/// A join that was not.
#[derive(Clone, Debug)]
pub(super) struct Refusal {
    pub(super) reason: String,
    /// The socket closes with this code after the reply.
    pub(super) close: Option<u16>,
}

/// Limits that a channel knows.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    pub(super) payload_bytes_max: usize,
    pub(super) presence_calls_max: u32,
    pub(super) presence_enabled: bool,
}

#[derive(Debug)]
pub(super) struct Channel {
    sub_topic: String,
    phase: Phase,
    waiting: VecDeque<Inbound>,
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
    /// The join_ref of the channel that this join replaces.
    replaced: Option<Option<Ref>>,
}

impl Channel {
    pub(super) fn new(sub_topic: &str) -> Self {
        Self { sub_topic: sub_topic.to_owned(), phase: Phase::Closed, waiting: VecDeque::new() }
    }

    /// Whether it can be forgotten.
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

    pub(super) fn sub_topic(&self) -> &str {
        &self.sub_topic
    }

    /// Takes an event; adds what is to be done to `out`.
    pub(super) fn on(&mut self, event: Event, limits: &Limits, now: Instant, out: &mut Vec<Action>) {
        match event {
            Event::Frame(frame) if self.is_busy() => return self.keep(frame, out),
            Event::Frame(frame) => self.frame(frame, limits, now, out),
            Event::Checked(outcome) => self.checked(outcome, limits, out),
            Event::DelayOver => self.refuse(out),
            Event::Renewed(outcome) => self.renewed(outcome, out),
            Event::Told(outcome) => self.told(outcome, out),
            Event::Shutdown(message) => self.shutdown(&message, out),
        }
        while !self.is_busy() {
            let Some(frame) = self.waiting.pop_front() else { break };
            self.frame(frame, limits, now, out);
        }
    }

    fn is_busy(&self) -> bool {
        match &self.phase {
            Phase::Closed => false,
            Phase::Checking(_) | Phase::Refusing(..) => true,
            Phase::Joined(joined) => joined.asking.is_some(),
        }
    }

    /// A frame waits for what is being asked.
    fn keep(&mut self, frame: Inbound, out: &mut Vec<Action>) {
        let bytes: usize = self.waiting.iter().map(|frame| frame.payload.size()).sum();
        let (frames_max, bytes_max) = match &self.phase {
            Phase::Joined(_) => (MEMBER_WAITING_MAX, MEMBER_WAITING_BYTES_MAX),
            _ => (WAITING_MAX, WAITING_BYTES_MAX),
        };
        if self.waiting.len() < frames_max && bytes + frame.payload.size() <= bytes_max {
            self.waiting.push_back(frame);
        } else if let Phase::Joined(joined) = &self.phase {
            joined.refuse(frame, "Too many messages wait for the database", out);
        }
    }

    fn told(&mut self, outcome: Result<Told, access::Error>, out: &mut Vec<Action>) {
        let Phase::Joined(joined) = &mut self.phase else { return };
        if joined.asking != Some(Asking::Rights) {
            return;
        }
        joined.asking = None;
        match outcome {
            // The frame that asked is the first of those that wait.
            Ok(told) => joined.learn(told),
            Err(error) => {
                if let (Some(frame), Some(topic)) = (self.waiting.pop_front(), Topic::new(&self.sub_topic)) {
                    joined.refuse(frame, &error.join_text(&topic), out);
                }
            }
        }
    }

    fn frame(&mut self, frame: Inbound, limits: &Limits, now: Instant, out: &mut Vec<Action>) {
        if frame.event == "phx_join" {
            return self.join(frame, out);
        }
        let Phase::Joined(joined) = &mut self.phase else {
            out.push(not_joined(frame));
            return;
        };
        if let Some(unknown) = joined.unknown(&frame) {
            joined.asking = Some(Asking::Rights);
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
            _ => {}
        }
    }

    fn join(&mut self, frame: Inbound, out: &mut Vec<Action>) {
        let replaced = match std::mem::replace(&mut self.phase, Phase::Closed) {
            Phase::Joined(old) => {
                out.push(Action::Exit);
                Some(old.join_ref)
            }
            _ => None,
        };
        let Payload::Json(payload) = &frame.payload else { return };
        let (join, refused) = match Join::parse(payload, &self.sub_topic) {
            Ok(join) => (join, None),
            Err(reason) => (Join::default(), Some(Refusal { reason, close: None })),
        };
        let joining = Joining { join_ref: frame.join_ref, reference: frame.reference, join, replaced };
        self.phase = match refused {
            Some(refusal) => {
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
                out.push(Action::Delay);
                self.phase = Phase::Refusing(joining, refusal);
            }
        }
    }

    fn enter(&self, joining: Joining, admitted: Admitted, limits: &Limits, out: &mut Vec<Action>) -> Joined {
        let Joining { join_ref, reference, join, replaced } = joining;
        let response = join.response();
        let push_ref = join_ref.clone().or_else(|| reference.clone());
        out.push(Action::Reply { join_ref: join_ref.clone(), reference, ok: true, response });
        out.extend(replaced.map(close));
        let Admitted { token, claims, grant, fresh_key } = admitted;
        let presence = join.presence || limits.presence_enabled;
        // A channel that gets the state hears differences from the state on.
        let hears = Hearing { broadcast: grant.broadcast_read, presence: !join.private && !presence };
        out.push(Action::Enter { private: join.private, hears });
        if !join.changes.is_empty() {
            let payload = system("postgres_changes", "error", CHANGES_UNAVAILABLE, &self.sub_topic);
            out.push(Action::Push { join_ref: push_ref.clone(), reference: None, event: "system", payload });
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
            hears: Hearing { presence: hears.presence || (presence && grant.sees_presence()), ..hears },
            asking: None,
            asked_for_track: false,
            calls: 0,
            calls_since: None,
        }
    }

    fn refuse(&mut self, out: &mut Vec<Action>) {
        match std::mem::replace(&mut self.phase, Phase::Closed) {
            Phase::Refusing(joining, refusal) => {
                let Joining { join_ref, reference, replaced, .. } = joining;
                let response = text::reason(&refusal.reason);
                out.push(Action::Reply { join_ref, reference, ok: false, response });
                out.extend(replaced.map(close));
                out.extend(refusal.close.map(Action::CloseSocket));
            }
            other => self.phase = other,
        }
    }

    fn leave(&mut self, frame: Inbound, out: &mut Vec<Action>) {
        let Phase::Joined(joined) = &self.phase else { return };
        if joined.join_ref.is_some() && joined.join_ref != frame.join_ref {
            return;
        }
        let (join_ref, push_ref) = (joined.join_ref.clone(), joined.push_ref.clone());
        self.phase = Phase::Closed;
        let (reference, response) = (frame.reference, "{}".to_owned());
        out.push(Action::Exit);
        out.push(Action::Reply { join_ref: push_ref, reference, ok: true, response });
        out.push(close(join_ref));
    }

    fn renewed(&mut self, outcome: Result<Admitted, String>, out: &mut Vec<Action>) {
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
        if let Some(message) = refused {
            self.shutdown(&message, out);
        }
    }

    /// Ends a joined channel: a system message says why, and the client does not rejoin.
    fn shutdown(&mut self, message: &str, out: &mut Vec<Action>) {
        match std::mem::replace(&mut self.phase, Phase::Closed) {
            Phase::Joined(joined) => {
                let payload = system("system", "error", message, &self.sub_topic);
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

/// A system message of one channel (`reference/realtime-protocol.md` §3.6).
fn system(extension: &str, status: &str, message: &str, sub_topic: &str) -> String {
    json!({ "extension": extension, "status": status, "message": message, "channel": sub_topic }).to_string()
}

fn close(join_ref: Option<Ref>) -> Action {
    Action::Push {
        join_ref: join_ref.clone(),
        reference: join_ref,
        event: "phx_close",
        payload: "{}".to_owned(),
    }
}

/// The answer to a push on a topic that is not joined.
pub(super) fn not_joined(frame: Inbound) -> Action {
    if frame.event == "phx_leave" {
        let (join_ref, reference) = (frame.join_ref, frame.reference);
        return Action::Reply { join_ref, reference, ok: true, response: "{}".to_owned() };
    }
    let response = text::reason("unmatched topic");
    Action::Reply { join_ref: None, reference: frame.reference, ok: false, response }
}

#[cfg(test)]
mod tests;
