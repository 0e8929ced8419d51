//! An agent with HTTP alone: here by its polls, asked, awarded, working, gone; and every error code of
//! `docs/spec/negotiation.md` §6, provoked over HTTP.
use super::Rig;
use convoke::auth::Role;
use reqwest::Method;
use serde_json::{Value, json};

const UNKNOWN_ID: &str = "01890a5d-ac96-774b-bcce-b302099a8057";

/// Somebody who speaks HTTP.
struct Caller {
    http: reqwest::Client,
    base: String,
    token: String,
    after: u64,
}

impl Caller {
    fn new(rig: &Rig, token: String) -> Self {
        Self { http: reqwest::Client::new(), base: rig.http(), token, after: 0 }
    }

    async fn call(&self, method: Method, path: &str, body: Value) -> (u16, Value) {
        let request = self.http.request(method, format!("{}{path}", self.base)).bearer_auth(&self.token);
        let answer = request.body(body.to_string()).send().await.unwrap();
        let status = answer.status().as_u16();
        (status, serde_json::from_str(&answer.text().await.unwrap()).unwrap_or_default())
    }

    async fn post(&self, path: &str, body: Value) -> (u16, Value) {
        self.call(Method::POST, path, body).await
    }

    async fn get(&self, path: &str) -> (u16, Value) {
        self.call(Method::GET, path, json!({})).await
    }

    /// The status and code of a refusal.
    async fn refused(&self, path: &str, body: Value) -> (u16, String) {
        let (status, problem) = self.post(path, body).await;
        assert_eq!(problem["status"], status, "{problem}");
        (status, problem["code"].as_str().unwrap().to_owned())
    }

    /// The next message of this kind in the inbox.
    async fn message(&mut self, kind: &str) -> Value {
        loop {
            let path = format!("/v1/agents/near/inbox?wait=10s&after={}", self.after);
            let (status, inbox) = self.get(&path).await;
            assert_eq!(status, 200, "{inbox}");
            for mail in inbox["messages"].as_array().unwrap() {
                self.after = mail["seq"].as_u64().unwrap();
                if mail["event"] == kind || mail["payload"]["type"] == kind {
                    return mail["payload"].clone();
                }
            }
        }
    }

    async fn present(rig: &Rig, profile: Value) -> Self {
        let near = Self::new(rig, rig.token("near"));
        let (status, answer) = near.call(Method::PUT, "/v1/agents/near/presence", profile).await;
        assert_eq!((status, &answer["agent_id"]), (200, &json!("near")), "{answer}");
        rig.status("near", "present").await;
        near
    }
}

fn profile() -> Value {
    json!({ "capabilities": ["work"], "slots": 2, "description": "d", "lease": "30s" })
}

fn refusal(code: &str, status: u16) -> (u16, String) {
    (status, code.to_owned())
}

#[tokio::test]
async fn agent_works_with_http_alone() {
    let rig = Rig::start(Vec::new()).await;
    let mut near = Caller::present(&rig, profile()).await;
    let agent = rig.status("near", "present").await;
    assert_eq!((agent.kind.as_str(), agent.slots, agent.description.as_str()), ("remote", 2, "d"));

    let request =
        json!({ "kind": "k", "requires": ["work"], "input": { "n": 7 }, "policy": { "bid_window": "30s" } });
    let task = rig.request(request.clone()).await;
    let asked = near.message("task_request").await;
    assert_eq!(
        (&asked["task"]["id"], &asked["task"]["input_preview"]),
        (&json!(task.id), &json!("{\"n\": 7}"))
    );
    let offer = json!({ "round": asked["task"]["round"], "cost": 5, "eta_ms": 10, "confidence": 0.9 });
    assert_eq!(near.post(&format!("/v1/tasks/{}/offers", task.id), offer).await.0, 202);
    let won = near.message("task_assignment").await;
    let key = json!({ "task_id": won["task_id"], "epoch": won["epoch"] });
    let path = format!("/v1/assignments/{}", won["assignment_id"].as_str().unwrap());
    let (status, start) = near.post(&format!("{path}/accept"), key.clone()).await;
    assert_eq!((status, &start["input"]), (200, &json!({ "n": 7 })), "{start}");
    for (report, more) in
        [("progress", json!({ "progress": 0.5, "checkpoint": 1 })), ("heartbeat", json!({}))]
    {
        let mut body = key.clone();
        body.as_object_mut().unwrap().extend(more.as_object().cloned().unwrap());
        assert_eq!(near.post(&format!("{path}/{report}"), body).await.0, 204, "{report}");
    }
    let mut result = key.clone();
    result["result"] = json!("done");
    let (status, ended) = near.post(&format!("{path}/result"), result).await;
    assert_eq!((status, &ended["state"]), (200, &json!("completed")));

    // It declines, and the round is over; it receives a cancel; it leaves, and is gone at once.
    let task = rig.request(request.clone()).await;
    let asked = near.message("task_request").await;
    let decline = json!({ "round": asked["task"]["round"], "reason": "not now" });
    assert_eq!(near.post(&format!("/v1/tasks/{}/decline", task.id), decline).await.0, 202);
    let asked = near.message("task_request").await;
    assert_eq!((&asked["task"]["id"], &asked["task"]["round"]), (&json!(task.id), &json!(2)));
    let offer = json!({ "round": 2, "cost": 5 });
    assert_eq!(near.post(&format!("/v1/tasks/{}/offers", task.id), offer).await.0, 202);
    let won = near.message("task_assignment").await;
    let path = format!("/v1/assignments/{}", won["assignment_id"].as_str().unwrap());
    let key = json!({ "task_id": won["task_id"], "epoch": won["epoch"] });
    assert_eq!(near.post(&format!("{path}/accept"), key.clone()).await.0, 200);
    rig.daemon.parts.tasks.cancel(task.id, "enough").await.unwrap();
    assert_eq!(near.message("task_cancel").await["reason"], "enough");
    let mut failure = key;
    failure["error"] = json!({ "message": "stopped" });
    assert_eq!(near.post(&format!("{path}/failure"), failure).await.1["code"], "conflict");
    assert_eq!(near.call(Method::DELETE, "/v1/agents/near/presence", json!({})).await.0, 204);
    rig.status("near", "gone").await;
    let (status, gone) = near.get("/v1/agents/near/inbox").await;
    assert_eq!((status, &gone["code"]), (409, &json!("conflict")));
    rig.daemon.stop().await;
}

