//! The same command through each door by each role: HTTP and a websocket give the same answer.
use super::{Rig, about};
use crate::realtime::{Got, Socket, http};
use convoke::{
    auth::Role,
    id::{OrgId, TaskId},
};
use serde_json::{Value, json};

/// A websocket with this token in the room of agent `near`.
async fn socket(rig: &Rig, token: &str) -> Socket {
    let url = format!("ws://{}/realtime/v1/websocket?apikey={token}&vsn=2.0.0", rig.daemon.parts.addr);
    let mut socket = Socket::open(&url, true).await;
    socket.join("agent:near", json!({ "broadcast": { "ack": true } })).await.ok();
    socket
}

/// What the daemon answers to a message of the negotiation.
async fn answer(socket: &mut Socket, mut message: Value) -> Value {
    let id = uuid::Uuid::new_v4().to_string();
    message["command_id"] = json!(id);
    let event = json!({ "type": "broadcast", "event": "coordination", "payload": message });
    socket.push("agent:near", "broadcast", event).await;
    loop {
        let Got { payload, .. } = socket.until("broadcast").await;
        if payload["payload"]["in_reply_to"] == json!(id) {
            return payload["payload"].clone();
        }
    }
}

/// The code and message of a refusal, or the org of the task that was made.
async fn outcome(rig: &Rig, answered: &Value, text: &str) -> Result<OrgId, (Value, Value)> {
    match answered["task"]["id"].as_str() {
        Some(id) => {
            let id: TaskId = id.parse().unwrap();
            Ok(rig.daemon.parts.tasks.get(id).await.unwrap().org)
        }
        None => Err((answered["code"].clone(), answered[text].clone())),
    }
}

#[tokio::test]
async fn part_belongs_to_the_org_of_its_parent_through_every_door_and_role() {
    let rig = Rig::start(Vec::new()).await;
    let mut near = rig.agent("near").await;
    let task =
        rig.request(json!({ "kind": "k", "requires": ["work"], "policy": { "bid_window": "30s" } })).await;
    let asked = near.message("task_request").await;
    let offer = json!({
        "type": "task_offer", "task_id": task.id, "round": asked["task"]["round"], "offer": { "cost": 1 },
    });
    near.send_message("agent:near", offer).await;
    let won = near.message("task_assignment").await;
    near.send_message("agent:near", about("task_accept", &won, json!({}))).await;
    near.message("task_start").await;

    let bare = json!({ "role": "service_role", "exp": 4_000_000_000_u64 });
    let bare = rig.sign(&bare);
    let made = || Ok("demo".parse::<OrgId>().unwrap());
    let refused = |code: &'static str| Err(code);
    for (who, token, expected) in [
        ("the service without an org", bare, made()),
        ("the service of another org", rig.mint(Role::ServiceRole, "else", None), made()),
        ("the agent", rig.token("near"), made()),
        ("another agent", rig.token("other"), refused("forbidden")),
        (
            "the same name in another org",
            rig.mint(Role::Authenticated, "else", Some("near")),
            refused("forbidden"),
        ),
        ("a user", rig.mint(Role::Authenticated, "demo", None), refused("forbidden")),
        ("an anon key", rig.mint(Role::Anon, "demo", None), refused("forbidden")),
    ] {
        let part = json!({ "agent_id": "near", "task": { "kind": "part", "requires": ["nothing here"] } });
        let message = about("task_request", &won, part);
        let said = answer(&mut socket(&rig, &token).await, message.clone()).await;
        let by_socket = outcome(&rig, &said, "message").await;
        let path =
            format!("{}/v1/assignments/{}/request", rig.http(), won["assignment_id"].as_str().unwrap());
        let response = http().post(path).bearer_auth(&token).body(message.to_string()).send().await.unwrap();
        let said: Value = serde_json::from_str(&response.text().await.unwrap()).unwrap();
        let by_http = outcome(&rig, &said, "detail").await;
        assert_eq!(by_socket, by_http, "{who}");
        assert_eq!(by_socket.map_err(|(code, _)| code), expected.map_err(|code| json!(code)), "{who}");
    }
    rig.daemon.stop().await;
}
