//! Writing what a round comes to: empty rounds, announcements, offers, awards, ends.
//!
//! Used by the arbiter for tasks that were ready or whose round is over, and by the
//! request lane and the wakes for tasks that are just being made: when nobody of their
//! class waits before them, they are made and awarded in one commit.
use super::rounds::{Candidate, Plan};
use super::store::{self, run, sql};
use super::{
    AgentId, Assigned, AssignmentId, AssignmentKey, Epoch, Error, Incarnation, Notice, OrgId, Shared, TaskId,
    TaskState, Update,
};
use crate::fault;
use chrono::{DateTime, Utc};
use deadpool_postgres::Transaction;
use serde_json::Value;
use std::{collections::HashMap, sync::atomic::Ordering};
use tokio_postgres::Row;
use uuid::Uuid;

/// What was written, to be told once it has committed.
#[derive(Debug, Default)]
pub(super) struct Written {
    notices: Vec<Notice>,
    awards: usize,
    announced: bool,
    /// Tasks that moved.
    pub(super) moved: usize,
    /// A slot that the roster believed free was not, or tasks of a class must wait: the arbiter should look.
    look: bool,
}

/// Opens rounds for tasks that this transaction has just made. `made`: with their classes.
pub(super) async fn award_new(
    shared: &Shared,
    tx: &Transaction<'_>,
    made: Vec<(i64, Candidate)>,
) -> Result<Written, Error> {
    let (first, later): (Vec<_>, Vec<_>) = {
        let backlog = shared.backlog.lock();
        made.into_iter().partition(|(class, _)| !backlog.contains(class))
    };
    if !shared.arbitrates.load(Ordering::Relaxed) || first.is_empty() {
        return Ok(Written { look: true, ..Written::default() });
    }
    let (classes, tasks): (Vec<i64>, Vec<Candidate>) = first.into_iter().unzip();
    let plan = Plan::open_all(shared, &tasks);
    let mut written = write(shared, tx, &plan, &tasks, false).await?;
    written.look |= !later.is_empty();
    if written.moved < tasks.len() {
        written.look = true;
        shared.backlog.lock().extend(classes);
    }
    Ok(written)
}

/// Writes a plan for tasks whose rows this transaction holds. `standing`: their offers are rows already.
pub(super) async fn write(
    shared: &Shared,
    tx: &Transaction<'_>,
    plan: &Plan,
    tasks: &[Candidate],
    standing: bool,
) -> Result<Written, Error> {
    let ready: Vec<Uuid> = plan.ready.iter().map(|id| id.as_uuid()).collect();
    if !ready.is_empty() {
        run(tx, sql!("reready"), &[&ready]).await?;
    }
    write_empty(tx, plan).await?;
    let windows = write_announced(tx, plan).await?;
    let ((), awards) = futures_util::future::try_join(
        store::offers(tx, &plan.offers),
        store::award(tx, shared.node.as_uuid(), &plan.winners, standing),
    )
    .await?;
    let short = awards.len() < plan.winners.len();
    if short {
        withdraw(tx, plan, &awards).await?;
        shared.roster_doubted.store(true, Ordering::Relaxed);
    }
    let ended = store::settle(tx, &plan.settled).await?;
    let tell = Told { plan, standing, tasks: tasks.iter().map(|task| (task.id, task)).collect() };
    let mut notices = tell.announced(&windows);
    notices.extend(awards.iter().flat_map(|row| tell.awarded(row)));
    notices.extend(ended.iter().filter_map(|row| tell.ended(row)));
    if !awards.is_empty() {
        fault::point("task.award.before_commit");
    }
    Ok(Written {
        notices,
        awards: awards.len(),
        announced: !plan.announced.is_empty(),
        moved: awards.len() + ended.len() + plan.announced.len() + plan.empty.len(),
        look: short,
    })
}

/// The transaction has committed.
pub(super) fn tell(shared: &Shared, written: Written) {
    if written.awards > 0 {
        fault::point("task.awarded");
    }
    if written.announced {
        fault::point("task.announced");
    }
    shared.metrics.awarded.inc_by(written.awards as u64);
    shared.committed(written.notices, written.look || written.announced);
}

/// Winners whose agent had no slot after all: their offers stand as they did before.
async fn withdraw(tx: &Transaction<'_>, plan: &Plan, awards: &[Row]) -> Result<(), Error> {
    let made: Vec<TaskId> = awards.iter().map(|row| TaskId::from(row.get::<_, Uuid>("id"))).collect();
    let lost = plan.winners.iter().filter(|winner| !made.contains(&winner.task));
    let (tasks, rounds): (Vec<Uuid>, Vec<i32>) = lost.map(|w| (w.task.as_uuid(), w.round)).unzip();
    run(tx, sql!("withdraw"), &[&tasks, &rounds]).await.map(drop)
}

