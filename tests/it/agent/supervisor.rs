//! Whole jobs: a real database, the real negotiation, and agents in this process.
use super::{
    definition,
    http::{Server, reply},
};
use crate::support::{PATIENCE, TestDb, database};
use convoke::{
    agent::{Agent, Agents, CredentialIssuer, Definition, Deps, Env, Finished, Job, Metrics, Registry},
    clock::Clock,
    db::{self, Database, Target},
    hub::{Hub, Room},
    id::{AgentId, Epoch, NodeId, OrgId, TaskId, Topic},
    llm::Models,
    presence::Tracker,
    scope::{OnExit, Scope},
    task::{self, AssignmentKey, Failure, Notice, Progress, Request, Task, TaskState, Tasks, Usage},
    telemetry,
};
use serde_json::{Value, json};
use std::{sync::Arc, time::Duration};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{Notify, watch},
};

/// A rig with everything but the log and the edges.
struct HostingRig {
    tasks: Tasks,
    agents: Agents,
    tracker: Tracker,
    metrics: Metrics,
    scope: Scope,
    org: OrgId,
    db: TestDb,
}

async fn rig(definitions: Vec<Definition>, registry: Registry) -> HostingRig {
    rig_in(definitions, registry, Env::of([])).await
}

async fn rig_in(definitions: Vec<Definition>, registry: Registry, env: Env) -> HostingRig {
    let db = database().await;
    let config = db.config();
    house_on(db, config, definitions, registry, env).await
}

async fn house_on(
    db: TestDb,
    config: db::Config,
    definitions: Vec<Definition>,
    registry: Registry,
    env: Env,
) -> HostingRig {
    let (scope, counted) = (Scope::default(), telemetry::Registry::default());
    let store = Database::open(&config, &scope).await.unwrap();
    let config = task::Config::default();
    let (tasks, mut notices) =
        Tasks::start(&scope, store, NodeId::generate(), &config, task::Metrics::register(&counted));
    let tracker = Tracker::start(&scope, Hub::new(&counted), &counted);
    let metrics = Metrics::registered(&counted);
    let deps = Deps {
        tasks: tasks.commands(),
        tracker: tracker.clone(),
        clock: Clock::System,
        metrics: metrics.clone(),
        models: Models::new(Clock::System),
        env,
        credentials: CredentialIssuer::default(),
        reader: None,
        keeper: None,
        unfit: Default::default(),
    };
    let agents = Agents::start(&scope, deps, definitions, registry).unwrap();
    tasks.register(agents.profiles()).await.unwrap();
    tasks.arbitrate(&scope);
    let told = agents.clone();
    scope.spawn("notices", OnExit::Log, |stop| async move {
        while let Some(Some(batch)) = stop.run_until_cancelled(notices.recv()).await {
            for notice in batch {
                match notice {
                    Notice::Assigned(assigned) => told.assigned(assigned),
                    Notice::Cancel { agent_id, key, reason } => told.cancel(key, &agent_id, &reason),
                    _ => {}
                }
            }
        }
        Ok(())
    });
    HostingRig { tasks, agents, tracker, metrics, scope, org: OrgId::try_from("demo").unwrap(), db }
}

impl HostingRig {
    async fn request(&self, input: Value, policy: Value) -> TaskId {
        let request = json!({ "kind": "test.work", "requires": ["work"], "input": input, "policy": policy });
        let request: Request = serde_json::from_value(request).unwrap();
        self.tasks.request(&self.org, "test", request).await.unwrap().task.id
    }

    async fn ended(&self, id: TaskId) -> Task {
        let task = self.tasks.wait(id, PATIENCE).await.unwrap();
        assert!(task.state.is_final(), "{task:?}");
        task
    }

    /// The key of the task's live assignment, past the daemon's own way to the database.
    async fn assignment(&self, id: TaskId) -> AssignmentKey {
        let sql = "select id, epoch from convoke.assignments where task_id = $1";
        let row = self.db.client().await.query_one(sql, &[&id.as_uuid()]).await.unwrap();
        let (assignment_id, epoch): (uuid::Uuid, i64) = (row.get(0), row.get(1));
        AssignmentKey { task_id: id, assignment_id: assignment_id.into(), epoch: Epoch(epoch) }
    }

