//! One channel's side of the protocol: its state and what it makes of the server's frames. Pure.
use super::{
    Broadcast, Error, Event, Payload, PresenceState, Status,
    changes::{Bindings, ChangeFilter},
    presence::{Difference, Metas},
    session::Core,
};
use crate::wire::{Encoding, client::UserBroadcast, is_object};
use bytes::Bytes;
use parking_lot::RwLock;
use serde::Deserialize;
use serde_json::{Map, Value, json, value::RawValue};
use std::{
    borrow::Cow,
    collections::VecDeque,
    sync::{Arc, Weak},
};
use tokio::{
    sync::{broadcast, oneshot, watch},
    time::Instant,
};

/// Messages that may wait until a channel is subscribed.
pub(super) const WAITING_MAX: usize = 100;
/// Differences that may wait for the state they apply to.
const EARLY_MAX: usize = 1000;

/// What a join asks for.
#[derive(Clone, Debug, Default)]
pub(super) struct Wish {
    pub(super) private: bool,
    pub(super) own: bool,
    pub(super) ack: bool,
    pub(super) presence: bool,
    pub(super) key: String,
    pub(super) replay: Option<Value>,
    pub(super) filters: Vec<Arc<ChangeFilter>>,
}

impl Wish {
    fn payload(&self, token: Option<&str>) -> Value {
        let mut broadcast = json!({ "self": self.own, "ack": self.ack });
        if let (Some(replay), Some(broadcast)) = (&self.replay, broadcast.as_object_mut()) {
            broadcast.insert("replay".into(), replay.clone());
        }
        let config = json!({
            "broadcast": broadcast,
            "presence": { "key": self.key, "enabled": self.presence },
            "postgres_changes": self.filters,
            "private": self.private,
        });
        let mut payload = Map::from_iter([("config".to_owned(), config)]);
        if let Some(token) = token {
            payload.insert("access_token".into(), token.into());
        }
        payload.into()
    }
}

/// Where a channel is heard. Clones are heard in the same place.
#[derive(Clone, Debug)]
pub(super) struct Voice {
    pub(super) events: broadcast::Sender<Event>,
    pub(super) status: watch::Sender<Status>,
    pub(super) presence: Arc<RwLock<PresenceState>>,
}

impl Voice {
    fn say(&self, event: Event) {
        // Nobody needs to listen.
        let _ = self.events.send(event);
    }
    pub(super) fn status(&self, status: Status) {
        self.status.send_replace(status.clone());
        self.say(Event::Status(status));
    }
}

pub(super) type Answer = oneshot::Sender<Result<(), Error>>;

/// What a program wants to say on a channel.
pub(super) struct Push {
    pub(super) body: Body,
    pub(super) answer: Answer,
}

pub(super) enum Body {
    Broadcast {
        event: String,
        encoding: Encoding,
        data: Bytes,
    },
    /// A JSON object.
    Track(Bytes),
    Untrack,
}

pub(super) struct Line {
    /// With its prefix.
    pub(super) topic: Arc<str>,
    /// Without.
    pub(super) name: Arc<str>,
    pub(super) wish: Wish,
    pub(super) voice: Voice,
    /// Dead when no handle is left.
    pub(super) handle: Weak<()>,
    pub(super) state: State,
    failures: u32,
    waiting: VecDeque<(Push, Instant)>,
    /// Said again after a reconnect.
    pub(super) tracked: Option<Bytes>,
    bindings: Bindings,
    /// Differences before the state; nothing when it has come.
    early: Option<Vec<Difference>>,
    sent_token: Option<Arc<str>>,
    /// The server's last complaint, which explains a `phx_close`.
    complaint: Option<String>,
    /// Whether it is one of the session's.
    live: bool,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum State {
    /// For the socket, and until then.
    Waiting(Option<Instant>),
    Joining {
        join_ref: u64,
        due: Instant,
    },
    Joined {
        join_ref: u64,
    },
}

/// What a frame means beyond the channel's own listeners.
#[derive(Debug)]
pub(super) enum Heard {
    Fine,
    /// Not what the protocol allows.
    Garbage,
    /// To be joined again.
    Failed(Error),
    /// By the server's wish.
    Closed(Error),
}

impl Line {
    pub(super) fn new(topic: Arc<str>, name: Arc<str>, wish: Wish, voice: Voice, handle: Weak<()>) -> Self {
        Self {
            topic,
            name,
            wish,
            voice,
            handle,
            state: State::Waiting(None),
            failures: 0,
            waiting: VecDeque::new(),
            tracked: None,
            bindings: Bindings::default(),
            early: None,
            sent_token: None,
            complaint: None,
            live: false,
        }
    }

    /// It is one of the session's from now on.
    pub(super) fn begin(&mut self) {
        self.live = true;
        self.voice.status(Status::Joining);
    }

    pub(super) fn join_ref(&self) -> Option<u64> {
        match self.state {
            State::Waiting(_) => None,
            State::Joining { join_ref, .. } | State::Joined { join_ref } => Some(join_ref),
        }
    }

