//! Broadcast over websockets: statements 87 to 98.
use crate::realtime::{Message, Server, Socket, quick};
use convoke::{auth::Role, gateway::Config, remote::Coordination};
use serde_json::json;

fn kind3(topic: &str, event: &str, meta: &str, encoding: u8, data: &[u8]) -> Message {
    let sizes = [topic.len(), event.len(), meta.len()].map(|n| u8::try_from(n).unwrap());
    let head = [3, 1, 1, sizes[0], sizes[1], sizes[2], encoding];
    let parts = [&head, &b"19"[..], topic.as_bytes(), event.as_bytes(), meta.as_bytes(), data];
    Message::binary(parts.concat())
}

fn kind4(topic: &str, event: &str, encoding: u8, data: &[u8]) -> Vec<u8> {
    let sizes = [topic.len(), event.len()].map(|n| u8::try_from(n).unwrap());
    let head = [4, sizes[0], sizes[1], 0, encoding];
    [&head[..], topic.as_bytes(), event.as_bytes(), data].concat()
}

async fn trio(server: &Server) -> (Socket, Socket, Socket) {
    let sender = server.joined("den", json!({})).await;
    let new = server.joined("den", json!({})).await;
    let mut old = server.v1().await;
    old.join("den", json!({})).await.ok();
    (sender, new, old)
}

