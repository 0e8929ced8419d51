//! Joining and leaving: statements 44 to 71 and 73.
use crate::realtime::{Server, quick};
use convoke::{auth::Role, gateway::Config};
use serde_json::json;
use std::time::Duration;

/// 44, 45, 49, 51
#[tokio::test]
async fn minimal_join_succeeds_without_further_messages() {
    let mut socket = Server::start().await.v2().await;
    let reply = socket.join_with("a", json!({"config": {}, "version": "realtime-js/2", "x": 1})).await;
    assert_eq!(reply.payload, json!({"status": "ok", "response": {"postgres_changes": []}}));
    assert!(socket.so_far().await.is_empty());
    socket.join_with("b", json!({})).await.ok();
}

/// 46, 47
#[tokio::test]
async fn boolean_strings_are_accepted_and_other_types_are_false() {
    let mut socket = Server::start().await.v2().await;
    let config = json!({"private": "false", "broadcast": {"self": "True", "ack": "TRUE"}, "presence": {"enabled": "true"}});
    socket.join("a", config).await.ok();
    assert_eq!(socket.next().await.event, "presence_state");
    socket.push("a", "broadcast", json!({})).await;
    let mut events: Vec<_> = socket.so_far().await.into_iter().map(|got| got.event).collect();
    events.sort();
    assert_eq!(events, ["broadcast", "phx_reply"]);
    socket.join("b", json!({"broadcast": {"ack": [1]}})).await.ok();
    socket.push("b", "broadcast", json!({})).await;
    assert!(socket.so_far().await.is_empty());
    let reason = socket.join("c", json!({"private": "yes"})).await;
    assert_eq!(reason.reason(), "UnknownErrorOnChannel: config.private must be true or false");
}

/// 48, 73
#[tokio::test]
async fn requested_changes_are_echoed_in_order_and_reported_unavailable() {
    let mut socket = Server::start().await.v2().await;
    for none in [json!(null), json!([null])] {
        let reply = socket.join("a", json!({ "postgres_changes": none })).await;
        assert_eq!(reply.payload["response"]["postgres_changes"], json!([]));
        socket.so_far().await;
    }
    let (one, two) = (json!({"event": "*", "schema": "public"}), json!({"event": "INSERT", "table": "t"}));
    let reply = socket.join("b", json!({"postgres_changes": [one, two]})).await;
    let echoed = reply.payload["response"]["postgres_changes"].as_array().unwrap().clone();
    for (echo, mut asked) in echoed.into_iter().zip([one, two]) {
        assert!(echo["id"].as_u64().unwrap() > 0);
        asked["id"] = echo["id"].clone();
        assert_eq!(echo, asked);
    }
    let system = socket.next().await;
    assert_eq!(
        (&system.payload["extension"], &system.payload["status"]),
        (&json!("postgres_changes"), &json!("error"))
    );
    assert_eq!(system.payload["channel"], "b");
}

/// 52, 53, 54
#[tokio::test]
async fn channel_uses_its_own_token_or_the_key() {
    let server = Server::start().await;
    let mut socket = server.v2().await;
    let service = server.token(Role::ServiceRole);
    let private = json!({"private": true});
    assert!(socket.join("a", private.clone()).await.reason().starts_with("Unauthorized"));
    let with = |access: &str, user: Option<&str>| json!({"config": private, "access_token": access, "user_token": user});
    socket.join_with("a", with(&service, None)).await.ok();
    let denied = "Unauthorized: You do not have permissions to read from this Channel topic: a";
    assert_eq!(socket.v_join("a", with("sb_publishable_x", None)).await, denied);
    assert_eq!(socket.v_join("a", with(&service, Some(&server.anon()))).await, denied);
    socket.join_with("b", with("potato", Some(&service))).await.ok();
}

impl crate::realtime::Socket {
    /// Joins again and returns the reason, skipping the end of the previous join.
    async fn v_join(&mut self, topic: &str, payload: serde_json::Value) -> String {
        let reply = self.join_with(topic, payload).await;
        let reason = reply.reason().to_owned();
        self.so_far().await;
        reason
    }
}

/// 55, 56, 57 and a token of another key
#[tokio::test]
async fn each_invalid_token_has_its_reason() {
    let server = Server::start().await;
    let mut socket = server.v2().await;
    let mut reason =
        async |token: &str| socket.v_join("a", json!({"config": {}, "access_token": token})).await;
    let expired = reason(&server.ending_in(-10)).await;
    assert!(
        ["10", "11"].iter().any(|n| expired == format!("InvalidJWTToken: Token has expired {n} seconds ago")),
        "{expired}"
    );
    assert_eq!(reason("potato").await, "MalformedJWT: The token provided is not a valid JWT");
    let required = "InvalidJWTToken: Fields `role` and `exp` are required in JWT";
    assert_eq!(reason(&server.sign(&json!({"exp": 9_999_999_999u64}))).await, required);
    let forged = format!("{}x", server.anon());
    assert_eq!(reason(&forged).await, "JwtSignatureError: Failed to validate JWT signature");
    let odd = server.sign(&json!({"role": "anon", "exp": "soon"}));
    assert_eq!(reason(&odd).await, "Unknown Error on Channel");
}

