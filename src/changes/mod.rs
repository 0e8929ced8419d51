//! Row changes for clients: `postgres_changes` (`reference/postgres-changes.md`).
//!
//! What the write-ahead log says goes into the change log ([`Appender`]); from there one task delivers it to all
//! channels that want it, in commit order, and channels that come back read what they missed. Owns the
//! subscriptions, what is known of the tables, and the log on disk. Never writes to the database. A filter or a policy that fails
//! hides rows from those it concerns, who are told, and stops nobody else; while the database is away, delivery
//! waits; a reader that is too slow loses its socket.
mod catalog;
mod check;
mod courier;
mod encode;
mod follow;
mod item;
mod log;
mod member;
mod metrics;
mod oracle;
mod payload;
mod registry;
mod worker;

pub use follow::{Following, Listener};

use crate::{
    access::rows::{Rows, Viewer},
    clock::Clock,
    db::Database,
    hub::Hub,
    journal,
    scope::{OnExit, Scope},
    telemetry::Registry as Metrics,
    wal::{Batch, Relation},
};
use check::Refusal;
use courier::Courier;
use item::Item;
use log::Log;
use member::Member;
use parking_lot::Mutex;
use registry::Registry;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use std::{path::Path, sync::Arc, time::Duration};
use tokio::{
    sync::{Notify, watch},
    time::{Instant, sleep, timeout_at},
};

/// How long a join waits for the database. A client whose join is not answered when it would try again, after one
/// or two seconds, joins twice, and some end the channel then.
const CHECK_WITHIN: Duration = Duration::from_millis(1500);
/// Pause before the database is asked again.
const CHECK_PAUSE: Duration = Duration::from_millis(200);
/// How often the files of the log are looked after, and the catalog.
const TIDY_EVERY: Duration = Duration::from_secs(1);
/// Every so many times the catalog is compared with what is known of it.
const LOOK_EVERY: u32 = 2;

/// How row changes reach clients.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Config {
    /// Connections for the catalog and for filters that only Postgres can compare, beside the pool's.
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
    /// Who may see which row.
    pub rows: Rows,
    /// Whose outboxes are written to, and who keeps positions.
    pub hub: Hub,
    /// What numbers are made of.
    pub clock: Clock,
    /// Its metrics are `changes_…`.
    pub registry: Metrics,
    /// The clients' publication, then others that the stream reads.
    pub publications: Vec<String>,
    /// Whether the log is read.
    pub streaming: watch::Receiver<bool>,
    /// For how long a client can come back, if one can.
    pub resumable: Option<Duration>,
}

/// Row changes for clients. Clones are the same.
#[derive(Clone)]
pub struct Changes(Arc<Inner>);

struct Inner {
    log: Log,
    courier: Courier,
    registry: Mutex<Registry>,
    /// Channels that shall listen, or listen otherwise.
    pending: Mutex<Vec<Arc<Member>>>,
    wake: Notify,
    streaming: watch::Receiver<bool>,
    scope: Scope,
}

/// Takes what the write-ahead log says.
#[derive(Debug)]
pub struct Appender(log::Appender);

/// A subscription that is checked, at a position in the log: everything committed later is for it.
pub struct Prepared {
    begun: Begun,
    viewer: Arc<Viewer>,
    items: Arc<[Item]>,
    plain: bool,
}

/// A place in the log that somebody will listen from.
struct Begun {
    log: Log,
    number: u64,
    kept: bool,
}

