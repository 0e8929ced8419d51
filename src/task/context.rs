//! What all parts of the task store share on one node: the database, the settings, the roster and the signals.
//!
//! None of it is the truth about a task: the rows are. Everything here can be made again from them.
use crate::{
    db::Database,
    id::{AgentId, Lsn, NodeId, OrgId},
    scope::WorkerProgress,
    task::{
        Config, Error, FOREVER, Metrics, Notice, Schemas, TaskState, Update,
        commands::fresh_awards::FreshAwards,
        model::policies::Policies,
        rounds::{classes::Classes, roster::Roster, tally::Tallies},
        storage::{statement::run, transaction::Transaction},
    },
    telemetry,
};
use parking_lot::Mutex;
use std::{
    collections::{HashMap, HashSet},
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};
use tokio::{
    sync::{Notify, Semaphore, mpsc, watch},
    time::Instant,
};

/// Requests of one org that may be in progress; more wait, and delay no other org.
const REQUESTS_EACH_MAX: usize = 512;
/// Orgs whose requests are counted; above it, those without a request in progress are dropped from the map.
const ORGS_MAX: usize = 1000;
/// Batches of notices that may wait for their reader. More are dropped and counted, because notices are hints.
const NOTICES_MAX: usize = 16_384;
/// How long the roster is used without reading it again.
const ROSTER_EVERY: Duration = Duration::from_secs(1);
/// Most characters of a kind in a log line, as many as a request may have bytes.
const KIND_CHARS_LOGGED: usize = 200;

/// State that the handles, the group commits and the arbiter of one node share.
pub(in crate::task) struct TaskContext {
    pub(in crate::task) database: Database,
    pub(in crate::task) node: NodeId,
    pub(in crate::task) policies: Arc<Policies>,
    /// The share of tasks without a trace that begin one, in percent.
    pub(in crate::task) traced_percent: i16,
    /// How long tasks are kept after their end; `None` keeps all.
    pub(in crate::task) retention: Option<Duration>,
    /// One semaphore for each org, of [`REQUESTS_EACH_MAX`] permits.
    request_permits: Mutex<HashMap<OrgId, Arc<Semaphore>>>,
    /// Agents that are present. Held only for computing, never across an await.
    pub(in crate::task) roster: Mutex<Roster>,
    /// Wakes the arbiter of this node. It stores one permit, so a signal during a poll starts the next poll.
    pub(in crate::task) arbiter_wanted: Notify,
    pub(in crate::task) changed: watch::Sender<u64>,
    notices: mpsc::Sender<Vec<Notice>>,
    pub(in crate::task) metrics: Metrics,
    /// Limits the log lines about tasks that failed.
    pub(in crate::task) failed_lines: telemetry::Throttle,
    /// Limits the log lines of commands that failed internally.
    pub(in crate::task) internal_lines: telemetry::Throttle,
    /// Limits the log lines about wakes that made no task.
    pub(in crate::task) wake_lines: telemetry::Throttle,
    /// Limits the log lines about results that the database refused.
    pub(in crate::task) refused_lines: telemetry::Throttle,
    /// Whether the arbiter runs on this node. Otherwise a commit must call the arbiter of another node.
    pub(in crate::task) arbitrates: AtomicBool,
    /// Whether the last signal to the arbiter came from the WAL, which may be ahead of what a query sees.
    pub(in crate::task) notified_by_wal: AtomicBool,
    /// Whether the roster may differ from the rows and must be read again.
    pub(in crate::task) roster_stale: AtomicBool,
    /// Whether tasks may wait for a slot: false only after a poll that found no ready task.
    pub(in crate::task) ready_left: AtomicBool,
    /// When the arbiter last read the roster.
    pub(in crate::task) roster_read: Mutex<Option<Instant>>,
    /// Whether row changes of offers are published; read again with the roster.
    pub(in crate::task) offers_published: AtomicBool,
    /// Runs the schemas of results.
    pub(in crate::task) schemas: Schemas,
    /// Steps with each batch of the arbiter, and is idle while another node arbitrates.
    pub(in crate::task) arbiter_progress: WorkerProgress,
    /// Classes whose ready tasks wait for a slot: new tasks of such a class must not overtake them.
    pub(in crate::task) backlog: Mutex<HashSet<i64>>,
    /// Cache of the classes of tasks.
    pub(in crate::task) classes: Classes,
    /// Cache of the pending awards of this node.
    pub(in crate::task) fresh_awards: FreshAwards,
    /// Offers that each agent has won and lost.
    pub(in crate::task) offers: Arc<Tallies>,
}

impl TaskContext {
    /// The context, and the receiver of its notices.
    pub(in crate::task) fn new(
        database: Database,
        node: NodeId,
        config: &Config,
        metrics: Metrics,
        arbiter_progress: WorkerProgress,
    ) -> (Arc<Self>, mpsc::Receiver<Vec<Notice>>) {
        let (notices, receiver) = mpsc::channel(NOTICES_MAX);
        let context = Self {
            database,
            node,
            policies: Policies::new(config).into(),
            traced_percent: config.traced_percent.into(),
            retention: Some(config.retention).filter(|keep| *keep < FOREVER),
            request_permits: Mutex::default(),
            roster: Mutex::default(),
            arbiter_wanted: Notify::new(),
            changed: watch::Sender::new(0),
            notices,
            metrics,
            failed_lines: telemetry::Throttle::default(),
            internal_lines: telemetry::Throttle::default(),
            wake_lines: telemetry::Throttle::default(),
            refused_lines: telemetry::Throttle::default(),
            arbitrates: AtomicBool::new(false),
            notified_by_wal: AtomicBool::new(false),
            roster_stale: AtomicBool::new(false),
            ready_left: AtomicBool::new(true),
            roster_read: Mutex::default(),
            offers_published: AtomicBool::new(false),
            schemas: Schemas::default(),
            arbiter_progress,
            backlog: Mutex::default(),
            classes: Classes::default(),
            fresh_awards: FreshAwards::default(),
            offers: Arc::default(),
        };
        (Arc::new(context), receiver)
    }

