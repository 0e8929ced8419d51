//! Values in requests that the database or a number type cannot hold.
use super::{As, Edge, NEAR, with};
use reqwest::Method;
use serde_json::{Value, json};

const NUMBER: &str = "123456789012345678901234567890";

async fn refused(edge: &Edge, who: As, path: &str, body: String) -> String {
    let (status, problem) = edge.send(who, Method::POST, path, body).await;
    assert_eq!((status.as_u16(), &problem["code"]), (400, &json!("bad_request")), "{problem}");
    problem["detail"].as_str().unwrap().to_owned()
}

#[tokio::test]
async fn inexact_number_or_deep_nesting_is_refused_with_its_path() {
    let edge = Edge::start().await;
    let task = |input: &str| format!("{{\"kind\":\"x\",\"requires\":[\"work\"],\"input\":{input}}}");
    let detail = refused(&edge, NEAR, "/v1/tasks", task(&format!("{{\"n\":[1,{NUMBER}]}}"))).await;
    assert!(detail.contains(&format!("input.n.1: the number {NUMBER} has more digits")), "{detail}");
    let detail = refused(&edge, NEAR, "/v1/tasks", task("1e400")).await;
    assert!(detail.contains("input: the number 1e400"), "{detail}");
    let deep = format!("{}1{}", "[".repeat(200), "]".repeat(200));
    let detail = refused(&edge, NEAR, "/v1/tasks", task(&deep)).await;
    assert!(detail.contains("nested deeper than 127 levels"), "{detail}");
    // An accepted number is returned digit for digit.
    let kept = "{\"big\":18446744073709551615,\"small\":-9223372036854775808,\"part\":0.30000000000000004}";
    let (status, made) = edge.send(NEAR, Method::POST, "/v1/tasks", task(kept)).await;
    assert_eq!(status, 201, "{made}");
    let id = made["task"]["id"].as_str().unwrap().to_owned();
    let (_, shown) = edge.get(NEAR, &format!("/v1/tasks/{id}")).await;
    assert_eq!(shown["input"], serde_json::from_str::<Value>(kept).unwrap());

    // A result is refused in the same way, and the assignment continues; unusual usage does not lose the
    // result.
    let (path, ids) = edge.win(&id).await;
    let (status, _) = edge.post(NEAR, &format!("{path}/accept"), &ids).await;
    assert_eq!(status, 200);
    let result = |result: &str, usage: &str| {
        let mut body = ids.to_string();
        body.truncate(body.len() - 1);
        format!("{body},\"result\":{result},\"usage\":{usage}}}")
    };
    let detail = refused(&edge, NEAR, &format!("{path}/result"), result(NUMBER, "{}")).await;
    assert!(detail.contains(&format!("result: the number {NUMBER}")), "{detail}");
    let usage = format!("{{\"tokens\":{NUMBER},\"microdollars\":\"1.5\"}}");
    let (status, done) = edge.send(NEAR, Method::POST, &format!("{path}/result"), result("7", &usage)).await;
    assert_eq!((status.as_u16(), &done["state"]), (200, &json!("completed")), "{done}");
    let (_, why) = edge.get(NEAR, &format!("/v1/tasks/{id}/why")).await;
    assert_eq!(
        why["paid"],
        json!({ "tokens": 1_000_000_000_000_000_i64, "microdollars": 2, "presumed": false })
    );
    edge.stop().await;
}

#[tokio::test]
async fn value_outside_the_range_of_the_database_is_a_bad_request() {
    let edge = Edge::start().await;
    let (status, problem) = edge.get(As::Service, "/v1/tasks?kind=%00").await;
    assert_eq!((status, &problem["code"]), (400, &json!("bad_request")), "{problem}");
    let early = json!({ "kind": "x", "deadline": "-262000-01-01T00:00:00Z" });
    let (status, problem) = edge.post(As::Service, "/v1/tasks", &early).await;
    assert_eq!((status, &problem["code"]), (400, &json!("bad_request")), "{problem}");
    let task = edge.request(NEAR).await;
    let (path, ids) = edge.win(&task).await;
    edge.post(NEAR, &format!("{path}/accept"), &ids).await;
    let (status, problem) =
        edge.post(NEAR, &format!("{path}/progress"), &with(&ids, "activity", json!("a\u{0}b"))).await;
    assert_eq!((status, &problem["code"]), (400, &json!("bad_request")), "{problem}");
    edge.stop().await;
}

#[tokio::test]
async fn requeue_by_filter_is_limited_to_the_callers_rights() {
    let edge = Edge::start().await;
    let mut own = Vec::new();
    for who in [NEAR, As::Service] {
        let nothing = json!({ "kind": "batch", "requires": ["nothing here"], "policy": { "rounds_max": 1 } });
        let (_, made) = edge.post(who, "/v1/tasks?org=demo", &nothing).await;
        let id = made["task"]["id"].as_str().unwrap().to_owned();
        edge.event(&id, "unallocatable").await;
        own.push(id);
    }
    let filter = json!({ "kind": "batch", "reason": "unallocatable", "dry_run": true });
    let (status, answer) = edge.post(NEAR, "/v1/tasks/requeue", &filter).await;
    assert_eq!((status, &answer["tasks"]), (200, &json!([own[0]])), "{answer}");
    let (_, answer) = edge.post(As::Service, "/v1/tasks/requeue", &filter).await;
    assert_eq!(answer["tasks"], json!(own));
    let (_, answer) = edge.post(As::User("elsewhere"), "/v1/tasks/requeue", &filter).await;
    assert_eq!(answer["tasks"], json!([]));
    let (status, problem) = edge.post(NEAR, "/v1/tasks/requeue", &json!({ "colour": 1 })).await;
    assert_eq!(status, 400, "{problem}");
    let (_, answer) =
        edge.post(As::Service, "/v1/tasks/requeue", &with(&filter, "dry_run", json!(false))).await;
    assert_eq!((&answer["tasks"], &answer["refused"]), (&json!(own), &json!([])));
    edge.event(&own[0], "requeued").await;
    edge.stop().await;
}
