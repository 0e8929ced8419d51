//! MCP servers that lie, change, fall silent, flood and die: each fails alone, and the daemon goes on.
use super::{
    Say, World, call, finish,
    mcp::{READS, ended, lives, log, offered, results, server, starts, thinking},
    text,
};
use crate::daemon::{Up, fresh, soon};
use serde_json::json;
use std::time::Duration;

#[tokio::test]
async fn server_that_dies_floods_or_lies_fails_that_call_only() {
    let calls = [
        ("files__die", "the server ended"),
        ("files__greet", "Hello, Ada!"),
        ("files__flood", "the server ended"),
        ("files__lie", "files"),
        ("files__noise", "heard"),
        ("files__handle", "files"),
        ("files__hang", "no answer in time"),
        ("files__slow", "at last"),
        ("files__input", "asks for input, which is not supported"),
        ("files__deep", "no answer in time"),
        ("files__greet", "Hello, Ada!"),
    ];
    let mut script: Vec<Say> = calls.iter().map(|(name, _)| call(name, json!({ "name": "Ada" }))).collect();
    script.push(finish(json!(1)));
    let (thinking, folder) = thinking(script, &[], &format!("timeout = \"4s\"\n{READS}")).await;
    let id = thinking.request(json!({})).await;
    thinking.in_state(id, "completed").await;
    let found = results(&thinking, id).await;
    for ((name, expected), found) in calls.iter().zip(&found) {
        assert!(found.contains(expected), "{name}: {found}");
    }
    assert_eq!(starts(folder.path()).len(), 3, "{:?}", log(folder.path()));
    // A call that is given up is cancelled, a request of the server is refused, and each was called once.
    let log = log(folder.path());
    assert!(log.contains(&"cancelled".to_owned()) && log.contains(&"answer -32601".to_owned()), "{log:?}");
    assert_eq!(log.iter().filter(|line| line.starts_with("call ")).count(), calls.len());
    thinking.stop().await;
}

#[tokio::test]
async fn call_with_an_effect_that_loses_its_server_waits_for_a_person() {
    let script =
        vec![call("files__die", json!({})), call("files__greet", json!({ "name": "Ada" })), finish(json!(1))];
    let (thinking, folder) = thinking(script, &[], "").await;
    let id = thinking.request(json!({})).await;
    let waiting = thinking.in_state(id, "waiting").await;
    let question = waiting.question.unwrap()["question"].as_str().unwrap().to_owned();
    assert!(question.contains("the tool files__die"), "{question}");
    thinking.running.parts.tasks.answer(id, "ada", json!({ "outcome": "skip" })).await.unwrap();
    thinking.in_state(id, "completed").await;
    assert_eq!(log(folder.path()).iter().filter(|line| line.starts_with("call die")).count(), 1);
    assert!(results(&thinking, id).await[1].contains("Hello, Ada!"));
    thinking.stop().await;
}

#[tokio::test]
async fn required_server_that_is_down_fails_the_attempt_and_another_is_left_out() {
    for (behavior, told) in [
        ("fails", "it ended before it answered: the license has expired"),
        ("silent", "no answer within"),
        ("endless", "its list of tools has more than 100 pages"),
        ("crowd", "it lists more than 1000 tools"),
        ("huge", "its list of tools has more than 8388608 bytes"),
        ("circle", "its list of tools has no end"),
        ("dies_at_server/discover", "it refused to begin (error -32601)"),
        ("legacy dies_at_initialize", "it ended before it answered"),
        ("dies_at_tools/list", "no list of its tools: the server ended"),
    ] {
        let more = if behavior == "silent" { "start_timeout = \"3s\"" } else { "" };
        let behaviors: Vec<&str> = behavior.split(' ').collect();
        let (thinking, _folder) = thinking(vec![finish(json!(1))], &behaviors, more).await;
        // Without the patience for outages, so that the first attempt decides.
        let id = thinking.request(json!({ "policy": { "attempts_max": 1, "outage": "0s" } })).await;
        let task = thinking.in_state(id, "failed").await;
        let error = json!(task.error).to_string();
        assert!(error.contains("the MCP server files: ") && error.contains(told), "{behavior}: {error}");
        assert_eq!(thinking.world.questions(), 0);
        thinking.stop().await;
    }
    let more = "required = false";
    let (thinking, _folder) = thinking(vec![finish(json!(1))], &["fails"], more).await;
    let id = thinking.request(json!({})).await;
    thinking.in_state(id, "completed").await;
    let question = thinking.world.question(0);
    assert_eq!(offered(&question), Vec::<String>::new());
    assert!(question.to_string().contains("The tools of these servers are not available: files."));
    thinking.stop().await;
}

#[tokio::test]
async fn killed_daemon_leaves_no_server_and_goes_on_with_another() {
    let (db, folder) = fresh().await;
    let script = vec![
        call("files__hang", json!({})),
        call("files__greet", json!({ "name": "Ada" })),
        finish(json!(1)),
    ];
    let world = World::start(script).await;
    std::fs::create_dir(folder.path().join("agents")).unwrap();
    // It ignores the end of its input and SIGTERM.
    let more = format!("timeout = \"2s\"\n{READS}");
    let text = text(&world, &server(folder.path(), &["stubborn"], &more));
    std::fs::write(folder.path().join("agents/thinker.toml"), text).unwrap();
    db.client().await.batch_execute(super::ROLE).await.unwrap();
    let up = Up::start(&db, folder.path(), None).await;
    let request = "select convoke.request_task(kind => 'think.it', org => 'demo', requires => '{think}', input => '{}')";
    db.client().await.batch_execute(request).await.unwrap();
    soon("the call", async {
        while !log(folder.path()).iter().any(|line| line.starts_with("call hang")) {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
    let first = starts(folder.path())[0];
    up.kill().await;
    ended(first).await;
    let up = Up::start(&db, folder.path(), None).await;
    let client = db.client().await;
    soon("the end", async {
        loop {
            let row = client.query_one("select state from convoke.tasks", &[]).await.unwrap();
            match row.get::<_, String>(0).as_str() {
                "completed" => return,
                state => assert!(!["failed", "canceled", "waiting"].contains(&state), "{state}"),
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await;
    let second = *starts(folder.path()).last().unwrap();
    assert_ne!(first, second);
    up.kill().await;
    ended(second).await;
}

#[tokio::test]
async fn server_that_reads_no_more_is_ended_and_started_again() {
    let long = |n: usize| ("files__big", json!({ "text": "x".repeat(60_000), "n": n }));
    // More than both pipes and the copying between them hold.
    let script = vec![
        call("files__deaf", json!({})),
        Say::Calls((0..7).map(long).collect()),
        call("files__greet", json!({ "name": "Ada" })),
        finish(json!(1)),
    ];
    let (thinking, folder) = thinking(script, &[], &format!("timeout = \"2s\"\n{READS}")).await;
    let id = thinking.request(json!({})).await;
    thinking.in_state(id, "completed").await;
    let found = results(&thinking, id).await;
    assert_eq!(found.len(), 9);
    for told in &found[..8] {
        assert!(told.contains("no answer in time") || told.contains("the server"), "{told}");
    }
    assert!(found[8].contains("Hello, Ada!"), "{}", found[8]);
    let starts = starts(folder.path());
    assert_eq!(starts.len(), 2, "{:?}", log(folder.path()));
    ended(starts[0]).await;
    assert!(lives(starts[1]));
    thinking.stop().await;
}
