//! What cannot be proved to be all is told.
use super::{Kept, hear, join, prove, token};
use convoke::{auth::Role, hub::history::Rule};
use serde_json::{Value, json};
use std::time::Duration;

#[tokio::test]
async fn a_history_that_does_not_reach_back_is_a_gap_and_what_is_left_follows_it() {
    let folder = tempfile::tempdir().unwrap();
    let kept = Kept::with(folder.path(), |config| config.history.bytes_max = 1 << 20).await;
    drop(kept.joined("c").await);
    let mut speaker = kept.speaker().await;
    let text = "x".repeat(100_000);
    for n in 0..30 {
        let payload = json!({"type": "broadcast", "event": "m", "payload": {"n": n, "text": text}});
        speaker.0.ask("chat:den", "broadcast", payload).await.ok();
    }
    // Old segments go once a second.
    while kept.metric("history_bytes") > 1_300_000.0 {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let (mut socket, told) = kept.joined("c").await;
    assert_eq!((&told["status"], &told["meta"]["gap"]["reason"]), (&json!("error"), &json!("expired")));
    let number = |member: &str| told["meta"]["gap"][member].as_str().unwrap().parse::<u64>().unwrap();
    assert!(number("after") < number("until"));
    let (first, replayed) = hear(&mut socket).await;
    assert!(replayed && first > 15, "{first}");
    for n in first + 1..30 {
        assert_eq!(hear(&mut socket).await, (n, true), "without another hole");
    }
    assert_eq!(socket.so_far().await, []);
    assert!(kept.metric("history_gaps_total") >= 1.0);
}

#[tokio::test]
async fn age_is_by_topic() {
    let folder = tempfile::tempdir().unwrap();
    let kept = Kept::with(folder.path(), |config| {
        let rule =
            |topic: &str, ms| Rule { topic: topic.into(), history: Duration::from_millis(ms), resume: true };
        config.channels = vec![rule("chat:den", 200), rule("chat:*", 600_000)];
    })
    .await;
    let mut speaker = kept.speaker().await;
    speaker.0.join("chat:long", json!({"broadcast": {"ack": true}})).await.ok();
    let mut socket = kept.socket("c", "2.0.0").await;
    for topic in ["chat:den", "chat:long"] {
        join(&mut socket, topic, json!({})).await;
    }
    drop(socket);
    for topic in ["chat:den", "chat:long"] {
        speaker.say_on(topic, 1).await;
    }
    tokio::time::sleep(Duration::from_millis(250)).await;
    for topic in ["chat:den", "chat:long"] {
        speaker.say_on(topic, 2).await;
    }
    let mut socket = kept.socket("c", "2.0.0").await;
    assert_eq!(join(&mut socket, "chat:den", json!({})).await["meta"]["gap"]["reason"], "expired");
    assert_eq!(hear(&mut socket).await, (2, true));
    assert_eq!(join(&mut socket, "chat:long", json!({})).await["meta"]["gap"], Value::Null);
    assert_eq!(hear(&mut socket).await, (1, true));
    assert_eq!(hear(&mut socket).await, (2, true));
}

#[tokio::test]
async fn a_client_id_is_of_no_use_with_another_token() {
    let folder = tempfile::tempdir().unwrap();
    let kept = Kept::start(folder.path()).await;
    let mine = token(Role::Authenticated, Some("me"));
    let mut socket = kept.socket_of("c", "2.0.0", &mine).await;
    join(&mut socket, "chat:den", json!({})).await;
    prove(&mut socket).await;
    drop(socket);
    let mut speaker = kept.speaker().await;
    speaker.say(1).await;
    for stranger in [token(Role::Authenticated, Some("you")), token(Role::Anon, None)] {
        let mut socket = kept.socket_of("c", "2.0.0", &stranger).await;
        let told = join(&mut socket, "chat:den", json!({})).await;
        assert_eq!(told["meta"]["gap"]["reason"], "unknown");
        prove(&mut socket).await;
    }
    let mut socket = kept.socket_of("c", "2.0.0", &mine).await;
    assert_eq!(join(&mut socket, "chat:den", json!({})).await["meta"]["gap"], Value::Null);
    assert_eq!(hear(&mut socket).await, (1, true), "and nobody moved its position");
}

#[tokio::test]
async fn one_id_used_twice_at_a_time_is_told_to_both() {
    let folder = tempfile::tempdir().unwrap();
    let kept = Kept::start(folder.path()).await;
    let (mut first, _) = kept.joined("c").await;
    assert_eq!(first.so_far().await, []);
    let (mut second, told) = kept.joined("c").await;
    assert_eq!(told["meta"]["gap"], Value::Null);
    let told = first.so_far().await;
    assert_eq!(told.len(), 1, "{told:?}");
    assert_eq!((&told[0].event[..], &told[0].payload["status"]), ("system", &json!("error")));
    assert_eq!(first.so_far().await, [], "once");
    prove(&mut second).await;
    drop((first, second));
    let (mut third, told) = kept.joined("c").await;
    assert_eq!((&told["status"], &told["meta"]["gap"]["reason"]), (&json!("error"), &json!("contested")));
    prove(&mut third).await;
    drop(third);
    let (_fourth, told) = kept.joined("c").await;
    assert_eq!(told["meta"]["gap"], Value::Null, "it knows");
}

/// The heartbeat of a connection that was cut, read when the client is back already.
#[tokio::test]
async fn a_heartbeat_that_comes_late_contests_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let kept = Kept::start(folder.path()).await;
    let (mut first, _) = kept.joined("c").await;
    assert_eq!(first.so_far().await, []);
    let (mut second, _) = kept.joined("c").await;
    let before = kept.metric("gateway_frames_received_total");
    first.send(Value::Null, json!("late"), "phoenix", "heartbeat", json!({})).await;
    while kept.metric("gateway_frames_received_total") <= before {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    prove(&mut second).await;
    drop(second);
    let (_third, told) = kept.joined("c").await;
    assert_eq!(told["meta"]["gap"], Value::Null, "nobody was there twice");
    drop(first);
}

#[tokio::test]
async fn a_disk_that_takes_nothing_stops_no_message_and_is_told() {
    let folder = tempfile::tempdir().unwrap();
    let kept = Kept::start(folder.path()).await;
    let (mut socket, _) = kept.joined("c").await;
    drop(kept.joined("away").await);
    // The next segment of the journal is a device that is always full.
    let next = folder.path().join("history/0000000001.log");
    std::os::unix::fs::symlink("/dev/full", &next).unwrap();
    let mut speaker = kept.speaker().await;
    speaker.say(1).await;
    assert_eq!(hear(&mut socket).await, (1, false));
    assert!(kept.metric("history_lost_total") >= 1.0);
    let mut mended = 1;
    while kept.metric("history_degraded") > 0.0 {
        mended += 1;
        speaker.say(mended).await;
        assert_eq!(hear(&mut socket).await, (mended.into(), false));
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    speaker.say(mended + 1).await;
    assert_eq!(hear(&mut socket).await, (u64::from(mended) + 1, false));
    let kept = kept.again().await;
    let (mut away, told) = kept.joined("away").await;
    assert_eq!((&told["status"], &told["meta"]["gap"]["reason"]), (&json!("error"), &json!("expired")));
    let (mut last, _) = hear(&mut away).await;
    while last < u64::from(mended) + 1 {
        last = hear(&mut away).await.0;
    }
    assert_eq!(away.so_far().await, []);
}

#[tokio::test]
async fn a_private_history_needs_the_right_to_read_again() {
    let folder = tempfile::tempdir().unwrap();
    let kept = Kept::start(folder.path()).await;
    let service = token(Role::ServiceRole, None);
    let mut socket = kept.socket_of("c", "2.0.0", &service).await;
    let private = json!({"private": true, "broadcast": {"ack": true}});
    join(&mut socket, "chat:den", private.clone()).await;
    let mut speaker = kept.socket_of("", "2.0.0", &service).await;
    speaker.join("chat:den", private.clone()).await.ok();
    drop(socket);
    speaker.ask("chat:den", "broadcast", super::message(1)).await.ok();
    let (mut public, told) = kept.joined("c").await;
    assert_eq!(told["meta"]["gap"]["reason"], "unknown", "another room");
    assert_eq!(public.so_far().await, []);
    let mut denied = kept.socket("c", "2.0.0").await;
    assert!(denied.join("chat:den", private.clone()).await.reason().starts_with("Unauthorized"));
    assert_eq!(denied.so_far().await, []);
    let mut socket = kept.socket_of("c", "2.0.0", &service).await;
    assert_eq!(join(&mut socket, "chat:den", private).await["meta"]["gap"], Value::Null);
    assert_eq!(hear(&mut socket).await, (1, true));
}
