//! `examples/research`: its agents, its MCP server and its scripts as they are, with a scripted model.
use super::{Say, World};
use crate::{
    daemon::{Up, fresh, soon},
    support::is_hostile,
};
use serde_json::{Value, json};
use std::{fs, path::Path, time::Duration};

const EXAMPLE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/research");

/// The answer of a model whose tools are called by schema.
fn says(tool: &str, arguments: Value) -> Say {
    Say::Text(json!({ "tool": tool, "arguments": arguments }).to_string())
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap().map(Result::unwrap) {
        let (from, to) = (entry.path(), to.join(entry.file_name()));
        if !from.is_dir() {
            fs::copy(from, to).unwrap();
        } else if !from.ends_with(".venv") {
            copy(&from, &to);
        }
    }
}

/// Serves the page of the inspectors. Returns its address.
async fn site() -> String {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let page = fs::read_to_string(format!("{EXAMPLE}/site/inspections.html")).unwrap();
    let page = move || {
        let page = page.clone();
        async move { ([("content-type", "text/html")], page) }
    };
    let router = axum::Router::new().route("/inspections.html", axum::routing::get(page));
    #[expect(clippy::disallowed_methods, reason = "it ends with the test's runtime")]
    tokio::spawn(async move { axum::serve(listener, router).await });
    address
}

/// The last message of a question.
fn told(world: &World, entry: usize) -> String {
    let question = world.question(entry);
    question["messages"].as_array().unwrap().last().unwrap()["content"].as_str().unwrap().to_owned()
}

#[tokio::test]
async fn example_of_research_works_with_a_scripted_model() {
    if is_hostile() {
        return; // Its schema needs rights that such a database does not give.
    }
    let (db, folder) = fresh().await;
    copy(Path::new(EXAMPLE), folder.path());
    let at = site().await;
    let report = "North bridge is closed, it has a crack in a main beam.";
    let planner = World::start(vec![
        says(
            "request_task",
            json!({ "kind": "research.look", "input": { "question": "Which bridges are closed?" } }),
        ),
        says("tasks", json!({ "wait": true })),
        says("request_task", json!({ "kind": "research.file", "input": { "report": report } })),
        says("tasks", json!({ "wait": true })),
        says("finish", json!({ "report": report })),
    ])
    .await;
    let researcher = World::start(vec![
        says("sql_read", json!({ "query": "select name, built from bridges order by built" })),
        says("fetch", json!({ "url": format!("http://{at}/inspections.html") })),
        says("library__search", json!({ "words": "crack" })),
        says("library__read", json!({ "document": "load-rules" })),
        says("library__add", json!({ "document": "findings-north", "text": report })),
        says("finish", json!({ "answer": report, "sources": ["load-rules"] })),
    ])
    .await;
    let file = folder.path().join("agents/researcher.toml");
    let text = fs::read_to_string(&file).unwrap().replace("127.0.0.1:9071", &at);
    fs::write(&file, text.replace("RESEARCH_LLM_URL", "RESEARCHER_LLM_URL")).unwrap();
    let schema = fs::read_to_string(folder.path().join("schema.sql")).unwrap();
    let admin = db.admin().await;
    admin.batch_execute(&schema).await.unwrap();
    admin.batch_execute("alter role research_reader password 'research-of-the-test'").await.unwrap();
    let (archive, additions) = (folder.path().join("archive.jsonl"), folder.path().join("additions"));
    fs::create_dir(&additions).unwrap();
    let mut command = Up::command(&db, folder.path());
    command
        .env("RESEARCH_LLM_URL", format!("{}/v1", planner.address))
        .env("RESEARCHER_LLM_URL", format!("{}/v1", researcher.address))
        .env("RESEARCH_READER_PASSWORD", "research-of-the-test")
        .env("RESEARCH_ARCHIVE", &archive)
        .env("RESEARCH_ADDITIONS", &additions);
    let up = Up::begin(command).await;
    let client = db.client().await;
    let request = "select convoke.request_task(kind => 'research.report', org => 'town',
                   requires => '{research.report}', input => '{\"question\": \"Which bridges are closed?\"}')";
    client.batch_execute(request).await.unwrap();
    // A person reads what the researcher is about to add.
    let (id, question): (String, Value) = soon("the question", async {
        let waiting = "select id::text, question from convoke.tasks where state = 'waiting'";
        loop {
            match client.query_opt(waiting, &[]).await.unwrap() {
                Some(row) => return (row.get(0), row.get(1)),
                None => tokio::time::sleep(Duration::from_millis(20)).await,
            }
        }
    })
    .await;
    assert_eq!(question["calls"][0]["tool"], "library__add", "{question}");
    assert!(question["calls"][0]["arguments"].as_str().unwrap().contains(report), "{question}");
    assert_eq!(fs::read_dir(&additions).unwrap().count(), 0);
    let call = question["calls"][0]["id"].as_str().unwrap();
    let answer = json!({ "answer": { call: "approve" } });
    let posted = reqwest::Client::new().post(format!("{}/v1/tasks/{id}/answer", up.url)).json(&answer);
    let posted = posted.bearer_auth(super::kills::token(folder.path())).send().await.unwrap();
    assert_eq!(posted.status(), 200);
    let found: Value = soon("the report", async {
        let ended = "select state, result, error from convoke.tasks where kind = 'research.report'";
        loop {
            let row = client.query_one(ended, &[]).await.unwrap();
            match row.get::<_, String>(0).as_str() {
                "completed" => return row.get(1),
                "failed" => panic!("{:?}", row.get::<_, Option<Value>>(2)),
                _ => tokio::time::sleep(Duration::from_millis(20)).await,
            }
        }
    })
    .await;
    assert_eq!(found, json!({ "report": report }));
    // The rules of calls decide what the schema of each question has.
    let open = |world: &World, entry: usize| -> Vec<Value> {
        let question = world.question(entry);
        let forms = question["response_format"]["json_schema"]["schema"]["anyOf"].as_array().unwrap().clone();
        forms.iter().map(|form| form["properties"]["tool"]["const"].clone()).collect()
    };
    assert_eq!(open(&planner, 0), ["request_task"]);
    assert_eq!(open(&planner, 4), ["finish"]);
    assert_eq!(open(&researcher, 0), ["fetch", "library__read", "library__search", "sql_read"]);
    assert_eq!(open(&researcher, 4), ["library__add"]);
    // What the researcher was told by each of its sources.
    assert!(told(&researcher, 1).contains("[\"Mill bridge\",\"1931\"]"), "{}", told(&researcher, 1));
    assert!(told(&researcher, 2).contains("crack in a main beam"), "{}", told(&researcher, 2));
    assert!(told(&researcher, 3).contains("[data from library]\n{\"documents\": [\"load-rules\"]}"));
    assert!(told(&researcher, 4).contains("is closed to all vehicles until it is repaired"));
    assert!(told(&researcher, 5).contains("[data from library]\nIt is in the library."));
    assert_eq!(fs::read_to_string(additions.join("findings-north.txt")).unwrap(), format!("{report}\n"));
    // What the planner was told by its parts.
    assert!(told(&planner, 2).contains("\"sources\":[\"load-rules\"]"), "{}", told(&planner, 2));
    assert!(told(&planner, 4).contains("\"filed\":true"), "{}", told(&planner, 4));
    let filed: Value = serde_json::from_str(&fs::read_to_string(archive).unwrap()).unwrap();
    assert_eq!(filed, json!({ "report": report }));
    up.kill().await;
}
