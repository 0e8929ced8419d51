//! One task at a time, after a batch of the arbiter failed because of one of its members.
//!
//! A statement that moves hundreds of tasks fails as a whole when one row leads to a value that the database does not
//! store, and a bug may panic. Then each task gets a transaction of its own, and the one that fails again ends
//! `failed(unreadable)`. Without a failure it costs nothing.
use crate::db;
use crate::task::commands::command::{Action, TaskCommand};
use crate::task::commands::dependents;
use crate::task::rounds::arbiter::Arbiter;
use crate::task::rounds::round::Plan;
use crate::task::storage::candidate::Candidate;
use crate::task::storage::locked_task::lock_one;
use crate::task::storage::statement::{run, sql};
use crate::task::storage::transaction::Transaction;
use crate::task::upkeep::{catch_panic::catch_panic, unreadable};
use crate::task::{Error, TaskId, TaskState, storage::rows};
use std::collections::{BTreeMap, BTreeSet};
use uuid::Uuid;

impl Arbiter {
    /// Opens rounds one by one for ready tasks of these classes. Returns whether one moved.
    pub(in crate::task) async fn award_one_by_one(
        &mut self,
        classes: &[i64],
        limits: &[i64],
    ) -> Result<bool, Error> {
        let mut client = self.context.database.client().await?;
        let tx = Transaction::begin(&mut client);
        let found = run(&tx, sql!("ready"), &[&classes, &limits]).await?;
        tx.rollback().await?;
        drop(client);
        let mut moved = false;
        for id in rows::all::<Uuid>(&found, "id")? {
            let id = TaskId::from(id);
            let context = self.context.clone();
            let one = catch_panic(&context, "opening a round", self.award_one(id)).await;
            moved |= self.or_end(id, one).await?;
        }
        Ok(moved)
    }

    async fn award_one(&mut self, id: TaskId) -> Result<bool, Error> {
        let mut client = self.context.database.client().await?;
        let tx = Transaction::begin(&mut client);
        let row = lock_one(&tx, id).await?;
        if row.facts.state != TaskState::Open || row.bidding {
            return Ok(false);
        }
        let task = [Candidate::from(row)];
        let (plan, broken) = Plan::open_all(&self.context, &task);
        if let Some(one) = broken.into_iter().next() {
            return Err(rows::Unreadable::new("task", one.why).into());
        }
        Ok(self.write(tx, plan, &task, false).await? > 0)
    }

    /// Moves the due tasks one by one. Returns whether one moved.
    pub(in crate::task) async fn timers_one_by_one(&mut self) -> Result<bool, Error> {
        let commands = self.due_now().await?;
        let mut moved = false;
        for command in commands.values() {
            let context = self.context.clone();
            let one = catch_panic(&context, "a timer of a task", self.move_due(command));
            let one = one.await.map(|()| true);
            moved |= self.or_end(command.task, one).await?;
        }
        // The dependents of the ended tasks were moved, so the marks are removed, unless there are new dependents.
        let mut client = self.context.database.client().await?;
        let tx = Transaction::begin(&mut client);
        let ends = dependents::ends(&tx).await?;
        let tried: BTreeSet<TaskId> = commands.into_keys().collect();
        if ends.commands.iter().all(|command| tried.contains(&command.task)) {
            ends.unmark(&tx).await?;
            tx.commit().await?;
        }
        Ok(moved)
    }

    /// The due tasks, without locks on them.
    async fn due_now(&self) -> Result<BTreeMap<TaskId, TaskCommand>, Error> {
        let mut client = self.context.database.client().await?;
        let tx = Transaction::begin(&mut client);
        let mut found = run(&tx, sql!("due"), &[]).await?;
        found.extend(run(&tx, sql!("past_deadline"), &[]).await?);
        let ends = dependents::ends(&tx).await?;
        tx.rollback().await?;
        let mut commands: BTreeMap<TaskId, TaskCommand> =
            ends.commands.into_iter().map(|command| (command.task, command)).collect();
        for id in rows::all::<Uuid>(&found, "id")? {
            let task = TaskId::from(id);
            commands.entry(task).or_insert(TaskCommand { task, holder: None, action: Action::Timer });
        }
        Ok(commands)
    }

    /// Ends the task if its transaction failed because of its row. Returns whether it moved.
    async fn or_end(&self, id: TaskId, moved: Result<bool, Error>) -> Result<bool, Error> {
        let why = match moved {
            Ok(moved) => return Ok(moved),
            Err(Error::Internal(db::Error::Unreadable(why))) => why.to_string(),
            Err(Error::BadRequest(why)) => why,
            Err(error @ (Error::Internal(_) | Error::Unstorable(_))) => {
                format!("the database refuses a value that its row leads to: {}", error.refusal())
            }
            Err(error @ Error::Unavailable(_)) => return Err(error),
            Err(_) => return Ok(false),
        };
        match unreadable::end_one_by_one(&self.context, id, &why).await {
            Ok(()) => Ok(true),
            Err(error @ Error::Unavailable(_)) => Err(error),
            Err(error) => {
                tracing::error!(task = %id, %error, why, "task can neither be moved nor ended");
                Ok(false)
            }
        }
    }
}
