//! Hosted agents that ask questions, request parts and run into time limits, on a whole daemon.
use super::{config, fresh, soon};
use crate::support::PATIENCE;
use convoke::{
    agent::{Agent, Definition, Finished, Job},
    app::{Daemon, Parts},
    id::{OrgId, TaskId},
    task::{Failure, Filter, Question, Request, Task, TaskState, Usage, WaitFor},
};
use serde_json::json;
use std::sync::Arc;
use tokio_util::sync::CancellationToken;

pub struct Hosted {
    pub parts: Parts,
    stop: CancellationToken,
    running: tokio::task::JoinHandle<anyhow::Result<()>>,
    db: crate::support::TestDb,
    _data: tempfile::TempDir,
}

impl Hosted {
    #[expect(clippy::disallowed_methods, reason = "the daemon under test runs beside the test")]
    pub async fn start(definitions: Vec<Definition>, code: Vec<(Definition, Arc<dyn Agent>)>) -> Self {
        let (db, data) = fresh().await;
        let builder = Daemon::builder(config(&db, data.path())).definitions(definitions);
        let builder = code.into_iter().fold(builder, |builder, (d, agent)| builder.agent(d, agent));
        let daemon = builder.build().await.unwrap();
        let (parts, stop) = (daemon.parts().clone(), CancellationToken::new());
        let running = tokio::spawn(daemon.run(stop.clone()));
        parts.ready(PATIENCE).await.unwrap();
        Self { parts, stop, running, db, _data: data }
    }

    pub async fn request(&self, requires: &str) -> TaskId {
        let wish = Request { kind: "k".into(), requires: vec![requires.into()], ..Request::default() };
        let org = OrgId::try_from("demo").unwrap();
        self.parts.tasks.request(&org, "test", wish).await.unwrap().task.id
    }

    pub async fn in_state(&self, id: TaskId, state: TaskState) -> Task {
        let mut changed = self.parts.tasks.changed();
        soon("the state", async {
            loop {
                let task = self.parts.tasks.get(id).await.unwrap();
                if task.state == state {
                    return task;
                }
                assert!(!task.state.is_final(), "{task:?}");
                changed.changed().await.unwrap();
            }
        })
        .await
    }

    pub async fn stop(self) {
        let client = self.db.client().await;
        for (name, query) in convoke::task::INVARIANTS {
            let rows = client.query(*query, &[]).await.unwrap();
            assert!(rows.is_empty(), "{name} is broken by {rows:?}");
        }
        self.stop.cancel();
        self.running.await.unwrap().unwrap();
    }
}

pub fn command(id: &str, capability: &str, script: &str, more: &str) -> Definition {
    let text = format!(
        "id = \"{id}\"\norg = \"demo\"\ncapabilities = [\"{capability}\"]\n[run]\nkind = \"command\"\nenv = [\"PATH\"]\n{more}"
    );
    let mut definition: Definition = toml::from_str(&text).unwrap();
    definition.run.argv = Some(vec!["/bin/sh".into(), "-c".into(), script.into()]);
    definition
}

#[tokio::test]
async fn command_requests_a_part_with_the_token_of_its_job() {
    let script = r#"body="{\"task_id\":\"$CONVOKE_TASK_ID\",\"epoch\":$CONVOKE_EPOCH,
            \"task\":{\"kind\":\"part\",\"requires\":[\"small\"]}}"
        curl -fsS -H "Authorization: Bearer $CONVOKE_TOKEN" -H 'Content-Type: application/json' \
            -d "$body" "$CONVOKE_URL/v1/assignments/$CONVOKE_ASSIGNMENT_ID/request""#;
    let worker = command("big", "big", script, "");
    let small = command("small", "small", "cat > /dev/null; echo 1", "");
    let hosted = Hosted::start(vec![worker, small], vec![]).await;
    let whole = hosted.request("big").await;
    let done = hosted.in_state(whole, TaskState::Completed).await;
    let told = done.result.unwrap();
    let part: TaskId = told["task"]["id"].as_str().unwrap().parse().unwrap();
    let part = hosted.in_state(part, TaskState::Completed).await;
    assert_eq!((part.parent_id, part.root_id), (Some(whole), Some(whole)));
    assert_eq!(part.requester.to_string(), format!("agent:{}/big", part.org));
    hosted.stop().await;
}

