//! The handle of those who make tasks from row changes and clocks: the WAL consumer and the scheduler.
use crate::task::storage::statement::{query, sql};
use crate::task::{Error, context::TaskContext};
use std::sync::{Arc, atomic::Ordering};

/// Makes tasks from row changes and clocks, and records what the WAL says to the task store. Cloning is cheap.
#[derive(Clone)]
pub struct TaskTriggers {
    pub(in crate::task) context: Arc<TaskContext>,
}

impl std::fmt::Debug for TaskTriggers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TaskTriggers").field("node", &self.context.node).finish_non_exhaustive()
    }
}

impl TaskTriggers {
    /// Asks the arbiter of this node to poll; carries no data and may be called for nothing.
    pub fn notify_arbiter(&self) {
        self.context.notify_arbiter();
    }

    /// A commit of another session asked for a poll, as a message in the WAL says. The WAL may be read before
    /// the commit is visible to a query, so the arbiter polls several times within the next second.
    pub fn notify_arbiter_by_wal(&self) {
        // The flag first: the arbiter reads it after it was woken.
        self.context.notified_by_wal.store(true, Ordering::Relaxed);
        self.context.notify_arbiter();
    }

    /// Records in the event log that changes between two positions of the WAL were lost.
    ///
    /// # Errors
    /// `Unavailable`.
    pub async fn record_wal_gap(&self, from: Option<&str>, to: &str, reason: &str) -> Result<(), Error> {
        let body = serde_json::json!({ "from": from, "to": to, "reason": reason });
        query(&self.context.database, sql!("record_wal_gap"), &[&body]).await.map(drop)
    }
}
