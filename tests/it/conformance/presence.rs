//! Presence on public channels: statements 129 to 148.
use crate::realtime::{Got, Server, Socket, quick, room};
use convoke::gateway::{Config, limits::Supabase};
use serde_json::{Value, json};

fn enabled(key: &str) -> Value {
    json!({"presence": {"enabled": true, "key": key}})
}

async fn member(server: &Server, key: &str) -> Socket {
    let mut socket = server.joined("den", enabled(key)).await;
    assert_eq!(socket.next().await.event, "presence_state");
    socket
}

/// Tracks, and returns the difference that follows.
async fn tracked(socket: &mut Socket, payload: Value) -> Got {
    socket.track("den", payload).await;
    socket.until("presence_diff").await
}

/// 129, 139
#[tokio::test]
async fn join_gets_the_presence_state_once_after_its_reply() {
    let server = Server::start().await;
    let (mut a, mut b) = (member(&server, "k").await, member(&server, "k").await);
    tracked(&mut a, json!({"n": 1})).await;
    tracked(&mut b, json!({"n": 2})).await;
    let mut third = server.joined("den", enabled("")).await;
    let state = third.next().await;
    assert_eq!(state.event, "presence_state");
    let metas = state.payload["k"]["metas"].as_array().unwrap();
    assert_eq!(metas.len(), 2);
    assert!(metas.iter().all(|meta| meta["phx_ref"].is_string()));
    let mut empty = server.joined("elsewhere", enabled("")).await;
    assert_eq!(empty.next().await.payload, json!({}));
}

/// 130, 148
#[tokio::test]
async fn channel_without_presence_gets_differences_but_no_state() {
    let server = Server::start().await;
    let mut silent = server.joined("den", json!({"presence": {"enabled": false, "key": "s"}})).await;
    let diff = tracked(&mut silent, json!({})).await;
    assert!(diff.payload["joins"]["s"].is_object());
    let rest = silent.so_far().await;
    assert!(rest.iter().all(|got| got.event == "phx_reply"), "{rest:?}");
}

/// 131
#[tokio::test]
async fn server_can_enable_presence_for_all() {
    let server = Server::with(Config { presence_enabled: true, ..quick() }).await;
    assert_eq!(server.joined("den", json!({})).await.next().await.event, "presence_state");
}

/// 132, 133, 135
#[tokio::test]
async fn track_is_answered_and_published() {
    let server = Server::start().await;
    let mut socket = server.joined("den", json!({"presence": {"enabled": true, "key": 123}})).await;
    socket.until("presence_state").await;
    let own = socket.push("den", "presence", json!({"event": "TRACK", "payload": {"name": "ada"}})).await;
    let (diff, reply) = (socket.next().await, socket.next().await);
    assert_eq!(reply.short(), json!(["1", own, "phx_reply", {"status": "ok", "response": {}}]));
    assert_eq!(diff.event, "presence_diff");
    assert_eq!(diff.payload["leaves"], json!({}));
    assert_eq!(diff.payload["joins"]["123"]["metas"][0]["name"], "ada");
}

/// A client that waits for the reply to its track or untrack has the difference in its state.
#[tokio::test]
async fn reply_to_a_presence_call_follows_its_difference() {
    let server = Server::start().await;
    let mut socket = server.joined("den", enabled("ada")).await;
    // Does not wait for the state: it precedes the first difference.
    socket.track("den", json!({"n": 1})).await;
    let untrack = json!({"type": "presence", "event": "untrack"});
    socket.push("den", "presence", untrack.clone()).await;
    socket.push("den", "presence", untrack).await;
    let mut events = Vec::new();
    while events.iter().filter(|event| *event == "phx_reply").count() < 3 {
        events.push(socket.next().await.event);
    }
    let call = ["presence_diff", "phx_reply"];
    assert_eq!(events, [&["presence_state"][..], &call, &call, &["phx_reply"]].concat());
}

/// 134
#[tokio::test]
async fn empty_presence_key_is_replaced_by_a_generated_one() {
    let server = Server::start().await;
    let (mut a, mut b) = (member(&server, "").await, member(&server, "").await);
    let first = tracked(&mut a, json!({})).await;
    b.track("den", json!({})).await;
    let second = a.until("presence_diff").await;
    let key = |diff: &Got| diff.payload["joins"].as_object().unwrap().keys().next().unwrap().clone();
    assert!(uuid::Uuid::parse_str(&key(&first)).is_ok());
    assert_ne!(key(&first), key(&second));
}

