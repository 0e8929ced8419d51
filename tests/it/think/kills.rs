//! The daemon is killed at every fault point of the loop, for every class of effects, and started again.
use super::{ROLE, Say, World, call, finish, text};
use crate::{
    daemon::{Up, fresh, soon},
    support::TestDb,
};
use bytes::Bytes;
use convoke::auth::{Keys, MintRequest, Role, mint};
use serde_json::{Value, json};
use std::{collections::BTreeMap, os::unix::process::ExitStatusExt, path::Path, time::Duration};

/// One call of each class: read, database, keyed, once.
fn script() -> Vec<Say> {
    vec![
        call("look", json!({})),
        call("note_down", json!({ "words": "a note" })),
        call("pay", json!({ "amount": 1 })),
        call("send", json!({ "to": "ada" })),
        finish(json!({ "ok": true })),
    ]
}

async fn prepared() -> (World, TestDb, tempfile::TempDir) {
    prepared_with("").await
}

async fn prepared_with(more: &str) -> (World, TestDb, tempfile::TempDir) {
    let world = World::start(script()).await;
    let (db, folder) = fresh().await;
    std::fs::create_dir(folder.path().join("agents")).unwrap();
    std::fs::write(folder.path().join("agents/thinker.toml"), text(&world, more)).unwrap();
    db.client().await.batch_execute(ROLE).await.unwrap();
    (world, db, folder)
}

pub fn token(folder: &Path) -> String {
    let secret = std::fs::read_to_string(folder.join("data/jwt.secret")).unwrap();
    let keys = Keys::from_secret(&secret.trim().to_owned().into()).unwrap();
    let mut wish = MintRequest::new(Role::ServiceRole);
    wish.org = Some("demo".try_into().unwrap());
    mint(&keys, &wish, convoke::clock::Clock::System.now()).unwrap()
}

/// Waits for the end. A person who knows the truth answers the question about the outcome of `send`.
pub(super) async fn completed(up: &Up, db: &TestDb, folder: &Path, world: &World) -> u32 {
    let (client, token, mut answers) = (db.client().await, token(folder), 0);
    let state = "select id::text, state, question->>'question' from convoke.tasks";
    soon("the end", async {
        loop {
            let row = client.query_one(state, &[]).await.unwrap();
            let (id, state): (String, String) = (row.get(0), row.get(1));
            match state.as_str() {
                "completed" => return,
                "failed" | "canceled" => panic!("the task is {state}"),
                "waiting" => {
                    let question: String = row.get(2);
                    assert!(question.contains("the tool send"), "{question}");
                    let answer = match world.calls("send") {
                        0 => json!({ "outcome": "not_done" }),
                        _ => json!({ "outcome": "done", "result": "answer of send" }),
                    };
                    let url = format!("{}/v1/tasks/{id}/answer", up.url);
                    let posted = reqwest::Client::new().post(url).bearer_auth(&token);
                    posted.json(&json!({ "answer": answer })).send().await.unwrap();
                    answers += 1;
                }
                _ => {}
            }
            tokio::time::sleep(Duration::from_millis(30)).await;
        }
    })
    .await;
    answers
}

/// The questions of a run that nobody disturbed.
async fn undisturbed() -> BTreeMap<usize, Vec<Bytes>> {
    let (world, db, folder) = prepared().await;
    let up = Up::start(&db, folder.path(), None).await;
    request(&db).await;
    assert_eq!(completed(&up, &db, folder.path(), &world).await, 0);
    world.asked()
}

pub(super) async fn request(db: &TestDb) {
    let request = "select convoke.request_task('think.it', '{\"q\": 1}', '{think}', 'demo')";
    db.client().await.query_one(request, &[]).await.unwrap();
}

/// One life of the daemon, which may end before it is ready.
async fn dies(db: &TestDb, folder: &Path, point: &str) {
    let mut process = Up::command(db, folder).env("CONVOKE_FAULT", point).spawn().unwrap();
    let status = soon(point, process.wait()).await.unwrap();
    assert_eq!(status.signal(), Some(9), "{point}: {status}");
}

async fn survives(point: &str, expected: &BTreeMap<usize, Vec<Bytes>>) {
    let (world, db, folder) = prepared().await;
    let first = Up::start(&db, folder.path(), Some(point)).await;
    request(&db).await;
    first.dies_at(point).await;
    let second = Up::start(&db, folder.path(), None).await;
    let answers = completed(&second, &db, folder.path(), &world).await;
    let client = db.client().await;

    let result: Value = client.query_one("select result from convoke.tasks", &[]).await.unwrap().get(0);
    assert_eq!(result, json!({ "ok": true }), "{point}");
    let count = |sql: &'static str| async { client.query_one(sql, &[]).await.unwrap().get::<_, i64>(0) };
    assert_eq!(count("select count(*) from notes").await, 1, "{point}: the database effect, exactly once");
    assert_eq!(world.keys("pay").len(), 1, "{point}: one key");
    assert_eq!(world.calls("send"), 1, "{point}: once");
    assert!(world.calls("look") <= 2, "{point}");
    let is_doubtful = matches!(point, "tool.intended:3" | "tool.done:3");
    assert_eq!(answers, u32::from(is_doubtful), "{point}: a person is asked only about an unknown outcome");

    let asked = world.asked();
    assert_eq!(asked.len(), expected.len(), "{point}");
    let again: usize = asked.values().map(|bodies| bodies.len() - 1).sum();
    assert!(again <= 1, "{point}: at most the question under way is asked again");
    if point.starts_with("tool") || point.starts_with("run") || point.starts_with("step.recorded") {
        assert_eq!(again, 0, "{point}: an answer that was recorded is used");
    }
    for (entry, bodies) in &asked {
        for body in bodies {
            assert_eq!(body, &expected[entry][0], "{point}: question {entry} has the same bytes");
        }
    }
    assert_eq!(count("select count(*) from convoke.runs").await, 1, "{point}: the same run goes on");
    let open = "select count(*) from convoke.steps where state not in ('done', 'failed', 'skipped')";
    assert_eq!(count(open).await, 0, "{point}");
    for (name, query) in convoke::task::INVARIANTS {
        let rows = client.query(*query, &[]).await.unwrap();
        assert!(rows.is_empty(), "{point}: {name} is broken by {rows:?}");
    }
}

