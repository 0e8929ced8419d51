//! The statements that write the task tables.
//!
//! Every function is one set-based statement from `sql/`, prepared once for each connection. The machine, `decide` and
//! the rounds decide what it changes, on rows that the transaction has locked. Lock order: tasks by id, then agents by
//! id, so that no two transactions wait for each other.
use crate::task::machine::AssignmentState;
use crate::task::model::offer_state::OfferState;
use crate::task::rounds::tally::Decided;
use crate::task::storage::charges::{self, Charge};
use crate::task::storage::columns::columns;
use crate::task::storage::statement::{run, sql, to_i64};
use crate::task::storage::transaction::Transaction;
use crate::task::{AgentId, AssignmentId, Error, Incarnation, OfferSummary, TaskId, TaskState, WaitFor};
use serde::Serialize;
use serde_json::Value;
use std::{ops::Not, sync::Arc};
use tokio_postgres::{Row, types::Json};
use uuid::Uuid;

/// Locks the rows of agents, ordered by id, until the transaction ends.
pub(in crate::task) async fn lock_agents(tx: &Transaction<'_>, mut ids: Vec<String>) -> Result<(), Error> {
    ids.sort();
    ids.dedup();
    run(tx, sql!("lock_agents"), &[&ids]).await.map(|_| ())
}

/// How a task moves, and how its live assignment ends.
#[derive(Clone, Debug)]
pub(in crate::task) struct Settled {
    pub(in crate::task) task: TaskId,
    pub(in crate::task) assignment: Option<AssignmentId>,
    pub(in crate::task) assignee: Option<AgentId>,
    pub(in crate::task) assignment_state: Option<AssignmentState>,
    pub(in crate::task) state: TaskState,
    pub(in crate::task) reason: Option<String>,
    pub(in crate::task) result: Option<Arc<Value>>,
    pub(in crate::task) error: Option<Value>,
    /// Time until it is due; `None` for a final state or an open task that is ready.
    pub(in crate::task) due_ms: Option<i64>,
    pub(in crate::task) standby: bool,
    pub(in crate::task) tried: bool,
    /// Whether the assignment that ends held a slot.
    pub(in crate::task) holds_slot: bool,
    pub(in crate::task) tokens: i64,
    pub(in crate::task) microdollars: i64,
    /// Whether these are reported; otherwise the reservation counts as used.
    pub(in crate::task) usage_known: bool,
    pub(in crate::task) event: &'static str,
    pub(in crate::task) body: Value,
    pub(in crate::task) checkpoint: Option<Value>,
    pub(in crate::task) rare: RareColumns,
}

/// Columns that few transitions write: the object `more` of `settle.sql`, which looks only whether a member is there.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub(in crate::task) struct RareColumns {
    /// The task waits for the answer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(in crate::task) question: Option<AskedQuestion>,
    /// The answer to its question.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(in crate::task) answer: Option<GivenAnswer>,
    /// The agent that is asked first in the next round.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(in crate::task) prefer: Option<AgentId>,
    /// Why its result was rejected.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(in crate::task) rejected: Option<String>,
    /// The task that verifies its result.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(in crate::task) verifier_id: Option<TaskId>,
    /// The attempt does not count: its continuation is the same attempt.
    #[serde(skip_serializing_if = "Not::not")]
    pub(in crate::task) attempt_goes_on: bool,
    /// Varies the due time by a fifth.
    #[serde(skip_serializing_if = "Not::not")]
    pub(in crate::task) jitter: bool,
    /// The attempt ended because of an outage.
    #[serde(skip_serializing_if = "Not::not")]
    pub(in crate::task) outage: bool,
    /// The failure of its assignee was final.
    #[serde(skip_serializing_if = "Not::not")]
    pub(in crate::task) unable: bool,
}

/// A question as its task stores it.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(in crate::task) struct AskedQuestion {
    #[serde(rename = "for")]
    pub(in crate::task) wait_for: WaitFor,
    pub(in crate::task) question: String,
    pub(in crate::task) agent_id: Option<AgentId>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(in crate::task) calls: Vec<crate::task::ApprovalCall>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(in crate::task) approvers: Vec<String>,
}

/// An answer as its task stores it.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(in crate::task) struct GivenAnswer {
    pub(in crate::task) answer: Value,
    pub(in crate::task) by: String,
}

