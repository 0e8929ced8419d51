//! What was said in rooms that have a history, and up to where each client has got it.
//!
//! A broadcast in such a room gets a number (microseconds since 1970, never twice, over
//! restarts), is written to the journal together with all others that wait, and only then heard
//! and acknowledged: what anybody heard outlives a killed daemon. One task does this for all
//! rooms, so each has one order. A client that gives a `client_id` has a position in each room,
//! which moves when a heartbeat proves it; when it comes back it first gets what is behind its
//! position, or is told what may be missing. A disk that takes nothing stops no message: it is
//! heard without being kept, and whoever comes back is told.
mod body;
mod config;
mod gate;
mod index;
mod position;
mod resume;
mod seat;
mod writer;

pub use config::{Config, Rule, Rules, check};
pub(super) use gate::Gate;
pub use resume::{Client, Place, Returning};
pub use seat::{Known, Seat};

use super::{Hub, Message, Outbox, Room, SubscriberId};
use crate::{
    clock::Clock,
    journal::{Error, Limits, Log, Opened, Table},
    scope::{OnExit, Scope},
    telemetry::Registry,
    wire::Frame,
};
use index::Index;
use parking_lot::Mutex;
use position::Positions;
use prometheus_client::metrics::{counter::Counter, gauge::Gauge};
use std::{path::Path, sync::Arc, time::Duration};
use tokio::sync::{Notify, watch};
use writer::Disk;

/// Bytes that wait to be written before publishers are asked to wait.
const WAITING_BYTES_CROWDED: usize = 4 << 20;
/// Bytes that wait at most; what is said beyond it is heard by nobody, counted, and told as missing.
const WAITING_BYTES_MAX: usize = 256 << 20;
/// Positions of clients that did not come back are forgotten after the longest history and this.
const POSITIONS_KEPT: Duration = Duration::from_secs(24 * 3600);

/// The histories of a daemon. Clones name the same ones.
#[derive(Clone)]
pub struct History(Arc<Shared>);

struct Shared {
    rules: Rules,
    clock: Clock,
    state: Mutex<State>,
    /// Something waits to be written.
    work: Notify,
    /// The last number that was heard, or that nobody will hear.
    heard: watch::Sender<u64>,
    /// The last turn whose positions are written.
    stored: watch::Sender<u64>,
    /// Whether the disk takes nothing.
    degraded: watch::Sender<bool>,
    metrics: Metrics,
}

struct State {
    /// The last number that was given.
    head: u64,
    /// How many times the writer has taken what waits.
    turn: u64,
    waiting: Vec<Said>,
    waiting_bytes: usize,
    index: Index,
    positions: Positions,
}

/// Messages that were said to a room at once.
struct Said {
    room: Room,
    messages: Vec<(u64, Message)>,
    by: By,
}

/// Who says something.
#[derive(Default)]
pub struct By {
    /// Does not hear it.
    pub except: Option<SubscriberId>,
    /// Which client it is; it does not get its own words replayed unless it hears them.
    pub client: Option<[u8; 16]>,
    /// What it is told once the message is kept and on its way.
    pub then: Vec<(Arc<Outbox>, Frame)>,
}

struct Metrics {
    messages: Counter,
    lost: Counter,
    refused: Counter,
    replayed: Counter,
    resumed: Counter,
    gaps: Counter,
    bytes: Gauge,
    positions: Gauge,
    degraded: Gauge,
}

