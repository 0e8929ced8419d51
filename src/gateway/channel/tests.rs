use super::{waiting::FRAME_BYTES, *};
use crate::access::{Grant, Rights};
use crate::wire::{Version, decode_text};
use proptest::prelude::*;
use serde_json::Value;
use std::time::Duration;

const LIMITS: Limits = Limits {
    payload_bytes_max: 1000,
    presence_calls: Some((5, Duration::from_secs(30))),
    presence_enabled: false,
    changes_max: 10,
};

fn frame(join_ref: &str, reference: &str, event: &str, payload: Value) -> ChannelEvent {
    let text = json!([join_ref, reference, "realtime:den", event, payload]).to_string();
    ChannelEvent::Frame(decode_text(Version::V2, &text.into()).unwrap())
}

fn admitted(grant: Grant) -> Admitted {
    let claims = Claims::of_role("anon");
    Admitted { token: "t".into(), claims: Arc::new(claims), grant, fresh_key: "fresh".into(), changes: None }
}

struct Bench {
    channel: Channel,
    now: Instant,
}

impl Bench {
    fn new() -> Self {
        Self { channel: Channel::new("den"), now: Instant::now() }
    }
    fn on(&mut self, event: ChannelEvent) -> Vec<Action> {
        let mut out = Vec::new();
        self.channel.on(event, &LIMITS, self.now, &mut out);
        out
    }
    fn joined(config: Value) -> Self {
        let mut bench = Self::new();
        bench.on(frame("1", "1", "phx_join", json!({ "config": config })));
        bench.on(ChannelEvent::Checked(Ok(admitted(Grant::ALL))));
        bench
    }
}

/// The short names of the actions, with their refs, without `Note`.
fn names(actions: &[Action]) -> Vec<String> {
    let refs = |join: &Option<Ref>, own: &Option<Ref>| {
        let text = |r: &Option<Ref>| r.as_ref().map_or("-".to_owned(), |r| r.as_json().replace('"', ""));
        format!("{}/{}", text(join), text(own))
    };
    let name = |action: &Action| match action {
        Action::Reply { join_ref, reference, ok, .. } => {
            format!("{} {}", if *ok { "ok" } else { "error" }, refs(join_ref, reference))
        }
        Action::Push { join_ref, reference, event, .. } => format!("{event} {}", refs(join_ref, reference)),
        other => format!("{other:?}").split([' ', '(']).next().unwrap_or_default().to_owned(),
    };
    actions.iter().filter(|action| !matches!(action, Action::RecordRejection { .. })).map(name).collect()
}

#[test]
fn leave_during_a_join_is_answered_after_it() {
    let mut bench = Bench::new();
    assert_eq!(names(&bench.on(frame("1", "1", "phx_join", json!({"config": {}})))), ["Check"]);
    assert!(bench.on(frame("1", "2", "phx_leave", json!({}))).is_empty());
    let out = bench.on(ChannelEvent::Checked(Ok(admitted(Grant::ALL))));
    assert_eq!(names(&out), ["ok 1/1", "Enter", "DeletePositions", "Exit", "ok 1/2", "phx_close 1/1"]);
    assert!(bench.channel.is_idle());
}

#[test]
fn second_join_ends_the_first_even_if_it_fails() {
    let mut bench = Bench::joined(json!({}));
    assert_eq!(names(&bench.on(frame("5", "5", "phx_join", json!({"config": {}})))), ["Exit", "Check"]);
    let out = bench.on(ChannelEvent::Checked(Ok(admitted(Grant::ALL))));
    assert_eq!(names(&out), ["ok 5/5", "phx_close 1/1", "Enter"]);

    bench.on(frame("6", "6", "phx_join", json!({"config": {}})));
    let refusal = Refusal::new("No: no");
    assert_eq!(names(&bench.on(ChannelEvent::Checked(Err(refusal)))), ["Delay"]);
    assert_eq!(names(&bench.on(ChannelEvent::DelayOver)), ["error 6/6", "phx_close 5/5"]);
    assert!(bench.channel.is_idle());
}

#[test]
fn join_without_a_join_ref_uses_its_ref_for_pushes() {
    let mut bench = Bench::new();
    let join =
        json!([null, "7", "realtime:den", "phx_join", {"config": {"broadcast": {"ack": true}}}]).to_string();
    bench.on(ChannelEvent::Frame(decode_text(Version::V2, &join.into()).unwrap()));
    assert_eq!(names(&bench.on(ChannelEvent::Checked(Ok(admitted(Grant::ALL))))), ["ok -/7", "Enter"]);
    assert_eq!(names(&bench.on(frame("x", "8", "broadcast", json!({})))), ["Publish", "ok 7/8"]);
    assert_eq!(
        names(&bench.on(frame("x", "9", "phx_leave", json!({})))),
        ["DeletePositions", "Exit", "ok 7/9", "phx_close -/-"]
    );
}

