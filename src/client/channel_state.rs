//! The protocol state of one channel: handles the server's frames and produces events. Pure.
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

/// Pushes that may wait until a channel is subscribed.
pub(super) const WAITING_MAX: usize = 100;
/// Presence differences that may arrive before the state they apply to.
const EARLY_MAX: usize = 1000;

/// The configuration that a join sends.
#[derive(Clone, Debug, Default)]
pub(super) struct JoinConfig {
    pub(super) private: bool,
    pub(super) own: bool,
    pub(super) ack: bool,
    pub(super) presence: bool,
    pub(super) key: String,
    pub(super) replay: Option<Value>,
    pub(super) filters: Vec<Arc<ChangeFilter>>,
}

impl JoinConfig {
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

/// Where a channel publishes events, status and presence. Clones share the receivers.
#[derive(Clone, Debug)]
pub(super) struct ChannelOutput {
    pub(super) events: broadcast::Sender<Event>,
    pub(super) status: watch::Sender<Status>,
    pub(super) presence: Arc<RwLock<PresenceState>>,
}

impl ChannelOutput {
    fn emit(&self, event: Event) {
        // A channel without listeners has no receiver.
        let _ = self.events.send(event);
    }
    pub(super) fn status(&self, status: Status) {
        self.status.send_replace(status.clone());
        self.emit(Event::Status(status));
    }
}

pub(super) type Answer = oneshot::Sender<Result<(), Error>>;

/// A message that the program sends on a channel.
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

pub(super) struct ChannelState {
    /// The topic with its prefix.
    pub(super) topic: Arc<str>,
    /// The topic without its prefix.
    pub(super) name: Arc<str>,
    pub(super) join_config: JoinConfig,
    pub(super) output: ChannelOutput,
    /// Dangling once the last handle is dropped.
    pub(super) handle: Weak<()>,
    pub(super) state: State,
    failures: u32,
    waiting: VecDeque<(Push, Instant)>,
    /// The tracked meta, which is sent again after a reconnect.
    pub(super) tracked: Option<Bytes>,
    bindings: Bindings,
    /// Differences that came before the state; `None` after it came.
    early_diffs: Option<Vec<Difference>>,
    sent_token: Option<Arc<str>>,
    /// The message of the server's last error, which explains a later `phx_close`.
    last_error: Option<String>,
    /// Whether it belongs to the session. Only then a drop publishes its end.
    live: bool,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum State {
    /// Waits for the socket, and until this time if there is one.
    Waiting(Option<Instant>),
    Joining {
        join_ref: u64,
        due: Instant,
    },
    Joined {
        join_ref: u64,
    },
}

/// The effect of a frame on the channel itself.
#[derive(Debug)]
pub(super) enum FrameEffect {
    Handled,
    /// The frame violates the protocol.
    Garbage,
    /// The channel must be joined again.
    Failed(Error),
    /// The server closed the channel.
    Closed(Error),
}

impl ChannelState {
    pub(super) fn new(
        topic: Arc<str>,
        name: Arc<str>,
        join_config: JoinConfig,
        output: ChannelOutput,
        handle: Weak<()>,
    ) -> Self {
        Self {
            topic,
            name,
            join_config,
            output,
            handle,
            state: State::Waiting(None),
            failures: 0,
            waiting: VecDeque::new(),
            tracked: None,
            bindings: Bindings::default(),
            early_diffs: None,
            sent_token: None,
            last_error: None,
            live: false,
        }
    }

    /// Marks the channel as part of the session.
    pub(super) fn begin(&mut self) {
        self.live = true;
        self.output.status(Status::Joining);
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
        core.schedule(due);
        self.last_error = None;
        self.sent_token.clone_from(&core.token);
        let payload = self.join_config.payload(core.token.as_deref()).to_string();
        core.text(Some(join_ref), join_ref, &self.topic, "phx_join", payload.as_bytes());
        if !matches!(*self.output.status.borrow(), Status::Joining) {
            self.output.status(Status::Joining);
        }
    }

