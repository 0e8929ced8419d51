//! Consumes the WAL: records the wakes and the row changes of each batch, then confirms its position.
//!
//! Takes all batches that are available. Their wakes are recorded in one transaction, and beside it their rows go
//! into the change log: neither waits for the other. The position is confirmed last, after both, so that a crash
//! loses nothing; each wake is keyed by WAL position and change, so a change that is read again starts nothing
//! twice. What fails is tried again until the database answers; Postgres keeps the WAL meanwhile.
use super::{
    CLIENTS_PUBLICATION, PUBLICATION,
    database_broadcasts::{DatabaseBroadcast, DatabaseBroadcasts, NOT_SENT_PREFIX},
    leadership::Leadership,
};
use crate::{
    agent::{Agents, Commit, PositionedChange, WakeIndex},
    api::{Health, PartState},
    changes::Appender,
    clock::Clock,
    db::Database,
    fault,
    id::Lsn,
    scope::{OnExit, Scope, WorkerProgress},
    task::TaskTriggers,
    telemetry::Outage,
    wal::{self, Batch, Change, Gap, WalEvent},
};
use chrono::{DateTime, SecondsFormat, Utc};
use prometheus_client::metrics::counter::Counter;
use std::{fmt::Display, time::Duration};
use tokio_util::sync::CancellationToken;

/// Wakes of one transaction.
const WAKES_MAX: usize = 500;
/// Row changes that are matched against wakes together.
const CHANGES_MAX: usize = 2_000;
/// Broadcasts of the database that are published together.
const BROADCASTS_MAX: usize = 500;
/// Pause after a failure.
const RETRY_PAUSE: Duration = Duration::from_millis(200);

/// Prefix of the logical messages of `convoke.request_task`.
const MESSAGE_PREFIX: &str = "convoke";

pub(super) struct Deps {
    pub(super) database: Database,
    pub(super) tasks: TaskTriggers,
    /// Content of the messages that wake the arbiter.
    pub(super) wake_key: String,
    /// Messages with the daemon's prefix and another content.
    pub(super) ignored: Counter,
    /// Whose wakes are looked for.
    pub(super) agents: Agents,
    pub(super) health: Health,
    pub(super) messages: DatabaseBroadcasts,
    pub(super) appender: Appender,
    /// Of the consumer, for `/health`.
    pub(super) progress: WorkerProgress,
    pub(super) clock: Clock,
}

/// Starts the consumer in `scope`.
pub(super) fn start(scope: &Scope, stream: wal::Stream, deps: Deps, leadership: Leadership) {
    scope.spawn("wal consumer", OnExit::StopDaemon, |stop| async move {
        let confirm = stream.confirm;
        let consumer = WalConsumer { deps, leadership, confirm, stop, missing: Vec::new(), lost_at: None };
        consumer.run(stream.events).await;
        Ok(())
    });
}

struct WalConsumer {
    deps: Deps,
    leadership: Leadership,
    confirm: wal::Confirm,
    stop: CancellationToken,
    /// Publications that are not streamed now.
    missing: Vec<String>,
    /// Time of the last WAL gap since the start.
    lost_at: Option<DateTime<Utc>>,
}

/// Some batches, and what they contain.
#[derive(Default)]
struct Work {
    batches: Vec<Batch>,
    changes: usize,
    broadcasts: Vec<DatabaseBroadcast>,
    /// End of the last whole transaction.
    end: Option<Lsn>,
    /// Whether a message wakes the arbiter.
    wakes_arbiter: bool,
}

/// The daemon stops: what is not confirmed is read again at the next start.
struct Stopped;