impl Settled {
    /// The use of the assignment that ends; `None` if none ends.
    fn charge(&self) -> Option<Charge> {
        let &Self { assignment, usage_known: known, tokens, microdollars, holds_slot: counts, .. } = self;
        Some(Charge { assignment: assignment?.as_uuid(), known, tokens, microdollars, counts })
    }
}

/// Moves tasks and ends assignments. Returns the rows that moved.
pub(in crate::task) async fn settle(tx: &Transaction<'_>, settled: &[Settled]) -> Result<Vec<Row>, Error> {
    if settled.is_empty() {
        return Ok(Vec::new());
    }
    let agents = settled.iter().filter_map(|s| s.assignee.as_ref()).map(ToString::to_string).collect();
    let columns = columns!("settle", settled, |s| {
        task_id: Uuid = s.task.as_uuid(),
        assignment_id: Option<Uuid> = s.assignment.map(AssignmentId::as_uuid),
        assignment_state: Option<&str> = s.assignment_state.map(AssignmentState::as_str),
        task_state: &str = s.state.as_str(),
        reason: Option<&str> = s.reason.as_deref(),
        result: Option<&Value> = s.result.as_deref(),
        error: Option<&Value> = s.error.as_ref(),
        due_ms: Option<i64> = s.due_ms,
        standby: bool = s.standby,
        tried: bool = s.tried,
        tokens: i64 = s.tokens,
        microdollars: i64 = s.microdollars,
        event: &str = s.event,
        body: &Value = &s.body,
        checkpoint: Option<&Value> = s.checkpoint.as_ref(),
        holds_slot: bool = s.holds_slot,
        more: Option<Json<&RareColumns>> = (s.rare != RareColumns::default()).then_some(Json(&s.rare)),
    });
    let charges: Vec<Charge> = settled.iter().filter_map(Settled::charge).collect();
    let standing: Vec<TaskId> = settled.iter().filter(|s| s.standby).map(|s| s.task).collect();
    tx.prepare_all(&[sql!("keep_offers"), sql!("lock_agents"), sql!("settle"), sql!("settle_charges")])
        .await?;
    // In this order on one connection: the offers of a winner that is out become rows before they change, and the
    // agents are locked before the statement that writes them.
    let ((), (), rows, ()) = futures_util::future::try_join4(
        keep_offers(tx, &standing),
        lock_agents(tx, agents),
        columns.run(tx, &[]),
        charges::settle(tx, &charges),
    )
    .await?;
    Ok(rows)
}

/// Writes rows for the computed offers on these tasks, which were kept in the events of their awards.
pub(in crate::task) async fn keep_offers(tx: &Transaction<'_>, tasks: &[TaskId]) -> Result<(), Error> {
    if tasks.is_empty() {
        return Ok(());
    }
    let ids: Vec<Uuid> = tasks.iter().map(|task| task.as_uuid()).collect();
    run(tx, sql!("keep_offers"), &[&ids]).await.map(drop)
}

/// An offer as a row.
#[derive(Clone, Debug)]
pub(in crate::task) struct StoredOffer {
    pub(in crate::task) task: TaskId,
    pub(in crate::task) round: i32,
    pub(in crate::task) agent: AgentId,
    pub(in crate::task) incarnation: Incarnation,
    pub(in crate::task) state: OfferState,
    pub(in crate::task) cost_microdollars: u64,
    pub(in crate::task) eta_ms: u64,
    pub(in crate::task) confidence: f32,
    pub(in crate::task) note: Option<String>,
    pub(in crate::task) valid_ms: i64,
    pub(in crate::task) score: Option<Value>,
}

/// Stores offers. A second offer of an agent in a round replaces its first.
pub(in crate::task) async fn offers(tx: &Transaction<'_>, offers: &[StoredOffer]) -> Result<(), Error> {
    if offers.is_empty() {
        return Ok(());
    }
    let columns = columns!("offers", offers, |o| {
        task_id: Uuid = o.task.as_uuid(),
        round: i32 = o.round,
        agent_id: &str = o.agent.as_str(),
        incarnation: i64 = o.incarnation.0,
        state: &str = o.state.as_str(),
        cost: i64 = to_i64(o.cost_microdollars),
        eta_ms: i64 = to_i64(o.eta_ms),
        confidence: f32 = o.confidence,
        note: Option<&str> = o.note.as_deref(),
        valid_ms: i64 = o.valid_ms,
        score: Option<&Value> = o.score.as_ref(),
    });
    columns.run(tx, &[]).await.map(drop)
}

