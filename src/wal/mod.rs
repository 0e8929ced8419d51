//! The write-ahead log: every committed change of the published tables, in commit order.
//!
//! Owns the replication slot, the connection that streams from it, the pure
//! `pgoutput` decoder, the relation cache and the table `convoke.wal_position`.
//! One daemon leads and streams; the others stand by and take over. Postgres
//! is told only what the consumer [confirmed](Confirm::confirm), so nothing is
//! lost on `kill -9`; what was not confirmed comes again.
//!
//! It never blocks its socket on the consumer, never confirms what was only
//! received and never passes over a lost slot in silence: that is an
//! [`Event::Gap`]. When the server is away it tries again by itself.
mod array;
pub mod assembler;
mod change;
mod connection;
mod error;
mod keeper;
mod leader;
mod metrics;
pub mod pgoutput;
pub mod position;
mod publication;
mod reader;
mod relation;
mod slot;
mod spill;
mod value;
mod worker;

pub(crate) use array::{Node, parse as parse_array};
pub use change::{Batch, Cell, Change, Column, Event, Gap, Op, Relation, Row, RowChange};
pub use error::Error;
pub use metrics::Metrics;
pub use pgoutput::Malformed;
pub use publication::{TableName, ensure as ensure_publication, publish};
pub(crate) use value::write_string;
pub use value::{Encoding, to_json, write_cell};

use crate::{
    db::{Database, Target},
    id::Lsn,
    scope::{OnExit, Scope},
};
use serde::{Deserialize, Serialize};
use std::{
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};
use tokio::sync::mpsc;
use tracing::Instrument;

/// How the log is read.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Config {
    /// The slot's name: 1 to 63 of `a-z`, `0-9` and `_`, one per database of a server.
    pub slot: String,
    /// Bytes of log that the server may keep for us before it is an error; a quarter of it is a warning.
    pub lag_max: u64,
    /// How often Postgres is told what is confirmed.
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

/// Reads the log of `publications` until the scope stops; they must exist, and so must the migrated schema.
///
/// Never fails: what is wrong is logged, told as [`Event::Down`] and tried
/// again. Transactions beyond the memory limit wait in files in `spill_dir`,
/// which is made when it is needed. When the scope stops, what is confirmed by
/// then is stored and Postgres told: let the consumer finish before.
#[must_use]
pub fn start(
    scope: &Scope,
    database: Database,
    config: Config,
    publications: Vec<String>,
    spill_dir: PathBuf,
    metrics: Metrics,
) -> Stream {
    let (sender, events) = mpsc::channel(EVENTS_MAX);
    let confirm = Confirm::default();
    let span = tracing::info_span!("wal", slot = config.slot);
    let office = leader::Office {
        scope: scope.clone(),
        clients: scope.child(),
        database,
        config,
        publications,
        spill_dir,
        metrics,
        events: sender,
        confirm: confirm.clone(),
        progress: keeper::Progress::default(),
        stop: scope.stopping(),
        broken: None,
        in_blocks: true,
        told: None,
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

/// The consumer's end: events in order, and the way to say what is done.
#[derive(Debug)]
pub struct Stream {
    /// What happens; bounded, so that a slow consumer slows the reading and Postgres keeps the log.
    pub events: mpsc::Receiver<Event>,
    /// What is done.
    pub confirm: Confirm,
}

/// Says how far changes are durably handed off. Clones say it together.
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

    /// Forgets everything, because the log is another one.
    fn reset(&self) {
        self.0.store(0, Ordering::Release);
    }
}

/// Whether `target` lets a replication connection in: logs in, asks who the server is, and leaves.
///
/// # Errors
/// What the stream would stand by for.
pub async fn probe(target: &Target) -> Result<(), Error> {
    let mut connection = connection::Connection::connect(target).await?;
    slot::System::identify(&mut connection).await?;
    Ok(())
}
