//! The state of all channels of one client: heartbeat, token, and pending replies.
//!
//! Pure: commands, frames and the time go in; frames and events come out.
use super::{
    Backoff, Error,
    channel_state::{Answer, ChannelState, FrameEffect, Push, State},
    error::one_line,
};
use crate::wire::{
    Encoding, Frame, Inbound, PHOENIX_TOPIC, Payload, Ref, TOPIC_PREFIX, Version,
    client::{self, FromServer},
    text,
};
use serde_json::Value;
use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
    time::Duration,
};
use tokio::time::Instant;

/// The settings of the protocol.
#[derive(Clone, Debug)]
pub(super) struct Config {
    pub(super) version: Version,
    /// The interval of heartbeats, and the timeout of the reply to one.
    pub(super) heartbeat: Duration,
    /// The timeout of every other reply.
    pub(super) timeout: Duration,
    pub(super) backoff: Backoff,
    /// Whether a token source replaces expired tokens.
    pub(super) renews: bool,
}

pub(super) struct Session {
    core: Core,
    channels: HashMap<Arc<str>, ChannelState>,
    heartbeat: Option<Heartbeat>,
    jitter: Box<dyn FnMut() -> f64 + Send>,
    garbage: u64,
}

/// The heartbeat of an open socket.
enum Heartbeat {
    Next(Instant),
    Awaited { reference: u64, due: Instant },
}

/// The part of the session that channels use.
pub(super) struct Core {
    pub(super) config: Config,
    pub(super) token: Option<Arc<str>>,
    refs: u64,
    awaited: HashMap<u64, Awaited>,
    due: Option<Instant>,
    out: VecDeque<Frame>,
}

struct Awaited {
    topic: Arc<str>,
    answer: Answer,
    due: Instant,
}

impl Session {
    /// `jitter` returns numbers from 0 to 1.
    pub(super) fn new(
        config: Config,
        token: Option<Arc<str>>,
        jitter: impl FnMut() -> f64 + Send + 'static,
    ) -> Self {
        let core = Core { config, token, refs: 0, awaited: HashMap::new(), due: None, out: VecDeque::new() };
        Self { core, channels: HashMap::new(), heartbeat: None, jitter: Box::new(jitter), garbage: 0 }
    }

    /// The frames that wait to be written.
    pub(super) fn out(&mut self) -> &mut VecDeque<Frame> {
        &mut self.core.out
    }
    /// When [`Session::tick`] must be called next.
    pub(super) fn due(&self) -> Option<Instant> {
        self.core.due
    }
    pub(super) fn is_empty(&self) -> bool {
        self.channels.is_empty()
    }
    /// Frames that could not be decoded or violate the protocol.
    pub(super) fn garbage(&self) -> u64 {
        self.garbage
    }

    /// Joins a channel, now or when a socket opens.
    pub(super) fn add(&mut self, mut channel: ChannelState, now: Instant) -> Result<(), Error> {
        let other = self.channels.get(&channel.topic).map(|other| other.handle.strong_count() > 0);
        // A topic whose last handle is dropped but not yet swept is free.
        match other {
            Some(true) => return Err(Error::TopicInUse { topic: channel.name.clone() }),
            Some(false) => self.leave(&channel.topic.clone()),
            None => {}
        }
        channel.begin();
        if self.heartbeat.is_some() {
            channel.join(&mut self.core, now);
        }
        self.channels.insert(channel.topic.clone(), channel);
        Ok(())
    }

    pub(super) fn push(&mut self, topic: &str, push: Push, now: Instant) {
        match self.channels.get_mut(topic) {
            Some(channel) => channel.push(push, &mut self.core, now),
            None => {
                let topic = topic.strip_prefix(TOPIC_PREFIX).unwrap_or(topic).into();
                let reason = "it is not subscribed".to_owned();
                let _gone = push.answer.send(Err(Error::ChannelClosed { topic, reason }));
            }
        }
    }

