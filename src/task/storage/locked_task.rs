//! A task and its live assignment as a transaction has locked them.
use crate::task::machine::{AssignmentState, Facts};
use crate::task::storage::rows::{
    Columns, Unreadable, UnreadableTask, agent, assignment_state, count, number, org, split, state, task_id,
    time,
};
use crate::task::storage::statement::{run, sql};
use crate::task::storage::transaction::Transaction;
use crate::task::{AgentId, AssignmentKey, Epoch, Error, OrgId, Requester, TaskId, TaskState, Update};
use serde_json::Value;
use tokio_postgres::Row;
use uuid::Uuid;

/// A live assignment with its timers, as it was when the task was locked.
#[derive(Clone, Debug)]
pub(in crate::task) struct LiveAssignment {
    pub(in crate::task) key: AssignmentKey,
    pub(in crate::task) agent: AgentId,
    pub(in crate::task) state: AssignmentState,
    pub(in crate::task) confirmed: bool,
    pub(in crate::task) confirm_late: bool,
    pub(in crate::task) start_late: bool,
    pub(in crate::task) nudged: bool,
    pub(in crate::task) lease_late: bool,
    pub(in crate::task) attempt_late: bool,
    pub(in crate::task) silent_ms: i64,
    pub(in crate::task) lease_left_ms: i64,
}

/// A task as it was locked.
#[derive(Clone, Debug)]
pub(in crate::task) struct LockedTask {
    pub(in crate::task) id: TaskId,
    pub(in crate::task) org: OrgId,
    pub(in crate::task) kind: String,
    pub(in crate::task) requires: Vec<String>,
    pub(in crate::task) facts: Facts,
    pub(in crate::task) state_reason: Option<String>,
    pub(in crate::task) requester: Requester,
    pub(in crate::task) round: i32,
    pub(in crate::task) rounds_empty: i32,
    pub(in crate::task) epoch: Epoch,
    pub(in crate::task) policy: Value,
    pub(in crate::task) tried: Vec<String>,
    /// Agents whose failure was final.
    pub(in crate::task) unable: Vec<String>,
    /// Attempts in a row that ended because of an outage, and for how long.
    pub(in crate::task) outages: i32,
    pub(in crate::task) outage_ms: i64,
    pub(in crate::task) agent: Option<AgentId>,
    /// Time until its `run_at`; 0 or less if it has passed or is not set.
    pub(in crate::task) run_in_ms: i64,
    pub(in crate::task) run_anyway: bool,
    pub(in crate::task) depends: bool,
    pub(in crate::task) answers: i32,
    pub(in crate::task) deadline_came: bool,
    pub(in crate::task) bidding: bool,
    pub(in crate::task) version: i64,
    pub(in crate::task) live: Option<LiveAssignment>,
    /// The run that the live assignment works on.
    pub(in crate::task) run: Option<LiveRun>,
}

/// A run that is worked on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::task) struct LiveRun {
    /// Whether a question or call has ended in this attempt.
    pub(in crate::task) progressed: bool,
    /// The step that is under way, and how often it was begun.
    pub(in crate::task) under_way: Option<(i32, i32)>,
}

impl LiveRun {
    fn from_row(row: &Row) -> Result<Option<Self>, Unreadable> {
        let Some(progressed) = row.read::<Option<bool>>("progressed")? else { return Ok(None) };
        let (seq, tries): (Option<i32>, Option<i32>) = (row.read("under_way")?, row.read("tries")?);
        Ok(Some(Self { progressed, under_way: seq.zip(tries) }))
    }
}

impl LockedTask {
    /// Of a row of `facts.sql`.
    pub(in crate::task) fn from_row(row: &Row) -> Result<Self, Unreadable> {
        let id = task_id(row, "id")?;
        time(row, "run_at")?;
        time(row, "deadline_at")?;
        Ok(Self {
            id,
            org: org(row)?,
            kind: row.read("kind")?,
            requires: row.read("requires")?,
            facts: Facts {
                state: state(row, "state")?,
                attempt: count(row, "attempt")?,
                attempts_max: count(row, "attempts_max")?,
            },
            state_reason: row.read("state_reason")?,
            requester: row.read("requester")?,
            round: count(row, "round")?,
            rounds_empty: count(row, "rounds_empty")?,
            epoch: Epoch(number(row, "epoch")?),
            policy: row.read("policy")?,
            tried: row.read("tried")?,
            unable: row.read("unable")?,
            outages: count(row, "outages")?,
            outage_ms: row.read("outage_ms")?,
            agent: agent(row, "agent_id")?,
            run_in_ms: row.read("run_in_ms")?,
            run_anyway: row.read("run_anyway")?,
            depends: row.read("depends")?,
            answers: row.read("answers")?,
            deadline_came: row.read("deadline_came")?,
            bidding: row.read("bidding")?,
            version: row.read("version")?,
            live: LiveAssignment::from_row(id, row)?,
            run: LiveRun::from_row(row)?,
        })
    }
}

