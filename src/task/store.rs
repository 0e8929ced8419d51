//! The only writer of the task tables.
//!
//! Every method is one set-based statement from `sql/`, prepared once a
//! connection. What they change is decided elsewhere (`machine`, `desk`,
//! `arbiter`) on rows that this transaction has locked: tasks first, in the order
//! of their ids, then agents, so that no two transactions wait for each other.
//!
//! Transactions commit without waiting for the disk (`docs/decisions/0010-told-when-on-disk.md`):
//! locks are held for as long as the statements run, and what is promised to a
//! requester, an assignee's result or the log's confirmation waits for one flush.
use super::machine::{AssignmentState, Facts};
use super::{AgentId, AssignmentId, AssignmentKey, Epoch, Error, Incarnation, TaskId, TaskState};
use crate::db;
use deadpool_postgres::{Client, Transaction};
use serde_json::Value;
use tokio_postgres::{Row, types::ToSql};
use uuid::Uuid;

macro_rules! sql {
    ($name:literal) => {
        include_str!(concat!("sql/", $name, ".sql"))
    };
}
pub(super) use sql;

/// Runs a statement of `sql/`, prepared once a connection.
pub(super) async fn run(
    tx: &Transaction<'_>,
    statement: &str,
    params: &[&(dyn ToSql + Sync)],
) -> Result<Vec<Row>, Error> {
    let statement = tx.prepare_cached(statement).await.map_err(db::Error::from)?;
    Ok(tx.query(&statement, params).await.map_err(db::Error::from)?)
}

/// Lets this transaction commit without waiting for the disk, so that the rows it holds are free again at
/// once. Whoever promises something on its strength calls [`flush`] first.
pub(super) async fn relax(tx: &Transaction<'_>) -> Result<(), Error> {
    Ok(tx.batch_execute("set local synchronous_commit = off").await.map_err(db::Error::from)?)
}

/// Waits until everything that was committed before is on disk: the commit of a transaction of its own
/// is, and the log is written in order. It must write something of its own: Postgres does not flush the
/// commit of a transaction that has only an id. A sequence takes no lock that others would wait for.
pub(super) async fn flush(client: &Client) -> Result<(), Error> {
    let statement =
        client.prepare_cached("select setval('convoke.flush', 1)").await.map_err(db::Error::from)?;
    client.query(&statement, &[]).await.map_err(db::Error::from)?;
    Ok(())
}

/// A text column as one of our names; a row that breaks its own constraints is a bug told as such.
pub(super) fn agent_of(row: &Row, column: &str) -> Option<AgentId> {
    let text: Option<String> = row.get(column);
    text.and_then(|text| AgentId::try_from(text.as_str()).ok())
}

/// A live assignment as it was locked.
#[derive(Clone, Debug)]
pub(super) struct Live {
    pub(super) key: AssignmentKey,
    pub(super) agent: AgentId,
    pub(super) running: bool,
    pub(super) waiting: bool,
    pub(super) confirmed: bool,
    pub(super) confirm_late: bool,
    pub(super) start_late: bool,
    pub(super) nudged: bool,
    pub(super) lease_late: bool,
    pub(super) attempt_late: bool,
    pub(super) silent_ms: i64,
    pub(super) lease_left_ms: i64,
}

/// A task as it was locked.
#[derive(Clone, Debug)]
pub(super) struct Locked {
    pub(super) id: TaskId,
    pub(super) org: String,
    pub(super) kind: String,
    pub(super) requires: Vec<String>,
    pub(super) facts: Facts,
    pub(super) state_reason: Option<String>,
    pub(super) requester: String,
    pub(super) round: i32,
    pub(super) rounds_empty: i32,
    pub(super) epoch: Epoch,
    pub(super) policy: Value,
    pub(super) tried: Vec<String>,
    pub(super) agent: Option<AgentId>,
    /// Until its `run_at`; 0 or less when that has come or there is none.
    pub(super) run_in_ms: i64,
    pub(super) run_anyway: bool,
    pub(super) depends: bool,
    pub(super) answers: i32,
    pub(super) deadline_came: bool,
    pub(super) bidding: bool,
    pub(super) live: Option<Live>,
}

