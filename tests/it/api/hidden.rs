//! Data of tasks that viewers do not get, and people whom other issuers name.
use super::{As, Edge, NEAR, with};
use crate::realtime::Socket;
use convoke::{access::Observers, auth::DashboardRole, config::Config, dashboard::DataReaders};
use reqwest::Method;
use serde_json::{Value, json};

const ISSUER: &str = "https://people.test";
const KEY: &str = "a secret of another issuer: thirty-two";
const OWN: (&str, &str) = ("sec-fetch-site", "same-origin");

fn hide(config: &mut Config) {
    config.dashboard.data = DataReaders::Operators;
    config.access.observers = Observers::Token;
}

impl Edge {
    /// A task of which every text that a requester, an agent or a person wrote contains `private`; its id.
    async fn private_task(&self) -> String {
        let user = As::User("demo");
        let request = json!({ "kind": "x", "requires": ["work"], "input": { "text": "private input" }, "policy": { "attempts_max": 1 } });
        let (status, made) = self.post(user, "/v1/tasks", &request).await;
        assert_eq!(status, 201, "{made}");
        let task = made["task"]["id"].as_str().unwrap().to_owned();
        self.event(&task, "announced").await;
        let offer = json!({ "round": 1, "cost": 5, "eta_ms": 10, "confidence": 0.9, "note": "private note" });
        assert_eq!(self.post(NEAR, &format!("/v1/tasks/{task}/offers"), &offer).await.0, 202);
        let award = self.event(&task, "awarded").await;
        let path = format!("/v1/assignments/{}", award["body"]["assignment_id"].as_str().unwrap());
        let report = json!({ "task_id": task, "epoch": award["epoch"] });
        assert_eq!(self.post(NEAR, &format!("{path}/accept"), &report).await.0, 200);
        let progress = with(&report, "progress", json!(0.5));
        let progress = with(&progress, "activity", json!("private activity"));
        let progress = with(&progress, "checkpoint", json!({ "page": "private checkpoint" }));
        assert_eq!(self.post(NEAR, &format!("{path}/progress"), &progress).await.0, 204);
        task
    }

    async fn joins(&self, bearer: &str, room: &str) -> bool {
        let url = format!("ws://{}/realtime/v1/websocket?apikey={bearer}&vsn=2.0.0", self.parts.addr);
        Socket::open(&url, true).await.join(room, json!({})).await.payload["status"] == "ok"
    }
}

#[tokio::test]
async fn viewers_get_no_data_of_tasks_if_operators_alone_see_it() {
    let edge = Edge::start_with(hide).await;
    let task = edge.private_task().await;
    let viewer = edge.bearer_as(DashboardRole::Viewer).await;
    let operator = edge.bearer_as(DashboardRole::Operator).await;
    let paths = [
        "/v1/tasks".to_owned(),
        "/v1/tasks?view=line".to_owned(),
        format!("/v1/tasks/{task}"),
        format!("/v1/tasks/{task}/events"),
        format!("/v1/tasks/{task}/why"),
        format!("/v1/tasks/{task}/steps"),
        format!("/v1/tasks/{task}/tree"),
        "/v1/events".to_owned(),
        "/v1/overview".to_owned(),
        "/v1/lanes".to_owned(),
        "/v1/spend".to_owned(),
        "/v1/triggers".to_owned(),
        "/v1/agents".to_owned(),
        "/v1/agents?view=line".to_owned(),
        "/v1/agents/near".to_owned(),
    ];
    // While it runs, while it waits for a person, and when it has failed.
    let award = edge.event(&task, "awarded").await;
    let path = format!("/v1/assignments/{}", award["body"]["assignment_id"].as_str().unwrap());
    let report = json!({ "task_id": task, "epoch": award["epoch"] });
    let failure = with(&report, "error", json!({ "message": "private error", "retryable": false }));
    let mut seen = 0;
    for step in ["runs", "failed"] {
        if step == "failed" {
            let (status, answer) = edge.post(NEAR, &format!("{path}/failure"), &failure).await;
            assert_eq!(status, 200, "{answer}");
        }
        for path in &paths {
            let (status, answer) = edge.act(&viewer, Method::GET, path, &Value::Null).await;
            assert_eq!(status, 200, "{path}: {answer}");
            assert!(!answer.to_string().contains("private"), "{step}, {path}: {answer}");
            let (status, whole) = edge.act(&operator, Method::GET, path, &Value::Null).await;
            assert_eq!(status, 200, "{path}: {whole}");
            seen += usize::from(whole.to_string().contains("private"));
            // The shape is the same: the page reads both.
            assert_eq!(shape(&answer), shape(&whole), "{path}");
        }
    }
    assert!(seen >= 12, "an operator sees it on every route that has it: {seen}");
    let (_, line) = edge.act(&viewer, Method::GET, &format!("/v1/tasks/{task}"), &Value::Null).await;
    assert_eq!(
        (&line["state"], &line["kind"], &line["input"]),
        (&json!("failed"), &json!("x"), &Value::Null)
    );

    let stream = |bearer: &str| {
        let url = format!("http://{}/v1/tasks/{task}/events", edge.parts.addr);
        edge.http.get(url).bearer_auth(bearer).header("accept", "text/event-stream").send()
    };
    assert_eq!(stream(&viewer).await.unwrap().status(), 403);
    assert_eq!(stream(&operator).await.unwrap().status(), 200);
    for (room, expected) in
        [("org:demo", false), ("agent:near", false), ("convoke:demo", true), ("lobby", true)]
    {
        assert_eq!(edge.joins(&viewer, room).await, expected, "{room}");
        assert!(edge.joins(&operator, room).await, "{room}");
    }
    edge.stop().await;
}

