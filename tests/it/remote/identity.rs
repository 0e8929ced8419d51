//! No sender can impersonate another: each attack on identity, through every entry point.
use super::Rig;
use crate::realtime::{
    Message, Socket,
    client_process::{ClientProcess, NEW},
    http,
};
use convoke::{
    auth::Role,
    task::TaskState,
    wire::{Encoding, Frame, client::user_push},
};
use reqwest::Method;
use serde_json::{Value, json};

const EXP: u64 = 4_000_000_000;

/// What is not an org: read as missing, it would be the org `default`.
fn no_orgs() -> Vec<Value> {
    let upper = "0190C9A5-1E3B-7000-8000-000000000000";
    json!(["Acme", "acme.com", " default", "", 42, null, ["acme"], upper, "x".repeat(64), true])
        .as_array()
        .unwrap()
        .clone()
}

async fn call(rig: &Rig, method: Method, path: &str, token: &str, body: Value) -> (u16, Value) {
    let request = http().request(method, format!("{}{path}", rig.http())).bearer_auth(token);
    let answer =
        request.header("content-type", "application/json").body(body.to_string()).send().await.unwrap();
    let status = answer.status().as_u16();
    (status, serde_json::from_str(&answer.text().await.unwrap()).unwrap_or_default())
}

/// One that gets every broadcast as text.
async fn socket(rig: &Rig, token: &str) -> Socket {
    let url = format!("ws://{}/realtime/v1/websocket?apikey={token}&vsn=1.0.0", rig.daemon.parts.addr);
    Socket::open(&url, false).await
}

#[tokio::test]
async fn invalid_org_claim_is_refused_at_every_door() {
    let rig = Rig::start(Vec::new()).await;
    let good = rig.sign(&json!({ "role": "authenticated", "exp": EXP }));
    let mut joined = socket(&rig, &good).await;
    joined.join("org:default", json!({})).await.ok();
    for org in no_orgs() {
        let token = rig.sign(&json!({ "role": "authenticated", "exp": EXP, "org": org }));
        let (status, problem) = call(&rig, Method::GET, "/v1/tasks", &token, Value::Null).await;
        assert_eq!((status, &problem["code"]), (401, &json!("unauthorized")), "{org}: {problem}");
        assert!(problem["detail"].as_str().unwrap().contains("Claim org is invalid"), "{problem}");
        let batch = json!({ "messages": [{ "topic": "org:default", "event": "e", "payload": {} }] });
        assert_eq!(call(&rig, Method::POST, "/api/broadcast", &token, batch).await.0, 401, "{org}");
        let refused = joined.join_with("other", json!({ "config": {}, "access_token": token })).await;
        assert!(refused.reason().starts_with("InvalidJWTToken: Claim org is invalid"), "{refused:?}");
        let url = format!("ws://{}/realtime/v1/websocket?apikey={token}&vsn=2.0.0", rig.daemon.parts.addr);
        assert!(tokio_tungstenite::connect_async(&url).await.is_err(), "{org}");
    }
    // A channel that is open ends with a token like that.
    let token = rig.sign(&json!({ "role": "authenticated", "exp": EXP, "org": "Acme" }));
    joined.push("org:default", "access_token", json!({ "access_token": token })).await;
    joined.until("phx_close").await;
    rig.daemon.stop().await;
}

