//! A session driven by bytes, for the fuzzer and a property test: any frames, replies and times in any state.
#![allow(unreachable_pub, reason = "public for the fuzzer alone")]
use super::{
    Backoff, ChangeFilter, Error, Event, Status,
    channel_state::{Body, ChannelOutput, ChannelState, JoinConfig, Push},
    session::{Config, Session},
};
use crate::wire::{
    Encoding, Frame, Ref, Version,
    client::{FromServer, read_binary, read_text},
    decode_binary, decode_text,
};
use bytes::Bytes;
use std::{sync::Arc, time::Duration};
use tokio::{
    sync::{broadcast, oneshot, watch},
    time::Instant,
};

const TOPICS: [&str; 3] = ["realtime:a", "realtime:b", "phoenix"];
const EVENTS: [&str; 9] = [
    "phx_reply",
    "phx_close",
    "phx_error",
    "broadcast",
    "presence_state",
    "presence_diff",
    "postgres_changes",
    "system",
    "other",
];
const PAYLOADS: [&str; 12] = [
    "{}",
    "null",
    "[]",
    r#"{"status":"ok","response":{}}"#,
    r#"{"status":"ok","response":{"postgres_changes":[{"event":"*","schema":"public","id":5}]}}"#,
    r#"{"status":"error","response":{"reason":"unmatched topic"}}"#,
    r#"{"status":"error","response":"payload_size_exceeded"}"#,
    r#"{"event":"e","payload":[1],"meta":{"id":"1"}}"#,
    r#"{"k":{"metas":[{"phx_ref":"1"},{"phx_ref":"2"}]}}"#,
    r#"{"joins":{"k":{"metas":[{"phx_ref":"3"}]}},"leaves":{"k":{"metas":[{"phx_ref":"1"}]}}}"#,
    r#"{"ids":[5],"data":{"schema":"public","table":"t","type":"INSERT","columns":[]}}"#,
    r#"{"status":"error","message":"no more"}"#,
];

struct Bytewise<'a>(&'a [u8]);

impl Bytewise<'_> {
    fn next(&mut self) -> Option<u8> {
        let (first, rest) = self.0.split_first()?;
        self.0 = rest;
        Some(*first)
    }
    fn pick<T: Copy>(&mut self, from: &[T]) -> Option<T> {
        let at = usize::from(self.next()?) % from.len().max(1);
        from.get(at).copied()
    }
    fn take_bytes(&mut self) -> Option<Bytes> {
        let size = usize::from(self.next()?).min(self.0.len());
        let (take_bytes, rest) = self.0.split_at(size);
        self.0 = rest;
        Some(Bytes::copy_from_slice(take_bytes))
    }
}

/// Runs a session on the bytes of `data`. Panics if the session sends an invalid frame, leaves a push unanswered, or
/// publishes messages of a channel that is not subscribed.
#[expect(clippy::expect_used, reason = "the fuzzer detects a failure by a panic")]
pub fn fuzz(data: &[u8]) {
    let mut data = Bytewise(data);
    let Some(kind) = data.next() else { return };
    let version = if kind & 1 == 0 { Version::V1 } else { Version::V2 };
    let config = Config {
        version,
        heartbeat: Duration::from_secs(25),
        timeout: Duration::from_secs(10),
        backoff: Backoff::default(),
        renews: kind & 2 != 0,
    };
    let (mut session, mut now) = (Session::new(config, None, || 0.5), Instant::now());
    let (mut refs, mut answers, mut listeners) = (vec![0], Vec::new(), Vec::new());
    let handles = [Arc::new(()), Arc::new(())];
    while let Some(()) =
        step(&mut data, &mut session, &mut now, &mut answers, &handles, &mut listeners, &refs, version)
    {
        for frame in std::mem::take(session.out()) {
            let read = match frame {
                Frame::Text(text) => decode_text(version, &text),
                Frame::Binary(bytes) => decode_binary(&bytes),
            };
            let read = read.expect("a server can read it");
            refs.extend(read.reference.as_ref().and_then(Ref::count));
        }
    }
    session.lost(&Error::Closed, now);
    session.close();
    for mut answer in answers {
        answer.try_recv().expect("every push is answered").ok();
    }
    for listener in listeners {
        check(listener);
    }
}

