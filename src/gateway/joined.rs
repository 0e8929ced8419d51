//! A joined channel: broadcasts, presence calls and new tokens of its client. Pure.
use super::{
    Rejection,
    channel::{Action, Admitted, Limits, PolicyAnswer},
};
use crate::{
    access::{Grant, Rights},
    auth::Claims,
    hub::Interests,
    json,
    wire::{Inbound, Payload, Ref, is_object, text},
};
use serde::Deserialize;
use serde_json::{Value, value::RawValue};
use std::sync::Arc;
use tokio::time::Instant;

/// Bytes that the envelope may add to the payload limit.
const ENVELOPE_BYTES: usize = 500;

#[derive(Debug)]
pub(super) struct Joined {
    /// As the client sent it; used on `phx_close`.
    pub(super) join_ref: Option<Ref>,
    /// The join_ref, or the join's ref if it is missing; used on replies and pushes.
    pub(super) push_ref: Option<Ref>,
    pub(super) private: bool,
    pub(super) to_self: bool,
    pub(super) ack: bool,
    pub(super) presence: bool,
    pub(super) key: Arc<str>,
    pub(super) token: Arc<str>,
    pub(super) claims: Arc<Claims>,
    pub(super) grant: Grant,
    pub(super) interests: Interests,
    pub(super) calls: u32,
    pub(super) calls_since: Option<Instant>,
    /// The pending check; frames are queued until it is finished.
    pub(super) asking: Option<Asking>,
    /// The pending check of the right to write is for a track: its denial is not cached (`docs/spec/realtime-protocol.md` §7.5).
    pub(super) asked_for_track: bool,
}

/// A check of a joined channel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Asking {
    /// The rights that the first queued frame needs.
    Rights,
    /// A new token.
    Token,
}

/// The rights that must be checked before a frame is handled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Unknown {
    pub(super) write: bool,
    pub(super) presence_read: bool,
}

#[derive(Deserialize)]
struct PresencePush<'a> {
    #[serde(default)]
    event: Option<Value>,
    #[serde(borrow, default)]
    payload: Option<&'a RawValue>,
}

impl Joined {
    pub(super) fn reply(&self, reference: Option<Ref>, ok: bool, response: &str) -> Action {
        Action::Reply { join_ref: self.push_ref.clone(), reference, ok, response: response.to_owned() }
    }

    fn may_write(&self) -> Rights {
        self.grant.write.unwrap_or(Rights::NONE)
    }

    /// The rights that policies must decide before this frame is handled; `None` if they are known or not needed.
    pub(super) fn unknown(&mut self, frame: &Inbound) -> Option<Unknown> {
        let write = self.grant.write.is_none();
        let presence_read = self.grant.presence_read.is_none();
        if !write && !presence_read {
            return None;
        }
        let unknown = match frame.event.as_str() {
            "broadcast" => Unknown { write, presence_read: false },
            "presence" if is_track(&frame.payload) => Unknown { write, presence_read },
            _ => return None,
        };
        self.asked_for_track = write && frame.event == "presence";
        (unknown.write || unknown.presence_read).then_some(unknown)
    }

    pub(super) fn learn(&mut self, answer: PolicyAnswer) {
        self.grant.write = self.grant.write.or(answer.write);
        self.grant.presence_read = self.grant.presence_read.or(answer.presence_read);
    }

    /// Refuses a frame; replies if its sender waits for a reply.
    pub(super) fn refuse(&self, frame: Inbound, code: &'static str, reason: &str, out: &mut Vec<Action>) {
        let (what, awaited) = match frame.event.as_str() {
            "broadcast" => ("broadcast", self.ack),
            "presence" => ("presence", true),
            _ => ("push", false),
        };
        out.push(Action::RecordRejection { refused: Rejection::push(what, code, reason), notified: awaited });
        if awaited {
            out.push(self.reply(frame.reference, false, &text::reason(reason)));
        }
    }

    pub(super) fn broadcast(&self, frame: Inbound, sub_topic: &str, limits: &Limits, out: &mut Vec<Action>) {
        let refused = match &frame.payload {
            payload if payload.size() > limits.payload_bytes_max + ENVELOPE_BYTES => {
                let why = "payload_size_exceeded";
                Some((Rejection::push("broadcast", why, why), format!("\"{why}\"")))
            }
            Payload::Json(json) if !is_object(json) => {
                let why = "Broadcast payload must be a map";
                Some((Rejection::push("broadcast", "not_an_object", why), text::reason(why)))
            }
            _ if !self.may_write().broadcast => {
                let why = "You do not have permissions to write to this Channel topic";
                let why = format!("{why}: {sub_topic}");
                Some((Rejection::push("broadcast", "unauthorized", &why), text::reason(&why)))
            }
            _ => None,
        };
        let Some((refused, response)) = refused else {
            out.push(Action::Publish { payload: frame.payload, to_self: self.to_self });
            if self.ack {
                out.push(self.reply(frame.reference, true, "{}"));
            }
            return;
        };
        out.push(Action::RecordRejection { refused, notified: self.ack });
        if self.ack {
            out.push(self.reply(frame.reference, false, &response));
        }
    }