#[tokio::test]
async fn invalid_org_claim_sees_no_rows_by_sql() {
    let rig = Rig::start(Vec::new()).await;
    let org = "default".parse().unwrap();
    let request = serde_json::from_value(json!({ "kind": "k" })).unwrap();
    rig.daemon.parts.tasks.request(&org, "tester", request).await.unwrap();
    let client = rig.daemon.parts.database.client().await.unwrap();
    let seen = async |claims: Value| -> i64 {
        let claims = claims.to_string().replace('\'', "''");
        let begin =
            format!("begin; set local role authenticated; set local request.jwt.claims to '{claims}'");
        client.batch_execute(&begin).await.unwrap();
        let count = client.query_one("select count(*) from convoke.tasks", &[]).await.unwrap().get(0);
        client.batch_execute("rollback").await.unwrap();
        count
    };
    assert_eq!(seen(json!({ "role": "authenticated" })).await, 1);
    assert_eq!(seen(json!({ "role": "authenticated", "org": "default" })).await, 1);
    for org in no_orgs() {
        assert_eq!(seen(json!({ "role": "authenticated", "org": org })).await, 0, "{org}");
    }
    drop(client);
    rig.daemon.stop().await;
}

#[tokio::test]
async fn user_named_like_an_agent_or_the_service_cannot_command_their_tasks() {
    let rig = Rig::start(Vec::new()).await;
    let request = json!({ "kind": "k", "requires": ["missing"] });
    let service = rig.mint(Role::ServiceRole, "demo", None);
    let near = rig.token("near");
    let user = |sub: &str, iss: Option<&str>| {
        let mut claims = json!({ "role": "authenticated", "exp": EXP, "org": "demo", "sub": sub });
        claims.as_object_mut().unwrap().extend(iss.map(|iss| ("iss".to_owned(), json!(iss))));
        rig.sign(&claims)
    };
    let ada = user("ada", Some("https://one"));
    for (asker, shown, impostors) in [
        (&service, "service", vec![user("service_role", None), user("service", None)]),
        (
            &near,
            "agent:demo/near",
            vec![user("near", None), user("agent:demo/near", None), rig.token("other")],
        ),
        (
            &ada,
            "user:https://one#ada",
            vec![user("ada", None), user("ada", Some("https://two")), rig.token("ada")],
        ),
    ] {
        let (status, made) = call(&rig, Method::POST, "/v1/tasks", asker, request.clone()).await;
        assert_eq!((status, &made["task"]["requester"]), (201, &json!(shown)));
        let path = format!("/v1/tasks/{}/cancel", made["task"]["id"].as_str().unwrap());
        for impostor in impostors {
            let (status, problem) = call(&rig, Method::POST, &path, &impostor, json!({})).await;
            assert_eq!((status, &problem["code"]), (403, &json!("forbidden")), "{shown}: {problem}");
            let mut by_socket = socket(&rig, &impostor).await;
            by_socket.join("org:demo", json!({})).await.ok();
            let cancel = json!({ "type": "task_cancel", "task_id": made["task"]["id"] });
            let cancel = json!({ "type": "broadcast", "event": "coordination", "payload": cancel });
            by_socket.push("org:demo", "broadcast", cancel).await;
            assert_eq!(by_socket.until("broadcast").await.payload["payload"]["code"], "forbidden");
        }
        let (status, ended) = call(&rig, Method::POST, &path, asker, json!({})).await;
        assert_eq!((status, &ended["state"]), (200, &json!("canceled")), "{shown}");
    }
    rig.daemon.stop().await;
}

