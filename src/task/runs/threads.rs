//! Threads: tasks of one agent with the same key are worked on one after the other, in the order in which the agent
//! got them first.
//!
//! A task's place in its thread is a row that is taken under a lock of the thread and kept until the task ends, so the
//! order is total whatever daemon works, dies or comes back: a task has its turn if none before it is still live. A part
//! (child task) in the same thread has its place within its parent. It waits neither for its ancestors nor for tasks that
//! came after them, so parent and part cannot deadlock. A task that must wait holds neither a slot nor a lock, so threads
//! delay neither each other nor agents. The end of the task before it makes it due (`commands::dependents`). That wake-up
//! can be missed while the waiting task is on its way out of its slot, so each wait has an end of its own, too.
use crate::task::storage::rows::{self, Columns};
use crate::task::storage::statement::{run, sql};
use crate::task::storage::transaction::Transaction;
use crate::task::{AgentId, AssignmentKey, Error, TaskCommands, TaskId};
use std::time::Duration;
use tokio_postgres::types::ToSql;
use uuid::Uuid;

/// Results of a thread that a task begins with.
const RESULTS_MAX: i64 = 10;
/// Characters of a result that are read.
const RESULT_CHARS_MAX: i32 = 48_000;
/// The longest wait without a wake-up.
const WAIT_MAX: Duration = Duration::from_secs(60);

/// Whether it is a task's turn in its thread.
#[derive(Clone, Debug, PartialEq)]
pub enum Turn {
    /// It is: no task before it is live.
    Now {
        /// The last results of the thread, newest first, at most 10.
        results: Vec<ThreadResult>,
    },
    /// Another task of the thread has not ended.
    Later {
        /// That task.
        before: TaskId,
        /// When to ask again at the latest; the end of that task makes this one due.
        after: Duration,
    },
}

/// A result of a thread.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ThreadResult {
    /// Its task.
    pub task: TaskId,
    /// The kind of the task.
    pub kind: String,
    /// The result as JSON, or its begin.
    pub text: String,
    /// Whether the end is missing.
    pub cut: bool,
}

impl TaskCommands {
    /// Queues a task in a thread of its agent, and tells whether it has its turn. A task that has its turn keeps it until
    /// it ends, also over other assignments.
    ///
    /// # Errors
    /// `Fenced` when the assignment is over.
    pub async fn thread_turn(
        &self,
        key: AssignmentKey,
        agent: &AgentId,
        thread: &str,
    ) -> Result<Turn, Error> {
        let (assignment, task) = (key.assignment_id.as_uuid(), key.task_id.as_uuid());
        let fence: [&(dyn ToSql + Sync); 4] = [&assignment, &task, &key.epoch.0, &agent.as_str()];
        let mut client = self.context.database.client().await?;
        // In a transaction of its own, which locks no other task: `marked` below waits for locks of tasks.
        let tx = Transaction::begin(&mut client);
        // Two tasks that come at the same time would each not see the other's place, or see a lower one too late.
        let lock = "select pg_advisory_xact_lock(hashtext('convoke.threads'), hashtext($1 || ' ' || $2))";
        run(&tx, lock, &[&agent.as_str(), &thread]).await?;
        let join: Vec<_> = fence.iter().copied().chain([&thread as &(dyn ToSql + Sync)]).collect();
        run(&tx, sql!("thread_join"), &join).await?;
        run(&tx, sql!("thread_trim"), &[&agent.as_str(), &thread, &RESULTS_MAX]).await?;
        tx.commit().await?;
        drop(client);
        loop {
            let rows = self.query(sql!("thread_turn"), &fence).await?;
            let row = rows.first().ok_or(Error::Fenced)?;
            let Some(before) = row.read::<Option<Uuid>>("before")? else { break };
            if row.read("marked")? {
                let waits: i32 = row.read("waits")?;
                return Ok(Turn::Later { before: TaskId::from(before), after: pause(waits) });
            }
        }
        let rows = self.query(sql!("thread_results"), &[&task, &RESULT_CHARS_MAX, &RESULTS_MAX]).await?;
        let result = |row| {
            Ok(ThreadResult {
                task: rows::task_id(row, "id")?,
                kind: row.read("kind")?,
                text: row.read("result")?,
                cut: row.read("cut")?,
            })
        };
        Ok(Turn::Now { results: rows.iter().map(result).collect::<Result<_, Error>>()? })
    }
}

/// How long the wait number `waits` lasts without a wake-up: a second, doubling.
fn pause(waits: i32) -> Duration {
    let doublings = u32::try_from(waits.saturating_sub(1)).unwrap_or(0).min(6);
    Duration::from_secs(1 << doublings).min(WAIT_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wait_doubles_from_a_second_to_a_minute() {
        let seconds: Vec<u64> = [0, 1, 2, 5, 6, 7, i32::MAX].map(|n| pause(n).as_secs()).to_vec();
        assert_eq!(seconds, [1, 1, 2, 16, 32, 60, 60]);
    }
}