/// Why somebody cannot subscribe.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// For what it asks for: the text of `reference/postgres-changes.md` §1.5.
    #[error("{0}")]
    Asked(String),
    /// The database does not answer.
    #[error("UnableToConnectToProject: Realtime was unable to connect to the project database")]
    Away,
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
    let Deps { database, rows, hub, clock, registry, publications, streaming, resumable } = deps;
    let (log, appender) = log::open(dir, source, config.log_bytes_max, resumable, clock.clone())?;
    let catalog = Arc::new(catalog::Catalog::new(database, publications));
    let oracle = oracle::Oracle::new(catalog.clone());
    let metrics = metrics::Metrics::register(&registry, clock);
    let courier = Courier { config, hub, rows, catalog, oracle, metrics };
    let inner = Arc::new(Inner {
        log,
        courier,
        registry: Mutex::default(),
        pending: Mutex::default(),
        wake: Notify::new(),
        streaming,
        scope: scope.clone(),
    });
    let delivering = inner.clone();
    scope.spawn("changes", OnExit::StopDaemon, |stop| async move {
        worker::run(delivering, stop).await;
        Ok(())
    });
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
    /// be confirmed. Waits only while the disk takes nothing and much is not delivered yet.
    pub async fn append(&mut self, batches: &[Batch]) {
        // Messages of the database are no row changes, whatever publication has their table.
        let wanted = |relation: &Relation| relation.schema != "realtime";
        self.0.append(batches, wanted).await;
    }

    /// Changes were lost: everybody who listens or comes back is told.
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

    /// Checks what a channel asks for (`config.postgres_changes` with ids) and takes a position in the log.
    /// `plain`: for a client whose join has no `config`. Cancel safe.
    ///
    /// # Errors
    /// [`Refused`]; [`Refused::Away`] after a second and a half.
    pub async fn prepare(
        &self,
        items: &[Map<String, Value>],
        viewer: &Arc<Viewer>,
        plain: bool,
    ) -> Result<Prepared, Refused> {
        let outcome = self.checked(items, viewer, plain).await;
        if outcome.is_err() {
            self.0.courier.metrics.refused.inc();
        }
        outcome
    }

    async fn checked(
        &self,
        items: &[Map<String, Value>],
        viewer: &Arc<Viewer>,
        plain: bool,
    ) -> Result<Prepared, Refused> {
        let max = self.0.courier.config.items_max;
        if items.len() > max {
            return Err(Refused::Asked(format!("Too many subscriptions on one channel: at most {max}")));
        }
        let items: Result<Vec<Item>, String> = items.iter().map(Item::parse).collect();
        let mut items = items.map_err(Refused::Asked)?;
        let deadline = Instant::now() + CHECK_WITHIN;
        let mut streaming = self.0.streaming.clone();
        let streams = timeout_at(deadline, streaming.wait_for(|streams| *streams)).await;
        if !streams.is_ok_and(|streams| streams.is_ok()) {
            return Err(Refused::Away);
        }
        let Courier { catalog, rows, .. } = &self.0.courier;
        for item in &mut items {
            loop {
                let checked = timeout_at(deadline, check::check(catalog, rows, viewer, item)).await;
                match checked {
                    Ok(Ok(tables)) => {
                        self.0.refresh(&tables);
                        break;
                    }
                    Ok(Err(Refusal::Told(text))) => return Err(Refused::Asked(text)),
                    Ok(Err(Refusal::Away(error))) => {
                        tracing::debug!(%error, "a subscription waits for the database");
                        sleep(CHECK_PAUSE).await;
                        if Instant::now() >= deadline {
                            return Err(Refused::Away);
                        }
                    }
                    Err(_) => return Err(Refused::Away),
                }
            }
        }
        let begun = Begun { number: self.0.log.begin(), log: self.0.log.clone(), kept: false };
        Ok(Prepared { begun, viewer: viewer.clone(), items: items.into(), plain })
    }

    /// Begins to put out what `prepared` is about; to be called when the client has its answer.
    #[must_use]
    pub fn follow(&self, prepared: Prepared, listener: Listener) -> Following {
        Following::begin(&self.0, prepared, listener)
    }
}

impl Inner {
    /// What was just read of tables counts from the next change on.
    fn refresh(&self, tables: &[Arc<catalog::Described>]) {
        let known = self.registry.lock().tables();
        for described in tables {
            if let Some(table) = known.iter().find(|it| it.relation.oid == described.oid) {
                self.describe(table, Some(described.clone()));
            }
        }
    }

    /// Publications, types and columns can change without a word in the log.
    async fn look_again(&self) {
        let tables = self.registry.lock().tables();
        if tables.is_empty() || self.registry.lock().is_empty() {
            return;
        }
        let Ok(now) = self.courier.catalog.tables(None, None, true).await else { return };
        for table in tables {
            let described = now.iter().find(|it| it.oid == table.relation.oid).cloned();
            self.describe(&table, described);
        }
    }

    /// The catalog describes a table so now; nothing when that is known, or when the log describes it anew itself.
    fn describe(&self, table: &Arc<registry::Table>, described: Option<Arc<catalog::Described>>) {
        if described == table.described {
            return;
        }
        let changed = Arc::new(self.courier.known(table.relation.clone(), described));
        let broken = {
            let mut registry = self.registry.lock();
            if registry.table(&table.relation).is_none() {
                return;
            }
            registry.describe(changed)
        };
        self.courier.tell_broken(broken);
    }
}

impl Begun {
    fn number(&self) -> u64 {
        self.number
    }

    /// Whoever listens ends it.
    fn keep(mut self) {
        self.kept = true;
    }
}

impl Drop for Begun {
    fn drop(&mut self) {
        if !self.kept {
            self.log.end();
        }
    }
}
