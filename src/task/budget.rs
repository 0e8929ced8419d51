//! What tasks may cost: reserved before it is used, settled when it is known, never exceeded.
//!
//! A task has a budget of its own, and the root of a tree one for the whole tree. Before a call that costs, its
//! most is reserved in all of them by one guarded statement, or in none; what an assignment used takes the
//! place of what it had reserved. Of one that ended without a word all of it counts as spent, until a late
//! report says less. `reserved + spent <= limit` is also a constraint of the table (I4). What was reported
//! beyond a reservation and beyond the limit is kept apart, as over.
use super::store::{self, run, sql, to_i64};
use super::{AgentId, AssignmentKey, Error, Question, TaskId, TaskState, Tasks, Update, Usage, WaitFor};
use super::{desk::Act, request, store::Settled};
use crate::db;
use deadpool_postgres::Transaction;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use uuid::Uuid;

/// Most that a task may use; what is not said has no limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Amount {
    /// Model tokens, in and out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tokens: Option<u64>,
    /// Money.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub microdollars: Option<u64>,
}

/// What a task may use, and the whole tree under it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Budget {
    /// Model tokens of this task, all attempts together.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tokens: Option<u64>,
    /// Money of this task, all attempts together.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub microdollars: Option<u64>,
    /// Of this task and all its parts together; only of a task that is no part itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tree: Option<Amount>,
}

impl Budget {
    /// Whether it is of the tree, and how much, for each limit that is said.
    fn limits(&self) -> Vec<(bool, Amount)> {
        let own = Amount { tokens: self.tokens, microdollars: self.microdollars };
        let said = |amount: &Amount| *amount != Amount::default();
        let all = [(false, Some(own)), (true, self.tree)];
        all.into_iter().filter_map(|(tree, amount)| Some((tree, amount.filter(said)?))).collect()
    }

    pub(super) fn check(&self, is_part: bool) -> Result<(), Error> {
        if is_part && self.tree.is_some() {
            let text = "budget.tree belongs to the root of a tree, and this task is a part of another";
            return Err(Error::BadRequest(text.into()));
        }
        Ok(())
    }
}

/// Gives the tasks that were made now their budgets.
pub(super) async fn set(tx: &Transaction<'_>, made: &[(TaskId, Budget)]) -> Result<(), Error> {
    let limits: Vec<(Uuid, bool, Amount)> = made
        .iter()
        .flat_map(|(task, budget)| {
            budget.limits().into_iter().map(|(tree, amount)| (task.as_uuid(), tree, amount))
        })
        .collect();
    if limits.is_empty() {
        return Ok(());
    }
    let tasks: Vec<Uuid> = limits.iter().map(|(task, ..)| *task).collect();
    let trees: Vec<bool> = limits.iter().map(|(_, tree, _)| *tree).collect();
    let tokens: Vec<Option<i64>> = limits.iter().map(|(.., amount)| amount.tokens.map(to_i64)).collect();
    let money: Vec<Option<i64>> = limits.iter().map(|(.., amount)| amount.microdollars.map(to_i64)).collect();
    run(tx, sql!("set_budgets"), &[&tasks, &trees, &tokens, &money]).await.map(drop)
}

/// Settles what assignments that end have used.
pub(super) async fn settle(tx: &Transaction<'_>, settled: &[Settled]) -> Result<(), Error> {
    let ended: Vec<&Settled> = settled.iter().filter(|row| row.assignment.is_some()).collect();
    if ended.is_empty() {
        return Ok(());
    }
    let assignments: Vec<Uuid> =
        ended.iter().filter_map(|row| row.assignment).map(|id| id.as_uuid()).collect();
    let known: Vec<bool> = ended.iter().map(|row| row.usage_known).collect();
    let tokens: Vec<i64> = ended.iter().map(|row| row.tokens).collect();
    let money: Vec<i64> = ended.iter().map(|row| row.microdollars).collect();
    run(tx, sql!("settle_charges"), &[&assignments, &known, &tokens, &money]).await.map(drop)
}

/// What an assignment that ended without a word has used, as it says too late.
pub(super) async fn settle_late(tx: &Transaction<'_>, assignment: Uuid, usage: Usage) -> Result<(), Error> {
    let (tokens, money) = (to_i64(usage.tokens), to_i64(usage.microdollars));
    run(tx, sql!("settle_late_charges"), &[&vec![assignment], &vec![true], &vec![tokens], &vec![money]])
        .await
        .map(drop)
}

/// Why something could not be reserved.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Short {
    /// The task's or the tree's budget has no room for it.
    #[error("{0} tokens and {1} microdollars do not fit into what is left of the budget")]
    Task(i64, i64),
    /// The agent's limit for an hour has no room for it.
    #[error("the agent's budget for this hour is used up")]
    Agent,
}

