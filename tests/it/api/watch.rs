//! Reads about an org and the daemon over time: the event log, the past of metrics, agents with their offers, the checks
//! and the settings; and the sessions of the dashboard with their end.
use super::{As, Edge, NEAR, with};
use crate::support::PATIENCE;
use convoke::{
    auth::{DashboardRole, MintRequest, Role, mint},
    clock::Clock,
};
use reqwest::Method;
use serde_json::{Value, json};
use std::time::Duration;

const USER: As = As::User("demo");
const FOREIGN: As = As::User("elsewhere");

impl Edge {
    async fn feed(&self, query: &str) -> (Vec<Value>, Value) {
        let (status, feed) = self.get(USER, &format!("/v1/events{query}")).await;
        assert_eq!(status, 200, "{query}: {feed}");
        (feed["events"].as_array().unwrap().clone(), feed["next"].clone())
    }

    /// Runs a statement on the daemon's database.
    async fn sql(&self, statement: &str) {
        self.parts.database.client().await.unwrap().batch_execute(statement).await.unwrap();
    }
}

fn seqs(events: &[Value]) -> Vec<i64> {
    events.iter().map(|event| event["seq"].as_i64().unwrap()).collect()
}

fn types(events: &[Value]) -> Vec<&str> {
    events.iter().map(|event| event["type"].as_str().unwrap()).collect()
}

#[tokio::test]
async fn event_log_of_an_org_is_read_backwards_and_followed() {
    let edge = Edge::start().await;
    let task = edge.request(USER).await;
    edge.event(&task, "announced").await;
    edge.sql("insert into convoke.events (org, type) values ('elsewhere', 'noted')").await;
    let (all, next) = edge.feed("").await;
    assert_eq!((types(&all), &next), (vec!["announced", "requested"], &Value::Null), "the newest first");
    assert_eq!((&all[1]["task_id"], &all[1]["body"]["kind"]), (&json!(task), &json!("x")));
    let (newest, next) = edge.feed("?limit=1").await;
    assert_eq!(seqs(&newest), [all[0]["seq"].as_i64().unwrap()]);
    let (older, _) = edge.feed(&format!("?limit=1&before={next}")).await;
    assert_eq!(seqs(&older), [all[1]["seq"].as_i64().unwrap()]);

    // A tail: what is new, and what came within 5 seconds before, which the reader knows by its numbers.
    let (tail, next) = edge.feed("?after=0").await;
    assert_eq!(types(&tail), ["requested", "announced"], "the oldest first");
    edge.post(As::Service, &format!("/v1/tasks/{task}/cancel"), &json!({})).await;
    let (tail, after) = edge.feed(&format!("?after={next}")).await;
    let new: Vec<&Value> = tail.iter().filter(|event| event["seq"].as_i64() > next.as_i64()).collect();
    assert_eq!(new.iter().map(|event| &event["type"]).collect::<Vec<_>>(), ["cancel"], "{tail:?}");
    assert!(after.as_i64() >= new[0]["seq"].as_i64(), "{after}");
    // A number that commits later than a higher one is not missed.
    edge.sql(
        "select nextval(pg_get_serial_sequence('convoke.events', 'seq'));
         insert into convoke.events (org, type) values ('demo', 'late.second')",
    )
    .await;
    let (_, after) = edge.feed(&format!("?after={after}")).await;
    edge.sql(
        "insert into convoke.events (seq, org, type) overriding system value
         select seq - 1, 'demo', 'late.first' from convoke.events where type = 'late.second'",
    )
    .await;
    let (tail, _) = edge.feed(&format!("?after={after}&types=late.first,late.second")).await;
    assert_eq!(types(&tail), ["late.first", "late.second"]);
    assert_eq!(types(&edge.feed("?types=requested,canceled").await.0), ["requested"]);
    assert_eq!(edge.feed("?agent_id=near&types=requested").await.0, Vec::<Value>::new());
    edge.sql(
        "insert into convoke.events (org, type, body)
         select 'demo', 'long', jsonb_build_object('text', repeat('x', 5000))",
    )
    .await;
    let (long, _) = edge.feed("?types=long").await;
    assert_eq!(long[0]["body"], Value::Null, "a long body is left out");
    assert!(long[0]["body_bytes"].as_i64().unwrap() > 5000);

    assert_eq!(edge.get(FOREIGN, "/v1/events").await.1["events"].as_array().unwrap().len(), 1);
    for (query, status) in [
        ("?after=1&before=2", 400),
        ("?after=soon", 400),
        ("?limit=0", 400),
        ("?types=%00", 400),
        ("?agent_id=a%20b", 400),
        ("?color=red", 400),
        ("?org=elsewhere", 403),
    ] {
        assert_eq!(edge.get(USER, &format!("/v1/events{query}")).await.0, status, "{query}");
    }
    let many = vec!["x"; 101].join(",");
    assert_eq!(edge.get(USER, &format!("/v1/events?types={many}")).await.0, 400);
    assert_eq!(edge.get(As::Anon, "/v1/events").await.0, 403);
    edge.stop().await;
}

