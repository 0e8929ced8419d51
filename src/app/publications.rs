//! The publications that the log is read through: ours, with every table that a wake names.
//!
//! They exist before the slot does. A table that is not there yet is named in a
//! warning and published as soon as it is: the daemon goes on without it.
use super::{CLIENTS_PUBLICATION, PUBLICATION};
use crate::{
    agent::{Agents, WakeIndex},
    db::Database,
    id::AgentId,
    scope::{OnExit, Scope},
    wal::{self, TableName},
};
use std::{collections::BTreeSet, sync::Arc, time::Duration};

/// How often missing tables are looked for.
const EVERY: Duration = Duration::from_secs(2);

/// Publishes what is there, and in `scope` what comes later.
pub(super) async fn start(scope: &Scope, database: &Database, agents: &Agents) -> anyhow::Result<()> {
    let client = database.client().await?;
    wal::ensure_publication(&**client, CLIENTS_PUBLICATION).await?;
    drop(client);
    let mut tables = agents.wakes().tables();
    // Messages of the database come through ours, if the table is ours to publish.
    let sql = include_str!("sql/messages_publishable.sql");
    if database.client().await?.query_one(sql, &[]).await?.try_get::<_, bool>(0)? {
        tables.push(("realtime".to_owned(), "messages".to_owned()));
    }
    let wakes = agents.wakes();
    let mut wanted = Wanted { tables, published: 0, warned: BTreeSet::new(), wakes, told: BTreeSet::new() };
    let all = wanted.publish(database).await?;
    wanted.look(database).await?;
    if all {
        return Ok(());
    }
    let database = database.clone();
    scope.spawn("publications", OnExit::Log, |stop| async move {
        while tokio::time::timeout(EVERY, stop.cancelled()).await.is_err() {
            let before = wanted.published;
            let published = wanted.publish(&database).await;
            // A table that is there at last is held against the wakes that waited for it.
            if wanted.published > before
                && let Err(error) = wanted.look(&database).await
            {
                tracing::debug!(error = format!("{error:#}"), "new tables are not looked at yet");
                wanted.published = before;
                continue;
            }
            match published {
                Ok(true) => break,
                Ok(false) => {}
                Err(error) => tracing::debug!(error = format!("{error:#}"), "tables are not published yet"),
            }
        }
        Ok(())
    });
    Ok(())
}

struct Wanted {
    tables: Vec<TableName>,
    /// How many of them are published.
    published: usize,
    warned: BTreeSet<TableName>,
    wakes: Arc<WakeIndex>,
    /// Wakes that do not fit and were named: the agent and the key of its file.
    told: BTreeSet<(AgentId, String)>,
}

impl Wanted {
    /// Names the wakes that do not fit tables that are there.
    async fn look(&mut self, database: &Database) -> anyhow::Result<()> {
        for (agent, problem) in self.wakes.check(database).await? {
            let of_table = problem.key.ends_with(".table");
            if !of_table && self.told.insert((agent.clone(), problem.key.clone())) {
                let (key, error) = (problem.key, problem.message);
                tracing::error!(%agent, key, error, "a wake does not fit its table and is never met");
            }
        }
        Ok(())
    }

    /// Publishes the tables that are there; true when that is all of them.
    async fn publish(&mut self, database: &Database) -> anyhow::Result<bool> {
        let client = database.client().await?;
        let mut there = self.tables.clone();
        loop {
            let (schema, table, problem) = match wal::publish(&**client, PUBLICATION, &there).await {
                Ok(()) => {
                    self.published = there.len();
                    return Ok(there.len() == self.tables.len());
                }
                Err(error) => {
                    let problem = error.to_string();
                    match error {
                        wal::Error::MissingTable { schema, table, .. }
                        | wal::Error::NoReplicaIdentity { schema, table } => (schema, table, problem),
                        other => return Err(other.into()),
                    }
                }
            };
            let name = (schema, table);
            if self.warned.insert(name.clone()) {
                tracing::warn!(
                    table = format!("{}.{}", name.0, name.1),
                    problem,
                    "a wake waits for its table"
                );
            }
            let before = there.len();
            there.retain(|wanted| *wanted != name);
            anyhow::ensure!(there.len() < before, "{problem}");
        }
    }
}
