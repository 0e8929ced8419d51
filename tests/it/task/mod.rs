//! The negotiation on a real database, without code of agents: the test acts as the agents.
mod budgets;
mod bursts;
mod cases;
mod computed_offers;
mod dependencies;
mod migrated;
mod newer_schema;
mod observers;
mod outages;
mod plans;
mod policies;
mod refusals;
mod requesters;
mod requests;
mod retention;
mod rounds;
mod schedules;
mod simulation;
mod spend;
mod sql;
mod sql_values;
mod timers;
pub mod values;
mod waiting;

use crate::support::{PATIENCE, TestDb, database};
use convoke::{
    db::Database,
    id::{AgentId, NodeId, OrgId, TaskId},
    scope::Scope,
    task::{
        AgentKind, Assigned, AssignmentKey, Config, Metrics, Notice, Profile, Request, Start, Task,
        TaskState, Tasks, Terms,
    },
};
use serde_json::{Value, json};
use std::time::Duration;
use tokio::sync::mpsc;

pub struct Harness {
    pub tasks: Tasks,
    pub database: Database,
    pub org: OrgId,
    heard: mpsc::Receiver<Vec<Notice>>,
    early: Vec<Notice>,
    scope: Scope,
    db: TestDb,
}

pub fn id(name: &str) -> AgentId {
    name.try_into().unwrap()
}

/// A hosted agent of org `demo` with capability `work`.
pub fn profile(name: &str, slots: u32) -> Profile {
    Profile {
        id: id(name),
        org: "demo".try_into().unwrap(),
        kind: AgentKind::Rust,
        description: String::new(),
        capabilities: vec!["work".into()],
        slots,
        definition_hash: "1".into(),
        terms: Terms {
            computed: true,
            thinks: None,
            cost_microdollars: 100,
            confidence: 0.5,
            eta: Duration::from_millis(100),
        },
    }
}

/// A request for one agent of capability `work`. Unless the policy sets it, an award waits a minute to be accepted: a
/// busy machine may take longer than the default of a second.
pub fn request(mut policy: Value) -> Request {
    policy.as_object_mut().unwrap().entry("confirm").or_insert_with(|| json!("1m"));
    serde_json::from_value(
        json!({ "kind": "test", "requires": ["work"], "input": { "n": 1 }, "policy": policy }),
    )
    .unwrap()
}

impl Harness {
    pub async fn new(profiles: Vec<Profile>) -> Self {
        Self::with(&Config::default(), profiles).await
    }

    pub async fn with(config: &Config, profiles: Vec<Profile>) -> Self {
        Self::on(database().await, config, profiles).await
    }

    pub async fn on(db: TestDb, config: &Config, profiles: Vec<Profile>) -> Self {
        let scope = Scope::default();
        let database = db.open(&scope).await;
        let (tasks, heard) =
            Tasks::start(&scope, database.clone(), NodeId::generate(), config, Metrics::default());
        tasks.register(profiles).await.unwrap();
        tasks.arbitrate(&scope);
        let org = "demo".try_into().unwrap();
        Self { tasks, database, org, heard, early: Vec::new(), scope, db }
    }

    pub async fn ask(&self, request: Request) -> TaskId {
        self.tasks.request(&self.org, "test", request).await.unwrap().task.id
    }

    /// The next notice that `pick` accepts; the others are kept.
    pub async fn hear<T>(&mut self, mut pick: impl FnMut(&Notice) -> Option<T>) -> T {
        let found = tokio::time::timeout(PATIENCE, async {
            loop {
                for at in 0..self.early.len() {
                    if let Some(picked) = pick(&self.early[at]) {
                        self.early.remove(at);
                        return picked;
                    }
                }
                self.early.extend(self.heard.recv().await.expect("the store lives"));
            }
        });
        found.await.unwrap_or_else(|_| panic!("heard only {:?}", self.early))
    }

    pub async fn assigned(&mut self, task: TaskId) -> Assigned {
        self.hear(|notice| match notice {
            Notice::Assigned(assigned) if assigned.key.task_id == task => Some(assigned.clone()),
            _ => None,
        })
        .await
    }

    /// Waits for the award and accepts it.
    pub async fn started(&mut self, task: TaskId) -> (Start, AgentId) {
        let assigned = self.assigned(task).await;
        let start = self.tasks.accept(assigned.key, &assigned.agent_id).await.unwrap();
        (start, assigned.agent_id)
    }

    /// Ends the lease of a running assignment now, whatever its length.
    pub async fn expire_lease(&self, key: AssignmentKey) {
        let expire = "with expired as (
                update convoke.assignments set lease_until = clock_timestamp() where id = $1 returning task_id)
            update convoke.tasks set due_at = clock_timestamp() where id = (select task_id from expired)";
        let client = self.database.client().await.unwrap();
        assert_eq!(client.execute(expire, &[&key.assignment_id.as_uuid()]).await.unwrap(), 1);
        self.tasks.notify_arbiter();
    }

    pub async fn in_state(&self, task: TaskId, state: TaskState) -> Task {
        let mut changed = self.tasks.changed();
        let reached = tokio::time::timeout(PATIENCE, async {
            loop {
                let now = self.tasks.get(task).await.unwrap();
                if now.state == state {
                    return now;
                }
                changed.changed().await.unwrap();
            }
        });
        match reached.await {
            Ok(task) => task,
            Err(_) => panic!("never {state:?}: {:?}", self.tasks.get(task).await),
        }
    }

    /// Waits for an event of this type, for commits without a notice.
    pub async fn event(&self, task: TaskId, event_type: &str) {
        let came = tokio::time::timeout(PATIENCE, async {
            while !self.event_types(task).await.iter().any(|each| each == event_type) {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        });
        came.await.unwrap_or_else(|_| panic!("there is no event {event_type}"));
    }

    pub async fn event_types(&self, task: TaskId) -> Vec<String> {
        self.tasks.events(task, 0, 1000).await.unwrap().into_iter().map(|event| event.event_type).collect()
    }

    /// Checks the invariants of `docs/spec/negotiation.md` §7 that a query can check, then stops.
    pub async fn check(self) {
        let client = self.database.client().await.unwrap();
        for (name, query) in convoke::task::INVARIANTS {
            let rows = client.query(*query, &[]).await.unwrap();
            assert!(rows.is_empty(), "{name} is broken by {rows:?}");
        }
        drop(client);
        let replayed = convoke::task::replay(&self.database).await.unwrap();
        assert!(replayed.differences.is_empty(), "I8 is broken: {:#?}", replayed.differences);
        self.scope.drain(PATIENCE).await.unwrap();
    }
}
