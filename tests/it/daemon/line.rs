//! One thin line through all parts: a row changes, an agent wakes, negotiates and does the work.
use super::{Echo, Running, config, definition, fresh, soon};
use crate::support::PATIENCE;
use convoke::{
    hub::Room,
    id::Topic,
    task::{Filter, TaskState},
};
use serde_json::json;
use std::sync::Arc;
use tokio::sync::mpsc;

const WAKE: &str = r#"
[[wake]]
table = "public.tickets"
events = ["INSERT"]
filter = "priority=gte.3"
request = { kind = "triage", requires = ["work"], input = { ticket = "{{ new }}" } }
"#;
const TICKETS: &str = "create table tickets (id bigint primary key, priority int not null)";

#[tokio::test]
async fn matching_row_becomes_one_task_that_is_completed() {
    let (db, dir) = fresh().await;
    db.client().await.batch_execute(TICKETS).await.unwrap();
    let (told, mut inputs) = mpsc::channel(16);
    let agent = (definition("echo", WAKE), Arc::new(Echo(told)) as _);
    let daemon = Running::start(config(&db, dir.path()), vec![agent]).await;
    let client = db.client().await;
    client.batch_execute("insert into tickets values (1, 5), (2, 1), (3, 3)").await.unwrap();
    let mut seen =
        vec![soon("first", inputs.recv()).await.unwrap(), soon("second", inputs.recv()).await.unwrap()];
    seen.sort_by_key(|input| input["ticket"]["id"].as_i64());
    assert_eq!(
        seen,
        [json!({ "ticket": { "id": 1, "priority": 5 } }), json!({ "ticket": { "id": 3, "priority": 3 } })]
    );
    let tasks = daemon.parts.tasks.list(&Filter::default()).await.unwrap();
    assert_eq!(tasks.len(), 2);
    for task in tasks {
        let ended = soon("the end", daemon.parts.tasks.wait(task.id, PATIENCE)).await.unwrap();
        assert_eq!((ended.state, ended.requester.to_string()), (TaskState::Completed, "wake:echo#0".into()));
    }
    daemon.stop().await;
}

#[tokio::test]
async fn changes_while_the_daemon_is_down_wake_agents_at_the_next_start() {
    let (db, dir) = fresh().await;
    db.client().await.batch_execute(TICKETS).await.unwrap();
    let (told, mut inputs) = mpsc::channel(16);
    let start = || {
        let agent = (definition("echo", WAKE), Arc::new(Echo(told.clone())) as _);
        Running::start(config(&db, dir.path()), vec![agent])
    };
    let first = start().await;
    let client = db.client().await;
    client.batch_execute("insert into tickets values (1, 5)").await.unwrap();
    soon("before", inputs.recv()).await.unwrap();
    first.stop().await;
    client.batch_execute("insert into tickets values (2, 5)").await.unwrap();
    let second = start().await;
    assert_eq!(soon("after", inputs.recv()).await.unwrap()["ticket"]["id"], 2);
    second.stop().await;
    let tasks: i64 = client.query_one("select count(*) from convoke.tasks", &[]).await.unwrap().get(0);
    assert_eq!(tasks, 2);
}

#[tokio::test]
async fn task_requested_in_sql_reaches_the_agent_through_the_wal() {
    let (db, dir) = fresh().await;
    let (told, mut inputs) = mpsc::channel(16);
    let daemon =
        Running::start(config(&db, dir.path()), vec![(definition("echo", ""), Arc::new(Echo(told)) as _)])
            .await;
    let client = db.client().await;
    // The first one may be found by the look at the start; the second only through the log, or seconds later.
    for n in [1, 2] {
        let call = format!(
            "select convoke.request_task(kind => 'k', org => 'demo', requires => '{{work}}', input => '{n}')"
        );
        client.query_one(&call, &[]).await.unwrap();
        assert_eq!(soon("the task", inputs.recv()).await.unwrap(), n);
    }
    daemon.stop().await;
}

#[tokio::test]
async fn table_that_is_created_later_is_published() {
    let (db, dir) = fresh().await;
    let (told, mut inputs) = mpsc::channel(16);
    let agent = (definition("echo", WAKE), Arc::new(Echo(told)) as _);
    let daemon = Running::start(config(&db, dir.path()), vec![agent]).await;
    let client = db.client().await;
    client.batch_execute(TICKETS).await.unwrap();
    let published = "select 1 from pg_publication_tables where tablename = 'tickets'";
    soon("the publication", async {
        while client.query_opt(published, &[]).await.unwrap().is_none() {
            tokio::task::yield_now().await;
        }
    })
    .await;
    client.batch_execute("insert into tickets values (7, 7)").await.unwrap();
    assert_eq!(soon("the row", inputs.recv()).await.unwrap()["ticket"]["id"], 7);
    daemon.stop().await;
}

#[tokio::test]
async fn second_daemon_stands_by_and_takes_over() {
    let (db, dir) = fresh().await;
    let other_dir = tempfile::tempdir().unwrap();
    let (told, mut inputs) = mpsc::channel(16);
    let start = |dir: std::path::PathBuf| {
        let agent = (definition("echo", ""), Arc::new(Echo(told.clone())) as _);
        Running::start(config(&db, &dir), vec![agent])
    };
    let first = start(dir.path().to_owned()).await;
    let org = "demo".try_into().unwrap();
    let wish = || serde_json::from_value(json!({ "kind": "k", "requires": ["work"], "input": 1 })).unwrap();
    first.parts.tasks.request(&org, "test", wish()).await.unwrap();
    soon("the first", inputs.recv()).await.unwrap();
    let second = start(other_dir.path().to_owned()).await;
    second.parts.tasks.request(&org, "test", wish()).await.unwrap();
    soon("asked of the one that stands by", inputs.recv()).await.unwrap();
    first.stop().await;
    second.parts.tasks.request(&org, "test", wish()).await.unwrap();
    soon("after the first is gone", inputs.recv()).await.unwrap();
    second.stop().await;
}

#[tokio::test]
async fn work_of_agents_is_published_on_the_channel_of_their_org() {
    let (db, dir) = fresh().await;
    let (told, mut inputs) = mpsc::channel(16);
    let daemon =
        Running::start(config(&db, dir.path()), vec![(definition("echo", ""), Arc::new(Echo(told)) as _)])
            .await;
    let org = "demo".try_into().unwrap();
    let mut listener = daemon.parts.hub.listen(Room::public(Topic::org(&org)), 256);
    let wish = serde_json::from_value(json!({ "kind": "k", "requires": ["work"] })).unwrap();
    let made = daemon.parts.tasks.request(&org, "test", wish).await.unwrap();
    soon("the work", inputs.recv()).await.unwrap();
    let mut states = Vec::new();
    while states.last().map(String::as_str) != Some("completed") {
        let (_, message) = soon("a message", listener.recv()).await.unwrap();
        let Some(object) = message.object() else { continue };
        let value: serde_json::Value = serde_json::from_slice(&object).unwrap();
        let payload = &value["payload"];
        if value["event"] == "coordination" && payload["type"] == "task_update" {
            assert_eq!(payload["task"]["id"], json!(made.task.id));
            states.push(payload["task"]["state"].as_str().unwrap().to_owned());
        }
    }
    assert_eq!(states, ["open", "awarded", "running", "completed"]);
    daemon.stop().await;
}
