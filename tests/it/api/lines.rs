//! Reads for pages: lines of tasks, the overview of an org, and the times of an explanation.
use super::{As, Edge, NEAR, with};
use serde_json::{Value, json};

const USER: As = As::User("demo");

impl Edge {
    async fn lines(&self, query: &str) -> Value {
        let (status, answer) = self.get(USER, &format!("/v1/tasks?view=line{query}")).await;
        assert_eq!(status, 200, "{query}: {answer}");
        answer
    }

    async fn ids(&self, query: &str) -> Vec<String> {
        let answer = self.lines(query).await;
        answer["tasks"]
            .as_array()
            .unwrap()
            .iter()
            .map(|line| line["id"].as_str().unwrap().to_owned())
            .collect()
    }

    async fn request_kind(&self, kind: &str, requires: &str) -> String {
        let body = json!({ "kind": kind, "requires": [requires], "input": { "text": "x".repeat(500) } });
        let (status, made) = self.post(USER, "/v1/tasks", &body).await;
        assert_eq!(status, 201, "{made}");
        made["task"]["id"].as_str().unwrap().to_owned()
    }
}

#[tokio::test]
async fn lines_are_filtered_and_have_no_input() {
    let edge = Edge::start().await;
    let a = edge.request_kind("support.triage", "work").await;
    let b = edge.request_kind("support.spam", "nothing").await;
    let c = edge.request_kind("report_x", "nothing").await;
    edge.post(USER, &format!("/v1/tasks/{c}/cancel"), &json!({})).await;
    let (path, report) = edge.win(&a).await;
    edge.post(NEAR, &format!("{path}/accept"), &report).await;
    edge.post(NEAR, &format!("{path}/progress"), &with(&report, "progress", json!(0.5))).await;

    let all = edge.lines("").await;
    let first = &all["tasks"][2];
    assert_eq!(
        (&first["id"], &first["state"], &first["agent_id"]),
        (&json!(a), &json!("running"), &json!("near"))
    );
    assert_eq!((&first["offers"], &first["progress"], &first["epoch"]), (&json!(1), &json!(0.5), &json!(1)));
    assert!(first["score"].as_f64().unwrap() > 0.0 && first["version"].as_i64().unwrap() > 1, "{first}");
    assert_eq!(first["input_preview"].as_str().unwrap().chars().count(), 120);
    assert!(first.get("input").is_none() && first.get("result").is_none());
    assert_eq!(all["partial"], Value::Null);

    for (query, expected) in [
        ("", vec![&c, &b, &a]),
        ("&limit=1", vec![&c]),
        (&format!("&before={c}"), vec![&b, &a]),
        ("&kind=support.*", vec![&b, &a]),
        ("&kind=support.*,-support.spam", vec![&a]),
        ("&kind=-report_x", vec![&b, &a]),
        ("&kind=report%25", vec![]),
        ("&kind=reportXx", vec![]),
        ("&state=running", vec![&a]),
        ("&state=running,open", vec![&b, &a]),
        ("&state=canceled,running", vec![&c, &a]),
        ("&agent_id=near,far", vec![&a]),
        (&format!("&ids={a},{c}"), vec![&c, &a]),
        ("&since=2000-01-01T00:00:00Z", vec![&c, &b, &a]),
        ("&since=2100-01-01T00:00:00Z", vec![]),
        ("&requester=sql:nobody", vec![]),
    ] {
        let expected: Vec<String> = expected.into_iter().cloned().collect();
        assert_eq!(edge.ids(query).await, expected, "{query}");
    }
    let (_, foreign) = edge.get(As::User("elsewhere"), &format!("/v1/tasks?view=line&ids={a}")).await;
    assert_eq!(foreign["tasks"], json!([]), "another org sees nothing");
    for (query, reason) in [
        ("&state=asleep", "no state of a task"),
        ("&ids=seven", "cannot be used"),
        ("&color=red", "unknown field"),
        ("&limit=0", "limit is 0"),
        ("&kind=a%00b", "U+0000"),
        ("&since=soon", "since"),
        ("&needs=coffee", "use input, approval, budget or choice"),
    ] {
        let (status, refused) = edge.get(USER, &format!("/v1/tasks?view=line{query}")).await;
        assert_eq!(status, 400, "{query}: {refused}");
        assert!(refused["detail"].as_str().unwrap().contains(reason), "{query}: {refused}");
    }
    assert_eq!(edge.get(USER, "/v1/tasks?view=page").await.0, 400);
    edge.stop().await;
}

