//! A database whose encoding lacks most characters: what it cannot hold is refused by that reason.
use super::{Running, config, definition, soon};
use crate::support::{PATIENCE, crypto, database_in};
use convoke::{
    agent::{Agent, Finished, Job},
    auth::{MintRequest, Role, mint},
    clock::Clock,
    db,
    task::{Failure, TaskState},
};
use serde_json::{Value, json};
use std::{sync::Arc, time::Duration};

/// Answers with characters of LATIN1, or with one that it lacks.
struct Poet;

#[async_trait::async_trait]
impl Agent for Poet {
    async fn run(&self, job: Job) -> Result<Finished, Failure> {
        let word = if job.input() == "odd" { "\u{1d11e}" } else { "caf\u{e9}" };
        Ok(json!({ "word": word }).into())
    }
}

#[tokio::test]
async fn characters_that_the_encoding_lacks_are_refused_by_that_reason() {
    crypto();
    let (db, folder) = (database_in("LATIN1").await, tempfile::tempdir().unwrap());
    let agent = (definition("poet", ""), Arc::new(Poet) as _);
    let daemon = Running::start(config(&db, folder.path()), vec![agent]).await;
    let org = "demo".try_into().unwrap();
    let mut ended = Vec::new();
    for input in ["odd", "plain"] {
        let request =
            json!({"kind": "k", "requires": ["work"], "input": input, "policy": {"attempts_max": 1}});
        let request = serde_json::from_value(request).unwrap();
        let task = daemon.parts.tasks.request(&org, "test", request).await.unwrap().task.id;
        ended.push((task, soon("its end", daemon.parts.tasks.wait(task, PATIENCE)).await.unwrap()));
    }
    let [(odd, failed), (_, done)] = &ended[..] else { panic!("{ended:?}") };
    assert_eq!(
        (failed.state, failed.state_reason.as_deref()),
        (TaskState::Failed, Some("attempts_exhausted"))
    );
    assert_eq!(done.state, TaskState::Completed);
    let sql = db.client().await;
    let events = "select string_agg(body::text, ' ') from convoke.events where task_id = $1::text::uuid";
    let told: String = sql.query_one(events, &[&odd.to_string()]).await.unwrap().get(0);
    assert!(told.contains("a character that the encoding of the database lacks"), "{told}");

    let key = MintRequest { ttl: Duration::from_secs(60), ..MintRequest::new(Role::ServiceRole) };
    let token = mint(&daemon.parts.keys, &key, Clock::System.now()).unwrap();
    let url = format!("http://{}/v1/tasks?org=demo", daemon.parts.addr);
    for member in ["kind", "input", "idempotency_key"] {
        let mut body = json!({"kind": "k", "requires": ["other"]});
        body[member] = json!("\u{1d11e}");
        let request = reqwest::Client::new().post(&url).bearer_auth(&token).body(body.to_string());
        let answer = request.send().await.unwrap();
        assert_eq!(answer.status(), 400, "{member}");
        let problem: Value = answer.json().await.unwrap();
        assert_eq!(problem["code"], "bad_request", "{problem}");
        assert!(problem.to_string().contains("encoding of the database lacks"), "{problem}");
    }

    let findings = db::inspect(&daemon.parts.database).await.unwrap();
    let encoding = findings.iter().find(|finding| finding.name == "encoding").unwrap();
    assert_eq!((encoding.ok, &*encoding.found), (false, "LATIN1"));
    assert!(encoding.remedy.is_some());
    daemon.stop().await;
}
