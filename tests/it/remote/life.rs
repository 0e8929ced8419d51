//! A remote agent's life: here while its socket is, asked, awarded, working, letting go.
use super::{Rig, about};
use crate::daemon::{Echo, definition, soon};
use convoke::{
    agent::{Definition, Kind, Remote},
    auth::Role,
    clock::Clock,
    task::TaskState,
};
use serde_json::{Value, json};
use std::sync::Arc;
use tokio::sync::mpsc;

#[tokio::test]
async fn remote_agent_refuses_accepts_releases_and_finishes() {
    let rig = Rig::start(Vec::new()).await;
    let (mut near, mut boss) = (rig.agent("near").await, rig.client(&rig.token("boss"), "agent:boss").await);
    let request = json!({
        "type": "task_request", "agent_id": "boss", "command_id": "c",
        "task": {
            "kind": "k", "requires": ["work"], "priority": 3, "input": { "secret": 1 },
            "policy": { "bid_window": "10s" },
        },
    });
    boss.send_message("agent:boss", request).await;
    let made = boss.message("task_update").await;
    assert_eq!(made["task"]["requester"], "agent:demo/boss");

    let asked = near.message("task_request").await;
    assert_eq!(asked["agent_id"], "boss");
    let task = &asked["task"];
    assert_eq!(task["requires"], json!(["work"]));
    assert_eq!((&task["priority"], &task["round"]), (&json!(3), &json!(1)));
    assert_eq!(task["input_preview"], "{\"secret\": 1}");
    assert!(task["bids_close_at"].is_string());

    let offer = |round: &Value| json!({ "type": "task_offer", "task_id": made["task"]["id"], "round": round, "offer": { "cost": 5, "eta_ms": 10, "confidence": 0.6 } });
    near.send_message("agent:near", offer(&task["round"])).await;
    let won = near.message("task_assignment").await;
    let until: chrono::DateTime<chrono::Utc> = serde_json::from_value(won["confirm_by"].clone()).unwrap();
    assert!((until - Clock::System.now()).num_milliseconds() > 3_000, "agents outside have five seconds");
    near.send_message("agent:near", about("task_refuse", &won, json!({ "reason": "not now" }))).await;

    let again = near.message("task_request").await;
    near.send_message("agent:near", offer(&again["task"]["round"])).await;
    let won = near.message("task_assignment").await;
    near.send_message("agent:near", about("task_accept", &won, json!({ "command_id": "a" }))).await;
    let start = near.message("task_start").await;
    assert_eq!((&start["input"], &start["in_reply_to"]), (&json!({ "secret": 1 }), &json!("a")));
    assert_eq!(start["lease_ms"], 30_000);
    near.send_message("agent:near", about("heartbeat", &won, json!({}))).await;
    let progress = json!({ "progress": 0.5, "activity": "half", "checkpoint": { "page": 7 } });
    near.send_message("agent:near", about("task_progress", &won, progress)).await;
    near.send_message("agent:near", about("task_release", &won, json!({ "reason": "tired" }))).await;
    assert_eq!(near.message("task_update").await["task"]["state"], "open");

    let asked = near.message("task_request").await;
    near.send_message("agent:near", offer(&asked["task"]["round"])).await;
    let won = near.message("task_assignment").await;
    near.send_message("agent:near", about("task_accept", &won, json!({}))).await;
    assert_eq!(near.message("task_start").await["checkpoint"], json!({ "page": 7 }));
    near.send_message("agent:near", about("task_result", &won, json!({ "result": { "done": true } }))).await;
    let update = near.message("task_update").await;
    assert_eq!(update["task"]["state"], "completed");
    // Once more: the stored outcome.
    near.send_message("agent:near", about("task_result", &won, json!({ "result": { "done": true } }))).await;
    assert_eq!(near.message("task_update").await["task"]["state"], "completed");
    let id = serde_json::from_value(made["task"]["id"].clone()).unwrap();
    let stored = rig.daemon.parts.tasks.get(id).await.unwrap();
    assert_eq!(stored.result, Some(json!({ "done": true })));
    assert_eq!((&made["task"]["version"], &update["task"]["version"]), (&json!(1), &json!(stored.version)));
    rig.daemon.stop().await;
}

