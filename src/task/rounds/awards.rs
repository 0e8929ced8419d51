//! Writes the plan of a round: empty rounds, announcements, offers, awards, ends.
//!
//! The arbiter uses it for tasks that were ready or whose round is over. Requests, wakes and bursts use it for tasks
//! that they insert: when no task of the class waits before them, they are inserted and awarded in one commit.
use crate::fault;
use crate::task::commands::fresh_awards::FreshAward;
use crate::task::rounds::round::{Exhausted, Plan};
use crate::task::rounds::tally::Decided;
use crate::task::storage::candidate::Candidate;
use crate::task::storage::columns::columns;
use crate::task::storage::rows::{self, Columns, Unreadable};
use crate::task::storage::statement::{run, sql};
use crate::task::storage::store::{self, StoredOffer, Winner};
use crate::task::storage::transaction::{Flushed, Transaction};
use crate::task::{
    AgentId, Assigned, AssignmentId, AssignmentKey, Epoch, Error, Incarnation, Notice, OfferSummary,
    TaskContext, TaskId, TaskState, Update,
};
use chrono::{DateTime, Utc};
use futures_util::future::{ready, try_join};
use serde_json::Value;
use std::{collections::HashMap, sync::atomic::Ordering};
use tokio_postgres::{Row, types::Json};
use uuid::Uuid;

/// What was written, to be published after the commit.
#[derive(Debug, Default)]
pub(in crate::task) struct Written {
    notices: Vec<Notice>,
    /// What decided about each offer of the rounds that were awarded.
    decided: Vec<(AgentId, Decided)>,
    awards: usize,
    /// The awards, for their accepts.
    fresh: Vec<FreshAward>,
    announced: bool,
    /// Tasks that moved.
    pub(in crate::task) moved: usize,
    /// Whether the arbiter must poll: a slot that was free in the roster was not, or tasks of a class must wait.
    arbiter_wanted: bool,
}

/// Opens rounds for new tasks, and commits with a flush. `new`: with their classes. `insert` inserts them when it is
/// polled, with a statement that the connection has prepared, or has inserted them. It says whether it inserted all: of
/// those that were there before nothing is written.
pub(in crate::task) async fn award_new<'t, T>(
    context: &TaskContext,
    tx: &Transaction<'t>,
    insert: impl Future<Output = Result<(T, bool), Error>>,
    new: Vec<(i64, Candidate)>,
) -> Result<(T, Written, Flushed<'t>), Error> {
    let (first, later): (Vec<_>, Vec<_>) = {
        let backlog = context.backlog.lock();
        new.into_iter().partition(|(class, _)| !backlog.contains(class))
    };
    if !context.arbitrates.load(Ordering::Relaxed) || first.is_empty() {
        let ((inserted, _), flushed) = tx.commit_after(insert, true).await?;
        return Ok((inserted, Written { arbiter_wanted: true, ..Written::default() }, flushed));
    }
    let (classes, tasks): (Vec<i64>, Vec<Candidate>) = first.into_iter().unzip();
    // A task on which the plan panicked stays open: the arbiter finds it and ends it.
    let (plan, _) = Plan::open_all(context, &tasks);
    let (inserted, mut written, flushed) =
        write_and_commit(context, tx, insert, plan, &tasks, false, true).await?;
    written.arbiter_wanted |= !later.is_empty();
    if written.moved < tasks.len() {
        written.arbiter_wanted = true;
        context.backlog.lock().extend(classes);
    }
    Ok((inserted, written, flushed))
}

