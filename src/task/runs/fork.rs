//! Forks: a new task whose run begins with a copy of the steps of another one, in the commit that requests it.
//!
//! What the copied steps did and used belongs to the task that they come from: nothing of it happens again or is charged
//! again. What comes after them is the fork's own, with keys of its own.
use crate::task::commands::request::{self, NewTask};
use crate::task::storage::rows::{self, Columns};
use crate::task::storage::statement::sql;
use crate::task::storage::transaction::Transaction;
use crate::task::{Budget, Error, Request, Requested, Requester, Task, TaskCommands, TaskId};
use serde::Deserialize;
use serde_json::{Map, Value};

/// Where a fork begins.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ForkPoint {
    /// The last step that is copied: a note, or the last call of an answer.
    pub at: i32,
    /// The run. Defaults to the latest one.
    #[serde(default)]
    pub run: Option<i32>,
}

impl TaskCommands {
    /// Requests a task like this one, for the same agent, whose run goes on behind a step of this one's. It has the same
    /// kind, requirements, input, priority, policy and own budget, and is no part of another task.
    ///
    /// # Errors
    /// `BadRequest` if the task has no such run, or the run cannot be forked there; `UnknownTask`.
    pub async fn fork(
        &self,
        task: TaskId,
        from: ForkPoint,
        requester: impl Into<Requester>,
    ) -> Result<Requested, Error> {
        let origin = self.get(task).await?;
        let found = self.query(sql!("fork_origin"), &[&task.as_uuid(), &from.run]).await?;
        let row = found.first().ok_or_else(|| no_run(from.run))?;
        let (run, agent): (i32, String) = (row.read("run")?, row.read("agent_id")?);
        let places = self.query(sql!("fork_places"), &[&task.as_uuid(), &run]).await?;
        let places: Vec<i32> = rows::all(&places, "seq")?;
        if !places.contains(&from.at) {
            return Err(no_place(run, from.at, &places));
        }
        let policy = row.read::<Option<Value>>("policy")?.unwrap_or_default();
        let wish = wish(&origin, policy, agent);
        let mut new = NewTask::check(&self.context.policies, &origin.org, requester.into(), wish)?;
        new.compile_schema(&self.context.schemas).await?;
        let input = new.take_input();
        let turn = self.context.request_permits(&new.org);
        let _turn = turn.acquire().await.map_err(|_| Error::Unavailable(None))?;
        let mut client = self.context.database.client().await?;
        let tx = Transaction::begin(&mut client);
        let mut made = request::write(&tx, std::slice::from_ref(&new)).await?;
        if made.answers.iter().any(Result::is_err) {
            return made.answers.pop().unwrap_or(Err(Error::Unavailable(None)));
        }
        let copied =
            tx.query(sql!("run_fork"), &[&new.id.as_uuid(), &task.as_uuid(), &run, &from.at]).await?;
        if copied.is_empty() {
            // The task was removed meanwhile.
            return Err(Error::UnknownTask(task));
        }
        let mut requested =
            made.commit(&self.context, &tx).await?.pop().unwrap_or(Err(Error::Unavailable(None)))?;
        requested.task.input = input;
        Ok(requested)
    }
}

/// The request of a fork: only the agent of the run can go on with it.
fn wish(origin: &Task, policy: Value, agent: String) -> Request {
    let mut policy = match policy {
        Value::Object(policy) => policy,
        _ => Map::new(),
    };
    policy.insert("award".to_owned(), "direct".into());
    policy.insert("agent".to_owned(), agent.into());
    Request {
        kind: origin.kind.clone(),
        requires: origin.requires.clone(),
        input: origin.input.clone(),
        priority: origin.priority,
        policy,
        budget: budget(origin),
        ..Request::default()
    }
}

/// The limits of a task itself. `None` without any.
fn budget(origin: &Task) -> Option<Budget> {
    let most = |of: &str| origin.budget.as_ref()?.get("task")?.get(of)?.get("max")?.as_u64();
    let budget = Budget { tokens: most("tokens"), microdollars: most("microdollars"), tree: None };
    (budget != Budget::default()).then_some(budget)
}

fn no_run(run: Option<i32>) -> Error {
    Error::BadRequest(match run {
        Some(run) => format!("the task has no run {run}"),
        None => "the task has no run: no agent with tools has worked on it".to_owned(),
    })
}

fn no_place(run: i32, at: i32, places: &[i32]) -> Error {
    let before = places.iter().rev().find(|place| **place < at);
    let hint =
        before.or_else(|| places.first()).map(|place| format!("; step {place} is the nearest such step"));
    let hint = hint.unwrap_or_default();
    Error::BadRequest(format!(
        "run {run} cannot be forked at step {at}: a fork begins behind a note, or behind the last call of an answer \
         whose calls have ended and do not end the run{hint}"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn step_that_is_no_place_to_fork_at_is_refused_with_the_nearest_one() {
        for (at, hint) in
            [(4, "; step 3 is the nearest"), (0, "; step 1 is the nearest"), (9, "; step 5 is the nearest")]
        {
            let told = no_place(2, at, &[1, 3, 5]).to_string();
            assert!(
                told.starts_with(&format!("run 2 cannot be forked at step {at}:")) && told.contains(hint),
                "{told}"
            );
        }
        assert!(!no_place(1, 1, &[]).to_string().contains("nearest"));
    }
}