/// 58, 59
#[tokio::test]
async fn join_refusal_is_delayed_without_blocking_other_topics() {
    let server = Server::with(Config { join_error_delay: Duration::from_secs(1), ..quick() }).await;
    let mut socket = server.v2().await;
    let bad = json!({"config": {}, "access_token": "potato"});
    socket.send(json!("1"), json!("1"), "realtime:a", "phx_join", bad).await;
    socket.send(json!("1"), json!("2"), "realtime:a", "phx_leave", json!({})).await;
    assert!(socket.so_far().await.is_empty(), "heartbeats are answered meanwhile");
    socket.send(json!("3"), json!("3"), "realtime:b", "phx_join", json!({"config": {}})).await;
    assert_eq!(socket.next().await.reference, "3", "another topic goes on");
    let refused = socket.next().await;
    assert_eq!((refused.reference.clone(), refused.reason().starts_with("MalformedJWT")), (json!("1"), true));
    let left = socket.next().await;
    assert_eq!((&left.reference, &left.payload["status"]), (&json!("2"), &json!("ok")));
    assert!(socket.so_far().await.is_empty(), "no phx_close");
}

/// Public channels store no messages to replay.
#[tokio::test]
async fn replay_is_refused_on_a_public_channel() {
    let reply =
        Server::start().await.v2().await.join("a", json!({"broadcast": {"replay": {"since": 1}}})).await;
    assert_eq!(reply.reason(), "UnableToReplayMessages: Replay is not allowed for public channels");
}

/// 60
#[tokio::test]
async fn public_joins_can_be_disabled() {
    let server = Server::with(Config { private_only: true, ..quick() }).await;
    let reply = server.v2().await.join("a", json!({})).await;
    assert_eq!(reply.reason(), "PrivateOnly: This project only allows private channels");
}

/// 61, 62
#[tokio::test]
async fn channels_of_a_socket_are_limited() {
    let server = Server::with(Config { channels_max: 2, ..quick() }).await;
    let mut socket = server.joined("a", json!({})).await;
    socket.join("b", json!({})).await.ok();
    let full = "ChannelRateLimitReached: Too many channels";
    assert_eq!(socket.join("c", json!({})).await.reason(), full);
    socket.join("b", json!({})).await.ok();
    assert_eq!(socket.next().await.event, "phx_close", "joining again is not one more");
    socket.send(json!("1"), json!("x"), "realtime:a", "phx_leave", json!({})).await;
    socket.until("phx_close").await;
    socket.join("c", json!({})).await.ok();
}

/// 66, 67
#[tokio::test]
async fn second_join_replaces_the_first_even_if_it_fails() {
    let server = Server::start().await;
    let mut socket = server.joined("den", json!({"broadcast": {"ack": true}})).await;
    let join = |own: &str, token: Option<&str>| {
        (json!(own), json!({"config": {"broadcast": {"ack": true}}, "access_token": token}))
    };
    let (own, payload) = join("20", None);
    socket.send(own.clone(), own, "realtime:den", "phx_join", payload).await;
    let reply = socket.next().await;
    assert_eq!((&reply.join_ref, reply.event.as_str()), (&json!("20"), "phx_reply"));
    assert_eq!(socket.next().await.short(), json!(["1", "1", "phx_close", {}]));
    assert_eq!(socket.ask("den", "broadcast", json!({})).await.join_ref, "20");

    let (own, payload) = join("30", Some("potato"));
    socket.send(own.clone(), own, "realtime:den", "phx_join", payload).await;
    assert!(socket.next().await.reason().starts_with("MalformedJWT"));
    assert_eq!(socket.next().await.short(), json!(["20", "20", "phx_close", {}]));
    assert_eq!(socket.ask("den", "broadcast", json!({})).await.reason(), "unmatched topic");
}

/// 68, 69
#[tokio::test]
async fn topic_can_be_rejoined_right_after_leaving() {
    let mut socket = Server::start().await.joined("den", json!({})).await;
    socket.send(json!("1"), json!("2"), "realtime:den", "phx_leave", json!({})).await;
    socket.send(json!("3"), json!("3"), "realtime:den", "phx_join", json!({"config": {}})).await;
    assert_eq!(socket.next().await.short(), json!(["1", "2", "phx_reply", {"status": "ok", "response": {}}]));
    assert_eq!(socket.next().await.short(), json!(["1", "1", "phx_close", {}]));
    let reply = socket.next().await;
    assert_eq!((&reply.join_ref, &reply.reference), (&json!("3"), &json!("3")));
}

/// A stopping server notifies every channel and closes with 1012; joins that arrive meanwhile are refused.
#[tokio::test]
async fn stopping_server_notifies_channels_and_closes_with_1012() {
    let server = Server::start().await;
    let mut socket = server.joined("den", json!({})).await;
    let frames = async {
        let goodbye = socket.next().await;
        (goodbye, socket.close_code().await)
    };
    let (stopped, (goodbye, code)) = tokio::join!(server.gateway.stop(Duration::from_secs(5)), frames);
    stopped.unwrap();
    let payload = json!({"extension": "system", "status": "ok", "message": "Server requested disconnect"});
    assert_eq!(goodbye.short(), json!([null, null, "system", payload]));
    assert_eq!(code, Some(1012));
}

/// 72: this server streams no WAL.
#[tokio::test]
async fn join_without_a_database_ends_the_channel_with_a_notice() {
    let mut socket = Server::start().await.v2().await;
    socket.join("den", json!({"broadcast": {"replication_ready": true}})).await.ok();
    let received = socket.next().await;
    let why = "Replication connection was not established in time";
    let payload = json!({"extension": "system", "status": "error", "message": why, "channel": "den"});
    assert_eq!((received.event.as_str(), received.payload), ("system", payload));
    assert_eq!(socket.next().await.short(), json!(["1", "1", "phx_close", {}]));
    socket.join("den", json!({})).await.ok();
}