    /// In a transaction that leaves work for the arbiter: where another node arbitrates, writes a message to the
    /// WAL, which that node reads when this transaction has committed.
    pub(in crate::task) async fn call_arbiter(&self, tx: &Transaction<'_>) -> Result<(), Error> {
        if !self.arbitrates.load(Ordering::Relaxed) {
            run(tx, "select convoke.call_arbiter()", &[]).await?;
        }
        Ok(())
    }

    /// Asks the arbiter of this node to poll; carries no data, so a needless call is harmless.
    pub(in crate::task) fn notify_arbiter(&self) {
        self.arbiter_wanted.notify_one();
    }

    /// Asks for a poll because slots are free again, unless no task waits for one and the roster is fresh.
    pub(in crate::task) fn notify_of_slots(&self) {
        // Race: the arbiter raises the flag before it counts the free slots, and this call follows the release of a
        // slot. So either the flag is seen here, or the arbiter counts the slot. Hence the order of all (SeqCst). A task
        // that is left ready later comes with a notification of its own.
        if self.ready_left.load(Ordering::SeqCst) || self.is_roster_old() {
            self.notify_arbiter();
        }
    }

    /// Whether the arbiter must read the roster again.
    pub(in crate::task) fn is_roster_old(&self) -> bool {
        self.roster_read.lock().is_none_or(|at| at.elapsed() > ROSTER_EVERY)
    }

    /// The semaphore that bounds the requests of an org.
    pub(in crate::task) fn request_permits(&self, org: &OrgId) -> Arc<Semaphore> {
        let mut permits = self.request_permits.lock();
        if permits.len() > ORGS_MAX {
            permits.retain(|_, semaphore| Arc::strong_count(semaphore) > 1);
        }
        permits.entry(org.clone()).or_insert_with(|| Arc::new(Semaphore::new(REQUESTS_EACH_MAX))).clone()
    }

    /// Runs the pure code for one task; a panic in it fails that task only.
    ///
    /// # Errors
    /// What to write as the reason when it panicked; the panic itself is in the process log.
    pub(in crate::task) fn catch_panic<T>(
        &self,
        doing: &'static str,
        work: impl FnOnce() -> T,
    ) -> Result<T, String> {
        // Unwind safe: what the work may leave half done is the roster, which is read again every second.
        catch_unwind(AssertUnwindSafe(work)).map_err(|_| {
            self.metrics.panics.inc();
            tracing::error!(doing, "panic confined to one task");
            "internal error".into()
        })
    }

    /// Guards slots that are taken in the roster before the transaction that awards them has committed.
    pub(in crate::task) fn roster_guard(&self) -> RosterGuard<'_> {
        RosterGuard(Some(self))
    }

    /// After a commit: wakes the long polls and sends the notices to their reader.
    pub(in crate::task) fn publish(&self, notices: Vec<Notice>) {
        if notices.is_empty() {
            return;
        }
        self.changed.send_modify(|ticks| *ticks = ticks.wrapping_add(1));
        notices.iter().for_each(|notice| self.log_failed(notice));
        if self.notices.try_send(notices).is_err() {
            self.metrics.notices_dropped.inc();
        }
    }

    /// Counts and logs a failed task, within the throttle.
    fn log_failed(&self, notice: &Notice) {
        let Notice::Updated(update) = notice else { return };
        if update.state != TaskState::Failed {
            return;
        }
        let reason = update.state_reason.clone().unwrap_or_default();
        self.metrics.failed.inc(reason.clone());
        if let Some(held_back) = self.failed_lines.pass() {
            let Update { id, org, kind, agent_id, .. } = update;
            let agent = agent_id.as_ref().map(AgentId::as_str);
            // A row that was written by hand can have a kind of any length.
            let kind: String = kind.chars().take(KIND_CHARS_LOGGED).collect();
            tracing::warn!(task = %id, %org, kind, agent, reason, held_back, "task failed");
        }
    }

    /// Counts and logs a row change that made no task, within the throttle.
    pub(in crate::task) fn log_wake_refused(&self, trigger: &str, lsn: Lsn, reason: &str) {
        self.metrics.wakes_refused.inc();
        if let Some(held_back) = self.wake_lines.pass() {
            tracing::warn!(trigger, %lsn, reason, held_back, "wake made no task");
        }
    }
}

/// Slots taken in the roster for awards that may not commit. Dropped without [`keep`](Self::keep), it marks the
/// roster as stale, so that the arbiter reads it again.
pub(in crate::task) struct RosterGuard<'a>(Option<&'a TaskContext>);

impl RosterGuard<'_> {
    /// The transaction has committed: the roster is right.
    pub(in crate::task) fn keep(mut self) {
        self.0 = None;
    }
}

impl Drop for RosterGuard<'_> {
    fn drop(&mut self) {
        if let Some(context) = self.0 {
            context.roster_stale.store(true, Ordering::Relaxed);
        }
    }
}
