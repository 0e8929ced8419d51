//! Classes of tools, and what each does with an outcome that is unknown.
use super::{Say, Thinking, World, call, finish, text};
use crate::daemon::{Up, fresh};
use serde_json::{Value, json};

/// The agent with another declaration of the tool `send`, and the probe `sent`.
fn with_send(world: &World, more: &str) -> String {
    let text = text(world, "");
    let old = format!("url = \"{}/service/send\"\neffect = \"once\"\ntimeout = \"2s\"\n", world.address);
    assert!(text.contains(&old), "{text}");
    let new = format!("url = \"{}/service/send\"\n{more}\n", world.address);
    let probe = format!(
        "[[tool]]\nname = \"sent\"\nkind = \"http\"\nurl = \"{}/happened/send\"\neffect = \"read\"\n",
        world.address
    );
    let uses_probe = more.contains("probe");
    text.replace(&old, &new) + if uses_probe { &probe } else { "" }
}

const CHECKED: &str = "effect = \"checked\"\nprobe = \"sent\"\ntimeout = \"200ms\"";

async fn thinking(script: Vec<Say>, send: &str) -> Thinking {
    let world = World::start(script).await;
    let definition = crate::agent::definition(&with_send(&world, send));
    Thinking::with(world, vec![definition]).await
}

fn send() -> Vec<Say> {
    vec![call("send", json!({ "to": "ada" })), finish(json!(1))]
}

fn code(step: &Value) -> String {
    let result: Value = serde_json::from_str(step["result"].as_str().unwrap()).unwrap();
    result["error"]["code"].as_str().unwrap().to_owned()
}

#[tokio::test]
async fn checked_call_of_unknown_outcome_is_probed_and_not_repeated_if_it_happened() {
    let thinking = thinking(send(), CHECKED).await;
    thinking.world.status.lock().insert("send".into(), 502);
    let id = thinking.request(json!({})).await;
    thinking.in_state(id, "completed").await;
    assert_eq!(thinking.world.calls("send"), 1, "the service counted it, whatever it answered");
    let steps = thinking.steps(id).await;
    assert_eq!((&steps[2]["state"], &steps[2]["result"]), (&json!("done"), &json!("as it was for send")));
    thinking.stop().await;
}

#[tokio::test]
async fn probe_that_does_not_know_leaves_the_decision_to_a_person() {
    let thinking = thinking(send(), CHECKED).await;
    thinking.world.status.lock().insert("send".into(), 502);
    thinking.world.status.lock().insert("happened".into(), 500);
    let id = thinking.request(json!({})).await;
    let question = thinking.in_state(id, "waiting").await.question.unwrap();
    assert!(question["question"].as_str().unwrap().contains("the tool send"), "{question}");
    thinking
        .running
        .parts
        .tasks
        .answer(id, "ada", json!({ "outcome": "done", "result": "yes" }))
        .await
        .unwrap();
    thinking.in_state(id, "completed").await;
    assert_eq!(thinking.world.calls("send"), 1);
    thinking.stop().await;
}

async fn survives(point: &str, calls: usize) {
    let world = World::start(send()).await;
    let (db, folder) = fresh().await;
    std::fs::create_dir(folder.path().join("agents")).unwrap();
    std::fs::write(folder.path().join("agents/thinker.toml"), with_send(&world, CHECKED)).unwrap();
    db.client().await.batch_execute(super::ROLE).await.unwrap();
    let first = Up::start(&db, folder.path(), Some(point)).await;
    super::kills::request(&db).await;
    first.dies_at(point).await;
    let second = Up::start(&db, folder.path(), None).await;
    let answers = super::kills::completed(&second, &db, folder.path(), &world).await;
    assert_eq!((answers, world.calls("send"), world.keys("send").len()), (0, calls, 1), "{point}");
    assert_eq!(world.questions(), 2, "{point}: no question is asked again");
}

#[tokio::test]
async fn checked_call_happens_once_also_if_the_daemon_is_killed() {
    survives("tool.intended", 1).await;
    survives("tool.done", 1).await;
}

#[tokio::test]
async fn model_is_told_about_an_unknown_outcome_and_the_same_call_needs_an_approval() {
    let to = |name: &str| call("send", json!({ "to": name }));
    let thinking = thinking(vec![to("ada"), to("ada"), finish(json!(1))], "on_unknown = \"tell\"").await;
    thinking.world.status.lock().insert("send".into(), 502);
    let id = thinking.request(json!({})).await;
    let question = thinking.in_state(id, "waiting").await.question.unwrap();
    assert_eq!((question["calls"].as_array().unwrap().len(), thinking.world.calls("send")), (1, 1));
    let steps = thinking.steps(id).await;
    assert_eq!((code(&steps[2]), &steps[2]["doubtful"]), ("unknown_outcome".into(), &json!(true)));
    let approve = json!({ question["calls"][0]["id"].as_str().unwrap(): { "deny": "it happened" } });
    thinking.running.parts.tasks.answer(id, "ada", approve).await.unwrap();
    thinking.in_state(id, "completed").await;
    assert_eq!(thinking.world.calls("send"), 1);
    thinking.stop().await;
}

