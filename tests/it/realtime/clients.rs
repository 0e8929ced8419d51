//! Unmodified supabase-js, old and new, and the Python client: statements 149 to 156 of the checklist.
use super::{
    Server,
    client_process::{ClientProcess, NEW, OLD},
    quick, room,
};
use convoke::{auth::Role, hub::Message};
use serde_json::{Map, Value, json};

impl Server {
    async fn js(&self, package: &str, vsn: Option<&str>) -> ClientProcess {
        ClientProcess::js(package, &self.http(""), &self.anon(), vsn).await
    }
    async fn python(&self) -> ClientProcess {
        ClientProcess::python(&format!("ws://{}/realtime/v1", self.addr), &self.anon()).await
    }
    /// One client of each kind, in `org:demo`, with the presence keys `new`, `old` and `python`.
    async fn clients(&self) -> [ClientProcess; 3] {
        let config = |key: &str| json!({"broadcast": {"ack": key != "python", "self": false}, "presence": {"key": key, "enabled": true}});
        let (mut new, mut old, mut python) =
            tokio::join!(self.js(NEW, None), self.js(OLD, None), self.python());
        tokio::join!(
            new.join("org:demo", config("new")),
            old.join("org:demo", config("old")),
            python.join("org:demo", config("python"))
        );
        [new, old, python]
    }
}

fn agent(activity: &str) -> Map<String, Value> {
    json!({"agent_id": "triage", "activity_type": activity, "queue_depth": 0}).as_object().cloned().unwrap()
}

#[tokio::test]
async fn clients_receive_hosted_agent_presence_and_coordination() {
    let server = Server::start().await;
    server.tracker.set(room("org:demo"), "triage", agent("idle"));
    let mut clients = server.clients().await;
    for client in &mut clients {
        client.sees("triage", "activity_type", &json!("idle")).await;
    }
    server.tracker.set(room("org:demo"), "triage", agent("working"));
    for client in &mut clients {
        client.sees("triage", "activity_type", &json!("working")).await;
    }
    let update = json!({"type": "task_update", "agent_id": "triage", "task": {"state": "running"}});
    assert_eq!(server.hub.publish(&room("org:demo"), Message::broadcast("coordination", &update), None), 3);
    for client in &mut clients {
        assert_eq!(client.broadcast("coordination").await, update);
    }
    server.tracker.clear(room("org:demo"), "triage");
    for client in &mut clients {
        client.misses("triage").await;
    }
}

/// 149, 154
#[tokio::test]
async fn clients_of_every_kind_exchange_broadcasts_and_presence() {
    let server = Server::start().await;
    let mut clients = server.clients().await;
    for speaker in 0..3 {
        let payload = json!({"from": speaker, "text": "grüß dich", "list": [1, 2.5, null]});
        let send = json!({"topic": "org:demo", "name": "ping", "payload": payload});
        assert_eq!(clients[speaker].ask("send", send, "sent").await, "ok");
        for listener in (0..3).filter(|&listener| listener != speaker) {
            assert_eq!(clients[listener].broadcast("ping").await, payload);
        }
    }
    let keys = ["new", "old", "python"];
    for speaker in 0..3 {
        for mood in ["glad", "tired"] {
            let track = json!({"topic": "org:demo", "payload": {"mood": mood}});
            clients[speaker].send("track", track).await;
            for client in &mut clients {
                client.sees(keys[speaker], "mood", &json!(mood)).await;
            }
        }
    }
    clients[0].send("untrack", json!({"topic": "org:demo"})).await;
    clients[2].send("leave", json!({"topic": "org:demo"})).await;
    clients[1]
        .until("sync", |it| it["state"].as_object().is_some_and(|s| s.len() == 1 && s.contains_key("old")))
        .await;
}

/// A page that awaits `track()` finds itself in `presenceState()`.
#[tokio::test]
async fn own_presence_is_updated_when_track_and_untrack_resolve() {
    let server = Server::start().await;
    for package in [NEW, OLD] {
        let mut client = server.js(package, None).await;
        client.join("den", json!({"presence": {"key": "ada", "enabled": true}})).await;
        for n in 0..3 {
            client.send("track", json!({"topic": "den", "payload": {"n": n}})).await;
            let tracked = client.until("tracked", |_| true).await;
            assert_eq!(tracked["state"]["ada"][0]["n"], n, "{package}: {tracked}");
            client.send("untrack", json!({"topic": "den"})).await;
            let untracked = client.until("untracked", |_| true).await;
            assert_eq!(untracked["state"], json!({}), "{package}");
        }
    }
}

