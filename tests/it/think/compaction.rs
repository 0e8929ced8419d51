//! Compaction: long results of old calls are left out of questions, and a tool reads them again.
use super::{
    ROLE, Say, Thinking, World, call, finish,
    kills::{completed, request},
    text,
};
use crate::daemon::{Up, fresh};
use bytes::Bytes;
use serde_json::{Value, json};
use std::collections::BTreeMap;

/// Bytes of a question for which this context has room: it less 4,096 tokens for the answer, 3 bytes a token.
const CONTEXT_TOKENS: usize = 12_000;
const ROOM: usize = (CONTEXT_TOKENS - 4_096) * 3;
/// Calls with a long result.
const CALLS: usize = 12;

fn big(n: usize) -> Say {
    call("big", json!({ "n": n.to_string() }))
}

fn script() -> Vec<Say> {
    (0..CALLS).map(big).chain([call("step_result", json!({ "step": 3 })), finish(json!(1))]).collect()
}

/// Calls, and a question that the endpoint refuses as too large before it answers.
fn refused() -> Vec<Say> {
    let refused = Say::InTurn(vec![Say::Status(413), call("step_result", json!({ "step": 3 }))]);
    (0..6).map(big).chain([refused, finish(json!(1))]).collect()
}

fn agent(world: &World, more: &str) -> String {
    let tool = "[[tool]]\nname = \"big\"\nkind = \"sql\"\nrole = \"think_writer\"\neffect = \"read\"\n\
                statement = \"select repeat('x', 3000) || cast(:n as text) as words\"\n\
                parameters = { type = \"object\", required = [\"n\"], properties = { n = { type = \"string\" } } }\n";
    text(world, more).replace("\"ask\"]", "\"ask\", \"big\"]") + tool
}

/// A daemon with the agent, and a task of it in this state.
async fn ended(script: Vec<Say>, more: &str, state: &str) -> (Thinking, convoke::id::TaskId) {
    let world = World::start(script).await;
    let definition = crate::agent::definition(&agent(&world, more));
    let thinking = Thinking::with(world, vec![definition]).await;
    let id = thinking.request(json!({})).await;
    thinking.in_state(id, state).await;
    (thinking, id)
}

fn notes(steps: &[Value]) -> usize {
    steps.iter().filter(|step| step["note_kind"] == "compacted").count()
}

#[tokio::test]
async fn questions_stay_within_the_context_and_what_is_left_out_can_be_read() {
    let (thinking, id) = ended(script(), &format!("context_tokens = {CONTEXT_TOKENS}"), "completed").await;
    let questions = thinking.world.asked();
    assert_eq!(questions.len(), CALLS + 2);
    for (entry, bodies) in &questions {
        assert!(bodies[0].len() <= ROOM, "question {entry} has {} bytes", bodies[0].len());
    }
    let last = thinking.world.question(CALLS + 1);
    let messages = last["messages"].as_array().unwrap();
    let told = |at: usize| messages[at]["content"].as_str().unwrap();
    assert_eq!((&messages[2]["role"], &messages[3]["role"]), (&json!("assistant"), &json!("tool")));
    assert_eq!(messages[2]["tool_calls"][0]["id"], messages[3]["tool_call_id"]);
    assert!(
        told(3).starts_with("The result of this call, step 3,") && told(3).contains("step_result"),
        "{}",
        told(3)
    );
    // A note may follow it.
    let parsed = |message: &Value| serde_json::from_str::<Value>(message["content"].as_str()?).ok();
    let read = messages.iter().filter_map(parsed).find(|result| result.get("next").is_some()).unwrap();
    assert!(read["text"].as_str().unwrap().contains(&"x".repeat(3_000)) && read["next"].is_null(), "{read}");
    let steps = thinking.steps(id).await;
    let compactions = notes(&steps);
    assert!((2..CALLS).contains(&compactions), "{compactions}: several results together");
    assert!(steps[2]["result"].as_str().unwrap().contains(&"x".repeat(3_000)), "the rows stay as they are");
    // Between two compactions a question begins with the messages of the one before.
    let changed = (1..questions.len())
        .filter(|entry| {
            let (before, after) = (thinking.world.question(entry - 1), thinking.world.question(*entry));
            let before = before["messages"].as_array().unwrap();
            after["messages"].as_array().unwrap()[..before.len()] != before[..]
        })
        .count();
    assert_eq!(changed, compactions);
    thinking.stop().await;
}

#[tokio::test]
async fn nothing_is_left_out_of_a_context_of_unknown_size() {
    let script = vec![call("step_result", json!({ "step": 1 })), finish(json!(1))];
    let (thinking, id) = ended(script, "", "completed").await;
    let steps = thinking.steps(id).await;
    assert!(steps[2]["result"].as_str().unwrap().contains("unknown_tool"), "{}", steps[2]);
    thinking.stop().await;
}

#[tokio::test]
async fn question_that_is_refused_as_too_large_is_asked_again_without_long_results() {
    let (thinking, id) = ended(refused(), "context_tokens = 1_000_000", "completed").await;
    let steps = thinking.steps(id).await;
    assert_eq!((notes(&steps), thinking.world.questions()), (1, 9), "{steps:?}");
    let at = steps.iter().position(|step| step["note_kind"] == "compacted").unwrap();
    assert_eq!((&steps[at - 1]["kind"], &steps[at - 1]["state"]), (&json!("model"), &json!("failed")));
    let sizes: Vec<usize> = thinking.world.asked()[&6].iter().map(Bytes::len).collect();
    assert!(sizes[1] * 100 < sizes[0] * 80, "{sizes:?}");
    thinking.stop().await;

    // One that is too large with nothing left to leave out fails the attempt.
    let script = (0..6).map(big).chain([Say::Status(413)]).collect();
    let (thinking, id) = ended(script, "context_tokens = 1_000_000", "failed").await;
    let asked = thinking.world.asked()[&6].len();
    assert!((2..=6).contains(&asked), "{asked}");
    assert_eq!(notes(&thinking.steps(id).await), asked - 1);
    thinking.stop().await;
}

/// The questions of a run of a daemon that dies at this point and is started again.
async fn questions(script: Vec<Say>, context: usize, fault: Option<&str>) -> BTreeMap<usize, Vec<Bytes>> {
    let world = World::start(script).await;
    let (db, folder) = fresh().await;
    std::fs::create_dir(folder.path().join("agents")).unwrap();
    let text = agent(&world, &format!("context_tokens = {context}"));
    std::fs::write(folder.path().join("agents/thinker.toml"), text).unwrap();
    db.client().await.batch_execute(ROLE).await.unwrap();
    let first = Up::start(&db, folder.path(), fault).await;
    request(&db).await;
    let up = match fault {
        None => first,
        Some(point) => {
            first.dies_at(point).await;
            Up::start(&db, folder.path(), None).await
        }
    };
    assert_eq!(completed(&up, &db, folder.path(), &world).await, 0);
    world.asked()
}

#[tokio::test]
async fn killed_around_a_compaction_the_questions_have_the_same_bytes() {
    let expected = questions(script(), CONTEXT_TOKENS, None).await;
    for point in ["compact.recorded", "compact.recorded:2", "step.begun:10"] {
        assert_eq!(questions(script(), CONTEXT_TOKENS, Some(point)).await, expected, "{point}");
    }
    let expected = questions(refused(), 1_000_000, None).await;
    assert_eq!(questions(refused(), 1_000_000, Some("compact.recorded")).await, expected);
}
