//! `fetch` in a run. What it refuses is tested beside its code.
use super::{Say, Thinking, World, finish, text};
use crate::agent::definition;
use serde_json::{Value, json};

#[tokio::test]
async fn model_reads_a_page_of_a_listed_host_and_no_other() {
    let world = World::start(vec![
        // Replaced below: the address is known only now.
        finish(json!(1)),
    ])
    .await;
    let at = world.address.clone();
    let world = world.says(vec![
        Say::Calls(vec![
            ("fetch", json!({ "url": format!("{at}/page") })),
            ("fetch", json!({ "url": at.replace("127.0.0.1", "localhost") + "/page" })),
            ("fetch", json!({ "url": "http://169.254.169.254/latest/meta-data" })),
        ]),
        finish(json!("read")),
    ]);
    let hosts = format!("[run.fetch]\nprivate_hosts = [{:?}]", at.trim_start_matches("http://"));
    let text = text(&world, &hosts).replace("\"look\", \"pay\"", "\"fetch\", \"look\", \"pay\"");
    let thinking = Thinking::with(world, vec![definition(&text)]).await;
    let id = thinking.request(json!({})).await;
    thinking.in_state(id, "completed").await;
    let steps = thinking.steps(id).await;
    let results: Vec<Value> = (2..5)
        .map(|at: usize| serde_json::from_str(steps[at]["result"].as_str().unwrap()).unwrap())
        .collect();
    assert_eq!((&results[0]["text"], &results[0]["untrusted"]), (&json!("news of today"), &json!(true)));
    assert_eq!(
        (&results[1]["error"]["code"], &results[2]["error"]["code"]),
        (&json!("denied"), &json!("denied"))
    );
    thinking.stop().await;
}