#[test]
fn join_over_the_rate_closes_the_socket_after_its_reply() {
    let mut bench = Bench::new();
    bench.on(frame("1", "1", "phx_join", json!({"config": {}})));
    bench.on(ChannelEvent::Checked(Err(Refusal { close: Some(1001), ..Refusal::new("no") })));
    let out = bench.on(ChannelEvent::DelayOver);
    assert_eq!(
        (names(&out[..1]), &out[1..]),
        (vec!["error 1/1".to_owned()], &[Action::CloseSocket(1001)][..])
    );
}

#[test]
fn leave_of_an_older_join_is_ignored() {
    let mut bench = Bench::joined(json!({}));
    assert!(bench.on(frame("0", "2", "phx_leave", json!({}))).is_empty());
    assert_eq!(bench.on(frame("1", "3", "phx_leave", json!({}))).len(), 4);
}

#[test]
fn token_without_a_previous_read_right_ends_the_channel() {
    let new = |presence_read, broadcast_read| {
        let token = Admitted {
            token: "new".into(),
            ..admitted(Grant { presence_read: Some(presence_read), broadcast_read, ..Grant::ALL })
        };
        ChannelEvent::Renewed(Ok(token))
    };
    let message =
        |out: &[Action]| match out.iter().find(|a| matches!(a, Action::Push { event: "system", .. })) {
            Some(Action::Push { payload, .. }) => {
                serde_json::from_str::<Value>(payload).unwrap()["message"].as_str().unwrap().to_owned()
            }
            _ => panic!("no system message in {out:?}"),
        };
    let mut bench = Bench::joined(json!({"private": true}));
    assert_eq!(names(&bench.on(frame("1", "2", "access_token", json!({"access_token": "new"})))), ["Verify"]);
    let out = bench.on(new(false, true));
    assert_eq!(message(&out), "You no longer have permission to read from this Channel topic: den");
    assert!(bench.channel.is_idle());

    let mut bench = Bench::joined(json!({"private": true}));
    let out = bench.on(new(false, false));
    assert_eq!(message(&out), "You do not have permissions to read from this Channel topic: den");
}

#[test]
fn gained_read_right_applies_at_once() {
    let mut bench = Bench::new();
    bench.on(frame(
        "1",
        "1",
        "phx_join",
        json!({"config": {"private": true, "presence": {"enabled": true}}}),
    ));
    bench.on(ChannelEvent::Checked(Ok(admitted(Grant { broadcast_read: false, ..Grant::ALL }))));
    let out = bench.on(ChannelEvent::Renewed(Ok(admitted(Grant::ALL))));
    assert_eq!(
        out,
        [Action::SetInterests(Interests { broadcast: true, presence: true }), Action::WatchToken]
    );
}

#[test]
fn presence_calls_over_the_limit_end_the_channel() {
    let mut bench = Bench::joined(json!({"presence": {"enabled": true, "key": "ada"}}));
    let track =
        |n: u32| frame("1", &n.to_string(), "presence", json!({"event": "TRACK", "payload": {"n": n}}));
    for n in 0..5 {
        assert_eq!(names(&bench.on(track(n))), ["Track".to_owned(), format!("ok 1/{n}")]);
    }
    bench.now += std::time::Duration::from_secs(30);
    assert_eq!(bench.on(track(5)).len(), 2, "a new window");
    for n in 6..10 {
        bench.on(track(n));
    }
    assert_eq!(names(&bench.on(track(10))), ["Exit", "system 1/-", "phx_close 1/1"]);
}

#[test]
fn invalid_presence_is_refused_with_a_reason_and_valid_presence_kept() {
    let mut bench = Bench::joined(json!({"presence": {"enabled": true, "key": "ada"}}));
    let track = |reference: &str, meta: &str| {
        let ChannelEvent::Frame(mut inbound) = frame("1", reference, "presence", json!({})) else { panic!() };
        inbound.payload = Payload::Json(format!("{{\"event\":\"track\",\"payload\":{meta}}}").into());
        ChannelEvent::Frame(inbound)
    };
    let deep = format!("{{\"a\":{}1{}}}", "[".repeat(200), "]".repeat(200));
    for (meta, why) in [
        (
            "{\"n\":123456789012345678901234567890}",
            "n: the number 123456789012345678901234567890 has more digits",
        ),
        (deep.as_str(), "nested deeper than 127 levels"),
        ("[1]", "must be a map"),
    ] {
        let actions = bench.on(track("2", meta));
        assert_eq!(names(&actions), ["error 1/2"], "{meta}");
        assert!(format!("{actions:?}").contains(why), "{actions:?}");
    }
    assert_eq!(names(&bench.on(track("3", "{\"n\":18446744073709551615}"))), ["Track", "ok 1/3"]);
}