impl WalConsumer {
    async fn run(mut self, mut events: tokio::sync::mpsc::Receiver<WalEvent>) {
        let mut next = None;
        loop {
            // Idle only while it waits for the WAL, so that a batch that hangs shows as stalled.
            if next.is_none() {
                self.deps.progress.idle();
            }
            let event = match next.take() {
                Some(event) => event,
                None => tokio::select! {
                    biased;
                    () = self.stop.cancelled() => return,
                    event = events.recv() => match event {
                        Some(event) => event,
                        None => return,
                    },
                },
            };
            self.deps.progress.step();
            match event {
                WalEvent::Batch(batch) => {
                    let mut work = Work::default();
                    self.collect(batch, &mut work);
                    while work.changes < CHANGES_MAX && work.broadcasts.len() < BROADCASTS_MAX {
                        match events.try_recv() {
                            Ok(WalEvent::Batch(batch)) => self.collect(batch, &mut work),
                            Ok(other) => {
                                next = Some(other);
                                break;
                            }
                            Err(_) => break,
                        }
                    }
                    if self.process(work).await.is_err() {
                        return;
                    }
                }
                WalEvent::Leading { from } => {
                    self.deps.messages.streams(true);
                    tracing::info!(from = %from, "leading: hosting agents, streaming the WAL");
                    self.lead().await;
                }
                WalEvent::Standby => {
                    self.deps.health.set("wal", PartState::Degraded, "another daemon leads: standing by");
                    self.deps.messages.streams(false);
                    self.leadership.stand_by().await;
                }
                WalEvent::Down { reason } => {
                    // The reason may quote the database, and `/health` is public.
                    let detail = "the WAL cannot be read: the process log of this daemon has the reason";
                    self.deps.health.set_down("wal", detail, reason);
                    self.deps.messages.streams(false);
                    self.leadership.stand_by().await;
                }
                WalEvent::Gap(gap) => self.gap(gap).await,
                WalEvent::Publications { missing } => self.publications(missing).await,
            }
        }
    }

    /// Hosts the agents and starts the arbiter, as soon as the database answers.
    async fn lead(&mut self) {
        let mut outage = Outage::of("registration of hosted agents");
        while let Err(error) = self.leadership.lead().await {
            outage.failed(&error);
            let detail = "cannot be hosted yet: the process log of this daemon has the reason";
            self.deps.health.set_down("agents", detail, error.to_string());
            if pause(&self.stop).await.is_err() {
                return;
            }
        }
        outage.succeeded();
        let detail = match self.lost_at {
            None => "streaming".to_owned(),
            Some(at) => {
                let at = at.to_rfc3339_opts(SecondsFormat::Secs, true);
                format!("streaming; changes were lost at {at}: the event wal_gap says why")
            }
        };
        self.deps.health.set("wal", PartState::Ready, detail);
    }

    fn collect(&mut self, batch: Batch, work: &mut Work) {
        for (index, change) in (batch.first_index..).zip(&batch.changes) {
            match change {
                Change::Row(row) => {
                    work.broadcasts.extend(self.deps.messages.read_change(batch.commit_lsn, index, row));
                }
                Change::Message { prefix, content } => {
                    if prefix == NOT_SENT_PREFIX {
                        self.deps.messages.not_sent(content);
                    }
                    // Any database user may write such a message; without the key it is ignored and counted.
                    let known = content == self.deps.wake_key.as_bytes();
                    work.wakes_arbiter |= prefix == MESSAGE_PREFIX && known;
                    self.deps.ignored.inc_by(u64::from(prefix == MESSAGE_PREFIX && !known));
                }
                Change::Truncate(_) => {}
            }
        }
        if batch.last {
            work.end = Some(batch.end_lsn);
        }
        work.changes += batch.changes.len();
        work.batches.push(batch);
    }

    async fn process(&mut self, work: Work) -> Result<(), Stopped> {
        if work.wakes_arbiter {
            self.deps.tasks.notify_arbiter_by_wal();
        }
        let Deps { messages, appender, progress, database, tasks, agents, .. } = &mut self.deps;
        // Before they are published: a replay after a cursor must find everything that a subscriber has received.
        retry(&self.stop, "recording of broadcasts", || messages.record(&work.broadcasts)).await?;
        messages.publish(work.broadcasts);

        // Side by side: a slow disk must not delay wakes, nor a slow database the subscribers of row changes.
        let wakes = agents.wakes();
        let recorder = WakeRecorder { database, tasks, wakes: &wakes, progress, stop: &self.stop };
        let (woke, ()) = tokio::join!(recorder.record(&work.batches), async {
            fault::point(fault::Point::ChangesReceived);
            appender.append(&work.batches).await;
        });
        let woke = woke?;
        progress.step();
        // Last: everything before this position survives a crash now.
        if let Some(end) = work.end {
            self.confirm.confirm(end);
            if woke {
                fault::point(fault::Point::WakeConfirmed);
            }
        }
        Ok(())
    }