#[tokio::test]
async fn command_asks_and_continues_with_the_answer() {
    let script = r#"cat > /dev/null
        if [ -n "$CONVOKE_ANSWERS" ]; then printf '{"answers": %s, "from": %s}' "$CONVOKE_ANSWERS" "$CONVOKE_CHECKPOINT"; exit 0; fi
        echo '{"checkpoint": {"page": 7}}' >&2
        echo '{"question": "which page?"}' >&2"#;
    let hosted = Hosted::start(vec![command("asks", "ask", script, "")], vec![]).await;
    let task = hosted.request("ask").await;
    let waiting = hosted.in_state(task, TaskState::Waiting).await;
    assert_eq!(waiting.question.unwrap()["question"], "which page?");
    hosted.parts.tasks.answer(task, "test", json!("nine")).await.unwrap();
    let done = hosted.in_state(task, TaskState::Completed).await;
    let result = done.result.unwrap();
    assert_eq!((&result["answers"][0]["answer"], &result["from"]), (&json!("nine"), &json!({ "page": 7 })));
    assert_eq!(done.attempt, 1);
    hosted.stop().await;
}

/// Requests a part, waits for consent once it is there, and ends when it has it.
struct Careful;

#[async_trait::async_trait]
impl Agent for Careful {
    async fn run(&self, job: Job) -> Result<Finished, Failure> {
        if let Some(answer) = job.start.answers.first() {
            return Ok(json!({ "consent": answer["answer"] }).into());
        }
        let wish = Request { kind: "part".into(), requires: vec!["missing".into()], ..Request::default() };
        job.request(wish).await.map_err(|error| Failure {
            message: error.to_string(),
            retryable: false,
            outage: false,
            usage: Usage::default(),
        })?;
        Ok(Finished::Waits(Question {
            wait_for: WaitFor::Approval,
            question: "may I?".into(),
            checkpoint: None,
            usage: Usage::default(),
            calls: Vec::new(),
            approvers: Vec::new(),
        }))
    }
}

#[tokio::test]
async fn rust_agent_asks_and_its_parts_are_canceled_with_the_task() {
    let agent = || (super::definition("careful", ""), Arc::new(Careful) as Arc<dyn Agent>);
    let hosted = Hosted::start(vec![], vec![agent()]).await;
    let (goes_on, canceled) = (hosted.request("work").await, hosted.request("work").await);
    for task in [goes_on, canceled] {
        hosted.in_state(task, TaskState::Waiting).await;
    }
    hosted.parts.tasks.answer(goes_on, "test", json!(true)).await.unwrap();
    let done = hosted.in_state(goes_on, TaskState::Completed).await;
    assert_eq!(done.result, Some(json!({ "consent": true })));
    hosted.parts.tasks.cancel(canceled, "enough").await.unwrap();
    let parts =
        hosted.parts.tasks.list(&Filter { kind: Some("part".into()), ..Filter::default() }).await.unwrap();
    assert_eq!(parts.len(), 2);
    for part in parts {
        if part.parent_id == Some(canceled) {
            hosted.in_state(part.id, TaskState::Canceled).await;
        } else {
            assert_eq!(hosted.parts.tasks.get(part.id).await.unwrap().state, TaskState::Open);
        }
    }
    hosted.stop().await;
}

#[tokio::test]
async fn canceled_command_is_killed_with_its_descendants() {
    let dir = tempfile::tempdir().unwrap();
    let pids = dir.path().join("pids");
    let script = format!(
        "trap '' TERM; sleep 300 & echo $$ $! > {0}.tmp; mv {0}.tmp {0}; wait; sleep 300",
        pids.display()
    );
    let hosted = Hosted::start(vec![command("deaf", "deaf", &script, "")], vec![]).await;
    let task = hosted.request("deaf").await;
    let written = soon("the process", async {
        loop {
            match std::fs::read_to_string(&pids) {
                Ok(text) => return text,
                Err(_) => tokio::time::sleep(std::time::Duration::from_millis(10)).await,
            }
        }
    })
    .await;
    hosted.parts.tasks.cancel(task, "enough").await.unwrap();
    hosted.in_state(task, TaskState::Canceled).await;
    let alive = |pid: &str| {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        !matches!(stat.rsplit(") ").next().and_then(|rest| rest.chars().next()), None | Some('Z' | 'X'))
    };
    soon("the end of the processes", async {
        while written.split_whitespace().any(alive) {
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
    })
    .await;
    hosted.stop().await;
}

#[tokio::test]
async fn schedule_requests_its_tasks() {
    let more = "[[schedule]]\ncron = \"* * * * * *\"\n\
                request = { kind = \"tick\", requires = [\"tick\"], input = { at = \"{{ scheduled_at }}\" } }";
    let hosted = Hosted::start(vec![command("clock", "tick", "cat", more)], vec![]).await;
    let ticked = soon("two ticks", async {
        loop {
            let done = Filter { state: Some(TaskState::Completed), ..Filter::default() };
            let done = hosted.parts.tasks.list(&done).await.unwrap();
            if done.len() >= 2 {
                return done;
            }
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
    })
    .await;
    let times: std::collections::HashSet<_> =
        ticked.iter().map(|task| task.result.as_ref().unwrap()["at"].to_string()).collect();
    assert_eq!(times.len(), ticked.len());
    assert_eq!(ticked[0].requester.to_string(), "schedule:clock#schedule.0");
    hosted.stop().await;
}
