//! `remember`, `forget` and `recall`.
use super::{ROLE, Say, Thinking, World, call, finish, text};
use crate::{
    agent::definition,
    daemon::{Up, fresh, soon},
};
use serde_json::{Value, json};
use std::time::Duration;

/// An agent with a memory, and one of its org if `more` says so.
fn keeper(world: &World, id: &str, more: &str) -> String {
    let tools = "\"remember\", \"forget\", \"recall\", \"look\", \"pay\"";
    let text = text(world, more).replace("\"look\", \"pay\"", tools);
    text.replace("id = \"thinker\"", &format!("id = \"{id}\""))
        .replace("capabilities = [\"think\"]", &format!("capabilities = [\"{id}\"]"))
}

/// What the calls of one run returned.
async fn returned(thinking: &Thinking, agent: &str) -> Vec<Value> {
    let id = thinking.request(json!({ "requires": [agent] })).await;
    thinking.in_state(id, "completed").await;
    let steps = thinking.steps(id).await;
    let calls = steps.iter().filter(|step| step["kind"] == "tool" && step["tool"] != "finish");
    calls.map(|step| serde_json::from_str(step["result"].as_str().unwrap()).unwrap()).collect()
}

#[tokio::test]
async fn agent_remembers_from_one_task_to_the_next() {
    let first = World::start(vec![
        Say::Calls(vec![
            ("remember", json!({ "key": "customer:ada", "value": { "likes": "red boats" } })),
            ("remember", json!({ "key": "customer:bob", "value": "prefers letters", "version": 0 })),
            ("remember", json!({ "key": "customer:bob", "value": "prefers calls", "version": 0 })),
            ("remember", json!({ "key": "customer:bob", "value": "prefers calls", "version": 1 })),
            ("remember", json!({ "key": "rule", "value": "be kind", "scope": "org" })),
            ("remember", json!({ "key": "none", "value": 1, "version": 5 })),
            ("remember", json!({ "key": "a\u{0}b", "value": 1 })),
            ("remember", json!({ "key": "nul", "value": "\u{0}" })),
        ]),
        Say::Calls(vec![
            ("recall", json!({ "prefix": "customer:" })),
            ("recall", json!({ "words": "red boats" })),
            ("recall", json!({ "words": "\u{0}" })),
            ("forget", json!({ "key": "customer:ada" })),
            ("forget", json!({ "key": "customer:ada" })),
        ]),
        finish(json!(1)),
    ])
    .await;
    let second = World::start(vec![
        Say::Calls(vec![
            ("recall", json!({})),
            ("remember", json!({ "key": "rule", "value": "be unkind", "scope": "org" })),
        ]),
        finish(json!(1)),
    ])
    .await;
    let with_org = "[run.memory]\norg = true";
    let definitions = vec![
        definition(&keeper(&first, "one", with_org)),
        definition(&keeper(&second, "two", with_org)),
        definition(&keeper(&second, "three", "")),
    ];
    let thinking = Thinking::with(first, definitions).await;
    let found = returned(&thinking, "one").await;
    assert_eq!((&found[0]["version"], &found[1]["version"]), (&json!(1), &json!(1)), "{found:?}");
    let told = |at: usize| found[at]["error"]["message"].as_str().unwrap_or_default().to_owned();
    assert!(told(2).contains("has version 1"), "{}", told(2));
    assert_eq!((&found[3]["version"], &found[4]["version"]), (&json!(2), &json!(1)));
    assert!(told(5).contains("no such entry"), "{}", told(5));
    assert!(told(6).contains("no control characters"), "{}", told(6));
    assert_eq!(found[7]["version"], 1, "a value may have any character of JSON: {}", found[7]);
    let entry = |at: usize, place: usize| found[at]["entries"][place].clone();
    assert_eq!(found[8]["entries"].as_array().unwrap().len(), 2);
    assert_eq!(
        entry(8, 0),
        json!({ "key": "customer:bob", "scope": "agent", "version": 2, "value": "prefers calls" })
    );
    assert_eq!(
        (entry(9, 0)["key"].clone(), found[9]["entries"].as_array().unwrap().len()),
        (json!("customer:ada"), 1)
    );
    assert_eq!(found[10]["entries"], json!([]));
    assert_eq!((&found[11]["forgotten"], &found[12]["forgotten"]), (&json!(true), &json!(false)));
    // Another agent has another memory, and shares that of the org if its definition says so.
    let found = returned(&thinking, "two").await;
    let entries = found[0]["entries"].as_array().unwrap();
    assert_eq!((entries.len(), &entries[0]["key"]), (1, &json!("rule")));
    assert_eq!(found[1]["version"], 2);
    let found = returned(&thinking, "three").await;
    assert_eq!(found[0]["entries"], json!([]));
    assert_eq!(found[1]["error"]["code"], "bad_arguments");
    thinking.stop().await;
}

#[tokio::test]
async fn full_memory_is_told_and_an_expired_entry_makes_room() {
    let big = "x".repeat(60_000);
    let world = World::start(vec![
        call("remember", json!({ "key": "new", "value": big })),
        call("recall", json!({ "prefix": "old" })),
        finish(json!(1)),
    ])
    .await;
    let definitions = vec![definition(&keeper(&world, "one", ""))];
    let thinking = Thinking::with(world, definitions).await;
    let client = thinking.db.client().await;
    let fill = "insert into convoke.memories (org, agent_id, key, value, bytes, task_id, run, seq)
                select 'demo', 'one', 'old' || n, '1', 65536, gen_random_uuid(), 1, 1 from generate_series(1, 64) n";
    client.batch_execute(fill).await.unwrap();
    let found = returned(&thinking, "one").await;
    assert!(found[0]["error"]["message"].as_str().unwrap().contains("is full"), "{}", found[0]);
    assert_eq!(found[1]["more"], true);
    client
        .batch_execute("update convoke.memories set expires_at = '-infinity' where key = 'old1'")
        .await
        .unwrap();
    let found = returned(&thinking, "one").await;
    assert_eq!(found[0]["version"], 1, "{}", found[0]);
    let left = "select count(*) from convoke.memories where key = 'old1'";
    assert_eq!(client.query_one(left, &[]).await.unwrap().get::<_, i64>(0), 0);
    thinking.stop().await;
}

#[tokio::test]
async fn entry_is_written_once_wherever_the_daemon_is_killed() {
    for point in ["step.recorded", "tool.recorded"] {
        let script = vec![call("remember", json!({ "key": "count", "value": 1 })), finish(json!(1))];
        let world = World::start(script).await;
        let (db, folder) = fresh().await;
        std::fs::create_dir(folder.path().join("agents")).unwrap();
        std::fs::write(folder.path().join("agents/one.toml"), keeper(&world, "one", "")).unwrap();
        let client = db.client().await;
        client.batch_execute(ROLE).await.unwrap();
        let up = Up::start(&db, folder.path(), Some(point)).await;
        let request = "select convoke.request_task(kind => 'think.it', org => 'demo', requires => '{one}', input => '{}')";
        client.batch_execute(request).await.unwrap();
        up.dies_at(point).await;
        let up = Up::start(&db, folder.path(), None).await;
        soon("the end", async {
            let ended = "select count(*) from convoke.tasks where state = 'completed'";
            while client.query_one(ended, &[]).await.unwrap().get::<_, i64>(0) == 0 {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        })
        .await;
        let row =
            client.query_one("select version, task_id is not null from convoke.memories", &[]).await.unwrap();
        assert_eq!((row.get::<_, i64>(0), row.get::<_, bool>(1)), (1, true), "{point}");
        up.kill().await;
    }
}
