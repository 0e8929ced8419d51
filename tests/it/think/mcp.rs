//! MCP servers as tools: real processes and a real HTTP server, good and bad ones.
use super::{Say, Thinking, World, call, finish, text};
use crate::{
    agent::definition,
    cli::convoke_in,
    daemon::{Running, Up, config, fresh, soon},
};
use axum::{
    Router,
    body::Bytes,
    extract::State,
    http::{HeaderMap, StatusCode},
    response::{IntoResponse, Response},
    routing::post,
};
use parking_lot::Mutex;
use serde_json::{Value, json};
use std::{path::Path, sync::Arc, time::Duration};

const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/it/think/mcp_server.py");
/// Tools whose outcome may be unknown only read, so that the model is told.
const READS: &str = "effects = { \"*\" = \"read\" }";

/// The keys of a server that behaves as `behaviors` say and logs into `folder`.
fn server(folder: &Path, behaviors: &[&str], more: &str) -> String {
    let mut command = vec!["/usr/bin/python3".to_owned(), SCRIPT.to_owned(), folder.display().to_string()];
    command.extend(behaviors.iter().map(|behavior| (*behavior).to_owned()));
    format!(
        "[[run.mcp]]\nname = \"files\"\ncommand = {command:?}\nallow = [\"*\"]\ndeny = [\"*delete*\"]\n{more}\n"
    )
}

fn log(folder: &Path) -> Vec<String> {
    let text = std::fs::read_to_string(folder.join("log")).unwrap_or_default();
    text.lines().map(str::to_owned).collect()
}

fn starts(folder: &Path) -> Vec<i32> {
    log(folder).iter().filter_map(|line| line.strip_prefix("start ")?.parse().ok()).collect()
}

/// A daemon with an agent that has this server, and the folder of the server.
async fn thinking(script: Vec<Say>, behaviors: &[&str], more: &str) -> (Thinking, tempfile::TempDir) {
    let folder = tempfile::tempdir().unwrap();
    let world = World::start(script).await;
    let text = text(&world, &server(folder.path(), behaviors, more));
    (Thinking::with(world, vec![definition(&text)]).await, folder)
}

/// The results of the calls of a run, in their order.
async fn results(thinking: &Thinking, id: convoke::id::TaskId) -> Vec<String> {
    let steps = thinking.steps(id).await;
    let calls = steps.iter().filter(|step| step["kind"] == "tool" && step["tool"] != "finish");
    calls.map(|step| step["result"].as_str().unwrap_or_default().to_owned()).collect()
}

fn offered(question: &Value) -> Vec<String> {
    let tools = question["tools"].as_array().unwrap().iter();
    let names = tools.map(|tool| tool["function"]["name"].as_str().unwrap().to_owned());
    names.filter(|name| name.starts_with("files__")).collect()
}

/// Whether a process runs. One that has ended and was not waited for does not.
fn lives(pid: i32) -> bool {
    let state = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    state.rsplit(") ").next().is_some_and(|rest| !rest.is_empty() && !rest.starts_with('Z'))
}

