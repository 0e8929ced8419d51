//! The room `convoke:<org>`: numbered digests, for bearers of the org alone.
use super::Rig;
use crate::realtime::{Socket, http};
use convoke::auth::Role;
use serde_json::{Value, json};

const ROOM: &str = "convoke:demo";

/// A websocket with this token, and the status of its join.
async fn enter(rig: &Rig, token: &str) -> (Socket, Value) {
    let url = format!("ws://{}/realtime/v1/websocket?apikey={token}&vsn=2.0.0", rig.daemon.parts.addr);
    let mut socket = Socket::open(&url, true).await;
    let joined = socket.join(ROOM, json!({ "broadcast": { "ack": true } })).await;
    (socket, joined.payload["status"].clone())
}

/// The next digest that lists tasks.
async fn digest(socket: &mut Socket) -> Value {
    loop {
        let got = socket.until("broadcast").await;
        assert_eq!(got.payload["event"], "digest");
        let digest = got.payload["payload"].clone();
        if digest["tasks"].as_array().is_some_and(|tasks| !tasks.is_empty()) {
            return digest;
        }
    }
}

#[tokio::test]
async fn digests_are_numbered_and_have_the_versions_of_what_changed() {
    let rig = Rig::start(Vec::new()).await;
    for (role, org, expected) in [
        (Role::Authenticated, "demo", "ok"),
        (Role::ServiceRole, "else", "ok"),
        (Role::Authenticated, "else", "error"),
        (Role::Anon, "demo", "error"),
    ] {
        let (_socket, status) = enter(&rig, &rig.mint(role, org, None)).await;
        assert_eq!(status, expected, "{role:?} of {org}: observers are open, but not of digests");
    }
    let token = rig.mint(Role::Authenticated, "demo", None);
    let (mut listener, _) = enter(&rig, &token).await;
    let task = rig.request(json!({ "kind": "k", "requires": ["nothing here"] })).await;
    let first = digest(&mut listener).await;
    let line = &first["tasks"][0];
    assert_eq!((&line["id"], &line["kind"], &line["state"]), (&json!(task.id), &json!("k"), &json!("open")));
    assert_eq!((&first["more"], &first["gap"]), (&json!(false), &json!(false)));

    // Nobody else publishes there, by any door.
    let (mut liar, _) = enter(&rig, &rig.mint(Role::ServiceRole, "demo", None)).await;
    let lie =
        json!({ "type": "broadcast", "event": "digest", "payload": { "n": 1, "tasks": [{ "id": "lie" }] } });
    liar.push(ROOM, "broadcast", lie).await;
    let message = json!({ "messages": [{ "topic": ROOM, "event": "digest", "payload": { "tasks": [{ "id": "lie" }] } }] });
    let sent = http().post(format!("{}/realtime/v1/api/broadcast", rig.http())).bearer_auth(&token);
    sent.body(message.to_string()).header("content-type", "application/json").send().await.unwrap();
    rig.daemon.parts.tasks.cancel(task.id, "enough").await.unwrap();
    // A round without offers may come between.
    let second = loop {
        let next = digest(&mut listener).await;
        assert_eq!(next["tasks"][0]["id"], json!(task.id), "{next}");
        if next["tasks"][0]["state"] == "canceled" {
            break next;
        }
    };
    let line = &second["tasks"][0];
    assert!(second["n"].as_u64() > first["n"].as_u64(), "{first} {second}");
    assert!(line["version"].as_i64() > first["tasks"][0]["version"].as_i64());
    // The overview names the digest whose changes it contains.
    let overview =
        http().get(format!("{}/v1/overview", rig.http())).bearer_auth(&token).send().await.unwrap();
    let overview: Value = overview.json().await.unwrap();
    assert!(overview["n"].as_u64() >= second["n"].as_u64(), "{overview}");
    rig.daemon.stop().await;
}
