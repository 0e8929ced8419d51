//! The negotiation: a durable Contract Net with confirmation (`reference/negotiation.md`).
//!
//! Owns the tables `convoke.tasks`, `offers`, `assignments`, `agents`, `statistics`,
//! `events`, `wakes` and `bursts`; nobody else writes them. [`Tasks`] is the way in: each
//! command waits for the commit that carries it out. The [`arbiter`](Tasks::arbitrate)
//! looks when something changed or came due, and awards. What a commit did is told
//! as [`Notice`]s, which are hints: the rows are the truth.
//!
//! It never names an agent's code, a channel or the log: it fails by refusing a
//! command, and by `Unavailable` while the database is away.
mod arbiter;
mod asks;
mod awards;
mod budget;
mod burst;
mod config;
mod decide;
mod depend;
mod desk;
mod error;
mod fair;
mod fire;
mod invariants;
mod kin;
pub mod machine;
mod offer;
mod policy;
mod query;
mod register;
mod replay;
mod request;
mod retention;
mod roster;
mod rounds;
pub mod score;
mod store;
mod types;
mod waits;
mod wake;
mod why;

mod lane;
pub use arbiter::Arbiter;
pub(crate) use budget::wanting;
pub use budget::{Amount, Budget, Short};
pub use burst::Burst;
pub use config::{Config, FOREVER};
pub use error::Error;
pub use fire::Schedule;
pub use invariants::INVARIANTS;
pub use policy::*;
pub use replay::{Replayed, replay};
pub use types::*;
pub use waits::*;
pub use wake::Wake;

use crate::{
    db::{self, Database},
    fault,
    id::{AgentId, AssignmentId, Epoch, Incarnation, NodeId, OrgId, TaskId},
    scope::{OnExit, Scope},
    telemetry,
};
use desk::{Act, Command, Done};
use lane::{Lane, lane};
use parking_lot::Mutex;
use prometheus_client::metrics::counter::Counter;
use roster::Roster;

use serde_json::Value;
use std::{
    collections::{HashMap, HashSet},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};
use tokio::sync::{Notify, Semaphore, mpsc, watch};
use tokio_postgres::types::ToSql;

/// Largest input of a task, in bytes of JSON.
pub const INPUT_BYTES_MAX: usize = 1 << 20;
/// Largest result of a task, in bytes of JSON.
pub const RESULT_BYTES_MAX: usize = 1 << 20;
/// Tasks that one task may depend on.
pub const DEPENDS_ON_MAX: usize = 100;
/// Longest question, in bytes.
pub const QUESTION_BYTES_MAX: usize = 4000;
/// How much of an input is shown before a task is accepted, in characters.
pub const PREVIEW_CHARS_MAX: i32 = 500;
/// Requests of one org that may be under way: what is more waits, and holds up no other org.
const REQUESTS_EACH_MAX: usize = 512;
/// Orgs whose requests are counted; those that have none under way are forgotten beyond it.
const ORGS_MAX: usize = 1000;
/// Notices that may wait to be told; more are dropped and counted, since they are hints.
const NOTICES_MAX: usize = 16_384;

/// What the task store counts.
#[derive(Clone, Debug, Default)]
pub struct Metrics {
    requested: Counter,
    awarded: Counter,
    ended: Counter,
    notices_dropped: Counter,
}

impl Metrics {
    /// Adds them to the registry.
    #[must_use]
    pub fn register(registry: &telemetry::Registry) -> Self {
        let metrics = Self::default();
        registry.register("tasks_requested", "Tasks requested on this node", metrics.requested.clone());
        registry.register("tasks_awarded", "Awards made on this node", metrics.awarded.clone());
        registry.register(
            "task_assignments_ended",
            "Assignments that ended, in any way",
            metrics.ended.clone(),
        );
        registry.register(
            "task_notices_dropped",
            "Hints not delivered because their queue was full",
            metrics.notices_dropped.clone(),
        );
        metrics
    }
}

