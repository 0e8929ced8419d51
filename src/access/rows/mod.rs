//! Who may see which row: row security and column privileges, on the row as it was changed.
//!
//! A subscriber sees a change only if its role and claims may `select` that row.
//! The table's policies are evaluated on the images that the log carries, not on
//! the table as it is now, so that neither a later version nor an earlier one is
//! shown to the wrong viewer. Owns its connections (checks never starve the
//! negotiation), what it remembers of the catalog, and the look at whether that
//! changed. Never writes, never names the log's types. Fails closed and apart: a
//! policy that raises or takes too long hides its rows from its own viewers, told
//! as [`Failure`]; while the database is away, calls wait.
mod check;
mod inspect;
mod judge;
mod literal;
mod memory;
mod metrics;
mod plan;
mod pure;
mod session;
mod types;
mod watch;

pub use inspect::inspect;
pub use types::{
    Cell, Column, Failure, Image, Images, OldRow, Rights, RowChange, Security, Table, Verdict, Viewer,
};

use memory::{Catalog, Complaints, Outcomes, Rest};
use metrics::Metrics;
use session::Sessions;

use crate::{db::Database, scope::Scope, telemetry::Registry};
use serde::{Deserialize, Serialize};
use std::{sync::Arc, time::Duration};

/// How row security is checked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Config {
    /// Connections for checks, beside the pool's.
    pub connections_max: usize,
    /// A check that takes longer is cut off, and the policy is not asked again for a while.
    #[serde(with = "humantime_serde")]
    pub check_timeout: Duration,
    /// Who is shown a delete, as its primary key, when row security limits the role and the old row is not known.
    pub unknown_deletes: UnknownDeletes,
}

/// What happens to a delete whose old row the log does not carry (no `replica identity full`), for roles that
/// row security limits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum UnknownDeletes {
    /// It is not shown: nobody can say who could see the row.
    Hide,
    /// Its primary key is shown to everyone, as Supabase Realtime does.
    ShowKey,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            connections_max: 2,
            check_timeout: Duration::from_secs(1),
            unknown_deletes: UnknownDeletes::Hide,
        }
    }
}

/// Judges changes. Clones share connections and memory.
#[derive(Clone, Debug)]
pub struct Rows {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    config: Config,
    sessions: Sessions,
    catalog: Catalog,
    outcomes: Outcomes,
    rest: Rest,
    complaints: Complaints,
    metrics: Metrics,
}

impl Rows {
    /// Opens no connection yet. `scope` gets the connections, and the task that looks whether policies
    /// changed.
    #[must_use]
    pub fn new(scope: &Scope, database: Database, config: Config, registry: &Registry) -> Self {
        let inner = Arc::new(Inner {
            sessions: Sessions::new(scope, database, config.connections_max),
            config,
            catalog: Catalog::default(),
            outcomes: Outcomes::default(),
            rest: Rest::default(),
            complaints: Complaints::default(),
            metrics: Metrics::register(registry),
        });
        watch::start(scope, &inner);
        Self { inner }
    }

    /// What `role` may see of `table`, whatever the row; remembered until policies or privileges change.
    ///
    /// Waits while the database is away. Cancel safe.
    ///
    /// # Errors
    /// [`Failure::UnknownRole`], and [`Failure::Policy`] when the catalog cannot be read.
    pub async fn rights(&self, table: &Arc<Table>, role: &str) -> Result<Arc<Rights>, Failure> {
        Ok(self.inner.plan(table, role).await?.rights.clone())
    }

    /// The verdicts about (index of a change, index of a viewer), in the order of `asked`.
    ///
    /// One check for each viewer and table, however many changes: ask only pairs that passed their filters,
    /// and the changes of all transactions that are there at once. Column privileges are not looked at here.
    /// An index out of range is [`Verdict::Hidden`]. Waits while the database is away. Cancel safe.
    pub async fn judge(
        &self,
        changes: &[RowChange],
        viewers: &[Arc<Viewer>],
        asked: &[(usize, usize)],
    ) -> Vec<Verdict> {
        judge::judge(&self.inner, changes, viewers, asked).await
    }
}
