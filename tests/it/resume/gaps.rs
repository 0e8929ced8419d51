//! Gap notices: messages that may be missing are reported.
use super::{HistoryServer, join, next_message, prove, token};
use convoke::{auth::Role, hub::history::Rule};
use serde_json::{Value, json};
use std::time::Duration;

#[tokio::test]
async fn expired_history_is_a_gap_followed_by_the_rest() {
    let folder = tempfile::tempdir().unwrap();
    let server = HistoryServer::with(folder.path(), |config| config.history.bytes_max = 1 << 20).await;
    drop(server.joined("c").await);
    let mut publisher = server.publisher().await;
    let text = "x".repeat(100_000);
    for n in 0..30 {
        let payload = json!({"type": "broadcast", "event": "m", "payload": {"n": n, "text": text}});
        publisher.0.ask("chat:den", "broadcast", payload).await.ok();
    }
    // Old segments are deleted once a second.
    while server.metric("history_bytes") > 1_300_000.0 {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let (mut socket, notice) = server.joined("c").await;
    assert_eq!((&notice["status"], &notice["meta"]["gap"]["reason"]), (&json!("error"), &json!("expired")));
    let number = |member: &str| notice["meta"]["gap"][member].as_str().unwrap().parse::<u64>().unwrap();
    assert!(number("after") < number("until"));
    let (first, replayed) = next_message(&mut socket).await;
    assert!(replayed && first > 15, "{first}");
    for n in first + 1..30 {
        assert_eq!(next_message(&mut socket).await, (n, true), "without another hole");
    }
    assert_eq!(socket.so_far().await, []);
    assert!(server.metric("history_gaps_total") >= 1.0);
}

#[tokio::test]
async fn history_age_is_configured_by_topic() {
    let folder = tempfile::tempdir().unwrap();
    let server = HistoryServer::with(folder.path(), |config| {
        let rule =
            |topic: &str, ms| Rule { topic: topic.into(), history: Duration::from_millis(ms), resume: true };
        config.channels = vec![rule("chat:den", 200), rule("chat:*", 600_000)];
    })
    .await;
    let mut publisher = server.publisher().await;
    publisher.0.join("chat:long", json!({"broadcast": {"ack": true}})).await.ok();
    let mut socket = server.socket("c", "2.0.0").await;
    for topic in ["chat:den", "chat:long"] {
        join(&mut socket, topic, json!({})).await;
    }
    drop(socket);
    for topic in ["chat:den", "chat:long"] {
        publisher.publish_on(topic, 1).await;
    }
    tokio::time::sleep(Duration::from_millis(250)).await;
    for topic in ["chat:den", "chat:long"] {
        publisher.publish_on(topic, 2).await;
    }
    let mut socket = server.socket("c", "2.0.0").await;
    assert_eq!(join(&mut socket, "chat:den", json!({})).await["meta"]["gap"]["reason"], "expired");
    assert_eq!(next_message(&mut socket).await, (2, true));
    assert_eq!(join(&mut socket, "chat:long", json!({})).await["meta"]["gap"], Value::Null);
    assert_eq!(next_message(&mut socket).await, (1, true));
    assert_eq!(next_message(&mut socket).await, (2, true));
}

#[tokio::test]
async fn client_id_with_another_token_has_no_position() {
    let folder = tempfile::tempdir().unwrap();
    let server = HistoryServer::start(folder.path()).await;
    let mine = token(Role::Authenticated, Some("me"));
    let mut socket = server.socket_of("c", "2.0.0", &mine).await;
    join(&mut socket, "chat:den", json!({})).await;
    prove(&mut socket).await;
    drop(socket);
    let mut publisher = server.publisher().await;
    publisher.publish(1).await;
    for stranger in [token(Role::Authenticated, Some("you")), token(Role::Anon, None)] {
        let mut socket = server.socket_of("c", "2.0.0", &stranger).await;
        let notice = join(&mut socket, "chat:den", json!({})).await;
        assert_eq!(notice["meta"]["gap"]["reason"], "unknown");
        prove(&mut socket).await;
    }
    let mut socket = server.socket_of("c", "2.0.0", &mine).await;
    assert_eq!(join(&mut socket, "chat:den", json!({})).await["meta"]["gap"], Value::Null);
    assert_eq!(next_message(&mut socket).await, (1, true), "its position is unchanged");
}

#[tokio::test]
async fn concurrent_use_of_one_client_id_is_reported_to_both() {
    let folder = tempfile::tempdir().unwrap();
    let server = HistoryServer::start(folder.path()).await;
    let (mut first, _) = server.joined("c").await;
    assert_eq!(first.so_far().await, []);
    let (mut second, notice) = server.joined("c").await;
    assert_eq!(notice["meta"]["gap"], Value::Null);
    let notice = first.so_far().await;
    assert_eq!(notice.len(), 1, "{notice:?}");
    assert_eq!((&notice[0].event[..], &notice[0].payload["status"]), ("system", &json!("error")));
    assert_eq!(first.so_far().await, [], "once");
    prove(&mut second).await;
    drop((first, second));
    let (mut third, notice) = server.joined("c").await;
    assert_eq!((&notice["status"], &notice["meta"]["gap"]["reason"]), (&json!("error"), &json!("contested")));
    prove(&mut third).await;
    drop(third);
    let (_fourth, notice) = server.joined("c").await;
    assert_eq!(notice["meta"]["gap"], Value::Null, "it knows");
}

/// The heartbeat of a cut connection, read after the client has returned.
#[tokio::test]
async fn late_heartbeat_does_not_contest_the_position() {
    let folder = tempfile::tempdir().unwrap();
    let server = HistoryServer::start(folder.path()).await;
    let (mut first, _) = server.joined("c").await;
    assert_eq!(first.so_far().await, []);
    let (mut second, _) = server.joined("c").await;
    let before = server.metric("gateway_frames_received_total");
    first.send(Value::Null, json!("late"), "phoenix", "heartbeat", json!({})).await;
    while server.metric("gateway_frames_received_total") <= before {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    prove(&mut second).await;
    drop(second);
    let (_third, notice) = server.joined("c").await;
    assert_eq!(notice["meta"]["gap"], Value::Null, "no second connection was alive");
    drop(first);
}

#[tokio::test]
async fn full_disk_delays_no_message_and_is_reported_as_a_gap() {
    let folder = tempfile::tempdir().unwrap();
    let server = HistoryServer::start(folder.path()).await;
    let (mut socket, _) = server.joined("c").await;
    drop(server.joined("away").await);
    // The next segment of the journal is a device that is always full.
    let next = folder.path().join("history/0000000001.log");
    std::os::unix::fs::symlink("/dev/full", &next).unwrap();
    let mut publisher = server.publisher().await;
    publisher.publish(1).await;
    assert_eq!(next_message(&mut socket).await, (1, false));
    assert!(server.metric("history_lost_total") >= 1.0);
    let mut number = 1;
    while server.metric("history_degraded") > 0.0 {
        number += 1;
        publisher.publish(number).await;
        assert_eq!(next_message(&mut socket).await, (number.into(), false));
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    publisher.publish(number + 1).await;
    assert_eq!(next_message(&mut socket).await, (u64::from(number) + 1, false));
    let server = server.restart().await;
    let (mut away, notice) = server.joined("away").await;
    assert_eq!((&notice["status"], &notice["meta"]["gap"]["reason"]), (&json!("error"), &json!("expired")));
    let (mut last, _) = next_message(&mut away).await;
    while last < u64::from(number) + 1 {
        last = next_message(&mut away).await.0;
    }
    assert_eq!(away.so_far().await, []);
}

#[tokio::test]
async fn private_history_needs_the_right_to_read_on_resume() {
    let folder = tempfile::tempdir().unwrap();
    let server = HistoryServer::start(folder.path()).await;
    let service = token(Role::ServiceRole, None);
    let mut socket = server.socket_of("c", "2.0.0", &service).await;
    let private = json!({"private": true, "broadcast": {"ack": true}});
    join(&mut socket, "chat:den", private.clone()).await;
    let mut publisher = server.socket_of("", "2.0.0", &service).await;
    publisher.join("chat:den", private.clone()).await.ok();
    drop(socket);
    publisher.ask("chat:den", "broadcast", super::message(1)).await.ok();
    let (mut public, notice) = server.joined("c").await;
    assert_eq!(notice["meta"]["gap"]["reason"], "unknown", "another room");
    assert_eq!(public.so_far().await, []);
    let mut denied = server.socket("c", "2.0.0").await;
    assert!(denied.join("chat:den", private.clone()).await.reason().starts_with("Unauthorized"));
    assert_eq!(denied.so_far().await, []);
    let mut socket = server.socket_of("c", "2.0.0", &service).await;
    assert_eq!(join(&mut socket, "chat:den", private).await["meta"]["gap"], Value::Null);
    assert_eq!(next_message(&mut socket).await, (1, true));
}