/// What every part of the store knows.
struct Shared {
    database: Database,
    node: NodeId,
    defaults: Policy,
    kinds: HashMap<String, Policy>,
    retention: Option<Duration>,
    turns: Mutex<HashMap<OrgId, Arc<Semaphore>>>,
    roster: Mutex<Roster>,
    poke: Notify,
    changed: watch::Sender<u64>,
    notices: mpsc::Sender<Vec<Notice>>,
    metrics: Metrics,
    /// Whether the arbiter runs on this node; else what is committed here must be told to another.
    arbitrates: AtomicBool,
    told_by_log: AtomicBool,
    /// Whether the roster may say something else than the rows.
    roster_doubted: AtomicBool,
    /// Classes whose ready tasks wait for a slot: new ones must not overtake them.
    backlog: Mutex<HashSet<i64>>,
}

impl Shared {
    /// In a transaction that leaves work for the arbiter: wakes it through the log if it is elsewhere.
    async fn call_arbiter(&self, tx: &deadpool_postgres::Transaction<'_>) -> Result<(), Error> {
        if !self.arbitrates.load(Ordering::Relaxed) {
            store::run(tx, "select pg_logical_emit_message(true, 'convoke', '')", &[]).await?;
        }
        Ok(())
    }

    /// The policy of tasks of this kind that say nothing of their own.
    fn policy_for(&self, kind: &str) -> &Policy {
        self.kinds.get(kind).unwrap_or(&self.defaults)
    }

    /// The policy of a task from its kind and the patch in its row.
    fn policy(&self, kind: &str, patch: &Value) -> Result<Policy, String> {
        match patch {
            Value::Object(patch) => self.policy_for(kind).with(patch),
            _ => Err("policy is not an object".into()),
        }
    }

    /// What bounds the requests of an org.
    fn turn_of(&self, org: &OrgId) -> Arc<Semaphore> {
        let mut turns = self.turns.lock();
        if turns.len() > ORGS_MAX {
            turns.retain(|_, turn| Arc::strong_count(turn) > 1);
        }
        turns.entry(org.clone()).or_insert_with(|| Arc::new(Semaphore::new(REQUESTS_EACH_MAX))).clone()
    }

    fn doubt(&self) -> Doubt<'_> {
        Doubt(Some(self))
    }

    /// After a commit: tells the arbiter, the long polls and the listeners.
    fn committed(&self, notices: Vec<Notice>, look: bool) {
        if look {
            self.poke.notify_one();
        }
        if notices.is_empty() {
            return;
        }
        self.changed.send_modify(|ticks| *ticks = ticks.wrapping_add(1));
        if self.notices.try_send(notices).is_err() {
            self.metrics.notices_dropped.inc();
        }
    }
}

/// Slots taken in the roster for awards that may not commit. Unless it is dispelled, the roster is read again.
struct Doubt<'a>(Option<&'a Shared>);

impl Doubt<'_> {
    /// The transaction has committed: the roster is right.
    fn dispel(mut self) {
        self.0 = None;
    }
}

impl Drop for Doubt<'_> {
    fn drop(&mut self) {
        if let Some(shared) = self.0 {
            shared.roster_doubted.store(true, Ordering::Relaxed);
        }
    }
}

/// Address of the task store. Cloning is cheap.
#[derive(Clone)]
pub struct Tasks {
    shared: Arc<Shared>,
    requests: Lane<request::New, Requested>,
    /// Accepts, which the work waits for, do not queue behind endings, which wait for the disk.
    accepts: Lane<Command, Done>,
    endings: Lane<Command, Done>,
    reports: Lane<Report, ()>,
}

impl std::fmt::Debug for Tasks {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tasks").field("node", &self.shared.node).finish_non_exhaustive()
    }
}

/// A sign of life, with or without evidence of work.
#[derive(Clone, Debug)]
struct Report {
    key: AssignmentKey,
    agent: AgentId,
    evidence: Option<Progress>,
}