/// 87, 89, 120, 121, 152, 153
#[tokio::test]
async fn binary_and_http_broadcasts_reach_clients_that_support_them() {
    let server = Server::start().await;
    let [mut new, mut old, mut python] = server.clients().await;
    let mut second = server.js(NEW, None).await;
    second.join("org:demo", json!({"broadcast": {"self": true}})).await;
    let bytes = json!({"topic": "org:demo", "name": "raw", "bytes": "AAEC/w=="});
    assert_eq!(new.ask("send", bytes.clone(), "sent").await, "ok");
    assert_eq!(second.broadcast("raw").await, "AAEC/w==");
    assert_eq!(second.ask("send", bytes.clone(), "sent").await, "ok");
    assert_eq!(second.broadcast("raw").await, "AAEC/w==", "its own");
    assert_eq!(new.broadcast("raw").await, "AAEC/w==");
    assert_eq!(new.ask("http_send", bytes, "sent").await, true);
    assert_eq!(second.broadcast("raw").await, "AAEC/w==");

    let json = |n: u32| json!({"topic": "org:demo", "name": "ping", "payload": {"n": n}});
    assert_eq!(new.ask("http_send", json(1), "sent").await, true);
    assert_eq!(python.ask("http_send", json(2), "sent").await, true);
    let mut elsewhere = server.js(NEW, None).await;
    assert_eq!(elsewhere.ask("rest", json(3), "sent").await, "ok");
    for client in [&mut old, &mut python, &mut second] {
        for n in 1..=3 {
            assert_eq!(client.broadcast("ping").await, json!({ "n": n }));
        }
    }
}

/// 150
#[tokio::test]
async fn removed_channel_can_be_created_again() {
    let server = Server::start().await;
    for package in [NEW, OLD] {
        let mut client = server.js(package, None).await;
        // The old client closes its socket with its last channel, and cannot open one for 100 ms afterwards.
        client.join("other", json!({})).await;
        for _ in 0..2 {
            client.join("den", json!({})).await;
            assert_eq!(client.ask("track", json!({"topic": "den", "payload": {}}), "tracked").await, "ok");
            assert_eq!(client.ask("untrack", json!({"topic": "den"}), "untracked").await, "ok");
            assert_eq!(client.ask("leave", json!({"topic": "den"}), "left").await, "ok");
        }
    }
}

/// 151
#[tokio::test]
async fn clients_reconnect_after_a_restart() {
    let server = Server::start().await;
    let mut clients = server.clients().await;
    let addr = server.addr;
    server.stop().await;
    let server = Server::on(addr, quick()).await;
    for client in &mut clients {
        client.subscribed("org:demo").await;
    }
    server.tracker.set(room("org:demo"), "triage", agent("idle"));
    server.hub.publish(&room("org:demo"), Message::broadcast("coordination", &json!({"n": 1})), None);
    for client in &mut clients {
        assert_eq!(client.broadcast("coordination").await, json!({"n": 1}));
    }
}

/// 155, and a token with access
#[tokio::test]
async fn denied_channel_reports_the_reason_and_joins_with_a_better_token() {
    let server = Server::start().await;
    let mut client = server.js(NEW, None).await;
    let join = json!({"topic": "den", "config": {"private": true}});
    client.send("join", join.clone()).await;
    let denied = client.until("status", |it| it["status"] == "CHANNEL_ERROR").await;
    assert_eq!(
        denied["error"],
        "Unauthorized: You do not have permissions to read from this Channel topic: den"
    );
    client.ask("leave", json!({"topic": "den"}), "left").await;
    client.ask("set_auth", json!({"token": server.token(Role::ServiceRole)}), "authorized").await;
    client.join("den", join["config"].clone()).await;
}

/// 156
#[tokio::test]
async fn newest_client_also_supports_serializer_1() {
    let server = Server::start().await;
    let mut first = server.js(NEW, Some("1.0.0")).await;
    let mut second = server.js(NEW, None).await;
    first.join("den", json!({"broadcast": {"ack": true}, "presence": {"key": "first"}})).await;
    second.join("den", json!({})).await;
    let ping = json!({"topic": "den", "name": "ping", "payload": {"n": 1}});
    assert_eq!(first.ask("send", ping.clone(), "sent").await, "ok");
    assert_eq!(second.broadcast("ping").await, json!({"n": 1}));
    assert_eq!(second.ask("send", ping, "sent").await, "ok");
    assert_eq!(first.broadcast("ping").await, json!({"n": 1}));
    first.send("track", json!({"topic": "den", "payload": {"x": 1}})).await;
    second.sees("first", "x", &json!(1)).await;
}

#[tokio::test]
async fn row_change_subscription_without_a_database_gets_a_notice() {
    let server = Server::start().await;
    for package in [NEW, OLD] {
        let mut client = server.js(package, None).await;
        let changes =
            json!({"event": "INSERT", "schema": "public", "table": "tickets", "filter": "priority=gte.3"});
        client.send("listen_to_changes", json!({"topic": "rows", "changes": changes})).await;
        client.subscribed("rows").await;
        let system = client.until("system", |_| true).await;
        assert_eq!(system["message"], "Postgres changes are not available on a server without a database");
    }
}