    /// Waits until the presence of `agent` in its org passes.
    async fn present(&self, agent: &str, passes: impl Fn(&Value) -> bool) -> Value {
        let room = Room::public(Topic::org(&self.org));
        let seen = async {
            loop {
                let state: Value =
                    serde_json::from_slice(&self.tracker.snapshot(room.clone()).await).unwrap();
                let meta = &state[agent]["metas"][0];
                if passes(meta) {
                    return meta.clone();
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(PATIENCE, seen).await.expect("presence never passed")
    }

    async fn close(self) {
        self.agents.drain(PATIENCE).await;
        self.scope.drain(PATIENCE).await.unwrap();
        drop(self.db);
    }
}

fn worker(extra: &str) -> Definition {
    definition(&format!(
        "id = \"worker\"\norg = \"demo\"\ncapabilities = [\"work\"]\n{extra}\n[run]\nkind = \"rust\"\nname = \"code\"\n"
    ))
}

fn code(agent: impl Agent + 'static) -> Registry {
    let mut registry = Registry::default();
    registry.register("code", Arc::new(agent));
    registry
}

/// Doubles a number.
struct Doubler;

#[async_trait::async_trait]
impl Agent for Doubler {
    async fn run(&self, job: Job) -> Result<Finished, Failure> {
        let n = job.input()["n"].as_i64().ok_or(Failure {
            message: "n is no number".into(),
            retryable: false,
            outage: false,
            usage: Usage::default(),
        })?;
        Ok(json!({ "doubled": n * 2 }).into())
    }
}

#[tokio::test]
async fn agent_wins_works_and_goes_to_sleep() {
    let rig = rig(vec![worker("idle_timeout = \"200ms\"")], code(Doubler)).await;
    rig.present("worker", |meta| meta["activity_type"] == "asleep").await;
    let task = rig.ended(rig.request(json!({ "n": 21 }), json!({})).await).await;
    assert_eq!((task.state, task.result), (TaskState::Completed, Some(json!({ "doubled": 42 }))));
    assert_eq!(task.agent_id.unwrap().as_str(), "worker");
    let meta = rig
        .present("worker", |meta| meta["activity_type"] == "asleep" && meta["last_active"].is_string())
        .await;
    assert_eq!((&meta["current_task"], &meta["queue_depth"]), (&Value::Null, &json!(0)));
    assert_eq!((&meta["agent_id"], &meta["capabilities"]), (&json!("worker"), &json!(["work"])));
    assert_eq!(rig.metrics.actors.get(), 0);
    rig.close().await;
}

#[tokio::test]
async fn jobs_over_the_slots_wait_and_none_is_lost() {
    let rig = rig(vec![worker("slots = 3")], code(Doubler)).await;
    let mut ids = Vec::new();
    for n in 0..60 {
        ids.push(rig.request(json!({ "n": n }), json!({})).await);
    }
    for (n, id) in ids.into_iter().enumerate() {
        assert_eq!(rig.ended(id).await.result, Some(json!({ "doubled": n * 2 })));
    }
    rig.close().await;
}

#[tokio::test]
async fn failure_or_panic_ends_the_attempt_with_one_line() {
    struct Panics;
    #[async_trait::async_trait]
    impl Agent for Panics {
        async fn run(&self, _: Job) -> Result<Finished, Failure> {
            panic!("a bug")
        }
    }
    let first = rig(vec![worker("")], code(Doubler)).await;
    let task = first.ended(first.request(json!({}), json!({})).await).await;
    assert_eq!((task.state, task.attempt), (TaskState::Failed, 1));
    assert_eq!(task.error.unwrap()["message"], "n is no number");
    first.close().await;

    let second = rig(vec![worker("")], code(Panics)).await;
    let task = second.ended(second.request(json!({}), json!({ "attempts_max": 1 })).await).await;
    assert_eq!(
        (task.state, task.error.unwrap()["message"].clone()),
        (TaskState::Failed, json!("the agent's code panicked"))
    );
    second.close().await;
}

/// Says that it works, then waits until it may end or must stop.
#[derive(Clone, Default)]
struct Patient {
    go: Arc<Notify>,
    stopped: Arc<watch::Sender<bool>>,
}

#[async_trait::async_trait]
impl Agent for Patient {
    async fn run(&self, job: Job) -> Result<Finished, Failure> {
        job.progress(0.3, "waiting");
        job.checkpoint(json!({ "page": 3 }));
        tokio::select! {
            () = self.go.notified() => Ok(json!({ "attempt": job.start.attempt, "from": job.start.checkpoint }).into()),
            () = job.stopped() => {
                self.stopped.send_replace(true);
                Err(Failure { message: "stopped".into(), retryable: true, outage: false, usage: Usage { tokens: 5, microdollars: 9, presumed: false } })
            }
        }
    }
}

#[tokio::test]
async fn presence_follows_the_work_and_the_lease_is_renewed() {
    let agent = Patient::default();
    let rig = rig(vec![worker("")], code(agent.clone())).await;
    let id = rig.request(json!({}), json!({ "lease": "300ms" })).await;
    let meta = rig.present("worker", |meta| meta["progress"] == 0.3).await;
    assert_eq!((&meta["activity_type"], &meta["current_task"]), (&json!("working"), &json!(id)));
    // Three leases long nothing is reported, and heartbeats alone keep it.
    tokio::time::sleep(Duration::from_millis(900)).await;
    assert_eq!(rig.tasks.get(id).await.unwrap().state, TaskState::Running);
    agent.go.notify_one();
    let task = rig.ended(id).await;
    assert_eq!(task.result, Some(json!({ "attempt": 1, "from": null })));
    rig.present("worker", |meta| meta["activity_type"] == "idle").await;
    rig.close().await;
}

#[tokio::test]
async fn canceled_job_stops_and_its_cost_counts() {
    let agent = Patient::default();
    let rig = rig(vec![worker("")], code(agent.clone())).await;
    let id = rig.request(json!({}), json!({})).await;
    rig.present("worker", |meta| meta["progress"] == 0.3).await;
    rig.tasks.cancel(id, "not needed").await.unwrap();
    let task = rig.ended(id).await;
    assert_eq!(task.state, TaskState::Canceled);
    assert!(*agent.stopped.borrow());
    assert_eq!(rig.metrics.microdollars.get(), 9);
    rig.close().await;
}

#[tokio::test]
async fn job_over_its_time_limit_is_stopped_and_fails() {
    let agent = Patient::default();
    let mut slow = worker("");
    slow.limits.timeout = Duration::from_millis(200);
    let rig = rig(vec![slow], code(agent.clone())).await;
    let task = rig.ended(rig.request(json!({}), json!({ "attempts_max": 1 })).await).await;
    assert_eq!(
        (task.state, task.error.unwrap()["message"].clone()),
        (TaskState::Failed, json!("no result within 200ms"))
    );
    assert!(*agent.stopped.borrow());
    rig.close().await;
}

#[tokio::test]
async fn stop_releases_unfinished_jobs_with_their_checkpoint() {
    let agent = Patient::default();
    let rig = rig(vec![worker("")], code(agent.clone())).await;
    let id = rig.request(json!({}), json!({})).await;
    rig.present("worker", |meta| meta["progress"] == 0.3).await;
    rig.agents.drain(Duration::from_millis(50)).await;
    let task = rig.tasks.get(id).await.unwrap();
    assert!(matches!(task.state, TaskState::Open | TaskState::Awarded), "{task:?}");
    let events = rig.tasks.events(id, 0, 100).await.unwrap();
    let released = events.iter().find(|event| event.event_type == "released").unwrap();
    assert!(released.body.to_string().contains("the daemon is stopping"), "{released:?}");
    rig.scope.drain(PATIENCE).await.unwrap();
}

#[tokio::test]
async fn fenced_job_stops_and_its_result_is_dropped() {
    let agent = Patient::default();
    let rig = rig(vec![worker("")], code(agent.clone())).await;
    let id = rig.request(json!({}), json!({ "lease": "300ms" })).await;
    rig.present("worker", |meta| meta["progress"] == 0.3).await;
    // Another life of the agent begins, as after a restart elsewhere.
    rig.tasks.register(rig.agents.profiles()).await.unwrap();
    let mut stopped = agent.stopped.subscribe();
    tokio::time::timeout(PATIENCE, stopped.wait_for(|stopped| *stopped)).await.unwrap().unwrap();
    rig.present("worker", |meta| meta["progress"] == 0.3).await;
    agent.go.notify_one();
    let task = rig.ended(id).await;
    assert_eq!((task.state, task.epoch.0), (TaskState::Completed, 2));
    rig.close().await;
}

#[tokio::test]
async fn agent_over_its_hourly_limit_refuses_awards() {
    struct Dear;
    #[async_trait::async_trait]
    impl Agent for Dear {
        async fn run(&self, _: Job) -> Result<Finished, Failure> {
            Ok(Finished::Result {
                result: json!(1),
                usage: Usage { tokens: 0, microdollars: 100, presumed: false },
            })
        }
    }
    let mut dear = worker("");
    dear.limits.microdollars_per_hour = Some(100);
    let rig = rig(vec![dear], code(Dear)).await;
    assert_eq!(rig.ended(rig.request(json!({}), json!({})).await).await.state, TaskState::Completed);
    let id = rig.request(json!({}), json!({ "rounds_max": 1 })).await;
    let refused = async {
        while !rig.tasks.events(id, 0, 100).await.unwrap().iter().any(|event| event.event_type == "refused") {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(PATIENCE, refused).await.unwrap();
    rig.close().await;
}

#[tokio::test]
async fn delegated_job_waits_for_its_report() {
    let server = Server::start([reply(202, "")]).await;
    let text = format!(
        "id = \"web\"\norg = \"demo\"\ncapabilities = [\"work\"]\n[run]\nkind = \"http\"\nurl = \"{}/x\"",
        server.address
    );
    let rig = rig(vec![definition(&text)], Registry::default()).await;
    let id = rig.request(json!({}), json!({})).await;
    rig.present("web", |meta| meta["activity_type"] == "waiting").await;
    let sent: Value = serde_json::from_slice(&server.seen()[0].1).unwrap();
    let key = serde_json::from_value(json!({
        "task_id": sent["task_id"], "assignment_id": sent["assignment_id"], "epoch": sent["epoch"],
    }));
    let (key, web) = (key.unwrap(), AgentId::try_from("web").unwrap());
    rig.tasks.progress(key, &web, Progress::default()).await.unwrap();
    rig.tasks.finish(key, &web, json!("from afar"), Usage::default()).await.unwrap();
    assert_eq!(rig.ended(id).await.result, Some(json!("from afar")));
    rig.present("web", |meta| meta["activity_type"] == "idle").await;
    rig.close().await;
}

#[tokio::test]
async fn model_without_its_key_is_left_out_and_other_agents_work() {
    let text = "id = \"thinker\"\norg = \"demo\"\ncapabilities = [\"work\"]\n[run]\nkind = \"llm\"\nmodel = \"m\"\napi_key_env = \"KEY\"";
    let rig = rig(vec![definition(text), worker("")], code(Doubler)).await;
    let left_out: Vec<_> = rig.agents.unavailable().iter().map(|(id, why)| format!("{id}: {why}")).collect();
    assert_eq!(left_out, ["thinker: KEY is not set in the environment"]);
    assert_eq!(rig.agents.profiles().len(), 1);
    let task = rig.ended(rig.request(json!({ "n": 1 }), json!({})).await).await;
    assert_eq!(task.agent_id.unwrap().as_str(), "worker");
    rig.close().await;
}

#[tokio::test]
async fn unregistered_code_is_named_in_the_error() {
    let (db, scope, counted) = (database().await, Scope::default(), telemetry::Registry::default());
    let store = db.open(&scope).await;
    let config = task::Config::default();
    let (tasks, _notices) =
        Tasks::start(&scope, store, NodeId::generate(), &config, task::Metrics::register(&counted));
    let deps = Deps {
        tasks: tasks.commands(),
        tracker: Tracker::start(&scope, Hub::new(&counted), &counted),
        clock: Clock::System,
        metrics: Metrics::default(),
        models: Models::default(),
        env: Env::of([]),
        credentials: CredentialIssuer::default(),
        reader: None,
        keeper: None,
        unfit: Default::default(),
    };
    let error = Agents::start(&scope, deps, vec![worker("")], Registry::default()).err().unwrap();
    assert_eq!(error.to_string(), "agent worker: no Rust agent is registered as \"code\"");
    scope.drain(PATIENCE).await.unwrap();
}

/// A way to the database that can be cut and mended.
struct Wire {
    address: std::net::SocketAddr,
    cut: watch::Sender<bool>,
}

impl Wire {
    async fn to(host: String, port: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let wire = Self { address: listener.local_addr().unwrap(), cut: watch::Sender::new(false) };
        let cut = wire.cut.clone();
        #[expect(clippy::disallowed_methods, reason = "it ends with the test's runtime")]
        tokio::spawn(async move {
            while let Ok((mut near, _)) = listener.accept().await {
                let (mut down, host) = (cut.subscribe(), host.clone());
                tokio::spawn(async move {
                    if *down.borrow_and_update() {
                        return;
                    }
                    let mut far = TcpStream::connect((host.as_str(), port)).await.unwrap();
                    tokio::select! {
                        _ = tokio::io::copy_bidirectional(&mut near, &mut far) => {}
                        _ = down.wait_for(|cut| *cut) => {}
                    }
                });
            }
        });
        wire
    }
}

#[tokio::test]
async fn result_is_delivered_after_an_outage_of_the_database() {
    let db = database().await;
    let target = Target::parse(&db.url).unwrap();
    let url = reqwest::Url::parse(&target.url()).unwrap();
    let wire = Wire::to(url.host_str().unwrap().to_owned(), url.port().unwrap()).await;
    let mut through = url.clone();
    through.set_host(Some("127.0.0.1")).unwrap();
    through.set_port(Some(wire.address.port())).unwrap();
    let config = db::Config { url: Some(String::from(through).into()), ..db.config() };

    let agent = Patient::default();
    let rig = house_on(db, config, vec![worker("")], code(agent.clone()), Env::of([])).await;
    let id = rig.request(json!({}), json!({})).await;
    rig.present("worker", |meta| meta["progress"] == 0.3).await;
    wire.cut.send_replace(true);
    agent.go.notify_one();
    // Longer than the store's own patience: the result was handed in, in vain.
    let vain = rig.tasks.heartbeat(rig.assignment(id).await, &AgentId::try_from("worker").unwrap()).await;
    assert!(matches!(vain, Err(task::Error::Unavailable(_))), "{vain:?}");
    wire.cut.send_replace(false);
    let ended = async {
        loop {
            match rig.tasks.wait(id, Duration::from_secs(5)).await {
                Ok(task) if task.state.is_final() => return task,
                _ => tokio::time::sleep(Duration::from_millis(20)).await,
            }
        }
    };
    let task = tokio::time::timeout(PATIENCE, ended).await.unwrap();
    assert_eq!((task.state, task.attempt, task.epoch.0), (TaskState::Completed, 1, 1));
    rig.close().await;
}

#[tokio::test]
async fn job_that_ignores_its_cancel_holds_no_slot() {
    /// Deaf to everything after its first award.
    struct Deaf;
    #[async_trait::async_trait]
    impl Agent for Deaf {
        async fn run(&self, job: Job) -> Result<Finished, Failure> {
            if job.start.key.epoch.0 == 1 {
                job.progress(0.1, "deaf");
                std::future::pending::<()>().await;
            }
            Ok(json!(job.start.key.epoch).into())
        }
    }
    let rig = rig(vec![worker("")], code(Deaf)).await;
    let id = rig.request(json!({}), json!({ "lease": "300ms" })).await;
    rig.present("worker", |meta| meta["progress"] == 0.1).await;
    rig.tasks.register(rig.agents.profiles()).await.unwrap();
    let began = tokio::time::Instant::now();
    let task = rig.ended(id).await;
    assert_eq!((task.result, task.epoch.0), (Some(json!(2)), 2));
    assert!(began.elapsed() < Duration::from_secs(3), "{:?}", began.elapsed());
    rig.close().await;
}