impl Tasks {
    /// Starts the store's lanes in `scope`. Notices of each commit come from the receiver.
    #[must_use]
    pub fn start(
        scope: &Scope,
        database: Database,
        node: NodeId,
        config: &Config,
        metrics: Metrics,
    ) -> (Self, mpsc::Receiver<Vec<Notice>>) {
        let (notices, heard) = mpsc::channel(NOTICES_MAX);
        let shared = Arc::new(Shared {
            database,
            node,
            defaults: config.policy.clone(),
            kinds: config.of_kinds(),
            retention: Some(config.retention).filter(|keep| *keep < FOREVER),
            turns: Mutex::default(),
            roster: Mutex::default(),
            poke: Notify::new(),
            changed: watch::Sender::new(0),
            notices,
            metrics,
            arbitrates: AtomicBool::new(false),
            told_by_log: AtomicBool::new(false),
            roster_doubted: AtomicBool::new(false),
            backlog: Mutex::default(),
        });
        let (requests, request_box) = lane();
        let (accepts, accept_box) = lane();
        let (endings, ending_box) = lane();
        let (reports, report_box) = lane();

        let context = shared.clone();
        scope.spawn("task requests", OnExit::StopDaemon, |stop| async move {
            let work = |batch| request::make(context.clone(), batch);
            request_box.serve(stop, |_: &request::New| None::<()>, work).await;
            Ok(())
        });
        for (name, mailbox) in [("task accepts", accept_box), ("task endings", ending_box)] {
            let context = shared.clone();
            scope.spawn(name, OnExit::StopDaemon, |stop| async move {
                let work = |batch| carry_out(context.clone(), batch);
                mailbox.serve(stop, |command: &Command| Some(command.task), work).await;
                Ok(())
            });
        }
        let context = shared.clone();
        scope.spawn("task reports", OnExit::StopDaemon, |stop| async move {
            let work = |batch| report(context.clone(), batch);
            report_box.serve(stop, |report: &Report| Some(report.key.assignment_id), work).await;
            Ok(())
        });
        (Self { shared, requests, accepts, endings, reports }, heard)
    }

    /// Looks whenever something changed or came due, and awards, until `scope` stops.
    /// One node does this at a time: the one that leads.
    pub fn arbitrate(&self, scope: &Scope) {
        self.shared.arbitrates.store(true, Ordering::Relaxed);
        let shared = self.shared.clone();
        scope.spawn("arbiter", OnExit::StopDaemon, |stop| arbiter::serve(shared, stop));
        let shared = self.shared.clone();
        scope.spawn("task retention", OnExit::Log, |stop| retention::serve(shared, stop));
    }

    /// An arbiter that looks only when it is told to: for simulations, and tools that keep their own time.
    /// Instead of [`Tasks::arbitrate`].
    #[must_use]
    pub fn arbiter(&self) -> Arbiter {
        self.shared.arbitrates.store(true, Ordering::Relaxed);
        Arbiter::new(self.shared.clone())
    }

    /// Another node arbitrates from now on; the scope of [`Tasks::arbitrate`] has stopped.
    pub fn stand_by(&self) {
        self.shared.arbitrates.store(false, Ordering::Relaxed);
    }

    /// Asks the arbiter to look; carries no data and may be called for nothing.
    pub fn poke(&self) {
        self.shared.poke.notify_one();
    }

    /// A commit of another session asked for a look, as the log told. The log may tell before the commit
    /// can be seen, so the arbiter looks again for a moment.
    pub fn poke_by_log(&self) {
        self.shared.told_by_log.store(true, Ordering::Relaxed);
        self.shared.poke.notify_one();
    }

    /// Ticks after every commit of this node that changed a task: for long polls.
    #[must_use]
    pub fn changed(&self) -> watch::Receiver<u64> {
        self.shared.changed.subscribe()
    }

    /// Requests a task.
    ///
    /// # Errors
    /// `BadRequest` and `TooLarge` say what to change; `IdempotencyConflict` when the key was
    /// used for another request.
    pub async fn request(&self, org: &OrgId, requester: &str, request: Request) -> Result<Requested, Error> {
        let new = request::New::check(&self.shared, org, requester, request)?;
        self.send_request(new).await
    }

    async fn send_request(&self, new: request::New) -> Result<Requested, Error> {
        let turn = self.shared.turn_of(&new.org);
        let _turn = turn.acquire().await.map_err(|_| Error::Unavailable(None))?;
        self.requests.send(new).await
    }

    /// Accepts an award and starts the work; a repeat gets the same answer. Of a task with a budget, what was
    /// offered is reserved; one that has not so much left waits for more.
    ///
    /// # Errors
    /// `Fenced` when the award is over, `Conflict` when the task waits for budget now.
    pub async fn accept(&self, key: AssignmentKey, agent: &AgentId) -> Result<Start, Error> {
        match self.command(key, agent, Act::Accept).await? {
            Done::Started(start) => {
                if start.budgeted {
                    self.afford(key, agent).await?;
                }
                Ok(*start)
            }
            Done::Moved(_) | Done::Nothing => Err(Error::Fenced),
        }
    }

