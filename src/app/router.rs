//! What the log says, to those who care: first the wakes, durably; then the confirmation.
//!
//! Takes all batches that are there, records what they start in one transaction, and
//! only then confirms. Every wake is keyed by log position and change, so a change
//! that comes again starts nothing. A record that fails is tried until the database
//! is back: Postgres keeps the log meanwhile.
use super::{
    host::Host,
    messages::{Messages, NOT_SENT_PREFIX, Said},
};
use crate::{
    agent::{Commit, Placed, WakeIndex},
    api::{Health, PartState},
    changes::Appender,
    db::Database,
    fault,
    id::Lsn,
    scope::{OnExit, Scope},
    task::Tasks,
    wal::{self, Batch, Change, Event, Gap},
};
use std::{sync::Arc, time::Duration};
use tokio_util::sync::CancellationToken;

/// Wakes that one transaction records.
const WAKES_MAX: usize = 500;
/// Changes that are looked at together.
const CHANGES_MAX: usize = 2_000;
/// Messages that are said at once.
const SAID_MAX: usize = 500;
/// Pause after a record that failed.
const RETRY_PAUSE: Duration = Duration::from_millis(200);

/// What logical messages of `convoke.request_task` are marked with.
const MESSAGE_PREFIX: &str = "convoke";

pub(super) struct Deps {
    pub(super) database: Database,
    pub(super) tasks: Tasks,
    pub(super) wakes: Arc<WakeIndex>,
    pub(super) health: Health,
    pub(super) messages: Messages,
    pub(super) appender: Appender,
}

pub(super) fn start(scope: &Scope, stream: wal::Stream, deps: Deps, host: Host) {
    scope.spawn("router", OnExit::StopDaemon, |stop| async move {
        Router { deps, host, confirm: stream.confirm, stop }.run(stream.events).await;
        Ok(())
    });
}

struct Router {
    deps: Deps,
    host: Host,
    confirm: wal::Confirm,
    stop: CancellationToken,
}

/// What some batches come to.
#[derive(Default)]
struct Work {
    batches: Vec<Batch>,
    changes: usize,
    said: Vec<Said>,
    /// Up to where whole transactions have been seen.
    end: Option<Lsn>,
    asked: bool,
}

impl Router {
    async fn run(mut self, mut events: tokio::sync::mpsc::Receiver<Event>) {
        let mut next = None;
        loop {
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
            match event {
                Event::Batch(batch) => {
                    let mut work = Work::default();
                    self.collect(batch, &mut work);
                    while work.changes < CHANGES_MAX && work.said.len() < SAID_MAX {
                        match events.try_recv() {
                            Ok(Event::Batch(batch)) => self.collect(batch, &mut work),
                            Ok(other) => {
                                next = Some(other);
                                break;
                            }
                            Err(_) => break,
                        }
                    }
                    self.carry_out(work).await;
                }
                Event::Leading { from } => {
                    self.deps.messages.streams(true);
                    tracing::info!(from = %from, "leading: hosting the agents and reading the log");
                    self.lead().await;
                }
                Event::Standby => {
                    self.deps.health.set("wal", PartState::Degraded, "another daemon leads: standing by");
                    self.deps.messages.streams(false);
                    self.host.stand_by().await;
                }
                Event::Down { .. } => {
                    // The reason may hold the database's words, and health is public.
                    let detail = "the database's log cannot be read: this daemon's own log says why";
                    self.deps.health.set("wal", PartState::Down, detail);
                    self.deps.messages.streams(false);
                    self.host.stand_by().await;
                }
                Event::Gap(gap) => self.gap(gap).await,
            }
        }
    }

    /// Leads as soon as the database lets it.
    async fn lead(&mut self) {
        while let Err(error) = self.host.lead().await {
            tracing::error!(%error, "cannot host the agents yet");
            if self.paused().await {
                return;
            }
        }
        self.deps.health.set("wal", PartState::Ready, "streaming");
    }

    fn collect(&mut self, batch: Batch, work: &mut Work) {
        for (index, change) in (batch.first_index..).zip(&batch.changes) {
            match change {
                Change::Row(row) => {
                    work.said.extend(self.deps.messages.said(batch.commit_lsn, index, row));
                }
                Change::Message { prefix, content } => {
                    if prefix == NOT_SENT_PREFIX {
                        self.deps.messages.not_sent(content);
                    }
                    work.asked |= prefix == MESSAGE_PREFIX;
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

    async fn carry_out(&mut self, work: Work) {
        if work.asked {
            self.deps.tasks.poke_by_log();
        }
        while let Err(error) = self.deps.messages.record(&work.said).await {
            tracing::error!(%error, messages = work.said.len(), "messages wait for their order to be kept");
            if self.paused().await {
                return;
            }
        }
        self.deps.messages.publish(work.said);
        let changes: Vec<Placed<'_>> = work.batches.iter().flat_map(placed).collect();
        let wakes = loop {
            match self.deps.wakes.wakes(&self.deps.database, &changes).await {
                Ok(wakes) => break wakes,
                Err(error) => {
                    tracing::error!(%error, changes = changes.len(), "changes wait for the database to say what they wake");
                    if self.paused().await {
                        return;
                    }
                }
            }
        };
        for wakes in wakes.chunks(WAKES_MAX) {
            fault::point("wake.received");
            while let Err(error) = self.deps.tasks.wake(wakes).await {
                tracing::error!(%error, wakes = wakes.len(), "wakes are not recorded yet");
                if self.paused().await {
                    return;
                }
            }
            fault::point("wake.recorded");
        }
        // Before the position is confirmed: what a client can come back for outlives the daemon.
        let woke = !wakes.is_empty();
        fault::point("changes.received");
        self.deps.appender.append(&work.batches).await;
        if let Some(end) = work.end {
            self.confirm.confirm(end);
            if woke {
                fault::point("wake.confirmed");
            }
        }
    }

    /// Changes were lost: says it loudly, keeps it in the event log, and looks at everything.
    async fn gap(&mut self, gap: Gap) {
        let from = gap.from.map(|lsn| lsn.to_string());
        tracing::error!(from, to = %gap.to, reason = gap.reason, "changes were lost: agents were not woken by them");
        while let Err(error) = self.deps.tasks.gap(from.as_deref(), &gap.to.to_string(), &gap.reason).await {
            tracing::error!(%error, "the gap is not recorded yet");
            if self.paused().await {
                return;
            }
        }
        self.deps.appender.gap().await;
        // Until it is confirmed, the gap is told again at every start.
        self.confirm.confirm(gap.to);
        self.deps.tasks.poke();
    }

    /// Waits before another try; true when the daemon stops.
    async fn paused(&self) -> bool {
        tokio::time::timeout(RETRY_PAUSE, self.stop.cancelled()).await.is_ok()
    }
}

fn placed(batch: &Batch) -> impl Iterator<Item = Placed<'_>> {
    let commit = Commit { lsn: batch.commit_lsn, committed_at: batch.committed_at };
    (batch.first_index..).zip(&batch.changes).map(move |(index, change)| Placed { commit, index, change })
}
