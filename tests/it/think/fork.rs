//! Forks: a new task goes on behind a step of the run of another one.
use super::{
    ROLE, Say, Thinking, World, call, finish,
    kills::{request, token},
    text,
};
use crate::{
    daemon::{Up, fresh, soon},
    support::TestDb,
};
use convoke::{
    id::{Requester, TaskId},
    task::{Error, ForkPoint},
};
use serde_json::{Value, json};
use std::{path::Path, process::Command, time::Duration};

fn at(seq: i32) -> ForkPoint {
    ForkPoint { at: seq, run: None }
}

/// Steps: 1 input, 2 and 3 look, 4 and 5 pay, 6 and 7 finish. The fork pays once more instead.
fn script() -> Vec<Say> {
    let end = Say::InTurn(vec![finish(json!("original")), call("pay", json!({ "amount": 2 }))]);
    vec![call("look", json!({})), call("pay", json!({ "amount": 1 })), end, finish(json!("fork"))]
}

#[tokio::test]
async fn fork_goes_on_behind_a_step_with_effects_and_costs_of_its_own() {
    let thinking = Thinking::start(script(), "").await;
    let tasks = thinking.running.parts.tasks.clone();
    let id = thinking.request(json!({ "priority": 7, "budget": { "tokens": 1_000_000 } })).await;
    thinking.in_state(id, "completed").await;
    let forked = tasks.fork(id, at(5), Requester::from("service")).await.unwrap();
    assert_eq!((&forked.task.input, forked.task.priority), (&json!({ "q": 1 }), 7));
    let fork = forked.task.id;
    let ended = thinking.in_state(fork, "completed").await;
    assert_eq!(ended.result, Some(json!("fork")));
    assert_eq!(ended.budget.unwrap()["task"]["tokens"]["max"], 1_000_000);

    // The model sees what it saw in the first task, byte for byte, so that its endpoint's cache holds.
    let asked = thinking.world.asked();
    assert_eq!(asked.values().map(Vec::len).collect::<Vec<_>>(), [1, 1, 2, 1]);
    assert_eq!(asked[&2][0], asked[&2][1]);
    assert_eq!((thinking.world.calls("look"), thinking.world.keys("pay").len()), (1, 2), "its own key");
    assert_eq!(thinking.world.calls("pay"), 2);

    let effects = tasks.earlier_effects(fork, i32::MAX).await.unwrap();
    assert_eq!(effects.len(), 1, "those of copied steps belong to the first task: {effects:?}");
    assert_eq!(tasks.earlier_effects(id, i32::MAX).await.unwrap().len(), 1);
    let runs = tasks.steps(fork, true).await.unwrap();
    assert_eq!((runs.len(), &runs[0]["forked_from"], &runs[0]["forked_at"]), (1, &json!(id), &json!(5)));
    assert_eq!(runs[0]["tokens"], 220, "two questions of its own");
    let steps = runs[0]["steps"].as_array().unwrap();
    assert_eq!((steps.len(), &steps[4]["result"]), (9, &json!("answer of pay")));
    assert!(steps[1].get("tokens").is_none() && steps[5]["tokens"] == 110, "{steps:?}");
    thinking.stop().await;
}

#[tokio::test]
async fn run_is_forked_only_where_a_question_comes_next() {
    let thinking = Thinking::start(script(), "").await;
    let tasks = thinking.running.parts.tasks.clone();
    let id = thinking.request(json!({})).await;
    thinking.in_state(id, "completed").await;
    for (seq, nearest) in [(-1, 1), (0, 1), (2, 1), (4, 3), (6, 5), (7, 5), (99, 5)] {
        let refused = tasks.fork(id, at(seq), "service").await.unwrap_err();
        let told = refused.to_string();
        assert!(matches!(refused, Error::BadRequest(_)), "{told}");
        assert!(told.ends_with(&format!("step {nearest} is the nearest such step")), "{seq}: {told}");
    }
    let no_such_run = tasks.fork(id, ForkPoint { at: 3, run: Some(2) }, "service").await.unwrap_err();
    assert_eq!(no_such_run.to_string(), "the task has no run 2");
    let unknown = TaskId::generate();
    assert!(
        matches!(tasks.fork(unknown, at(1), "service").await, Err(Error::UnknownTask(task)) if task == unknown)
    );
    let count = "select count(*) from convoke.tasks";
    let count: i64 = thinking.db.client().await.query_one(count, &[]).await.unwrap().get(0);
    assert_eq!(count, 1, "nothing was requested");

    // From its first note: everything is asked anew.
    let fork = tasks.fork(id, at(1), "service").await.unwrap().task.id;
    thinking.in_state(fork, "completed").await;
    assert_eq!(thinking.world.calls("look"), 2);
    thinking.stop().await;
}

