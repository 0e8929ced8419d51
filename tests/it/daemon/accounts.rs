//! The accounts behind models: all agents share one queue, and people see it.
use super::{Running, config, fresh, soon};
use crate::{
    agent::{
        http::{Reply, Server, reply},
        llm::completion,
    },
    cli::convoke_in,
};
use convoke::{
    agent::Definition,
    auth::{MintRequest, Role, mint},
    clock::Clock,
    id::TaskId,
    llm::ProviderConfig,
    task::{Request, TaskState},
};
use serde_json::{Value, json};
use std::time::Duration;

/// Three agents whose models have one account with one place.
struct Team {
    running: Running,
    http: reqwest::Client,
    _data: tempfile::TempDir,
    db: crate::support::TestDb,
}

impl Team {
    async fn start(model: &Server) -> Self {
        let (db, data) = fresh().await;
        let mut config = config(&db, data.path());
        let provider = ProviderConfig {
            base_url: format!("{}/v1/", model.address),
            account: Some("team".into()),
            requests_per_minute: None,
            tokens_per_minute: None,
            concurrent: Some(1),
            microdollars_per_day: None,
        };
        config.llm.providers.insert("local".into(), provider);
        let agent = |id: &str| -> Definition {
            toml::from_str(&format!(
                "id = \"{id}\"\norg = \"demo\"\ncapabilities = [\"{id}\"]\n[run]\nkind = \"llm\"\nmodel = \"m\"\n\
                 base_url = \"{}/v1\"",
                model.address
            ))
            .unwrap()
        };
        let running = Running::start_with(config, vec![agent("one"), agent("two"), agent("three")]).await;
        Self { running, http: reqwest::Client::new(), _data: data, db }
    }

    /// Requests a task for one of the agents.
    async fn request(&self, capability: &str) -> TaskId {
        self.request_at(capability, 0).await
    }

    async fn request_at(&self, capability: &str, priority: i16) -> TaskId {
        let body = json!({ "kind": "work", "requires": [capability], "input": capability, "priority": priority,
            "policy": { "attempts_max": 1, "confirm": "1min" } });
        let (org, wish): (_, Request) = ("demo".parse().unwrap(), serde_json::from_value(body).unwrap());
        self.running.parts.tasks.request(&org, "test", wish).await.unwrap().task.id
    }

