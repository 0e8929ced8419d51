//! Row changes for clients: `postgres_changes` (`docs/spec/postgres-changes.md`).
//!
//! Changes from the WAL are appended to the change log ([`Appender`]). From there one task delivers them in commit
//! order to all channels that subscribe to them; channels that resume read the changes that they missed. Owns the
//! subscriptions, the cached descriptions of tables, and the change log on disk. Never writes to the database. A
//! filter or a policy that fails hides rows from the channels that it concerns, which get an error, and affects no
//! other channel. While the database is unavailable, delivery waits. A subscriber that is too slow is disconnected.
mod catalog;
mod check;
mod delivery_lane;
mod dispatcher;
mod encode;
mod filter_wait;
mod item;
mod join;
mod log;
mod metrics;
mod payload;
mod postgres_filters;
mod registry;
mod subscriber;
mod subscription;
mod value_checks;
mod worker;

pub use postgres_filters::CONNECTIONS as FILTERS_CONNECTIONS;
pub use subscription::{ChangeSubscription, Listener};

use crate::{
    access::rows::{Rows, Viewer},
    clock::Clock,
    db::Database,
    hub::Hub,
    id::Lsn,
    journal,
    scope::{OnExit, Scope},
    telemetry::Registry as Metrics,
    wal::{Batch, Relation},
};
use delivery_lane::Lane;
use dispatcher::Dispatcher;
use filter_wait::FilterWait;
use item::Item;
use log::Log;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use std::{
    path::Path,
    sync::{Arc, atomic::AtomicU64},
    time::Duration,
};
use tokio::sync::watch;

/// How often the files of the change log are trimmed and synced.
const TIDY_EVERY: Duration = Duration::from_secs(1);
/// The catalog is compared with the cached descriptions in every such interval of [`TIDY_EVERY`].
const LOOK_EVERY: u32 = 2;

/// Limits of row changes for clients.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Config {
    /// Connections for the catalog, in addition to the pool's. Two more evaluate filters that only Postgres can.
    pub connections_max: usize,
    /// Most bytes of the change log on disk, for clients that resume and for slow checks. Old segments are removed.
    pub log_bytes_max: u64,
    /// Most bytes of a change. A larger one has `Error 413: Payload Too Large` and only its short values.
    pub record_bytes_max: usize,
    /// Most items of one channel.
    pub items_max: usize,
}

impl Default for Config {
    fn default() -> Self {
        Self { connections_max: 2, log_bytes_max: 256 << 20, record_bytes_max: 1 << 20, items_max: 1000 }
    }
}

impl Config {
    /// The first invalid key, what is wrong with it, and what to do; `None` if all are valid.
    #[must_use]
    pub fn check(&self) -> Option<(&'static str, String, &'static str)> {
        let few = |what: &str| format!("0 {what} are too few");
        if self.connections_max == 0 {
            return Some(("connections_max", few("connections"), "use 1 or more, like 2"));
        }
        if self.log_bytes_max < 1 << 20 {
            let what = format!("{} bytes are too few", self.log_bytes_max);
            return Some(("log_bytes_max", what, "use 1_048_576 or more"));
        }
        (self.items_max == 0).then(|| ("items_max", few("items"), "use 1 or more, like 1_000"))
    }
}

/// The dependencies of [`start`].
pub struct Deps {
    /// The database of the catalog; `connections_max` connections are used.
    pub database: Database,
    /// The database that evaluates filters; [`FILTERS_CONNECTIONS`] connections are used.
    pub filters: Database,
    /// Row security.
    pub rows: Rows,
    /// The outboxes, and the resume positions of clients.
    pub hub: Hub,
    /// The source of the numbers in the change log.
    pub clock: Clock,
    /// Gets the metrics `changes_…`.
    pub registry: Metrics,
    /// The clients' publication, then the others of the stream.
    pub publications: Vec<String>,
    /// Whether the WAL is read.
    pub streaming: watch::Receiver<bool>,
    /// For how long a client can resume; `None` if it cannot.
    pub resumable: Option<Duration>,
}