/// 87, 88, 91, 92, 93
#[tokio::test]
async fn json_user_broadcast_is_relayed_byte_for_byte() {
    let server = Server::start().await;
    let (mut sender, mut new, mut old) = trio(&server).await;
    let data = br#"{"n" : 1.50, "z":"\u00e9"}"#;
    sender.message(kind3("realtime:den", "é", r#"{"m":1}"#, 1, data)).await;
    assert_eq!(new.binary().await, kind4("realtime:den", "é", 1, data));
    let got = old.next().await;
    assert_eq!(got.payload, json!({"type": "broadcast", "event": "é", "payload": {"n": 1.5, "z": "é"}}));
    assert_eq!(got.topic, "realtime:den");
    assert!(sender.so_far().await.is_empty());
}

/// 89
#[tokio::test]
async fn binary_payload_reaches_only_serializer_2() {
    let server = Server::start().await;
    let (mut sender, mut new, mut old) = trio(&server).await;
    sender.message(kind3("realtime:den", "raw", "", 0, &[0, 255, 1])).await;
    sender.message(kind3("realtime:den", "raw", "", 0, &[])).await;
    assert_eq!(new.binary().await, kind4("realtime:den", "raw", 0, &[0, 255, 1]));
    assert_eq!(new.binary().await, kind4("realtime:den", "raw", 0, &[]));
    sender.so_far().await;
    assert!(old.so_far().await.is_empty());
}

/// 90 and its mirror
#[tokio::test]
async fn text_broadcast_is_relayed_unchanged() {
    let server = Server::start().await;
    let (mut sender, mut new, mut old) = trio(&server).await;
    let object = json!({"event": "x", "extra": [1], "payload": null});
    old.push("den", "broadcast", object.clone()).await;
    assert_eq!(new.next().await.short(), json!([null, null, "broadcast", object]));
    sender.next().await;
    sender.push("den", "broadcast", object.clone()).await;
    assert_eq!(old.next().await.payload, object);
    assert_eq!(new.next().await.payload, object);
}

/// 94, 95
#[tokio::test]
async fn sender_gets_own_broadcasts_and_acks_only_if_requested() {
    let server = Server::start().await;
    for (to_self, ack) in [(false, false), (true, false), (false, true), (true, true)] {
        let mut socket = server.joined("den", json!({"broadcast": {"self": to_self, "ack": ack}})).await;
        let own = socket.push("den", "broadcast", json!({"event": "e"})).await;
        let frames = socket.so_far().await;
        assert_eq!(frames.iter().any(|got| got.event == "broadcast"), to_self);
        let reply =
            frames.iter().find(|got| got.event == "phx_reply").map(super::super::realtime::Got::short);
        let expected = json!(["1", own, "phx_reply", {"status": "ok", "response": {}}]);
        assert_eq!(reply, ack.then_some(expected));
        socket.message(kind3("realtime:den", "e", "", 0, b"")).await;
        if to_self {
            assert!(matches!(socket.any().await, Message::Binary(_)));
        }
        if ack {
            assert_eq!(
                socket.next().await.short(),
                json!(["1", "9", "phx_reply", {"status": "ok", "response": {}}])
            );
        }
    }
}

/// 96
#[tokio::test]
async fn oversized_broadcast_is_refused_and_the_channel_stays() {
    let server = Server::with(Config { payload_bytes_max: 1000, ..quick() }).await;
    let mut quiet = server.joined("den", json!({"broadcast": {"ack": false}})).await;
    let mut asking = server.joined("den", json!({"broadcast": {"ack": true}})).await;
    let large = json!({"event": "e", "payload": {"x": "y".repeat(1600)}});
    quiet.push("den", "broadcast", large.clone()).await;
    assert!(quiet.so_far().await.is_empty());
    let reply = asking.ask("den", "broadcast", large).await;
    assert_eq!(reply.payload, json!({"status": "error", "response": "payload_size_exceeded"}));
    asking.ask("den", "broadcast", json!({"event": "e"})).await.ok();
    asking.message(kind3("realtime:den", "e", "", 0, &[0; 1600])).await;
    assert_eq!(asking.next().await.payload["response"], "payload_size_exceeded");
}

/// 97
#[tokio::test]
async fn payload_of_three_million_bytes_passes_and_a_thousand_more_is_refused() {
    let server = Server::start().await;
    let mut socket = server.joined("den", json!({"broadcast": {"ack": true}})).await;
    let payload =
        |bytes: usize| json!({"type": "broadcast", "event": "e", "payload": {"x": "y".repeat(bytes)}});
    socket.ask("den", "broadcast", payload(3_000_000)).await.ok();
    let reply = socket.ask("den", "broadcast", payload(3_001_000)).await;
    assert_eq!(reply.payload["response"], "payload_size_exceeded");
}

/// 98
#[tokio::test]
async fn public_private_and_prefixed_rooms_are_separate() {
    let server = Server::start().await;
    let mut public = server.joined("den", json!({})).await;
    let mut prefixed = server.joined("private:den", json!({})).await;
    let service = server.token(Role::ServiceRole);
    let mut private = server.v2().await;
    let join = json!({"config": {"private": true, "broadcast": {"ack": true}}, "access_token": service});
    private.join_with("den", join).await.ok();
    private.ask("den", "broadcast", json!({"event": "e"})).await.ok();
    assert!(public.so_far().await.is_empty());
    assert!(prefixed.so_far().await.is_empty());
}

/// Receivers with serializer 2.0.0 would fail on a payload that is not an object, so it is refused with a reason.
#[tokio::test]
async fn broadcast_that_is_not_an_object_is_refused() {
    let server = Server::start().await;
    let mut socket = server.joined("den", json!({"broadcast": {"ack": true, "self": true}})).await;
    assert_eq!(socket.ask("den", "broadcast", json!([1])).await.reason(), "Broadcast payload must be a map");
    assert!(socket.so_far().await.is_empty());
}

/// Coordination messages also reach the daemon, with their sender's claims, over every transport.
#[tokio::test]
async fn coordination_messages_reach_the_daemon() {
    let mut server = Server::start().await;
    let mut sender = server.joined("agent:triage", json!({})).await;
    sender.join("den", json!({})).await.ok();
    let data = br#"{"type": "task_offer"}"#;
    sender.message(kind3("realtime:den", "coordination", "", 1, data)).await;
    sender.message(kind3("realtime:agent:triage", "chatter", "", 1, data)).await;
    sender.message(kind3("realtime:agent:triage", "agent_message", "", 1, data)).await;
    sender.message(kind3("realtime:agent:triage", "coordination", "", 0, b"bytes")).await;
    sender.message(kind3("realtime:agent:triage", "coordination", "", 1, data)).await;
    let object = json!({"type": "broadcast", "event": "coordination", "payload": {"n": 1}});
    sender.push("agent:triage", "broadcast", object).await;
    sender.so_far().await;
    assert_eq!(server.coordination.recv().await.unwrap().event, "agent_message");
    let message = server.coordination.recv().await.unwrap();
    assert_eq!(message.event, Coordination::EVENT);
    assert_eq!((&message.payload[..], message.claims.role.as_str()), (&data[..], "anon"));
    assert_eq!(message.room, crate::realtime::room("agent:triage"));
    assert_eq!(&server.coordination.recv().await.unwrap().payload[..], br#"{"n":1}"#);
    assert!(server.coordination.try_recv().is_err());
}

/// Fifty receivers and two senders: each receiver gets every message, in each sender's order.
#[tokio::test]
async fn order_of_each_sender_is_kept_for_every_receiver() {
    const MESSAGES: u64 = 200;
    let server = Server::start().await;
    let mut senders = [server.joined("den", json!({})).await, server.joined("den", json!({})).await];
    let mut receivers = Vec::new();
    for n in 0..50 {
        let mut socket = if n % 2 == 0 { server.v1().await } else { server.v2().await };
        socket.join("den", json!({})).await.ok();
        receivers.push(socket);
    }
    for n in 0..MESSAGES {
        for (from, sender) in senders.iter_mut().enumerate() {
            sender.push("den", "broadcast", json!({"event": "e", "from": from, "n": n})).await;
        }
    }
    for receiver in &mut receivers {
        let mut next = [0, 0];
        for _ in 0..MESSAGES * 2 {
            let payload = receiver.next().await.payload;
            let from = usize::from(payload["from"] == 1);
            assert_eq!(payload["n"], next[from]);
            next[from] += 1;
        }
    }
}
