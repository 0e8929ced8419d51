//! All channels of one client and what they share: the heartbeat, the token, and the answers that are awaited.
//!
//! Pure: commands, frames and the time go in, frames and events come out.
use super::{
    Backoff, Error,
    error::one_line,
    line::{Answer, Heard, Line, Push, State},
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

/// How a client speaks.
#[derive(Clone, Debug)]
pub(super) struct Config {
    pub(super) version: Version,
    /// Between heartbeats, and for the answer to one.
    pub(super) heartbeat: Duration,
    /// For every other answer.
    pub(super) timeout: Duration,
    pub(super) backoff: Backoff,
    /// Whether there will be a new token where one has expired.
    pub(super) renews: bool,
}

pub(super) struct Session {
    core: Core,
    lines: HashMap<Arc<str>, Line>,
    heartbeat: Option<Heartbeat>,
    chance: Box<dyn FnMut() -> f64 + Send>,
    garbage: u64,
}

/// Of an open socket.
enum Heartbeat {
    Next(Instant),
    Awaited { reference: u64, due: Instant },
}

/// What channels use of the session.
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
    /// `chance` gives numbers from 0 to 1.
    pub(super) fn new(
        config: Config,
        token: Option<Arc<str>>,
        chance: impl FnMut() -> f64 + Send + 'static,
    ) -> Self {
        let core = Core { config, token, refs: 0, awaited: HashMap::new(), due: None, out: VecDeque::new() };
        Self { core, lines: HashMap::new(), heartbeat: None, chance: Box::new(chance), garbage: 0 }
    }

    /// What waits to be written.
    pub(super) fn out(&mut self) -> &mut VecDeque<Frame> {
        &mut self.core.out
    }
    /// When [`Session::tick`] has something to do.
    pub(super) fn due(&self) -> Option<Instant> {
        self.core.due
    }
    pub(super) fn is_empty(&self) -> bool {
        self.lines.is_empty()
    }
    /// Frames that were not understood.
    pub(super) fn garbage(&self) -> u64 {
        self.garbage
    }

    /// Joins a channel as soon as there is a socket.
    pub(super) fn add(&mut self, mut line: Line, now: Instant) -> Result<(), Error> {
        let other = self.lines.get(&line.topic).map(|other| other.handle.strong_count() > 0);
        match other {
            Some(true) => return Err(Error::TopicInUse { topic: line.name.clone() }),
            Some(false) => self.leave(&line.topic.clone()),
            None => {}
        }
        line.begin();
        if self.heartbeat.is_some() {
            line.join(&mut self.core, now);
        }
        self.lines.insert(line.topic.clone(), line);
        Ok(())
    }

    pub(super) fn push(&mut self, topic: &str, push: Push, now: Instant) {
        match self.lines.get_mut(topic) {
            Some(line) => line.push(push, &mut self.core, now),
            None => {
                let topic = topic.strip_prefix(TOPIC_PREFIX).unwrap_or(topic).into();
                let reason = "it is not subscribed".to_owned();
                let _gone = push.answer.send(Err(Error::ChannelClosed { topic, reason }));
            }
        }
    }

    /// Leaves a channel, without waiting for the server: its topic is free at once.
    pub(super) fn leave(&mut self, topic: &str) {
        let Some(mut line) = self.lines.remove(topic) else { return };
        if let (Some(join_ref), Some(_)) = (line.join_ref(), &self.heartbeat) {
            let reference = self.core.next_ref();
            self.core.text(Some(join_ref), reference, &line.topic, "phx_leave", b"{}");
        }
        let error = Error::ChannelClosed { topic: line.name.clone(), reason: "it was left".into() };
        self.core.give_up(Some(topic), &error);
        line.closed(&error);
    }

    /// Leaves the channels of which no handle is left.
    pub(super) fn sweep(&mut self) {
        let dead = self.lines.values().filter(|line| line.handle.strong_count() == 0);
        let dead: Vec<_> = dead.map(|line| line.topic.clone()).collect();
        dead.iter().for_each(|topic| self.leave(topic));
    }

    /// Leaves everything.
    pub(super) fn close(&mut self) {
        let topics: Vec<_> = self.lines.keys().cloned().collect();
        topics.iter().for_each(|topic| self.leave(topic));
    }

    /// There is a socket.
    pub(super) fn opened(&mut self, now: Instant) {
        let next = now + self.core.config.heartbeat;
        self.heartbeat = Some(Heartbeat::Next(next));
        self.core.soon(next);
        for line in self.lines.values_mut() {
            line.join(&mut self.core, now);
        }
    }

    /// There is none any more, or none came about.
    pub(super) fn lost(&mut self, error: &Error, now: Instant) {
        self.heartbeat = None;
        self.core.out.clear();
        self.core.give_up(None, error);
        for line in self.lines.values_mut() {
            line.failed(error.clone(), None, &mut self.core, now);
        }
    }

    /// The token for future joins, and for the channels that are joined.
    pub(super) fn set_token(&mut self, token: Option<Arc<str>>) {
        self.core.token = token;
        self.lines.values_mut().for_each(|line| line.send_token(&mut self.core));
    }

    /// Does what is due. An error is the end of the socket.
    pub(super) fn tick(&mut self, now: Instant) -> Result<(), Error> {
        self.core.due = None;
        self.core.expire(now);
        for line in self.lines.values_mut() {
            line.expire(&mut self.core, now);
            match line.state {
                State::Joining { join_ref, due } if due <= now => {
                    let reference = self.core.next_ref();
                    self.core.text(Some(join_ref), reference, &line.topic, "phx_leave", b"{}");
                    let error = Error::TimedOut { what: "the join", after: self.core.config.timeout };
                    line.failed(error, Some((self.chance)()), &mut self.core, now);
                }
                State::Joining { due, .. } => self.core.soon(due),
                State::Waiting(Some(until)) if self.heartbeat.is_some() => {
                    if until <= now {
                        line.join(&mut self.core, now);
                    } else {
                        self.core.soon(until);
                    }
                }
                _ => {}
            }
        }
        self.beat(now)
    }

    fn beat(&mut self, now: Instant) -> Result<(), Error> {
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
        self.core.soon(next);
        Ok(())
    }

    /// A frame of the server. True when it is time to ask for a fresh token: with each answered heartbeat, and
    /// when a channel was refused or closed.
    pub(super) fn frame(&mut self, frame: FromServer, now: Instant) -> bool {
        let message = match frame {
            FromServer::User(user) => {
                if let Some(line) = self.lines.get_mut(user.topic.as_str()) {
                    let heard = line.user(user);
                    debug_assert!(matches!(heard, Heard::Fine), "a broadcast has no consequence");
                }
                return false;
            }
            FromServer::Message(message) => message,
        };
        let Payload::Json(payload) = &message.payload else { return false };
        let reference = message.reference.as_ref().and_then(Ref::count);
        if message.topic == PHOENIX_TOPIC {
            return self.beaten(reference, now);
        }
        if message.event == "phx_reply" {
            return self.reply(&message, reference, payload, now);
        }
        let Some(line) = self.lines.get_mut(message.topic.as_str()) else { return false };
        if message.join_ref.is_some() && message.join_ref.as_ref().and_then(Ref::count) != line.join_ref() {
            // Of a join that is over.
            return false;
        }
        let heard = line.heard(&message.event, reference, payload);
        self.consequence(&message.topic, heard, now)
    }

    /// A frame that no decoder takes.
    pub(super) fn garbage_came(&mut self) {
        self.garbage += 1;
    }

    fn beaten(&mut self, reference: Option<u64>, now: Instant) -> bool {
        match self.heartbeat {
            Some(Heartbeat::Awaited { reference: awaited, .. }) if Some(awaited) == reference => {
                let next = now + self.core.config.heartbeat;
                self.heartbeat = Some(Heartbeat::Next(next));
                self.core.soon(next);
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
        if let Some(line) = self.lines.get_mut(topic)
            && line.join_ref() == Some(reference)
        {
            let heard = line.answered(outcome, &mut self.core, now);
            return self.consequence(topic, heard, now);
        }
        let ours = self.core.awaited.get(&reference).is_some_and(|awaited| &*awaited.topic == topic);
        let Some(awaited) = ours.then(|| self.core.awaited.remove(&reference)).flatten() else {
            return false;
        };
        // The server has forgotten the channel, which it does not do in silence unless it was restarted badly.
        let forgotten = outcome.as_ref().is_err_and(|reason| reason == "unmatched topic");
        let _gone = awaited.answer.send(outcome.map(drop).map_err(|reason| Error::Rejected { reason }));
        if forgotten && let Some(line) = self.lines.get(topic) {
            let error = Error::Refused { topic: line.name.clone(), reason: "unmatched topic".into() };
            return self.consequence(topic, Heard::Failed(error), now);
        }
        false
    }

    fn consequence(&mut self, topic: &str, heard: Heard, now: Instant) -> bool {
        let error = match heard {
            Heard::Fine => return false,
            Heard::Garbage => {
                self.garbage += 1;
                return false;
            }
            Heard::Closed(error) if !self.core.config.renews => {
                self.core.give_up(Some(topic), &error);
                if let Some(mut line) = self.lines.remove(topic) {
                    line.closed(&error);
                }
                return false;
            }
            Heard::Closed(error) | Heard::Failed(error) => error,
        };
        self.core.give_up(Some(topic), &error);
        if let Some(line) = self.lines.get_mut(topic) {
            line.failed(error, Some((self.chance)()), &mut self.core, now);
        }
        true
    }
}

impl Core {
    pub(super) fn next_ref(&mut self) -> u64 {
        self.refs += 1;
        self.refs
    }

    /// [`Session::tick`] is wanted then.
    pub(super) fn soon(&mut self, at: Instant) {
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
        self.soon(due);
        self.awaited.insert(reference, Awaited { topic, answer, due });
    }

    /// Nobody will answer; no topic: nobody at all.
    fn give_up(&mut self, topic: Option<&str>, error: &Error) {
        let gone = self.awaited.extract_if(|_, awaited| topic.is_none_or(|topic| *awaited.topic == *topic));
        for (_, awaited) in gone {
            let _gone = awaited.answer.send(Err(error.clone()));
        }
    }

    fn expire(&mut self, now: Instant) {
        let after = self.config.timeout;
        for (_, awaited) in self.awaited.extract_if(|_, awaited| awaited.due <= now) {
            let _gone = awaited.answer.send(Err(Error::TimedOut { what: "the message", after }));
        }
        let next = self.awaited.values().map(|awaited| awaited.due).min();
        next.into_iter().for_each(|next| self.soon(next));
    }
}

/// What a reply says: its `response`, or why not.
fn outcome(payload: &[u8]) -> Option<Result<Value, String>> {
    let mut payload: Value = serde_json::from_slice(payload).ok()?;
    let response = payload.get_mut("response").map(Value::take).unwrap_or_default();
    match payload.get("status")?.as_str()? {
        "ok" => Some(Ok(response)),
        "error" => Some(Err(reason(&response))),
        _ => None,
    }
}

/// The text of a refusal: the values of the response, as the JavaScript client joins them.
fn reason(response: &Value) -> String {
    let words = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    let text = match response {
        Value::Object(members) if members.is_empty() => "no reason was given".into(),
        Value::Object(members) => members.values().map(words).collect::<Vec<_>>().join(", "),
        other => words(other),
    };
    one_line(&text)
}
