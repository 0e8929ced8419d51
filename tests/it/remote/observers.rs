//! Channels, inboxes and presence keys of an agent that nobody knew, when it turns out to be of another org.
use super::Rig;
use crate::{
    daemon::soon,
    realtime::{Socket, http},
};
use convoke::{
    access::Observers,
    agent::{Definition, Kind, Remote},
    auth::Role,
};
use reqwest::Method;
use serde_json::{Value, json};

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

/// A daemon with observers by token.
async fn rig() -> Rig {
    Rig::with(Vec::new(), |config| config.access.observers = Observers::Token).await
}

impl Rig {
    /// Registers the agent in org `demo`, as another daemon on the same database does.
    async fn register_elsewhere(&self, agent: &str) {
        let definition =
            Definition::new(agent.parse().unwrap(), "demo".parse().unwrap(), Kind::Remote).capable(["work"]);
        self.daemon.parts.tasks.join_remote(definition.profile(), None).await.unwrap();
    }

    /// Says something in the room of an agent.
    async fn say(&self, agent: &str, text: &str) {
        let service = self.mint(Role::ServiceRole, "demo", None);
        let path = format!("/api/broadcast/agent%3A{agent}/events/chat");
        assert_eq!(call(self, Method::POST, &path, &service, json!({ "text": text })).await.0, 202);
    }
}

/// Waits until the channel ends; returns the reason. Fails if it hears the secret.
async fn ended(spy: &mut Socket) -> String {
    let mut reason = String::new();
    loop {
        let got = spy.next().await;
        assert!(!got.payload.to_string().contains("secret"), "{got:?}");
        match &*got.event {
            "system" => reason = got.payload["message"].as_str().unwrap().to_owned(),
            "phx_close" => return reason,
            _ => {}
        }
    }
}

#[tokio::test]
async fn channel_in_the_room_of_an_unknown_agent_ends_when_another_org_registers_it() {
    let rig = rig().await;
    let thief = rig.mint(Role::Authenticated, "else", Some("late"));
    let mut spies = [socket(&rig, &thief).await, socket(&rig, &thief).await];
    for spy in &mut spies {
        spy.join("agent:late", json!({})).await.ok();
    }
    let mut own = socket(&rig, &rig.token("late")).await;
    own.join("agent:late", json!({})).await.ok();
    // By a connection to this daemon.
    let _late = rig.agent("late").await;
    rig.say("late", "secret").await;
    for spy in &mut spies {
        assert!(ended(spy).await.contains("no longer have permission"));
        let refused = spy.join("agent:late", json!({})).await;
        assert!(refused.reason().starts_with("Unauthorized"), "{refused:?}");
        rig.say("late", "secret").await;
        assert!(spy.so_far().await.iter().all(|got| got.event != "broadcast"));
    }
    assert_eq!(own.until("broadcast").await.payload["payload"]["text"], "secret");

    // By another daemon: this one reads it within seconds, and nothing need happen here.
    let thief = rig.mint(Role::Authenticated, "else", Some("later"));
    let mut spy = socket(&rig, &thief).await;
    spy.join("agent:later", json!({})).await.ok();
    rig.register_elsewhere("later").await;
    ended(&mut spy).await;
    rig.say("later", "secret").await;
    assert!(spy.so_far().await.iter().all(|got| got.event != "broadcast"));
    rig.daemon.stop().await;
}

#[tokio::test]
async fn inbox_of_an_agent_that_another_org_registers_closes_and_commands_nothing() {
    // Nobody without a file is registered here, so the thief is merely connected.
    let rig = Rig::with(Vec::new(), |config| {
        config.access.observers = Observers::Token;
        config.agents.remote = Remote::Listed;
    })
    .await;
    let thief = rig.mint(Role::Authenticated, "else", Some("late"));
    let presence = json!({ "capabilities": ["work"], "lease": "60s" });
    assert_eq!(call(&rig, Method::PUT, "/v1/agents/late/presence", &thief, presence.clone()).await.0, 200);
    // The refusal of its registration is the first message.
    let (_, page) = call(&rig, Method::GET, "/v1/agents/late/inbox?wait=30s", &thief, Value::Null).await;
    let next = page["next"].as_u64().unwrap();
    let poll = format!("/v1/agents/late/inbox?after={next}&wait=60s");
    let poll = call(&rig, Method::GET, &poll, &thief, Value::Null);
    let taken = async {
        rig.register_elsewhere("late").await;
        // Known here at once: what an agent does is checked against its registration.
        let (status, problem) = call(
            &rig,
            Method::POST,
            "/v1/tasks/0190c9a5-1e3b-7000-8000-000000000000/offers",
            &thief,
            json!({ "round": 1, "cost": 1 }),
        )
        .await;
        assert_eq!((status, &problem["code"]), (403, &json!("forbidden")), "{problem}");
        rig.say("late", "secret").await;
    };
    // The poll ends although its time is not over. 403: it came to the daemon after the offer.
    let ((status, page), ()) = soon("the end of the poll", async { tokio::join!(poll, taken) }).await;
    assert!(matches!(status, 200 | 403) && !page.to_string().contains("secret"), "{status} {page}");
    for (method, path, body) in [
        (Method::PUT, "/v1/agents/late/presence", presence),
        (Method::GET, "/v1/agents/late/inbox", Value::Null),
    ] {
        assert_eq!(call(&rig, method, path, &thief, body).await.0, 403, "{path}");
    }
    let own = rig.token("late");
    assert_eq!(
        call(&rig, Method::PUT, "/v1/agents/late/presence", &own, json!({ "lease": "5s" })).await.0,
        200
    );
    rig.daemon.stop().await;
}

