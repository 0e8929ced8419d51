//! Postgres is killed while an answer is in its memory only: the daemon records it again, or, if it died too, asks again.
use super::{ROLE, Say, World, call, finish, kills, text};
use crate::{
    daemon::{Running, Up, config, soon},
    support::{TestDb, crypto, database_on_its_own_server},
};
use convoke::agent::Definition;
use serde_json::{Value, json};
use std::{process::Command, time::Duration};

/// A tool that reads in the daemon's database, for long enough to be interrupted.
const COUNT: &str = "[[tool]]\nname = \"count\"\nkind = \"sql\"\nrole = \"think_writer\"\neffect = \"read\"\n\
    statement = \"select count(*) as n, pg_sleep(:seconds) is null as slept from notes\"\n\
    parameters = { type = \"object\", required = [\"seconds\"], properties = { seconds = { type = \"integer\" } } }\n";

fn definition_text(world: &World) -> String {
    text(world, "").replace("\"ask\"]", "\"ask\", \"count\"]") + COUNT
}

fn script(seconds: u32) -> Vec<Say> {
    vec![
        call("count", json!({ "seconds": seconds })),
        call("note_down", json!({ "words": "a note" })),
        call("pay", json!({ "amount": 1 })),
        finish(json!({ "ok": true })),
    ]
}

/// A database whose commits are flushed only by sessions that wait for the disk: its WAL writer is stopped.
async fn database_that_flushes_nothing_by_itself() -> TestDb {
    crypto();
    let db = database_on_its_own_server().await;
    db.client().await.batch_execute(ROLE).await.unwrap();
    stop_wal_writer(&db).await;
    db
}

async fn stop_wal_writer(db: &TestDb) {
    let found = "select pid from pg_stat_activity where backend_type = 'walwriter'";
    let pid: i32 = db.client().await.query_one(found, &[]).await.unwrap().get(0);
    assert!(Command::new("kill").args(["-STOP", &pid.to_string()]).status().unwrap().success());
}

async fn one(db: &TestDb, sql: &str) -> i64 {
    db.client().await.query_one(sql, &[]).await.unwrap().get(0)
}

async fn completed(db: &TestDb) {
    soon("the end", async {
        loop {
            let state = "select state from convoke.tasks";
            let state: String = db.client().await.query_one(state, &[]).await.unwrap().get(0);
            match state.as_str() {
                "completed" => return,
                "failed" | "canceled" | "waiting" => panic!("the task is {state}"),
                _ => tokio::time::sleep(Duration::from_millis(30)).await,
            }
        }
    })
    .await;
}

/// Each effect happened once, equal questions have equal bytes, and rows and money agree. Returns the number of
/// questions that were asked again.
async fn checked(db: &TestDb, world: &World, case: &str) -> usize {
    assert_eq!(one(db, "select count(*) from notes").await, 1, "{case}: the effect in the database");
    assert_eq!(world.keys("pay").len(), 1, "{case}: one key");
    let asked = world.asked();
    assert_eq!(asked.len(), 4, "{case}");
    for (entry, bodies) in &asked {
        assert!(bodies.iter().all(|body| body == &bodies[0]), "{case}: question {entry} has the same bytes");
    }
    let client = db.client().await;
    for (name, query) in convoke::task::INVARIANTS {
        let rows = client.query(*query, &[]).await.unwrap();
        assert!(rows.is_empty(), "{case}: {name} is broken by {rows:?}");
    }
    asked.values().map(|bodies| bodies.len() - 1).sum()
}

#[tokio::test]
async fn answer_that_a_crash_of_postgres_loses_is_recorded_again() {
    let world = World::start(script(3)).await;
    let mut db = database_that_flushes_nothing_by_itself().await;
    let data = tempfile::tempdir().unwrap();
    let definition: Definition = toml::from_str(&definition_text(&world)).unwrap();
    let running = Running::start_with(config(&db, data.path()), vec![definition]).await;
    kills::request(&db).await;
    let reads =
        "select count(*) from pg_stat_activity where query like '%pg_sleep%' and pid <> pg_backend_pid()";
    soon("the statement", async {
        while one(&db, reads).await == 0 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await;
    let answered = "select count(*) from convoke.steps where kind = 'model' and state = 'done'";
    assert_eq!(one(&db, answered).await, 1);
    db.own().kill();
    db.own().again().await;
    assert_eq!(one(&db, answered).await, 0, "the answer was in memory only");
    completed(&db).await;
    assert_eq!(checked(&db, &world, "the daemon lives").await, 0, "no question is asked again");
    assert_eq!(one(&db, "select count(*) from convoke.model_questions where state <> 'exact'").await, 0);
    assert_eq!(one(&db, "select count(*) from convoke.model_questions").await, 4, "none is charged twice");
    running.stop().await;
}

#[tokio::test]
async fn answers_that_a_crash_of_postgres_and_the_daemon_loses_are_asked_for_again() {
    let mut lost_ever = 0;
    // After an answer that writes, and after what was read.
    for point in ["step.recorded:2", "tool.recorded:1"] {
        let world = World::start(script(0)).await;
        let mut db = database_that_flushes_nothing_by_itself().await;
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("agents")).unwrap();
        std::fs::write(folder.path().join("agents/thinker.toml"), definition_text(&world)).unwrap();
        let first = Up::start(&db, folder.path(), Some(point)).await;
        kills::request(&db).await;
        first.dies_at(point).await;
        db.own().kill();
        db.own().again().await;
        let lost = "select count(*) from convoke.steps where kind = 'model' and state = 'started'";
        let lost = usize::try_from(one(&db, lost).await).unwrap();
        let _second = Up::start(&db, folder.path(), None).await;
        completed(&db).await;
        assert_eq!(checked(&db, &world, point).await, lost, "{point}: what was lost is asked again, once");
        let states = "select state from convoke.model_questions order by asked_at";
        let rows = db.client().await.query(states, &[]).await.unwrap();
        let presumed = rows.iter().filter(|row| row.get::<_, &str>(0) == "presumed").count();
        assert_eq!((rows.len(), presumed), (4 + lost, lost), "{point}: a lost question counts as its most");
        let result: Value =
            db.client().await.query_one("select result from convoke.tasks", &[]).await.unwrap().get(0);
        assert_eq!(result, json!({ "ok": true }), "{point}");
        lost_ever += lost;
    }
    assert!(lost_ever > 0, "no crash lost an answer");
}
