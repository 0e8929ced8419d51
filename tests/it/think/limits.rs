//! Limits of tools, endpoints that ignore the limit of an answer, and the ids of requests.
use super::{Say, Thinking, World, finish, text};
use crate::{agent::definition, daemon::soon};
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
        let limited = match id {
            "free" => "name = \"look\"\n",
            _ => "name = \"look\"\nper_minute = 7\nconcurrent = 1\n",
        };
        let text = text(&world, "")
            .replace("name = \"look\"\n", limited)
            .replace("timeout = \"2s\"", "timeout = \"1s\"");
        let text = text.replace("id = \"thinker\"", &format!("id = \"{id}\""));
        definition(&text.replace("capabilities = [\"think\"]", &format!("capabilities = [\"{id}\"]")))
    };
    let definitions = vec![agent("free"), agent("one"), agent("two")];
    let thinking = Thinking::with(world, definitions).await;
    let states =
        |found: &[(String, String)]| found.iter().map(|(state, _)| state.clone()).collect::<Vec<_>>();
    let found = returned(&thinking, "free").await;
    assert_eq!(states(&found), ["done", "done", "done"], "they count, and do not wait: {found:?}");
    let found = returned(&thinking, "one").await;
    assert_eq!(states(&found), ["done", "done", "done"], "they wait for each other: {found:?}");
    // One permit of the minute is left, whichever of the three calls gets it.
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
    assert_eq!(thinking.world.calls("look"), 7);
    thinking.stop().await;
}

#[tokio::test]
async fn approval_is_not_used_up_by_a_call_that_gets_no_permit() {
    let script = vec![
        Say::Calls(vec![("send", json!({ "to": "ada" }))]),
        Say::Calls(vec![("send", json!({ "to": "bob" }))]),
        finish(json!(1)),
    ];
    let world = World::start(script).await;
    let limited = "name = \"send\"\nper_minute = 1\napproval = \"always\"\n";
    let text = text(&world, "").replace("name = \"send\"\n", limited);
    let thinking = Thinking::with(world, vec![definition(&text)]).await;
    let tasks = thinking.running.parts.tasks.clone();
    let id = thinking.request(json!({})).await;
    for questions in [1, 2] {
        let question = soon("the question", async {
            loop {
                let task = tasks.get(id).await.unwrap();
                match task.question.filter(|_| thinking.world.questions() == questions) {
                    Some(question) => return question,
                    None => tokio::time::sleep(std::time::Duration::from_millis(20)).await,
                }
            }
        })
        .await;
        let call = question["calls"][0]["id"].as_str().unwrap().to_owned();
        tasks.answer(id, "ada", json!({ call: "approve" })).await.unwrap();
    }
    thinking.in_state(id, "completed").await;
    let steps = thinking.steps(id).await;
    let sent = steps.iter().filter(|step| step["tool"] == "send");
    let sent: Vec<_> = sent.map(|step| (&step["state"], &step["tries"], &step["approval"])).collect();
    let expected = [(json!("done"), json!(1), json!("used")), (json!("failed"), json!(0), json!("granted"))];
    assert_eq!(sent, expected.each_ref().map(|(state, tries, approval)| (state, tries, approval)));
    assert_eq!(thinking.world.calls("send"), 1);
    thinking.stop().await;
}

/// An answer that calls a tool, with this usage.
fn answer(name: &str, args: Value, usage: Value) -> Say {
    let call =
        json!({ "id": "c", "type": "function", "function": { "name": name, "arguments": args.to_string() } });
    let message = json!({ "role": "assistant", "content": null, "tool_calls": [call] });
    let choice = json!({ "index": 0, "message": message, "finish_reason": "tool_calls" });
    Say::Raw(json!({ "model": "m-1", "choices": [choice], "usage": usage }))
}

#[tokio::test]
async fn endpoint_that_ignores_its_limit_is_shown_and_its_whole_context_is_reserved() {
    let within = json!({ "prompt_tokens": 10, "completion_tokens": 116 });
    let over = json!({ "prompt_tokens": 10, "completion_tokens": 5_000 });
    let script = vec![
        answer("look", json!({ "n": 1 }), within),
        // Without usage the most is charged: it shows what was reserved.
        answer("look", json!({ "n": 2 }), json!(null)),
        answer("look", json!({ "n": 3 }), over),
        answer("finish", json!({ "result": 1 }), json!(null)),
    ];
    let thinking = Thinking::start(script, "answer_tokens = 100\ncontext_tokens = 50_000").await;
    let id = thinking.request(json!({})).await;
    thinking.in_state(id, "completed").await;
    let most = "select tokens from convoke.model_questions where state = 'presumed' order by seq";
    let rows = thinking.db.client().await.query(most, &[]).await.unwrap();
    let most: Vec<i64> = rows.iter().map(|row| row.get(0)).collect();
    assert!(most[0] < 20_000, "the question and 100: {most:?}");
    assert!(most[1] > 50_000, "the question and the context: {most:?}");
    let url = format!("http://{}/health", thinking.running.parts.addr);
    soon("the endpoint on /health", async {
        loop {
            let health = reqwest::get(&url).await.unwrap().text().await.unwrap();
            if health.contains("1 models ignore the limit of an answer") {
                return;
            }
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
    })
    .await;
    thinking.stop().await;
}

#[tokio::test]
async fn id_of_each_request_is_kept_in_its_step() {
    let world = World::start(vec![calls_look(1), finish(json!(1))]).await;
    *world.request_id.lock() = Some("req_7".into());
    let definitions = vec![super::thinker(&world, "limit_member = \"max_completion_tokens\"")];
    let thinking = Thinking::with(world, definitions).await;
    let id = thinking.request(json!({})).await;
    thinking.in_state(id, "completed").await;
    let steps = thinking.steps(id).await;
    let models: Vec<_> = steps.iter().filter(|step| step["kind"] == "model").collect();
    assert_eq!(models.len(), 2);
    assert!(models.iter().all(|step| step["request_id"] == "req_7"), "{models:?}");
    let question = thinking.world.question(0);
    let limits = (question.get("max_tokens"), &question["max_completion_tokens"]);
    assert_eq!(limits, (None, &json!(4_096)), "the member that the definition names");
    thinking.stop().await;
}