impl LiveAssignment {
    /// Of a row of `facts.sql`: `None` when the task has no live assignment.
    fn from_row(task_id: TaskId, row: &Row) -> Result<Option<Self>, Unreadable> {
        let (Some(assignment), Some(state)) =
            (row.read::<Option<Uuid>>("assignment_id")?, assignment_state(row, "assignment_state")?)
        else {
            return Ok(None);
        };
        let Some(agent) = agent(row, "assignee")? else { return Ok(None) };
        let flag = |column: &str| Ok(row.read::<Option<bool>>(column)?.unwrap_or(false));
        let ms = |column: &str| Ok(row.read::<Option<i64>>(column)?.unwrap_or(0));
        Ok(Some(Self {
            key: AssignmentKey {
                task_id,
                assignment_id: assignment.into(),
                epoch: Epoch(number(row, "assignment_epoch")?),
            },
            agent,
            state,
            confirmed: flag("confirmed")?,
            confirm_late: flag("confirm_late")?,
            start_late: flag("start_late")?,
            nudged: flag("nudged")?,
            lease_late: flag("lease_late")?,
            attempt_late: flag("attempt_late")?,
            silent_ms: ms("silent_ms")?,
            lease_left_ms: ms("lease_left_ms")?,
        }))
    }
}

impl LockedTask {
    /// The task as it is.
    pub(in crate::task) fn update(&self) -> Update {
        let (reason, agent) = (self.state_reason.clone(), self.agent.clone());
        Update { version: self.version, ..self.update_as(self.facts.state, reason, agent) }
    }

    /// The task after a statement that changes its state, and with it the version.
    pub(in crate::task) fn update_as(
        &self,
        state: TaskState,
        state_reason: Option<String>,
        agent_id: Option<AgentId>,
    ) -> Update {
        Update {
            id: self.id,
            org: self.org.clone(),
            kind: self.kind.clone(),
            state,
            state_reason,
            epoch: self.epoch,
            agent_id,
            requester: self.requester.clone(),
            version: self.version.saturating_add(1),
        }
    }

    /// Whether its agent thinks, and has ended a step in this attempt.
    pub(in crate::task) fn progressed(&self) -> bool {
        self.run.is_some_and(|run| run.progressed)
    }

    /// Whether it waits for other tasks.
    pub(in crate::task) fn waits_for_others(&self) -> bool {
        matches!(self.facts.state, TaskState::Blocked | TaskState::Verifying)
    }
}

/// Locks the tasks and reads them with their live assignments. Unknown ids are left out; rows that cannot be read are
/// returned apart.
pub(in crate::task) async fn lock(
    tx: &Transaction<'_>,
    ids: &[TaskId],
) -> Result<(Vec<LockedTask>, Vec<UnreadableTask>), Error> {
    let ids: Vec<Uuid> = ids.iter().map(|id| id.as_uuid()).collect();
    // Two statements: the second must see what was committed while the first waited for the locks. A connection that has
    // not prepared the first may run them the other way round, so it prepares both before.
    tx.prepare_all(&[sql!("lock_tasks"), sql!("facts")]).await?;
    let (_, rows) =
        futures_util::future::try_join(run(tx, sql!("lock_tasks"), &[&ids]), run(tx, sql!("facts"), &[&ids]))
            .await?;
    let (rows, broken) = split(&rows, LockedTask::from_row)?;
    Ok((rows, broken))
}

/// Locks one task and reads it.
///
/// # Errors
/// `UnknownTask`; `BadRequest` when its row cannot be read.
pub(in crate::task) async fn lock_one(tx: &Transaction<'_>, id: TaskId) -> Result<LockedTask, Error> {
    let (mut rows, broken) = lock(tx, &[id]).await?;
    if let Some(one) = broken.first() {
        return Err(one.refusal());
    }
    rows.pop().ok_or(Error::UnknownTask(id))
}