#[tokio::test]
async fn agent_that_stops_polling_is_deregistered_and_its_task_reassigned() {
    let rig = Rig::start(Vec::new()).await;
    let mut near = Caller::present(&rig, json!({ "capabilities": ["work"], "lease": "1s" })).await;
    let task =
        rig.request(json!({ "kind": "k", "requires": ["work"], "policy": { "bid_window": "30s" } })).await;
    let asked = near.message("task_request").await;
    let offer = json!({ "round": asked["task"]["round"], "cost": 5 });
    assert_eq!(near.post(&format!("/v1/tasks/{}/offers", task.id), offer).await.0, 202);
    let won = near.message("task_assignment").await;
    let path = format!("/v1/assignments/{}/accept", won["assignment_id"].as_str().unwrap());
    let key = json!({ "task_id": won["task_id"], "epoch": won["epoch"] });
    assert_eq!(near.post(&path, key).await.0, 200);
    rig.status("near", "gone").await;
    let mut other = rig.agent("other").await;
    let asked = other.message("task_request").await;
    assert_eq!(
        asked["task"]["id"],
        json!(task.id),
        "the lease of the task was longer than that of the agent"
    );
    rig.daemon.stop().await;
}

#[tokio::test]
async fn each_error_code_is_returned_over_http() {
    let rig = Rig::start(Vec::new()).await;
    let mut near = Caller::present(&rig, profile()).await;
    let offers = |id: &str| format!("/v1/tasks/{id}/offers");
    let offer = json!({ "round": 1, "cost": 1 });

    assert_eq!(near.refused("/v1/tasks", json!({ "kind": 5 })).await, refusal("bad_request", 400));
    assert_eq!(near.refused(&offers(UNKNOWN_ID), offer.clone()).await, refusal("unknown_task", 404));
    let other = rig.request(json!({ "kind": "k", "requires": ["something else"] })).await;
    assert_eq!(near.refused(&offers(&other.id.to_string()), offer).await, refusal("not_eligible", 403));

    let task =
        rig.request(json!({ "kind": "k", "requires": ["work"], "policy": { "bid_window": "60s" } })).await;
    near.message("task_request").await;
    let late = json!({ "round": 7, "cost": 1 });
    assert_eq!(near.refused(&offers(&task.id.to_string()), late).await, refusal("late", 409));
    let accept = json!({ "task_id": task.id, "epoch": 1 });
    let path = format!("/v1/assignments/{UNKNOWN_ID}/accept");
    assert_eq!(near.refused(&path, accept).await, refusal("fenced", 409));

    let request = |input: Value| json!({ "kind": "k", "requires": ["nothing here"], "input": input, "idempotency_key": "same" });
    let (status, made) = near.post("/v1/tasks", request(json!(1))).await;
    assert_eq!((status, &made["replayed"]), (201, &json!(false)));
    assert_eq!(near.post("/v1/tasks", request(json!(1))).await.0, 200);
    assert_eq!(near.refused("/v1/tasks", request(json!(2))).await, refusal("idempotency_conflict", 409));
    let large = request(json!("x".repeat(convoke::task::INPUT_BYTES_MAX)));
    assert_eq!(near.refused("/v1/tasks", large).await, refusal("too_large", 413));

    let cancel = format!("/v1/tasks/{}/cancel", made["task"]["id"].as_str().unwrap());
    assert_eq!(near.post(&cancel, json!({})).await.1["state"], "canceled");
    assert_eq!(near.refused(&cancel, json!({})).await, refusal("conflict", 409));
    let cancel = format!("/v1/tasks/{}/cancel", task.id);
    assert_eq!(near.refused(&cancel, json!({})).await, refusal("forbidden", 403), "another requested it");
    rig.daemon.stop().await;
}

#[tokio::test]
async fn no_token_connects_as_another_agent_and_a_bad_profile_is_refused() {
    let rig = Rig::start(Vec::new()).await;
    let other = Caller::new(&rig, rig.token("other"));
    let user = Caller::new(&rig, rig.mint(Role::Authenticated, "demo", None));
    for who in [&other, &user] {
        let (status, problem) = who.call(Method::PUT, "/v1/agents/near/presence", profile()).await;
        assert_eq!((status, &problem["code"]), (403, &json!("forbidden")));
        assert_eq!(who.get("/v1/agents/near/inbox").await.0, 403);
    }
    let near = Caller::new(&rig, rig.token("near"));
    let bad = json!({ "capabilities": ["work"], "lease": "1h" });
    let (status, problem) = near.call(Method::PUT, "/v1/agents/near/presence", bad).await;
    assert_eq!(status, 400, "{problem}");
    let mut near = near;
    let none = json!({ "slots": 0, "lease": "30s" });
    assert_eq!(near.call(Method::PUT, "/v1/agents/near/presence", none).await.0, 200);
    let error = near.message("error").await;
    assert_eq!(error["code"], "bad_request");
    assert!(error["message"].as_str().unwrap().contains("slots"), "{error}");
    rig.daemon.stop().await;
}
