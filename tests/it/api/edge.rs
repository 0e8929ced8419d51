//! Properties of every route of a whole daemon: preflight requests, tokens before bodies, and the page at
//! `/`.
use super::{As, Edge};
use crate::{realtime::client_process::ClientProcess, support::PATIENCE};
use reqwest::Method;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};

const TASK: &str = "/v1/tasks/01a20acd-4c14-776f-94bc-2f5e3bf869ee";
const ASSIGNMENT: &str = "/v1/assignments/01a20acd-4c14-776f-94bc-2f5e3bf869ee";

/// Every route with a body.
fn with_body() -> Vec<(&'static str, String)> {
    let post = |path: &str| ("POST", path.to_owned());
    let of_task = ["cancel", "budget", "choose", "answer", "requeue", "offers", "decline"];
    let reports = ["accept", "confirm", "question", "request", "refuse", "progress", "heartbeat", "result"];
    let mut routes =
        vec![post("/v1/tasks"), post("/v1/agents/near/messages"), post("/v1/orgs/demo/messages")];
    routes.extend(of_task.map(|what| post(&format!("{TASK}/{what}"))));
    routes.extend(reports.map(|what| post(&format!("{ASSIGNMENT}/{what}"))));
    routes.push(("PUT", "/v1/agents/near/presence".into()));
    routes.extend(["/api/broadcast", "/api/broadcast/den/events/e"].map(post));
    routes
}

#[tokio::test]
async fn every_route_answers_preflight_requests() {
    let edge = Edge::start().await;
    let mut routes: Vec<(&str, String)> = with_body();
    routes.extend(
        ["/v1/tasks", TASK, "/v1/agents", "/v1/channels", "/health", "/health/ready", "/"]
            .map(|path| ("GET", path.into())),
    );
    routes.push(("DELETE", "/v1/agents/near/presence".into()));
    routes.push(("PATCH", "/v1/tasks".into()));
    // An unknown path is readable for a page, too, and not reported as a CORS failure.
    routes.push(("GET", "/v1/nothing".into()));
    for (method, path) in routes {
        let url = format!("http://{}{path}", edge.parts.addr);
        let asked = edge.http.request(Method::OPTIONS, &url).header("origin", "https://app.example");
        let asked = asked.header("access-control-request-method", method);
        let asked = asked.header("access-control-request-headers", "authorization,content-type");
        let answer = asked.send().await.unwrap();
        assert!(answer.status().is_success(), "{method} {path}: {}", answer.status());
        let header = |name: &str| answer.headers()[name].to_str().unwrap().to_lowercase();
        assert_eq!(header("access-control-allow-origin"), "*", "{path}");
        assert!(header("access-control-allow-headers").split(',').any(|name| name.trim() == "authorization"));
        assert!(header("access-control-allow-methods").contains(&method.to_lowercase()), "{method} {path}");
        let method = Method::from_bytes(method.as_bytes()).unwrap();
        let real =
            edge.http.request(method, &url).header("origin", "https://app.example").send().await.unwrap();
        assert_eq!(real.headers()["access-control-allow-origin"], "*", "{path}: {}", real.status());
    }
    let metrics =
        edge.http.get(format!("http://{}/metrics", edge.parts.addr)).header("origin", "https://app.example");
    let metrics = metrics.send().await.unwrap();
    assert!(metrics.status().is_success() && !metrics.headers().contains_key("access-control-allow-origin"));
    edge.stop().await;
}

/// Sends no body; the response must come nevertheless.
#[tokio::test]
async fn no_route_reads_a_body_before_the_token_is_verified() {
    let edge = Edge::start().await;
    let mut sockets = Vec::new();
    for (method, path) in with_body() {
        let mut socket = TcpStream::connect(edge.parts.addr).await.unwrap();
        let head = format!("{method} {path} HTTP/1.1\r\nhost: x\r\ncontent-length: 1000000\r\n\r\n{{");
        socket.write_all(head.as_bytes()).await.unwrap();
        let mut status = [0; 12];
        let read = timeout(PATIENCE, socket.read_exact(&mut status)).await;
        read.unwrap_or_else(|_| panic!("{method} {path} waits for the body")).unwrap();
        assert_eq!(&status, b"HTTP/1.1 401", "{method} {path}");
        sockets.push(socket);
    }
    drop(sockets);
    edge.stop().await;
}

#[tokio::test]
async fn front_page_lists_working_urls() {
    let edge = Edge::start().await;
    let answer = edge.http.get(format!("http://{}/", edge.parts.addr)).send().await.unwrap();
    assert_eq!(
        (answer.status().as_u16(), &answer.headers()["content-type"]),
        (200, &"text/plain; charset=utf-8".parse().unwrap())
    );
    let text = answer.text().await.unwrap();
    let socket = format!("ws://{}/realtime/v1", edge.parts.addr);
    for part in [env!("CARGO_PKG_VERSION"), "/health", "docs/PROTOCOL.md", &socket] {
        assert!(text.contains(part), "{part}: {text}");
    }
    // Every URL in it answers.
    for url in text.split_whitespace().filter(|word| word.starts_with("http://")) {
        let answer = edge.http.get(url).bearer_auth(edge.token(As::Service).unwrap()).send().await.unwrap();
        assert!(answer.status().is_success(), "{url}: {}", answer.status());
    }
    // The Python client accepts the address as printed.
    let mut python = ClientProcess::python(&socket, &edge.token(As::Anon).unwrap()).await;
    python.join("den", json!({"presence": {"key": "ada", "enabled": true}})).await;
    edge.stop().await;
}

#[tokio::test]
async fn health_shows_the_connections() {
    let edge = Edge::start().await;
    let shown = async {
        loop {
            let (_, health): (u16, Value) = edge.get(As::NoToken, "/health").await;
            let part = &health["parts"]["connections"];
            if part["state"] == "ready" && part["detail"].as_str().unwrap().contains(" of ") {
                return;
            }
        }
    };
    timeout(PATIENCE, shown).await.unwrap();
    edge.stop().await;
}
