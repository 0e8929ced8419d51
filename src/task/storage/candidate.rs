//! A task whose round begins or ends.
//!
//! [`Candidate::new`] fills the members of a task without a round; [`Candidate::from_row`] and the conversion from a
//! [`LockedTask`] add those of earlier rounds.
use crate::task::machine::Facts;
use crate::task::storage::locked_task::LockedTask;
use crate::task::storage::rows::{Columns, Unreadable, count, number, org, task_id, time};
use crate::task::{OrgId, Requester, TaskId, TaskState};
use serde_json::Value;
use tokio_postgres::Row;

/// A task whose round begins or ends, as it was locked.
#[derive(Clone, Debug)]
pub(in crate::task) struct Candidate {
    pub(in crate::task) id: TaskId,
    pub(in crate::task) org: OrgId,
    pub(in crate::task) kind: String,
    pub(in crate::task) requires: Vec<String>,
    pub(in crate::task) round: i32,
    pub(in crate::task) rounds_empty: i32,
    pub(in crate::task) facts: Facts,
    pub(in crate::task) policy: Value,
    pub(in crate::task) requester: Requester,
    pub(in crate::task) tried: Vec<String>,
    /// Agents whose failure was final.
    pub(in crate::task) unable: Vec<String>,
    /// The agent that is asked first: its question was answered, or its result was rejected.
    pub(in crate::task) prefer: Option<String>,
}

/// The members of a candidate that had no round.
pub(in crate::task) struct NewCandidate {
    pub(in crate::task) id: TaskId,
    pub(in crate::task) org: OrgId,
    pub(in crate::task) kind: String,
    pub(in crate::task) requires: Vec<String>,
    pub(in crate::task) policy: Value,
    pub(in crate::task) requester: Requester,
}

impl Candidate {
    /// A task that had no round.
    pub(in crate::task) fn new(asked: NewCandidate) -> Self {
        let NewCandidate { id, org, kind, requires, policy, requester } = asked;
        Self {
            id,
            org,
            kind,
            requires,
            round: 0,
            rounds_empty: 0,
            facts: Self::open_facts(0),
            policy,
            requester,
            tried: Vec::new(),
            unable: Vec::new(),
            prefer: None,
        }
    }

    /// Of a row that was just inserted.
    pub(in crate::task) fn made(row: &Row) -> Result<Self, Unreadable> {
        Ok(Self::new(NewCandidate {
            id: task_id(row, "id")?,
            org: org(row)?,
            kind: row.read("kind")?,
            requires: row.read("requires")?,
            policy: row.read("policy")?,
            requester: row.read("requester")?,
        }))
    }

    /// Of a row of `ready.sql`.
    pub(in crate::task) fn from_row(row: &Row) -> Result<Self, Unreadable> {
        number(row, "epoch")?;
        time(row, "run_at")?;
        time(row, "deadline_at")?;
        Ok(Self {
            round: count(row, "round")?,
            rounds_empty: count(row, "rounds_empty")?,
            facts: Self::open_facts(count(row, "attempt")?),
            tried: row.read("tried")?,
            unable: row.read("unable")?,
            prefer: row.read("prefer")?,
            ..Self::made(row)?
        })
    }

    /// The facts of an open task.
    fn open_facts(attempt: i32) -> Facts {
        Facts { state: TaskState::Open, attempt, attempts_max: i32::MAX }
    }
}

impl From<LockedTask> for Candidate {
    fn from(row: LockedTask) -> Self {
        let LockedTask { id, org, kind, requires, policy, requester, .. } = row;
        Self {
            round: row.round,
            rounds_empty: row.rounds_empty,
            facts: row.facts,
            tried: row.tried,
            unable: row.unable,
            ..Self::new(NewCandidate { id, org, kind, requires, policy, requester })
        }
    }
}