/// Locks the tasks and reads them with their live assignments; unknown ids are left out.
pub(super) async fn lock(tx: &Transaction<'_>, ids: &[TaskId]) -> Result<Vec<Locked>, Error> {
    let ids: Vec<Uuid> = ids.iter().map(|id| id.as_uuid()).collect();
    let (lock, facts) =
        futures_util::future::try_join(async { tx.prepare_cached(sql!("lock_tasks")).await }, async {
            tx.prepare_cached(sql!("facts")).await
        })
        .await
        .map_err(db::Error::from)?;
    // Two statements, because the second must see what was committed while the first waited.
    let (_, rows) = futures_util::future::try_join(
        tx.query(&lock, &[&ids as &(dyn ToSql + Sync)]),
        tx.query(&facts, &[&ids as &(dyn ToSql + Sync)]),
    )
    .await
    .map_err(db::Error::from)?;
    Ok(rows.iter().filter_map(locked).collect())
}

fn locked(row: &Row) -> Option<Locked> {
    let id = TaskId::from(row.get::<_, Uuid>("id"));
    let live = row.get::<_, Option<Uuid>>("assignment_id").and_then(|assignment| {
        Some(Live {
            key: AssignmentKey {
                task_id: id,
                assignment_id: assignment.into(),
                epoch: Epoch(row.get("assignment_epoch")),
            },
            agent: agent_of(row, "assignee")?,
            running: row.get::<_, &str>("assignment_state") == AssignmentState::Running.as_str(),
            waiting: row.get::<_, &str>("assignment_state") == AssignmentState::Waiting.as_str(),
            confirmed: row.get::<_, Option<bool>>("confirmed").unwrap_or(false),
            confirm_late: row.get("confirm_late"),
            start_late: row.get::<_, Option<bool>>("start_late").unwrap_or(false),
            nudged: row.get("nudged"),
            lease_late: row.get::<_, Option<bool>>("lease_late").unwrap_or(false),
            attempt_late: row.get::<_, Option<bool>>("attempt_late").unwrap_or(false),
            silent_ms: row.get::<_, Option<i64>>("silent_ms").unwrap_or(0),
            lease_left_ms: row.get::<_, Option<i64>>("lease_left_ms").unwrap_or(0),
        })
    });
    Some(Locked {
        id,
        org: row.get("org"),
        kind: row.get("kind"),
        requires: row.get("requires"),
        facts: Facts {
            state: TaskState::parse(row.get("state"))?,
            attempt: row.get("attempt"),
            attempts_max: row.get("attempts_max"),
        },
        state_reason: row.get("state_reason"),
        requester: row.get("requester"),
        round: row.get("round"),
        rounds_empty: row.get("rounds_empty"),
        epoch: Epoch(row.get("epoch")),
        policy: row.get("policy"),
        tried: row.get("tried"),
        agent: agent_of(row, "agent_id"),
        run_in_ms: row.get("run_in_ms"),
        run_anyway: row.get("run_anyway"),
        depends: row.get("depends"),
        answers: row.get("answers"),
        deadline_came: row.get("deadline_came"),
        bidding: row.get("bidding"),
        live,
    })
}

/// Holds the agents' rows, in the order of their ids, until the transaction ends.
pub(super) async fn lock_agents(tx: &Transaction<'_>, mut ids: Vec<String>) -> Result<(), Error> {
    ids.sort();
    ids.dedup();
    run(tx, sql!("lock_agents"), &[&ids]).await.map(|_| ())
}

/// How a task moves, and how its live assignment ends.
#[derive(Clone, Debug)]
pub(super) struct Settled {
    pub(super) task: TaskId,
    pub(super) assignment: Option<AssignmentId>,
    pub(super) assignee: Option<AgentId>,
    pub(super) assignment_state: Option<AssignmentState>,
    pub(super) state: TaskState,
    pub(super) reason: Option<String>,
    pub(super) result: Option<Value>,
    pub(super) error: Option<Value>,
    /// When to look at it again; nothing for a final state or an open task that is ready.
    pub(super) due_ms: Option<i64>,
    pub(super) standby: bool,
    pub(super) tried: bool,
    /// Whether the assignment that ends held a slot.
    pub(super) holds_slot: bool,
    pub(super) tokens: i64,
    pub(super) microdollars: i64,
    /// Whether these say what was used; else what was reserved counts as used.
    pub(super) usage_known: bool,
    pub(super) event: &'static str,
    pub(super) body: Value,
    pub(super) checkpoint: Option<Value>,
    /// What few transitions write: `question`, `answer`, `prefer`, `rejected`, `verifier_id`, `attempt_goes_on`.
    pub(super) more: Option<Value>,
}

