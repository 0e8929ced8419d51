//! The kept broadcasts of rooms that have a history, and each client's position in each such room.
//!
//! A broadcast in such a room gets a number (microseconds since 1970, unique across restarts), is
//! written to the journal in one batch with all others that wait, and is delivered and acknowledged
//! only afterwards: a delivered message survives a kill of the daemon. One task does this for all
//! rooms, so each room has one order. A client with a `client_id` has a position in each room. A
//! heartbeat that proves receipt moves the position. A client that returns first receives the messages after
//! its position, or a gap notice. A disk that fails stops no message: messages are then delivered
//! without being kept, and returning clients get a gap notice.
mod config;
mod gate;
mod index;
mod position;
mod record_codec;
mod resume;
mod resume_session;
mod writer;

pub use config::{Config, Rule, Rules, check};
pub(super) use gate::Gate;
pub use resume::{Client, HistoryJoin, ResumeCursor};
pub use resume_session::{Known, ResumeSession};

use super::{
    Hub, Message, Outbox, Room, SubscriberId,
    memory::{Charge, Counting},
};
use crate::{
    clock::Clock,
    journal::{Error, KeyValueLog, Log, LogLimits, Opened},
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

/// Bytes waiting to be written above which publishers are asked to wait.
const WAITING_BYTES_CROWDED: usize = 4 << 20;
/// Bytes that may wait to be written. Beyond it messages are dropped, counted, and reported as a gap.
const WAITING_BYTES_MAX: usize = 256 << 20;
/// The position of a client that does not return is kept for the longest history plus this.
const POSITIONS_KEPT: Duration = Duration::from_secs(24 * 3600);

/// The histories of a daemon. Clones share the same ones.
#[derive(Clone)]
pub struct History(Arc<Shared>);

struct Shared {
    rules: Rules,
    clock: Clock,
    state: Mutex<State>,
    /// Notified when something waits to be written.
    work: Notify,
    /// The largest number whose messages are delivered or dropped.
    delivered: watch::Sender<u64>,
    /// The last writer cycle whose positions are written.
    stored: watch::Sender<u64>,
    /// Whether the disk is failing.
    degraded: watch::Sender<bool>,
    metrics: Metrics,
}

struct State {
    /// The last number that was assigned.
    head: u64,
    /// Cycles of the writer: each takes everything that waits.
    cycle: u64,
    waiting: Vec<PendingMessages>,
    waiting_bytes: usize,
    index: Index,
    /// Counts the index; made once clients' memory is counted.
    index_charge: Option<(Charge, usize)>,
    positions: Positions,
}

/// Messages published to a room in one call.
struct PendingMessages {
    room: Room,
    messages: Vec<(u64, Message)>,
    origin: Origin,
    /// Counts them for their sender until they are delivered.
    _charge: Option<Charge>,
}

/// The sender of a batch of messages.
#[derive(Default)]
pub struct Origin {
    /// The subscriber that does not receive the messages.
    pub except: Option<SubscriberId>,
    /// The sender's client id. A replay to this client omits its own messages unless it subscribed with `self`.
    pub client: Option<[u8; 16]>,
    /// Acknowledgements, enqueued once the messages are written and enqueued to the subscribers.
    pub acknowledgements: Vec<(Arc<Outbox>, Frame)>,
    /// The account that is charged while the messages wait to be written.
    pub sender: Option<Arc<super::memory::Account>>,
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

/// Opens the histories that an earlier process left in `dir` and starts the writer. Blocks while the journal
/// is read.
///
/// # Errors
/// Returns an error if the folder cannot be read or written.
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
    let limits = LogLimits { bytes_max: config.bytes_max, span_max };
    let mut index = Index::default();
    let mut holes = 0;
    let opened = Log::open(dir, limits, |number, location, payload| match record_codec::room(payload) {
        Some(room) => index.add(&room, index::IndexEntry { number, location }),
        None => {
            holes = number;
        }
    })?;
    let Opened { log, floor, last, whole } = opened;
    let mut positions = Positions::new(config.positions_max);
    let table = KeyValueLog::open(&dir.join("positions"), |key, value| positions.load(key, value, now))?;
    // Larger than every number that was ever assigned, even if the wall clock went back.
    let head = last.max(positions.last()).max(now) + 1;
    if !whole {
        tracing::warn!("history incomplete after an unclean shutdown: resuming clients get a gap notice");
    }
    // A hole makes everything before it doubtful. After an unclean shutdown everything is.
    index.lose_all(if whole { floor.max(holes) } else { head });
    for segment in log.segments() {
        index.add_reader(segment, || log.reader(segment));
    }
    let metrics = Metrics::register(registry);
    metrics.bytes.set(i64::try_from(log.bytes()).unwrap_or(i64::MAX));
    let state =
        State { head, cycle: 0, waiting: Vec::new(), waiting_bytes: 0, index, index_charge: None, positions };
    let shared = Shared {
        rules,
        clock,
        state: Mutex::new(state),
        work: Notify::new(),
        delivered: watch::Sender::new(head),
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

    /// Whether the disk is failing; the receiver sees changes.
    #[must_use]
    pub fn degraded(&self) -> watch::Receiver<bool> {
        self.0.degraded.subscribe()
    }

    /// Numbers messages and queues them for the writer. Never waits. Messages over a memory limit are dropped,
    /// counted, and reported as a gap to returning clients.
    pub(super) fn append(&self, room: &Room, counting: &Counting, messages: &[Message], origin: Origin) {
        let now = self.0.clock.micros();
        let bytes: usize = messages.iter().map(Message::size).sum();
        // Before the state is locked: charging may evict a connection, which locks its outbox.
        let charge = counting.waiting(bytes, origin.sender.as_ref());
        let mut state = self.0.state.lock();
        let state = &mut *state;
        let mut numbered = Vec::with_capacity(messages.len());
        for message in messages {
            // Numbers ascend in steps of two: a hole record after any message gets a free number.
            state.head = (state.head + 2).max(now);
            numbered.push((state.head, message.clone()));
        }
        match charge {
            Ok(charge) if state.waiting_bytes + bytes <= WAITING_BYTES_MAX => {
                state.waiting_bytes += bytes;
                let room = room.clone();
                state.waiting.push(PendingMessages { room, messages: numbered, origin, _charge: charge });
            }
            _ => {
                self.0.metrics.refused.inc_by(numbered.len() as u64);
                state.index.lose(room, state.head);
            }
        }
        self.0.work.notify_one();
    }

    /// Whether publishers should wait for [`History::wait_delivered`] before they publish more.
    pub(super) fn is_crowded(&self) -> bool {
        self.0.state.lock().waiting_bytes > WAITING_BYTES_CROWDED
    }

    /// Resolves when every message published before this call is written and enqueued, or dropped. Cancel safe.
    pub async fn wait_delivered(&self) {
        let head = self.0.state.lock().head;
        let mut delivered = self.0.delivered.subscribe();
        // An error means that the writer has ended: nothing more will be delivered.
        let _ended = delivered.wait_for(|delivered| *delivered >= head).await;
    }
}

impl State {
    /// Charges the index, and shrinks it to its share of the memory.
    fn count_index(&mut self, charge: impl FnOnce() -> Option<(Charge, usize)>) {
        self.index_charge = self.index_charge.take().or_else(charge);
        if let Some((charge, limit)) = &mut self.index_charge {
            self.index.shrink(*limit);
            charge.set(self.index.bytes());
        }
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
            lost: counter("history_lost", "Broadcasts delivered without being kept"),
            refused: counter("history_refused", "Broadcasts dropped because too many waited to be written"),
            replayed: counter("history_replayed", "Broadcasts replayed to returning clients"),
            resumed: counter("history_resumed", "Channels resumed from a stored position"),
            gaps: counter("history_gaps", "Gap notices sent to clients"),
            bytes: gauge("history_bytes", "Bytes of the history on disk"),
            positions: gauge("history_positions", "Stored positions of clients"),
            degraded: gauge("history_degraded", "1 while the history cannot be written"),
        }
    }
}