    /// Leaves a channel without waiting for the reply: its topic is free at once.
    pub(super) fn leave(&mut self, topic: &str) {
        let Some(mut channel) = self.channels.remove(topic) else { return };
        if let (Some(join_ref), Some(_)) = (channel.join_ref(), &self.heartbeat) {
            let reference = self.core.next_ref();
            self.core.text(Some(join_ref), reference, &channel.topic, "phx_leave", b"{}");
        }
        let error = Error::ChannelClosed { topic: channel.name.clone(), reason: "it was left".into() };
        self.core.fail_pending(Some(topic), &error);
        channel.closed(&error);
    }

    /// Leaves the channels whose last handle was dropped.
    pub(super) fn sweep(&mut self) {
        let dead = self.channels.values().filter(|channel| channel.handle.strong_count() == 0);
        let dead: Vec<_> = dead.map(|channel| channel.topic.clone()).collect();
        dead.iter().for_each(|topic| self.leave(topic));
    }

    /// Leaves every channel.
    pub(super) fn close(&mut self) {
        let topics: Vec<_> = self.channels.keys().cloned().collect();
        topics.iter().for_each(|topic| self.leave(topic));
    }

    /// A socket has opened.
    pub(super) fn opened(&mut self, now: Instant) {
        let next = now + self.core.config.heartbeat;
        self.heartbeat = Some(Heartbeat::Next(next));
        self.core.schedule(next);
        for channel in self.channels.values_mut() {
            channel.join(&mut self.core, now);
        }
    }

    /// The socket was lost, or the attempt to open one failed.
    pub(super) fn lost(&mut self, error: &Error, now: Instant) {
        self.heartbeat = None;
        self.core.out.clear();
        self.core.fail_pending(None, error);
        for channel in self.channels.values_mut() {
            channel.failed(error.clone(), None, &mut self.core, now);
        }
    }

    /// Sets the token for future joins and sends it to joined channels.
    pub(super) fn set_token(&mut self, token: Option<Arc<str>>) {
        self.core.token = token;
        self.channels.values_mut().for_each(|channel| channel.send_token(&mut self.core));
    }

    /// Handles everything that is due. An error means that the socket must be closed.
    pub(super) fn tick(&mut self, now: Instant) -> Result<(), Error> {
        self.core.due = None;
        self.core.expire(now);
        for channel in self.channels.values_mut() {
            channel.expire(&mut self.core, now);
            match channel.state {
                State::Joining { join_ref, due } if due <= now => {
                    // The server may have accepted a join whose reply is late: the leave undoes it.
                    let reference = self.core.next_ref();
                    self.core.text(Some(join_ref), reference, &channel.topic, "phx_leave", b"{}");
                    let error = Error::TimedOut { what: "the join", after: self.core.config.timeout };
                    channel.failed(error, Some((self.jitter)()), &mut self.core, now);
                }
                State::Joining { due, .. } => self.core.schedule(due),
                State::Waiting(Some(until)) if self.heartbeat.is_some() => {
                    if until <= now {
                        channel.join(&mut self.core, now);
                    } else {
                        self.core.schedule(until);
                    }
                }
                _ => {}
            }
        }
        self.tick_heartbeat(now)
    }

    fn tick_heartbeat(&mut self, now: Instant) -> Result<(), Error> {
        let interval = self.core.config.heartbeat;
        let next = match self.heartbeat {
            None => return Ok(()),
            Some(Heartbeat::Next(at)) if at <= now => {
                let reference = self.core.next_ref();
                self.core.text(None, reference, PHOENIX_TOPIC, "heartbeat", b"{}");
                self.heartbeat = Some(Heartbeat::Awaited { reference, due: now + interval });
                now + interval
            }
            Some(Heartbeat::Awaited { due, .. }) if due <= now => {
                let why = format!("no heartbeat came back within {interval:?}");
                return Err(Error::Lost { why });
            }
            Some(Heartbeat::Next(at) | Heartbeat::Awaited { due: at, .. }) => at,
        };
        self.core.schedule(next);
        Ok(())
    }

