//! `kind = "http"` with a real server.
use super::{Bench, definition, result, start};
use axum::{
    Router,
    body::Bytes,
    extract::State,
    http::{HeaderMap, StatusCode},
    response::{IntoResponse, Response},
    routing::post,
};
use convoke::{
    agent::{Definition, Finished},
    task::Usage,
};
use hmac::{Hmac, KeyInit, Mac};
use parking_lot::Mutex;
use serde_json::{Value, json};
use sha2::Sha256;
use std::{collections::VecDeque, sync::Arc, time::Duration};

/// What the server does with one request.
#[derive(Clone)]
pub enum Reply {
    Say(u16, Vec<(&'static str, String)>, String),
    Hang,
}

pub fn reply(status: u16, body: &str) -> Reply {
    Reply::Say(status, Vec::new(), body.to_owned())
}

/// A server that gives prepared replies in order (the last one is repeated) and remembers what it was sent.
#[derive(Clone)]
pub struct Server {
    pub address: String,
    replies: Arc<Mutex<VecDeque<Reply>>>,
    seen: Arc<Mutex<Vec<(HeaderMap, Bytes)>>>,
}

impl Server {
    pub async fn start(replies: impl IntoIterator<Item = Reply>) -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let server = Self {
            address: format!("http://{}", listener.local_addr().unwrap()),
            replies: Arc::new(Mutex::new(replies.into_iter().collect())),
            seen: Arc::default(),
        };
        let router = Router::new().route("/{*path}", post(answer)).with_state(server.clone());
        #[expect(clippy::disallowed_methods, reason = "it ends with the test's runtime")]
        tokio::spawn(async move { axum::serve(listener, router).await });
        server
    }

    pub fn seen(&self) -> Vec<(HeaderMap, Bytes)> {
        self.seen.lock().clone()
    }
}

async fn answer(State(server): State<Server>, headers: HeaderMap, body: Bytes) -> Response {
    server.seen.lock().push((headers, body));
    let reply = {
        let mut replies = server.replies.lock();
        if replies.len() > 1 { replies.pop_front() } else { replies.front().cloned() }
    };
    match reply {
        Some(Reply::Say(status, headers, body)) => {
            let mut response = (StatusCode::from_u16(status).unwrap(), body).into_response();
            for (name, value) in headers {
                response.headers_mut().insert(name, value.parse().unwrap());
            }
            response
        }
        Some(Reply::Hang) | None => std::future::pending().await,
    }
}

fn agent(server: &Server) -> Definition {
    definition(&format!("id = \"web\"\n[run]\nkind = \"http\"\nurl = \"{}/work\"", server.address))
}

async fn failure(replies: impl IntoIterator<Item = Reply>) -> (String, bool, usize) {
    let server = Server::start(replies).await;
    let mut bench = Bench::new(agent(&server));
    bench.timeout = Duration::from_secs(4);
    let failure = bench.run(start(json!({}))).await.unwrap_err();
    (failure.message, failure.retryable, server.seen().len())
}

#[tokio::test]
async fn job_is_posted_with_a_signature_and_the_body_is_the_result() {
    let cost = vec![("Convoke-Microdollars", "70".to_owned()), ("Convoke-Tokens", "12".to_owned())];
    let server = Server::start([Reply::Say(200, cost, "{\"ok\": true}".into())]).await;
    let mut definition = agent(&server);
    definition.run.secret_env = Some("SECRET".into());
    let bench = Bench::new(definition).env([("SECRET", "s3cret")]);
    let start = start(json!({ "ticket": 7 }));
    let outcome = bench.run(start.clone()).await.unwrap();
    let usage = Usage { tokens: 12, microdollars: 70, presumed: false };
    assert_eq!(outcome, Finished::Result { result: json!({ "ok": true }), usage });

    let (headers, body) = server.seen().remove(0);
    let sent: Value = serde_json::from_slice(&body).unwrap();
    assert_eq!(sent["input"], json!({ "ticket": 7 }));
    assert_eq!(sent["task_id"], json!(start.key.task_id));
    assert_eq!(sent["epoch"], json!(1));
    assert_eq!((&sent["agent_id"], &sent["kind"]), (&json!("web"), &json!("test.work")));
    assert_eq!(headers["idempotency-key"], start.key.assignment_id.to_string().as_str());
    let mut mac = Hmac::<Sha256>::new_from_slice(b"s3cret").unwrap();
    mac.update(headers["convoke-timestamp"].as_bytes());
    mac.update(b".");
    mac.update(&body);
    let digest: String = mac.finalize().into_bytes().iter().map(|b| format!("{b:02x}")).collect();
    assert_eq!(headers["convoke-signature"].to_str().unwrap(), format!("sha256={digest}"));
}

#[tokio::test]
async fn service_gets_the_trace_of_the_assignment() {
    let trace = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    let server = Server::start([reply(200, "1")]).await;
    let mut traced = start(json!({}));
    traced.traceparent = Some(trace.parse().unwrap());
    let bench = Bench::new(agent(&server));
    result(bench.run(traced).await);
    result(bench.run(start(json!({}))).await);
    let seen = server.seen();
    assert_eq!((&seen[0].0["traceparent"], seen[1].0.get("traceparent")), (&trace.parse().unwrap(), None));
}

#[tokio::test]
async fn retry_waits_as_long_as_the_server_asks() {
    let later = |status| Reply::Say(status, vec![("Retry-After", "1".into())], "busy".into());
    let server = Server::start([later(429), later(503), reply(200, "1")]).await;
    let began = tokio::time::Instant::now();
    assert_eq!(result(Bench::new(agent(&server)).run(start(json!({}))).await), json!(1));
    assert!(began.elapsed() >= Duration::from_secs(2));
    assert_eq!(server.seen().len(), 3);
}

#[tokio::test]
async fn error_that_outlasts_the_attempt_is_a_retryable_failure() {
    let long = Reply::Say(429, vec![("Retry-After", "60".into())], "busy".into());
    assert_eq!(failure([long]).await, ("the agent answered 429".into(), true, 1));
    let (message, retryable, tries) = failure([reply(500, "secret stack trace")]).await;
    assert!(
        message.starts_with("the agent answered 500, tried ") && !message.contains("secret"),
        "{message}"
    );
    assert!(retryable && tries >= 3);
}

#[tokio::test]
async fn rejected_job_is_not_retried() {
    assert_eq!(failure([reply(404, "no")]).await, ("the agent answered 404".into(), false, 1));
    let elsewhere = Reply::Say(302, vec![("Location", "http://127.0.0.1:1/".into())], String::new());
    let redirect = "the agent answered with a redirect (302), which is not followed";
    assert_eq!(failure([elsewhere]).await, (redirect.into(), false, 1));
}

#[tokio::test]
async fn malformed_and_oversized_answers_are_failures() {
    let (message, retryable, _) = failure([reply(200, "<html>oops</html>")]).await;
    assert_eq!((message.as_str(), retryable), ("result is no JSON: line 1 column 1", true));
    let (message, retryable, _) = failure([reply(200, &"9".repeat(2 << 20))]).await;
    let over = "the result is over limits.output_bytes, 1048576 bytes";
    assert_eq!((message.as_str(), retryable), (over, false));
}

#[tokio::test]
async fn missing_answer_ends_with_the_attempt() {
    let (message, retryable, _) = failure([Reply::Hang]).await;
    assert_eq!((message.as_str(), retryable), ("the agent did not answer in time", true));
}

#[tokio::test]
async fn unreachable_server_is_reported_with_the_cause() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/", listener.local_addr().unwrap());
    drop(listener);
    let mut bench = Bench::new(definition(&format!("id = \"web\"\n[run]\nkind = \"http\"\nurl = \"{url}\"")));
    bench.timeout = Duration::from_secs(1);
    let failure = bench.run(start(json!({}))).await.unwrap_err();
    assert!(
        failure.message.starts_with("the agent cannot be reached: connection refused"),
        "{}",
        failure.message
    );
    assert!(failure.retryable);
}

#[tokio::test]
async fn status_202_delegates_the_job() {
    let server = Server::start([reply(202, "")]).await;
    assert_eq!(Bench::new(agent(&server)).run(start(json!({}))).await.unwrap(), Finished::Delegated);
}

#[tokio::test]
async fn stop_closes_the_request() {
    let server = Server::start([Reply::Hang]).await;
    let bench = Bench::new(agent(&server));
    let stop = bench.stop.clone();
    let stopper = async {
        while server.seen().is_empty() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        stop.cancel();
    };
    let (outcome, ()) = tokio::join!(bench.run(start(json!({}))), stopper);
    assert_eq!(outcome.unwrap_err().message, "the request was stopped");
}
