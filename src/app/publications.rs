//! The publications that the log is read through: ours, with every table that a wake names.
//!
//! They exist before the slot does. A table that is not there yet is named in a
//! warning and published as soon as it is: the daemon goes on without it.
use super::{CLIENTS_PUBLICATION, PUBLICATION};
use crate::{
    agent::Agents,
    db::Database,
    scope::{OnExit, Scope},
    wal::{self, TableName},
};
use std::{collections::BTreeSet, time::Duration};

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
    let mut wanted = Wanted { tables, warned: BTreeSet::new() };
    if wanted.publish(database).await? {
        return Ok(());
    }
    let database = database.clone();
    scope.spawn("publications", OnExit::Log, |stop| async move {
        while tokio::time::timeout(EVERY, stop.cancelled()).await.is_err() {
            match wanted.publish(&database).await {
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
    warned: BTreeSet<TableName>,
}

impl Wanted {
    /// Publishes the tables that are there; true when that is all of them.
    async fn publish(&mut self, database: &Database) -> anyhow::Result<bool> {
        let client = database.client().await?;
        let mut there = self.tables.clone();
        loop {
            let (schema, table, problem) = match wal::publish(&**client, PUBLICATION, &there).await {
                Ok(()) => return Ok(there.len() == self.tables.len()),
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