impl Tasks {
    /// Reserves the most that the next step of an assignment may use, in all budgets that it counts to, and in
    /// the agent's own limit for an hour. Reserving again raises it to the new most.
    ///
    /// # Errors
    /// `Fenced` when the assignment is over. The inner error when it does not fit; nothing is reserved then.
    pub async fn reserve(
        &self,
        key: AssignmentKey,
        agent: &AgentId,
        most: Usage,
        per_hour: Option<u64>,
    ) -> Result<Result<(), Short>, Error> {
        self.reserve_from(key, agent, most, per_hour, false).await
    }

    async fn reserve_from(
        &self,
        key: AssignmentKey,
        agent: &AgentId,
        most: Usage,
        per_hour: Option<u64>,
        as_offered: bool,
    ) -> Result<Result<(), Short>, Error> {
        let mut client = self.shared.database.client().await?;
        let tx = client.transaction().await.map_err(db::Error::from)?;
        if per_hour.is_some() {
            // What two of its assignments reserve at the same time must not be overlooked.
            let lock = "select pg_advisory_xact_lock(hashtext('convoke.charges'), hashtext($1))";
            run(&tx, lock, &[&agent.as_str()]).await?;
        }
        let (assignment, task) = (key.assignment_id.as_uuid(), key.task_id.as_uuid());
        let (tokens, money) = (to_i64(most.tokens), to_i64(most.microdollars));
        let rows = run(
            &tx,
            sql!("reserve"),
            &[&assignment, &task, &key.epoch.0, &agent.as_str(), &tokens, &money, &as_offered],
        )
        .await?;
        let row = rows.first().ok_or(Error::Fenced)?;
        let (tokens, money): (i64, i64) = (row.get("tokens"), row.get("microdollars"));
        if row.get::<_, i64>("fit") < row.get::<_, i64>("limits") {
            return Ok(Err(Short::Task(tokens, money)));
        }
        if per_hour.is_some_and(|limit| row.get::<_, i64>("hour").saturating_add(money) > to_i64(limit)) {
            return Ok(Err(Short::Agent));
        }
        tx.commit().await.map_err(db::Error::from)?;
        Ok(Ok(()))
    }

    /// The task of an assignment that has just started has a budget: reserves what was offered, or lets it wait.
    pub(super) async fn afford(&self, key: AssignmentKey, agent: &AgentId) -> Result<(), Error> {
        match self.reserve_from(key, agent, Usage::default(), None, true).await? {
            Ok(()) => Ok(()),
            Err(short) => {
                self.ask(key, agent, wanting(&short, None)).await?;
                Err(Error::Conflict { state: TaskState::Waiting })
            }
        }
    }

    /// Gives a task, or the tree under it, other limits, and lets it go on if it waited for that. What is not
    /// said stays; `by` is who decides.
    ///
    /// # Errors
    /// `UnknownTask`; `Conflict` when the task is final; `BadRequest` when nothing is said, or less than what is
    /// reserved and spent already.
    pub async fn set_budget(&self, task: TaskId, by: &str, budget: Budget) -> Result<Update, Error> {
        let limits = budget.limits();
        if limits.is_empty() {
            return Err(Error::BadRequest("say tokens, microdollars or tree: at least one of them".into()));
        }
        let found = self.get(task).await?;
        budget.check(found.parent_id.is_some())?;
        let mut client = self.shared.database.client().await?;
        let tx = client.transaction().await.map_err(db::Error::from)?;
        let row = store::lock(&tx, &[task]).await?.pop().ok_or(Error::UnknownTask(task))?;
        if row.facts.state.is_final() {
            return Err(Error::Conflict { state: row.facts.state });
        }
        let by = request::one_line(by, 200);
        for (tree, amount) in limits {
            let (tokens, money) = (amount.tokens.map(to_i64), amount.microdollars.map(to_i64));
            let params: [&(dyn tokio_postgres::types::ToSql + Sync); 5] =
                [&task.as_uuid(), &tree, &tokens, &money, &by];
            if run(&tx, sql!("raise_budget"), &params).await?.is_empty() {
                return Err(Error::BadRequest("that is less than what is reserved and spent already".into()));
            }
        }
        tx.commit().await.map_err(db::Error::from)?;
        if row.facts.state == TaskState::Waiting
            && row.state_reason.as_deref() == Some(WaitFor::Budget.as_str())
        {
            return self.answer(task, &by, json!(budget)).await;
        }
        let now = self.get(task).await?;
        Ok(Update {
            id: task,
            org: now.org,
            kind: now.kind,
            state: now.state,
            state_reason: now.state_reason,
            epoch: now.epoch,
            agent_id: now.agent_id,
            requester: now.requester,
        })
    }
}

/// The question of a task that cannot go on without more budget.
pub(crate) fn wanting(short: &Short, checkpoint: Option<Value>) -> Question {
    let question = format!("{short}: raise it with `convoke task budget`");
    Question { wait_for: WaitFor::Budget, question, checkpoint, usage: Usage::default() }
}

/// Whether a command says what was used.
pub(super) fn is_known(act: &Act) -> bool {
    matches!(act, Act::Finish { .. } | Act::Fail(_) | Act::Wait(_))
}
