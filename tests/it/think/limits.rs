//! Limits of tools.
use super::{Say, Thinking, World, finish, text};
use crate::agent::definition;
use serde_json::{Value, json};

fn calls_look(times: usize) -> Say {
    Say::Calls((0..times).map(|n| ("look", json!({ "n": n }))).collect())
}

/// What the calls of a run returned, and their states.
async fn returned(thinking: &Thinking, agent: &str) -> Vec<(String, String)> {
    let id = thinking.request(json!({ "requires": [agent] })).await;
    thinking.in_state(id, "completed").await;
    let steps = thinking.steps(id).await;
    let calls = steps.iter().filter(|step| step["tool"] == "look");
    let word = |value: &Value| value.as_str().unwrap().to_owned();
    calls.map(|step| (word(&step["state"]), word(&step["result"]))).collect()
}

#[tokio::test]
async fn tool_with_a_limit_is_shared_by_all_agents_that_use_its_name() {
    let world = World::start(vec![calls_look(3), finish(json!(1))]).await;
    let agent = |id: &str| {
        let limited = "name = \"look\"\nper_minute = 4\nconcurrent = 1\n";
        let text = text(&world, "")
            .replace("name = \"look\"\n", limited)
            .replace("timeout = \"2s\"", "timeout = \"1s\"");
        let text = text.replace("id = \"thinker\"", &format!("id = \"{id}\""));
        definition(&text.replace("capabilities = [\"think\"]", &format!("capabilities = [\"{id}\"]")))
    };
    let definitions = vec![agent("one"), agent("two")];
    let thinking = Thinking::with(world, definitions).await;
    let states =
        |found: &[(String, String)]| found.iter().map(|(state, _)| state.clone()).collect::<Vec<_>>();
    let found = returned(&thinking, "one").await;
    assert_eq!(states(&found), ["done", "done", "done"], "they wait for each other: {found:?}");
    // One place of the minute is left, whichever of the three calls gets it.
    let found = returned(&thinking, "two").await;
    let refused: Vec<_> = found.iter().filter(|(state, _)| state == "failed").collect();
    assert_eq!(refused.len(), 2, "{found:?}");
    for (_, result) in refused {
        let error: Value = serde_json::from_str(result).unwrap();
        assert_eq!(
            (&error["error"]["code"], &error["error"]["retryable"]),
            (&json!("rate_limited"), &json!(true))
        );
    }
    assert_eq!(thinking.world.calls("look"), 4);
    thinking.stop().await;
}