    async fn in_state(&self, task: TaskId, state: TaskState) {
        soon("the state of the task", async {
            while self.running.parts.tasks.get(task).await.unwrap().state != state {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        })
        .await;
    }

    async fn get(&self, path: &str, role: Role) -> (u16, String) {
        let request = MintRequest { ttl: Duration::from_secs(60), ..MintRequest::new(role) };
        let token = mint(&self.running.parts.keys, &request, Clock::System.now()).unwrap();
        let url = format!("http://{}{path}", self.running.parts.addr);
        let answer = self.http.get(url).bearer_auth(token).send().await.unwrap();
        (answer.status().as_u16(), answer.text().await.unwrap())
    }

    /// What `convoke doctor` finds about the accounts, with its exit code.
    async fn doctor(&self) -> (Option<i32>, Vec<Value>) {
        let request = MintRequest { ttl: Duration::from_secs(60), ..MintRequest::new(Role::ServiceRole) };
        let token = mint(&self.running.parts.keys, &request, Clock::System.now()).unwrap();
        let (url, database) = (format!("http://{}", self.running.parts.addr), self.db.url.clone());
        // The daemon of this process must go on meanwhile.
        let doctor = tokio::task::spawn_blocking(move || {
            let folder = tempfile::tempdir().unwrap();
            let environment =
                [("CONVOKE_DATABASE__URL", &*database), ("CONVOKE_URL", &*url), ("CONVOKE_TOKEN", &*token)];
            convoke_in(folder.path(), &["doctor", "--json"], &environment)
        });
        let output = doctor.await.unwrap();
        let told: Value = serde_json::from_slice(&output.stdout).unwrap();
        let findings = told["findings"].as_array().unwrap().iter();
        (output.status.code(), findings.filter(|finding| finding["name"] == "models").cloned().collect())
    }

    async fn activity(&self, agent: &str) -> Value {
        let room = convoke::hub::Room::public(convoke::id::Topic::org(&"demo".parse().unwrap()));
        let state = self.running.parts.tracker.snapshot(room).await;
        let state: Value = serde_json::from_slice(&state).unwrap();
        state[agent]["metas"][0]["activity"].clone()
    }
}

#[tokio::test]
async fn agents_of_one_account_wait_for_each_other_and_the_wait_is_shown() {
    let model = Server::start([Reply::Hang, completion("{\"n\": 1}")]).await;
    let team = Team::start(&model).await;
    let first = team.request("one").await;
    soon("the first request", async {
        while model.seen().is_empty() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
    let second = team.request("two").await;
    soon("the wait in the presence", async {
        while team.activity("two").await != "waiting for team (0 before it)" {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
    let (status, accounts) = team.get("/v1/providers", Role::ServiceRole).await;
    let accounts: Value = serde_json::from_str(&accounts).unwrap();
    let account = json!({ "account": "team", "waiting": 1, "under_way": 1, "concurrent": 1,
        "requests_per_minute": null, "tokens_per_minute": null, "rate_limited": 0, "passed_over": 0, "paused_seconds": null,
        "open_breakers": [], "limit_ignored": [] });
    assert_eq!((status, accounts), (200, json!({ "accounts": [account] })));
    assert_eq!(team.get("/v1/providers", Role::Authenticated).await.0, 403);
    let (_, metrics) = team.get("/metrics", Role::ServiceRole).await;
    assert!(metrics.contains("convoke_llm_waiting{account=\"team\"} 1\n"), "{metrics}");
    assert!(metrics.contains("convoke_llm_rate_limited_total{account=\"team\"} 0\n"), "{metrics}");

    let (_, found) = team.doctor().await;
    let told = (&found[0]["ok"], &found[0]["found"]);
    assert_eq!(told, (&json!(true), &json!("team: 1 of 1 requests under way, 1 wait")));

    team.running.parts.tasks.cancel(first, "enough").await.unwrap();
    team.in_state(second, TaskState::Completed).await;
    assert_eq!(model.seen().len(), 2);
    team.running.stop().await;
}

#[tokio::test]
async fn task_of_higher_priority_is_asked_first() {
    let model = Server::start([Reply::Hang, completion("{\"n\": 1}")]).await;
    let team = Team::start(&model).await;
    let first = team.request("one").await;
    let waiting = |count: u64| {
        let team = &team;
        soon("the requests that wait", async move {
            loop {
                let (_, accounts) = team.get("/v1/providers", Role::ServiceRole).await;
                let accounts: Value = serde_json::from_str(&accounts).unwrap();
                let account = &accounts["accounts"][0];
                if account["waiting"] == count && account["under_way"] == 1 {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        })
    };
    waiting(0).await;
    let low = team.request("two").await;
    waiting(1).await;
    let high = team.request_at("three", 50).await;
    waiting(2).await;
    team.running.parts.tasks.cancel(first, "enough").await.unwrap();
    team.in_state(low, TaskState::Completed).await;
    team.in_state(high, TaskState::Completed).await;
    let asked: Vec<String> =
        model.seen().iter().map(|(_, body)| String::from_utf8(body.to_vec()).unwrap()).collect();
    assert!(asked.len() == 3 && asked[1].contains("three") && asked[2].contains("two"), "{asked:?}");
    team.running.stop().await;
}

#[tokio::test]
async fn refused_key_is_shown_on_health_without_names_and_by_the_doctor_with_them() {
    let model = Server::start([reply(401, "{}")]).await;
    let team = Team::start(&model).await;
    let task = team.request("one").await;
    team.in_state(task, TaskState::Failed).await;
    soon("the state of the models", async {
        loop {
            let (_, health) = team.get("/health", Role::Anon).await;
            let health: Value = serde_json::from_str(&health).unwrap();
            if health["parts"]["models"]["state"] == "degraded" {
                let detail = health["parts"]["models"]["detail"].as_str().unwrap().to_owned();
                assert!(detail.starts_with("1 of 1 accounts hold requests"), "{detail}");
                assert!(!health.to_string().contains("team"), "{health}");
                return;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    })
    .await;
    let (code, found) = team.doctor().await;
    assert_eq!((code, &found[0]["ok"]), (Some(1), &json!(false)), "{found:?}");
    let told = "team: 0 of 1 requests under way, 0 wait; requests to m are held";
    assert!(found[0]["found"] == told && found[0]["remedy"].is_string(), "{found:?}");
    team.running.stop().await;
}

#[tokio::test]
async fn limits_of_the_headers_are_learned() {
    let Reply::Say(status, _, body) = completion("{\"n\": 1}") else { unreachable!() };
    let headers = vec![
        ("x-ratelimit-limit-requests", "500".to_owned()),
        ("x-ratelimit-remaining-requests", "499".to_owned()),
        ("x-ratelimit-reset-requests", "120ms".to_owned()),
        ("x-ratelimit-limit-tokens", "30000".to_owned()),
        ("x-ratelimit-remaining-tokens", "29000".to_owned()),
        ("x-ratelimit-reset-tokens", "2s".to_owned()),
    ];
    let model = Server::start([Reply::Say(status, headers, body)]).await;
    let team = Team::start(&model).await;
    let task = team.request("one").await;
    team.in_state(task, TaskState::Completed).await;
    let (_, accounts) = team.get("/v1/providers", Role::ServiceRole).await;
    let accounts: Value = serde_json::from_str(&accounts).unwrap();
    let account = &accounts["accounts"][0];
    assert_eq!(
        (&account["requests_per_minute"], &account["tokens_per_minute"]),
        (&json!(500.0), &json!(30_000.0))
    );
    team.running.stop().await;
}