/// Moves tasks and ends assignments; gives the rows that moved.
pub(super) async fn settle(tx: &Transaction<'_>, settled: &[Settled]) -> Result<Vec<Row>, Error> {
    if settled.is_empty() {
        return Ok(Vec::new());
    }
    let agents = settled.iter().filter_map(|s| s.assignee.as_ref()).map(ToString::to_string).collect();
    let column = |of: fn(&Settled) -> Option<Value>| settled.iter().map(of).collect::<Vec<_>>();
    let tasks: Vec<Uuid> = settled.iter().map(|s| s.task.as_uuid()).collect();
    let assignments: Vec<Option<Uuid>> = settled.iter().map(|s| s.assignment.map(|a| a.as_uuid())).collect();
    let ends: Vec<Option<&str>> =
        settled.iter().map(|s| s.assignment_state.map(AssignmentState::as_str)).collect();
    let states: Vec<&str> = settled.iter().map(|s| s.state.as_str()).collect();
    let reasons: Vec<Option<&str>> = settled.iter().map(|s| s.reason.as_deref()).collect();
    let results = column(|s| s.result.clone());
    let errors = column(|s| s.error.clone());
    let dues: Vec<Option<i64>> = settled.iter().map(|s| s.due_ms).collect();
    let standby: Vec<bool> = settled.iter().map(|s| s.standby).collect();
    let tried: Vec<bool> = settled.iter().map(|s| s.tried).collect();
    let tokens: Vec<i64> = settled.iter().map(|s| s.tokens).collect();
    let money: Vec<i64> = settled.iter().map(|s| s.microdollars).collect();
    let events: Vec<&str> = settled.iter().map(|s| s.event).collect();
    let bodies = column(|s| Some(s.body.clone()));
    let checkpoints = column(|s| s.checkpoint.clone());
    let slots: Vec<bool> = settled.iter().map(|s| s.holds_slot).collect();
    let more = column(|s| s.more.clone());
    let params: [&(dyn ToSql + Sync); 17] = [
        &tasks,
        &assignments,
        &ends,
        &states,
        &reasons,
        &results,
        &errors,
        &dues,
        &standby,
        &tried,
        &tokens,
        &money,
        &events,
        &bodies,
        &checkpoints,
        &slots,
        &more,
    ];
    let (_, rows, ()) = futures_util::future::try_join3(
        lock_agents(tx, agents),
        run(tx, sql!("settle"), &params),
        super::budget::settle(tx, settled),
    )
    .await?;
    Ok(rows)
}

/// An offer as it is stored.
#[derive(Clone, Debug)]
pub(super) struct StoredOffer {
    pub(super) task: TaskId,
    pub(super) round: i32,
    pub(super) agent: AgentId,
    pub(super) incarnation: Incarnation,
    pub(super) state: &'static str,
    pub(super) cost_microdollars: u64,
    pub(super) eta_ms: u64,
    pub(super) confidence: f32,
    pub(super) note: Option<String>,
    pub(super) valid_ms: i64,
    pub(super) score: Option<Value>,
}