#[tokio::test]
async fn lines_of_unfinished_states_find_tasks_behind_many_finished_ones() {
    let edge = Edge::start().await;
    let old = edge.request_kind("old", "nothing").await;
    let client = edge.parts.database.client().await.unwrap();
    client
        .batch_execute(
            "insert into convoke.tasks (id, org, kind, class, requester, root_id, state, created_at, updated_at)
             select id, 'demo', 'k', 1, 'r', id, 'completed', now(), now()
             from (select convoke.uuid_v7() as id from generate_series(1, 50100)) made",
        )
        .await
        .unwrap();
    assert_eq!(edge.ids("&state=open").await, std::slice::from_ref(&old));
    let bounded = edge.lines("&kind=old").await;
    assert_eq!(bounded["tasks"], json!([]), "the newest 50,000 are looked at");
    let further = bounded["partial"]["scanned_to"].as_str().unwrap();
    assert_eq!(edge.ids(&format!("&kind=old&before={further}")).await, [old]);
    drop(client);
    edge.stop().await;
}

#[tokio::test]
async fn overview_counts_the_tasks_of_its_org() {
    let edge = Edge::start().await;
    let a = edge.request_kind("support.triage", "work").await;
    edge.request_kind("waits", "nothing").await;
    let (path, report) = edge.win(&a).await;
    edge.post(NEAR, &format!("{path}/accept"), &report).await;
    let question = with(&with(&report, "question", json!("Which plan?")), "for", json!("approval"));
    edge.post(NEAR, &format!("{path}/question"), &question).await;
    let (status, overview) = edge.get(USER, "/v1/overview").await;
    assert_eq!(status, 200, "{overview}");
    assert_eq!(overview["states"], json!({ "waiting": 1, "open": 1 }));
    assert_eq!(overview["needs"], json!({ "approval": 1 }));
    assert_eq!(
        overview["ended"],
        json!({ "window": "1h", "completed": 0, "failed": 0, "canceled": 0, "partial": false })
    );
    assert_eq!((&overview["agents"]["known"], &overview["agents"]["present"]), (&json!(1), &json!(1)));
    let award = &overview["awards"][0];
    assert_eq!(
        (&award["task_id"], &award["agent_id"], &award["kind"]),
        (&json!(a), &json!("near"), &json!("support.triage"))
    );
    assert_eq!((&award["offers_in_all"], &award["offers"][0]["agent_id"]), (&json!(1), &json!("near")));
    assert_eq!(overview["health"]["status"], "ready");
    let (_, other) = edge.get(As::User("elsewhere"), "/v1/overview").await;
    assert_eq!((&other["states"], &other["awards"]), (&json!({}), &json!([])));
    assert_eq!(edge.get(USER, "/v1/overview?org=elsewhere").await.0, 403);
    assert_eq!(edge.get(As::Service, "/v1/overview?org=demo").await.1["org"], "demo");
    assert_eq!(edge.get(As::Anon, "/v1/overview").await.0, 403);
    edge.stop().await;
}

#[tokio::test]
async fn explanation_has_the_times_and_the_weights_of_a_round() {
    let edge = Edge::start().await;
    let body = json!({
        "kind": "x", "requires": ["work"],
        "policy": { "award": "weighted", "weights": { "cost": 3, "confidence": 1 } },
    });
    let (_, made) = edge.post(USER, "/v1/tasks", &body).await;
    let task = made["task"]["id"].as_str().unwrap().to_owned();
    let (path, report) = edge.win(&task).await;
    edge.post(NEAR, &format!("{path}/accept"), &report).await;
    let (_, why) = edge.get(USER, &format!("/v1/tasks/{task}/why")).await;
    let round = &why["rounds"][0];
    assert_eq!(
        round["weights"],
        json!({ "cost": 3, "speed": 0, "confidence": 1, "load": 0, "reputation": 0 })
    );
    let (offer, award, attempt) = (&round["offers"][0], &round["awards"][0], &why["attempts"][0]);
    let at = |value: &Value| {
        value
            .as_str()
            .unwrap_or_else(|| panic!("{value} in {why:#}"))
            .parse::<chrono::DateTime<chrono::Utc>>()
            .unwrap()
    };
    let times = [&round["announced_at"], &offer["offered_at"], &round["closed_at"]].map(at);
    assert!(times.is_sorted(), "{times:?}");
    assert!(at(&round["bids_close_at"]) > times[0] && at(&offer["valid_until"]) > times[1]);
    assert_eq!((&award["epoch"], &award["agent_id"]), (&json!(1), &json!("near")));
    assert_eq!(award["assignment_id"], attempt["assignment_id"]);
    assert!(at(&attempt["lease_until"]) > at(&attempt["started_at"]));
    let score = &offer["score"];
    let part = |name: &str| score[name].as_i64().unwrap();
    assert_eq!(
        part("total"),
        (3 * part("cost") + part("confidence")) / 4,
        "the segments add up to the total"
    );
    edge.stop().await;
}