/// Row changes for clients. Clones share their state.
#[derive(Clone)]
pub struct Changes(Arc<Inner>);

struct Inner {
    log: Log,
    dispatcher: Dispatcher,
    /// Pending checks of joins, by role and item.
    checks: join::Checks,
    lanes: [Lane; delivery_lane::SHARED],
    streaming: watch::Receiver<bool>,
    scope: Scope,
}

/// Appends the changes of the WAL to the change log.
#[derive(Debug)]
pub struct Appender(log::Appender);

/// A validated subscription with a position in the change log. It receives every later commit.
pub struct Prepared {
    begun: LogAnchor,
    viewer: Arc<Viewer>,
    items: Arc<[Item]>,
    plain: bool,
}

/// A position in the change log from which a channel will receive changes.
struct LogAnchor {
    log: Log,
    number: u64,
    kept: bool,
}

/// Why a subscription is refused.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum SubscribeError {
    /// It is invalid, with the text of `docs/spec/postgres-changes.md` §1.5.
    #[error("{0}")]
    Asked(String),
    /// The database is unavailable.
    #[error("UnableToConnectToProject: Realtime was unable to connect to the project database")]
    Away,
    /// Too many joins are waiting.
    #[error("Too many subscribe at once: try again after {} ms", .retry_after.as_millis())]
    Busy {
        /// Delay before the next attempt.
        retry_after: Duration,
    },
}

/// Opens the change log in the folder `dir` and starts delivery. `source` identifies the database; the change log of
/// another database is deleted. Blocks while it reads the files.
///
/// # Errors
/// If the folder cannot be read or written.
pub fn start(
    scope: &Scope,
    deps: Deps,
    config: Config,
    (dir, source): (&Path, &str),
) -> Result<(Changes, Appender), journal::Error> {
    let Deps { database, filters, rows, hub, clock, registry, publications, streaming, resumable } = deps;
    let (log, appender) = log::open(dir, source, config.log_bytes_max, resumable, clock.clone())?;
    let catalog = Arc::new(catalog::Catalog::new(database, publications));
    let oracle = postgres_filters::Oracle::new(filters);
    let metrics = metrics::Metrics::register(&registry, clock);
    let visible = AtomicU64::new(0);
    let dispatcher = Dispatcher { config, hub, rows, catalog, oracle, metrics, visible };
    let begin = log.delivered();
    let lanes = [Lane::new(FilterWait::Never, begin), Lane::new(FilterWait::Short, begin)];
    let inner = Arc::new(Inner {
        log,
        dispatcher,
        checks: join::Checks::default(),
        lanes,
        streaming,
        scope: scope.clone(),
    });
    for (nth, name) in delivery_lane::NAMES.into_iter().enumerate() {
        let (delivering, progress) = (inner.clone(), scope.watch(name, worker::STALLED_AFTER));
        scope.spawn("changes", OnExit::StopDaemon, move |stop| async move {
            worker::run(delivering, nth, progress, stop).await;
            Ok(())
        });
    }
    let (keeper, keeping) = (Arc::new(appender.keeper()), inner.clone());
    scope.spawn("change log", OnExit::Log, |stop| async move {
        let mut turn = 0_u32;
        while tokio::time::timeout(TIDY_EVERY, stop.cancelled()).await.is_err() {
            let keeper = keeper.clone();
            tokio::task::spawn_blocking(move || keeper.tidy()).await?;
            turn = turn.wrapping_add(1);
            if turn.is_multiple_of(LOOK_EVERY) {
                keeping.look_again().await;
            }
        }
        tokio::task::spawn_blocking(move || keeper.close()).await?;
        Ok(())
    });
    Ok((Changes(inner), Appender(appender)))
}

impl Appender {
    /// Appends the changes of these batches, in order. When it returns, they survive the daemon, and the WAL position
    /// may be confirmed. A slow disk or slow readers delay it for a few seconds at most; after that the change log is
    /// degraded, and later readers get a gap.
    pub async fn append(&mut self, batches: &[Batch]) {
        // Rows of `realtime.messages` are broadcasts and not row changes, even if a publication has that table.
        let wanted = |relation: &Relation| relation.schema != "realtime";
        self.0.append(batches, wanted).await;
    }

