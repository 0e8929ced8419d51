//! Trying the filter of a wake: rights, errors, and that nothing is changed.
use super::{As, Edge, NEAR};
use convoke::{agent::Definition, auth::DashboardRole};
use reqwest::Method;
use serde_json::{Value, json};

const USER: As = As::User("demo");
const PATH: &str = "/v1/triggers/triage%230/try";
const AGENT: &str = r#"
    id = "triage"
    org = "demo"
    [run]
    kind = "remote"
"#;
const TABLE: &str = "create table public.tried (id int8 primary key, priority int4, title text)";

impl Edge {
    async fn trial(&self, bearer: &str, body: &Value) -> (u16, Value) {
        self.act(bearer, Method::POST, PATH, body).await
    }
}

/// A daemon whose agent `triage` has these wakes.
async fn with_wakes(wakes: &str) -> Edge {
    let agent: Definition = toml::from_str(&format!("{AGENT}{wakes}")).unwrap();
    Edge::start_with_agents(|_| (), vec![agent]).await
}

#[tokio::test]
async fn admins_try_the_filter_of_a_wake_and_it_changes_nothing() {
    let wakes = r#"
        [[wake]]
        table = "tried"
        filter = "priority=gte.3,title=neq.test"
        request = { kind = "support", requires = ["work"], input = { subject = "{{ new.title }}" } }
    "#;
    let edge = with_wakes(wakes).await;
    let client = edge.parts.database.client().await.unwrap();
    client.batch_execute(TABLE).await.unwrap();
    let admin = edge.bearer_as(DashboardRole::Admin).await;

    let (status, woken) = edge.trial(&admin, &json!({ "row": { "priority": 4, "title": "Fire" } })).await;
    assert_eq!(status, 200, "{woken}");
    assert_eq!((&woken["outcome"], &woken["event"]), (&json!("wakes"), &json!("INSERT")), "{woken}");
    assert_eq!(
        (&woken["request"]["kind"], &woken["request"]["input"]),
        (&json!("support"), &json!({ "subject": "Fire" }))
    );
    let (_, excluded) =
        edge.trial(&admin, &json!({ "event": "UPDATE", "row": { "priority": "2", "title": "Fire" } })).await;
    assert_eq!(excluded["outcome"], "excluded");
    assert_eq!(
        excluded["conditions"],
        json!([
            { "condition": "priority=gte.3", "holds": false, "columns": ["priority"], "values": { "priority": "2" } },
            { "condition": "title=neq.test", "holds": true, "columns": ["title"], "values": { "title": "Fire" } },
        ])
    );
    let (_, triggers) = edge.get(USER, "/v1/triggers").await;
    assert_eq!(triggers["triggers"][0]["reads"], json!(["priority", "title"]), "what a person fills in");
    for rows in ["convoke.tasks", "convoke.events where task_id is not null", "public.tried"] {
        let found = client.query(&format!("select 1 from {rows}"), &[]).await.unwrap();
        assert!(found.is_empty(), "{rows}: a trial changes nothing");
    }

    for (body, detail) in [
        (json!({ "row": { "urgency": 1 } }), "\"urgency\""),
        (json!({ "row": { "priority": "high" } }), "row.priority: the value is none of type integer"),
        (json!({ "row": { "priority": [1] } }), "row.priority"),
        (json!({ "row": {}, "event": "TRUNCATE" }), "TRUNCATE has no row"),
        (json!({ "row": {}, "event": "MERGE" }), "event"),
        (json!({ "row": [] }), "row"),
        (json!({}), "row"),
        (json!({ "row": {}, "rows": [] }), "rows"),
        (json!({ "row": { "title": "x".repeat(300_000) } }), "larger than"),
        (
            json!({ "row": (0..300).map(|n| (format!("c{n}"), json!(n))).collect::<serde_json::Map<_, _>>() }),
            "at most",
        ),
    ] {
        let (status, refused) = edge.trial(&admin, &body).await;
        let told = refused["detail"].as_str().unwrap_or_default();
        assert!(status == 400 && told.contains(detail), "{detail}: {status} {refused}");
    }
    client.batch_execute("alter table public.tried drop column title").await.unwrap();
    let (status, unfit) = edge.trial(&admin, &json!({ "row": {} })).await;
    assert_eq!((status, &unfit["code"]), (422, &json!("invalid_wake")), "{unfit}");
    assert!(unfit["detail"].as_str().unwrap().contains("invalid column for filter title"), "{unfit}");
    edge.stop().await;
}

#[tokio::test]
async fn filters_are_tried_by_admins_of_the_org_alone() {
    let edge = with_wakes("[[wake]]\ntable = \"tried\"\nrequest = { kind = \"support\" }\n").await;
    let admin = edge.bearer_as(DashboardRole::Admin).await;
    let body = json!({ "row": {} });
    let (status, missing) = edge.trial(&admin, &body).await;
    assert_eq!(status, 422, "{missing}");
    assert!(missing["detail"].as_str().unwrap().contains("there is no table public.tried"), "{missing}");
    edge.parts.database.client().await.unwrap().batch_execute(TABLE).await.unwrap();
    assert_eq!(edge.trial(&admin, &body).await.1["outcome"], "wakes", "a wake without a filter");
    for wake in ["triage%231", "triage", "near%230"] {
        let (status, unknown) =
            edge.act(&admin, Method::POST, &format!("/v1/triggers/{wake}/try"), &body).await;
        assert_eq!((status, &unknown["code"]), (404, &json!("unknown_wake")), "{wake}");
    }
    assert_eq!(edge.act(&admin, Method::POST, &format!("{PATH}?org=elsewhere"), &body).await.0, 403);
    for role in [DashboardRole::Viewer, DashboardRole::Operator] {
        let bearer = edge.bearer_as(role).await;
        assert_eq!(edge.trial(&bearer, &body).await.0, 403, "{role:?}");
    }
    for (who, status) in [(USER, 403), (NEAR, 403), (As::Anon, 403), (As::NoToken, 401)] {
        assert_eq!(edge.post(who, PATH, &body).await.0, status);
    }
    for (org, status) in [("demo", 200), ("elsewhere", 404)] {
        assert_eq!(edge.post(As::Service, &format!("{PATH}?org={org}"), &body).await.0, status, "{org}");
    }
    edge.stop().await;
}
