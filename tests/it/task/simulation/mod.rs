//! A seeded simulation of the task store: real tables and statements, virtual time, random agents.
//!
//! The clock of the database is a row that only the simulation advances, so a day passes in a second and a seed
//! reproduces the history. Signals are lost and repeated, two nodes serve the commands, nodes restart, agents die,
//! stall, report falsely, refuse and answer late, and clocks of clients are wrong. `CONVOKE_SIMULATION_STEPS` sets the
//! length, `CONVOKE_SIMULATION_SEED` the seed.
mod agents;
mod checks;
mod people;

use crate::support::{PATIENCE, TestDb, empty_database, from_environment};
use agents::{Held, profiles};
use chrono::{DateTime, TimeDelta, Utc};
use convoke::{
    db::{self, Database},
    id::{AgentId, NodeId, OrgId, TaskId},
    scope::Scope,
    task::{AssignmentKey, Config, Metrics, Notice, TaskState, Tasks},
};
use rand::{RngExt, SeedableRng, rngs::StdRng, seq::IndexedRandom};
use serde_json::Value;
use std::{
    collections::{BTreeMap, HashMap},
    time::Duration,
};
use tokio::sync::mpsc;

/// The clock and the dice of everything in the database; the clock is a row, moved by the simulation alone.
const VIRTUAL_CLOCK: &str = "create schema sim;
    create table sim.clock (now timestamptz not null);
    insert into sim.clock values ('2030-01-01 00:00:00+00');
    create function sim.clock_timestamp() returns timestamptz language sql volatile
        as 'select now from sim.clock';
    create function sim.random() returns float8 language sql volatile as 'select 0.5::float8'";

const NODES: usize = 2;

struct Node {
    tasks: Tasks,
    scope: Scope,
    heard: mpsc::Receiver<Vec<Notice>>,
}

struct Simulation {
    rng: StdRng,
    admin: tokio_postgres::Client,
    database: Database,
    nodes: Vec<Node>,
    org: OrgId,
    now: DateTime<Utc>,
    /// Tasks in the order of their requests.
    tasks: Vec<TaskId>,
    held: Vec<Held>,
    /// Assignments that are over, as far as their agents know; they report all the same.
    ghosts: Vec<Held>,
    bids: Vec<(TaskId, i32, AgentId)>,
    /// Tasks that wait for a person.
    asked: Vec<TaskId>,
    /// What was accepted as a task's result.
    accepted: HashMap<TaskId, (AssignmentKey, Value)>,
    finals: HashMap<TaskId, TaskState>,
    counts: BTreeMap<&'static str, u64>,
    steps: u64,
    scope: Scope,
    _db: TestDb,
}

async fn node(database: &Database, parent: &Scope) -> Node {
    let scope = parent.child();
    let (tasks, heard) =
        Tasks::start(&scope, database.clone(), NodeId::generate(), &Config::default(), Metrics::default());
    Node { tasks, scope, heard }
}

impl Simulation {
    async fn new(seed: u64) -> Self {
        let db = empty_database().await;
        let admin = db.client().await;
        admin.batch_execute(VIRTUAL_CLOCK).await.unwrap();
        let scope = Scope::default();
        let mut config: db::Config = db.config();
        let joint = if db.url.contains('?') { '&' } else { '?' };
        let url = format!("{}{joint}options=-csearch_path%3Dsim,pg_catalog,public", db.url);
        config.url = Some(url.into());
        // The machine may stop the whole run for as long as it likes: real time decides nothing here.
        config.statement_timeout = Duration::from_secs(3600);
        let database = Database::open(&config, &scope).await.unwrap();
        db::migrate(&database).await.unwrap();
        let mut nodes = Vec::new();
        for _ in 0..NODES {
            nodes.push(node(&database, &scope).await);
        }
        nodes[0].tasks.register(profiles()).await.unwrap();
        let now = admin.query_one("select now from sim.clock", &[]).await.unwrap().get(0);
        Self {
            rng: StdRng::seed_from_u64(seed),
            admin,
            database,
            nodes,
            org: "demo".try_into().unwrap(),
            now,
            tasks: Vec::new(),
            held: Vec::new(),
            ghosts: Vec::new(),
            bids: Vec::new(),
            asked: Vec::new(),
            accepted: HashMap::new(),
            finals: HashMap::new(),
            counts: BTreeMap::new(),
            steps: 0,
            scope,
            _db: db,
        }
    }

