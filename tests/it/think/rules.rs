//! Rules of calls (`run.calls`): `after` holds between answers and never within one.
use super::{Say, Thinking, World, call, finish, text};
use crate::agent::definition;
use serde_json::{Value, json};

/// The state and the result of each call of a tool.
async fn calls_of(thinking: &Thinking, id: convoke::id::TaskId, tool: &str) -> Vec<(String, String)> {
    let steps = thinking.steps(id).await;
    let word = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let calls = steps.iter().filter(|step| step["tool"] == tool);
    calls.map(|step| (word(&step["state"]), word(&step["result"]))).collect()
}

#[tokio::test]
async fn call_does_not_run_beside_the_one_that_it_comes_after() {
    let script = vec![
        Say::Calls(vec![
            ("finish", json!({ "result": 1 })),
            ("ask", json!({ "question": "May I pay?" })),
            ("pay", json!({ "amount": 1 })),
        ]),
        Say::Calls(vec![("ask", json!({ "question": "May I pay?" })), ("pay", json!({ "amount": 2 }))]),
        call("pay", json!({ "amount": 3 })),
        finish(json!(2)),
    ];
    let thinking = Thinking::start(script, "calls.pay = { after = [\"ask\"] }").await;
    let id = thinking.request(json!({})).await;
    thinking.in_state(id, "waiting").await;
    assert_eq!(thinking.world.calls("pay"), 0, "nobody has been asked yet");
    thinking.running.parts.tasks.answer(id, "ada", json!("yes")).await.unwrap();
    let done = thinking.in_state(id, "completed").await;
    assert_eq!((thinking.world.calls("pay"), done.result), (1, Some(json!(2))));
    let pay = calls_of(&thinking, id, "pay").await;
    let states: Vec<&str> = pay.iter().map(|(state, _)| state.as_str()).collect();
    assert_eq!(states, ["failed", "failed", "done"]);
    assert!(pay[1].1.contains("pay comes after ask, in a later answer: use one of"), "{pay:?}");
    thinking.stop().await;
}

#[tokio::test]
async fn call_does_not_run_while_the_one_that_it_comes_after_waits_for_approval() {
    let script = vec![
        Say::Calls(vec![("send", json!({ "to": "ada" })), ("look", json!({ "n": 1 }))]),
        call("look", json!({ "n": 2 })),
        Say::Calls(vec![("send", json!({ "to": "bob" }))]),
        call("look", json!({ "n": 3 })),
        finish(json!(1)),
    ];
    let world = World::start(script).await;
    let text = text(&world, "calls.look = { after = [\"send\"] }")
        .replace("name = \"send\"\n", "name = \"send\"\napproval = \"always\"\n");
    let thinking = Thinking::with(world, vec![definition(&text)]).await;
    let tasks = thinking.running.parts.tasks.clone();
    let id = thinking.request(json!({})).await;
    for decision in [json!({ "deny": "not to her" }), json!("approve")] {
        let question = thinking.in_state(id, "waiting").await.question.unwrap();
        assert_eq!(thinking.world.calls("look"), 0);
        let call = question["calls"][0]["id"].as_str().unwrap().to_owned();
        tasks.answer(id, "ada", json!({ call: decision })).await.unwrap();
        // A task that has been answered is seen as waiting until its answer is read.
        let world = &thinking.world;
        crate::daemon::soon("the next question", async {
            while world.questions() < 3 {
                tokio::time::sleep(std::time::Duration::from_millis(10)).await;
            }
        })
        .await;
    }
    thinking.in_state(id, "completed").await;
    let look = calls_of(&thinking, id, "look").await;
    let states: Vec<&str> = look.iter().map(|(state, _)| state.as_str()).collect();
    assert_eq!(states, ["failed", "failed", "done"], "a call that was denied has not happened: {look:?}");
    thinking.stop().await;
}