#[tokio::test]
async fn lines_of_tasks_that_need_a_person_say_what_for() {
    let edge = Edge::start().await;
    edge.request_kind("runs", "work").await;
    let asked = edge.request_kind("asks", "work").await;
    let (path, report) = edge.win(&asked).await;
    edge.post(NEAR, &format!("{path}/accept"), &report).await;
    let question = with(&with(&report, "question", json!("How much?")), "for", json!("budget"));
    edge.post(NEAR, &format!("{path}/question"), &question).await;
    let body = json!({
        "kind": "chosen", "requires": ["work"], "policy": { "award": "requester", "choose_within": "1h" },
    });
    let (_, made) = edge.post(USER, "/v1/tasks", &body).await;
    let chosen = made["task"]["id"].as_str().unwrap().to_owned();
    edge.event(&chosen, "announced").await;
    for (query, expected) in [
        ("&needs=input,approval,budget,choice", vec![&chosen, &asked]),
        ("&needs=choice", vec![&chosen]),
        ("&needs=budget&state=waiting", vec![&asked]),
        ("&needs=input", vec![]),
        ("&needs=choice&state=completed", vec![]),
    ] {
        let expected: Vec<String> = expected.into_iter().cloned().collect();
        assert_eq!(edge.ids(query).await, expected, "{query}");
    }
    let lines = edge.lines("").await;
    let needs: Vec<&Value> = lines["tasks"].as_array().unwrap().iter().map(|line| &line["needs"]).collect();
    assert_eq!(needs, [&json!("choice"), &json!("budget"), &Value::Null]);
    let (_, overview) = edge.get(USER, "/v1/overview").await;
    assert_eq!(overview["needs"], json!({ "choice": 1, "budget": 1 }));
    assert_eq!(edge.get(USER, &format!("/v1/tasks/{chosen}/why")).await.1["award"], "requester");
    // The choice is recorded with its author.
    let offer = json!({ "round": 1, "cost": 5, "eta_ms": 10, "confidence": 0.9 });
    assert_eq!(edge.post(NEAR, &format!("/v1/tasks/{chosen}/offers"), &offer).await.0, 202);
    let choice = json!({ "agent_id": "near" });
    assert_eq!(edge.post(As::Service, &format!("/v1/tasks/{chosen}/choose"), &choice).await.0, 202);
    assert_eq!(edge.event(&chosen, "chosen").await["body"]["by"], "service");
    edge.stop().await;
}

#[tokio::test]
async fn tree_of_a_task_has_its_parts_and_what_they_used() {
    let edge = Edge::start().await;
    let whole = edge.request_kind("whole", "work").await;
    let (path, report) = edge.win(&whole).await;
    edge.post(NEAR, &format!("{path}/accept"), &report).await;
    let wish = with(&report, "task", json!({ "kind": "part", "requires": ["nothing"] }));
    let (status, part) = edge.post(NEAR, &format!("{path}/request"), &wish).await;
    assert_eq!(status, 201, "{part}");
    let part = part["task"]["id"].as_str().unwrap();
    let done = with(&with(&report, "result", json!(1)), "usage", json!({ "tokens": 7, "microdollars": 40 }));
    assert_eq!(edge.post(NEAR, &format!("{path}/result"), &done).await.0, 200);
    edge.request_kind("other", "nothing").await;
    for id in [&whole, part] {
        let (status, tree) = edge.get(USER, &format!("/v1/tasks/{id}/tree")).await;
        assert_eq!((status, &tree["more"]), (200, &json!(false)), "{tree}");
        let shown: Vec<_> = tree["tasks"].as_array().unwrap().iter().map(|line| &line["id"]).collect();
        assert_eq!(shown, [&json!(part), &json!(whole)]);
        assert_eq!(
            (&tree["tasks"][0]["parent_id"], &tree["tasks"][0]["depends_on"]),
            (&json!(whole), &json!([]))
        );
        let used = |at: usize| tree["tasks"][at]["microdollars"].as_f64();
        assert_eq!((used(0), used(1)), (Some(0.0), Some(40.0)), "{tree}");
    }
    let (status, hidden) = edge.get(As::User("elsewhere"), &format!("/v1/tasks/{part}/tree")).await;
    assert_eq!((status, &hidden["code"]), (404, &json!("unknown_task")));
    edge.stop().await;
}
