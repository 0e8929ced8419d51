//! Agents: each kind of work against real processes and servers, and whole jobs against a real database.
mod command;
mod endpoints;
mod fleet;
pub mod http;
pub mod llm;
mod supervisor;
mod wakes;

use convoke::{
    agent::{
        Definition, Env, Finished, Job, Registry,
        kind::{RunnerDeps, runner},
    },
    id::{AssignmentId, Epoch, OrgId, TaskId},
    llm::Models,
    task::{AssignmentKey, Failure, Progress, Start},
};
use serde_json::Value;
use std::{sync::Arc, time::Duration};
use tokio_util::sync::CancellationToken;

/// A definition from TOML, with a folder of its own if there is one.
pub fn definition(text: &str) -> Definition {
    toml::from_str(text).unwrap()
}

/// The start of a job with this input.
pub fn start(input: Value) -> Start {
    Start {
        budgeted: false,
        priority: 0,
        key: AssignmentKey {
            task_id: TaskId::generate(),
            assignment_id: AssignmentId::generate(),
            epoch: Epoch(1),
        },
        org: OrgId::try_from("demo").unwrap(),
        kind: "test.work".into(),
        input,
        attempt: 1,
        lease: Duration::from_secs(30),
        attempt_timeout: Duration::from_secs(600),
        checkpoint: None,
        deadline: None,
        answers: Vec::new(),
        rejected: None,
        traceparent: None,
        result_schema: None,
    }
}

/// One job of one agent, without a daemon around it.
pub struct Bench {
    definition: Arc<Definition>,
    parts: RunnerDeps,
    pub stop: CancellationToken,
    pub timeout: Duration,
}

impl Bench {
    pub fn new(definition: Definition) -> Self {
        let parts = RunnerDeps::default();
        let timeout = Duration::from_secs(20);
        Self { definition: Arc::new(definition), parts, stop: CancellationToken::new(), timeout }
    }

    pub fn env<const N: usize>(mut self, variables: [(&str, &str); N]) -> Self {
        self.parts.env = Env::of(variables);
        self
    }

    /// With models that are shared with other agents.
    pub fn models(mut self, models: &Models) -> Self {
        self.parts.models = models.clone();
        self
    }

    pub async fn run(&self, start: Start) -> Result<Finished, Failure> {
        self.run_with_progress(start).await.0
    }

    /// The outcome, and the last of the progress.
    pub async fn run_with_progress(&self, start: Start) -> (Result<Finished, Failure>, Option<Progress>) {
        let agent = runner(&self.definition, &self.parts, &Registry::default()).unwrap().unwrap();
        let job = Job::new(start, self.definition.id.clone(), self.timeout, self.stop.clone());
        let reporter = job.reporter();
        let outcome = agent.run(job).await;
        let told = tokio::time::timeout(Duration::ZERO, reporter.next()).await.ok();
        (outcome, told)
    }
}

/// The result of a job that must have one.
pub fn result(outcome: Result<Finished, Failure>) -> Value {
    match outcome.unwrap() {
        Finished::Result { result, .. } => result,
        Finished::Waits(_) | Finished::Delegated | Finished::Deferred { .. } => {
            panic!("it is done elsewhere")
        }
    }
}
