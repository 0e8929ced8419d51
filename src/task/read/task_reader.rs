//! The handle that reads tasks, events and agents, and changes nothing.
use crate::task::{Error, storage::statement};
use crate::{
    db::Database,
    task::{context::TaskContext, model::policies::Policies, rounds::tally::Tallies},
};
use std::sync::Arc;
use tokio::sync::watch;
use tokio_postgres::{Row, types::ToSql};

/// Reads tasks, events and agents. Cloning is cheap.
#[derive(Clone, Debug)]
pub struct TaskReader {
    pub(in crate::task) database: Database,
    pub(in crate::task) policies: Arc<Policies>,
    pub(in crate::task) offers: Arc<Tallies>,
    changed: watch::Receiver<u64>,
}

impl TaskReader {
    pub(in crate::task) fn new(context: &TaskContext) -> Self {
        let (database, policies) = (context.database.clone(), context.policies.clone());
        let offers = context.offers.clone();
        Self { database, policies, offers, changed: context.changed.subscribe() }
    }

    /// Ticks after every commit of this node that changed a task: for long polls.
    #[must_use]
    pub fn changed(&self) -> watch::Receiver<u64> {
        let mut changed = self.changed.clone();
        // The stored receiver is never read, so a clone of it would report every earlier commit as new.
        changed.mark_unchanged();
        changed
    }

    pub(in crate::task) async fn query(
        &self,
        statement: &str,
        params: &[&(dyn ToSql + Sync)],
    ) -> Result<Vec<Row>, Error> {
        statement::query(&self.database, statement, params).await
    }
}
