//! The publications of the WAL stream: the daemon's own contains every table of a wake.
//!
//! They exist before the replication slot. Twice a second the catalog is compared with the wakes: a table that was
//! created, created again or renamed into place is published, with a line in the process log, because earlier commits
//! to it woke no agent. A table that cannot be published is left out, and named in the process log and on `/health`
//! with the remedy; the daemon and all other wakes work without it.
use super::{CLIENTS_PUBLICATION, PUBLICATION};
use crate::{
    agent::{Agents, WakeIndex},
    api::{Health, PartState},
    db::Database,
    id::AgentId,
    scope::{OnExit, Scope},
    wal::{self, TableName},
};
use std::{
    collections::{BTreeMap, BTreeSet},
    error::Error as _,
    sync::Arc,
    time::Duration,
};
use tokio_postgres::error::SqlState;

/// Interval of the comparison: a new table wakes its agents within a second.
const EVERY: Duration = Duration::from_millis(500);
/// Tables that `/health` names; the process log names all.
const NAMED_MAX: usize = 3;

/// Publishes the existing tables, and in `scope` those that are created later.
pub(super) async fn start(
    scope: &Scope,
    database: &Database,
    agents: &Agents,
    health: &Health,
) -> anyhow::Result<()> {
    let client = database.client().await?;
    match wal::ensure_publication(&**client, CLIENTS_PUBLICATION).await {
        // Its creation is left to the owner of the database; agents do not need it.
        Err(error) if error.sqlstate() == Some(&SqlState::INSUFFICIENT_PRIVILEGE) => {}
        ensured => ensured?,
    }
    drop(client);
    let (wakes, health) = (agents.wakes(), health.clone());
    let (left_out, logged) = (BTreeMap::new(), BTreeSet::new());
    let tables = wakes.tables();
    let mut wanted = Wanted { tables, left_out, clients_missing: false, wakes, logged, health };
    wanted.publish(database).await?;
    wanted.look(database).await?;
    let (database, agents) = (database.clone(), agents.clone());
    scope.spawn("publications", OnExit::Log, |stop| async move {
        let mut unlooked = false;
        while tokio::time::timeout(EVERY, stop.cancelled()).await.is_err() {
            unlooked |= wanted.follow(agents.wakes());
            match wanted.publish(&database).await {
                Ok(added) => {
                    unlooked |= !added.is_empty();
                    wanted.log_added(&added);
                }
                Err(error) => {
                    tracing::debug!(error = format!("{error:#}"), "failed to publish tables, will retry")
                }
            }
            // A new table is checked against the wakes that waited for it.
            if unlooked {
                let looked = wanted.look(&database).await;
                unlooked = looked.is_err();
                if let Err(error) = looked {
                    tracing::debug!(error = format!("{error:#}"), "failed to check new tables, will retry");
                }
            }
        }
        Ok(())
    });
    Ok(())
}

struct Wanted {
    /// The tables of wakes.
    tables: Vec<TableName>,
    /// The tables that are not published, and why.
    left_out: BTreeMap<TableName, String>,
    clients_missing: bool,
    wakes: Arc<WakeIndex>,
    /// Wakes that cannot match and have been logged: the agent and the key of its definition.
    logged: BTreeSet<(AgentId, String)>,
    health: Health,
}

impl Wanted {
    /// Works for these wakes from now on; true if they are others than before.
    fn follow(&mut self, wakes: Arc<WakeIndex>) -> bool {
        if Arc::ptr_eq(&self.wakes, &wakes) {
            return false;
        }
        (self.tables, self.wakes) = (wakes.tables(), wakes);
        self.logged.clear();
        true
    }

    /// Logs the wakes that cannot match their tables.
    async fn look(&mut self, database: &Database) -> anyhow::Result<()> {
        for (agent, problem) in self.wakes.check(database).await? {
            let of_table = problem.key.ends_with(".table");
            if !of_table && self.logged.insert((agent.clone(), problem.key.clone())) {
                let (key, error) = (problem.key, problem.message);
                tracing::error!(%agent, key, error, "wake cannot match: column or type missing in table");
            }
        }
        Ok(())
    }

    /// Publishes the tables that can be; returns those that were not before.
    async fn publish(&mut self, database: &Database) -> anyhow::Result<Vec<TableName>> {
        let client = database.client().await?;
        let row = client.query_one(include_str!("sql/publishable.sql"), &[&CLIENTS_PUBLICATION]).await?;
        let (messages, clients): (bool, bool) = (row.try_get(0)?, row.try_get(1)?);
        let mut tables = self.tables.clone();
        if messages {
            // Database broadcasts come through the daemon's publication, if it may publish their table.
            tables.push(("realtime".to_owned(), "messages".to_owned()));
        }
        let outcome = wal::reconcile(&**client, PUBLICATION, &tables, &[CLIENTS_PUBLICATION]).await?;
        drop(client);
        let left_out = outcome.left_out.iter().map(|(table, problem)| (table.clone(), explain(problem)));
        self.report(left_out.collect(), !clients);
        Ok(outcome.added.into_iter().filter(|table| self.tables.contains(table)).collect())
    }

    fn report(&mut self, left_out: BTreeMap<TableName, String>, clients_missing: bool) {
        for (table, problem) in &left_out {
            if self.left_out.get(table) != Some(problem) {
                tracing::warn!(table = name(table), problem, "wake waits for its table");
            }
        }
        if clients_missing && !self.clients_missing {
            tracing::warn!(
                publication = CLIENTS_PUBLICATION,
                "publication does not exist: subscribers get no row changes until it is created"
            );
        }
        (self.left_out, self.clients_missing) = (left_out, clients_missing);
        let mut lacks = Vec::new();
        if clients_missing {
            lacks.push(format!("publication {CLIENTS_PUBLICATION} does not exist"));
        }
        let named = self.left_out.keys().take(NAMED_MAX);
        lacks.extend(named.map(|table| format!("wakes wait for table {}", name(table))));
        let more = self.left_out.len().saturating_sub(NAMED_MAX);
        if more > 0 {
            lacks.push(format!("and for {more} others"));
        }
        if lacks.is_empty() {
            self.health.set("publications", PartState::Ready, "complete");
        } else {
            let detail = format!("{}; the process log says why", lacks.join(", "));
            self.health.set("publications", PartState::Degraded, detail);
        }
    }

    /// Logs the tables that are published from now on.
    fn log_added(&self, added: &[TableName]) {
        for table in added {
            tracing::warn!(
                table = name(table),
                "table published: changes that were committed before woke no agent"
            );
        }
    }
}

fn name((schema, table): &TableName) -> String {
    format!("{schema}.{table}")
}

/// The problem and what caused it.
fn explain(problem: &wal::Error) -> String {
    match problem.source() {
        Some(source) => format!("{problem}: {source}"),
        None => problem.to_string(),
    }
}
