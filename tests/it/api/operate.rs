//! What operators do beyond one task: draining agents, many tasks at once; and the reads of what agents did over time.
use super::{As, Edge, NEAR, with};
use serde_json::{Value, json};

const USER: As = As::User("demo");
const FOREIGN: As = As::User("elsewhere");

impl Edge {
    /// Requests a task that agent `other` of another org is asked about: the arbiter has then seen all earlier requests.
    async fn arbiter_has_polled(&self) {
        let body = json!({ "kind": "x", "requires": ["work"] });
        let (_, made) = self.post(FOREIGN, "/v1/tasks", &body).await;
        self.event(made["task"]["id"].as_str().unwrap(), "announced").await;
    }

    async fn rounds(&self, task: &str) -> usize {
        let (_, why) = self.get(USER, &format!("/v1/tasks/{task}/why")).await;
        why["rounds"].as_array().unwrap().len()
    }
}

#[tokio::test]
async fn drained_agent_gets_no_task_until_it_is_resumed_also_after_a_restart() {
    let edge = Edge::start().await;
    let held = edge.request(USER).await;
    let (path, report) = edge.win(&held).await;
    assert_eq!(edge.post(NEAR, &format!("{path}/accept"), &report).await.0, 200);
    for (who, status, code) in [
        (USER, 403, "forbidden"),
        (NEAR, 403, "forbidden"),
        (FOREIGN, 404, "unknown_agent"),
        (As::Anon, 403, "forbidden"),
    ] {
        let refused = edge.post(who, "/v1/agents/near/drain", &json!({})).await;
        assert_eq!((refused.0, &refused.1["code"]), (status, &json!(code)));
    }
    assert_eq!(edge.post(As::Service, "/v1/agents/nobody/drain", &json!({})).await.0, 404);
    let (status, drained) = edge.post(As::Service, "/v1/agents/near/drain", &json!({})).await;
    assert_eq!((status, &drained["drained_by"]), (200, &json!("service")), "{drained}");
    let (_, again) = edge.post(As::Service, "/v1/agents/near/drain", &json!({})).await;
    assert_eq!(again["drained_at"], drained["drained_at"], "a repeated command changes nothing");

    let waiting = edge.request(USER).await;
    edge.arbiter_has_polled().await;
    assert_eq!(edge.rounds(&waiting).await, 0, "nobody is asked");
    // A restart of the agent's host registers it again.
    let status = edge.parts.tasks.agent(&"near".parse().unwrap()).await.unwrap();
    assert_eq!(status.slots_used, 1, "what it has goes on");
    edge.rejoin("near").await;
    edge.arbiter_has_polled().await;
    assert_eq!(edge.rounds(&waiting).await, 0);
    let (_, shown) = edge.get(USER, "/v1/agents/near").await;
    assert_eq!(shown["drained_at"], drained["drained_at"]);

    let (status, resumed) = edge.post(As::Service, "/v1/agents/near/resume", &json!({})).await;
    assert_eq!((status, &resumed["drained_at"]), (200, &Value::Null));
    edge.event(&waiting, "announced").await;
    let client = edge.parts.database.client().await.unwrap();
    let events = client
        .query("select type, body ->> 'by' from convoke.events where agent_id = 'near' and task_id is null order by seq", &[])
        .await
        .unwrap();
    let events: Vec<(String, String)> = events.iter().map(|row| (row.get(0), row.get(1))).collect();
    assert_eq!(events, [("drained".into(), "service".into()), ("resumed".into(), "service".into())]);
    drop(client);
    edge.stop().await;
}

#[tokio::test]
async fn many_tasks_are_counted_before_they_are_changed_and_one_refusal_stops_no_other() {
    let edge = Edge::start().await;
    let mut ids = Vec::new();
    for kind in ["a", "a", "b"] {
        let body = json!({ "kind": kind, "requires": ["nothing"] });
        let (_, made) = edge.post(USER, "/v1/tasks", &body).await;
        ids.push(made["task"]["id"].as_str().unwrap().to_owned());
    }
    let (_, made) = edge.post(FOREIGN, "/v1/tasks", &json!({ "kind": "a", "requires": ["nothing"] })).await;
    let foreign = made["task"]["id"].as_str().unwrap().to_owned();
    let bulk = async |body: Value| edge.post(As::Service, "/v1/tasks/bulk?org=demo", &body).await;
    for (body, reason) in [
        (json!({ "action": "cancel" }), "1 to 1000 ids, or a filter"),
        (json!({ "action": "cancel", "ids": [ids[0]], "filter": {} }), "not both"),
        (json!({ "action": "explode", "ids": [ids[0]] }), "explode"),
        (json!({ "action": "cancel", "filter": { "color": "red" } }), "color"),
        (json!({ "action": "cancel", "ids": vec![&ids[0]; 1001] }), "1 to 1000 ids"),
    ] {
        let (status, refused) = bulk(body.clone()).await;
        assert_eq!(status, 400, "{body}: {refused}");
        assert!(refused["detail"].as_str().unwrap().contains(reason), "{refused}");
    }
    assert_eq!(edge.post(USER, "/v1/tasks/bulk", &json!({ "action": "cancel", "filter": {} })).await.0, 403);

    let by_filter = json!({ "action": "cancel", "filter": { "kind": "a" }, "dry_run": true });
    let (status, counted) = bulk(by_filter.clone()).await;
    assert_eq!((status, counted["tasks"].as_array().unwrap().len()), (200, 2), "{counted}");
    let (_, now) = edge.get(USER, &format!("/v1/tasks/{}", ids[0])).await;
    assert_eq!(now["state"], "open", "a dry run changes nothing");
    let (_, done) = bulk(with(&by_filter, "dry_run", json!(false))).await;
    assert_eq!((done["tasks"].as_array().unwrap().len(), &done["refused"]), (2, &json!([])), "{done}");
    assert_eq!(edge.event(&ids[0], "cancel").await["body"]["by"], "service");

    // Named tasks that do not fit are refused, each with its reason.
    let named = json!({ "action": "cancel", "ids": [ids[0], foreign, ids[2]] });
    let (_, counted) = bulk(with(&named, "dry_run", json!(true))).await;
    let (_, done) = bulk(named).await;
    assert_eq!((&done["tasks"], done["refused"].as_array().unwrap().len()), (&json!([ids[2]]), 2), "{done}");
    assert_eq!((&counted["tasks"], &counted["refused"]), (&done["tasks"], &done["refused"]));
    assert_eq!(edge.get(FOREIGN, &format!("/v1/tasks/{foreign}")).await.1["state"], "open");
    let (_, done) = bulk(json!({ "action": "requeue", "filter": { "state": "canceled" } })).await;
    assert_eq!(done["tasks"].as_array().unwrap().len(), 3, "{done}");
    edge.stop().await;
}