    /// Row changes were lost: records the gap in the event log and lets the arbiter read every task again.
    async fn gap(&mut self, gap: Gap) {
        let from = gap.from.map(|lsn| lsn.to_string());
        tracing::error!(from, to = %gap.to, reason = gap.reason, "WAL gap: agents were not woken by the lost changes");
        if self.record_gap(from.as_deref(), &gap.to.to_string(), &gap.reason).await.is_err() {
            return;
        }
        self.deps.appender.gap().await;
        self.deps.messages.begin_anew();
        self.lost_at = Some(self.deps.clock.now());
        // Confirmed last: a gap that is not recorded is reported again at the next start.
        self.confirm.confirm(gap.to);
        self.deps.tasks.notify_arbiter();
    }

    /// Publications that are missing now. Changes that were committed while one was missing are lost to its readers.
    async fn publications(&mut self, missing: Vec<String>) {
        let back: Vec<String> = self.missing.iter().filter(|name| !missing.contains(name)).cloned().collect();
        self.missing = missing;
        if back.iter().any(|name| name == CLIENTS_PUBLICATION) {
            tracing::warn!(
                publication = CLIENTS_PUBLICATION,
                "publication is back: subscribers are notified that row changes may be missing"
            );
            self.deps.appender.gap().await;
        }
        if back.iter().any(|name| name == PUBLICATION) {
            tracing::error!(
                publication = PUBLICATION,
                "publication is back: agents were not woken by changes committed while it was missing"
            );
            let reason = "publication convoke was missing: changes committed meanwhile woke no agent";
            let to = self.confirm.position().to_string();
            if self.record_gap(None, &to, reason).await.is_ok() {
                self.deps.tasks.notify_arbiter();
            }
        }
    }

    async fn record_gap(&self, from: Option<&str>, to: &str, reason: &str) -> Result<(), Stopped> {
        retry(&self.stop, "recording of a WAL gap", || self.deps.tasks.record_wal_gap(from, to, reason)).await
    }
}

/// Records the wakes of batches.
struct WakeRecorder<'a> {
    database: &'a Database,
    tasks: &'a TaskTriggers,
    wakes: &'a WakeIndex,
    progress: &'a WorkerProgress,
    stop: &'a CancellationToken,
}

impl WakeRecorder<'_> {
    /// Returns once the tasks of all wakes are committed; true if there were any.
    async fn record(&self, batches: &[Batch]) -> Result<bool, Stopped> {
        let changes: Vec<PositionedChange<'_>> = batches.iter().flat_map(placed).collect();
        let matched =
            retry(self.stop, "matching of row changes", || self.wakes.find_wakes(self.database, &changes))
                .await?;
        for wakes in matched.chunks(WAKES_MAX) {
            self.progress.step();
            fault::point(fault::Point::WakeReceived);
            retry(self.stop, "recording of wakes", || self.tasks.record_wakes(wakes)).await?;
            fault::point(fault::Point::WakeRecorded);
        }
        Ok(!matched.is_empty())
    }
}

/// Calls until it succeeds or the daemon stops. Logs as [`Outage`] does.
async fn retry<T, E: Display, F: Future<Output = Result<T, E>>>(
    stop: &CancellationToken,
    operation: &'static str,
    mut call: impl FnMut() -> F,
) -> Result<T, Stopped> {
    let mut outage = Outage::of(operation);
    loop {
        match call().await {
            Ok(value) => {
                outage.succeeded();
                return Ok(value);
            }
            Err(error) => outage.failed(&error),
        };
        pause(stop).await?;
    }
}

/// Waits before the next try.
async fn pause(stop: &CancellationToken) -> Result<(), Stopped> {
    let waited = tokio::time::timeout(RETRY_PAUSE, stop.cancelled()).await;
    if waited.is_ok() { Err(Stopped) } else { Ok(()) }
}

fn placed(batch: &Batch) -> impl Iterator<Item = PositionedChange<'_>> {
    let commit = Commit { lsn: batch.commit_lsn, committed_at: batch.committed_at };
    (batch.first_index..).zip(&batch.changes).map(move |(index, change)| PositionedChange {
        commit,
        index,
        change,
    })
}
