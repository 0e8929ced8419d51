//! Commands that outlive the daemon: their outcome is known after it was killed.
use super::{World, call, finish, text};
use crate::{
    daemon::{Up, fresh, soon},
    support::TestDb,
};
use serde_json::{Value, json};
use std::{path::Path, time::Duration};

/// A script that says that it began, waits for the file `go`, and says that it ended.
const SCRIPT: &str = "#!/bin/sh
echo \"$$ $PPID $CONVOKE_IDEMPOTENCY_KEY\" >> \"$0.began\"
while [ ! -e \"$0.go\" ]; do sleep 0.05; done
echo done >> \"$0.ended\"
echo \"the outcome of $(cat)\"
";

/// A world whose agent has the command as the tool `program`, with these keys.
async fn prepared(more: &str) -> (World, TestDb, tempfile::TempDir) {
    use std::os::unix::fs::PermissionsExt;
    let world = World::start(vec![call("program", json!({ "a": 1 })), finish(json!(1))]).await;
    let (db, folder) = fresh().await;
    std::fs::create_dir(folder.path().join("agents")).unwrap();
    let program = folder.path().join("agents/program");
    std::fs::write(&program, SCRIPT).unwrap();
    std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
    let tool = format!(
        "[[tool]]\nname = \"program\"\nkind = \"command\"\nargv = [\"./program\"]\nenv = [\"PATH\"]\n\
         parameters = {{ type = \"object\" }}\n{more}\n"
    );
    let text = text(&world, "").replace("\"ask\"]", "\"ask\", \"program\"]") + &tool;
    std::fs::write(folder.path().join("agents/thinker.toml"), text).unwrap();
    db.client().await.batch_execute(super::ROLE).await.unwrap();
    (world, db, folder)
}

fn path(folder: &Path, what: &str) -> std::path::PathBuf {
    folder.join(format!("agents/program.{what}"))
}

/// The lines of a file that the program writes.
fn lines(folder: &Path, what: &str) -> Vec<String> {
    let text = std::fs::read_to_string(path(folder, what)).unwrap_or_default();
    text.lines().map(str::to_owned).collect()
}

async fn begun(folder: &Path, times: usize) -> Vec<String> {
    soon("the program", async {
        loop {
            let lines = lines(folder, "began");
            if lines.len() >= times {
                return lines;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await
}

async fn result(db: &TestDb) -> String {
    let row = "select result from convoke.steps where name = 'program'";
    db.client().await.query_one(row, &[]).await.unwrap().get(0)
}

/// Files of keepers that are left.
fn kept(folder: &Path) -> usize {
    std::fs::read_dir(folder.join("data/calls")).unwrap().count()
}

#[tokio::test]
async fn command_that_runs_when_the_daemon_is_killed_ends_and_its_outcome_is_used() {
    let (world, db, folder) = prepared("effect = \"once\"").await;
    let folder = folder.path();
    let first = Up::start(&db, folder, Some("keeper.spawned")).await;
    super::kills::request(&db).await;
    first.dies_at("keeper.spawned").await;
    begun(folder, 1).await;
    let second = Up::start(&db, folder, None).await;
    // It still runs, so the daemon waits for it.
    assert!(lines(folder, "ended").is_empty());
    std::fs::write(path(folder, "go"), "").unwrap();
    let answers = super::kills::completed(&second, &db, folder, &world).await;
    assert_eq!((answers, lines(folder, "began").len()), (0, 1), "nobody is asked, and it ran once");
    assert_eq!(result(&db).await, "the outcome of {\"a\":1}");
    assert_eq!(kept(folder), 0, "what is recorded is forgotten");
}

#[tokio::test]
async fn command_that_ended_while_the_daemon_was_dead_has_a_known_outcome() {
    for point in ["keeper.spawned", "keeper.wrote", "tool.done"] {
        let (world, db, folder) = prepared("effect = \"once\"").await;
        let folder = folder.path();
        let first = Up::start(&db, folder, Some(point)).await;
        std::fs::write(path(folder, "go"), "").unwrap();
        super::kills::request(&db).await;
        first.dies_at(point).await;
        soon("the end of the program", async {
            while lines(folder, "ended").is_empty() {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        })
        .await;
        let second = Up::start(&db, folder, None).await;
        let answers = super::kills::completed(&second, &db, folder, &world).await;
        assert_eq!((answers, lines(folder, "began").len()), (0, 1), "{point}");
        assert_eq!(result(&db).await, "the outcome of {\"a\":1}", "{point}");
    }
}

#[tokio::test]
async fn reading_command_is_killed_with_the_daemon_and_runs_again() {
    let (world, db, folder) = prepared("effect = \"read\"").await;
    let folder = folder.path();
    let first = Up::start(&db, folder, None).await;
    super::kills::request(&db).await;
    let began = begun(folder, 1).await;
    first.kill().await;
    let process = format!("/proc/{}/stat", began[0].split(' ').next().unwrap());
    soon("the end of the program", async {
        // A zombie has ended too: nobody may have waited for it yet.
        while std::fs::read_to_string(&process).is_ok_and(|stat| !stat.contains(") Z")) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await;
    std::fs::write(path(folder, "go"), "").unwrap();
    let second = Up::start(&db, folder, None).await;
    assert_eq!(super::kills::completed(&second, &db, folder, &world).await, 0);
    assert_eq!((lines(folder, "began").len(), lines(folder, "ended").len()), (2, 1));
}

#[tokio::test]
async fn outcome_of_a_command_that_lost_its_keeper_is_unknown() {
    let (_world, db, folder) = prepared("effect = \"once\"").await;
    let folder = folder.path();
    let up = Up::start(&db, folder, None).await;
    super::kills::request(&db).await;
    let began = begun(folder, 1).await;
    let keeper = began[0].split(' ').nth(1).unwrap();
    assert_ne!(keeper, "1");
    std::process::Command::new("kill").args(["-9", keeper]).status().unwrap();
    let client = db.client().await;
    let question: Value = soon("the question", async {
        loop {
            let row = client.query_one("select question from convoke.tasks", &[]).await.unwrap();
            if let Some(question) = row.get::<_, Option<Value>>(0) {
                return question;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await;
    assert!(question["question"].as_str().unwrap().contains("the tool program"), "{question}");
    // The program itself lives on; it ends with the test.
    std::fs::write(path(folder, "go"), "").unwrap();
    up.kill().await;
}

#[tokio::test]
async fn cancel_stops_a_command_under_its_keeper() {
    let (_world, db, folder) = prepared("effect = \"once\"").await;
    let folder = folder.path();
    let up = Up::start(&db, folder, None).await;
    super::kills::request(&db).await;
    begun(folder, 1).await;
    let client = db.client().await;
    let id: String = client.query_one("select id::text from convoke.tasks", &[]).await.unwrap().get(0);
    let url = format!("{}/v1/tasks/{id}/cancel", up.url);
    let posted = reqwest::Client::new().post(url).bearer_auth(super::kills::token(folder));
    assert!(posted.json(&json!({ "reason": "enough" })).send().await.unwrap().status().is_success());
    soon("the end of the program and its keeper", async {
        loop {
            let state: String =
                client.query_one("select state from convoke.tasks", &[]).await.unwrap().get(0);
            let ended = std::fs::read_dir(folder.join("data/calls")).unwrap().flatten();
            let has_outcome = ended.filter(|it| it.path().extension().is_some_and(|it| it == "json")).count();
            if state == "canceled" && has_outcome == 1 {
                return;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await;
    assert!(lines(folder, "ended").is_empty());
    up.kill().await;
}

/// Gives the agent two slots, and its command `concurrent = 1`.
fn shares_one_permit(folder: &Path) {
    let file = folder.join("agents/thinker.toml");
    let text = std::fs::read_to_string(&file).unwrap();
    let text = text.replace("org = \"demo\"\n", "org = \"demo\"\nslots = 2\n");
    let text = text.replace("effect = \"once\"\ntimeout", "effect = \"once\"\nconcurrent = 1\ntimeout");
    std::fs::write(file, text).unwrap();
}

/// Waits until a running assignment has this activity.
async fn shows(db: &TestDb, activity: &str) {
    let client = db.client().await;
    let shown = "select from convoke.assignments where ended_at is null and activity = $1";
    soon(activity, async {
        while client.query_opt(shown, &[&activity]).await.unwrap().is_none() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await;
}

/// Waits until both tasks are completed. Panics if one fails or waits for an answer.
async fn both_completed(db: &TestDb) {
    let client = db.client().await;
    let states = "select state from convoke.tasks";
    soon("the end of both tasks", async {
        loop {
            let rows = client.query(states, &[]).await.unwrap();
            let states: Vec<String> = rows.iter().map(|row| row.get(0)).collect();
            assert!(!states.iter().any(|state| state == "waiting" || state == "failed"), "{states:?}");
            if states == ["completed", "completed"] {
                return;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await;
}

#[tokio::test]
async fn call_that_waits_for_a_permit_has_not_begun_when_the_daemon_is_killed() {
    let (_world, db, folder) = prepared("effect = \"once\"\ntimeout = \"1m\"").await;
    let folder = folder.path();
    shares_one_permit(folder);
    let first = Up::start(&db, folder, None).await;
    super::kills::request(&db).await;
    begun(folder, 1).await;
    super::kills::request(&db).await;
    shows(&db, "waiting for the tool program").await;
    first.kill().await;
    std::fs::write(path(folder, "go"), "").unwrap();
    let _second = Up::start(&db, folder, None).await;
    both_completed(&db).await;
    assert_eq!((lines(folder, "began").len(), lines(folder, "ended").len()), (2, 2), "each ran once");
}

#[tokio::test]
async fn command_under_its_keeper_keeps_its_permit_over_a_restart() {
    let (_world, db, folder) = prepared("effect = \"once\"\ntimeout = \"1m\"").await;
    let folder = folder.path();
    shares_one_permit(folder);
    let first = Up::start(&db, folder, Some("keeper.spawned")).await;
    super::kills::request(&db).await;
    first.dies_at("keeper.spawned").await;
    begun(folder, 1).await;
    let _second = Up::start(&db, folder, None).await;
    shows(&db, "looking for the outcome of program").await;
    super::kills::request(&db).await;
    shows(&db, "waiting for the tool program").await;
    assert_eq!(begun(folder, 1).await.len(), 1);
    std::fs::write(path(folder, "go"), "").unwrap();
    both_completed(&db).await;
    assert_eq!((lines(folder, "began").len(), lines(folder, "ended").len()), (2, 2));
}