#[tokio::test]
async fn round_does_not_wait_for_a_defined_agent_that_is_not_connected() {
    let (told, _inputs) = mpsc::channel(16);
    let far =
        Definition::new("far".parse().unwrap(), "demo".parse().unwrap(), Kind::Remote).capable(["work"]);
    let far = (far, Arc::new(Echo(told.clone())) as _);
    let rig = Rig::start(vec![(definition("echo", ""), Arc::new(Echo(told)) as _), far]).await;
    let announced = |task: convoke::task::Task| {
        let tasks = rig.daemon.parts.tasks.clone();
        async move {
            let events = tasks.events(task.id, 0, 100).await.unwrap();
            events.iter().any(|event| event.event_type == "announced")
        }
    };
    let task = rig.end(&rig.request(json!({ "kind": "k", "requires": ["work"] })).await).await;
    assert!(!announced(task).await);

    // While it is here it is asked, with the capabilities of its file; a second socket keeps it here.
    let mut first = rig.client(&rig.token("far"), "agent:far").await;
    first.ask("track", json!({ "topic": "agent:far", "payload": {} }), "tracked").await;
    let life = rig.status("far", "present").await.incarnation;
    let mut second = rig.client(&rig.token("far"), "agent:far").await;
    second.ask("track", json!({ "topic": "agent:far", "payload": {} }), "tracked").await;
    drop(first);
    let task = rig.end(&rig.request(json!({ "kind": "k", "requires": ["work"] })).await).await;
    assert!(announced(task).await);
    assert_eq!(rig.status("far", "present").await.incarnation, life);
    second.ask("untrack", json!({ "topic": "agent:far" }), "untracked").await;
    rig.status("far", "gone").await;
    let task = rig.end(&rig.request(json!({ "kind": "k", "requires": ["work"] })).await).await;
    assert!(!announced(task).await);
    rig.daemon.stop().await;
}

#[tokio::test]
async fn agent_that_may_not_register_gets_an_error() {
    let (told, _inputs) = mpsc::channel(16);
    let agents = vec![(definition("echo", ""), Arc::new(Echo(told)) as _)];
    let rig = Rig::with(agents, |config| config.agents.remote = Remote::Listed).await;
    for (id, word) in [("echo", "hosts"), ("stranger", "no file")] {
        let room = format!("agent:{id}");
        let mut client = rig.client(&rig.token(id), &room).await;
        client.ask("track", json!({ "topic": room, "payload": {} }), "tracked").await;
        let error = client.message("error").await;
        assert_eq!(error["code"], "forbidden");
        assert!(error["message"].as_str().unwrap().contains(word), "{error}");
    }
    let task = rig.end(&rig.request(json!({ "kind": "k", "requires": ["work"] })).await).await;
    assert_eq!((task.state, task.agent_id), (TaskState::Completed, "echo".parse().ok()));
    rig.daemon.stop().await;
}

#[tokio::test]
async fn presence_metadata_is_checked_and_may_change() {
    let rig = Rig::start(Vec::new()).await;
    let mut near = rig.client(&rig.token("near"), "agent:near").await;
    let track = |payload: Value| json!({ "topic": "agent:near", "payload": payload });
    near.ask("track", track(json!({ "slots": 0 })), "tracked").await;
    assert_eq!(near.message("error").await["code"], "bad_request");
    near.ask("track", track(json!({ "capabilities": ["a"] })), "tracked").await;
    let life = rig.status("near", "present").await.incarnation;
    near.ask("track", track(json!({ "capabilities": ["a", "b"], "slots": 2 })), "tracked").await;
    soon("the new profile", async {
        while rig.status("near", "present").await.capabilities.len() < 2 {
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
    })
    .await;
    let agent = rig.status("near", "present").await;
    assert_eq!((agent.incarnation, agent.slots), (life, 2), "its life goes on");
    // Its org sees it as it sees hosted agents.
    let mut watcher = rig.client(&rig.mint(Role::Anon, "demo", None), "org:demo").await;
    watcher.sees("near", "activity_type", &json!("idle")).await;
    drop(near);
    watcher.misses("near").await;
    rig.daemon.stop().await;
}