#[tokio::test]
async fn same_agent_id_of_another_org_takes_nothing_over() {
    let rig = Rig::start(Vec::new()).await;
    let mut near = rig.agent("near").await;
    let thief = rig.mint(Role::Authenticated, "else", Some("near"));
    let profile = json!({ "capabilities": ["work"], "lease": "30s" });
    for (method, path, body) in [
        (Method::PUT, "/v1/agents/near/presence", profile.clone()),
        (Method::GET, "/v1/agents/near/inbox", Value::Null),
        (Method::DELETE, "/v1/agents/near/presence", Value::Null),
    ] {
        let (status, problem) = call(&rig, method, path, &thief, body).await;
        assert_eq!((status, &problem["code"]), (403, &json!("forbidden")), "{path}: {problem}");
    }
    let mut by_socket = socket(&rig, &thief).await;
    by_socket.join("agent:near", json!({ "presence": { "key": "near" } })).await.ok();
    by_socket.track("agent:near", json!({ "capabilities": ["work"], "agent_id": "near" })).await;
    let refused = by_socket.until("phx_reply").await;
    assert_eq!(refused.payload["status"], "error", "{refused:?}");

    // What the thief requests in its own org is not told to the agent of this name.
    let body = json!({ "kind": "theirs", "requires": ["nothing"] });
    let (status, theirs) = call(&rig, Method::POST, "/v1/tasks", &thief, body).await;
    assert_eq!(status, 201, "{theirs}");
    let theirs = theirs["task"]["id"].as_str().unwrap();
    let cancel = format!("/v1/tasks/{theirs}/cancel");
    assert_eq!(call(&rig, Method::POST, &cancel, &thief, json!({ "reason": "test" })).await.0, 200);
    let task =
        rig.request(json!({ "kind": "k", "requires": ["work"], "policy": { "bid_window": "30s" } })).await;
    let asked = near.until("broadcast", |it| {
        assert!(!it.to_string().contains(theirs), "{it}");
        it["payload"]["type"] == "task_request"
    });
    let asked = asked.await["payload"].clone();
    let offer =
        json!({ "type": "task_offer", "task_id": task.id, "round": asked["task"]["round"], "offer": {} });
    near.send_message("agent:near", offer).await;
    let won = near.message("task_assignment").await;
    let accept = super::about("task_accept", &won, json!({}));
    let path = format!("/v1/assignments/{}/accept", won["assignment_id"].as_str().unwrap());
    let (status, problem) = call(&rig, Method::POST, &path, &thief, accept.clone()).await;
    assert_eq!((status, &problem["code"]), (403, &json!("forbidden")), "{problem}");
    let accept = json!({ "type": "broadcast", "event": "coordination", "payload": accept });
    by_socket.push("agent:near", "broadcast", accept).await;
    loop {
        let said = by_socket.until("broadcast").await.payload["payload"].clone();
        assert_ne!(said["type"], "task_start");
        if said["type"] == "error" {
            assert_eq!(said["code"], "forbidden");
            break;
        }
    }
    // Gone, the agent still is of its org.
    drop(near);
    rig.status("near", "gone").await;
    assert_eq!(call(&rig, Method::PUT, "/v1/agents/near/presence", &thief, profile.clone()).await.0, 403);
    let own = rig.token("near");
    assert_eq!(call(&rig, Method::PUT, "/v1/agents/near/presence", &own, profile).await.0, 200);
    let open = rig.daemon.parts.tasks.get(task.id).await.unwrap();
    assert_ne!(open.state, TaskState::Completed);
    rig.daemon.stop().await;
}