/// Writes a plan for tasks whose rows this transaction has locked, or inserts with `insert`, and commits. `standing`:
/// their offers are rows already. `new`: this transaction inserts the tasks, and a flush follows the commit. A plan of
/// nothing but awards takes one round trip with `insert` and the commit.
pub(in crate::task) async fn write_and_commit<'t, T>(
    context: &TaskContext,
    tx: &Transaction<'t>,
    insert: impl Future<Output = Result<(T, bool), Error>>,
    plan: Plan,
    tasks: &[Candidate],
    standing: bool,
    new: bool,
) -> Result<(T, Written, Flushed<'t>), Error> {
    if !plan.is_plain() {
        let (inserted, all) = insert.await?;
        if !all {
            // The plan has rounds for tasks that were there before: the arbiter opens those of the others.
            context.roster_stale.store(true, Ordering::Relaxed);
            let ((), flushed) = tx.commit_after(ready(Ok(())), new).await?;
            return Ok((inserted, Written { arbiter_wanted: true, ..Written::default() }, flushed));
        }
        let written = write(context, tx, plan, tasks, standing, new).await?;
        if written.awards > 0 {
            fault::point(fault::Point::TaskAwardBeforeCommit);
        }
        let ((), flushed) = tx.commit_after(ready(Ok(())), new).await?;
        return Ok((inserted, written, flushed));
    }
    fault::point(fault::Point::TaskAwardBeforeCommit);
    // A connection that must prepare the award would send it behind the commit.
    tx.prepare_all(&[sql!("lock_agents"), sql!("award")]).await?;
    // In this order on one connection: the award finds the tasks that were inserted.
    let award = store::award(tx, context.node.as_uuid(), &plan.winners, standing, new);
    let (((inserted, _), awards), flushed) = tx.commit_after(try_join(insert, award), new).await?;
    let round = RoundNotices::new(&plan, tasks);
    let (made, decided) = (awards.len(), round.decided(&awards)?);
    let mut written = Written { decided, awards: made, moved: made, ..Written::default() };
    for row in &awards {
        round.awarded(row, &mut written)?;
    }
    if awards.len() < plan.winners.len() {
        // A slot was free in the roster only. Its task is as it was.
        context.roster_stale.store(true, Ordering::Relaxed);
        written.arbiter_wanted = true;
    }
    Ok((inserted, written, flushed))
}

/// Writes a plan for tasks whose rows this transaction has locked.
async fn write(
    context: &TaskContext,
    tx: &Transaction<'_>,
    mut plan: Plan,
    tasks: &[Candidate],
    standing: bool,
    new: bool,
) -> Result<Written, Error> {
    decide_exhausted(tx, &mut plan).await?;
    let plan = &plan;
    let ready: Vec<Uuid> = plan.ready.iter().map(|id| id.as_uuid()).collect();
    if !ready.is_empty() {
        run(tx, sql!("mark_ready"), &[&ready]).await?;
    }
    write_empty(tx, plan).await?;
    let windows = write_announced(tx, plan).await?;
    tx.prepare_all(&[sql!("offers"), sql!("award")]).await?;
    // In this order: an offer is written before the award marks it.
    let ((), awards) = try_join(
        store::offers(tx, &plan.offers),
        store::award(tx, context.node.as_uuid(), &plan.winners, standing, new),
    )
    .await?;
    let short = awards.len() < plan.winners.len();
    if short {
        withdraw(tx, plan, &awards).await?;
        context.roster_stale.store(true, Ordering::Relaxed);
    }
    let ended = store::settle(tx, &plan.settled).await?;
    let round = RoundNotices::new(plan, tasks);
    let mut written = Written { notices: round.announced(&windows), ..Written::default() };
    for row in &awards {
        round.awarded(row, &mut written)?;
    }
    for row in &ended {
        written.notices.push(Notice::Updated(Update::from_row(row)?));
    }
    Ok(Written {
        decided: round.decided(&awards)?,
        awards: awards.len(),
        announced: !plan.announced.is_empty(),
        moved: awards.len() + ended.len() + plan.announced.len() + plan.empty.len(),
        // A backoff may end before the next poll.
        arbiter_wanted: short || !plan.empty.is_empty(),
        ..written
    })
}