/// 136, 137, 138
#[tokio::test]
async fn only_changed_metas_are_published_as_one_difference() {
    let server = Server::start().await;
    let mut socket = member(&server, "ada").await;
    let first = tracked(&mut socket, json!({"n": 1})).await.payload["joins"].clone();
    socket.so_far().await;
    socket.track("den", json!({"n": 1})).await;
    let second = tracked(&mut socket, json!({"n": 2})).await;
    assert_eq!(second.payload["leaves"], first);
    let meta = &second.payload["joins"]["ada"]["metas"][0];
    assert_eq!(meta["phx_ref_prev"], first["ada"]["metas"][0]["phx_ref"]);
    assert_eq!(meta["n"], 2);
    let untrack = json!({"event": "untrack"});
    socket.so_far().await;
    socket.push("den", "presence", untrack.clone()).await;
    assert_eq!(socket.until("presence_diff").await.payload["leaves"], second.payload["joins"]);
    socket.push("den", "presence", untrack).await;
    let fresh = tracked(&mut socket, json!({"n": 2})).await;
    assert_eq!(fresh.payload["leaves"], json!({}), "untracking twice told nothing");
    assert_eq!(fresh.payload["joins"]["ada"]["metas"][0].get("phx_ref_prev"), None);
}

/// 140
#[tokio::test]
async fn closed_socket_leaves_every_channel() {
    let server = Server::start().await;
    let mut watcher = member(&server, "w").await;
    watcher.join("other", enabled("w")).await.ok();
    watcher.until("presence_state").await;
    let mut gone = member(&server, "gone").await;
    gone.join("other", enabled("gone")).await.ok();
    gone.track("den", json!({})).await;
    gone.track("other", json!({})).await;
    watcher.until("presence_diff").await;
    watcher.until("presence_diff").await;
    drop(gone);
    let mut left = [watcher.until("presence_diff").await, watcher.until("presence_diff").await];
    left.sort_by(|a, b| a.topic.cmp(&b.topic));
    assert_eq!([left[0].topic.as_str(), &left[1].topic], ["realtime:den", "realtime:other"]);
    assert!(left.iter().all(|got| got.payload["leaves"]["gone"].is_object()));
}

/// 141, 142
#[tokio::test]
async fn invalid_presence_call_is_refused_and_the_channel_stays() {
    let server = Server::start().await;
    let mut socket = member(&server, "ada").await;
    let reply = socket.ask("den", "presence", json!({"event": "track", "payload": [1]})).await;
    assert_eq!(reply.reason(), "Presence track payload must be a map");
    for odd in [json!({"event": "dance"}), json!({"event": 7}), json!([])] {
        let reply = socket.ask("den", "presence", odd).await;
        assert_eq!(reply.payload, json!({"status": "error", "response": {}}));
    }
    socket.ask("den", "presence", json!({})).await.ok();
    tracked(&mut socket, json!({})).await;
}

/// 146
#[tokio::test]
async fn presence_call_over_the_limit_ends_the_channel() {
    let server = Server::with(super::supabase(Supabase::default())).await;
    let mut socket = member(&server, "ada").await;
    for _ in 0..5 {
        socket.ask("den", "presence", json!({"event": "untrack"})).await.ok();
    }
    socket.push("den", "presence", json!({"event": "untrack"})).await;
    assert_eq!(socket.next().await.payload["message"], "Client presence rate limit exceeded");
    assert_eq!(socket.next().await.event, "phx_close");
}

/// 147
#[tokio::test]
async fn oversized_track_ends_the_channel() {
    let server = Server::with(Config { payload_bytes_max: 1000, ..quick() }).await;
    let mut socket = member(&server, "ada").await;
    socket.track("den", json!({"x": "y".repeat(1600)})).await;
    assert_eq!(socket.next().await.payload["message"], "Track message size exceeded");
    assert_eq!(socket.next().await.event, "phx_close");
}