#[tokio::test]
async fn past_of_metrics_is_kept_for_charts() {
    let edge = Edge::start().await;
    edge.request(USER).await;
    let name = "convoke_tasks_requested_total";
    let series = loop {
        let (status, series) =
            edge.get(USER, &format!("/v1/series?names={name},convoke_wal_lag_bytes")).await;
        assert_eq!(status, 200, "{series}");
        let last = series["values"][name].as_array().unwrap().last().and_then(Value::as_f64);
        if last == Some(1.0) {
            break series;
        }
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    };
    let times = series["times"].as_array().unwrap();
    for (_, values) in series["values"].as_object().unwrap() {
        assert_eq!(values.as_array().unwrap().len(), times.len());
    }
    assert_eq!((&series["step_seconds"], series["values"].as_object().unwrap().len()), (&json!(1), 2));
    assert!(times.windows(2).all(|pair| pair[0].as_i64() < pair[1].as_i64()), "{times:?}");
    let (_, all) = edge.get(USER, "/v1/series?step=1m").await;
    assert_eq!((&all["step_seconds"], all["values"].as_object().unwrap().len()), (&json!(60), 30));
    // Every name is one that the daemon exposes.
    for (name, values) in all["values"].as_object().unwrap() {
        assert!(values[0].is_number(), "{name}: {values}");
    }
    let old = edge.get(USER, "/v1/series?from=2020-01-01T00:00:00Z").await.1;
    assert_eq!(old["step_seconds"], 60, "the finest step that may reach it");
    for query in ["?names=convoke_no_such", "?step=2s", "?from=soon", "?color=red"] {
        assert_eq!(edge.get(USER, &format!("/v1/series{query}")).await.0, 400, "{query}");
    }
    assert_eq!(edge.get(As::Anon, "/v1/series").await.0, 403);
    edge.stop().await;
}