/// Opens what an earlier life of the daemon kept in `dir`, and keeps on for the rooms of `hub` that have a
/// history. Blocks for as long as reading the journal takes.
///
/// # Errors
/// When the folder cannot be read or written.
pub fn start(
    scope: &Scope,
    hub: &Hub,
    dir: &Path,
    rules: Rules,
    config: &Config,
    clock: Clock,
    registry: &Registry,
) -> Result<History, Error> {
    let now = clock.micros();
    let longest = rules.longest().unwrap_or_default();
    let span_max = u64::try_from(longest.as_micros()).unwrap_or(u64::MAX);
    let limits = Limits { bytes_max: config.bytes_max, span_max };
    let mut index = Index::default();
    let mut holes = 0;
    let opened = Log::open(dir, limits, |number, place, payload| match body::room(payload) {
        Some(room) => index.add(&room, index::Entry { number, place }),
        None => {
            holes = number;
        }
    })?;
    let Opened { log, floor, last, whole } = opened;
    let mut positions = Positions::new(config.positions_max);
    let table = Table::open(&dir.join("positions"), |key, value| positions.load(key, value, now))?;
    let head = last.max(positions.last()).max(now) + 1;
    if !whole {
        tracing::warn!("the history is not whole: clients that come back will be told");
    }
    index.lose_all(if whole { floor.max(holes) } else { head });
    for segment in log.segments() {
        index.add_reader(segment, || log.reader(segment));
    }
    let metrics = Metrics::register(registry);
    metrics.bytes.set(i64::try_from(log.bytes()).unwrap_or(i64::MAX));
    let state = State { head, turn: 0, waiting: Vec::new(), waiting_bytes: 0, index, positions };
    let shared = Shared {
        rules,
        clock,
        state: Mutex::new(state),
        work: Notify::new(),
        heard: watch::Sender::new(head),
        stored: watch::Sender::new(0),
        degraded: watch::Sender::new(false),
        metrics,
    };
    let history = History(Arc::new(shared));
    hub.keep(history.clone());
    let writer = writer::Writer::new(history.clone(), hub.clone(), Disk { log, table });
    scope.spawn("history", OnExit::StopDaemon, |stop| writer.run(stop));
    Ok(history)
}

impl History {
    /// Whether broadcasts in this room are kept.
    #[must_use]
    pub fn keeps(&self, room: &Room) -> bool {
        self.0.rules.history(&room.topic).is_some()
    }

    /// Whether the disk takes nothing at present; changes are seen.
    #[must_use]
    pub fn degraded(&self) -> watch::Receiver<bool> {
        self.0.degraded.subscribe()
    }

    /// Says messages to a room that has a history; never waits.
    pub(super) fn say(&self, room: &Room, messages: impl Iterator<Item = Message>, by: By) {
        let now = self.0.clock.micros();
        let mut state = self.0.state.lock();
        let state = &mut *state;
        let mut numbered = Vec::with_capacity(messages.size_hint().0);
        let mut bytes = 0;
        for message in messages {
            bytes += message.size();
            // In steps of two, so that a hole has a number of its own behind every message.
            state.head = (state.head + 2).max(now);
            numbered.push((state.head, message));
        }
        if state.waiting_bytes + bytes > WAITING_BYTES_MAX {
            self.0.metrics.refused.inc_by(numbered.len() as u64);
            state.index.lose(room, state.head);
        } else {
            state.waiting_bytes += bytes;
            state.waiting.push(Said { room: room.clone(), messages: numbered, by });
        }
        self.0.work.notify_one();
    }

    /// Whether publishers should wait for [`History::heard`] before they say more.
    pub(super) fn is_crowded(&self) -> bool {
        self.0.state.lock().waiting_bytes > WAITING_BYTES_CROWDED
    }

    /// Resolves when everything that was said before is kept and on its way. Cancel safe.
    pub async fn heard(&self) {
        let head = self.0.state.lock().head;
        let mut heard = self.0.heard.subscribe();
        let _ended = heard.wait_for(|heard| *heard >= head).await;
    }
}

impl std::fmt::Debug for History {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("History")
    }
}

impl Metrics {
    fn register(registry: &Registry) -> Self {
        let counter = |name, help| registry.counter(name, help);
        let gauge = |name, help| registry.gauge(name, help);
        Self {
            messages: counter("history_messages", "Broadcasts that were kept"),
            lost: counter("history_lost", "Broadcasts that were heard but could not be kept"),
            refused: counter("history_refused", "Broadcasts dropped because too many waited to be kept"),
            replayed: counter("history_replayed", "Broadcasts said again to clients that came back"),
            resumed: counter("history_resumed", "Channels joined again from a known position"),
            gaps: counter("history_gaps", "Clients told that messages may be missing"),
            bytes: gauge("history_bytes", "Bytes of the history on disk"),
            positions: gauge("history_positions", "Positions of clients that are remembered"),
            degraded: gauge("history_degraded", "1 while the disk takes no history"),
        }
    }
}