    fn count(&mut self, what: &'static str) {
        self.steps += 1;
        *self.counts.entry(what).or_default() += 1;
    }

    fn chance(&mut self, percent: i64) -> bool {
        self.rng.random_range(0..100) < percent
    }

    /// Any node: all of them serve commands.
    fn any(&mut self) -> Tasks {
        let at = self.rng.random_range(0..NODES);
        self.nodes[at].tasks.clone()
    }

    async fn pass(&mut self, time: TimeDelta) {
        self.now += time;
        self.admin.execute("update sim.clock set now = $1", &[&self.now]).await.unwrap();
        tokio::time::advance(time.to_std().unwrap()).await;
        self.count("time passes");
    }

    async fn look(&mut self) {
        // A new one reads the statistics again, which an old one does by the real time.
        self.nodes[0].tasks.arbiter().poll().await.unwrap();
        self.count("look");
    }

    /// One round of everything.
    async fn tick(&mut self, requesting: bool) {
        if requesting {
            self.request().await;
            self.cancel().await;
            self.requeue().await;
        }
        self.care().await;
        // A signal may be lost, or come twice.
        for _ in 0..*[0, 1, 1, 1, 2].choose(&mut self.rng).unwrap() {
            self.look().await;
        }
        self.hear();
        self.bid().await;
        self.answer().await;
        self.work().await;
        self.haunt().await;
        if self.chance(3) {
            self.restart().await;
        }
        let time = match self.rng.random_range(0..100) {
            0..70 => TimeDelta::milliseconds(self.rng.random_range(0..200)),
            70..95 => TimeDelta::milliseconds(self.rng.random_range(200..5_000)),
            _ => TimeDelta::milliseconds(self.rng.random_range(5_000..120_000)),
        };
        self.pass(time).await;
    }

    /// A node dies and comes back. The one that leads hosts the agents: they get new lives.
    async fn restart(&mut self) {
        let at = self.rng.random_range(0..NODES);
        let new = node(&self.database, &self.scope).await;
        let old = std::mem::replace(&mut self.nodes[at], new);
        old.scope.drain(PATIENCE).await.unwrap();
        if at == 0 {
            self.nodes[0].tasks.register(profiles()).await.unwrap();
            self.ghosts.append(&mut self.held);
            self.bids.clear();
        }
        self.count("node restarted");
    }
}

/// From here on the runtime's time moves only by explicit calls, until this is dropped: a paused clock would
/// run on by itself whenever all wait for the database, but not while a blocking task runs.
fn virtual_time() -> std::sync::mpsc::Sender<()> {
    tokio::time::pause();
    let (held, over) = std::sync::mpsc::channel();
    tokio::task::spawn_blocking(move || over.recv());
    held
}

/// Runs a seed for this many steps, and then to the end.
async fn simulate(seed: u64, steps: u64) -> String {
    let _held = virtual_time();
    let mut simulation = Simulation::new(seed).await;
    let mut checked = 0;
    while simulation.steps < steps {
        simulation.tick(true).await;
        if simulation.steps - checked > 1000 {
            simulation.check().await;
            checked = simulation.steps;
        }
    }
    simulation.end().await;
    let history = simulation.history().await;
    let days =
        (simulation.now - DateTime::parse_from_rfc3339("2030-01-01T00:00:00Z").unwrap().to_utc()).num_hours();
    let mut ends: BTreeMap<&str, u64> = BTreeMap::new();
    for state in simulation.finals.values() {
        *ends.entry(state.as_str()).or_default() += 1;
    }
    println!(
        "seed {seed}: {} steps, {} tasks {ends:?}, {days} virtual hours, history {history}\n{:#?}",
        simulation.steps,
        simulation.tasks.len(),
        simulation.counts
    );
    tokio::time::resume();
    drop(simulation.nodes);
    simulation.scope.drain(PATIENCE).await.unwrap();
    history
}

#[tokio::test]
async fn every_task_ends_once_and_all_invariants_hold() {
    let steps = from_environment("CONVOKE_SIMULATION_STEPS", 3_000);
    let seed = from_environment("CONVOKE_SIMULATION_SEED", rand::random_range(0..1_000_000));
    println!("CONVOKE_SIMULATION_SEED={seed} gives this run again");
    simulate(seed, steps).await;
}

#[tokio::test]
async fn seed_reproduces_the_history() {
    assert_eq!(simulate(7, 400).await, simulate(7, 400).await);
}