/// Checks the events of a listener: messages only while the channel is subscribed, none after its end.
fn check(mut listener: broadcast::Receiver<Event>) {
    let mut subscribed = false;
    loop {
        match listener.try_recv() {
            Ok(Event::Status(status)) => subscribed = matches!(status, Status::Subscribed),
            Ok(event) => assert!(subscribed, "{event:?} of a channel that is not subscribed"),
            Err(broadcast::error::TryRecvError::Lagged(_)) => return,
            Err(_) => return,
        }
    }
}

type Answered = oneshot::Receiver<Result<(), Error>>;

#[expect(clippy::too_many_arguments, reason = "the state of one run, which only this changes")]
fn step(
    data: &mut Bytewise<'_>,
    session: &mut Session,
    now: &mut Instant,
    answers: &mut Vec<Answered>,
    handles: &[Arc<()>; 2],
    listeners: &mut Vec<broadcast::Receiver<Event>>,
    refs: &[u64],
    version: Version,
) -> Option<()> {
    let topic = |data: &mut Bytewise<'_>| data.pick(&TOPICS);
    match data.next()? % 11 {
        0 => session.opened(*now),
        1 => session.lost(&Error::Closed, *now),
        2 => {
            *now += Duration::from_secs(data.next()?.into());
            // An error means that the socket must be closed.
            if let Err(error) = session.tick(*now) {
                session.lost(&error, *now);
            }
        }
        3 => feed(session, read_text(version, &data.take_bytes()?), *now),
        4 => feed(session, read_binary(&data.take_bytes()?), *now),
        5 | 6 => {
            let (topic, event, payload) = (topic(data)?, data.pick(&EVENTS)?, data.pick(&PAYLOADS)?);
            let join_ref = data.pick(refs).filter(|at| *at > 0);
            let reference = data.pick(refs).filter(|at| *at > 0);
            let text = |count: Option<u64>| count.map_or("null".to_owned(), |count| format!("\"{count}\""));
            let (join_ref, reference) = (text(join_ref), text(reference));
            let frame = match version {
                Version::V1 => format!(
                    r#"{{"topic":"{topic}","event":"{event}","payload":{payload},"ref":{reference}}}"#
                ),
                Version::V2 => format!(r#"[{join_ref},{reference},"{topic}","{event}",{payload}]"#),
            };
            feed(session, read_text(version, &frame.into()), *now);
        }
        7 => {
            let (answer, answered) = oneshot::channel();
            let body = match data.next()? % 4 {
                0 => Body::Track(Bytes::from_static(b"{}")),
                1 => Body::Untrack,
                2 => Body::Broadcast {
                    event: "e".into(),
                    encoding: Encoding::Binary,
                    data: data.take_bytes()?,
                },
                _ => Body::Broadcast { event: "e".into(), encoding: Encoding::Json, data: "1".into() },
            };
            session.push(topic(data)?, Push { body, answer }, *now);
            answers.push(answered);
        }
        8 => session.leave(topic(data)?),
        9 => {
            let at = usize::from(data.next()? % 2);
            let (topic, handle) = (TOPICS.get(at)?, handles.get(at)?);
            let filters = vec![Arc::new(ChangeFilter::schema("public"))];
            let join_config =
                JoinConfig { presence: at == 0, ack: at == 1, filters, ..JoinConfig::default() };
            let output = ChannelOutput {
                events: broadcast::Sender::new(64),
                status: watch::Sender::new(Status::Joining),
                presence: Arc::default(),
            };
            let listener = output.events.subscribe();
            let handle = Arc::downgrade(handle);
            if session
                .add(ChannelState::new((*topic).into(), "x".into(), join_config, output, handle), *now)
                .is_ok()
            {
                listeners.push(listener);
            }
        }
        _ => {
            session.set_token(data.take_bytes().map(|token| String::from_utf8_lossy(&token).as_ref().into()))
        }
    }
    Some(())
}

fn feed(session: &mut Session, read: Result<FromServer, crate::wire::Dropped>, now: Instant) {
    match read {
        Ok(frame) => drop(session.frame(frame, now)),
        Err(_) => session.count_garbage(),
    }
}