/// The names of the members, without the values that are hidden.
fn shape(value: &Value) -> Vec<String> {
    match value {
        Value::Object(members) => members.keys().cloned().collect(),
        _ => Vec::new(),
    }
}

#[tokio::test]
async fn viewers_see_data_by_default_and_a_session_says_so() {
    let edge = Edge::start().await;
    let task = edge.private_task().await;
    let viewer = edge.bearer_as(DashboardRole::Viewer).await;
    let (_, shown) = edge.act(&viewer, Method::GET, &format!("/v1/tasks/{task}"), &Value::Null).await;
    assert_eq!(shown["input"]["text"], "private input");
    assert!(edge.joins(&viewer, "org:demo").await);
    edge.stop().await;
}

#[tokio::test]
async fn person_of_another_issuer_signs_in_with_the_role_of_its_groups() {
    let edge = Edge::start_with(|config| {
        hide(config);
        config.auth.jwt_secret = Some(KEY.into());
        let table = json!({ ISSUER: { "viewer": ["staff"], "operator": ["support"] } });
        config.dashboard.roles = serde_json::from_value(table).unwrap();
    })
    .await;
    let sign = |more: Value| {
        let mut claims = json!({ "role": "authenticated", "iss": ISSUER, "sub": "eva", "org": "demo", "exp": 4_000_000_000_u64 });
        claims.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let key = jsonwebtoken::EncodingKey::from_secret(KEY.as_bytes());
        jsonwebtoken::encode(&jsonwebtoken::Header::default(), &claims, &key).unwrap()
    };
    let sign_in = async |token: &str, headers: &[(&str, &str)]| {
        let bearer = format!("Bearer {token}");
        let headers: Vec<_> = headers.iter().copied().chain([("authorization", &*bearer)]).collect();
        edge.ask(Method::POST, "/session", &headers, &json!({})).await
    };
    let answer = sign_in(&sign(json!({ "groups": ["staff", "support"] })), &[OWN]).await;
    assert_eq!(answer.status(), 201);
    let cookie = super::dashboard::cookie(&answer);
    let shown: Value = answer.json().await.unwrap();
    assert_eq!((&shown["user"], &shown["role"]), (&json!("https://people.test#eva"), &json!("operator")));
    assert_eq!((&shown["org"], &shown["sees_data"]), (&json!("demo"), &json!(true)));
    let bearer = edge.bearer(&cookie).await["token"].as_str().unwrap().to_owned();
    let task = edge.request(As::User("demo")).await;
    let (status, _) = edge.act(&bearer, Method::POST, &format!("/v1/tasks/{task}/cancel"), &json!({})).await;
    assert_eq!(status, 200);
    assert_eq!(edge.event(&task, "cancel").await["body"]["by"], "user:convoke#https://people.test#eva");

    let viewer = sign(json!({ "groups": "staff", "dash": "admin" }));
    let answer = sign_in(&viewer, &[OWN]).await.json::<Value>().await.unwrap();
    assert_eq!((&answer["role"], &answer["sees_data"]), (&json!("viewer"), &json!(false)));
    // The token itself has this role, too: at `/v1` and in rooms.
    let task = edge.request(As::User("demo")).await;
    let refused = edge.act(&viewer, Method::POST, &format!("/v1/tasks/{task}/cancel"), &json!({})).await;
    assert_eq!(refused.0, 403);
    assert!(!edge.joins(&viewer, "agent:near").await && edge.joins(&viewer, "convoke:demo").await);

    // Ten sign-ins a minute are allowed, and these are the others.
    let expired = json!({ "groups": ["staff"], "exp": 1 });
    for (claims, headers, status) in [
        (json!({ "groups": ["others"] }), [OWN], 403),
        (json!({ "dash": "admin" }), [OWN], 403),
        (json!({ "iss": "https://elsewhere.test", "dash": "admin" }), [OWN], 403),
        (json!({ "agent_id": "near", "groups": ["staff"] }), [OWN], 403),
        (json!({ "role": "service_role", "groups": ["staff"] }), [OWN], 403),
        (json!({ "role": "anon", "groups": ["staff"] }), [OWN], 403),
        (json!({ "sub": "x".repeat(250), "groups": ["staff"] }), [OWN], 403),
        (expired, [OWN], 401),
        (json!({ "groups": ["staff"] }), [("sec-fetch-site", "cross-site")], 403),
    ] {
        let refused = sign_in(&sign(claims.clone()), &headers).await;
        assert_eq!(refused.status(), status, "{claims}");
        assert!(refused.headers().get("set-cookie").is_none(), "{claims}");
    }
    edge.stop().await;
}