#[tokio::test]
async fn lines_of_agents_have_what_they_promise_and_why_their_offers_lost() {
    let edge = Edge::start().await;
    let far = convoke::agent::Definition::new(
        "far".parse().unwrap(),
        "demo".parse().unwrap(),
        convoke::agent::Kind::Remote,
    );
    edge.parts.tasks.join_remote(far.capable(["work"]).profile(), None).await.unwrap();
    let task = edge.request(USER).await;
    edge.event(&task, "announced").await;
    let offer = |cost: i64| json!({ "round": 1, "cost_microdollars": cost, "eta_ms": 10, "confidence": 0.9 });
    let path = format!("/v1/tasks/{task}/offers");
    assert_eq!(edge.post(As::Agent("far", "demo"), &path, &offer(900)).await.0, 202);
    assert_eq!(edge.post(NEAR, &path, &offer(9)).await.0, 202);
    edge.event(&task, "awarded").await;
    // The commit is counted just after its event can be read.
    let agents = loop {
        let (status, lines) = edge.get(USER, "/v1/agents?view=line").await;
        assert_eq!(status, 200, "{lines}");
        if lines["agents"].to_string().contains("\"won\":1") {
            break lines["agents"].as_array().unwrap().clone();
        }
    };
    let line = |id: &str| agents.iter().find(|line| line["id"] == id).unwrap_or_else(|| panic!("no {id}"));
    assert_eq!(line("near")["offers"], json!({ "won": 1, "lost": {} }));
    assert_eq!(line("far")["offers"], json!({ "won": 0, "lost": { "cost": 1 } }));
    assert_eq!(
        (&line("far")["terms"]["computed"], &line("far")["definition_version"]),
        (&json!(false), &json!(1))
    );
    assert_eq!(line("near")["limits"]["output_bytes"], 1 << 20, "of its file");
    assert_eq!((&line("far")["limits"], &line("far")["problem"]), (&Value::Null, &Value::Null));
    assert_eq!(line("near")["slots_used"], 1);
    assert_eq!(agents.len(), 2, "none of another org");

    let (status, file) = edge.get(As::Service, "/v1/agents/near/definition").await;
    assert_eq!((status, &file["definition"]["run"]["kind"]), (200, &json!("remote")), "{file}");
    assert_eq!(file["hash"].as_str().unwrap().len(), 32);
    let operator = edge.bearer_as(DashboardRole::Operator).await;
    let read = async |path: &str| edge.act(&operator, Method::GET, path, &Value::Null).await;
    assert_eq!(read("/v1/agents/near/definition").await.0, 200);
    assert_eq!(read("/v1/agents/far/definition").await.1["code"], "no_definition");
    assert_eq!(read("/v1/agents/other/definition").await.1["code"], "unknown_agent", "of another org");
    for (who, status) in [(USER, 403), (FOREIGN, 404), (As::Anon, 403), (As::NoToken, 401)] {
        assert_eq!(edge.get(who, "/v1/agents/near/definition").await.0, status);
    }
    assert_eq!(edge.get(USER, "/v1/agents?view=whole").await.0, 400);
    edge.stop().await;
}

#[tokio::test]
async fn admins_check_the_daemon_and_read_its_settings_without_secrets() {
    let edge = Edge::start().await;
    let admin = edge.bearer_as(DashboardRole::Admin).await;
    let (status, checked) = edge.act(&admin, Method::GET, "/v1/doctor", &Value::Null).await;
    assert_eq!(status, 200, "{checked}");
    let findings = checked["findings"].as_array().unwrap();
    for name in ["wal_level", "replication_slot", "I1", "I7"] {
        let found = findings.iter().find(|finding| finding["name"] == name);
        assert_eq!(found.map(|finding| &finding["ok"]), Some(&json!(true)), "{name}: {checked}");
    }
    // One at a time, and the refused one gets a reason.
    let none = Value::Null;
    let at_once = |_: i32| edge.act(&admin, Method::GET, "/v1/doctor", &none);
    let answers = futures_util::future::join_all((0..8).map(at_once)).await;
    assert!(answers.iter().any(|(status, _)| *status == 200), "{answers:?}");
    for (status, answer) in answers {
        assert!(status == 200 || (status, &answer["code"]) == (409, &json!("conflict")), "{answer}");
    }

    let (status, settings) = edge.act(&admin, Method::GET, "/v1/settings", &Value::Null).await;
    assert_eq!((status, &settings["database"]["url"]), (200, &json!("set")), "{settings}");
    assert_eq!(settings["task"]["policy"]["bid_window"], "30s");
    let url = edge._db.config().url.unwrap();
    let url = secrecy::ExposeSecret::expose_secret(&url);
    assert!(!settings.to_string().contains(url), "{settings}");
    for path in ["/v1/doctor", "/v1/settings"] {
        assert_eq!(edge.get(As::Service, path).await.0, 200, "{path}");
        for role in [DashboardRole::Viewer, DashboardRole::Operator] {
            let bearer = edge.bearer_as(role).await;
            assert_eq!(edge.act(&bearer, Method::GET, path, &Value::Null).await.0, 403, "{role:?} {path}");
        }
        for (who, status) in [(USER, 403), (NEAR, 403), (As::Anon, 403), (As::NoToken, 401)] {
            assert_eq!(edge.get(who, path).await.0, status, "{path}");
        }
    }
    edge.stop().await;
}

