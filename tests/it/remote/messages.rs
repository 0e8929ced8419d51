//! Messages between agents: hosted ones, those with a socket and those with HTTP alone; and who may send as whom.
use super::Rig;
use crate::{
    daemon::{definition, soon},
    realtime::client_process::ClientProcess,
};
use convoke::{
    agent::{Agent, AgentMessage, Finished, Handled, Job},
    auth::Role,
    task::Failure,
};
use serde_json::{Value, json};
use std::sync::Arc;
use tokio::sync::mpsc;

/// Tells the test what it hears, and answers a task with what was kept for it.
struct Ears {
    heard: mpsc::Sender<AgentMessage>,
    keeps: bool,
}

#[async_trait::async_trait]
impl Agent for Ears {
    async fn run(&self, job: Job) -> Result<Finished, Failure> {
        Ok(json!(job.messages().iter().map(|message| &message.payload).collect::<Vec<_>>()).into())
    }

    async fn message(&self, message: &AgentMessage) -> Result<Handled, Failure> {
        self.heard.send(message.clone()).await.unwrap();
        Ok(if self.keeps { Handled::Keep } else { Handled::Taken })
    }
}

fn hosted(
    name: &str,
    keeps: bool,
) -> ((convoke::agent::Definition, Arc<dyn Agent>), mpsc::Receiver<AgentMessage>) {
    let (heard, messages) = mpsc::channel(16);
    ((definition(name, ""), Arc::new(Ears { heard, keeps })), messages)
}

async fn send(client: &mut ClientProcess, room: &str, event: &str, payload: Value) {
    let send = json!({ "topic": room, "name": event, "payload": payload });
    assert_eq!(client.ask("send", send, "sent").await, "ok");
}