    pub(super) fn is_joined(&self) -> bool {
        matches!(self.state, State::Joined { .. })
    }

    pub(super) fn join(&mut self, core: &mut Core, now: Instant) {
        let join_ref = core.next_ref();
        let due = now + core.config.timeout;
        self.state = State::Joining { join_ref, due };
        core.soon(due);
        self.complaint = None;
        self.sent_token.clone_from(&core.token);
        let payload = self.wish.payload(core.token.as_deref()).to_string();
        core.text(Some(join_ref), join_ref, &self.topic, "phx_join", payload.as_bytes());
        if !matches!(*self.voice.status.borrow(), Status::Joining) {
            self.voice.status(Status::Joining);
        }
    }

    /// Says it now, or when the channel is joined.
    pub(super) fn push(&mut self, push: Push, core: &mut Core, now: Instant) {
        if let State::Joined { join_ref } = self.state {
            return self.send(push, join_ref, core, now);
        }
        if self.waiting.len() >= WAITING_MAX {
            let error = Error::Full { topic: self.name.clone(), max: WAITING_MAX };
            let _gone = push.answer.send(Err(error));
            return;
        }
        let due = now + core.config.timeout;
        core.soon(due);
        self.waiting.push_back((push, due));
    }

    fn send(&mut self, push: Push, join_ref: u64, core: &mut Core, now: Instant) {
        let reference = core.next_ref();
        let wants_reply = match push.body {
            Body::Broadcast { event, encoding, data } => {
                if let Err(error) = core.broadcast(join_ref, reference, &self.topic, &event, encoding, &data)
                {
                    let _gone = push.answer.send(Err(error));
                    return;
                }
                self.wish.ack
            }
            Body::Track(meta) => {
                let payload = [br#"{"type":"presence","event":"track","payload":"#, &meta[..], b"}"].concat();
                core.text(Some(join_ref), reference, &self.topic, "presence", &payload);
                self.tracked = Some(meta);
                true
            }
            Body::Untrack => {
                let payload = br#"{"type":"presence","event":"untrack"}"#;
                core.text(Some(join_ref), reference, &self.topic, "presence", payload);
                self.tracked = None;
                true
            }
        };
        if wants_reply {
            core.expect(reference, self.topic.clone(), push.answer, now);
        } else {
            let _gone = push.answer.send(Ok(()));
        }
    }

    pub(super) fn send_token(&mut self, core: &mut Core) {
        let (State::Joined { join_ref }, Some(token)) = (self.state, core.token.clone()) else { return };
        if self.sent_token.as_ref() != Some(&token) {
            let reference = core.next_ref();
            let payload = json!({ "access_token": *token }).to_string();
            core.text(Some(join_ref), reference, &self.topic, "access_token", payload.as_bytes());
            self.sent_token = Some(token);
        }
    }

    /// The reply to the join.
    pub(super) fn answered(
        &mut self,
        outcome: Result<Value, String>,
        core: &mut Core,
        now: Instant,
    ) -> Heard {
        let State::Joining { join_ref, .. } = self.state else { return Heard::Garbage };
        let refused = |reason| Heard::Failed(Error::Refused { topic: self.name.clone(), reason });
        let response = match outcome {
            Ok(response) => response,
            Err(reason) => return refused(reason),
        };
        let Some(bindings) = Bindings::match_up(&self.wish.filters, &response) else {
            let leave = core.next_ref();
            core.text(Some(join_ref), leave, &self.topic, "phx_leave", b"{}");
            return refused("mismatch between server and client bindings for postgres changes".into());
        };
        self.state = State::Joined { join_ref };
        self.failures = 0;
        self.bindings = bindings;
        self.early = Some(Vec::new());
        self.voice.status(Status::Subscribed);
        self.send_token(core);
        if let Some(meta) = self.tracked.clone() {
            let (answer, _nobody_asked) = oneshot::channel();
            self.send(Push { body: Body::Track(meta), answer }, join_ref, core, now);
        }
        for (push, _) in std::mem::take(&mut self.waiting) {
            self.send(push, join_ref, core, now);
        }
        Heard::Fine
    }

    /// Not joined any more, but it is wished to be; nothing for `chance`: as soon as there is a socket.
    pub(super) fn failed(&mut self, error: Error, chance: Option<f64>, core: &mut Core, now: Instant) {
        let until = chance.map(|chance| now + core.config.backoff.wait(self.failures, chance));
        until.into_iter().for_each(|until| core.soon(until));
        self.failures = self.failures.saturating_add(u32::from(chance.is_some()));
        self.state = State::Waiting(until);
        self.voice.status(Status::Failed(error));
    }

    pub(super) fn closed(&mut self, error: &Error) {
        self.live = false;
        for (push, _) in self.waiting.drain(..) {
            let _gone = push.answer.send(Err(error.clone()));
        }
        *self.voice.presence.write() = PresenceState::default();
        self.voice.status(Status::Closed(error.clone()));
    }

    /// Gives up what has waited too long to be said.
    pub(super) fn expire(&mut self, core: &mut Core, now: Instant) {
        while let Some((push, due)) = self.waiting.pop_front() {
            if due > now {
                core.soon(due);
                return self.waiting.push_front((push, due));
            }
            let error = Error::TimedOut { what: "the subscription", after: core.config.timeout };
            let _gone = push.answer.send(Err(error));
        }
    }

    /// A text frame of this channel that is no reply.
    pub(super) fn heard(&mut self, event: &str, reference: Option<u64>, payload: &[u8]) -> Heard {
        match event {
            "phx_close" if reference == self.join_ref() => {
                let reason = self.complaint.take().unwrap_or_else(|| "the server closed it".into());
                Heard::Closed(Error::ChannelClosed { topic: self.name.clone(), reason })
            }
            "phx_error" if reference.is_none() || reference == self.join_ref() => {
                let payload: Value = serde_json::from_slice(payload).unwrap_or_default();
                let reason = payload.get("reason").and_then(Value::as_str).unwrap_or("the channel crashed");
                Heard::Failed(Error::Refused { topic: self.name.clone(), reason: reason.to_owned() })
            }
            _ if !self.is_joined() => Heard::Fine,
            // A struct would also be read from an array.
            _ if !is_object(payload) => Heard::Garbage,
            "broadcast" => self.broadcast(payload),
            "presence_state" if self.wish.presence => self.presence_state(payload),
            "presence_diff" if self.wish.presence => self.presence_diff(payload),
            "postgres_changes" => match self.bindings.read(payload) {
                Some(change) => self.say(Event::Change(Arc::new(change))),
                None => Heard::Garbage,
            },
            "system" => self.system(payload),
            _ => Heard::Fine,
        }
    }

    pub(super) fn user(&mut self, user: UserBroadcast) -> Heard {
        if !self.is_joined() {
            return Heard::Fine;
        }
        let payload = match user.encoding {
            Encoding::Json => Payload::Json(user.data),
            Encoding::Binary => Payload::Binary(user.data),
        };
        self.say(Event::Broadcast(Broadcast { event: user.event.into(), payload, meta: user.meta }))
    }

    fn say(&self, event: Event) -> Heard {
        self.voice.say(event);
        Heard::Fine
    }

    fn broadcast(&self, payload: &[u8]) -> Heard {
        #[derive(Deserialize)]
        struct Object<'a> {
            #[serde(borrow, default)]
            event: Cow<'a, str>,
            #[serde(borrow, default)]
            payload: Option<&'a RawValue>,
            #[serde(borrow, default)]
            meta: Option<&'a RawValue>,
        }
        let Ok(object) = serde_json::from_slice::<Object<'_>>(payload) else { return Heard::Garbage };
        let bytes = |raw: &RawValue| Bytes::copy_from_slice(raw.get().as_bytes());
        self.say(Event::Broadcast(Broadcast {
            event: object.event.into(),
            payload: Payload::Json(object.payload.map_or_else(|| Bytes::from_static(b"{}"), bytes)),
            meta: object.meta.map(bytes),
        }))
    }

