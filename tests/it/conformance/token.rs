//! New and expiring tokens of joined public channels: statements 74 to 85, 99 and 102.
use crate::realtime::{Server, Socket};
use convoke::auth::Role;
use serde_json::{Value, json};

async fn shutdown(socket: &mut Socket) -> Value {
    let system = socket.next().await;
    assert_eq!(system.event, "system", "{system:?}");
    assert_eq!(socket.next().await.event, "phx_close");
    system.payload
}

fn message(text: &str) -> Value {
    json!({"extension": "system", "status": "error", "message": text, "channel": "den"})
}

/// 74, 75, 82
#[tokio::test]
async fn valid_token_gets_no_reply() {
    let server = Server::start().await;
    let mut socket = server.joined("den", json!({})).await;
    for token in
        [json!(server.token(Role::ServiceRole)), json!(null), json!("sb_x"), json!(server.anon()), json!(3)]
    {
        socket.push("den", "access_token", json!({ "access_token": token })).await;
    }
    socket.push("den", "access_token", json!({})).await;
    assert!(socket.so_far().await.is_empty());
    socket.ask("den", "presence", json!({"event": "untrack"})).await.ok();
}

/// 76, 77, 78, 84, 85
#[tokio::test]
async fn invalid_token_ends_only_its_channel() {
    let server = Server::start().await;
    let required = "Fields `role` and `exp` are required in JWT";
    for (token, text) in [
        (String::new(), "The token provided is not a valid JWT"),
        (server.sign(&json!({"exp": 9_999_999_999u64})), required),
        (format!("{}x", server.anon()), "Failed to validate JWT signature"),
    ] {
        let mut socket = server.joined("den", json!({})).await;
        socket.join("other", json!({})).await.ok();
        socket.push("den", "access_token", json!({ "access_token": token })).await;
        assert_eq!(shutdown(&mut socket).await, message(text));
        socket.ask("other", "presence", json!({"event": "untrack"})).await.ok();
        socket.join("den", json!({})).await.ok();
    }
    let mut socket = server.joined("den", json!({})).await;
    socket.push("den", "access_token", json!({"access_token": server.ending_in(-7)})).await;
    let text = shutdown(&mut socket).await["message"].as_str().unwrap().to_owned();
    assert!(text.starts_with("Token has expired ") && text.ends_with(" seconds ago"), "{text}");
}

/// 83
#[tokio::test]
async fn channel_ends_when_its_token_expires() {
    let server = Server::start().await;
    let mut socket = server.v2().await;
    socket.join_with("den", json!({"config": {}, "access_token": server.ending_in(2)})).await.ok();
    let payload = shutdown(&mut socket).await;
    let text = payload["message"].as_str().unwrap();
    assert!(["0", "1"].iter().any(|n| text == format!("Token has expired {n} seconds ago")), "{text}");

    socket.join_with("den", json!({"config": {}})).await.ok();
    socket.push("den", "access_token", json!({"access_token": server.ending_in(2)})).await;
    assert!(shutdown(&mut socket).await["message"].as_str().unwrap().starts_with("Token has expired"));
}

/// 99, 102
#[tokio::test]
async fn private_channels_without_policies_admit_only_the_service_role() {
    let server = Server::start().await;
    let mut socket = server.v2().await;
    let denied = "Unauthorized: You do not have permissions to read from this Channel topic: den";
    assert_eq!(socket.join("den", json!({"private": true})).await.reason(), denied);
    let service = server.token(Role::ServiceRole);
    let config = json!({"private": true, "broadcast": {"ack": true}});
    socket.join_with("den", json!({"config": config, "access_token": service})).await.ok();
    socket.ask("den", "broadcast", json!({})).await.ok();
    socket.push("den", "access_token", json!({"access_token": server.anon()})).await;
    let lost = "You do not have permissions to read from this Channel topic: den";
    assert_eq!(shutdown(&mut socket).await, message(lost));
}