    /// Handles a presence push. An error is the message with which the channel ends.
    pub(super) fn presence(
        &mut self,
        frame: &Inbound,
        limits: &Limits,
        now: Instant,
        out: &mut Vec<Action>,
    ) -> Result<(), &'static str> {
        let reference = frame.reference.clone();
        let push = match &frame.payload {
            Payload::Json(json) if is_object(json) => serde_json::from_slice::<PresencePush<'_>>(json).ok(),
            _ => None,
        };
        let (join_ref, to) = (self.push_ref.clone(), reference.clone());
        let mut refuse = |code, why: &str, response: &str| {
            out.push(Action::RecordRejection {
                refused: Rejection::push("presence", code, why),
                notified: true,
            });
            let (join_ref, reference) = (join_ref.clone(), to.clone());
            out.push(Action::Reply { join_ref, reference, ok: false, response: response.to_owned() });
            Ok(())
        };
        let Some(push) = push else {
            return refuse("not_an_object", "a presence push must be an object", "{}");
        };
        let what = match &push.event {
            None => "",
            Some(Value::String(event)) => event.as_str(),
            Some(_) => "?",
        };
        let action = if what.is_empty() {
            None
        } else if what.eq_ignore_ascii_case("track") {
            match self.parse_track(push.payload, limits)? {
                Ok(action) => Some(action),
                Err((code, why, response)) => {
                    if std::mem::take(&mut self.asked_for_track) && !self.may_write().presence {
                        self.grant.write = None;
                    }
                    return refuse(code, &why, &response);
                }
            }
        } else if what.eq_ignore_ascii_case("untrack") {
            Some(Action::Untrack)
        } else {
            return refuse("unknown_event", "a presence push is track or untrack", "{}");
        };
        self.count_call(limits, now)?;
        let tracks = matches!(action, Some(Action::Track { .. }));
        if tracks && !self.interests.presence && self.grant.sees_presence() {
            self.interests.presence = true;
            out.push(Action::SetInterests(self.interests));
        }
        out.extend(action);
        out.push(self.reply(reference, true, "{}"));
        Ok(())
    }

    /// The action of a track, or the code, reason and `response` of its refusal. The outer error ends the channel.
    fn parse_track(
        &self,
        payload: Option<&RawValue>,
        limits: &Limits,
    ) -> Result<Result<Action, (&'static str, String, String)>, &'static str> {
        let meta_text = payload.map_or("{}", RawValue::get);
        if meta_text.len() > limits.payload_bytes_max + ENVELOPE_BYTES {
            return Err("Track message size exceeded");
        }
        if !self.may_write().presence {
            return Ok(Err(("unauthorized", "no right to write presence".to_owned(), "{}".to_owned())));
        }
        let meta = match json::parse(meta_text.as_bytes()) {
            Ok(Value::Object(meta)) => meta,
            Ok(_) | Err(json::Refused::Syntax { .. }) => {
                let why = "Presence track payload must be a map";
                return Ok(Err(("not_an_object", why.to_owned(), text::reason(why))));
            }
            Err(refused) => {
                let why = format!("Presence track payload: {refused}");
                return Ok(Err(("not_an_object", why.clone(), text::reason(&why))));
            }
        };
        Ok(Ok(Action::Track { key: self.key.clone(), meta }))
    }

    fn count_call(&mut self, limits: &Limits, now: Instant) -> Result<(), &'static str> {
        let Some((calls_max, window)) = limits.presence_calls else { return Ok(()) };
        if self.calls_since.is_none_or(|since| now.duration_since(since) >= window) {
            self.calls_since = Some(now);
            self.calls = 0;
        }
        if self.calls >= calls_max {
            return Err("Client presence rate limit exceeded");
        }
        self.calls += 1;
        Ok(())
    }

    pub(super) fn access_token(&mut self, frame: &Inbound, out: &mut Vec<Action>) {
        let Payload::Json(json) = &frame.payload else { return };
        let payload: Value = serde_json::from_slice(json).unwrap_or_default();
        let Some(token) = payload.get("access_token").and_then(Value::as_str) else { return };
        if !token.starts_with("sb_") && *token != *self.token {
            self.asking = Some(Asking::Token);
            let presence = self.presence || self.grant.presence_read.is_some();
            out.push(Action::Verify { token: token.to_owned(), private: self.private, presence });
        }
    }

    pub(super) fn accept(&mut self, new: Admitted, out: &mut Vec<Action>) {
        let gained_presence = self.presence && new.grant.sees_presence() && !self.grant.sees_presence();
        let interests = Interests {
            broadcast: new.grant.broadcast_read,
            presence: (self.interests.presence || gained_presence) && new.grant.sees_presence(),
        };
        if interests != self.interests {
            self.interests = interests;
            out.push(Action::SetInterests(interests));
        }
        (self.token, self.claims, self.grant) = (new.token, new.claims, new.grant);
        out.push(Action::WatchToken);
    }
}

fn is_track(payload: &Payload) -> bool {
    let Payload::Json(json) = payload else { return false };
    let push = serde_json::from_slice::<PresencePush<'_>>(json);
    push.is_ok_and(|push| {
        push.event
            .is_some_and(|event| event.as_str().is_some_and(|event| event.eq_ignore_ascii_case("track")))
    })
}