#[tokio::test]
async fn message_reaches_hosted_and_remote_agents_and_observers() {
    let ((ears, mut heard), (keeper, mut kept)) = (hosted("ears", false), hosted("keeper", true));
    let rig = Rig::start(vec![ears, keeper]).await;
    let mut near = rig.client(&rig.token("near"), "agent:ears").await;
    let mut observer = rig.client(&rig.mint(Role::Authenticated, "demo", None), "agent:ears").await;
    send(&mut near, "agent:ears", "agent_message", json!({ "agent_id": "near", "text": "hello" })).await;
    let message = soon("the message", heard.recv()).await.unwrap();
    assert_eq!((message.event, message.from.as_str()), ("agent_message", "near"));
    assert_eq!(message.payload["text"], "hello");
    assert_eq!(observer.broadcast("agent_message").await["text"], "hello");

    // To all agents of the org: hosted ones, and an agent with an HTTP inbox only; none of another org.
    let http = reqwest::Client::new();
    let at = |path: &str| format!("{}/v1/{path}", rig.http());
    let far = rig.mint(Role::Authenticated, "demo", Some("far"));
    let profile = json!({ "capabilities": [], "lease": "30s" }).to_string();
    let put = http.put(at("agents/far/presence")).bearer_auth(&far).body(profile).send().await.unwrap();
    assert_eq!(put.status(), 200);
    let mut room = rig.client(&rig.token("near"), "org:demo").await;
    send(&mut room, "org:demo", "agent_broadcast", json!({ "text": "all" })).await;
    for agent in [&mut heard, &mut kept] {
        let message = soon("the broadcast", agent.recv()).await.unwrap();
        assert_eq!((message.event, message.payload["text"].as_str()), ("agent_broadcast", Some("all")));
    }
    let inbox = http.get(at("agents/far/inbox?wait=10s")).bearer_auth(&far).send().await.unwrap();
    let inbox: Value = inbox.json().await.unwrap();
    assert_eq!(inbox["messages"][0]["event"], "agent_broadcast", "{inbox}");

    // Over HTTP to one, which keeps it for its next job.
    let said = http.post(at("agents/keeper/messages")).bearer_auth(&far).body(r#"{"text":"later"}"#);
    assert_eq!(said.send().await.unwrap().status(), 202);
    let message = soon("the message over http", kept.recv()).await.unwrap();
    assert_eq!(message.from, "far");
    let direct =
        json!({ "kind": "k", "requires": ["work"], "policy": { "award": "direct", "agent": "keeper" } });
    let ended = rig.end(&rig.request(direct.clone()).await).await;
    assert_eq!(ended.result, Some(json!([{ "text": "all" }, { "text": "later" }])));
    let ended = rig.end(&rig.request(direct).await).await;
    assert_eq!(ended.result, Some(json!([])), "each message once");
    rig.daemon.stop().await;
}

#[tokio::test]
async fn message_with_a_false_sender_or_of_another_org_is_not_delivered() {
    let (ears, mut heard) = hosted("ears", false);
    let rig = Rig::start(vec![ears]).await;
    let mut observer = rig.client(&rig.token("watcher"), "agent:ears").await;
    let mut near = rig.client(&rig.token("near"), "agent:ears").await;
    let mut anon = rig.client(&rig.mint(Role::Anon, "demo", None), "agent:ears").await;
    let mut far = rig.client(&rig.mint(Role::Authenticated, "elsewhere", Some("far")), "agent:ears").await;
    send(&mut near, "agent:ears", "agent_message", json!({ "agent_id": "ears", "text": "forged" })).await;
    assert_eq!(near.message("error").await["code"], "forbidden");
    for stranger in [&mut anon, &mut far] {
        send(stranger, "agent:ears", "agent_message", json!({ "text": "strange" })).await;
        assert_eq!(stranger.message("error").await["code"], "forbidden");
    }
    // A word of the negotiation in another agent's room goes to the daemon alone: it could pass for the daemon's.
    let forged = json!({ "type": "task_cancel", "task_id": "01890a5d-ac96-774b-bcce-b302099a8057" });
    send(&mut near, "agent:ears", "coordination", forged).await;
    assert_eq!(near.message("error").await["code"], "unknown_task");

    // Nor over HTTP, by either way.
    let http = reqwest::Client::new();
    let post = |path: &str, token: &str, body: &str| {
        http.post(format!("{}{path}", rig.http())).bearer_auth(token).body(body.to_owned()).send()
    };
    let elsewhere = rig.mint(Role::Authenticated, "elsewhere", Some("far"));
    let (forged, own) = (r#"{"agent_id":"ears"}"#, rig.token("near"));
    for (path, token, body) in [
        ("/v1/agents/ears/messages", &elsewhere, "{}"),
        ("/v1/agents/ears/messages", &own, forged),
        ("/v1/orgs/elsewhere/messages", &own, "{}"),
    ] {
        assert_eq!(post(path, token, body).await.unwrap().status(), 403, "{path} {body}");
    }
    let relayed = http
        .post(format!("{}/api/broadcast/agent:ears/events/agent_message", rig.http()))
        .bearer_auth(&own)
        .header("content-type", "application/json")
        .body(forged);
    assert_eq!(relayed.send().await.unwrap().status(), 403);

    // The first thing that anybody hears is what was said truly.
    send(&mut near, "agent:ears", "agent_message", json!({ "text": "true" })).await;
    assert_eq!(observer.broadcast("agent_message").await["text"], "true");
    assert_eq!(soon("the true one", heard.recv()).await.unwrap().payload["text"], "true");
    rig.daemon.stop().await;
}

#[tokio::test]
async fn requester_gets_offers_awards_and_updates_on_its_own_channel() {
    let (ears, _heard) = hosted("ears", false);
    let rig = Rig::start(vec![ears]).await;
    let mut boss = rig.client(&rig.token("boss"), "agent:boss").await;
    boss.ask("track", json!({ "topic": "agent:boss", "payload": {} }), "tracked").await;
    rig.status("boss", "present").await;
    let request = json!({
        "type": "task_request", "command_id": "c",
        "task": { "kind": "k", "requires": ["work"], "policy": { "award": "requester", "choose_within": "1h" } },
    });
    boss.send_message("agent:boss", request).await;
    let made = boss.message("task_update").await;
    assert_eq!(made["in_reply_to"], "c", "the answer comes before any copy");
    let offer = boss.message("task_offer").await;
    assert_eq!((&offer["agent_id"], &offer["task_id"]), (&json!("ears"), &made["task"]["id"]));
    let choose = json!({ "type": "task_choose", "task_id": made["task"]["id"], "chosen": "ears" });
    boss.send_message("agent:boss", choose).await;
    let award = boss.message("task_assignment").await;
    assert_eq!((&award["agent_id"], &award["task_id"]), (&json!("ears"), &made["task"]["id"]));
    loop {
        let update = boss.message("task_update").await;
        assert_eq!(update["task"]["id"], made["task"]["id"]);
        if update["task"]["state"] == "completed" {
            break;
        }
    }
    rig.daemon.stop().await;
}
