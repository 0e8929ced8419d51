//! Budgets of tasks: reserved before use, settled when the use is known, never exceeded.
//!
//! A task has a budget of its own, and the root of a tree one for the whole tree. Before a call that costs, its
//! maximum is reserved by one guarded statement in all of these budgets, or in none. When an assignment ends, its use
//! replaces its reservation. An assignment that ended without a report counts as if it had used all of its
//! reservation, until a late report corrects it. `reserved + spent <= limit` is also a constraint of the table (I4).
//! Reported use above the reservation and the limit is counted apart, as `over`.
use crate::task::model::budget::budget_question;
use crate::task::storage::locked_task::lock_one;
use crate::task::storage::rows::Columns;
use crate::task::storage::statement::{run, sql, to_i64};
use crate::task::storage::transaction::Transaction;
use crate::task::{
    AgentId, AssignmentKey, Budget, Error, InsufficientBudget, Requester, TaskCommands, TaskId, TaskState,
    Update, Usage, WaitFor,
};
use serde_json::json;

impl TaskCommands {
    /// Reserves the most that the next step of an assignment may use, in all its budgets and in the agent's own
    /// limit for an hour. Another call raises the reservation to the new maximum.
    ///
    /// # Errors
    /// `Fenced` when the assignment is over. The inner error when the amount does not fit; nothing is reserved then.
    pub async fn reserve(
        &self,
        key: AssignmentKey,
        agent: &AgentId,
        most: Usage,
        per_hour: Option<u64>,
    ) -> Result<Result<(), InsufficientBudget>, Error> {
        self.reserve_from(key, agent, most, per_hour, false).await
    }

    async fn reserve_from(
        &self,
        key: AssignmentKey,
        agent: &AgentId,
        most: Usage,
        per_hour: Option<u64>,
        as_offered: bool,
    ) -> Result<Result<(), InsufficientBudget>, Error> {
        let mut client = self.context.database.client().await?;
        let tx = Transaction::begin(&mut client);
        if per_hour.is_some() {
            // Two assignments of one agent that reserve at the same time would not see each other's reservation.
            let lock = "select pg_advisory_xact_lock(hashtext('convoke.charges'), hashtext($1))";
            run(&tx, lock, &[&agent.as_str()]).await?;
        }
        let (assignment, task) = (key.assignment_id.as_uuid(), key.task_id.as_uuid());
        let most = most.limited();
        let (tokens, money) = (to_i64(most.tokens), to_i64(most.microdollars));
        let rows = run(
            &tx,
            sql!("reserve"),
            &[&assignment, &task, &key.epoch.0, &agent.as_str(), &tokens, &money, &as_offered],
        )
        .await?;
        let row = rows.first().ok_or(Error::Fenced)?;
        let (tokens, money): (i64, i64) = (row.read("tokens")?, row.read("microdollars")?);
        if row.read::<i64>("fit")? < row.read::<i64>("limits")? {
            return Ok(Err(InsufficientBudget::Task(tokens, money)));
        }
        let hour: i64 = row.read("hour")?;
        if per_hour.is_some_and(|limit| hour.saturating_add(money) > to_i64(limit)) {
            return Ok(Err(InsufficientBudget::Agent));
        }
        tx.commit().await?;
        Ok(Ok(()))
    }

    /// Reserves the offered cost of an assignment that has just started; without room for it the task waits.
    pub(in crate::task) async fn reserve_offered(
        &self,
        key: AssignmentKey,
        agent: &AgentId,
    ) -> Result<(), Error> {
        match self.reserve_from(key, agent, Usage::default(), None, true).await? {
            Ok(()) => Ok(()),
            Err(short) => {
                self.ask(key, agent, budget_question(&short, None)).await?;
                Err(Error::Conflict { state: TaskState::Waiting })
            }
        }
    }

    /// Changes the limits of a task, or of the tree under it, and resumes it if it waited for budget. Members that
    /// are left out stay; `by` is recorded.
    ///
    /// # Errors
    /// `UnknownTask`; `Conflict` when the task is final; `BadRequest` when no limit is given, or one below what is
    /// reserved and spent already.
    pub async fn set_budget(
        &self,
        task: TaskId,
        by: impl Into<Requester>,
        budget: Budget,
    ) -> Result<Update, Error> {
        let by: Requester = by.into();
        let limits = budget.limits();
        if limits.is_empty() {
            return Err(Error::BadRequest("say tokens, microdollars or tree: at least one of them".into()));
        }
        let found = self.get(task).await?;
        budget.check(found.parent_id.is_some())?;
        let mut client = self.context.database.client().await?;
        let tx = Transaction::begin(&mut client);
        let row = lock_one(&tx, task).await?;
        if row.facts.state.is_final() {
            return Err(Error::Conflict { state: row.facts.state });
        }
        for (tree, amount) in limits {
            let (tokens, money) = (amount.tokens.map(to_i64), amount.microdollars.map(to_i64));
            let params: [&(dyn tokio_postgres::types::ToSql + Sync); 5] =
                [&task.as_uuid(), &tree, &tokens, &money, &by];
            if run(&tx, sql!("raise_budget"), &params).await?.is_empty() {
                return Err(Error::BadRequest("that is less than what is reserved and spent already".into()));
            }
        }
        tx.commit().await?;
        if row.facts.state == TaskState::Waiting
            && row.state_reason.as_deref() == Some(WaitFor::Budget.as_str())
        {
            return self.answer(task, by, json!(budget)).await;
        }
        let now = self.get(task).await?;
        Ok(now.into())
    }
}
