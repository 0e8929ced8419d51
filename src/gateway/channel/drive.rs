//! A channel driven by bytes, for the fuzzer and a property test: any frames and answers in any state.
#![allow(unreachable_pub, reason = "public for the fuzzer alone")]
use super::{Action, Admitted, Channel, ChannelEvent, Limits, PolicyAnswer, Refusal};
use crate::{
    access::{self, Grant, Rights},
    auth::Claims,
    wire::{Version, decode_binary, decode_text, is_json, is_object},
};
use bytes::Bytes;
use std::{sync::Arc, time::Duration};
use tokio::time::Instant;

const EVENTS: [&str; 6] = ["phx_join", "phx_leave", "broadcast", "presence", "access_token", "other"];
const PAYLOADS: [&str; 16] = [
    "{}",
    "null",
    "[]",
    "7",
    r#"{"config":{}}"#,
    r#"{"config":null}"#,
    r#"{"config":{"broadcast":{"ack":true,"self":"TRUE"},"presence":{"key":"ada","enabled":true}}}"#,
    r#"{"config":{"private":true,"broadcast":{"ack":true},"presence":{"key":7}}}"#,
    r#"{"config":{"private":true,"broadcast":{"replay":{"since":1}}},"access_token":"t"}"#,
    r#"{"config":{"private":1,"postgres_changes":[{"event":"*","schema":"public"},null]}}"#,
    r#"{"config":{"postgres_changes":[{"event":"INSERT","schema":"s","table":"t","filter":"a=eq.1"}]}}"#,
    r#"{"type":"broadcast","event":"e","payload":1}"#,
    r#"{"event":"track","payload":{"a":1}}"#,
    r#"{"event":"TRACK","payload":3}"#,
    r#"{"event":"untrack"}"#,
    r#"{"access_token":"new"}"#,
];
const REFS: [&str; 4] = ["null", "\"1\"", "\"2\"", "{}"];

/// Runs a channel on the bytes of `data`. Panics if it enters a room twice, acts in a room that it has not entered,
/// writes invalid JSON, or is idle while in a room.
pub fn fuzz(data: &[u8]) {
    let limits = Limits {
        payload_bytes_max: 100,
        presence_calls: Some((5, Duration::from_secs(30))),
        presence_enabled: data.first().is_some_and(|first| first & 1 != 0),
        changes_max: 2,
    };
    let mut rest = data.get(1..).unwrap_or_default();
    let (mut channel, mut now) = (Channel::new("den"), Instant::now());
    let (mut entered, mut out) = (false, Vec::new());
    while let Some(event) = next(&mut rest, &mut now) {
        channel.on(event, &limits, now, &mut out);
        for action in out.drain(..) {
            match action {
                Action::Enter { .. } => {
                    assert!(!entered, "entered twice");
                    entered = true;
                }
                Action::Exit => {
                    assert!(entered, "left a room that it is not in");
                    entered = false;
                }
                Action::Publish { .. }
                | Action::Track { .. }
                | Action::Untrack
                | Action::SendState { .. } => {
                    assert!(entered, "{action:?} in a room that it is not in");
                }
                Action::SetInterests(_) | Action::WatchToken | Action::StartChanges | Action::StopChanges => {
                    assert!(entered, "{action:?} without a room")
                }
                Action::Reply { response, .. } => assert!(is_json(response.as_bytes()), "{response}"),
                Action::Push { payload, .. } => {
                    assert!(is_object(payload.as_bytes()) && is_json(payload.as_bytes()))
                }
                _ => {}
            }
        }
        assert!(!channel.is_idle() || !entered, "forgotten, though in a room");
        assert_eq!(channel.claims().is_some(), entered, "in a room without claims");
    }
}

fn next(rest: &mut &[u8], now: &mut Instant) -> Option<ChannelEvent> {
    let mut byte = || {
        let (first, tail) = rest.split_first()?;
        *rest = tail;
        Some(*first)
    };
    let kind = byte()?;
    let what = byte()?;
    Some(match kind % 16 {
        0..=7 => ChannelEvent::Frame(structured(kind, what, byte()?)?),
        8 => ChannelEvent::TooFast(structured(kind, what, byte()?)?, what.into()),
        9 => ChannelEvent::ThrottleNotice(what.into(), 5),
        10 => ChannelEvent::Checked(if what & 1 == 0 {
            Ok(admitted(what))
        } else {
            let close = (what & 2 != 0).then_some(1001);
            let retry_after_ms = (what & 4 != 0).then_some(9);
            Err(Refusal {
                close,
                retry_after_ms,
                at_once: retry_after_ms.is_some(),
                ..Refusal::new("No: \"no\"")
            })
        }),
        11 => ChannelEvent::DelayOver,
        12 => ChannelEvent::Renewed(if what & 1 == 0 { Ok(admitted(what)) } else { Err("\u{1}old".into()) }),
        13 => ChannelEvent::PolicyAnswer(match what & 3 {
            0 => Err(access::Error::Busy),
            _ => Ok(PolicyAnswer { write: Some(rights(what)), presence_read: Some(what & 4 != 0) }),
        }),
        14 => ChannelEvent::Shutdown("by \"hand\"".into()),
        _ => {
            *now += Duration::from_secs(what.into());
            let (size, bytes) = (usize::from(what).min(rest.len()), *rest);
            let (raw, tail) = bytes.split_at(size);
            *rest = tail;
            let raw = Bytes::copy_from_slice(raw);
            let read = decode_text(Version::V2, &raw).or_else(|_| decode_binary(&raw));
            return read.ok().map_or(Some(ChannelEvent::DelayOver), |frame| Some(ChannelEvent::Frame(frame)));
        }
    })
}

fn structured(kind: u8, what: u8, refs: u8) -> Option<crate::wire::Inbound> {
    if kind & 0x80 != 0 {
        let frame = [&b"\x03\x01\x01\x0c\x01\x00"[..], &[what & 1], b"12realtime:dene1"].concat();
        return decode_binary(&frame.into()).ok();
    }
    let event = EVENTS.get(usize::from(kind >> 4) % EVENTS.len())?;
    let payload = PAYLOADS.get(usize::from(what) % PAYLOADS.len())?;
    let (join, own) = (REFS.get(usize::from(refs % 4))?, REFS.get(usize::from(refs / 4 % 4))?);
    let text = format!(r#"[{join},{own},"realtime:den","{event}",{payload}]"#);
    decode_text(Version::V2, &text.into()).ok()
}

fn rights(what: u8) -> Rights {
    Rights { broadcast: what & 8 != 0, presence: what & 16 != 0 }
}

fn admitted(what: u8) -> Admitted {
    let claims = Claims::of_role("anon");
    let grant = Grant {
        broadcast_read: what & 2 != 0,
        presence_read: (what & 4 != 0).then_some(what & 32 != 0),
        write: (what & 64 != 0).then(|| rights(what)),
    };
    let changes = match what & 0x81 {
        0 => None,
        1 => Some(Err("no \"table\"".into())),
        _ => Some(Ok(())),
    };
    Admitted {
        token: format!("t{what}").into(),
        claims: Arc::new(claims),
        grant,
        fresh_key: "fresh".into(),
        changes,
    }
}
