use super::*;
use crate::{hub::Interests, id::Topic, wire::Frame};
use serde_json::json;

struct Bench {
    scope: Scope,
    hub: Hub,
    tracker: Tracker,
    room: Room,
}

fn bench() -> Bench {
    let (scope, registry) = (Scope::default(), Registry::default());
    let hub = Hub::new(&registry);
    let tracker = Tracker::start(&scope, hub.clone(), &registry);
    Bench { scope, hub, tracker, room: Room::public(Topic::new("org:demo").unwrap()) }
}

fn meta(n: u32) -> Map<String, Value> {
    json!({ "n": n }).as_object().cloned().unwrap()
}

fn payload(message: &Message) -> Value {
    serde_json::from_slice(&message.object().unwrap()).unwrap()
}

#[tokio::test(start_paused = true)]
async fn burst_of_hosted_updates_is_coalesced_to_the_last() {
    let b = bench();
    let mut heard = b.hub.listen(b.room.clone(), 100);
    for n in 0..1000 {
        b.tracker.set(b.room.clone(), "triage", meta(n % 10));
        b.tracker.set(b.room.clone(), "other", meta(1));
    }
    let first = payload(&heard.recv().await.unwrap().1);
    assert_eq!(first["joins"]["triage"]["metas"][0]["n"], 9);
    assert_eq!(first["joins"]["other"]["metas"][0]["n"], 1);
    b.tracker.set(b.room.clone(), "other", meta(1));
    b.tracker.clear(b.room.clone(), "triage");
    let second = payload(&heard.recv().await.unwrap().1);
    assert_eq!(second["joins"], json!({}));
    assert_eq!(second["leaves"], first["joins"].as_object().map(|j| json!({"triage": j["triage"]})).unwrap());
    b.scope.drain(Duration::from_secs(1)).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn state_plus_later_differences_equals_the_actual_state() {
    let b = bench();
    let outbox = Arc::new(Outbox::new(1000, 1_000_000));
    let mut others: Vec<_> =
        (0..50).map(|n| b.tracker.member(b.room.clone(), SubscriberId(1000 + n))).collect();
    for (n, other) in others.iter_mut().enumerate() {
        other.track(format!("k{n}").into(), meta(0)).await;
        if n == 25 {
            let interests = Interests { broadcast: true, presence: false };
            let subscription = b.hub.subscribe(b.room.clone(), Version::V2, outbox.clone(), interests);
            let request = StateRequest {
                handle: subscription.handle(),
                outbox: outbox.clone(),
                version: Version::V2,
                join_ref: None,
            };
            b.tracker.member(b.room.clone(), subscription.id()).send_state(request);
            std::mem::forget(subscription);
        }
    }
    others.truncate(40);
    let truth: Value = serde_json::from_slice(&b.tracker.snapshot(b.room.clone()).await).unwrap();
    let mut known: Option<Map<String, Value>> = None;
    for frame in outbox.frames().await.unwrap() {
        let Frame::Text(text) = frame else { panic!("binary") };
        let frame: Value = serde_json::from_slice(&text).unwrap();
        match (frame[3].as_str().unwrap(), &mut known) {
            ("presence_state", None) => known = frame[4].as_object().cloned(),
            ("presence_diff", Some(known)) => {
                known.extend(frame[4]["joins"].as_object().cloned().unwrap());
                known.retain(|key, _| frame[4]["leaves"].get(key).is_none());
            }
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(Value::Object(known.unwrap()), truth);
    assert_eq!(truth.as_object().unwrap().len(), 40);
}

/// A channel with a socket: receives presence from its state on.
fn member(b: &Bench, outbox: &Arc<Outbox>) -> (crate::hub::Subscription, PresenceHandle) {
    let interests = Interests { broadcast: true, presence: false };
    let subscription = b.hub.subscribe(b.room.clone(), Version::V2, outbox.clone(), interests);
    let member = b.tracker.member(b.room.clone(), subscription.id());
    let (handle, outbox) = (subscription.handle(), outbox.clone());
    member.send_state(StateRequest { handle, outbox, version: Version::V2, join_ref: None });
    (subscription, member)
}

/// The metas that a client knows after these frames, and the number of frames. Fails if a meta leaves without
/// having joined, or joins twice.
async fn known(outbox: &Outbox) -> (std::collections::BTreeMap<String, String>, usize) {
    let frames = outbox.frames().await.unwrap();
    let mut known: Option<std::collections::BTreeMap<String, String>> = None;
    let metas = |value: &Value| -> Vec<(String, String)> {
        let all = value.as_object().unwrap().iter();
        let refs = all.flat_map(|(key, value)| {
            let metas = value["metas"].as_array().unwrap().iter();
            metas.map(move |meta| (meta["phx_ref"].as_str().unwrap().to_owned(), key.clone()))
        });
        refs.collect()
    };
    for frame in &frames {
        let Frame::Text(text) = frame else { panic!("binary") };
        let frame: Value = serde_json::from_slice(text).unwrap();
        match (frame[3].as_str().unwrap(), &mut known) {
            ("presence_state", None) => known = Some(metas(&frame[4]).into_iter().collect()),
            ("presence_diff", Some(known)) => {
                for (reference, key) in metas(&frame[4]["joins"]) {
                    assert_eq!(known.insert(reference, key), None, "joined twice");
                }
                for (reference, key) in metas(&frame[4]["leaves"]) {
                    assert_eq!(known.remove(&reference), Some(key), "left without having joined");
                }
            }
            other => panic!("{other:?}"),
        }
    }
    (known.unwrap(), frames.len())
}

#[tokio::test(start_paused = true)]
async fn ten_thousand_simultaneous_joins_are_coalesced_and_all_clients_agree() {
    const MEMBERS: usize = 10_000;
    let b = bench();
    let (mut members, mut outboxes) = (Vec::new(), Vec::new());
    for n in 0..MEMBERS {
        let outbox = Arc::new(Outbox::new(100_000, usize::MAX));
        let (subscription, mut member) = member(&b, &outbox);
        member.track(format!("key-{n}").into(), meta(0)).await;
        members.push((subscription, member));
        outboxes.push(outbox);
    }
    // Some channels change their meta, some leave, some return, while earlier differences are still debounced.
    for (n, (_, member)) in members.iter_mut().enumerate().take(3000) {
        member.track(format!("key-{n}").into(), meta(1)).await;
    }
    for (_, member) in members.iter_mut().skip(2000).take(2000) {
        member.untrack();
    }
    tokio::time::sleep(PERIOD_MAX * 2).await;
    let truth: Value = serde_json::from_slice(&b.tracker.snapshot(b.room.clone()).await).unwrap();
    assert_eq!(truth.as_object().unwrap().len(), MEMBERS - 2000);
    let mut frames = 0;
    for outbox in outboxes.iter().step_by(1499) {
        let (known, count) = known(outbox).await;
        frames = frames.max(count);
        let keys: std::collections::BTreeSet<_> = known.into_values().collect();
        assert_eq!(keys.len(), MEMBERS - 2000);
        assert!(keys.iter().all(|key| truth.get(key).is_some()));
    }
    // Without coalescing the first would receive 17,000 differences.
    assert!(frames < 200, "{frames}");
    assert!(b.tracker.snapshot(b.room.clone()).await.len() < MEMBERS * 80);
    // When all sockets close, the room is dropped.
    drop(members);
    tokio::time::sleep(PERIOD_MAX * 2).await;
    assert_eq!(&b.tracker.snapshot(b.room.clone()).await[..], b"{}");
    b.scope.drain(Duration::from_secs(1)).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn large_idle_room_gets_a_difference_at_once() {
    let b = bench();
    let outbox = Arc::new(Outbox::new(100_000, usize::MAX));
    let mut members: Vec<_> = (0..1000).map(|_| member(&b, &outbox)).collect();
    tokio::time::sleep(PERIOD_MAX).await;
    outbox.frames().await.unwrap();
    let before = Instant::now();
    members[0].1.track("ada".into(), meta(1)).await;
    assert_eq!(outbox.frames().await.unwrap().len(), 1000);
    assert_eq!(before.elapsed(), Duration::ZERO);
    members[0].1.track("ada".into(), meta(2)).await;
    members[0].1.track("ada".into(), meta(3)).await;
    assert_eq!(outbox.frames().await.unwrap().len(), 1000, "coalesced");
    assert_eq!(before.elapsed().as_millis(), 25);
}

#[tokio::test(start_paused = true)]
async fn reply_follows_the_difference_of_its_call() {
    for listeners in [1, 1000] {
        let b = bench();
        let outbox = Arc::new(Outbox::new(100_000, usize::MAX));
        let mut members: Vec<_> = (0..listeners).map(|_| member(&b, &outbox)).collect();
        let own = Arc::new(Outbox::new(100, usize::MAX));
        let (_subscription, mut member) = member(&b, &own);
        tokio::time::sleep(PERIOD_MAX).await;
        let reply = |n: u32| Frame::Text(format!("[\"reply {n}\"]").into());
        // In a large room the second and third call are coalesced.
        member.track("ada".into(), meta(1)).await;
        member.reply(own.clone(), reply(1));
        members[0].1.track("bob".into(), meta(1)).await;
        member.track("ada".into(), meta(2)).await;
        member.reply(own.clone(), reply(2));
        member.untrack();
        member.reply(own.clone(), reply(3));
        let (mut present, mut replies) = (HashSet::new(), 0);
        while replies < 3 {
            for frame in own.frames().await.unwrap() {
                let Frame::Text(text) = frame else { panic!("binary") };
                let frame: Value = serde_json::from_slice(&text).unwrap();
                let metas = |part: &Value| {
                    let metas = part["ada"]["metas"].as_array().cloned().unwrap_or_default();
                    metas.into_iter().map(|meta| meta["phx_ref"].to_string()).collect::<Vec<_>>()
                };
                if frame[3] == "presence_state" {
                    present.extend(metas(&frame[4]));
                } else if frame[3] == "presence_diff" {
                    present.extend(metas(&frame[4]["joins"]));
                    metas(&frame[4]["leaves"]).iter().for_each(|left| assert!(present.remove(left)));
                } else {
                    replies += 1;
                    assert_eq!(frame[0], format!("reply {replies}"));
                    // A track that was coalesced with its untrack does not appear.
                    assert!(present.len() == usize::from(replies == 1 || (replies == 2 && listeners == 1)));
                }
            }
        }
        b.scope.drain(Duration::from_secs(1)).await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn closed_channel_loses_its_presence() {
    let b = bench();
    let mut member = b.tracker.member(b.room.clone(), SubscriberId(1));
    member.track("ada".into(), meta(1)).await;
    drop(member);
    assert_eq!(&b.tracker.snapshot(b.room.clone()).await[..], b"{}");
}