/// An award to write.
#[derive(Clone, Debug)]
pub(in crate::task) struct Winner {
    pub(in crate::task) task: TaskId,
    pub(in crate::task) round: i32,
    pub(in crate::task) agent: AgentId,
    pub(in crate::task) incarnation: Incarnation,
    pub(in crate::task) assignment: AssignmentId,
    pub(in crate::task) confirm_ms: i64,
    pub(in crate::task) cost_microdollars: u64,
    pub(in crate::task) eta_ms: u64,
    pub(in crate::task) confidence: f32,
    /// What decided about each offer of the round.
    pub(in crate::task) decided: Vec<(AgentId, Decided)>,
    /// For the event: the award policy, all offers of the round with their scores, and the agents without an offer.
    pub(in crate::task) details: Value,
    /// The offers to publish with the award.
    pub(in crate::task) new_offers: Vec<OfferSummary>,
}

/// Awards tasks and takes the winners' slots. Returns the awards that were made: none to an agent without enough free
/// slots. `stored`: the winning offers are rows already. `new`: only tasks that this transaction has inserted.
pub(in crate::task) async fn award(
    tx: &Transaction<'_>,
    node: Uuid,
    winners: &[Winner],
    stored: bool,
    new: bool,
) -> Result<Vec<Row>, Error> {
    if winners.is_empty() {
        return Ok(Vec::new());
    }
    let columns = columns!("award", winners, |w| {
        task_id: Uuid = w.task.as_uuid(),
        round: i32 = w.round,
        agent_id: &str = w.agent.as_str(),
        incarnation: i64 = w.incarnation.0,
        assignment_id: Uuid = w.assignment.as_uuid(),
        confirm_ms: i64 = w.confirm_ms,
        details: &Value = &w.details,
        cost: i64 = to_i64(w.cost_microdollars),
        eta_ms: i64 = to_i64(w.eta_ms),
        confidence: f32 = w.confidence,
    });
    let mut agents: Vec<String> = winners.iter().map(|w| w.agent.to_string()).collect();
    agents.sort();
    agents.dedup();
    if agents.len() == 1 {
        // The statement locks the one agent by itself; no order can be wrong.
        return columns.run(tx, &[&node, &stored, &new]).await;
    }
    tx.prepare_all(&[sql!("lock_agents"), sql!("award")]).await?;
    // In this order on one connection: the agents are locked before the statement that takes their slots.
    let (_, rows) =
        futures_util::future::try_join(lock_agents(tx, agents), columns.run(tx, &[&node, &stored, &new]))
            .await?;
    Ok(rows)
}

/// Makes the tasks due after so many milliseconds, or at the end of their round if that is earlier.
pub(in crate::task) async fn set_due(tx: &Transaction<'_>, due: &[(TaskId, i64)]) -> Result<(), Error> {
    if due.is_empty() {
        return Ok(());
    }
    let columns = columns!("set_due", due, |(task, wait)| {
        task_id: Uuid = task.as_uuid(),
        due_ms: i64 = *wait,
    });
    columns.run(tx, &[]).await.map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::task::storage::statement::members_read;
    use serde_json::json;
    use std::collections::BTreeSet;

    #[test]
    fn statement_reads_exactly_the_rare_columns() {
        let all = RareColumns {
            question: Some(AskedQuestion {
                wait_for: WaitFor::Approval,
                question: "ok?".into(),
                agent_id: None,
                calls: Vec::new(),
                approvers: Vec::new(),
            }),
            answer: Some(GivenAnswer { answer: json!(1), by: "user:1".into() }),
            prefer: Some("a".parse().unwrap()),
            rejected: Some("short".into()),
            verifier_id: Some(TaskId::generate()),
            attempt_goes_on: true,
            jitter: true,
            outage: true,
            unable: true,
        };
        let Value::Object(written) = json!(all) else { panic!("no object") };
        assert_eq!(written.keys().map(String::as_str).collect::<BTreeSet<_>>(), members_read(sql!("settle")));
        assert_eq!(json!(all.question), json!({ "for": "approval", "question": "ok?", "agent_id": null }));
        assert_eq!(json!(RareColumns::default()), json!({}));
    }
}