#[tokio::test]
async fn run_under_way_is_forked_where_its_calls_have_ended() {
    let script =
        vec![call("look", json!({})), call("ask", json!({ "question": "Which?" })), finish(json!(1))];
    let thinking = Thinking::start(script, "").await;
    let tasks = thinking.running.parts.tasks.clone();
    let id = thinking.request(json!({})).await;
    thinking.in_state(id, "waiting").await;
    let refused = tasks.fork(id, at(5), "service").await.unwrap_err().to_string();
    assert!(refused.ends_with("step 3 is the nearest such step"), "{refused}");
    let fork = tasks.fork(id, at(3), "service").await.unwrap().task.id;
    thinking.in_state(fork, "waiting").await;
    assert_eq!(tasks.steps(fork, true).await.unwrap()[0]["steps"].as_array().unwrap().len(), 5);
    thinking.stop().await;
}

fn convoke(folder: &Path, url: &str, args: &[&str]) -> (bool, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_convoke"));
    command.args(args).current_dir(folder).env("CONVOKE_URL", url).env("CONVOKE_TOKEN", token(folder));
    let output = command.output().unwrap();
    let told =
        String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    (output.status.success(), told.trim().to_owned())
}

async fn ended(db: &TestDb, tasks: i64) {
    let client = db.client().await;
    soon("the end", async {
        let count = "select count(*) from convoke.tasks where state = 'completed'";
        while client.query_one(count, &[]).await.unwrap().get::<_, i64>(0) < tasks {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await;
}

#[tokio::test]
async fn operators_fork_a_task_and_a_kill_behind_the_commit_loses_nothing() {
    let world = World::start(script()).await;
    let (db, folder) = fresh().await;
    std::fs::create_dir(folder.path().join("agents")).unwrap();
    std::fs::write(folder.path().join("agents/thinker.toml"), text(&world, "")).unwrap();
    let client = db.client().await;
    client.batch_execute(ROLE).await.unwrap();
    let up = Up::start(&db, folder.path(), Some("task.requested")).await;
    request(&db).await;
    ended(&db, 1).await;
    let id: String = client.query_one("select id::text from convoke.tasks", &[]).await.unwrap().get(0);
    let post = |token: String, body: Value| {
        let posted = reqwest::Client::new().post(format!("{}/v1/tasks/{id}/fork", up.url));
        posted.bearer_auth(token).json(&body).send()
    };
    let user = user(folder.path());
    let refused = post(user, json!({ "at": 5 })).await.unwrap();
    assert_eq!(refused.status(), 403);
    let service = token(folder.path());
    for body in [json!({ "at": 4 }), json!({}), json!({ "at": "x" }), json!({ "at": 5, "wish": 1 })] {
        let refused = post(service.clone(), body).await.unwrap();
        assert_eq!(refused.status(), 400);
    }
    assert!(post(service, json!({ "at": 5 })).await.is_err(), "the daemon is killed behind the commit");
    up.dies_at("task.requested").await;
    let up = Up::start(&db, folder.path(), None).await;
    ended(&db, 2).await;
    assert_eq!((world.calls("look"), world.calls("pay"), world.keys("pay").len()), (1, 2, 2));

    let (is_ok, told) = convoke(folder.path(), &up.url, &["task", "fork", &id, "--at", "4"]);
    assert!(!is_ok && told.contains("step 3 is the nearest such step"), "{told}");
    let (is_ok, fork) = convoke(folder.path(), &up.url, &["task", "fork", &id, "--at", "3", "--run", "1"]);
    assert!(is_ok, "{fork}");
    ended(&db, 3).await;
    let (_, steps) = convoke(folder.path(), &up.url, &["task", "steps", &fork]);
    assert!(steps.contains(&format!("forked from {id} at step 3")), "{steps}");
    up.kill().await;
}

/// A token of the org that operates nothing.
fn user(folder: &Path) -> String {
    use convoke::auth::{Keys, MintRequest, Role, mint};
    let secret = std::fs::read_to_string(folder.join("data/jwt.secret")).unwrap();
    let keys = Keys::from_secret(&secret.trim().to_owned().into()).unwrap();
    let mut wish = MintRequest::new(Role::Authenticated);
    wish.org = Some("demo".try_into().unwrap());
    wish.subject = Some("ada".into());
    mint(&keys, &wish, convoke::clock::Clock::System.now()).unwrap()
}
