//! What a returning client receives.
use super::{HistoryServer, Publisher, join, message, next_message, prove, token};
use convoke::auth::Role;
use serde_json::{Value, json};

async fn publish(publisher: &mut Publisher, numbers: std::ops::RangeInclusive<u32>) {
    for n in numbers {
        publisher.publish(n).await;
    }
}

#[tokio::test]
async fn returning_client_gets_missed_messages_then_live_ones() {
    let folder = tempfile::tempdir().unwrap();
    let server = HistoryServer::start(folder.path()).await;
    let mut publisher = server.publisher().await;
    publisher.publish(0).await;
    let (mut socket, notice) = server.joined("c").await;
    assert_eq!((&notice["status"], &notice["meta"]["gap"]["reason"]), (&json!("ok"), &json!("unknown")));
    publish(&mut publisher, 1..=3).await;
    for n in 1..=3 {
        assert_eq!(next_message(&mut socket).await, (n, false), "nothing from before it was here");
    }
    prove(&mut socket).await;
    drop(socket);
    publish(&mut publisher, 4..=300).await;
    let (mut socket, notice) = server.joined("c").await;
    assert_eq!((&notice["status"], &notice["meta"]["gap"]), (&json!("ok"), &Value::Null));
    publish(&mut publisher, 301..=302).await;
    for n in 4..=300 {
        assert_eq!(next_message(&mut socket).await, (n, true));
    }
    for n in 301..=302 {
        assert_eq!(next_message(&mut socket).await.0, n);
    }
    // A restart, and a client that returns before anything is published.
    prove(&mut socket).await;
    drop(socket);
    publish(&mut publisher, 303..=305).await;
    let server = server.restart().await;
    let mut publisher = server.publisher().await;
    let (mut socket, notice) = server.joined("c").await;
    assert_eq!(notice["meta"]["gap"], Value::Null);
    publisher.publish(306).await;
    for n in 303..=305 {
        assert_eq!(next_message(&mut socket).await, (n, true));
    }
    // The message may have been replayed or live; later ones are live.
    assert_eq!(next_message(&mut socket).await.0, 306);
    let mut n = 307;
    loop {
        publisher.publish(n).await;
        let (heard, replayed) = next_message(&mut socket).await;
        assert_eq!(heard, u64::from(n));
        if !replayed {
            break;
        }
        n += 1;
    }
    assert_eq!(socket.so_far().await, []);
}

#[tokio::test]
async fn unproved_messages_are_replayed_and_proved_ones_are_not() {
    let folder = tempfile::tempdir().unwrap();
    let server = HistoryServer::start(folder.path()).await;
    let mut publisher = server.publisher().await;
    let (mut socket, _) = server.joined("c").await;
    publisher.publish(1).await;
    assert_eq!(next_message(&mut socket).await, (1, false));
    prove(&mut socket).await;
    publisher.publish(2).await;
    assert_eq!(next_message(&mut socket).await, (2, false));
    // One heartbeat proves nothing about messages enqueued before its own reply.
    assert_eq!(socket.so_far().await, []);
    drop(socket);
    let (mut socket, _) = server.joined("c").await;
    assert_eq!(next_message(&mut socket).await, (2, true));
    assert_eq!(socket.so_far().await, []);
}

#[tokio::test]
async fn replay_preserves_payloads_for_both_serializers() {
    let folder = tempfile::tempdir().unwrap();
    let server = HistoryServer::start(folder.path()).await;
    let mut publisher = server.publisher().await;
    let mut old = server.socket("old", "1.0.0").await;
    let mut new = server.socket("new", "2.0.0").await;
    for socket in [&mut old, &mut new] {
        join(socket, "chat:den", json!({})).await;
    }
    drop((old, new));
    let push = |encoding: u8, data: &[u8]| {
        let mut frame = vec![3, 0, 0, 17, 3, 0, encoding];
        frame.extend(b"realtime:chat:denraw");
        frame.extend(data);
        frame
    };
    publisher.0.message(push(0, b"\xff\x00")).await;
    publisher.0.message(push(1, b"[1, 2]")).await;
    assert_eq!(publisher.0.next().await.payload["status"], "ok");
    assert_eq!(publisher.0.next().await.payload["status"], "ok");
    let odd = json!({"type": "broadcast", "event": "m", "payload": {"n": 3}, "more": [null], "meta": {"id": "own"}});
    publisher.0.ask("chat:den", "broadcast", odd).await.ok();
    publisher.publish(4).await;

    let mut new = server.socket("new", "2.0.0").await;
    join(&mut new, "chat:den", json!({})).await;
    for (encoding, data) in [(0, &b"\xff\x00"[..]), (1, b"[1, 2]")] {
        let frame = new.binary().await;
        let [4, 17, 3, meta, got, ..] = frame[..] else { panic!("{frame:?}") };
        let rest = &frame[5 + 20..];
        let (meta, rest) = rest.split_at(meta.into());
        let meta: Value = serde_json::from_slice(meta).unwrap();
        assert_eq!((got, rest, &meta["replayed"]), (encoding, data, &json!(true)));
    }
    let got = new.next().await;
    assert_eq!(got.payload["meta"], json!({"id": "own", "replayed": true}));
    assert_eq!((&got.payload["more"], &got.payload["payload"]), (&json!([null]), &json!({"n": 3})));
    assert_eq!(next_message(&mut new).await, (4, true));

    let mut old = server.socket("old", "1.0.0").await;
    join(&mut old, "chat:den", json!({})).await;
    let got = old.next().await.payload;
    assert_eq!(
        (&got["event"], &got["payload"], &got["meta"]["replayed"]),
        (&json!("raw"), &json!([1, 2]), &json!(true))
    );
    assert_eq!(old.next().await.payload["payload"]["n"], 3);
    assert_eq!(next_message(&mut old).await, (4, true));
}