#[tokio::test]
async fn lanes_and_spending_show_what_agents_did() {
    let edge = Edge::start().await;
    let task = edge.request(USER).await;
    let (path, report) = edge.win(&task).await;
    edge.post(NEAR, &format!("{path}/accept"), &report).await;
    let (status, lanes) = edge.get(USER, "/v1/lanes").await;
    assert_eq!((status, lanes["bars"].as_array().unwrap().len()), (200, 1), "{lanes}");
    let bar = &lanes["bars"][0];
    assert_eq!(
        (&bar["agent_id"], &bar["task_id"], &bar["state"]),
        (&json!("near"), &json!(task), &json!("running"))
    );
    assert_eq!(bar["ended_at"], Value::Null);
    let done = with(&with(&report, "result", json!(1)), "usage", json!({ "tokens": 7, "microdollars": 40 }));
    assert_eq!(edge.post(NEAR, &format!("{path}/result"), &done).await.0, 200);
    let (_, lanes) = edge.get(USER, "/v1/lanes?agents=near").await;
    assert_eq!(lanes["bars"][0]["state"], "finished");
    for (query, bars) in [("?agents=far", 0), ("?from=2026-01-01T00:00:00Z&to=2026-01-01T01:00:00Z", 0)] {
        assert_eq!(
            edge.get(USER, &format!("/v1/lanes{query}")).await.1["bars"].as_array().unwrap().len(),
            bars
        );
    }
    for query in [
        "?from=2026-01-01T00:00:00Z&to=2026-01-03T00:00:00Z",
        "?agents=a%20b",
        "?from=soon",
        "?to=-262143-01-01T00:00:00Z",
        "?color=red",
    ] {
        assert_eq!(edge.get(USER, &format!("/v1/lanes{query}")).await.0, 400, "{query}");
    }
    let (status, spent) = edge.get(USER, "/v1/spend").await;
    let row = &spent["rows"][0];
    assert_eq!((status, &row["agent_id"], &row["kind"]), (200, &json!("near"), &json!("x")), "{spent}");
    assert_eq!((row["tokens"].as_f64(), row["microdollars"].as_f64()), (Some(7.0), Some(40.0)));
    assert_eq!((&row["attempts"], &spent["partial"]), (&json!(1), &json!(false)));
    for query in ["?from=2020-01-01T00:00:00Z", "?from=2100-01-01T00:00:00Z"] {
        assert_eq!(edge.get(USER, &format!("/v1/spend{query}")).await.0, 400, "{query}");
    }
    let (_, by) = edge.get(USER, "/v1/spend?by=agent,task,provider").await;
    let row = &by["rows"][0];
    assert_eq!(
        (&row["agent_id"], &row["task_id"], &row["provider"]),
        (&json!("near"), &json!(task), &json!(""))
    );
    assert_eq!(
        (&row["microdollars"], &row["attempts"], &row["questions"]),
        (&json!(40), &json!(1), &json!(0))
    );
    assert_eq!(edge.get(FOREIGN, "/v1/spend?by=agent").await.1["rows"], json!([]));
    for (as_, query, status) in
        [(USER, "color", 400), (USER, "", 400), (USER, "org", 403), (As::Service, "org", 200)]
    {
        assert_eq!(edge.get(as_, &format!("/v1/spend?by={query}")).await.0, status, "{query}");
    }
    for path in ["/v1/lanes", "/v1/spend", "/v1/triggers"] {
        let (_, other) = edge.get(FOREIGN, path).await;
        let lists = ["bars", "rows", "triggers"].map(|list| other[list].as_array().map_or(0, Vec::len));
        assert_eq!(lists, [0; 3], "{path}: another org sees nothing");
        assert_eq!(edge.get(USER, &format!("{path}?org=elsewhere")).await.0, 403, "{path}");
        assert_eq!(edge.get(As::Anon, path).await.0, 403, "{path}");
    }
    edge.stop().await;
}
