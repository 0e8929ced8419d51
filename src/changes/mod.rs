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
/// Every so many times the catalog is compared with what is known of it.
const LOOK_EVERY: u32 = 2;

/// How row changes reach clients.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Config {
    /// Connections for the catalog, beside the pool's; two more are for filters that only Postgres can compare.
    pub connections_max: usize,
    /// Bytes on disk of the change log, which clients that come back and slow checks read; the oldest go first.
    pub log_bytes_max: u64,
    /// A change whose message would be larger comes with `Error 413: Payload Too Large` and its short values.
    pub record_bytes_max: usize,
    /// Items of one channel.
    pub items_max: usize,
}

impl Default for Config {
    fn default() -> Self {
        Self { connections_max: 2, log_bytes_max: 256 << 20, record_bytes_max: 1 << 20, items_max: 1000 }
    }
}

impl Config {
    /// The key that cannot work, what is wrong with it, and what to do.
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

/// What row changes are made with.
pub struct Deps {
    /// Where the catalog is; `connections_max` of it are used.
    pub database: Database,
    /// Where filters are that only Postgres can compare; [`FILTERS_CONNECTIONS`] of it are used.
    pub filters: Database,
    /// The rights on rows.
    pub rows: Rows,
    /// The outboxes, and the positions of clients.
    pub hub: Hub,
    /// What numbers are made of.
    pub clock: Clock,
    /// Its metrics are `changes_…`.
    pub registry: Metrics,
    /// The clients' publication, then others that the stream reads.
    pub publications: Vec<String>,
    /// Whether the WAL is read.
    pub streaming: watch::Receiver<bool>,
    /// For how long a client can come back, if one can.
    pub resumable: Option<Duration>,
}

/// Row changes for clients. Clones are the same.
#[derive(Clone)]
pub struct Changes(Arc<Inner>);

struct Inner {
    log: Log,
    dispatcher: Dispatcher,
    /// Checks of joins that are under way, by role and item.
    checks: join::Checks,
    lanes: [Lane; delivery_lane::SHARED],
    streaming: watch::Receiver<bool>,
    scope: Scope,
}

/// Takes what the write-ahead log says.
#[derive(Debug)]
pub struct Appender(log::Appender);

/// A checked subscription at a position in the change log: it gets everything committed later.
pub struct Prepared {
    begun: LogAnchor,
    viewer: Arc<Viewer>,
    items: Arc<[Item]>,
    plain: bool,
}

/// A position in the change log from which a channel will listen.
struct LogAnchor {
    log: Log,
    number: u64,
    kept: bool,
}

/// Why a subscription is refused.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum SubscribeError {
    /// For what it asks for: the text of `docs/spec/postgres-changes.md` §1.5.
    #[error("{0}")]
    Asked(String),
    /// The database does not answer.
    #[error("UnableToConnectToProject: Realtime was unable to connect to the project database")]
    Away,
    /// So many ask that the answer would come too late.
    #[error("Too many subscribe at once: try again after {} ms", .retry_after.as_millis())]
    Busy {
        /// When to try again.
        retry_after: Duration,
    },
}

/// Opens the change log in a folder, of the database that a text names, and begins to deliver. What is there of
/// another database is thrown away. Blocks for as long as reading it takes.
///
/// # Errors
/// When the folder cannot be read or written.
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
    /// Takes the changes of these batches, in order: when it is done they outlive the daemon, and the position may
    /// be confirmed. A disk or readers that take too long hold it up for a few seconds at most: then the log is
    /// degraded, and whoever reads it later gets a gap.
    pub async fn append(&mut self, batches: &[Batch]) {
        // Messages of the database are no row changes, whatever publication has their table.
        let wanted = |relation: &Relation| relation.schema != "realtime";
        self.0.append(batches, wanted).await;
    }

    /// Where the last change in the change log was committed, also by an earlier process; zero when it is empty.
    #[must_use]
    pub fn reached(&self) -> Lsn {
        self.0.reached()
    }

    /// Changes were lost: every subscriber, and every client that resumes, gets a gap notice.
    pub async fn gap(&mut self) {
        self.0.gap().await;
    }
}

impl Changes {
    /// Whether the change log cannot be written; changes are seen.
    #[must_use]
    pub fn degraded(&self) -> watch::Receiver<bool> {
        self.0.log.degraded()
    }

    /// Checks what a channel asks for (`config.postgres_changes` with ids) and takes a position in the change log.
    /// `plain`: for a client whose join has no `config`. Cancel safe.
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

    /// Begins to put out what `prepared` is about; to be called when the client has its answer.
    #[must_use]
    pub fn follow(&self, prepared: Prepared, listener: Listener) -> ChangeSubscription {
        ChangeSubscription::begin(&self.0, prepared, listener)
    }
}

impl Inner {
    /// Up to which number everybody in a lane that is shared has everything.
    fn reached(&self, lane: usize) -> u64 {
        self.lanes.get(lane).map_or(0, Lane::at)
    }

    /// What was just read of tables counts from the next change on.
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

    /// Applies what the catalog says about a table now; does nothing when it is known, or when the WAL describes the table
    /// itself.
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

    /// Leaves the end of the anchor to the subscriber.
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
