//! Framing: statements 21 to 43.
use crate::realtime::{Message, Server};
use serde_json::json;

/// 21, 22, 23
#[tokio::test]
async fn heartbeats_are_answered_without_a_channel() {
    let server = Server::start().await;
    assert!(server.v1().await.so_far().await.is_empty());
    let mut v2 = server.v2().await;
    v2.message(r#"[null,"13","phoenix","heartbeat",{}]"#).await;
    let reply = r#"[null,"13","phoenix","phx_reply",{"status":"ok","response":{}}]"#;
    assert_eq!(v2.any().await, Message::text(reply));
    v2.message(r#"[null,"14","phoenix","other",{}]"#).await;
    assert_eq!(v2.next().await.reason(), "unmatched topic");
}

/// 24, 43 (and 25 in every test of a 2.0.0 socket: the client checks each frame)
#[tokio::test]
async fn frames_of_serializer_1_have_four_keys_and_no_join_ref() {
    let server = Server::start().await;
    let mut socket = server.v1().await;
    let reply = socket.join("den", json!({"presence": {"enabled": true}, "broadcast": {"self": true}})).await;
    assert_eq!(
        reply.short(),
        json!([null, "1", "phx_reply", {"status": "ok", "response": {"postgres_changes": []}}])
    );
    assert_eq!(socket.next().await.short(), json!([null, null, "presence_state", {}]));
    socket.push("den", "broadcast", json!({"type": "broadcast", "event": "e", "payload": {}})).await;
    assert_eq!(socket.next().await.event, "broadcast");
    let own = socket.next_ref();
    socket.send(json!("1"), json!(own), "realtime:den", "phx_leave", json!({})).await;
    socket.next().await.ok();
    assert_eq!(socket.next().await.short(), json!([null, "1", "phx_close", {}]));
}

/// 26, 27, 28, 30
#[tokio::test]
async fn invalid_frames_are_dropped_and_the_socket_stays() {
    let server = Server::start().await;
    let (mut v1, mut v2) = (server.v1().await, server.v2().await);
    let object = r#"{"topic":"phoenix","event":"heartbeat","payload":{},"ref":"x"}"#;
    for text in ["", "{", "null", "[]", r#"["1","1","phoenix","heartbeat"]"#, object] {
        v2.message(text).await;
    }
    for bytes in [&b""[..], b"\x05abc", b"\x03\x01", b"\x00\x01", b"\x03\xff\xff\xff\xff\xff\x01x"] {
        v2.message(Message::binary(bytes.to_vec())).await;
        v1.message(Message::binary(bytes.to_vec())).await;
    }
    for text in ["", "[", r#"[null,"1","phoenix","heartbeat",{}]"#, r#"{"topic":"phoenix"}"#] {
        v1.message(text).await;
    }
    assert!(v2.so_far().await.is_empty());
    assert!(v1.so_far().await.is_empty());
}

/// 29
#[tokio::test]
async fn sixth_array_element_is_ignored() {
    let mut socket = Server::start().await.v2().await;
    socket.message(r#"[null,"1","phoenix","heartbeat",{},"more"]"#).await;
    socket.next().await.ok();
}

/// 31, 32, 34
#[tokio::test]
async fn push_to_an_unjoined_topic_is_unmatched_and_leave_is_ok() {
    let mut socket = Server::start().await.v2().await;
    let unmatched = json!({"status": "error", "response": {"reason": "unmatched topic"}});
    socket.send(json!("1"), json!("2"), "realtime:den", "broadcast", json!({})).await;
    assert_eq!(socket.next().await.short(), json!([null, "2", "phx_reply", unmatched]));
    socket.send(json!("3"), json!("3"), "foo:bar", "phx_join", json!({})).await;
    assert_eq!(socket.next().await.short(), json!([null, "3", "phx_reply", unmatched]));
    socket.send(json!("3"), json!("4"), "realtime:den", "phx_leave", json!({})).await;
    assert_eq!(socket.next().await.short(), json!(["3", "4", "phx_reply", {"status": "ok", "response": {}}]));
}

/// 33
#[tokio::test]
async fn empty_topic_is_refused() {
    let mut socket = Server::start().await.v2().await;
    assert_eq!(socket.join("", json!({})).await.reason(), "TopicNameRequired: You must provide a topic name");
}

/// 35
#[tokio::test]
async fn unknown_event_gets_no_reply() {
    let mut socket = Server::start().await.joined("den", json!({})).await;
    socket.push("den", "whatever", json!({})).await;
    assert!(socket.so_far().await.is_empty());
    socket.ask("den", "presence", json!({"event": "untrack"})).await.ok();
}

/// 36, 37, 38, 39, 50
#[tokio::test]
async fn each_frame_carries_its_refs() {
    let server = Server::start().await;
    let mut socket = server.v2().await;
    let config =
        json!({"config": {"presence": {"enabled": true, "key": "ada"}, "broadcast": {"self": true}}});
    socket.send(json!("14"), json!("14"), "realtime:den", "phx_join", config).await;
    let reply = socket.next().await;
    assert_eq!(
        reply.short(),
        json!(["14", "14", "phx_reply", {"status": "ok", "response": {"postgres_changes": []}}])
    );
    assert_eq!(socket.next().await.short(), json!(["14", null, "presence_state", {}]));
    socket.send(json!("14"), json!("15"), "realtime:den", "presence", json!({"event": "track"})).await;
    let frames = [socket.next().await, socket.next().await];
    let diff = frames.iter().find(|got| got.event == "presence_diff").unwrap();
    assert_eq!((&diff.join_ref, &diff.reference), (&json!(null), &json!(null)));
    let object = json!({"event": "x", "payload": {}});
    socket.send(json!("14"), json!("16"), "realtime:den", "broadcast", object.clone()).await;
    assert_eq!(socket.next().await.short(), json!([null, null, "broadcast", object]));
    socket.send(json!("14"), json!("17"), "realtime:den", "access_token", json!({"access_token": ""})).await;
    let system = socket.until("system").await;
    assert_eq!((&system.join_ref, &system.reference), (&json!("14"), &json!(null)));
    assert_eq!(socket.until("phx_close").await.short(), json!(["14", "14", "phx_close", {}]));
}

/// 40, 41, 42
#[tokio::test]
async fn stale_join_ref_is_accepted_except_for_leave() {
    let server = Server::start().await;
    let mut socket = server.v2().await;
    let config = json!({"config": {"broadcast": {"self": true, "ack": true}}});
    socket.send(json!("7"), json!("7"), "realtime:den", "phx_join", config).await;
    socket.next().await.ok();
    for (stale, own) in [(json!("1"), "8"), (json!(null), "9")] {
        socket.send(stale.clone(), json!(own), "realtime:den", "broadcast", json!({"event": "e"})).await;
        let frames = socket.so_far().await;
        assert!(frames.iter().any(|got| got.event == "broadcast"));
        assert!(frames.iter().any(|got| got.join_ref == "7" && got.reference == own));
        let own = format!("{own}0");
        socket.send(stale.clone(), json!(own), "realtime:den", "presence", json!({"event": "untrack"})).await;
        assert_eq!(socket.next().await.join_ref, "7");
        socket.send(stale, json!("x"), "realtime:den", "phx_leave", json!({})).await;
        assert!(socket.so_far().await.is_empty());
    }
}