    fn presence_state(&mut self, payload: &[u8]) -> Heard {
        let Ok(state) = serde_json::from_slice::<Metas>(payload) else { return Heard::Garbage };
        let mut presence = self.voice.presence.write();
        let mut sync = presence.replace(state);
        for difference in self.early.take().unwrap_or_default() {
            let later = presence.apply(difference);
            sync.joins.extend(later.joins);
            sync.leaves.extend(later.leaves);
        }
        drop(presence);
        self.say(Event::Presence(Arc::new(sync)))
    }

    fn presence_diff(&mut self, payload: &[u8]) -> Heard {
        let Ok(difference) = serde_json::from_slice::<Difference>(payload) else { return Heard::Garbage };
        match &mut self.early {
            Some(early) if early.len() >= EARLY_MAX => {
                let reason = "the presence state never came".to_owned();
                Heard::Failed(Error::Refused { topic: self.name.clone(), reason })
            }
            Some(early) => {
                early.push(difference);
                Heard::Fine
            }
            None => {
                let sync = self.voice.presence.write().apply(difference);
                self.say(Event::Presence(Arc::new(sync)))
            }
        }
    }

    fn system(&mut self, payload: &[u8]) -> Heard {
        let Ok(message) = serde_json::from_slice::<Map<String, Value>>(payload) else {
            return Heard::Garbage;
        };
        if message.get("status").and_then(Value::as_str) == Some("error") {
            self.complaint = message.get("message").and_then(Value::as_str).map(super::error::one_line);
        }
        self.say(Event::System(Arc::new(message.into())))
    }
}

impl Drop for Line {
    /// Nobody waits for a channel whose connection is no more.
    fn drop(&mut self) {
        if self.live {
            self.closed(&Error::Closed);
        }
    }
}