    /// Handles a frame of the server. Returns true if a fresh token should be requested: after each answered heartbeat,
    /// and after a channel was refused or closed.
    pub(super) fn frame(&mut self, frame: FromServer, now: Instant) -> bool {
        let message = match frame {
            FromServer::User(user) => {
                if let Some(channel) = self.channels.get_mut(user.topic.as_str()) {
                    let effect = channel.user(user);
                    debug_assert!(matches!(effect, FrameEffect::Handled), "a broadcast has no consequence");
                }
                return false;
            }
            FromServer::Message(message) => message,
        };
        let Payload::Json(payload) = &message.payload else { return false };
        let reference = message.reference.as_ref().and_then(Ref::count);
        if message.topic == PHOENIX_TOPIC {
            return self.on_heartbeat_reply(reference, now);
        }
        if message.event == "phx_reply" {
            return self.reply(&message, reference, payload, now);
        }
        let Some(channel) = self.channels.get_mut(message.topic.as_str()) else { return false };
        if message.join_ref.is_some() && message.join_ref.as_ref().and_then(Ref::count) != channel.join_ref()
        {
            // The frame belongs to an earlier join of the topic.
            return false;
        }
        let effect = channel.on_frame(&message.event, reference, payload);
        self.consequence(&message.topic, effect, now)
    }

    /// Counts a frame that could not be decoded.
    pub(super) fn count_garbage(&mut self) {
        self.garbage += 1;
    }

    fn on_heartbeat_reply(&mut self, reference: Option<u64>, now: Instant) -> bool {
        match self.heartbeat {
            Some(Heartbeat::Awaited { reference: awaited, .. }) if Some(awaited) == reference => {
                let next = now + self.core.config.heartbeat;
                self.heartbeat = Some(Heartbeat::Next(next));
                self.core.schedule(next);
                true
            }
            _ => false,
        }
    }

    fn reply(&mut self, message: &Inbound, reference: Option<u64>, payload: &[u8], now: Instant) -> bool {
        let (Some(reference), Some(outcome)) = (reference, outcome(payload)) else {
            self.garbage += 1;
            return false;
        };
        let topic = message.topic.as_str();
        if let Some(channel) = self.channels.get_mut(topic)
            && channel.join_ref() == Some(reference)
        {
            let effect = channel.on_join_reply(outcome, &mut self.core, now);
            return self.consequence(topic, effect, now);
        }
        let ours = self.core.awaited.get(&reference).is_some_and(|awaited| &*awaited.topic == topic);
        let Some(awaited) = ours.then(|| self.core.awaited.remove(&reference)).flatten() else {
            return false;
        };
        // The server does not know the channel. It may have restarted without closing it, so it is rejoined.
        let forgotten = outcome.as_ref().is_err_and(|reason| reason == "unmatched topic");
        let _gone = awaited.answer.send(outcome.map(drop).map_err(|reason| Error::Rejected { reason }));
        if forgotten && let Some(channel) = self.channels.get(topic) {
            let error = Error::Refused { topic: channel.name.clone(), reason: "unmatched topic".into() };
            return self.consequence(topic, FrameEffect::Failed(error), now);
        }
        false
    }

    fn consequence(&mut self, topic: &str, effect: FrameEffect, now: Instant) -> bool {
        let error = match effect {
            FrameEffect::Handled => return false,
            FrameEffect::Garbage => {
                self.garbage += 1;
                return false;
            }
            FrameEffect::Closed(error) if !self.core.config.renews => {
                self.core.fail_pending(Some(topic), &error);
                if let Some(mut channel) = self.channels.remove(topic) {
                    channel.closed(&error);
                }
                return false;
            }
            FrameEffect::Closed(error) | FrameEffect::Failed(error) => error,
        };
        self.core.fail_pending(Some(topic), &error);
        if let Some(channel) = self.channels.get_mut(topic) {
            channel.failed(error, Some((self.jitter)()), &mut self.core, now);
        }
        true
    }
}

