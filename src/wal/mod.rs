//! The write-ahead log: every committed change of the published tables, in commit order.
//!
//! Owns the replication slot, the connection that streams from it, the pure
//! `pgoutput` decoder, the relation cache and the table `convoke.wal_position`.
//! One daemon leads and streams; the others stand by and take over. Only positions that the consumer
//! [confirmed](Confirm::confirm) are confirmed to Postgres, so nothing is lost on `kill -9`: unconfirmed changes are
//! read again.
//!
//! It never blocks its socket on the consumer and never confirms a change that was only received. A lost slot is
//! reported as a [`WalEvent::Gap`]. While the server is unavailable, it retries.
mod array;
pub mod assembler;
mod change;
mod connection;
mod error;
mod leader;
mod memory;
mod metrics;
pub mod pgoutput;
pub mod position;
mod position_store;
mod publication;
mod reader;
mod relation;
mod slot;
mod spill;
mod value;
mod worker;

pub(crate) use array::{Node, parse as parse_array};
pub use change::{Batch, Cell, Change, Column, Gap, Op, Relation, Row, RowChange, WalEvent};
pub use error::Error;
pub use metrics::Metrics;
pub use pgoutput::Malformed;
pub use publication::{
    Reconciled, TableName, ensure as ensure_publication, publish, reconcile, unpublishable,
};
pub(crate) use value::write_string;
pub use value::{Encoding, to_json, write_cell};

use crate::{
    db::{Database, Target},
    id::Lsn,
    scope::{OnExit, Scope},
};
use serde::{Deserialize, Serialize};
use std::{
    collections::BTreeSet,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};
use tokio::sync::mpsc;
use tracing::Instrument;

/// How the WAL is read.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Config {
    /// The slot's name: 1 to 63 of `a-z`, `0-9` and `_`, one per database of a server.
    pub slot: String,
    /// Bytes of WAL that the server may retain for the slot before an error is logged; a quarter of it is a warning.
    pub lag_max: u64,
    /// How often the confirmed position is reported to Postgres.
    #[serde(with = "humantime_serde")]
    pub status_interval: Duration,
    /// A server that is silent for so long, although it was asked, is given up.
    #[serde(with = "humantime_serde")]
    pub liveness_timeout: Duration,
    /// Bytes of transactions kept in memory until their commit; what is beyond goes to disk.
    pub transaction_memory_max: usize,
}

impl Config {
    /// Whether the slot can have its name.
    ///
    /// # Errors
    /// [`Error::BadSlotName`].
    pub fn check(&self) -> Result<(), Error> {
        slot::check_name(&self.slot)
    }
}

impl Default for Config {
    fn default() -> Self {
        Self {
            slot: "convoke".into(),
            lag_max: 1 << 30,
            status_interval: Duration::from_secs(1),
            liveness_timeout: Duration::from_secs(20),
            transaction_memory_max: 64 << 20,
        }
    }
}

/// How many events wait for the consumer. A batch has a mebibyte at most, or one huge row.
const EVENTS_MAX: usize = 16;

/// What this machine keeps about the WAL, outside the database.
#[derive(Clone, Debug, Default)]
pub struct Local {
    /// Where transactions beyond the memory limit wait in files; made when it is needed.
    pub spill_dir: PathBuf,
    /// Where the last stored position is kept, to notice that a database was put back from an older copy. Defaults
    /// to nowhere: then only what this process has read itself shows it.
    pub position_file: Option<PathBuf>,
    /// The furthest position that the consumer keeps something of from an earlier life.
    pub reached: Lsn,
}

/// Streams the WAL of `publications` until the scope stops. The first one must exist, and so must the migrated schema.
///
/// Never fails: an error is logged, reported as [`WalEvent::Down`] and retried
/// again. When the scope stops, what is confirmed by
/// then is stored and reported to Postgres: let the consumer finish before.
#[must_use]
pub fn start(
    scope: &Scope,
    database: Database,
    config: Config,
    publications: Vec<String>,
    local: Local,
    metrics: Metrics,
) -> Stream {
    let (sender, events) = mpsc::channel(EVENTS_MAX);
    let confirm = Confirm::default();
    let span = tracing::info_span!("wal", slot = config.slot);
    let office = leader::LeaderSession {
        scope: scope.clone(),
        clients: scope.child(),
        database,
        config,
        publications,
        left_out: BTreeSet::new(),
        sent_missing: BTreeSet::new(),
        raw: false,
        spill_dir: local.spill_dir,
        memory: Arc::new(memory::Memory::open(local.position_file)),
        reached: local.reached,
        metrics,
        events: sender,
        confirm: confirm.clone(),
        progress: position_store::StoredProgress::default(),
        stop: scope.stopping(),
        broken: None,
        in_blocks: true,
        reported_idle: None,
    };
    scope.spawn("wal", OnExit::StopDaemon, |_| {
        async {
            worker::run(office).await;
            Ok(())
        }
        .instrument(span)
    });
    Stream { events, confirm }
}

/// The consumer's end: events in order, and the handle that confirms them.
#[derive(Debug)]
pub struct Stream {
    /// What happens; bounded, so that a slow consumer applies backpressure and Postgres retains the WAL.
    pub events: mpsc::Receiver<WalEvent>,
    /// What is done.
    pub confirm: Confirm,
}

/// Confirms positions up to which changes are durably handed off. Clones share the position.
#[derive(Clone, Debug, Default)]
pub struct Confirm(Arc<AtomicU64>);

impl Confirm {
    /// Everything up to `end_lsn` (of a [`Batch`] that was the last of its
    /// transaction, or the `to` of a [`Gap`]) is durably handed off.
    ///
    /// Never moves back and never waits. The position is stored and Postgres
    /// told within the status interval.
    pub fn confirm(&self, end_lsn: Lsn) {
        self.0.fetch_max(end_lsn.0, Ordering::AcqRel);
    }

    /// The highest position confirmed so far.
    #[must_use]
    pub fn position(&self) -> Lsn {
        Lsn(self.0.load(Ordering::Acquire))
    }

    /// Resets the position, because it is about another WAL.
    fn reset(&self) {
        self.0.store(0, Ordering::Release);
    }
}

/// Checks that `target` accepts a replication connection: logs in, identifies the system and disconnects.
///
/// # Errors
/// What the stream would stand by for.
pub async fn probe(target: &Target) -> Result<(), Error> {
    let mut connection = connection::Connection::connect(target).await?;
    slot::System::identify(&mut connection).await?;
    Ok(())
}