#[tokio::test]
async fn presence_key_of_an_agent_is_its_own_before_and_after_it_is_connected() {
    let rig = rig().await;
    let user = rig.mint(Role::Authenticated, "demo", None);
    let present = async |token: &str, key: &str| {
        let mut socket = socket(&rig, token).await;
        socket.join("org:demo", json!({ "presence": { "enabled": true, "key": key } })).await.ok();
        socket.push("org:demo", "presence", json!({ "event": "track", "payload": { "mood": "fine" } })).await;
        let reply = socket.until("phx_reply").await;
        (socket, reply.payload["status"] == "ok")
    };
    let (mut squatter, tracked) = present(&user, "late").await;
    assert!(tracked, "nobody has this id");
    let (mut neighbor, tracked) = present(&user, "lately").await;
    assert!(tracked);
    let late = rig.agent("late").await;
    assert!(ended(&mut squatter).await.contains("presence key"));
    assert!(!present(&user, "late").await.1, "it is connected");
    drop(late);
    rig.status("late", "gone").await;
    assert!(!present(&user, "late").await.1, "it is away");
    assert!(present(&rig.token("late"), "late").await.1, "its own");
    assert!(!present(&rig.token("other"), "late").await.1, "another agent");
    assert!(neighbor.so_far().await.iter().all(|got| got.event != "phx_close"));
    rig.daemon.stop().await;
}

#[tokio::test]
async fn presence_by_http_is_limited_in_size_and_rate_and_counted() {
    let rig = rig().await;
    let near = rig.token("near");
    let put = async |meta: Value| {
        let (status, answer) = call(&rig, Method::PUT, "/v1/agents/near/presence", &near, meta).await;
        (status, answer["code"].as_str().unwrap_or_default().to_owned())
    };
    let held = async || {
        let metrics = http().get(format!("{}/metrics", rig.http())).send().await.unwrap();
        let metrics = metrics.text().await.unwrap();
        let line = metrics.lines().find(|line| !line.starts_with('#') && line.contains("hub_memory_bytes "));
        line.and_then(|line| line.rsplit(' ').next()?.parse::<u64>().ok()).unwrap()
    };
    assert_eq!(put(json!({ "capabilities": ["work"], "lease": "60s" })).await.0, 200);
    let before = held().await;
    assert_eq!(put(json!({ "note": "x".repeat(60_000), "lease": "60s" })).await.0, 200);
    assert!(held().await >= before + 100_000, "text and copy are counted");
    assert_eq!(
        put(json!({ "note": "x".repeat(70_000), "lease": "60s" })).await,
        (413, "too_large".to_owned())
    );
    assert_eq!(put(json!({ "lease": "60s" })).await.0, 200);
    assert!(held().await < before + 100_000, "what was replaced is not counted");
    // The same by a socket is refused, too.
    let mut by_socket = socket(&rig, &near).await;
    by_socket.join("agent:near", json!({ "presence": { "enabled": true, "key": "near" } })).await.ok();
    by_socket.track("agent:near", json!({ "note": "x".repeat(70_000) })).await;
    let refused = by_socket.until("phx_reply").await;
    assert!(refused.reason().contains("at most 65536 bytes"), "{refused:?}");
    // One agent renews often. One client, so that a request costs no new connection; more than the limit, in case a
    // minute ends on the way.
    let thief = rig.mint(Role::Authenticated, "else", Some("near"));
    assert_eq!(call(&rig, Method::PUT, "/v1/agents/near/presence", &thief, json!({})).await.0, 403);
    let client = http();
    let renew = || async {
        let url = format!("{}/v1/agents/near/presence", rig.http());
        let request = client.put(url).bearer_auth(&near).header("content-type", "application/json");
        let answer = request.body(r#"{ "lease": "60s" }"#).send().await.unwrap();
        (answer.status().as_u16(), answer.text().await.unwrap())
    };
    let mut renewed = 0;
    let (limited, problem) = loop {
        let answers = futures_util::future::join_all((0..20).map(|_| renew())).await;
        renewed += answers.iter().filter(|(status, _)| *status == 200).count();
        if let Some(other) = answers.into_iter().find(|(status, _)| *status != 200) {
            break other;
        }
        assert!(renewed < 5_000, "never refused");
    };
    assert!(limited == 429 && problem.contains("rate_limited"), "{limited} {problem}");
    assert!(renewed > 500, "{renewed}");
    // By its org: another token with the same id has a limit of its own.
    assert_eq!(call(&rig, Method::PUT, "/v1/agents/near/presence", &thief, json!({})).await.0, 403);
    rig.daemon.stop().await;
}
