//! MCP servers over streamable HTTP: of both eras, with a token, and those that refuse, redirect, flood or say nothing.
use super::{Thinking, World, call, finish, text};
use crate::{
    agent::definition,
    daemon::{Running, Up, config, fresh, soon},
};
use axum::{
    Router,
    body::{Body, Bytes},
    extract::State,
    http::{HeaderMap, StatusCode},
    response::{IntoResponse, Response},
    routing::post,
};
use parking_lot::Mutex;
use serde_json::{Value, json};
use std::{sync::Arc, time::Duration};

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
    let silent = || async { std::future::pending::<StatusCode>().await };
    let router = Router::new()
        .route("/mcp", post(answer))
        .route("/moved", post(moved))
        .route("/silent", post(silent))
        .with_state(web.clone());
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
    let tool =
        |name: &str| json!({ "name": name, "description": "Greets", "inputSchema": { "type": "object" } });
    let tools = json!([tool("greet"), tool("flood"), tool("storm")]);
    let result = match (method.as_str(), web.legacy) {
        ("server/discover", false) => json!({ "resultType": "complete", "supportedVersions": ["2026-07-28"],
            "capabilities": { "tools": {} }, "ttlMs": 0, "cacheScope": "private" }),
        ("initialize", true) => json!({ "protocolVersion": "2025-06-18", "capabilities": { "tools": {} },
            "serverInfo": { "name": "web", "version": "1" } }),
        ("tools/list", _) => {
            json!({ "resultType": "complete", "tools": tools, "ttlMs": 60_000, "cacheScope": "private" })
        }
        ("tools/call", _) if message["params"]["name"] != "greet" => {
            return flood(message["params"]["name"] == "storm");
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

/// A stream without end: of long notifications, or of short requests, each of which the library answers.
fn flood(short: bool) -> Response {
    let text = if short { String::new() } else { "x".repeat(64 << 10) };
    let method = if short { "ping" } else { "notifications/unheard" };
    let mut told = json!({ "jsonrpc": "2.0", "method": method, "params": { "text": text } });
    if short {
        told["id"] = json!("again");
    }
    let event = Bytes::from(format!("event: message\ndata: {told}\n\n"));
    let events = futures_util::stream::repeat_with(move || Ok::<_, std::convert::Infallible>(event.clone()));
    ([("content-type", "text/event-stream")], Body::from_stream(events)).into_response()
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
    for (path, told) in [
        ("/mcp", "refused the token (HTTP status 401)"),
        ("/moved", "the MCP server files: "),
        ("/silent", "no answer within"),
    ] {
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

#[tokio::test]
async fn server_over_http_that_floods_loses_its_connection_and_gets_another() {
    let (url, _) = web(false).await;
    let world = World::start(vec![
        call("files__flood", json!({})),
        call("files__storm", json!({})),
        call("files__greet", json!({})),
        finish(json!(1)),
    ])
    .await;
    let at = format!(
        "[[run.mcp]]\nname = \"files\"\nurl = \"{url}/mcp\"\nbearer_env = \"MCP_TOKEN\"\nallow = [\"*\"]\n\
         effects = {{ \"*\" = \"read\" }}\n"
    );
    let (db, folder) = fresh().await;
    std::fs::create_dir(folder.path().join("agents")).unwrap();
    std::fs::write(folder.path().join("agents/thinker.toml"), text(&world, &at)).unwrap();
    db.client().await.batch_execute(super::ROLE).await.unwrap();
    let mut command = Up::command(&db, folder.path());
    command.env("MCP_TOKEN", "token-of-the-test");
    let up = Up::begin(command).await;
    let request = "select convoke.request_task(kind => 'think.it', org => 'demo', requires => '{think}', input => '{}')";
    db.client().await.batch_execute(request).await.unwrap();
    soon("the result", async {
        while world.questions() < 4 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await;
    let question = world.question(3);
    let told: Vec<&str> = question["messages"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|message| message["role"] == "tool")
        .map(|message| message["content"].as_str().unwrap())
        .collect();
    for lost in &told[..2] {
        assert!(lost.contains("failed") && lost.contains("files: "), "{lost}");
    }
    assert_eq!(told[2], "[data from files]\nhello over HTTP");
    up.kill().await;
}