#[tokio::test]
async fn snapshot_and_hint_have_the_same_version() {
    let edge = Edge::start().await;
    let task = edge.request(USER).await;
    let (path, report) = edge.win(&task).await;
    let version = async || edge.get(USER, &format!("/v1/tasks/{task}")).await.1["version"].as_i64().unwrap();
    let awarded = version().await;
    assert_eq!(edge.post(NEAR, &format!("{path}/accept"), &report).await.0, 200);
    let running = version().await;
    assert!(running > awarded, "{awarded} {running}");
    let done = with(&report, "result", json!(1));
    let (_, update) = edge.post(NEAR, &format!("{path}/result"), &done).await;
    assert_eq!(update["version"].as_i64(), Some(version().await), "{update}");
    assert!(update["version"].as_i64() > Some(running), "{update}");
    let (_, line) = edge.get(USER, &format!("/v1/tasks?view=line&ids={task}")).await;
    assert_eq!(line["tasks"][0]["version"], update["version"]);
    let (_, overview) = edge.get(USER, "/v1/overview").await;
    assert_eq!(overview["awards"][0]["version"], update["version"], "{overview}");
    assert_eq!(overview["n"], Value::Null, "nobody follows the digests");
    edge.stop().await;
}

#[tokio::test]
async fn stream_of_events_ends_when_its_token_expires() {
    let edge = Edge::start().await;
    let task = edge.request(USER).await;
    let (org, ttl) = (Some("demo".parse().unwrap()), Duration::from_secs(8));
    let request = MintRequest { org, ttl, ..MintRequest::new(Role::Authenticated) };
    let token = mint(&edge.parts.keys, &request, Clock::System.now()).unwrap();
    let stream = |token: String| {
        let url = format!("http://{}/v1/tasks/{task}/events", edge.parts.addr);
        edge.http.get(url).bearer_auth(token).header("accept", "text/event-stream").send()
    };
    let answer = stream(token.clone()).await.unwrap();
    assert_eq!(answer.status(), 200);
    // The task stays open, so nothing else ends it.
    let said = tokio::time::timeout(PATIENCE, answer.text()).await.expect("it ends").unwrap();
    assert!(said.contains("id: ") && !said.contains("event: end"), "{said}");
    assert_eq!(stream(token).await.unwrap().status(), 401, "the token has expired, and not before");
    edge.stop().await;
}

#[tokio::test]
async fn agent_shows_nothing_of_a_file_of_another_org_with_its_id() {
    let edge = Edge::start().await;
    let line = async |who: As| {
        let (status, lines) = edge.get(who, "/v1/agents?view=line").await;
        assert_eq!(status, 200, "{lines}");
        lines["agents"].as_array().unwrap().iter().find(|line| line["id"] == "near").cloned()
    };
    assert!(line(USER).await.unwrap()["limits"].is_object(), "of its own file");
    // As another daemon with other files registers it.
    edge.sql("update convoke.agents set org = 'elsewhere' where id = 'near'").await;
    assert!(line(USER).await.is_none());
    let foreign = line(FOREIGN).await.unwrap();
    for part in ["limits", "spent_last_hour", "problem"] {
        assert_eq!(foreign[part], Value::Null, "{part}");
    }
    edge.stop().await;
}