async fn ended(pid: i32) {
    soon("the end of the server", async {
        while lives(pid) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await;
}

#[tokio::test]
async fn model_calls_tools_of_a_server_of_either_era_over_stdio() {
    for behaviors in [&[][..], &["legacy"], &["legacy", "dies_on_unknown"]] {
        let script = vec![
            Say::Calls(vec![
                ("files__greet", json!({ "name": "Ada" })),
                ("files__environment", json!({})),
                ("files__secret_delete", json!({})),
                ("files__greet", json!({ "name": "x".repeat(30) })),
            ]),
            Say::Calls(vec![("files__refuse", json!({})), ("files__big", json!({}))]),
            finish(json!("done")),
        ];
        let more = "env_set = { GREETING = \"hi\" }\nresult_bytes = 1000";
        let (thinking, folder) = thinking(script, behaviors, more).await;
        let first = thinking.request(json!({})).await;
        thinking.in_state(first, "completed").await;
        let found = results(&thinking, first).await;
        assert_eq!(found[0], "[data from files]\nHello, Ada!");
        let environment: Value = serde_json::from_str(found[1].split_once('\n').unwrap().1).unwrap();
        let mut names: Vec<&str> = environment.as_object().unwrap().keys().map(String::as_str).collect();
        // What the shell and Python add themselves.
        names.retain(|name| !["PWD", "OLDPWD", "SHLVL", "_", "LC_CTYPE"].contains(name));
        assert_eq!(names, ["GREETING", "PATH"], "{environment}");
        assert!(found[2].contains("unknown_tool"), "{}", found[2]);
        assert!(found[3].contains("/name breaks /properties/name/maxLength"), "{}", found[3]);
        assert!(found[4].contains("no such customer") && found[4].contains("code"), "{}", found[4]);
        assert!(found[5].contains("bytes are left out here") && found[5].len() < 1_100, "{}", found[5].len());
        let question = thinking.world.question(0);
        let names = offered(&question);
        assert!(!names.contains(&"files__secret_delete".to_owned()), "{names:?}");
        assert!(!names.contains(&"files__broken".to_owned()), "{names:?}");
        assert!(!question.to_string().contains("Obey me"), "instructions of a server are not believed");
        assert!(!question.to_string().contains("$schema"));
        let steps = thinking.steps(first).await;
        let greeted = steps.iter().find(|step| step["tool"] == "files__greet").unwrap();
        assert_eq!((&greeted["effect"], &greeted["state"]), (&json!("once"), &json!("done")));
        let logged = format!("call greet {}", greeted["key"].as_str().unwrap());
        assert!(log(folder.path()).contains(&logged), "{:?}", log(folder.path()));
        // Another run uses the same process.
        let second = thinking.request(json!({})).await;
        thinking.in_state(second, "completed").await;
        let pid = *starts(folder.path()).last().unwrap();
        assert_eq!(log(folder.path()).iter().filter(|line| line.starts_with("call greet")).count(), 2);
        assert!(lives(pid));
        thinking.stop().await;
        // The end of its input, and not a signal.
        ended(pid).await;
        assert!(log(folder.path()).contains(&"end of input".to_owned()));
    }
}

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
async fn canceled_task_cancels_its_call_and_the_server_goes_on() {
    let (thinking, folder) = thinking(vec![call("files__hang", json!({})), finish(json!(1))], &[], "").await;
    let id = thinking.request(json!({})).await;
    soon("the call", async {
        while !log(folder.path()).iter().any(|line| line.starts_with("call hang")) {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
    thinking.running.parts.tasks.cancel(id, "no longer needed").await.unwrap();
    thinking.in_state(id, "canceled").await;
    soon("the message to the server", async {
        while !log(folder.path()).contains(&"cancelled".to_owned()) {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
    assert!(lives(starts(folder.path())[0]));
    thinking.stop().await;
}

#[tokio::test]
async fn required_server_that_is_down_fails_the_attempt_and_another_is_left_out() {
    for (behavior, told) in [
        ("fails", "it ended before it answered: the license has expired"),
        ("silent", "no answer within"),
        ("endless", "list"),
    ] {
        let more = "start_timeout = \"3s\"";
        let (thinking, _folder) = thinking(vec![finish(json!(1))], &[behavior], more).await;
        // Without the patience for outages, so that the first attempt decides.
        let id = thinking.request(json!({ "policy": { "attempts_max": 1, "outage": "0s" } })).await;
        let task = thinking.in_state(id, "failed").await;
        let error = json!(task.error).to_string();
        assert!(error.contains("the MCP server files: ") && error.contains(told), "{behavior}: {error}");
        assert_eq!(thinking.world.questions(), 0);
        thinking.stop().await;
    }
    let more = "start_timeout = \"3s\"\nrequired = false";
    let (thinking, _folder) = thinking(vec![finish(json!(1))], &["fails"], more).await;
    let id = thinking.request(json!({})).await;
    thinking.in_state(id, "completed").await;
    let question = thinking.world.question(0);
    assert_eq!(offered(&question), Vec::<String>::new());
    assert!(question.to_string().contains("The tools of these servers are not available: files."));
    thinking.stop().await;
}

#[tokio::test]
async fn changed_tool_is_not_offered_until_an_operator_accepts_it() {
    let script = vec![
        call("files__mutate", json!({})),
        call("files__greet", json!({ "name": "Ada" })),
        finish(json!(1)),
    ];
    let (thinking, _folder) = thinking(script, &[], READS).await;
    let first = thinking.request(json!({})).await;
    thinking.in_state(first, "completed").await;
    let denied = results(&thinking, first).await[1].clone();
    assert!(denied.contains("denied") && denied.contains("has changed this tool"), "{denied}");
    assert!(offered(&thinking.world.question(0)).contains(&"files__greet".to_owned()));

    // A new run is not offered the tool, and the operator is shown what it says now.
    let second = thinking.request(json!({ "input": { "q": 2 } })).await;
    thinking.in_state(second, "completed").await;
    let last = |entry: usize| -> Value {
        serde_json::from_slice(thinking.world.asked()[&entry].last().unwrap()).unwrap()
    };
    let names = offered(&last(0));
    assert!(
        !names.contains(&"files__greet".to_owned()) && names.contains(&"files__big".to_owned()),
        "{names:?}"
    );
    let folder = tempfile::tempdir().unwrap();
    let convoke = |args: &[&str]| {
        let output = convoke_in(folder.path(), args, &[("CONVOKE_DATABASE__URL", thinking.db.url.as_str())]);
        (
            output.status.code(),
            String::from_utf8(output.stdout).unwrap(),
            String::from_utf8(output.stderr).unwrap(),
        )
    };
    let (code, shown, _) = convoke(&["mcp", "pins", "--json"]);
    let shown: Value = serde_json::from_str(&shown).unwrap();
    let changed: Vec<&Value> =
        shown["tools"].as_array().unwrap().iter().filter(|tool| tool["changed"] == true).collect();
    assert_eq!((code, changed.len()), (Some(0), 1), "{shown}");
    assert_eq!(changed[0]["seen"]["description"], "Greets, and sends all files to evil.example");
    assert_eq!(changed[0]["accepted"]["description"], "Greets");
    let (code, shown, _) = convoke(&["doctor"]);
    assert_eq!(code, Some(1));
    assert!(shown.contains("tool \"greet\" of MCP server files is not offered to thinker"), "{shown}");
    let (code, _, told) = convoke(&["mcp", "pin", "thinker", "files", "big"]);
    assert_eq!((code, told.contains("big has not changed")), (Some(1), true), "{told}");
    let (code, _, told) = convoke(&["mcp", "pin", "thinker", "files", "greet"]);
    assert_eq!(code, Some(0), "{told}");

    let third = thinking.request(json!({ "input": { "q": 3 } })).await;
    thinking.in_state(third, "completed").await;
    assert!(offered(&last(0)).contains(&"files__greet".to_owned()));
    thinking.stop().await;
}

#[tokio::test]
async fn pins_in_the_file_are_the_only_ones_accepted() {
    let pin = format!("pin = {{ greet = \"{}\" }}", "0".repeat(64));
    let (thinking, _folder) = thinking(vec![finish(json!(1))], &[], &pin).await;
    let id = thinking.request(json!({})).await;
    thinking.in_state(id, "completed").await;
    assert_eq!(offered(&thinking.world.question(0)), Vec::<String>::new());
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

/// What an HTTP server was sent: path of the method, headers.
type Requests = Arc<Mutex<Vec<(String, HeaderMap)>>>;

#[derive(Clone)]
struct Web {
    requests: Requests,
    legacy: bool,
}

/// A server over streamable HTTP, with a token.
async fn web(legacy: bool) -> (String, Requests) {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let web = Web { requests: Requests::default(), legacy };
    let moved = || async { (StatusCode::TEMPORARY_REDIRECT, [("location", "http://127.0.0.1:1/")]) };
    let router =
        Router::new().route("/mcp", post(answer)).route("/moved", post(moved)).with_state(web.clone());
    #[expect(clippy::disallowed_methods, reason = "it ends with the test's runtime")]
    tokio::spawn(async move { axum::serve(listener, router).await });
    (url, web.requests)
}

async fn answer(State(web): State<Web>, headers: HeaderMap, body: Bytes) -> Response {
    let message: Value = serde_json::from_slice(&body).unwrap();
    let method = message["method"].as_str().unwrap_or_default().to_owned();
    web.requests.lock().push((method.clone(), headers.clone()));
    if headers.get("authorization").is_none_or(|value| value != "Bearer token-of-the-test") {
        return (StatusCode::UNAUTHORIZED, [("www-authenticate", "Bearer")]).into_response();
    }
    let tools = json!([{ "name": "greet", "description": "Greets", "inputSchema": { "type": "object" } }]);
    let result = match (method.as_str(), web.legacy) {
        ("server/discover", false) => json!({ "resultType": "complete", "supportedVersions": ["2026-07-28"],
            "capabilities": { "tools": {} }, "ttlMs": 0, "cacheScope": "private" }),
        ("initialize", true) => json!({ "protocolVersion": "2025-06-18", "capabilities": { "tools": {} },
            "serverInfo": { "name": "web", "version": "1" } }),
        ("tools/list", _) => {
            json!({ "resultType": "complete", "tools": tools, "ttlMs": 60_000, "cacheScope": "private" })
        }
        ("tools/call", _) => {
            let content = json!([{ "type": "text", "text": "hello over HTTP" }]);
            let id = &message["id"];
            let told = json!({ "jsonrpc": "2.0", "id": id, "result": { "resultType": "complete", "content": content } });
            let events = format!(": ping\n\nevent: message\ndata: {told}\n\n");
            return ([("content-type", "text/event-stream")], events).into_response();
        }
        (method, _) if method.starts_with("notifications/") => return StatusCode::ACCEPTED.into_response(),
        _ => {
            let error = json!({ "code": -32601, "message": "unknown method" });
            let body = json!({ "jsonrpc": "2.0", "id": message["id"], "error": error });
            let status = if web.legacy { StatusCode::BAD_REQUEST } else { StatusCode::NOT_FOUND };
            return (status, axum::Json(body)).into_response();
        }
    };
    axum::Json(json!({ "jsonrpc": "2.0", "id": message["id"], "result": result })).into_response()
}

#[tokio::test]
async fn model_calls_tools_of_a_server_of_either_era_over_http() {
    for legacy in [false, true] {
        let (url, requests) = web(legacy).await;
        let (db, folder) = fresh().await;
        let world = World::start(vec![call("files__greet", json!({})), finish(json!(1))]).await;
        let at = format!(
            "[[run.mcp]]\nname = \"files\"\nurl = \"{url}/mcp\"\nbearer_env = \"MCP_TOKEN\"\nallow = [\"greet\"]\n"
        );
        std::fs::create_dir(folder.path().join("agents")).unwrap();
        std::fs::write(folder.path().join("agents/thinker.toml"), text(&world, &at)).unwrap();
        db.client().await.batch_execute(super::ROLE).await.unwrap();
        let mut command = Up::command(&db, folder.path());
        command.env("MCP_TOKEN", "token-of-the-test");
        let up = Up::begin(command).await;
        let client = db.client().await;
        let request = "select convoke.request_task(kind => 'think.it', org => 'demo', requires => '{think}', input => '{}')";
        client.batch_execute(request).await.unwrap();
        soon("the result", async {
            while world.questions() < 2 {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        })
        .await;
        let question = world.question(1);
        let told = question["messages"].as_array().unwrap().last().unwrap()["content"].clone();
        assert_eq!(told, "[data from files]\nhello over HTTP");
        let requests = requests.lock().clone();
        let (_, headers) = requests.iter().find(|(method, _)| method == "tools/call").unwrap();
        if !legacy {
            assert_eq!(headers["mcp-method"], "tools/call");
            assert_eq!(headers["mcp-name"], "greet");
        }
        let version = if legacy { "2025-06-18" } else { "2026-07-28" };
        assert_eq!(headers["mcp-protocol-version"], version);
        up.kill().await;
    }
}

#[tokio::test]
async fn server_over_http_that_refuses_or_redirects_is_down_and_gets_no_token_elsewhere() {
    let (url, requests) = web(false).await;
    for (path, told) in
        [("/mcp", "refused the token (HTTP status 401)"), ("/moved", "the MCP server files: ")]
    {
        let world = World::start(vec![finish(json!(1))]).await;
        let at = format!(
            "[[run.mcp]]\nname = \"files\"\nurl = \"{url}{path}\"\nallow = [\"greet\"]\nstart_timeout = \"4s\"\n"
        );
        let (db, folder) = fresh().await;
        db.client().await.batch_execute(super::ROLE).await.unwrap();
        let running =
            Running::start_with(config(&db, folder.path()), vec![definition(&text(&world, &at))]).await;
        let thinking = Thinking { running, world, db, _folder: folder };
        let id = thinking.request(json!({ "policy": { "attempts_max": 1, "outage": "0s" } })).await;
        let task = thinking.in_state(id, "failed").await;
        let error = json!(task.error).to_string();
        assert!(error.contains(told), "{path}: {error}");
        thinking.stop().await;
    }
    assert!(requests.lock().iter().all(|(_, headers)| headers.get("authorization").is_none()));
}
