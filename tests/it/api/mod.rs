//! The HTTP API of a whole daemon: rights, errors, and the life of a task over `/v1`.
mod channels;
mod dashboard;
mod edge;
mod hidden;
mod lines;
mod operate;
mod page;
mod payload;
mod trials;
mod watch;

use crate::support::{self, PATIENCE, TestDb, crypto};
use convoke::{
    agent::{Definition, Kind},
    app::{Daemon, Parts},
    auth::{MintRequest, Role, mint},
    clock::Clock,
    config::Config,
};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use std::time::Duration;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// A daemon with the remote agents `near` (org `demo`) and `other` (org `elsewhere`).
struct Edge {
    parts: Parts,
    http: reqwest::Client,
    /// Time of issue of every token: a token without a name is identified by its claims, which contain this
    /// time.
    began: chrono::DateTime<chrono::Utc>,
    stop: CancellationToken,
    running: JoinHandle<anyhow::Result<()>>,
    _data: tempfile::TempDir,
    _db: TestDb,
}

/// The sender of a request.
#[derive(Clone, Copy)]
enum As {
    NoToken,
    Anon,
    Service,
    /// An agent of an org.
    Agent(&'static str, &'static str),
    /// A signed-in user of an org.
    User(&'static str),
}

impl Edge {
    async fn start() -> Self {
        Self::start_with(|_| ()).await
    }

    /// With settings that `change` makes.
    async fn start_with(change: impl FnOnce(&mut Config)) -> Self {
        Self::start_with_agents(change, Vec::new()).await
    }

    /// With more agents.
    #[expect(clippy::disallowed_methods, reason = "the daemon under test runs beside the test")]
    async fn start_with_agents(change: impl FnOnce(&mut Config), more: Vec<Definition>) -> Self {
        crypto();
        let (db, data) = (support::database().await, tempfile::tempdir().unwrap());
        let mut config = Config { database: db.config(), ..Config::default() };
        config.database.data_dir = data.path().into();
        config.server.listen.set_port(0);
        config.wal.slot = db.slot();
        // A round closes when all have answered; its window must not close before on a slow machine.
        config.task.policy.bid_window = Duration::from_secs(30);
        change(&mut config);
        let agent = |id: &str, org: &str| {
            Definition::new(id.parse().unwrap(), org.parse().unwrap(), Kind::Remote).capable(["work"])
        };
        let definitions = vec![agent("near", "demo"), agent("other", "elsewhere")];
        let profiles: Vec<_> = definitions.iter().map(Definition::profile).collect();
        let definitions = definitions.into_iter().chain(more).collect();
        let daemon = Daemon::builder(config).definitions(definitions).build().await.unwrap();
        let (parts, stop) = (daemon.parts().clone(), CancellationToken::new());
        let running = tokio::spawn(daemon.run(stop.clone()));
        tokio::time::timeout(PATIENCE, parts.health.ready()).await.unwrap();
        // As if both were connected by websocket: only present agents are eligible.
        for profile in profiles {
            parts.tasks.join_remote(profile, None).await.unwrap();
        }
        let began = Clock::System.now();
        Self { parts, http: reqwest::Client::new(), began, stop, running, _data: data, _db: db }
    }

    async fn stop(self) {
        self.stop.cancel();
        self.running.await.unwrap().unwrap();
    }

    fn token(&self, who: As) -> Option<String> {
        let (role, org, agent) = match who {
            As::NoToken => return None,
            As::Anon => (Role::Anon, None, None),
            As::Service => (Role::ServiceRole, None, None),
            As::Agent(id, org) => (Role::Authenticated, Some(org), Some(id)),
            As::User(org) => (Role::Authenticated, Some(org), None),
        };
        let (org, agent_id) = (org.map(|o| o.parse().unwrap()), agent.map(|a| a.parse().unwrap()));
        let request = MintRequest { org, agent_id, ttl: Duration::from_secs(60), ..MintRequest::new(role) };
        Some(mint(&self.parts.keys, &request, self.began).unwrap())
    }

    async fn send(
        &self,
        who: As,
        method: Method,
        path: &str,
        body: impl Into<reqwest::Body>,
    ) -> (StatusCode, Value) {
        let mut request = self.http.request(method, format!("http://{}{path}", self.parts.addr)).body(body);
        if let Some(token) = self.token(who) {
            request = request.bearer_auth(token);
        }
        let answer = request.send().await.unwrap();
        let status = answer.status();
        let problem = answer.headers().get("content-type").is_some_and(|t| t == "application/problem+json");
        let text = answer.text().await.unwrap();
        assert_eq!(problem, status.as_u16() >= 400, "{path}: {status} {text}");
        (status, serde_json::from_str(&text).unwrap_or_default())
    }