    /// Refuses an award: the next standby offer gets it.
    ///
    /// # Errors
    /// `Fenced` when the award is over, `Conflict` when the work has started.
    pub async fn refuse(&self, key: AssignmentKey, agent: &AgentId, reason: &str) -> Result<(), Error> {
        self.command(key, agent, Act::Refuse { reason: reason.to_owned() }).await.map(drop)
    }

    /// Reports evidence of work; also renews the lease.
    ///
    /// # Errors
    /// `Fenced` when the assignment is over: the work must stop.
    pub async fn progress(
        &self,
        key: AssignmentKey,
        agent: &AgentId,
        progress: Progress,
    ) -> Result<(), Error> {
        if progress.progress.is_some_and(|share| !(0.0..=1.0).contains(&share)) {
            return Err(Error::BadRequest("progress is not between 0 and 1".into()));
        }
        if progress.activity.as_ref().is_some_and(|text| text.len() > 1000) {
            return Err(Error::BadRequest("activity is longer than 1000 bytes".into()));
        }
        if let Some(checkpoint) = &progress.checkpoint {
            request::check_json("checkpoint", checkpoint, RESULT_BYTES_MAX)?;
        }
        self.reports.send(Report { key, agent: agent.clone(), evidence: Some(progress) }).await
    }

    /// Renews the lease, without evidence of work.
    ///
    /// # Errors
    /// `Fenced` when the assignment is over: the work must stop.
    pub async fn heartbeat(&self, key: AssignmentKey, agent: &AgentId) -> Result<(), Error> {
        self.reports.send(Report { key, agent: agent.clone(), evidence: None }).await
    }

    /// Delivers the result; a repeat gets the same answer.
    ///
    /// # Errors
    /// `Fenced` when the assignment is over: the result is kept in the event log only.
    /// `Conflict` when the task was canceled meanwhile.
    pub async fn finish(
        &self,
        key: AssignmentKey,
        agent: &AgentId,
        result: Value,
        usage: Usage,
    ) -> Result<Update, Error> {
        request::check_json("result", &result, RESULT_BYTES_MAX)?;
        fault::point("task.finishing");
        self.ended(key, agent, Act::Finish { result, usage }).await
    }

    /// Reports that the attempt failed; another follows while the policy allows it.
    ///
    /// # Errors
    /// As [`Tasks::finish`].
    pub async fn fail(&self, key: AssignmentKey, agent: &AgentId, failure: Failure) -> Result<Update, Error> {
        let mut failure = failure;
        failure.message = request::one_line(&failure.message, 1000);
        self.ended(key, agent, Act::Fail(failure)).await
    }

    /// Gives the task back, with what a next assignee could go on from.
    ///
    /// # Errors
    /// As [`Tasks::finish`].
    pub async fn release(
        &self,
        key: AssignmentKey,
        agent: &AgentId,
        reason: &str,
        checkpoint: Option<Value>,
    ) -> Result<Update, Error> {
        if let Some(checkpoint) = &checkpoint {
            request::check_json("checkpoint", checkpoint, RESULT_BYTES_MAX)?;
        }
        self.ended(key, agent, Act::Release { reason: request::one_line(reason, 1000), checkpoint }).await
    }

    /// The holder is gone for good: the task is given to another at once.
    ///
    /// # Errors
    /// `Fenced` when the assignment is over anyway.
    pub async fn lost(&self, key: AssignmentKey, agent: &AgentId) -> Result<Update, Error> {
        self.ended(key, agent, Act::Lost).await
    }

    /// Cancels a task: at once if nobody works on it, else after the assignee stopped or the grace is over.
    ///
    /// # Errors
    /// `UnknownTask`, or `Conflict` with the state when it has ended.
    pub async fn cancel(&self, task: TaskId, reason: &str) -> Result<Update, Error> {
        let act = Act::Cancel { reason: request::one_line(reason, 1000) };
        match self.endings.send(Command { task, holder: None, act }).await? {
            Done::Moved(update) => Ok(update),
            Done::Started(_) | Done::Nothing => Err(Error::UnknownTask(task)),
        }
    }

    async fn command(&self, key: AssignmentKey, agent: &AgentId, act: Act) -> Result<Done, Error> {
        let command = Command { task: key.task_id, holder: Some((key, agent.clone())), act };
        let lane = if matches!(command.act, Act::Accept) { &self.accepts } else { &self.endings };
        match lane.send(command).await {
            Err(Error::UnknownTask(_)) => Err(Error::Fenced),
            answer => answer,
        }
    }