    /// Sends a push now, or queues it until the channel is joined.
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
        core.schedule(due);
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
                self.join_config.ack
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

    /// Handles the reply to the join.
    pub(super) fn on_join_reply(
        &mut self,
        outcome: Result<Value, String>,
        core: &mut Core,
        now: Instant,
    ) -> FrameEffect {
        let State::Joining { join_ref, .. } = self.state else { return FrameEffect::Garbage };
        let refused = |reason| FrameEffect::Failed(Error::Refused { topic: self.name.clone(), reason });
        let response = match outcome {
            Ok(response) => response,
            Err(reason) => return refused(reason),
        };
        let Some(bindings) = Bindings::match_up(&self.join_config.filters, &response) else {
            let leave = core.next_ref();
            core.text(Some(join_ref), leave, &self.topic, "phx_leave", b"{}");
            return refused("mismatch between server and client bindings for postgres changes".into());
        };
        self.state = State::Joined { join_ref };
        self.failures = 0;
        self.bindings = bindings;
        self.early_diffs = Some(Vec::new());
        self.output.status(Status::Subscribed);
        self.send_token(core);
        if let Some(meta) = self.tracked.clone() {
            let (answer, _unused) = oneshot::channel();
            self.send(Push { body: Body::Track(meta), answer }, join_ref, core, now);
        }
        // The tracked meta goes first, so that queued pushes follow the order of the first subscription.
        for (push, _) in std::mem::take(&mut self.waiting) {
            self.send(push, join_ref, core, now);
        }
        FrameEffect::Handled
    }

    /// Returns to waiting for a join: after a backoff, or with `None` for `jitter` as soon as a socket opens.
    pub(super) fn failed(&mut self, error: Error, jitter: Option<f64>, core: &mut Core, now: Instant) {
        let until = jitter.map(|jitter| now + core.config.backoff.wait(self.failures, jitter));
        until.into_iter().for_each(|until| core.schedule(until));
        self.failures = self.failures.saturating_add(u32::from(jitter.is_some()));
        self.state = State::Waiting(until);
        self.output.status(Status::Failed(error));
    }

    pub(super) fn closed(&mut self, error: &Error) {
        self.live = false;
        for (push, _) in self.waiting.drain(..) {
            let _gone = push.answer.send(Err(error.clone()));
        }
        *self.output.presence.write() = PresenceState::default();
        self.output.status(Status::Closed(error.clone()));
    }

    /// Fails queued pushes that have timed out.
    pub(super) fn expire(&mut self, core: &mut Core, now: Instant) {
        while let Some((push, due)) = self.waiting.pop_front() {
            if due > now {
                core.schedule(due);
                return self.waiting.push_front((push, due));
            }
            let error = Error::TimedOut { what: "the subscription", after: core.config.timeout };
            let _gone = push.answer.send(Err(error));
        }
    }

    /// Handles a text frame of this channel that is not a reply.
    pub(super) fn on_frame(&mut self, event: &str, reference: Option<u64>, payload: &[u8]) -> FrameEffect {
        match event {
            "phx_close" if reference == self.join_ref() => {
                let reason = self.last_error.take().unwrap_or_else(|| "the server closed it".into());
                FrameEffect::Closed(Error::ChannelClosed { topic: self.name.clone(), reason })
            }
            "phx_error" if reference.is_none() || reference == self.join_ref() => {
                let payload: Value = serde_json::from_slice(payload).unwrap_or_default();
                let reason = payload.get("reason").and_then(Value::as_str).unwrap_or("the channel crashed");
                FrameEffect::Failed(Error::Refused { topic: self.name.clone(), reason: reason.to_owned() })
            }
            _ if !self.is_joined() => FrameEffect::Handled,
            // Serde also reads a struct from an array.
            _ if !is_object(payload) => FrameEffect::Garbage,
            "broadcast" => self.broadcast(payload),
            "presence_state" if self.join_config.presence => self.presence_state(payload),
            "presence_diff" if self.join_config.presence => self.presence_diff(payload),
            "postgres_changes" => match self.bindings.read(payload) {
                Some(change) => self.emit(Event::Change(Arc::new(change))),
                None => FrameEffect::Garbage,
            },
            "system" => self.system(payload),
            _ => FrameEffect::Handled,
        }
    }

