//! The whole engine under chance: real tables and statements, virtual time, seeded agents.
//!
//! The database's clock is a row that only the simulation moves, so a day passes in a
//! second and a seed gives the same history again. Wake-ups are lost and doubled, two
//! nodes serve the commands, nodes restart, agents die, stall, lie, refuse and answer
//! late, and clients' clocks are wrong. `CONVOKE_SIMULATION_STEPS` and
//! `CONVOKE_SIMULATION_SEED` make it longer or another.
use super::{profile, request};
use crate::support::{PATIENCE, TestDb, empty_database};
use chrono::{DateTime, TimeDelta, Utc};
use convoke::{
    db::{self, Database},
    id::{AgentId, NodeId, OrgId, TaskId},
    scope::Scope,
    task::{
        Assigned, AssignmentKey, Config, Error, Failure, Filter, INVARIANTS, Metrics, NewOffer, Notice,
        Profile, Progress, TaskState, Tasks, Usage,
    },
};
use futures_util::future::join_all;
use rand::{RngExt, SeedableRng, rngs::StdRng, seq::IndexedRandom};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
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

/// Commands that one tick gives at once, in each lane.
const WIDTH: usize = 40;
/// Tasks that are not final at the same time.
const OPEN_MAX: usize = 400;
/// Offers that agents think about at the same time.
const BIDS_MAX: usize = 30;
const NODES: usize = 2;

/// How an agent behaves; chances in percent.
#[derive(Clone, Copy, Debug)]
struct Character {
    accepts: i64,
    refuses: i64,
    finishes: i64,
    fails: i64,
    releases: i64,
    dies: i64,
}

const CHARACTERS: [(&str, Character); 6] = [
    ("honest", Character { accepts: 98, refuses: 0, finishes: 70, fails: 2, releases: 1, dies: 0 }),
    ("slow", Character { accepts: 70, refuses: 5, finishes: 10, fails: 2, releases: 2, dies: 0 }),
    ("liar", Character { accepts: 95, refuses: 0, finishes: 20, fails: 50, releases: 5, dies: 0 }),
    ("refuser", Character { accepts: 20, refuses: 70, finishes: 50, fails: 5, releases: 5, dies: 0 }),
    ("silent", Character { accepts: 15, refuses: 0, finishes: 8, fails: 0, releases: 0, dies: 0 }),
    ("mortal", Character { accepts: 90, refuses: 0, finishes: 40, fails: 5, releases: 2, dies: 25 }),
];

/// An assignment as its agent knows it, however late.
#[derive(Clone, Debug)]
struct Held {
    key: AssignmentKey,
    agent: AgentId,
    started: bool,
}

/// How an agent ends its work.
#[derive(Clone, Copy, Debug)]
enum End {
    Finish,
    Fail {
        retryable: bool,
    },
    Release,
    Die,
    /// It needs a person's word.
    Ask,
}

impl End {
    fn word(self) -> &'static str {
        match self {
            Self::Finish => "finished",
            Self::Fail { .. } => "failed",
            Self::Release => "released",
            Self::Die => "died",
            Self::Ask => "asked a person",
        }
    }

    async fn tell(self, tasks: &Tasks, held: &Held) -> Result<TaskState, Error> {
        let (key, agent) = (held.key, &held.agent);
        let usage = Usage { tokens: 10, microdollars: 5 };
        let update = match self {
            Self::Finish => tasks.finish(key, agent, result_of(held), usage).await?,
            Self::Fail { retryable } => {
                tasks.fail(key, agent, Failure { message: "chance".into(), retryable, usage }).await?
            }
            Self::Release => tasks.release(key, agent, "chance", Some(json!({ "was": key.epoch }))).await?,
            Self::Die => tasks.lost(key, agent).await?,
            Self::Ask => {
                let question = serde_json::from_value(json!({ "question": "May I?" })).unwrap();
                tasks.ask(key, agent, question).await?
            }
        };
        Ok(update.state)
    }
}