#[tokio::test]
async fn effect_in_doubt_is_not_repeated_by_a_new_run() {
    let script = vec![
        call("send", json!({ "to": "ada" })),
        call("give_up", json!({ "reason": "tired", "retryable": true })),
    ];
    let thinking = thinking(script, "on_unknown = \"tell\"").await;
    thinking.world.status.lock().insert("send".into(), 502);
    let id = thinking.request(json!({ "policy": { "attempts_max": 2, "backoff": "10ms" } })).await;
    thinking.in_state(id, "failed").await;
    assert_eq!(thinking.world.calls("send"), 1);
    let runs = thinking.running.parts.tasks.steps(id, true).await.unwrap();
    let steps = runs[1]["steps"].as_array().unwrap();
    assert!(steps[0]["note"].as_str().unwrap().contains("\"state\":\"unknown\""), "{}", steps[0]);
    assert_eq!(code(&steps[2]), "unknown_outcome");
    thinking.stop().await;
}

#[tokio::test]
async fn attempt_fails_with_an_unknown_outcome_if_the_tool_says_so() {
    let thinking = thinking(send(), "on_unknown = \"fail\"").await;
    thinking.world.status.lock().insert("send".into(), 502);
    let id = thinking.request(json!({ "policy": { "attempts_max": 3 } })).await;
    let task = thinking.in_state(id, "failed").await;
    assert!(task.error.unwrap().to_string().contains("step 3 of run 1"));
    assert_eq!(thinking.world.calls("send"), 1);
    let runs = thinking.running.parts.tasks.steps(id, false).await.unwrap();
    assert_eq!((runs.len(), &runs[0]["ended_as"]), (1, &json!("unknown_outcome")));
    assert_eq!(runs[0]["steps"][2]["state"], "unknown");
    thinking.stop().await;
}

#[tokio::test]
async fn keyed_call_of_unknown_outcome_is_tried_again_as_long_as_it_takes() {
    let thinking = thinking(send(), "effect = \"keyed\"\non_unknown = \"retry\"").await;
    // Three tries of one beginning are not enough.
    thinking.world.fails.lock().insert("send".into(), 4);
    let id = thinking.request(json!({})).await;
    thinking.in_state(id, "completed").await;
    assert_eq!((thinking.world.calls("send"), thinking.world.keys("send").len()), (5, 1));
    assert_eq!(thinking.steps(id).await[2]["tries"], 2);
    thinking.stop().await;
}

#[tokio::test]
async fn retry_of_a_call_of_unknown_outcome_waits_for_no_permit() {
    // The first try has the only permit of the minute. Told `rate_limited`, the model would call with another key.
    let limited = "effect = \"keyed\"\non_unknown = \"retry\"\nper_minute = 1";
    let thinking = thinking(send(), limited).await;
    thinking.world.fails.lock().insert("send".into(), 4);
    let id = thinking.request(json!({})).await;
    thinking.in_state(id, "completed").await;
    assert_eq!((thinking.world.calls("send"), thinking.world.keys("send").len()), (5, 1));
    assert_eq!(thinking.steps(id).await[2]["state"], "done");
    thinking.stop().await;
}

#[tokio::test]
async fn failure_that_may_pass_is_repeated_as_declared_before_the_model_is_told() {
    let thinking = thinking(send(), "effect = \"read\"\nretries = 2").await;
    thinking.world.fails.lock().insert("send".into(), 2);
    let id = thinking.request(json!({})).await;
    thinking.in_state(id, "completed").await;
    assert_eq!((thinking.world.calls("send"), &thinking.steps(id).await[2]["state"]), (3, &json!("done")));
    thinking.world.fails.lock().insert("send".into(), 3);
    let id = thinking.request(json!({})).await;
    thinking.in_state(id, "completed").await;
    assert_eq!((thinking.world.calls("send"), &thinking.steps(id).await[2]["state"]), (6, &json!("failed")));
    thinking.stop().await;
}

#[tokio::test]
async fn tool_that_may_repeat_has_its_effect_again_in_a_new_run() {
    let script = vec![
        call("send", json!({ "to": "ada" })),
        call("give_up", json!({ "reason": "tired", "retryable": true })),
    ];
    let thinking = thinking(script, "repeat = true").await;
    let id = thinking.request(json!({ "policy": { "attempts_max": 2, "backoff": "10ms" } })).await;
    thinking.in_state(id, "failed").await;
    assert_eq!(thinking.world.calls("send"), 2);
    thinking.stop().await;
}