/// Hosted agents have presence like clients, beside a client with the same key.
#[tokio::test]
async fn hosted_agents_have_presence() {
    let server = Server::start().await;
    let meta = |activity: &str| {
        json!({"agent_id": "triage", "activity_type": activity}).as_object().cloned().unwrap()
    };
    server.tracker.set(room("den"), "triage", meta("idle"));
    server.tracker.snapshot(room("den")).await;
    let mut socket = server.joined("den", enabled("triage")).await;
    let state = socket.until("presence_state").await;
    assert_eq!(state.payload["triage"]["metas"][0]["activity_type"], "idle");
    tracked(&mut socket, json!({"activity_type": "pretending"})).await;
    server.tracker.set(room("den"), "triage", meta("working"));
    let diff = socket.until("presence_diff").await;
    assert_eq!(diff.payload["joins"]["triage"]["metas"][0]["activity_type"], "working");
    assert_eq!(diff.payload["leaves"]["triage"], state.payload["triage"], "the client's own meta stays");
}

/// In the rooms of agents, an agent's presence key needs that agent's token; other keys are free.
#[tokio::test]
async fn presence_key_of_an_agent_needs_its_token() {
    let server = Server::start().await;
    let meta = json!({"agent_id": "triage"}).as_object().cloned().unwrap();
    server.tracker.set(room("org:demo"), "triage", meta);
    let exp = convoke::clock::Clock::System.now().timestamp() + 60;
    let own = server.sign(&json!({"role": "authenticated", "exp": exp, "org": "demo", "agent_id": "triage"}));
    let join = |key: &str, token: Option<&str>| json!({"config": enabled(key), "access_token": token});
    let track = |payload: Value| json!({"type": "presence", "event": "Track", "payload": payload});
    for topic in ["org:demo", "agent:triage"] {
        let mut anon = server.v2().await;
        anon.join_with(topic, join("triage", None)).await.ok();
        anon.until("presence_state").await;
        let reply = anon.ask(topic, "presence", track(json!({"n": 1}))).await;
        assert!(reply.reason().contains("presence key \"triage\""), "{reply:?}");
        anon.join_with(topic, join("me", None)).await.ok();
        anon.until("presence_state").await;
        for claimed in [json!("triage"), json!("another"), json!(7)] {
            let reply = anon.ask(topic, "presence", track(json!({ "agent_id": claimed }))).await;
            assert!(reply.reason().starts_with("agent_id "), "{reply:?}");
        }
        anon.push(topic, "presence", track(json!({"agent_id": null, "n": 1}))).await;
        assert!(
            anon.until("presence_diff").await.payload["joins"]["me"].is_object(),
            "true entries are delivered"
        );

        let mut agent = server.v2().await;
        agent.join_with(topic, join("triage", Some(&own))).await.ok();
        agent.until("presence_state").await;
        agent.push(topic, "presence", track(json!({"agent_id": "triage", "n": 2}))).await;
        assert_eq!(anon.until("presence_diff").await.payload["joins"]["triage"]["metas"][0]["n"], 2);
    }
    let look = server.gateway.topic(&convoke::id::Topic::new("org:demo").unwrap(), 10).unwrap();
    // Whether the room still exists depends on how fast the sockets end.
    let mut refusals = look.rooms.iter().flat_map(|room| &room.refusals).chain(&look.refusals);
    assert!(refusals.any(|refusal| refusal.code == "impostor"));
}

/// The state of a full room is megabytes. A joining client gets all of it, with both serializers, and later changes.
#[tokio::test]
async fn joining_client_gets_the_state_of_ten_thousand_members() {
    const MEMBERS: usize = 10_000;
    let server = Server::start().await;
    let room = room("den");
    let meta = json!({"status": "x".repeat(100)}).as_object().cloned().unwrap();
    for n in 0..MEMBERS {
        server.tracker.set(room.clone(), &format!("member-{n}"), meta.clone());
        if n % 500 == 0 {
            tokio::task::yield_now().await;
        }
    }
    for mut socket in [server.v1().await, server.v2().await] {
        socket.join("den", enabled("me")).await.ok();
        let mut known = std::collections::BTreeSet::new();
        let keys = |part: &Value| part.as_object().unwrap().keys().cloned().collect::<Vec<_>>();
        let state = socket.until("presence_state").await;
        known.extend(keys(&state.payload));
        while known.len() < MEMBERS {
            known.extend(keys(&socket.until("presence_diff").await.payload["joins"]));
        }
        socket.track("den", json!({"n": 1})).await;
        loop {
            let diff = socket.until("presence_diff").await;
            if diff.payload["joins"].get("me").is_some() {
                break;
            }
        }
    }
    server.stop().await;
}
