//! `request_task` and `tasks`: a model that requests parts of its task and reads their results.
use super::{ROLE, Say, Thinking, World, call, finish, text};
use crate::{
    agent::definition,
    daemon::{Up, fresh, soon},
};
use serde_json::{Value, json};
use std::time::Duration;

/// The keys of a model that may request parts of one kind.
const PARTS: &str = "[run.parts]\n\"look.up\" = [\"look\"]";
/// An agent that works on them.
const WORKER: &str = "id = \"worker\"\norg = \"demo\"\ncapabilities = [\"look\"]\n[run]\nkind = \"command\"\n\
                      argv = [\"/bin/sh\", \"-c\", \"cat > /dev/null; echo '{\\\"found\\\": 7}'\"]\n";

fn planner(world: &World) -> String {
    text(world, PARTS).replace("\"look\", \"pay\"", "\"request_task\", \"tasks\", \"look\", \"pay\"")
}

#[tokio::test]
async fn model_requests_parts_and_reads_their_results() {
    let part = |q: i32| ("request_task", json!({ "kind": "look.up", "input": { "q": q } }));
    let world = World::start(vec![
        Say::Calls(vec![part(1), part(2), ("request_task", json!({ "kind": "drop.all", "input": {} }))]),
        call("tasks", json!({ "wait": true })),
        finish(json!("done")),
    ])
    .await;
    let definitions = vec![definition(&planner(&world)), definition(WORKER)];
    let thinking = Thinking::with(world, definitions).await;
    let id = thinking.request(json!({})).await;
    thinking.in_state(id, "completed").await;
    let steps = thinking.steps(id).await;
    let results: Vec<Value> = steps
        .iter()
        .filter(|step| step["kind"] == "tool")
        .map(|step| serde_json::from_str(step["result"].as_str().unwrap()).unwrap_or_default())
        .collect();
    assert_eq!(results[2]["error"]["code"], "bad_arguments", "{results:?}");
    let parts = results[3]["tasks"].as_array().unwrap();
    assert_eq!(parts.len(), 2);
    for (part, requested) in parts.iter().zip(&results) {
        assert_eq!((&part["state"], &part["result"]), (&json!("completed"), &json!({ "found": 7 })));
        assert_eq!(part["task_id"], requested["task_id"]);
        let part_id = part["task_id"].as_str().unwrap().parse().unwrap();
        let part = thinking.running.parts.tasks.get(part_id).await.unwrap();
        assert_eq!((part.parent_id, part.requires), (Some(id), vec!["look".to_owned()]));
        assert_eq!(part.requester.to_string(), "agent:demo/thinker");
    }
    thinking.stop().await;
}

#[tokio::test]
async fn input_of_a_part_has_the_form_of_its_kind() {
    let keys = "[run.parts.\"look.up\"]\nrequires = [\"look\"]\n\
                input = { type = \"object\", required = [\"q\"], properties = { q = { type = \"integer\" } } }";
    let part = |input: Value| call("request_task", json!({ "kind": "look.up", "input": input }));
    let world =
        World::start(vec![part(json!({ "q": "x" })), part(json!({ "q": 1 })), finish(json!(1))]).await;
    let planner = planner(&world).replace(PARTS, keys);
    let thinking = Thinking::with(world, vec![definition(&planner), definition(WORKER)]).await;
    let id = thinking.request(json!({})).await;
    thinking.in_state(id, "completed").await;
    let steps = thinking.steps(id).await;
    let states: Vec<&Value> =
        steps.iter().filter(|step| step["tool"] == "request_task").map(|step| &step["state"]).collect();
    assert_eq!(states, ["failed", "done"]);
    let tools = &thinking.world.question(0)["tools"];
    let request =
        tools.as_array().unwrap().iter().find(|tool| tool["function"]["name"] == "request_task").unwrap();
    assert_eq!(request["function"]["parameters"]["properties"]["input"]["required"], json!(["q"]));
    thinking.stop().await;
}

#[tokio::test]
async fn part_is_requested_once_wherever_the_daemon_is_killed() {
    for point in ["step.recorded", "tool.recorded"] {
        let script = vec![
            call("request_task", json!({ "kind": "look.up", "input": { "q": 1 } })),
            call("tasks", json!({ "wait": true })),
            finish(json!(1)),
        ];
        let world = World::start(script).await;
        let (db, folder) = fresh().await;
        std::fs::create_dir(folder.path().join("agents")).unwrap();
        std::fs::write(folder.path().join("agents/thinker.toml"), planner(&world)).unwrap();
        std::fs::write(folder.path().join("agents/worker.toml"), WORKER).unwrap();
        let client = db.client().await;
        client.batch_execute(ROLE).await.unwrap();
        let up = Up::start(&db, folder.path(), Some(point)).await;
        let request = "select convoke.request_task(kind => 'think.it', org => 'demo', requires => '{think}', input => '{}')";
        client.batch_execute(request).await.unwrap();
        up.dies_at(point).await;
        let up = Up::start(&db, folder.path(), None).await;
        soon("the end", async {
            let ended = "select count(*) from convoke.tasks where kind = 'think.it' and state = 'completed'";
            while client.query_one(ended, &[]).await.unwrap().get::<_, i64>(0) == 0 {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        })
        .await;
        let parts = "select count(*) from convoke.tasks where parent_id is not null";
        assert_eq!(client.query_one(parts, &[]).await.unwrap().get::<_, i64>(0), 1, "{point}");
        up.kill().await;
    }
}