    async fn ended(&self, key: AssignmentKey, agent: &AgentId, act: Act) -> Result<Update, Error> {
        match self.command(key, agent, act).await? {
            Done::Moved(update) => Ok(update),
            Done::Started(_) | Done::Nothing => Err(Error::Fenced),
        }
    }
}

/// A batch of accepts or of endings: one transaction. An ending is answered when it is on disk.
async fn carry_out(shared: Arc<Shared>, batch: Vec<Command>) -> Result<Vec<Result<Done, Error>>, Error> {
    let mut client = shared.database.client().await?;
    let tx = client.transaction().await.map_err(db::Error::from)?;
    let ((), outcome) =
        futures_util::future::try_join(store::relax(&tx), desk::carry_out(&shared, &tx, &batch)).await?;
    if outcome.leaves_work() {
        shared.call_arbiter(&tx).await?;
    }
    fault::point("task.desk.before_commit");
    tx.commit().await.map_err(db::Error::from)?;
    if outcome.soon || outcome.look {
        shared.poke.notify_one();
    }
    release(&shared, &outcome.freed);
    told(&shared, &outcome.freed, outcome.notices);
    if batch.iter().all(|command| matches!(command.act, Act::Accept)) {
        fault::point("task.accepted");
        return Ok(outcome.answers);
    }
    store::flush(&client).await?;
    if batch.iter().any(|command| matches!(command.act, Act::Finish { .. })) {
        fault::point("task.finished");
    }
    Ok(outcome.answers)
}

fn reopens(notice: &Notice) -> bool {
    matches!(notice, Notice::Updated(update) if matches!(update.state, TaskState::Open | TaskState::Canceling))
}

/// Gives back the slots of assignments that ended.
fn release(shared: &Shared, freed: &[AgentId]) {
    shared.metrics.ended.inc_by(freed.len() as u64);
    let mut roster = shared.roster.lock();
    for agent in freed {
        roster.freed(agent);
    }
}

/// Tells what a commit did; `freed`: whose slots it gave back.
fn told(shared: &Shared, freed: &[AgentId], notices: Vec<Notice>) {
    let reopened = notices.iter().any(reopens);
    shared.committed(notices, reopened || !freed.is_empty());
}

/// A batch of the report lane: one statement.
async fn report(shared: Arc<Shared>, batch: Vec<Report>) -> Result<Vec<Result<(), Error>>, Error> {
    let mut client = shared.database.client().await?;
    let tx = client.transaction().await.map_err(db::Error::from)?;
    let tasks: Vec<uuid::Uuid> = batch.iter().map(|r| r.key.task_id.as_uuid()).collect();
    let assignments: Vec<uuid::Uuid> = batch.iter().map(|r| r.key.assignment_id.as_uuid()).collect();
    let epochs: Vec<i64> = batch.iter().map(|r| r.key.epoch.0).collect();
    let agents: Vec<&str> = batch.iter().map(|r| r.agent.as_str()).collect();
    let evidence: Vec<bool> = batch.iter().map(|r| r.evidence.is_some()).collect();
    let part = |r: &Report| r.evidence.clone().unwrap_or_default();
    let progress: Vec<Option<f32>> = batch.iter().map(|r| part(r).progress).collect();
    let activity: Vec<Option<String>> = batch.iter().map(|r| part(r).activity).collect();
    let checkpoints: Vec<Option<Value>> = batch.iter().map(|r| part(r).checkpoint).collect();
    let params: [&(dyn ToSql + Sync); 8] =
        [&tasks, &assignments, &epochs, &agents, &evidence, &progress, &activity, &checkpoints];
    let written = store::run(&tx, store::sql!("progress"), &params);
    let ((), rows) = futures_util::future::try_join(store::relax(&tx), written).await?;
    tx.commit().await.map_err(db::Error::from)?;
    let renewed: std::collections::HashSet<uuid::Uuid> = rows.iter().map(|row| row.get("id")).collect();
    if batch.iter().any(|r| r.evidence.is_some()) {
        shared.changed.send_modify(|ticks| *ticks = ticks.wrapping_add(1));
    }
    Ok(assignments.iter().map(|id| if renewed.contains(id) { Ok(()) } else { Err(Error::Fenced) }).collect())
}