impl Core {
    pub(super) fn next_ref(&mut self) -> u64 {
        self.refs += 1;
        self.refs
    }

    /// Schedules [`Session::tick`] for `at` or earlier.
    pub(super) fn schedule(&mut self, at: Instant) {
        self.due = Some(self.due.map_or(at, |due| due.min(at)));
    }

    pub(super) fn text(
        &mut self,
        join_ref: Option<u64>,
        reference: u64,
        topic: &str,
        event: &str,
        payload: &[u8],
    ) {
        let (join_ref, reference) = (join_ref.map(Ref::from_count), Ref::from_count(reference));
        let frame = client::push(self.config.version, join_ref.as_ref(), &reference, topic, event, payload);
        self.out.push_back(frame);
    }

    pub(super) fn broadcast(
        &mut self,
        join_ref: u64,
        reference: u64,
        topic: &str,
        event: &str,
        encoding: Encoding,
        data: &[u8],
    ) -> Result<(), Error> {
        let user = match self.config.version {
            Version::V1 => None,
            Version::V2 => client::user_push(join_ref, reference, topic, event, encoding, data),
        };
        match (user, encoding, self.config.version) {
            (Some(frame), ..) => self.out.push_back(frame),
            (None, Encoding::Json, _) => {
                let object = text::user_object(event, data, None);
                self.text(Some(join_ref), reference, topic, "broadcast", &object);
            }
            (None, Encoding::Binary, Version::V1) => {
                return Err(Error::Payload("bytes need serializer 2.0.0".into()));
            }
            (None, Encoding::Binary, Version::V2) => {
                let why = "topic and event of bytes may have 255 bytes each";
                return Err(Error::Payload(why.into()));
            }
        }
        Ok(())
    }

    pub(super) fn expect(&mut self, reference: u64, topic: Arc<str>, answer: Answer, now: Instant) {
        let due = now + self.config.timeout;
        self.schedule(due);
        self.awaited.insert(reference, Awaited { topic, answer, due });
    }

    /// Fails the pending replies of one topic, or of all if `topic` is `None`.
    fn fail_pending(&mut self, topic: Option<&str>, error: &Error) {
        let pending =
            self.awaited.extract_if(|_, awaited| topic.is_none_or(|topic| *awaited.topic == *topic));
        for (_, awaited) in pending {
            let _gone = awaited.answer.send(Err(error.clone()));
        }
    }

    fn expire(&mut self, now: Instant) {
        let after = self.config.timeout;
        for (_, awaited) in self.awaited.extract_if(|_, awaited| awaited.due <= now) {
            let _gone = awaited.answer.send(Err(Error::TimedOut { what: "the message", after }));
        }
        let next = self.awaited.values().map(|awaited| awaited.due).min();
        next.into_iter().for_each(|next| self.schedule(next));
    }
}

/// The outcome of a reply: its `response`, or the reason of a refusal. `None` if it is not a valid reply.
fn outcome(payload: &[u8]) -> Option<Result<Value, String>> {
    let mut payload: Value = serde_json::from_slice(payload).ok()?;
    let response = payload.get_mut("response").map(Value::take).unwrap_or_default();
    match payload.get("status")?.as_str()? {
        "ok" => Some(Ok(response)),
        "error" => Some(Err(reason(&response))),
        _ => None,
    }
}

/// The text of a refusal: the values of the response, joined as in the JavaScript client.
fn reason(response: &Value) -> String {
    let words = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    let text = match response {
        Value::Object(members) if members.is_empty() => "no reason was given".into(),
        Value::Object(members) => members.values().map(words).collect::<Vec<_>>().join(", "),
        other => words(other),
    };
    one_line(&text)
}
