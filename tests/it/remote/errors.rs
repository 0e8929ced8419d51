//! Every error code of `docs/spec/negotiation.md` §6, provoked over the websocket.
use super::{Rig, about};
use crate::realtime::client_process::ClientProcess;
use convoke::auth::Role;
use serde_json::{Value, json};

const UNKNOWN_ID: &str = "01890a5d-ac96-774b-bcce-b302099a8057";
const ROOM: &str = "agent:near";

/// Says it and gets the error, which names the command.
async fn refused(client: &mut ClientProcess, mut message: Value) -> (String, String) {
    let id = uuid::Uuid::new_v4().to_string();
    if message["command_id"].is_null() {
        message["command_id"] = json!(id);
    }
    client.send_message(ROOM, message.clone()).await;
    let error = client.message("error").await;
    assert_eq!(error["in_reply_to"], message["command_id"], "{error}");
    (error["code"].as_str().unwrap().to_owned(), error["message"].as_str().unwrap().to_owned())
}

#[tokio::test]
async fn each_error_code_is_sent_to_its_sender() {
    let rig = Rig::start(Vec::new()).await;
    let mut near = rig.agent("near").await;

    let (code, message) = refused(&mut near, json!({ "type": "dance" })).await;
    assert_eq!(code, "bad_request");
    assert!(message.contains("dance"), "{message}");

    let offer = |task: &Value, round: u32| json!({ "type": "task_offer", "task_id": task, "round": round, "offer": { "cost": 1 } });
    assert_eq!(refused(&mut near, offer(&json!(UNKNOWN_ID), 1)).await.0, "unknown_task");

    let other = rig.request(json!({ "kind": "k", "requires": ["something else"] })).await;
    assert_eq!(refused(&mut near, offer(&json!(other.id), 1)).await.0, "not_eligible");

    let task =
        rig.request(json!({ "kind": "k", "requires": ["work"], "policy": { "bid_window": "60s" } })).await;
    let asked = near.message("task_request").await;
    assert_eq!(asked["task"]["id"], json!(task.id));
    assert_eq!(refused(&mut near, offer(&json!(task.id), 7)).await.0, "late");

    let nothing = json!({ "task_id": task.id, "assignment_id": UNKNOWN_ID, "epoch": 1 });
    let accept = about("task_accept", &nothing, json!({}));
    assert_eq!(refused(&mut near, accept).await.0, "fenced");

    let request = |input: Value, id: &str| json!({ "type": "task_request", "command_id": id, "task": { "kind": "k", "requires": ["nothing here"], "input": input } });
    near.send_message(ROOM, request(json!(1), "same")).await;
    let made = near.message("task_update").await;
    assert_eq!((&made["in_reply_to"], &made["replayed"]), (&json!("same"), &json!(false)));
    near.send_message(ROOM, request(json!(1), "same")).await;
    let again = near.message("task_update").await;
    assert_eq!((&again["task"]["id"], &again["replayed"]), (&made["task"]["id"], &json!(true)));
    assert_eq!(refused(&mut near, request(json!(2), "same")).await.0, "idempotency_conflict");

    let large = request(json!("x".repeat(convoke::task::INPUT_BYTES_MAX)), "large");
    assert_eq!(refused(&mut near, large).await.0, "too_large");

    let cancel = json!({ "type": "task_cancel", "task_id": made["task"]["id"] });
    near.send_message(ROOM, cancel.clone()).await;
    assert_eq!(near.message("task_update").await["task"]["state"], "canceled");
    assert_eq!(refused(&mut near, cancel).await.0, "conflict");

    let cancel = json!({ "type": "task_cancel", "task_id": task.id });
    assert_eq!(refused(&mut near, cancel).await.0, "forbidden", "another requested it");
    rig.daemon.stop().await;
}

#[tokio::test]
async fn no_token_speaks_as_another_agent() {
    let rig = Rig::start(Vec::new()).await;
    let mut near = rig.agent("near").await;
    let task =
        rig.request(json!({ "kind": "k", "requires": ["work"], "policy": { "bid_window": "60s" } })).await;
    near.message("task_request").await;
    let offer = json!({ "type": "task_offer", "agent_id": "near", "task_id": task.id, "round": 1, "offer": { "cost": 1 } });

    // The room is public, so anybody may be in it; the token says who they are.
    let mut other = rig.client(&rig.token("other"), ROOM).await;
    other.ask("track", json!({ "topic": ROOM, "payload": { "capabilities": ["work"] } }), "tracked").await;
    assert_eq!(refused(&mut other, offer.clone()).await.0, "forbidden");
    let mut anon = rig.client(&rig.mint(Role::Anon, "demo", None), ROOM).await;
    assert_eq!(refused(&mut anon, offer.clone()).await.0, "forbidden");
    let mut user = rig.client(&rig.mint(Role::Authenticated, "demo", None), ROOM).await;
    assert_eq!(refused(&mut user, offer.clone()).await.0, "forbidden");
    // Nor does a stranger see another org's task.
    let mut far = rig.client(&rig.mint(Role::Authenticated, "elsewhere", Some("far")), ROOM).await;
    assert_eq!(
        refused(&mut far, json!({ "type": "task_cancel", "task_id": task.id })).await.0,
        "unknown_task"
    );

    let note =
        json!({ "topic": ROOM, "name": "agent_message", "payload": { "agent_id": "near", "text": "hello" } });
    assert_eq!(other.ask("send", note.clone(), "sent").await, "ok");
    assert_eq!(other.message("error").await["code"], "forbidden");
    let mut far_note = note.clone();
    far_note["payload"]["agent_id"] = json!("far");
    assert_eq!(far.ask("send", far_note, "sent").await, "ok");
    assert_eq!(far.message("error").await["code"], "forbidden", "near is of another org");

    // The service may speak as anybody, and the offer counts.
    let mut service = rig.client(&rig.mint(Role::ServiceRole, "demo", None), ROOM).await;
    service.send_message(ROOM, offer).await;
    let assignment = near.message("task_assignment").await;
    assert_eq!(assignment["task_id"], json!(task.id));
    assert!(
        rig.daemon.parts.tasks.agent(&"other".parse().unwrap()).await.is_err(),
        "other is not registered"
    );
    rig.daemon.stop().await;
}
