//! A worker that does not move is shown, whatever else answers.
use super::{Echo, Running, config, definition, fresh, soon};
use serde_json::Value;
use std::{sync::Arc, time::Duration};

const WAKE: &str = r#"
[[wake]]
table = "public.calls"
events = ["INSERT"]
request = { kind = "triage", requires = ["work"], input = { call = "{{ new.id }}" } }
"#;

async fn ready(url: &str, status: u16) -> Value {
    ready_with(url, status, |_| true).await
}

/// The answer with this status whose parts are so.
async fn ready_with(url: &str, status: u16, so: impl Fn(&Value) -> bool) -> Value {
    soon("the status", async {
        loop {
            let answer = reqwest::get(url).await.unwrap();
            if answer.status() == status {
                let answer: Value = answer.json().await.unwrap();
                if so(&answer["parts"]) {
                    return answer;
                }
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    })
    .await
}

#[tokio::test]
async fn stalled_worker_makes_the_daemon_not_ready_until_it_makes_progress() {
    let (db, data) = fresh().await;
    let sql = db.client().await;
    sql.batch_execute("create table public.calls (id int primary key)").await.unwrap();
    let (told, mut inputs) = tokio::sync::mpsc::channel(1);
    let agent = (definition("echo", WAKE), Arc::new(Echo(told)) as _);
    let running = Running::start(config(&db, data.path()), vec![agent]).await;
    let url = format!("http://{}/health/ready", running.parts.addr);

    let locker = db.client().await;
    locker.batch_execute("begin; lock table convoke.tasks in access exclusive mode").await.unwrap();
    sql.batch_execute("insert into public.calls values (7)").await.unwrap();
    // The arbiter waits for the lock too, and may be down first.
    let consumer_is_down = |parts: &Value| parts["wal_consumer"]["state"] == "down";
    let parts = ready_with(&url, 503, consumer_is_down).await["parts"].take();
    assert!(parts["wal_consumer"]["detail"].as_str().unwrap().starts_with("stalled"), "{parts}");
    assert_eq!(parts["database"]["state"], "ready", "{parts}");

    locker.batch_execute("rollback").await.unwrap();
    assert_eq!(soon("the agent", inputs.recv()).await.unwrap()["call"], 7);
    let parts = ready(&url, 200).await["parts"].take();
    assert_eq!(parts["wal_consumer"]["state"], "ready", "{parts}");
    running.stop().await;
}

#[tokio::test]
async fn stalled_arbiter_makes_the_daemon_not_ready_until_it_makes_progress() {
    let (db, data) = fresh().await;
    let running = Running::start(config(&db, data.path()), vec![]).await;
    let url = format!("http://{}/health/ready", running.parts.addr);
    let arbiter_is = |state: &'static str| move |parts: &Value| parts["arbiter"]["state"] == state;
    ready_with(&url, 200, arbiter_is("ready")).await;

    let locker = db.client().await;
    locker.batch_execute("begin; lock table convoke.tasks in access exclusive mode").await.unwrap();
    let answer = ready_with(&url, 503, arbiter_is("down")).await;
    let detail = answer["parts"]["arbiter"]["detail"].as_str().unwrap();
    assert!(detail.starts_with("stalled: has work and has not moved for "), "{detail}");
    assert_eq!(answer["parts"]["database"]["state"], "ready", "{answer}");

    locker.batch_execute("rollback").await.unwrap();
    let answer = ready_with(&url, 200, arbiter_is("ready")).await;
    assert_eq!(answer["parts"]["arbiter"]["detail"], "moves", "{answer}");
    running.stop().await;
}