    pub(super) fn user(&mut self, user: UserBroadcast) -> FrameEffect {
        if !self.is_joined() {
            return FrameEffect::Handled;
        }
        let payload = match user.encoding {
            Encoding::Json => Payload::Json(user.data),
            Encoding::Binary => Payload::Binary(user.data),
        };
        self.emit(Event::Broadcast(Broadcast { event: user.event.into(), payload, meta: user.meta }))
    }

    fn emit(&self, event: Event) -> FrameEffect {
        self.output.emit(event);
        FrameEffect::Handled
    }

    fn broadcast(&self, payload: &[u8]) -> FrameEffect {
        #[derive(Deserialize)]
        struct Object<'a> {
            #[serde(borrow, default)]
            event: Cow<'a, str>,
            #[serde(borrow, default)]
            payload: Option<&'a RawValue>,
            #[serde(borrow, default)]
            meta: Option<&'a RawValue>,
        }
        let Ok(object) = serde_json::from_slice::<Object<'_>>(payload) else { return FrameEffect::Garbage };
        let bytes = |raw: &RawValue| Bytes::copy_from_slice(raw.get().as_bytes());
        self.emit(Event::Broadcast(Broadcast {
            event: object.event.into(),
            payload: Payload::Json(object.payload.map_or_else(|| Bytes::from_static(b"{}"), bytes)),
            meta: object.meta.map(bytes),
        }))
    }

    fn presence_state(&mut self, payload: &[u8]) -> FrameEffect {
        let Ok(state) = serde_json::from_slice::<Metas>(payload) else { return FrameEffect::Garbage };
        let mut presence = self.output.presence.write();
        // The early differences apply to this state, in their order.
        let mut sync = presence.replace(state);
        for difference in self.early_diffs.take().unwrap_or_default() {
            let later = presence.apply(difference);
            sync.joins.extend(later.joins);
            sync.leaves.extend(later.leaves);
        }
        drop(presence);
        self.emit(Event::Presence(Arc::new(sync)))
    }

    fn presence_diff(&mut self, payload: &[u8]) -> FrameEffect {
        let Ok(difference) = serde_json::from_slice::<Difference>(payload) else {
            return FrameEffect::Garbage;
        };
        match &mut self.early_diffs {
            Some(early_diffs) if early_diffs.len() >= EARLY_MAX => {
                let reason = "the presence state never came".to_owned();
                FrameEffect::Failed(Error::Refused { topic: self.name.clone(), reason })
            }
            Some(early_diffs) => {
                early_diffs.push(difference);
                FrameEffect::Handled
            }
            None => {
                let sync = self.output.presence.write().apply(difference);
                self.emit(Event::Presence(Arc::new(sync)))
            }
        }
    }

    fn system(&mut self, payload: &[u8]) -> FrameEffect {
        let Ok(message) = serde_json::from_slice::<Map<String, Value>>(payload) else {
            return FrameEffect::Garbage;
        };
        if message.get("status").and_then(Value::as_str) == Some("error") {
            self.last_error = message.get("message").and_then(Value::as_str).map(super::error::one_line);
        }
        self.emit(Event::System(Arc::new(message.into())))
    }
}

impl Drop for ChannelState {
    /// Publishes the end when the actor is dropped while the channel is in the session.
    fn drop(&mut self) {
        if self.live {
            self.closed(&Error::Closed);
        }
    }
}