/// Says something forged in every spelling that a client takes for an event of agents, through every door.
async fn forge(rig: &Rig, token: &str, room: &str) {
    let topic = format!("realtime:{room}");
    let forged = json!({ "type": "task_cancel", "agent_id": "near", "text": "forged" });
    let url = format!("ws://{}/realtime/v1/websocket?apikey={token}&vsn=2.0.0", rig.daemon.parts.addr);
    let mut socket = Socket::open(&url, true).await;
    socket.join(room, json!({})).await.ok();
    let mut frames = vec![
        format!(r#"{{"type":"broadcast","event":"chat","event":"coordination","payload":{forged}}}"#),
        format!(r#"{{"type":"broadcast","event":"coordination","event":"Coordination","payload":{forged}}}"#),
        format!(r#"{{"type":"broadcast","event":"chat","\u0065vent":"coordination","payload":{forged}}}"#),
        format!(r#"{{"type":"broadcast","event":"agent_message","payload":{{}},"payload":{forged}}}"#),
        r#"{"type":"broadcast","event":"agent_message","payload":{"agent_id":"near","agent_id":null,"text":"forged"}}"#.to_owned(),
    ];
    let names = [
        "coordination",
        "Coordination",
        "COORDINATION",
        "COORD\u{130}NATION",
        "Agent_Message",
        "AGENT_BROADCAST",
    ];
    for (at, name) in names.iter().enumerate() {
        frames.push(json!({ "type": "broadcast", "event": name, "payload": forged }).to_string());
        for encoding in [Encoding::Json, Encoding::Binary] {
            let push = user_push(1, 50 + at as u64, &topic, name, encoding, forged.to_string().as_bytes());
            let Some(Frame::Binary(bytes)) = push else { panic!("fits") };
            socket.message(Message::binary(bytes)).await;
        }
        let name = name.replace('\u{130}', "%C4%B0");
        let path = format!("/api/broadcast/{}/events/{name}", room.replace(':', "%3A"));
        call(rig, Method::POST, &path, token, forged.clone()).await;
    }
    for frame in frames {
        socket.message(format!(r#"["1","9","{topic}","broadcast",{frame}]"#)).await;
    }
    let messages = names.map(|name| json!({ "topic": room, "event": name, "payload": forged }));
    call(rig, Method::POST, "/api/broadcast", token, json!({ "messages": messages })).await;
    socket.so_far().await;
}

#[tokio::test]
async fn forged_message_of_the_daemon_or_an_agent_reaches_no_client() {
    let rig = Rig::start(Vec::new()).await;
    let _near = rig.agent("near").await;
    let service = rig.mint(Role::ServiceRole, "demo", None);
    for room in ["org:demo", "agent:near"] {
        // The room of digests is for tokens of its org that are no anon keys.
        let mut observer = socket(&rig, &rig.mint(Role::Authenticated, "demo", None)).await;
        observer.join(room, json!({})).await.ok();
        observer.join("convoke:demo", json!({})).await.ok();
        let mut listeners = Vec::new();
        for event in ["coordination", "agent_message", "agent_broadcast"] {
            let mut client = ClientProcess::js(NEW, &rig.http(), &rig.token("listener"), None).await;
            let join = json!({ "topic": room, "config": {}, "event": event });
            client.send("join", join).await;
            client.subscribed(room).await;
            listeners.push((event, client));
        }
        for token in [
            rig.mint(Role::Anon, "demo", None),
            rig.mint(Role::Authenticated, "demo", None),
            rig.token("other"),
            rig.mint(Role::Authenticated, "else", Some("near")),
        ] {
            forge(&rig, &token, room).await;
        }
        let sql = rig.daemon.parts.database.client().await.unwrap();
        for name in ["coordination", "Coordination", "AGENT_MESSAGE"] {
            sql.execute(
                "select realtime.send('{\"text\": \"forged\"}'::jsonb, $1, $2, false)",
                &[&name, &room],
            )
            .await
            .unwrap();
        }
        // The room of digests is the daemon's own.
        let digest =
            "select realtime.send('{\"n\": 99, \"text\": \"forged\"}', 'digest', 'convoke:demo', false)";
        sql.execute(digest, &[]).await.unwrap();
        // Row by row in their order: what was forged would have come before this.
        sql.execute("select realtime.send('{}'::jsonb, 'last', $1, false)", &[&room]).await.unwrap();
        drop(sql);
        loop {
            let heard = observer.until("broadcast").await;
            assert!(!heard.payload.to_string().contains("forged"), "{heard:?}");
            if heard.payload["event"] == "last" {
                break;
            }
        }
        for (event, client) in &mut listeners {
            let path = format!("/api/broadcast/{}/events/{event}", room.replace(':', "%3A"));
            assert_eq!(call(&rig, Method::POST, &path, &service, json!({ "text": "true" })).await.0, 202);
            let heard = client.until("broadcast", |it| it["payload"]["text"].is_string()).await;
            assert_eq!(heard["payload"]["text"], "true", "{event} in {room}");
        }
    }
    rig.daemon.stop().await;
}

#[tokio::test]
async fn rooms_of_an_org_need_its_token_unless_observers_are_open() {
    let rig =
        Rig::with(Vec::new(), |config| config.access.observers = convoke::access::Observers::Token).await;
    let _near = rig.agent("near").await;
    let may = [
        ("anon of the org", rig.mint(Role::Anon, "demo", None), false),
        ("anon without an org", rig.sign(&json!({ "role": "anon", "exp": EXP })), false),
        ("a user without an org", rig.sign(&json!({ "role": "authenticated", "exp": EXP })), false),
        ("a user of another org", rig.mint(Role::Authenticated, "else", None), false),
        ("an unknown role", rig.sign(&json!({ "role": "pg_monitor", "exp": EXP, "org": "demo" })), false),
        ("the same agent id in another org", rig.mint(Role::Authenticated, "else", Some("near")), false),
        ("a user of the org", rig.mint(Role::Authenticated, "demo", None), true),
        ("another agent of the org", rig.token("other"), true),
        ("the service", rig.mint(Role::ServiceRole, "else", None), true),
    ];
    for (who, token, may) in &may {
        for room in ["org:demo", "agent:near"] {
            let mut socket = socket(&rig, token).await;
            let reply = socket.join(room, json!({})).await;
            assert_eq!(reply.payload["status"] == "ok", *may, "{who} in {room}: {reply:?}");
            let path = format!("/api/broadcast/{}/events/chat", room.replace(':', "%3A"));
            let status = call(&rig, Method::POST, &path, token, json!({})).await.0;
            assert_eq!(status, if *may { 202 } else { 403 }, "{who} says something in {room}");
        }
        // Any other room is as public as ever.
        socket(&rig, token).await.join("lobby", json!({})).await.ok();
    }
    let mut waiting = socket(&rig, &rig.token("new")).await;
    waiting.join("agent:new", json!({})).await.ok();
    let refused = waiting.join("agent:newer", json!({})).await;
    assert!(refused.reason().starts_with("Unauthorized"), "{refused:?}");
    let client = rig.daemon.parts.database.client().await.unwrap();
    let read = "begin; set local role anon; set local request.jwt.claims to '{\"role\": \"anon\", \"org\": \"demo\"}';
        select * from convoke.tasks";
    assert_eq!(client.batch_execute(read).await.unwrap_err().code().unwrap().code(), "42501");
    client.batch_execute("rollback").await.unwrap();
    drop(client);
    rig.daemon.stop().await;
}

#[tokio::test]
async fn token_with_a_superuser_role_is_refused() {
    let (db, dir) = crate::daemon::fresh().await;
    let mut config = crate::daemon::config(&db, dir.path());
    let client = db.client().await;
    let superuser: String = client.query_one("select current_user::text", &[]).await.unwrap().get(0);
    config.auth.roles.push(superuser.clone());
    let refused = convoke::app::Daemon::builder(config).definitions(Vec::new()).build().await;
    let refused = format!("{:#}", refused.err().expect("it starts"));
    assert!(refused.contains("auth.roles") && refused.contains(&superuser), "{refused}");
}

#[tokio::test]
async fn wal_messages_without_the_key_wake_no_arbiter() {
    let rig = Rig::start(Vec::new()).await;
    let client = rig.daemon.parts.database.client().await.unwrap();
    let noise = "begin; set local role anon;
        select pg_logical_emit_message(true, 'convoke', case when n % 2 = 0 then '' else 'x' end)
        from generate_series(1, 500) n; commit";
    client.batch_execute(noise).await.unwrap();
    drop(client);
    crate::daemon::soon("the noise", async {
        loop {
            let metrics =
                http().get(format!("{}/metrics", rig.http())).send().await.unwrap().text().await.unwrap();
            if metrics.lines().any(|line| line.ends_with("wal_messages_ignored_total 500")) {
                return;
            }
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    })
    .await;
    rig.daemon.stop().await;
}