/// Publishes what was written, after the commit.
pub(in crate::task) fn publish(context: &TaskContext, written: Written) {
    if written.awards > 0 {
        fault::point(fault::Point::TaskAwarded);
    }
    if written.announced {
        fault::point(fault::Point::TaskAnnounced);
    }
    context.metrics.awarded.inc_by(written.awards as u64);
    if written.arbiter_wanted || written.announced {
        context.notify_arbiter();
    }
    context.offers.count(written.decided);
    // Before the agents hear of them.
    context.fresh_awards.keep(written.fresh);
    context.publish(written.notices);
}

/// Opens the offers of winners again whose agent had no free slot.
async fn withdraw(tx: &Transaction<'_>, plan: &Plan, awards: &[Row]) -> Result<(), Error> {
    let made: Vec<TaskId> = rows::all::<Uuid>(awards, "id")?.into_iter().map(TaskId::from).collect();
    let lost = plan.winners.iter().filter(|winner| !made.contains(&winner.task));
    let columns = columns!("withdraw", lost, |winner| {
        task_id: Uuid = winner.task.as_uuid(),
        round: i32 = winner.round,
    });
    columns.run(tx, &[]).await.map(drop)
}

/// Decides about tasks whose rounds are used up: another empty round for those that wait for an agent, the end
/// of the others. Only the rows know which agents are expected.
async fn decide_exhausted(tx: &Transaction<'_>, plan: &mut Plan) -> Result<(), Error> {
    let exhausted = std::mem::take(&mut plan.exhausted);
    if exhausted.is_empty() {
        return Ok(());
    }
    let columns = columns!("awaited", &exhausted, |it| {
        task_id: Uuid = it.empty.task.as_uuid(),
        absence_ms: i64 = it.absence_ms,
        agent: Option<&str> = it.agent.as_ref().map(AgentId::as_str),
        none_seen: bool = it.none_seen,
    });
    let rows = columns.run(tx, &[]).await?;
    drop(columns);
    let awaited: Vec<Uuid> = rows::all(&rows, "id")?;
    for Exhausted { empty, end, .. } in exhausted {
        if awaited.contains(&empty.task.as_uuid()) {
            plan.empty.push(empty);
        } else {
            plan.settled.push(end);
        }
    }
    Ok(())
}

async fn write_empty(tx: &Transaction<'_>, plan: &Plan) -> Result<(), Error> {
    if plan.empty.is_empty() {
        return Ok(());
    }
    let columns = columns!("empty_round", &plan.empty, |empty| {
        task_id: Uuid = empty.task.as_uuid(),
        round: i32 = empty.round,
        backoff_ms: i64 = empty.backoff_ms,
        reasons: &Value = &empty.reasons,
    });
    columns.run(tx, &[]).await.map(drop)
}

/// A round as it was opened.
struct OpenRound {
    bids_close_at: DateTime<Utc>,
    /// The version of the task's row.
    version: i64,
}

async fn write_announced(tx: &Transaction<'_>, plan: &Plan) -> Result<HashMap<TaskId, OpenRound>, Error> {
    if plan.announced.is_empty() {
        return Ok(HashMap::new());
    }
    let columns = columns!("announce", &plan.announced, |it| {
        task_id: Uuid = it.task.as_uuid(),
        round: i32 = it.round,
        window_ms: i64 = it.window_ms,
        eligible: Json<&Vec<AgentId>> = Json(&it.eligible),
        silent: &Value = &it.silent,
    });
    let rows = columns.run(tx, &[]).await?;
    let open = |row: &Row| {
        let (bids_close_at, version) = (row.read("bids_close_at")?, row.read("version")?);
        Ok((rows::task_id(row, "id")?, OpenRound { bids_close_at, version }))
    };
    rows.iter().map(open).collect()
}

/// Makes the notices of a plan that was written.
struct RoundNotices<'a> {
    plan: &'a Plan,
    winners: HashMap<TaskId, &'a Winner>,
    tasks: HashMap<TaskId, &'a Candidate>,
}