fn result_of(held: &Held) -> Value {
    json!({ "by": held.agent, "epoch": held.key.epoch })
}

async fn report(tasks: &Tasks, held: &Held, progress: bool) -> Result<(), Error> {
    if progress {
        let progress = Progress { progress: Some(0.5), activity: None, checkpoint: None };
        tasks.progress(held.key, &held.agent, progress).await
    } else {
        tasks.heartbeat(held.key, &held.agent).await
    }
}

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

fn profiles() -> Vec<Profile> {
    let mut profiles = Vec::new();
    for (number, (name, _)) in CHARACTERS.iter().enumerate() {
        for twin in 0..4 {
            let mut profile = profile(&format!("{name}-{twin}"), 1 + (number as u32 + twin) % 4);
            // Some are asked and speak for themselves.
            profile.terms.computed = twin != 3;
            profile.terms.cost_microdollars = 10 * (number as u64 + 1);
            if twin == 3 {
                profile.capabilities.push("rare".into());
            }
            profiles.push(profile);
        }
    }
    profiles
}

fn character(agent: &AgentId) -> Character {
    let name = agent.as_str().split('-').next().unwrap();
    CHARACTERS.iter().find(|(known, _)| *known == name).unwrap().1
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
        self.nodes[0].tasks.arbiter().look().await.unwrap();
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
        // A wake-up may be lost, or come twice.
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

    async fn request(&mut self) {
        let open = self.tasks.len() - self.finals.len();
        let room = OPEN_MAX.saturating_sub(open).min(WIDTH);
        let tasks = self.any();
        let mut wanted = Vec::new();
        for _ in 0..self.rng.random_range(0..=room) {
            let award = ["first", "cheapest", "fastest", "least_loaded", "weighted", "calibrated"]
                .choose(&mut self.rng)
                .unwrap();
            let mut request = request(json!({
                "award": award,
                "attempts_max": self.rng.random_range(1..4),
                "bid_window": "250ms",
                "lease": "10s",
                "attempt": "60s",
                "progress": "15s",
            }));
            request.kind = format!("kind-{}", self.rng.random_range(0..4));
            request.priority = self.rng.random_range(-2..3);
            request.input = json!({ "number": self.tasks.len() + wanted.len() });
            if self.chance(10) {
                request.requires.push("rare".into());
            }
            if self.chance(1) {
                request.requires.push("unheard-of".into());
            }
            // Clients' clocks are wrong by seconds.
            let skew = TimeDelta::milliseconds(self.rng.random_range(-5_000..5_000));
            if self.chance(10) {
                request.deadline = Some(self.now + skew + TimeDelta::seconds(self.rng.random_range(1..300)));
            }
            if self.chance(10) {
                request.run_at = Some(self.now + skew + TimeDelta::seconds(self.rng.random_range(0..60)));
            }
            if self.chance(10) {
                let among: Vec<TaskId> = self.tasks.iter().rev().take(100).copied().collect();
                request.depends_on = among.sample(&mut self.rng, 2).copied().collect();
            }
            if self.chance(10) {
                request.parent_id = self
                    .tasks
                    .iter()
                    .rev()
                    .take(100)
                    .copied()
                    .collect::<Vec<_>>()
                    .choose(&mut self.rng)
                    .copied();
                request.detached = self.chance(30);
            }
            if self.chance(10) {
                // What the agents deliver does not satisfy it until the second epoch.
                let schema = json!({ "properties": { "epoch": { "minimum": 2 } } });
                request.policy.insert("result_schema".into(), schema);
            }
            if self.chance(20) {
                request.idempotency_key = Some(format!("key-{}", self.rng.random_range(0..500)));
            }
            wanted.push(request);
        }
        let org = self.org.clone();
        let answers = join_all(wanted.into_iter().map(|request| tasks.request(&org, "sim", request)));
        for answer in answers.await {
            match answer {
                Ok(requested) if !requested.replayed => {
                    self.tasks.push(requested.task.id);
                    self.count("requested");
                }
                Ok(_) => self.count("request replayed"),
                Err(Error::IdempotencyConflict(_)) => self.count("request conflicts"),
                Err(Error::BadRequest(_) | Error::ParentEnded { .. }) => self.count("request refused"),
                Err(error) => panic!("request: {error}"),
            }
        }
    }

    async fn cancel(&mut self) {
        if !self.tasks.is_empty() && self.chance(30) {
            let task = *self.tasks.choose(&mut self.rng).unwrap();
            let tasks = self.any();
            match tasks.cancel(task, "chance").await {
                Ok(_) => self.count("canceled"),
                Err(Error::Conflict { state }) => {
                    assert!(state.is_final() || state == TaskState::Canceling, "{state:?}");
                    self.count("cancel came too late");
                }
                Err(error) => panic!("cancel: {error}"),
            }
        }
    }

    /// People answer what agents asked.
    async fn care(&mut self) {
        for task in std::mem::take(&mut self.asked) {
            if self.chance(60) {
                self.asked.push(task);
                continue;
            }
            let tasks = self.any();
            match tasks.answer(task, "person", json!({ "answer": true })).await {
                Ok(_) => self.count("answered"),
                Err(Error::Conflict { .. }) => self.count("answered too late"),
                Err(error) => panic!("answer: {error}"),
            }
        }
    }

    /// People try again what has failed.
    async fn requeue(&mut self) {
        if !self.tasks.is_empty() && self.chance(20) {
            let task = *self.tasks.choose(&mut self.rng).unwrap();
            let tasks = self.any();
            match tasks.requeue(task, "person").await {
                Ok(_) => {
                    self.finals.remove(&task);
                    self.count("requeued");
                }
                Err(Error::Conflict { .. } | Error::ParentEnded { .. }) => self.count("requeue refused"),
                Err(error) => panic!("requeue: {error}"),
            }
        }
    }

    /// Agents hear what happened: not always, and sometimes twice.
    fn hear(&mut self) {
        let mut notices = Vec::new();
        for node in &mut self.nodes {
            while let Ok(more) = node.heard.try_recv() {
                notices.extend(more);
            }
        }
        // Their order is nobody's promise; the seed shall give the same history all the same.
        let number: HashMap<TaskId, usize> =
            self.tasks.iter().enumerate().map(|(number, task)| (*task, number)).collect();
        notices.sort_by_key(|notice| match notice {
            Notice::Assigned(assigned) => (0, number[&assigned.key.task_id], assigned.key.epoch.0),
            Notice::Announced { task, round, .. } => (1, number[&task.id], i64::from(*round)),
            Notice::Cancel { key, .. } => (2, number[&key.task_id], key.epoch.0),
            Notice::Nudge { .. } | Notice::Updated(_) | Notice::Offered { .. } => (3, 0, 0),
        });
        for notice in notices {
            for _ in 0..*[0, 1, 1, 1, 1, 1, 1, 2].choose(&mut self.rng).unwrap() {
                self.heard(&notice);
            }
        }
    }

    fn heard(&mut self, notice: &Notice) {
        match notice {
            Notice::Assigned(Assigned { key, agent_id, .. }) => {
                self.count("heard of an award");
                self.held.push(Held { key: *key, agent: agent_id.clone(), started: false });
            }
            Notice::Announced { task, round, eligible, .. } => {
                let mut eligible = eligible.clone();
                eligible.sort();
                self.bids.extend(eligible.into_iter().map(|agent| (task.id, *round, agent)));
            }
            Notice::Cancel { key, .. } => {
                // Some stop, some do not care.
                if self.chance(60)
                    && let Some(at) = self.held.iter().position(|held| held.key == *key)
                {
                    let held = self.held.remove(at);
                    self.ghosts.push(held);
                }
            }
            Notice::Nudge { .. } | Notice::Updated(_) | Notice::Offered { .. } => {}
        }
    }

    async fn bid(&mut self) {
        let mut now = Vec::new();
        // Each offer is a commit of its own: without a limit there would be little else.
        self.bids.truncate(BIDS_MAX);
        for bid in std::mem::take(&mut self.bids) {
            // Some answer in the next tick or never.
            match self.rng.random_range(0..10) {
                0..6 => now.push(bid),
                6..9 => self.bids.push(bid),
                _ => {}
            }
        }
        for (task, round, agent) in now {
            let tasks = self.any();
            let answer = if self.chance(15) {
                tasks.decline(task, &agent, round, "busy").await
            } else {
                let offer = NewOffer {
                    round: if self.chance(3) { round - 1 } else { round },
                    cost_microdollars: self.rng.random_range(0..100),
                    eta_ms: self.rng.random_range(1..10_000),
                    confidence: self.rng.random_range(0..=10) as f32 / 10.0,
                    note: None,
                };
                tasks.offer(task, &agent, offer).await
            };
            match answer {
                Ok(()) => self.count("offered"),
                Err(Error::Late) => self.count("offered late"),
                Err(Error::Overbid { .. }) => self.count("offered too much"),
                Err(Error::NotEligible(_) | Error::Conflict { .. }) => self.count("offer refused"),
                Err(error) => panic!("offer: {error}"),
            }
        }
    }

    /// Agents answer their awards.
    async fn answer(&mut self) {
        let (mut accepts, mut refusals, mut waiting) = (Vec::new(), Vec::new(), Vec::new());
        let tasks = self.any();
        for held in std::mem::take(&mut self.held) {
            let nature = character(&held.agent);
            if held.started {
                waiting.push(held);
            } else if accepts.iter().any(|known: &Held| known.key.task_id == held.key.task_id) {
                // The award was heard twice.
                waiting.push(held);
            } else if self.chance(nature.accepts) {
                accepts.push(held);
            } else if self.chance(nature.refuses) {
                refusals.push(held);
            } else if self.chance(90) {
                waiting.push(held);
            } else {
                self.ghosts.push(held);
            }
        }
        self.held = waiting;
        let answers = join_all(accepts.iter().map(|held| tasks.accept(held.key, &held.agent))).await;
        for (held, answer) in accepts.into_iter().zip(answers) {
            match answer {
                Ok(_) => {
                    self.count("accepted");
                    if !self.held.iter().any(|other| other.key == held.key) {
                        self.held.push(Held { started: true, ..held });
                    }
                }
                Err(Error::Fenced | Error::Conflict { .. }) => {
                    self.count("accepted too late");
                    self.ghosts.push(held);
                }
                Err(error) => panic!("accept: {error}"),
            }
        }
        let answers = join_all(refusals.iter().map(|held| tasks.refuse(held.key, &held.agent, "no"))).await;
        for (held, answer) in refusals.into_iter().zip(answers) {
            match answer {
                Ok(()) => self.count("refused"),
                Err(Error::Fenced | Error::Conflict { .. }) => self.count("refused too late"),
                Err(error) => panic!("refuse: {error}"),
            }
            self.ghosts.push(held);
        }
    }

    /// Agents work, and end their work.
    async fn work(&mut self) {
        let (mut ends, mut reports) = (Vec::new(), Vec::new());
        let tasks = self.any();
        for held in std::mem::take(&mut self.held) {
            if !held.started {
                self.held.push(held);
                continue;
            }
            let nature = character(&held.agent);
            let mut dice = self.rng.random_range(0..100);
            let mut falls = |chance| {
                let fell = (0..chance).contains(&dice);
                dice -= chance;
                fell
            };
            if falls(nature.finishes) {
                ends.push((held, End::Finish));
            } else if falls(nature.fails) {
                let retryable = self.chance(80);
                ends.push((held, End::Fail { retryable }));
            } else if falls(nature.releases) {
                ends.push((held, End::Release));
            } else if falls(nature.dies) {
                ends.push((held, End::Die));
            } else if self.chance(5) {
                ends.push((held, End::Ask));
            } else if self.chance(4) {
                self.part(&tasks, &held).await;
                self.held.push(held);
            } else if self.chance(80) {
                let progress = self.chance(50);
                reports.push((held, progress));
            } else if self.chance(95) {
                // Says nothing.
                self.held.push(held);
            } else {
                // Has forgotten it.
                self.ghosts.push(held);
            }
        }
        let answers = join_all(ends.iter().map(|(held, end)| end.tell(&tasks, held))).await;
        for ((held, end), answer) in ends.into_iter().zip(answers) {
            self.ended(&held, end, answer);
            self.ghosts.push(held);
        }
        let answers = join_all(reports.iter().map(|(held, progress)| report(&tasks, held, *progress))).await;
        for ((held, _), answer) in reports.into_iter().zip(answers) {
            if self.alive(answer) { self.held.push(held) } else { self.ghosts.push(held) }
        }
        let surplus = self.ghosts.len().saturating_sub(2000);
        self.ghosts.drain(..surplus);
    }

    /// An agent gives a part of its work to others.
    async fn part(&mut self, tasks: &Tasks, held: &Held) {
        let mut request = request(json!({ "lease": "10s", "attempt": "60s", "progress": "15s" }));
        request.input = json!({ "number": self.tasks.len() });
        let org = self.org.clone();
        match tasks.request_part(&org, held.key, &held.agent, request).await {
            Ok(requested) => {
                self.tasks.push(requested.task.id);
                self.count("part requested");
            }
            Err(Error::Fenced | Error::BadRequest(_) | Error::ParentEnded { .. }) => {
                self.count("part refused")
            }
            Err(error) => panic!("part: {error}"),
        }
    }

    fn ended(&mut self, held: &Held, end: End, answer: Result<TaskState, Error>) {
        match answer {
            Ok(state) => {
                self.count(end.word());
                if matches!(end, End::Ask) {
                    self.asked.push(held.key.task_id);
                }
                if matches!(end, End::Finish) && state == TaskState::Completed {
                    let before = self.accepted.insert(held.key.task_id, (held.key, result_of(held)));
                    if let Some((key, _)) = before {
                        assert_eq!(key, held.key, "two results were accepted");
                    }
                }
            }
            Err(Error::Fenced | Error::Conflict { .. }) => self.count("ended too late"),
            Err(error) => panic!("{}: {error}", end.word()),
        }
    }

    fn alive(&mut self, answer: Result<(), Error>) -> bool {
        match answer {
            Ok(()) => self.count("alive"),
            Err(Error::Fenced) => self.count("alive too late"),
            Err(error) => panic!("alive: {error}"),
        }
        answer.is_ok()
    }

    /// Those whose assignments are over report again.
    async fn haunt(&mut self) {
        for _ in 0..self.rng.random_range(0..8) {
            let Some(ghost) = self.ghosts.choose(&mut self.rng).cloned() else { return };
            let tasks = self.any();
            match self.rng.random_range(0..3) {
                0 => {
                    let answer = End::Finish.tell(&tasks, &ghost).await;
                    self.ended(&ghost, End::Finish, answer);
                }
                1 => {
                    let answer = tasks.heartbeat(ghost.key, &ghost.agent).await;
                    self.alive(answer);
                }
                _ => match tasks.accept(ghost.key, &ghost.agent).await {
                    Ok(_) => {
                        // It was not over, it only seemed so.
                        self.count("accepted");
                        self.held.push(Held { started: true, ..ghost });
                    }
                    Err(Error::Fenced | Error::Conflict { .. }) => self.count("accepted too late"),
                    Err(error) => panic!("accept: {error}"),
                },
            }
        }
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

    /// What must hold at every moment.
    async fn check(&mut self) {
        let client = self.database.client().await.unwrap();
        for (name, query) in INVARIANTS {
            let rows = client.query(*query, &[]).await.unwrap();
            let Some(broken) = rows.first() else { continue };
            let history = "select concat_ws(' ', e.at, e.task_id, e.epoch, e.type, e.body) from convoke.events e \
                where e.task_id::text = $1 or e.task_id = (select parent_id from convoke.tasks where id::text = $1) \
                order by e.seq";
            let subject: String = broken.get(0);
            let events = client.query(history, &[&subject]).await.unwrap();
            let events: Vec<String> = events.iter().map(|event| event.get(0)).collect();
            panic!("after {} steps {name} is broken by {subject}:\n{}", self.steps, events.join("\n"));
        }
        let rows = client.query("select id, state, epoch, result from convoke.tasks", &[]).await.unwrap();
        for row in rows {
            let task = TaskId::from(row.get::<_, uuid::Uuid>(0));
            let state = TaskState::parse(row.get(1)).unwrap();
            if let Some(before) = self.finals.get(&task) {
                assert_eq!(*before, state, "a final state is not final");
            }
            if state.is_final() {
                self.finals.insert(task, state);
            }
            match self.accepted.get(&task) {
                Some((key, result)) => {
                    assert_eq!((state, row.get::<_, i64>(2)), (TaskState::Completed, key.epoch.0));
                    assert_eq!(row.get::<_, Option<Value>>(3).as_ref(), Some(result));
                }
                None => assert_ne!(state, TaskState::Completed, "{task} is completed by nobody"),
            }
        }
    }

    /// No more requests: every task must come to its end.
    async fn end(&mut self) {
        for _ in 0..400 {
            for _ in 0..4 {
                self.tick(false).await;
            }
            self.check().await;
            if self.finals.len() == self.tasks.len() {
                return;
            }
            self.pass(TimeDelta::seconds(60)).await;
        }
        let filter = Filter::default();
        let left = self.nodes[0].tasks.list(&filter).await.unwrap();
        let left: Vec<_> = left.iter().filter(|task| !task.state.is_final()).collect();
        panic!("{} tasks never end, like {:?}", self.tasks.len() - self.finals.len(), left.first());
    }

    /// What happened, without the ids that differ from run to run.
    async fn history(&self) -> String {
        let rows = self
            .admin
            .query(
                "select e.type, e.at, coalesce(e.agent_id, '-'), coalesce(e.epoch, 0), t.input ->> 'number'
                 from convoke.events e join convoke.tasks t on t.id = e.task_id
                 order by e.at, (t.input ->> 'number')::int, e.epoch, e.type, e.agent_id",
                &[],
            )
            .await
            .unwrap();
        let mut hash = Sha256::new();
        for row in rows {
            let at: DateTime<Utc> = row.get(1);
            let (kind, agent, number): (&str, &str, &str) = (row.get(0), row.get(2), row.get(4));
            hash.update(format!("{kind} {at} {agent} {} {number}\n", row.get::<_, i64>(3)));
        }
        hash.finalize()[..8].iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

/// From here on the runtime's time moves only when it is told to, until this is dropped: a paused clock would
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

fn from_environment(name: &str, otherwise: u64) -> u64 {
    std::env::var(name).ok().map_or(otherwise, |text| text.parse().unwrap())
}

#[tokio::test]
async fn whatever_happens_every_task_ends_once_and_no_invariant_breaks() {
    let steps = from_environment("CONVOKE_SIMULATION_STEPS", 3_000);
    let seed = from_environment("CONVOKE_SIMULATION_SEED", rand::random_range(0..1_000_000));
    println!("CONVOKE_SIMULATION_SEED={seed} gives this run again");
    simulate(seed, steps).await;
}

#[tokio::test]
async fn a_seed_gives_the_same_history_again() {
    assert_eq!(simulate(7, 400).await, simulate(7, 400).await);
}