#[tokio::test]
async fn own_broadcasts_are_replayed_only_with_self() {
    let folder = tempfile::tempdir().unwrap();
    let server = HistoryServer::start(folder.path()).await;
    let (mut socket, _) = server.joined("c").await;
    socket.push("chat:den", "broadcast", message(1)).await;
    assert_eq!(socket.so_far().await, []);
    server.channels.hub.wait_delivered().await;
    drop(socket);
    let (mut socket, notice) = server.joined("c").await;
    assert_eq!(notice["meta"]["gap"], Value::Null);
    assert_eq!(socket.so_far().await, []);
    drop(socket);
    let mut socket = server.socket("c", "2.0.0").await;
    join(&mut socket, "chat:den", json!({"broadcast": {"self": true}})).await;
    assert_eq!(next_message(&mut socket).await, (1, true));
}

#[tokio::test]
async fn http_broadcasts_are_kept_before_the_response() {
    let folder = tempfile::tempdir().unwrap();
    let server = HistoryServer::start(folder.path()).await;
    drop(server.joined("c").await);
    let body = json!({"messages": [{"topic": "chat:den", "event": "m", "payload": {"n": 1}}]});
    let post = crate::realtime::http().post(server.http("/api/broadcast"));
    let answer = post.header("apikey", token(Role::Anon, None)).json(&body).send().await.unwrap();
    assert_eq!(answer.status(), 202);
    let server = server.restart().await;
    let (mut socket, _) = server.joined("c").await;
    assert_eq!(next_message(&mut socket).await, (1, true));
}

#[tokio::test]
async fn leave_deletes_the_position_and_an_abandoned_join_does_not() {
    let folder = tempfile::tempdir().unwrap();
    let server = HistoryServer::start(folder.path()).await;
    let mut publisher = server.publisher().await;
    let (mut socket, _) = server.joined("c").await;
    let own = socket.refs.to_string();
    socket.push("chat:den", "phx_leave", json!({})).await;
    // The leave without the join_ref is not one of this join.
    assert_eq!(socket.so_far().await, []);
    socket.send(json!(own), json!("l"), "realtime:chat:den", "phx_leave", json!({})).await;
    socket.until("phx_close").await;
    publisher.publish(1).await;
    let notice = join(&mut socket, "chat:den", json!({})).await;
    let own = socket.refs.to_string();
    assert_eq!(notice["meta"]["gap"], Value::Null, "nothing proves that it knew that it was in");
    assert_eq!(next_message(&mut socket).await, (1, true));
    prove(&mut socket).await;
    socket.send(json!(own), json!("l"), "realtime:chat:den", "phx_leave", json!({})).await;
    socket.until("phx_close").await;
    publisher.publish(2).await;
    let notice = join(&mut socket, "chat:den", json!({})).await;
    assert_eq!(notice["meta"]["gap"]["reason"], "unknown");
    assert_eq!(socket.so_far().await, []);
}

#[tokio::test]
async fn topics_without_history_and_clients_without_id_are_unaffected() {
    let folder = tempfile::tempdir().unwrap();
    let server = HistoryServer::start(folder.path()).await;
    let mut socket = server.socket("c", "2.0.0").await;
    socket.join("den", json!({})).await.ok();
    assert_eq!(socket.so_far().await, [], "no system message");
    let mut publisher = server.publisher().await;
    publisher.0.join("den", json!({"broadcast": {"ack": true}})).await.ok();
    publisher.publish_on("den", 1).await;
    assert_eq!(socket.next().await.payload, message(1), "no meta");
    let mut nameless = server.publisher().await;
    assert_eq!(nameless.0.so_far().await, []);
    publisher.publish(2).await;
    assert!(!next_message(&mut nameless.0).await.1);
}