    /// The commit position of the last change in the change log, also of an earlier process; zero if it is empty.
    #[must_use]
    pub fn reached(&self) -> Lsn {
        self.0.reached()
    }

    /// Records a loss of changes: every subscriber, and every client that resumes, gets a gap notice.
    pub async fn gap(&mut self) {
        self.0.gap().await;
    }
}

impl Changes {
    /// Whether the change log cannot be written. The receiver is notified of changes.
    #[must_use]
    pub fn degraded(&self) -> watch::Receiver<bool> {
        self.0.log.degraded()
    }

    /// Most items of one channel.
    #[must_use]
    pub fn items_max(&self) -> usize {
        self.0.dispatcher.config.items_max
    }

    /// Validates the items of a channel (`config.postgres_changes` with ids) and reserves a position in the change log.
    /// `plain`: the join of the client has no `config`. Cancel safe.
    ///
    /// # Errors
    /// [`SubscribeError`]; [`SubscribeError::Away`] after a second and a half in which the database did not answer, or
    /// eight seconds in which the WAL was not read.
    pub async fn prepare(
        &self,
        items: &[Map<String, Value>],
        viewer: &Arc<Viewer>,
        plain: bool,
    ) -> Result<Prepared, SubscribeError> {
        let outcome = join::prepare(&self.0, items, viewer, plain).await;
        if outcome.is_err() {
            self.0.dispatcher.metrics.refused.inc();
        }
        outcome
    }

    /// Starts delivery to a channel. Call it after the reply to the join was sent.
    #[must_use]
    pub fn follow(&self, prepared: Prepared, listener: Listener) -> ChangeSubscription {
        ChangeSubscription::begin(&self.0, prepared, listener)
    }
}

impl Inner {
    /// The last number that was delivered to every channel of a shared lane; 0 for other lanes.
    fn reached(&self, lane: usize) -> u64 {
        self.lanes.get(lane).map_or(0, Lane::at)
    }

    /// Applies new descriptions of tables, which are used from the next change on.
    fn refresh(&self, tables: &[Arc<catalog::Described>]) {
        for lane in &self.lanes {
            let known = lane.registry.lock().tables();
            for described in tables {
                if let Some(table) = known.iter().find(|it| it.relation.oid == described.oid) {
                    self.describe(lane, table, Some(described.clone()));
                }
            }
        }
    }

    /// Reads the catalog again: publications, types and columns can change without a record in the WAL.
    async fn look_again(&self) {
        let lanes = || self.lanes.iter().filter(|lane| !lane.registry.lock().is_empty());
        if lanes().all(|lane| lane.registry.lock().tables().is_empty()) {
            return;
        }
        let Ok(now) = self.dispatcher.catalog.tables(None, None, true).await else { return };
        for lane in lanes() {
            let tables = lane.registry.lock().tables();
            for table in tables {
                let described = now.iter().find(|it| it.oid == table.relation.oid).cloned();
                self.describe(lane, &table, described);
            }
        }
    }

    /// Applies the description of a table. Does nothing if it is unchanged, or if the WAL has described the table anew
    /// meanwhile.
    fn describe(
        &self,
        lane: &Lane,
        table: &Arc<registry::SubscribedTable>,
        described: Option<Arc<catalog::Described>>,
    ) {
        if described == table.described {
            return;
        }
        let changed = Arc::new(self.dispatcher.known(table.relation.clone(), described));
        let broken = {
            let mut registry = lane.registry.lock();
            if registry.table(&table.relation).is_none() {
                return;
            }
            registry.describe(changed)
        };
        self.dispatcher.report_broken(broken);
    }
}

impl LogAnchor {
    fn number(&self) -> u64 {
        self.number
    }

    /// Transfers the anchor to the subscriber, which ends it.
    fn keep(mut self) {
        self.kept = true;
    }
}

impl Drop for LogAnchor {
    fn drop(&mut self) {
        if !self.kept {
            self.log.end();
        }
    }
}