impl<'a> RoundNotices<'a> {
    fn new(plan: &'a Plan, tasks: &'a [Candidate]) -> Self {
        Self {
            plan,
            winners: plan.winners.iter().map(|winner| (winner.task, winner)).collect(),
            tasks: tasks.iter().map(|task| (task.id, task)).collect(),
        }
    }

    /// What decided about each offer of the rounds that were awarded.
    fn decided(&self, awards: &[Row]) -> Result<Vec<(AgentId, Decided)>, Unreadable> {
        let mut decided = Vec::new();
        for row in awards {
            let winner = self.winners.get(&rows::task_id(row, "id")?);
            decided.extend(winner.into_iter().flat_map(|winner| winner.decided.iter().cloned()));
        }
        Ok(decided)
    }

    fn update(&self, id: TaskId, state: TaskState, epoch: Epoch, version: i64) -> Option<Update> {
        let task = self.tasks.get(&id)?;
        Some(Update {
            id,
            org: task.org.clone(),
            kind: task.kind.clone(),
            state,
            state_reason: None,
            epoch,
            agent_id: None,
            requester: task.requester.clone(),
            version,
        })
    }

    fn announced(&self, windows: &HashMap<TaskId, OpenRound>) -> Vec<Notice> {
        let rounds = self.plan.announced.iter().filter_map(|round| {
            // A round that was not written, because its task has moved on, is announced by nobody.
            let open = windows.get(&round.task)?;
            let task = self.update(round.task, TaskState::Open, Epoch(0), open.version)?;
            let offers = self.offers(round.task);
            let offered = (!offers.is_empty()).then(|| Notice::Offered {
                task: task.clone(),
                round: round.round,
                offers,
            });
            let announced = Notice::Announced {
                task,
                round: round.round,
                bids_close_at: Some(open.bids_close_at),
                eligible: round.eligible.clone(),
            };
            Some([Some(announced), offered])
        });
        rounds.flatten().flatten().collect()
    }

    /// The offers on an announced task.
    fn offers(&self, task: TaskId) -> Vec<OfferSummary> {
        let offers = self.plan.offers.iter().filter(|offer| offer.task == task);
        let summary = |offer: &StoredOffer| OfferSummary {
            agent_id: offer.agent.clone(),
            cost_microdollars: offer.cost_microdollars,
            eta_ms: offer.eta_ms,
            confidence: offer.confidence,
        };
        offers.map(summary).collect()
    }

    /// Adds an award that was made.
    fn awarded(&self, row: &Row, written: &mut Written) -> Result<(), Unreadable> {
        let id = rows::task_id(row, "id")?;
        let epoch = Epoch(row.read("epoch")?);
        let (Some(mut update), Some(agent)) =
            (self.update(id, TaskState::Awarded, epoch, row.read("version")?), rows::agent(row, "agent_id")?)
        else {
            return Ok(());
        };
        update.agent_id = Some(agent.clone());
        let winner = self.winners.get(&id);
        let round = winner.map_or(0, |winner| winner.round);
        let offers = winner.map(|winner| winner.new_offers.clone()).unwrap_or_default();
        let assigned = Assigned {
            key: AssignmentKey {
                task_id: id,
                assignment_id: AssignmentId::from(row.read::<Uuid>("assignment_id")?),
                epoch,
            },
            org: update.org.clone(),
            kind: update.kind.clone(),
            agent_id: agent,
            incarnation: Incarnation(row.read("incarnation")?),
            confirm_by: row.read("due_at")?,
            requester: update.requester.clone(),
        };
        let offered = (!offers.is_empty()).then(|| Notice::Offered { task: update.clone(), round, offers });
        written.fresh.extend(self.tasks.get(&id).map(|task| FreshAward {
            assigned: assigned.clone(),
            task: update.clone(),
            policy: task.policy.clone(),
        }));
        let notices = [Some(Notice::Assigned(assigned)), offered, Some(Notice::Updated(update))];
        written.notices.extend(notices.into_iter().flatten());
        Ok(())
    }
}