async fn write_empty(tx: &Transaction<'_>, plan: &Plan) -> Result<(), Error> {
    if plan.empty.is_empty() {
        return Ok(());
    }
    let tasks: Vec<Uuid> = plan.empty.iter().map(|empty| empty.task.as_uuid()).collect();
    let rounds: Vec<i32> = plan.empty.iter().map(|empty| empty.round).collect();
    let waits: Vec<i64> = plan.empty.iter().map(|empty| empty.backoff_ms).collect();
    let reasons: Vec<&Value> = plan.empty.iter().map(|empty| &empty.reasons).collect();
    run(tx, sql!("empty_round"), &[&tasks, &rounds, &waits, &reasons]).await.map(drop)
}

async fn write_announced(tx: &Transaction<'_>, plan: &Plan) -> Result<HashMap<TaskId, DateTime<Utc>>, Error> {
    if plan.announced.is_empty() {
        return Ok(HashMap::new());
    }
    let tasks: Vec<Uuid> = plan.announced.iter().map(|round| round.task.as_uuid()).collect();
    let rounds: Vec<i32> = plan.announced.iter().map(|round| round.round).collect();
    let windows: Vec<i64> = plan.announced.iter().map(|round| round.window_ms).collect();
    let eligible: Vec<Value> = plan.announced.iter().map(|round| serde_json::json!(round.eligible)).collect();
    let silent: Vec<&Value> = plan.announced.iter().map(|round| &round.silent).collect();
    let rows = run(tx, sql!("announce"), &[&tasks, &rounds, &windows, &eligible, &silent]).await?;
    Ok(rows.iter().map(|row| (TaskId::from(row.get::<_, Uuid>("id")), row.get("bids_close_at"))).collect())
}

/// Makes notices of what was written.
struct Told<'a> {
    plan: &'a Plan,
    standing: bool,
    tasks: HashMap<TaskId, &'a Candidate>,
}

impl Told<'_> {
    fn update(&self, id: TaskId, state: TaskState, epoch: Epoch) -> Option<Update> {
        let task = self.tasks.get(&id)?;
        Some(Update {
            id,
            org: OrgId::try_from(task.org.as_str()).ok()?,
            kind: task.kind.clone(),
            state,
            state_reason: None,
            epoch,
            agent_id: None,
            requester: task.requester.clone(),
        })
    }

    fn announced(&self, windows: &HashMap<TaskId, DateTime<Utc>>) -> Vec<Notice> {
        let rounds = self.plan.announced.iter().filter_map(|round| {
            let task = self.update(round.task, TaskState::Open, Epoch(0))?;
            let offers = self.offers(round.task);
            let offered = (!offers.is_empty()).then(|| Notice::Offered {
                task: task.clone(),
                round: round.round,
                offers,
            });
            let announced = Notice::Announced {
                task,
                round: round.round,
                bids_close_at: windows.get(&round.task).copied(),
                eligible: round.eligible.clone(),
            };
            Some([Some(announced), offered])
        });
        rounds.flatten().flatten().collect()
    }

    /// The offers on a task that are written now.
    fn offers(&self, task: TaskId) -> Vec<(AgentId, u64, u64, f32)> {
        let offers = self.plan.offers.iter().filter(|offer| offer.task == task);
        offers.map(|o| (o.agent.clone(), o.cost_microdollars, o.eta_ms, o.confidence)).collect()
    }

    fn awarded(&self, row: &Row) -> Vec<Notice> {
        let id = TaskId::from(row.get::<_, Uuid>("id"));
        let epoch = Epoch(row.get("epoch"));
        let (Some(mut update), Some(agent)) =
            (self.update(id, TaskState::Awarded, epoch), store::agent_of(row, "agent_id"))
        else {
            return Vec::new();
        };
        update.agent_id = Some(agent.clone());
        let winner = self.plan.winners.iter().find(|winner| winner.task == id);
        let round = winner.map_or(0, |winner| winner.round);
        // Those of a round that was announced were told when they came.
        let offers = if self.standing { Vec::new() } else { self.offers(id) };
        let assigned = Assigned {
            key: AssignmentKey {
                task_id: id,
                assignment_id: AssignmentId::from(row.get::<_, Uuid>("assignment_id")),
                epoch,
            },
            org: update.org.clone(),
            kind: update.kind.clone(),
            agent_id: agent,
            incarnation: Incarnation(row.get("incarnation")),
            confirm_by: row.get("due_at"),
            requester: update.requester.clone(),
        };
        let offered = (!offers.is_empty()).then(|| Notice::Offered { task: update.clone(), round, offers });
        [Some(Notice::Assigned(assigned)), offered, Some(Notice::Updated(update))]
            .into_iter()
            .flatten()
            .collect()
    }

    fn ended(&self, row: &Row) -> Option<Notice> {
        let id = TaskId::from(row.get::<_, Uuid>("id"));
        let mut update = self.update(id, TaskState::parse(row.get("state"))?, Epoch(row.get("epoch")))?;
        update.state_reason = self.plan.settled.iter().find(|s| s.task == id).and_then(|s| s.reason.clone());
        Some(Notice::Updated(update))
    }
}