    async fn get(&self, who: As, path: &str) -> (u16, Value) {
        let (status, body) = self.send(who, Method::GET, path, "").await;
        (status.as_u16(), body)
    }

    async fn post(&self, who: As, path: &str, body: &Value) -> (u16, Value) {
        let (status, body) = self.send(who, Method::POST, path, body.to_string()).await;
        (status.as_u16(), body)
    }

    /// Registers a remote agent of org `demo` again, as after a restart of its host.
    async fn rejoin(&self, id: &str) {
        let agent =
            Definition::new(id.parse().unwrap(), "demo".parse().unwrap(), Kind::Remote).capable(["work"]);
        self.parts.tasks.join_remote(agent.profile(), None).await.unwrap();
    }

    /// Requests a task of org `demo`; returns its id.
    async fn request(&self, who: As) -> String {
        let (status, made) = self.post(who, "/v1/tasks", &json!({ "kind": "x", "requires": ["work"] })).await;
        assert_eq!(status, 201, "{made}");
        made["task"]["id"].as_str().unwrap().to_owned()
    }

    /// Waits for an event of a task with long polls.
    async fn event(&self, task: &str, kind: &str) -> Value {
        let mut after = 0;
        loop {
            let path = format!("/v1/tasks/{task}/events?after={after}&wait=10s");
            let (status, answer) = self.get(As::Service, &path).await;
            assert_eq!(status, 200, "{answer}");
            if let Some(event) = answer["events"].as_array().unwrap().iter().find(|e| e["type"] == kind) {
                return event.clone();
            }
            assert_eq!(answer["final"], false, "the task ended without {kind}");
            after = answer["next"].as_i64().unwrap();
        }
    }