/// Stores offers; a second one of an agent in a round replaces its first.
pub(super) async fn offers(tx: &Transaction<'_>, offers: &[StoredOffer]) -> Result<(), Error> {
    if offers.is_empty() {
        return Ok(());
    }
    let tasks: Vec<Uuid> = offers.iter().map(|o| o.task.as_uuid()).collect();
    let rounds: Vec<i32> = offers.iter().map(|o| o.round).collect();
    let agents: Vec<&str> = offers.iter().map(|o| o.agent.as_str()).collect();
    let lives: Vec<i64> = offers.iter().map(|o| o.incarnation.0).collect();
    let states: Vec<&str> = offers.iter().map(|o| o.state).collect();
    let costs: Vec<i64> = offers.iter().map(|o| to_i64(o.cost_microdollars)).collect();
    let etas: Vec<i64> = offers.iter().map(|o| to_i64(o.eta_ms)).collect();
    let confidences: Vec<f32> = offers.iter().map(|o| o.confidence).collect();
    let notes: Vec<Option<&str>> = offers.iter().map(|o| o.note.as_deref()).collect();
    let valid: Vec<i64> = offers.iter().map(|o| o.valid_ms).collect();
    let scores: Vec<&Option<Value>> = offers.iter().map(|o| &o.score).collect();
    let params: [&(dyn ToSql + Sync); 11] =
        [&tasks, &rounds, &agents, &lives, &states, &costs, &etas, &confidences, &notes, &valid, &scores];
    run(tx, sql!("offers"), &params).await.map(|_| ())
}

/// A winner as it is written.
#[derive(Clone, Debug)]
pub(super) struct Winner {
    pub(super) task: TaskId,
    pub(super) round: i32,
    pub(super) agent: AgentId,
    pub(super) incarnation: Incarnation,
    pub(super) assignment: AssignmentId,
    pub(super) confirm_ms: i64,
    pub(super) cost_microdollars: u64,
    pub(super) eta_ms: u64,
    pub(super) confidence: f32,
    /// For the event: the policy, all offers of the round with their score vectors, and who made none and why.
    pub(super) told: Value,
}

/// Awards tasks and takes the winners' slots; gives the awards that were made.
/// Those of an agent without enough free slots are not. `stored`: the winning offers are rows already.
pub(super) async fn award(
    tx: &Transaction<'_>,
    node: Uuid,
    winners: &[Winner],
    stored: bool,
) -> Result<Vec<Row>, Error> {
    if winners.is_empty() {
        return Ok(Vec::new());
    }
    let tasks: Vec<Uuid> = winners.iter().map(|w| w.task.as_uuid()).collect();
    let rounds: Vec<i32> = winners.iter().map(|w| w.round).collect();
    let agents: Vec<&str> = winners.iter().map(|w| w.agent.as_str()).collect();
    let lives: Vec<i64> = winners.iter().map(|w| w.incarnation.0).collect();
    let assignments: Vec<Uuid> = winners.iter().map(|w| w.assignment.as_uuid()).collect();
    let confirm: Vec<i64> = winners.iter().map(|w| w.confirm_ms).collect();
    let told: Vec<&Value> = winners.iter().map(|w| &w.told).collect();
    let costs: Vec<i64> = winners.iter().map(|w| to_i64(w.cost_microdollars)).collect();
    let etas: Vec<i64> = winners.iter().map(|w| to_i64(w.eta_ms)).collect();
    let confidences: Vec<f32> = winners.iter().map(|w| w.confidence).collect();
    let names = agents.iter().map(ToString::to_string).collect();
    let params: [&(dyn ToSql + Sync); 12] = [
        &tasks,
        &rounds,
        &agents,
        &lives,
        &assignments,
        &confirm,
        &told,
        &node,
        &stored,
        &costs,
        &etas,
        &confidences,
    ];
    let (_, rows) =
        futures_util::future::try_join(lock_agents(tx, names), run(tx, sql!("award"), &params)).await?;
    Ok(rows)
}

/// Looks at the tasks again after so many milliseconds, or at the end of their round.
pub(super) async fn rearm(tx: &Transaction<'_>, due: &[(TaskId, i64)]) -> Result<(), Error> {
    if due.is_empty() {
        return Ok(());
    }
    let tasks: Vec<Uuid> = due.iter().map(|(task, _)| task.as_uuid()).collect();
    let waits: Vec<i64> = due.iter().map(|(_, wait)| *wait).collect();
    run(tx, sql!("rearm"), &[&tasks, &waits]).await.map(|_| ())
}

/// A count for the database, whose integers are signed.
pub(super) fn to_i64(count: u64) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

/// A duration in whole milliseconds, at least one.
pub(super) fn millis(duration: std::time::Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX).max(1)
}