#[tokio::test]
async fn run_that_goes_forward_outlives_more_deaths_than_it_has_attempts() {
    let script: Vec<Say> =
        (0..5).map(|n| call("look", json!({ "n": n }))).chain([finish(json!(1))]).collect();
    let (world, db, folder) = prepared().await;
    let world = world.says(script);
    let request = "select convoke.request_task('think.it', '{\"q\": 1}', '{think}', 'demo', policy => '{\"attempts_max\": 1}')";
    db.client().await.query_one(request, &[]).await.unwrap();
    // Each life records one answer, and dies before its call runs.
    for _ in 0..4 {
        dies(&db, folder.path(), "step.recorded").await;
    }
    let up = Up::start(&db, folder.path(), None).await;
    assert_eq!(completed(&up, &db, folder.path(), &world).await, 0);
    let attempts: i32 =
        db.client().await.query_one("select attempt from convoke.tasks", &[]).await.unwrap().get(0);
    assert_eq!((attempts, world.questions()), (1, 6));
}

#[tokio::test]
async fn step_that_kills_the_daemon_each_time_is_poison() {
    let (world, db, folder) = prepared().await;
    request(&db).await;
    for _ in 0..3 {
        dies(&db, folder.path(), "step.begun").await;
    }
    let _up = Up::start(&db, folder.path(), None).await;
    let client = db.client().await;
    let error: Value = soon("the end", async {
        loop {
            let row = "select state, state_reason, error from convoke.tasks";
            let row = client.query_one(row, &[]).await.unwrap();
            if row.get::<_, &str>(0) == "failed" {
                assert_eq!(row.get::<_, &str>(1), "poison");
                return row.get(2);
            }
            tokio::time::sleep(Duration::from_millis(30)).await;
        }
    })
    .await;
    assert_eq!(error["seq"], 2, "{error}");
    assert_eq!(world.questions(), 0);
}

async fn survive(points: &[&str]) {
    let expected = undisturbed().await;
    for point in points {
        survives(point, &expected).await;
    }
}

#[tokio::test]
async fn killed_around_a_question_at_most_that_question_is_asked_again() {
    survive(&["step.begun:1", "step.begun:3", "step.answered:1", "step.answered:4"]).await;
}

#[tokio::test]
async fn killed_after_an_answer_is_recorded_its_calls_run() {
    survive(&["step.recorded:1", "step.recorded:2", "step.recorded:3", "step.recorded:4", "step.recorded:5"])
        .await;
}

#[tokio::test]
async fn killed_between_intent_and_effect_or_effect_and_record_nothing_happens_twice() {
    survive(&[
        "tool.intended:1",
        "tool.intended:2",
        "tool.intended:3",
        "tool.done:1",
        "tool.done:2",
        "tool.done:3",
    ])
    .await;
}

#[tokio::test]
async fn killed_after_a_result_is_recorded_the_run_goes_on_with_it() {
    survive(&[
        "tool.recorded:1",
        "tool.recorded:2",
        "tool.recorded:3",
        "tool.recorded:4",
        "tool.recorded:5",
        "run.finishing:1",
    ])
    .await;
}

#[tokio::test]
async fn killed_between_answer_and_settlement_a_question_is_charged_neither_twice_nor_for_free() {
    let price = "price = { input = 1_000_000, output = 1_000_000 }";
    // Each of the five answers costs 110. A question whose end is not known costs its most: once, beside its repetition.
    for (point, lost) in [("step.begun:2", 1), ("step.answered:2", 1), ("step.recorded:2", 0)] {
        let (world, db, folder) = prepared_with(price).await;
        let first = Up::start(&db, folder.path(), Some(point)).await;
        request(&db).await;
        first.dies_at(point).await;
        let second = Up::start(&db, folder.path(), None).await;
        completed(&second, &db, folder.path(), &world).await;
        let client = db.client().await;
        let questions = "select state, microdollars from convoke.model_questions order by state, asked_at";
        let rows = client.query(questions, &[]).await.unwrap();
        let asked: Vec<(String, i64)> = rows.iter().map(|row| (row.get(0), row.get(1))).collect();
        let (exact, presumed): (Vec<_>, Vec<_>) = asked.iter().partition(|(state, _)| state == "exact");
        assert!(exact.len() == 5 && exact.iter().all(|(_, money)| *money == 110), "{point}: {asked:?}");
        assert!(
            presumed.len() == lost && presumed.iter().all(|(_, money)| *money > 4_096),
            "{point}: {asked:?}"
        );
        let total: i64 = asked.iter().map(|(_, money)| money).sum();
        for sums in ["convoke.spend", "convoke.charges"] {
            let sum = format!("select sum(microdollars)::bigint from {sums}");
            assert_eq!(client.query_one(&sum, &[]).await.unwrap().get::<_, i64>(0), total, "{point}: {sums}");
        }
        for (name, query) in convoke::task::INVARIANTS {
            let rows = client.query(*query, &[]).await.unwrap();
            assert!(rows.is_empty(), "{point}: {name} is broken by {rows:?}");
        }
    }
}