#[test]
fn write_without_the_right_is_refused_and_the_channel_stays() {
    let mut bench = Bench::new();
    bench.on(frame("1", "1", "phx_join", json!({"config": {"private": true, "broadcast": {"ack": true}}})));
    let reader = Grant { write: Some(Rights::NONE), ..Grant::ALL };
    bench.on(ChannelEvent::Checked(Ok(admitted(reader))));
    assert_eq!(names(&bench.on(frame("1", "2", "broadcast", json!({})))), ["error 1/2"]);
    assert_eq!(names(&bench.on(frame("1", "3", "presence", json!({"event": "track"})))), ["error 1/3"]);
    assert!(!bench.channel.is_idle());
}

#[test]
fn waiting_frames_count_with_the_memory_that_they_take() {
    let mut bench = Bench::new();
    bench.on(frame("1", "1", "phx_join", json!({"config": {}})));
    for waiting in 1..4 {
        bench.on(frame("1", "2", "broadcast", json!({})));
        assert!(
            bench.channel.waiting_bytes() > waiting * FRAME_BYTES,
            "not the two bytes of a payload alone"
        );
    }
    bench.on(ChannelEvent::Checked(Ok(admitted(Grant::ALL))));
    assert_eq!(bench.channel.waiting_bytes(), 0);
}

fn events() -> impl Strategy<Value = Vec<u8>> {
    proptest::collection::vec(0u8..19, 0..60)
}

proptest! {
    /// Any order of events: every join is answered once, and every entered room is left.
    #[test]
    fn every_join_is_answered_and_every_room_left(steps in events()) {
        let mut bench = Bench::new();
        let (mut joins, mut replies, mut inside) = (0, 0, 0i32);
        for (n, step) in steps.into_iter().chain([12, 13, 12, 13, 15, 12, 13]).enumerate() {
            let own = n.to_string();
            let event = match step {
                0..=2 => { joins += u32::from(bench.channel.waiting.len() < WAITING_MAX); frame(&own, &own, "phx_join", json!({"config": {"presence": {"enabled": true}}})) }
                3 => { joins += 1; frame(&own, &own, "phx_join", json!([])) }
                4 => frame("0", &own, "phx_leave", json!({})),
                5 => frame(&own, &own, "broadcast", json!({})),
                6 => frame(&own, &own, "presence", json!({"event": "track"})),
                7 => frame(&own, &own, "presence", json!({"event": 3})),
                8 => frame(&own, &own, "access_token", json!({"access_token": "new"})),
                9 => ChannelEvent::Renewed(Err("no".into())),
                10 => ChannelEvent::Renewed(Ok(admitted(Grant::ALL))),
                11 => ChannelEvent::Shutdown("bye".into()),
                12 => ChannelEvent::Checked(Ok(admitted(Grant::ALL))),
                14 => ChannelEvent::Checked(Err(Refusal::new("no"))),
                16 => ChannelEvent::PolicyAnswer(Ok(PolicyAnswer { write: Some(Rights::ALL), presence_read: Some(true) })),
                17 => ChannelEvent::PolicyAnswer(Err(access::Error::Busy)),
                18 => ChannelEvent::Checked(Ok(admitted(Grant { presence_read: None, write: None, ..Grant::ALL }))),
                _ => ChannelEvent::DelayOver,
            };
            for action in bench.on(event) {
                match action {
                    Action::Enter { .. } => { inside += 1; }
                    Action::Exit => { inside -= 1; }
                    Action::Reply { join_ref, reference, .. } if join_ref == reference => replies += 1,
                    _ => {}
                }
                prop_assert!((0..=1).contains(&inside));
            }
            let waiting: usize = bench.channel.waiting.iter().map(frame_bytes).sum();
            prop_assert_eq!(bench.channel.waiting_bytes(), waiting);
        }
        // Finishes what is still pending.
        for _ in 0..200 {
            let renewed = ChannelEvent::Renewed(Ok(admitted(Grant::ALL)));
            let notified = ChannelEvent::PolicyAnswer(Ok(PolicyAnswer { write: Some(Rights::NONE), presence_read: Some(false) }));
            for event in [ChannelEvent::Checked(Ok(admitted(Grant::ALL))), ChannelEvent::DelayOver, renewed, notified] {
                for action in bench.on(event) {
                    if let Action::Reply { join_ref, reference, .. } = action {
                        replies += u32::from(join_ref == reference);
                    }
                }
            }
        }
        prop_assert!(bench.channel.waiting.is_empty());
        prop_assert!(replies >= joins, "{replies} replies to {joins} joins");
    }
}

proptest! {
    #[test]
    fn any_events_in_any_state_keep_the_invariants(data in proptest::collection::vec(any::<u8>(), 0..400)) {
        super::drive::fuzz(&data);
    }
}