    /// Offers as `near` and waits for the award; returns the assignment's path and the body of a report.
    async fn win(&self, task: &str) -> (String, Value) {
        self.event(task, "announced").await;
        let near = As::Agent("near", "demo");
        let offer = json!({ "round": 1, "cost": 5, "eta_ms": 10, "confidence": 0.9 });
        let (status, answer) = self.post(near, &format!("/v1/tasks/{task}/offers"), &offer).await;
        assert_eq!(status, 202, "{answer}");
        let award = self.event(task, "awarded").await;
        let assignment = award["body"]["assignment_id"].as_str().unwrap();
        (format!("/v1/assignments/{assignment}"), json!({ "task_id": task, "epoch": award["epoch"] }))
    }
}

const NEAR: As = As::Agent("near", "demo");

fn with(report: &Value, name: &str, value: Value) -> Value {
    let mut report = report.clone();
    report[name] = value;
    report
}

#[tokio::test]
async fn task_is_requested_executed_and_completed_over_http() {
    let edge = Edge::start().await;
    let task = edge.request(As::User("demo")).await;
    let (path, report) = edge.win(&task).await;
    let (status, start) = edge.post(NEAR, &format!("{path}/accept"), &report).await;
    assert_eq!((status, &start["attempt"]), (200, &json!(1)), "{start}");
    let progress = with(&report, "progress", json!(0.5));
    assert_eq!(edge.post(NEAR, &format!("{path}/progress"), &progress).await.0, 204);
    assert_eq!(edge.post(NEAR, &format!("{path}/heartbeat"), &report).await.0, 204);
    let result = with(&report, "result", json!({ "answer": 42 }));
    let waiting = format!("/v1/tasks/{task}?wait=20s");
    let finishing = format!("{path}/result");
    let finish = edge.post(NEAR, &finishing, &result);
    let (waited, finished) = tokio::join!(edge.get(As::User("demo"), &waiting), finish);
    assert_eq!((finished.0, &finished.1["state"]), (200, &json!("completed")), "{}", finished.1);
    assert_eq!((waited.0, &waited.1["result"]["answer"]), (200, &json!(42)));
    assert_eq!(edge.post(NEAR, &finishing, &result).await.0, 200, "a repeat gets the outcome");
    let (status, late) = edge.post(NEAR, &format!("{path}/progress"), &progress).await;
    assert_eq!((status, &late["code"]), (409, &json!("fenced")));
    let (_, why) = edge.get(As::User("demo"), &format!("/v1/tasks/{task}/why")).await;
    assert_eq!(why["rounds"][0]["winner"], "near");
    edge.stop().await;
}

#[tokio::test]
async fn task_asks_a_question_and_is_requeued_over_http() {
    let edge = Edge::start().await;
    let task = edge.request(As::User("demo")).await;
    let (path, report) = edge.win(&task).await;
    assert_eq!(edge.post(NEAR, &format!("{path}/confirm"), &report).await.0, 200);
    assert_eq!(edge.post(NEAR, &format!("{path}/accept"), &report).await.0, 200);
    let wish = with(&report, "task", json!({ "kind": "part", "requires": ["missing"] }));
    let (status, part) = edge.post(NEAR, &format!("{path}/request"), &wish).await;
    assert_eq!((status, &part["task"]["parent_id"]), (201, &json!(task)), "{part}");
    let question = with(&with(&report, "question", json!("may I?")), "for", json!("approval"));
    let (status, asked) = edge.post(NEAR, &format!("{path}/question"), &question).await;
    assert_eq!((status, &asked["state"]), (200, &json!("waiting")), "{asked}");
    let (_, shown) = edge.get(As::User("demo"), &format!("/v1/tasks/{task}")).await;
    assert_eq!(shown["question"]["question"], "may I?");
    let answer = json!({ "answer": { "ok": true } });
    let (status, own) = edge.post(NEAR, &format!("/v1/tasks/{task}/answer"), &answer).await;
    assert_eq!((status, &own["code"]), (403, &json!("forbidden")), "{own}");
    let other = edge.post(As::User("elsewhere"), &format!("/v1/tasks/{task}/answer"), &answer).await;
    assert_eq!((other.0, &other.1["code"]), (404, &json!("unknown_task")), "{}", other.1);
    let (status, answered) = edge.post(As::User("demo"), &format!("/v1/tasks/{task}/answer"), &answer).await;
    assert_eq!((status, &answered["state"]), (200, &json!("open")), "{answered}");
    let (status, again) = edge.post(As::User("demo"), &format!("/v1/tasks/{task}/requeue"), &json!({})).await;
    assert_eq!((status, &again["code"]), (409, &json!("conflict")), "{again}");
    let (status, _) = edge.post(As::User("demo"), &format!("/v1/tasks/{task}/cancel"), &json!({})).await;
    assert_eq!(status, 200);
    edge.event(part["task"]["id"].as_str().unwrap(), "cancel").await;
    let canceled = async {
        loop {
            let (_, now) = edge.get(As::Service, &format!("/v1/tasks/{task}?wait=10s")).await;
            if now["state"] == "canceled" {
                break;
            }
        }
    };
    tokio::time::timeout(PATIENCE, canceled).await.unwrap();
    let (status, open) = edge.post(As::User("demo"), &format!("/v1/tasks/{task}/requeue"), &json!({})).await;
    assert_eq!((status, &open["state"]), (200, &json!("open")), "{open}");
    edge.stop().await;
}

#[tokio::test]
async fn retryable_failure_reopens_the_task_and_cancel_ends_it() {
    let edge = Edge::start().await;
    let task = edge.request(As::Service).await;
    // The service's token has no org, so the task belongs to `default`, which has no agent.
    let (_, shown) = edge.get(As::Service, &format!("/v1/tasks/{task}")).await;
    assert_eq!(shown["org"], "default");
    let (status, canceled) = edge.post(As::Service, &format!("/v1/tasks/{task}/cancel"), &json!({})).await;
    assert_eq!((status, &canceled["state"]), (200, &json!("canceled")));
    let (status, again) = edge.post(As::Service, &format!("/v1/tasks/{task}/cancel"), &json!({})).await;
    assert!(status == 200 || (status, &again["code"]) == (409, &json!("conflict")), "{status} {again}");

    let task = edge.request(As::User("demo")).await;
    let (path, report) = edge.win(&task).await;
    assert_eq!(edge.post(NEAR, &format!("{path}/accept"), &report).await.0, 200);
    let failure = with(&report, "error", json!({ "message": "no luck", "retryable": true }));
    let (status, failed) = edge.post(NEAR, &format!("{path}/failure"), &failure).await;
    assert_eq!((status, &failed["state"]), (200, &json!("open")), "{failed}");
    edge.stop().await;
}

#[tokio::test]
async fn each_kind_of_token_has_its_rights() {
    let edge = Edge::start().await;
    let task = edge.request(As::User("demo")).await;
    let at = |rest: &str| format!("/v1/tasks/{task}{rest}");
    let code = |answer: (u16, Value)| (answer.0, answer.1["code"].as_str().unwrap_or_default().to_owned());
    let refused = |status: u16, code: &str| (status, code.to_owned());

    for path in ["/v1/tasks", "/v1/agents", &at(""), &at("/why")] {
        assert_eq!(code(edge.get(As::NoToken, path).await), refused(401, "unauthorized"), "{path}");
        assert_eq!(code(edge.get(As::Anon, path).await), refused(403, "forbidden"), "{path}");
        assert_eq!(edge.get(As::User("demo"), path).await.0, 200, "{path}");
        assert_eq!(edge.get(As::Service, path).await.0, 200, "{path}");
    }
    let stranger = As::Agent("other", "elsewhere");
    for path in [at(""), at("/events"), at("/why"), at("?wait=1s")] {
        assert_eq!(code(edge.get(stranger, &path).await), refused(404, "unknown_task"), "{path}");
    }
    assert_eq!(code(edge.get(stranger, "/v1/agents/near").await), refused(404, "unknown_agent"));
    assert_eq!(edge.get(stranger, "/v1/tasks").await.1, json!({ "tasks": [] }));
    let offer = json!({ "round": 1 });
    assert_eq!(code(edge.post(stranger, &at("/offers"), &offer).await), refused(404, "unknown_task"));
    let cancel = at("/cancel");
    assert_eq!(code(edge.post(stranger, &cancel, &json!({})).await), refused(404, "unknown_task"));
    assert_eq!(code(edge.post(NEAR, &cancel, &json!({})).await), refused(403, "forbidden"), "not its own");
    let as_other = json!({ "round": 1, "agent_id": "other" });
    assert_eq!(code(edge.post(NEAR, &at("/offers"), &as_other).await), refused(403, "forbidden"));
    let elsewhere = json!({ "kind": "x" });
    assert_eq!(code(edge.post(NEAR, "/v1/tasks?org=elsewhere", &elsewhere).await), refused(403, "forbidden"));
    assert_eq!(edge.post(As::Service, "/v1/tasks?org=elsewhere", &elsewhere).await.0, 201);
    for open in ["/health", "/health/ready"] {
        assert_eq!(edge.get(As::NoToken, open).await.1["status"], "ready");
    }
    edge.stop().await;
}

#[tokio::test]
async fn idempotency_key_creates_one_task() {
    let edge = Edge::start().await;
    let send = async |key: &str, body: Value| {
        let request = edge.http.post(format!("http://{}/v1/tasks", edge.parts.addr));
        let request = request.bearer_auth(edge.token(As::Service).unwrap()).header("Idempotency-Key", key);
        let answer = request.body(body.to_string()).send().await.unwrap();
        (answer.status().as_u16(), answer.json::<Value>().await.unwrap())
    };
    let (status, first) = send("k", json!({ "kind": "x" })).await;
    assert_eq!((status, &first["replayed"]), (201, &json!(false)));
    let (status, second) = send("\"k\"", json!({ "kind": "x" })).await;
    assert_eq!((status, &second["replayed"]), (200, &json!(true)));
    assert_eq!(first["task"]["id"], second["task"]["id"]);
    let (status, other) = send("k", json!({ "kind": "y" })).await;
    assert_eq!((status, &other["code"]), (409, &json!("idempotency_conflict")));
    let (status, both) = send("k", json!({ "kind": "x", "idempotency_key": "l" })).await;
    assert_eq!((status, &both["code"]), (400, &json!("bad_request")));
    edge.stop().await;
}

#[tokio::test]
async fn invalid_requests_are_refused_with_a_reason() {
    let edge = Edge::start().await;
    let cases = [
        (Method::POST, "/v1/tasks", "{\n \"kind\": 5}", 400, "line 2"),
        (Method::POST, "/v1/tasks", "{\"kind\": \"x\", \"inptu\": 1}", 400, "inptu: unknown field"),
        (Method::POST, "/v1/tasks", "not json", 400, "line 1 column"),
        (Method::POST, "/v1/tasks", "{\"kind\": \"x\"} more", 400, "goes on after"),
        (Method::POST, "/v1/tasks", "", 400, "missing field `kind`"),
        (Method::POST, "/v1/tasks", "{\"kind\": \"\"}", 400, "kind"),
        (Method::GET, "/v1/tasks/seven", "", 400, "not a task's id"),
        (Method::GET, "/v1/tasks?state=lost", "", 400, "unknown variant `lost`"),
        (Method::GET, "/v1/tasks?limit=all", "", 400, "limit"),
        (Method::GET, "/v1/tasks?limit=-1", "", 400, "limit is -1"),
        (Method::GET, "/v1/tasks?limti=1", "", 400, "limti"),
        (Method::GET, "/v1/agents?state=x", "", 400, "state"),
        (Method::POST, "/v1/tasks", "{\"kind\": \"x\", \"org\": \"demo\"}", 400, "?org="),
        (Method::GET, "/v1/tasks/01a20acd-4c14-776f-94bc-2f5e3bf869ee", "", 404, "there is no task"),
        (Method::GET, "/v1/tasks/01a20acd-4c14-776f-94bc-2f5e3bf869ee?wait=soon", "", 400, "not a time"),
        (Method::GET, "/v1/agents/Near", "", 400, "not an agent's id"),
        (Method::GET, "/v1/agents/missing", "", 404, "there is no agent"),
        (Method::DELETE, "/v1/tasks", "", 405, "does not take DELETE"),
        (Method::GET, "/v2/tasks", "", 404, "there is no /v2/tasks"),
        (Method::GET, "/v1/nothing", "", 404, "there is no"),
        (Method::POST, "/v1/assignments/x/accept", "{}", 400, "missing field `task_id`"),
    ];
    for (method, path, body, status, reason) in cases {
        let (got, problem) = edge.send(As::Service, method.clone(), path, body).await;
        assert_eq!(got.as_u16(), status, "{method} {path} {body}: {problem}");
        let detail = problem["detail"].as_str().unwrap();
        assert!(detail.contains(reason), "{method} {path} {body}: {detail}");
        assert_eq!(problem["status"], status);
    }
    let large = format!("{{\"kind\": \"x\", \"input\": \"{}\"}}", "x".repeat(2 << 20));
    let (status, problem) = edge.send(As::Service, Method::POST, "/v1/tasks", large).await;
    assert_eq!((status.as_u16(), &problem["code"]), (413, &json!("too_large")));
    edge.stop().await;
}

#[tokio::test]
async fn event_stream_resumes_after_the_last_event_id() {
    let edge = Edge::start().await;
    let task = edge.request(As::User("demo")).await;
    let open = |last: Option<String>| {
        let url = format!("http://{}/v1/tasks/{task}/events", edge.parts.addr);
        let request = edge.http.get(url).header("accept", "text/event-stream");
        let request = request.bearer_auth(edge.token(As::User("demo")).unwrap());
        last.map_or_else(
            || request.try_clone().unwrap(),
            |id| request.try_clone().unwrap().header("last-event-id", id),
        )
    };
    let mut stream = open(None).send().await.unwrap();
    assert_eq!(stream.headers()["content-type"], "text/event-stream");
    let mut text = String::new();
    while !text.contains("event: announced") {
        let chunk = tokio::time::timeout(PATIENCE, stream.chunk()).await.unwrap().unwrap();
        text.push_str(std::str::from_utf8(&chunk.expect("the task has not ended")).unwrap());
    }
    assert!(text.contains("event: requested"), "{text}");
    let first = text.lines().find_map(|line| line.strip_prefix("id: ")).unwrap().to_owned();
    edge.post(As::User("demo"), &format!("/v1/tasks/{task}/cancel"), &json!({})).await;
    // Sent by the service, too: the user's token has no name, so this one may count as another requester.
    edge.post(As::Service, &format!("/v1/tasks/{task}/cancel"), &json!({})).await;
    let rest = tokio::time::timeout(PATIENCE, stream.text()).await.unwrap().unwrap();
    assert!(rest.trim_end().ends_with("event: end\ndata: {\"state\":\"canceled\"}"), "{rest}");
    let again = open(Some(first)).send().await.unwrap().text().await.unwrap();
    assert!(!again.contains("event: requested") && again.contains("event: announced"), "{again}");
    edge.stop().await;
}

#[tokio::test]
async fn metrics_are_openmetrics_without_a_token() {
    let edge = Edge::start().await;
    edge.request(As::User("demo")).await;
    let answer = edge.http.get(format!("http://{}/metrics", edge.parts.addr)).send().await.unwrap();
    let kind = answer.headers()["content-type"].to_str().unwrap().to_owned();
    assert!(kind.starts_with("application/openmetrics-text"), "{kind}");
    let text = answer.text().await.unwrap();
    assert!(text.contains("convoke_tasks_requested_total 1") && text.ends_with("# EOF\n"), "{text}");
    edge.stop().await;
}

#[tokio::test]
async fn stop_ends_a_long_poll() {
    let edge = Edge::start().await;
    let task = edge.request(As::User("demo")).await;
    let url = format!("http://{}/v1/tasks/{task}?wait=60s", edge.parts.addr);
    let poll = edge.http.get(url).bearer_auth(edge.token(As::Service).unwrap()).send();
    let stop = async {
        edge.event(&task, "announced").await;
        edge.stop.cancel();
    };
    let (answer, ()) = tokio::join!(poll, stop);
    assert_eq!(answer.unwrap().json::<Value>().await.unwrap()["id"], task.as_str());
    edge.running.await.unwrap().unwrap();
}
