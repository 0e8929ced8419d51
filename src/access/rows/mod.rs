//! Row security and column privileges for row changes, applied to the row as it was changed.
//!
//! A subscriber sees a change only if its role and claims may `select` that row. Postgres evaluates the
//! table's policies on the images in the WAL, not on the table as it is now, so that neither a later nor an
//! earlier version reaches the wrong viewer. Owns its connections (checks take none from the negotiation),
//! the caches of plans and outcomes, and the check that invalidates them. Never writes, and names no type of
//! `wal`. Fails closed for each policy alone: one that raises or times out hides its rows from its own
//! viewers, reported as [`Failure`]. While the database is unavailable, calls wait.
mod cacheability;
mod check;
mod decision_cache;
mod evaluate;
mod inspect;
mod literal;
mod metrics;
mod plan;
mod session;
mod types;
mod watch;

pub use inspect::inspect;
pub use types::{
    Cell, Failure, Image, Images, OldRow, PolicyColumn, PolicyTable, Rights, RowChange, Security, Verdict,
    Viewer,
};

use decision_cache::{Catalog, LogThrottle, Outcomes, SlowPolicyBackoff};
use metrics::Metrics;
use session::Sessions;
use watch::FingerprintChecks;

use crate::{
    db::{Database, Flights},
    scope::Scope,
    telemetry::Registry,
};
use serde::{Deserialize, Serialize};
use std::{sync::Arc, time::Duration};

/// How row security is checked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Config {
    /// Connections for checks, in addition to the pool's. One more checks whether rights have changed.
    pub connections_max: usize,
    /// Most time for one check. A policy that exceeds it is canceled, and is in backoff for 30 s.
    #[serde(with = "humantime_serde")]
    pub check_timeout: Duration,
    /// What to do with a delete under row security if policies read columns of the old row that the WAL does
    /// not carry.
    pub unknown_deletes: UnknownDeletes,
    /// Whether to cache the outcome of policies that depend on the row and the claims alone. If false,
    /// Postgres evaluates the policies for every row, and no stored expression is analyzed.
    pub cache: bool,
}

/// What to do with a delete whose old row is not in the WAL (no `replica identity full`), for roles that row
/// security limits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum UnknownDeletes {
    /// Hide the delete where a policy reads an unknown column: it is not known which viewers could see the
    /// row.
    Hide,
    /// Show its primary key to every subscriber, like Supabase Realtime.
    ShowKey,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            connections_max: 2,
            check_timeout: Duration::from_secs(1),
            unknown_deletes: UnknownDeletes::Hide,
            cache: true,
        }
    }
}

/// Checks changes against row security. Clones share connections and caches.
#[derive(Clone, Debug)]
pub struct Rows {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    config: Config,
    sessions: Sessions,
    /// A connection for the catalog alone, so that its check does not wait for slow policies.
    catalog_sessions: Sessions,
    fingerprints: FingerprintChecks,
    catalog: Catalog,
    /// Reads of plans in progress, by table, role and generation of the catalog.
    reading: Flights<(usize, String, u64), decision_cache::CachedPlan>,
    outcomes: Outcomes,
    slow_policies: SlowPolicyBackoff,
    log_throttle: LogThrottle,
    metrics: Metrics,
}

impl Rows {
    /// Creates the service without connecting. `scope` owns its connections and the task that checks the
    /// catalog for changes.
    #[must_use]
    pub fn new(scope: &Scope, database: Database, config: Config, registry: &Registry) -> Self {
        let inner = Arc::new(Inner {
            sessions: Sessions::new(scope, database.clone(), config.connections_max),
            catalog_sessions: Sessions::new(scope, database, 1),
            fingerprints: FingerprintChecks::default(),
            config,
            catalog: Catalog::default(),
            reading: Flights::default(),
            outcomes: Outcomes::default(),
            slow_policies: SlowPolicyBackoff::default(),
            log_throttle: LogThrottle::default(),
            metrics: Metrics::register(registry),
        });
        watch::start(scope, &inner);
        Self { inner }
    }

    /// Invalidates what is cached of policies, privileges and roles, unless the catalog is unchanged.
    ///
    /// Call it after changes were received and before they are judged: no cached entry is older than this
    /// call when it returns, nor than the transactions `seen` in the WAL, the low halves of their ids. One round trip,
    /// shared by concurrent callers. Waits while the database is unavailable, and up to 5 s until new snapshots see
    /// those transactions. Cancel safe.
    pub async fn refresh(&self, seen: &[u32]) {
        self.inner.refresh(seen).await;
    }

    /// Evaluates policies that depend on the row and the claims alone, and caches the outcomes for
    /// [`judge`](Self::judge).
    ///
    /// Meant to run beside [`refresh`](Self::refresh): an outcome belongs to the plan that it was evaluated with, so
    /// one of a plan that the check invalidates is never used. What is not cached anyway is left to `judge`: other
    /// policies, long rows, plans that are not known. Cancel safe.
    pub async fn prefetch(&self, changes: &[RowChange], viewers: &[Arc<Viewer>], asked: &[(usize, usize)]) {
        evaluate::prefetch(&self.inner, changes, viewers, asked).await;
    }

    /// The cached rights of `role` on `table`; `None` if [`rights`](Self::rights) would read them.
    #[must_use]
    pub fn known_rights(&self, table: &Arc<PolicyTable>, role: &str) -> Option<Result<Arc<Rights>, Failure>> {
        let known = self.inner.catalog.get(table, role).ok()?;
        Some(known.map(|plan| plan.rights.clone()))
    }

    /// Number of invalidations by [`refresh`](Self::refresh) so far.
    #[must_use]
    pub fn epoch(&self) -> u64 {
        self.inner.catalog.epoch()
    }

    /// Whether a plan for the table is cached, so that [`refresh`](Self::refresh) covers the table and its
    /// publications.
    #[must_use]
    pub fn remembers(&self, table: &Arc<PolicyTable>) -> bool {
        self.inner.catalog.knows(table)
    }

    /// Returns the rights of `role` on `table`, independent of the row. Cached until policies or privileges
    /// change.
    ///
    /// Waits while the database is unavailable. Cancel safe.
    ///
    /// # Errors
    /// [`Failure::UnknownRole`], and [`Failure::Policy`] if the catalog is not readable.
    pub async fn rights(&self, table: &Arc<PolicyTable>, role: &str) -> Result<Arc<Rights>, Failure> {
        Ok(self.inner.plan(table, role).await?.rights.clone())
    }

    /// Returns a verdict for each pair (index of a change, index of a viewer) in `asked`, in that order.
    ///
    /// Runs one check for each viewer and table, regardless of the number of changes. Pass only pairs that
    /// passed their filters, and the changes of all transactions at hand together. Column privileges are not
    /// checked here. An index out of range is [`Verdict::Hidden`]. Waits while the database is unavailable.
    /// Cancel safe.
    pub async fn judge(
        &self,
        changes: &[RowChange],
        viewers: &[Arc<Viewer>],
        asked: &[(usize, usize)],
    ) -> Vec<Verdict> {
        evaluate::judge(&self.inner, changes, viewers, asked).await
    }
}
