//! The one task that writes published messages and then delivers them, in the order of their numbers.
use super::{History, PendingMessages, index, record_codec};
use crate::{
    fault,
    hub::Hub,
    journal::{Error, Key, KeyValueLog, Log, Record, RecordLocation, ShutdownMarker},
};
use std::time::Duration;
use tokio::{
    task::JoinHandle,
    time::{Instant, MissedTickBehavior, interval, timeout},
};
use tokio_util::sync::CancellationToken;

/// A write that takes longer counts as failed: live messages do not wait for the disk.
const WRITE_WITHIN: Duration = Duration::from_secs(2);
/// How often positions are written and the files are synced.
const SYNC_INTERVAL: Duration = Duration::from_secs(1);
/// The pause before a failed disk is tried again.
const RETRY_PAUSE: Duration = Duration::from_secs(1);
/// A table of positions is rewritten when it exceeds twice its content by this much.
const TABLE_SLACK_BYTES: u64 = 4 << 20;

/// The open files. They move to the blocking thread and back.
pub(super) struct Disk {
    pub(super) log: Log,
    pub(super) table: KeyValueLog,
}

/// The result of a blocking write.
struct Done {
    disk: Disk,
    locations: Result<Vec<RecordLocation>, Error>,
    /// The first remaining segment, if some were deleted.
    kept_from: Option<u32>,
    cycle: u64,
    positions: Result<(), Error>,
    /// The keys of the positions that were to be written.
    keys: Vec<Key>,
}

#[derive(Default)]
struct Job {
    records: Vec<Record>,
    positions: Vec<(Key, Vec<u8>)>,
    /// All positions, if the table is to be rewritten.
    all_positions: Option<Vec<(Key, Vec<u8>)>>,
    cycle: u64,
    /// The present time if old segments are to be deleted.
    trim_at: Option<u64>,
    /// The records include a hole: once they are written, the journal again accounts for everything.
    has_hole: bool,
}

pub(super) struct Writer {
    history: History,
    hub: Hub,
    disk: Option<Disk>,
    /// The thread of a write that timed out; it still owns the files.
    lagging: Option<JoinHandle<Done>>,
    /// The number of the pending hole record: after the last message that was delivered without being written.
    hole: Option<u64>,
    retry_at: Instant,
    syncing: Option<JoinHandle<()>>,
    marker: ShutdownMarker,
}

impl Writer {
    pub(super) fn new(history: History, hub: Hub, disk: Disk) -> Self {
        let marker = disk.log.marker();
        let retry_at = Instant::now();
        Self { history, hub, disk: Some(disk), lagging: None, hole: None, retry_at, syncing: None, marker }
    }

    pub(super) async fn run(mut self, stop: CancellationToken) -> anyhow::Result<()> {
        let shared = self.history.0.clone();
        let mut tick = interval(SYNC_INTERVAL);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let (stopping, ticked) = tokio::select! {
                biased;
                () = stop.cancelled() => (true, true),
                () = shared.work.notified() => (false, false),
                _ = tick.tick() => (false, true),
            };
            self.cycle(ticked).await;
            // The last cycle runs after `stop`, so that everything published before is written.
            if stopping {
                break;
            }
        }
        if let Some(disk) = self.disk.take() {
            let closed = tokio::task::spawn_blocking(move || {
                disk.table.sync()?;
                disk.log.close()
            });
            if let Err(error) = closed.await? {
                tracing::error!(%error, "failed to sync the history at shutdown");
            }
        }
        Ok(())
    }

    /// One cycle: writes what waits, then delivers it.
    async fn cycle(&mut self, ticked: bool) {
        let shared = self.history.0.clone();
        let now = shared.clock.micros();
        if ticked {
            self.start_sync();
        }
        let (pending, head, mut job) = {
            let mut state = shared.state.lock();
            let pending = std::mem::take(&mut state.waiting);
            state.waiting_bytes = 0;
            state.cycle += 1;
            let mut job = Job { cycle: state.cycle, trim_at: ticked.then_some(now), ..Job::default() };
            job.positions = state.positions.take_changed();
            (pending, state.head, job)
        };
        if ticked {
            self.expire(now, &mut job);
        }
        for PendingMessages { room, messages, origin, .. } in &pending {
            let record = |(number, message): &(u64, crate::hub::Message)| Record {
                number: *number,
                payload: record_codec::message(room, origin.client, message),
            };
            job.records.extend(messages.iter().map(record));
        }
        // Order matters: write, index, deliver, acknowledge, publish `delivered`. A subscriber must not receive what a
        // replay cannot find, and `delivered` promises that the messages are in the outboxes.
        let was_idle = pending.is_empty();
        let outcome = self.write(job).await;
        self.index_outcome(&pending, outcome);
        for pending in pending {
            self.hub.deliver_kept(&pending.room, &pending.messages, pending.origin.except);
            for (outbox, frame) in pending.origin.acknowledgements {
                // A closed outbox means that the sender is disconnected: the acknowledgement has no receiver.
                let _closed = outbox.push(&frame);
            }
        }
        if !was_idle {
            fault::point(fault::Point::HistoryHeard);
        }
        shared.delivered.send_if_modified(|delivered| std::mem::replace(delivered, head) != head);
    }

    /// Starts a sync in the background, at most one at a time. Delivery does not wait for it.
    fn start_sync(&mut self) {
        if self.syncing.as_ref().is_some_and(|thread| !thread.is_finished()) {
            return;
        }
        let part = self.disk.as_mut().and_then(|disk| disk.log.unsynced());
        self.syncing = part.map(|part| {
            tokio::task::spawn_blocking(move || {
                if let Err(error) = part.sync() {
                    tracing::warn!(%error, "failed to sync the history");
                }
            })
        });
    }

    fn expire(&self, now: u64, job: &mut Job) {
        let table_bytes = self.disk.as_ref().map_or(0, |disk| disk.table.bytes());
        let shared = &self.history.0;
        let kept = shared.rules.longest().unwrap_or_default() + super::POSITIONS_KEPT;
        let before = now.saturating_sub(u64::try_from(kept.as_micros()).unwrap_or(u64::MAX));
        let mut state = shared.state.lock();
        state.positions.expire(before);
        shared.metrics.positions.set(i64::try_from(state.positions.len()).unwrap_or(i64::MAX));
        // A position takes about 64 bytes in the file; half of the file may be garbage.
        if table_bytes > state.positions.len() as u64 * 128 + TABLE_SLACK_BYTES {
            job.all_positions = Some(state.positions.all());
        }
    }

    /// Adds what was written, or the loss of what was not, to the index. Must run before delivery.
    fn index_outcome(&mut self, pending: &[PendingMessages], outcome: Option<Vec<RecordLocation>>) {
        let shared = self.history.0.clone();
        let count: usize = pending.iter().map(|pending| pending.messages.len()).sum();
        let mut state = shared.state.lock();
        let all = pending
            .iter()
            .flat_map(|pending| pending.messages.iter().map(move |(number, _)| (pending, *number)));
        match outcome {
            Some(locations) => {
                shared.metrics.messages.inc_by(count as u64);
                let disk = self.disk.as_ref();
                for ((pending, number), location) in all.zip(locations) {
                    state.index.add_reader(location.segment, || disk?.log.reader(location.segment));
                    state.index.add(&pending.room, index::IndexEntry { number, location });
                }
            }
            None => {
                shared.metrics.lost.inc_by(count as u64);
                for (pending, number) in all {
                    state.index.lose(&pending.room, number);
                    self.hole = Some(number + 1);
                }
            }
        }
        for pending in pending {
            let Some(history) = shared.rules.history(&pending.room.topic) else { continue };
            let old =
                shared.clock.micros().saturating_sub(u64::try_from(history.as_micros()).unwrap_or(u64::MAX));
            state.index.expire(&pending.room, old);
        }
        state.count_index(|| self.hub.index_charge());
    }

    /// Returns the locations of the records, or `None` if they are not written.
    async fn write(&mut self, mut job: Job) -> Option<Vec<RecordLocation>> {
        if self.disk.is_none() {
            self.reclaim().await;
        }
        if job.is_empty() && self.hole.is_none() {
            self.history.0.stored.send_replace(job.cycle);
            return Some(Vec::new());
        }
        let backing_off = self.hole.is_some() && Instant::now() < self.retry_at;
        let disk = if backing_off { None } else { self.disk.take() };
        let Some(disk) = disk else {
            self.restore_positions(job);
            return None;
        };
        // The hole record goes first: its number is larger than that of every lost message.
        let skip = usize::from(self.hole.is_some());
        if let Some(number) = self.hole {
            job.records.insert(0, Record { number, payload: record_codec::hole() });
            job.has_hole = true;
        }
        let mut thread = tokio::task::spawn_blocking(move || job.execute(disk));
        // The thread keeps the files; it cannot be canceled. Its records are treated as lost.
        let Ok(done) = timeout(WRITE_WITHIN, &mut thread).await else {
            self.lagging = Some(thread);
            // Removing the marker on another thread records the loss although the log itself is busy.
            let marker = self.marker.clone();
            drop(tokio::task::spawn_blocking(move || marker.remove()));
            self.degrade("write timed out");
            return None;
        };
        let done = match done {
            Ok(done) => done,
            Err(error) => {
                self.degrade(&error.to_string());
                return None;
            }
        };
        self.take_back(done).map(|mut locations| locations.split_off(skip.min(locations.len())))
    }

    /// Takes the files and the result back from the thread.
    fn take_back(&mut self, done: Done) -> Option<Vec<RecordLocation>> {
        let Done { disk, locations, kept_from, cycle, positions, keys } = done;
        let shared = self.history.0.clone();
        shared.metrics.bytes.set(i64::try_from(disk.log.bytes()).unwrap_or(i64::MAX));
        self.disk = Some(disk);
        if let Some(segment) = kept_from {
            shared.state.lock().index.trim(segment);
        }
        let mut failures = Vec::new();
        if let Err(error) = positions {
            // The stored positions are merely older: the client receives duplicates, never a gap.
            failures.push(error.to_string());
            shared.state.lock().positions.unwritten(keys.into_iter());
        } else {
            shared.stored.send_replace(cycle);
        }
        let locations = locations.map_err(|error| failures.push(error.to_string())).ok();
        if locations.is_some() {
            self.hole = None;
        }
        match failures.first() {
            Some(failure) => self.degrade(failure),
            None if *shared.degraded.borrow() => {
                tracing::info!("history is written again");
                self.set_degraded(false);
            }
            None => {}
        }
        locations
    }

    /// Takes the files back if the thread of a timed-out write has ended.
    async fn reclaim(&mut self) {
        let Some(thread) = self.lagging.take_if(|thread| thread.is_finished()) else { return };
        if let Ok(done) = thread.await {
            // Its records were delivered as lost and stay lost: the hole record after them marks that.
            let Done { disk, positions, keys, .. } = done;
            if positions.is_err() {
                self.history.0.state.lock().positions.unwritten(keys.into_iter());
            }
            self.disk = Some(disk);
        }
    }

    /// Returns positions to the changed set if the write was not attempted.
    fn restore_positions(&self, job: Job) {
        let mut state = self.history.0.state.lock();
        state.positions.unwritten(job.positions.into_iter().map(|(key, _)| key));
    }

    fn degrade(&mut self, why: &str) {
        self.retry_at = Instant::now() + RETRY_PAUSE;
        if !*self.history.0.degraded.borrow() {
            tracing::error!(
                why,
                "history write failed: broadcasts are delivered without being kept, resuming clients get a gap notice"
            );
        }
        self.set_degraded(true);
    }

    fn set_degraded(&self, degraded: bool) {
        self.history.0.metrics.degraded.set(degraded.into());
        self.history.0.degraded.send_replace(degraded);
    }
}

impl Job {
    fn is_empty(&self) -> bool {
        self.records.is_empty()
            && self.positions.is_empty()
            && self.all_positions.is_none()
            && self.trim_at.is_none()
    }

    /// Runs on a thread that may block.
    fn execute(self, mut disk: Disk) -> Done {
        let Self { records, positions, all_positions, cycle, trim_at, has_hole } = self;
        let locations = disk.log.append(&records);
        if locations.is_err() {
            // Recorded before the messages are delivered without being kept: a kill afterwards must not hide the loss.
            if let Err(error) = disk.log.mark_incomplete() {
                tracing::error!(%error, "failed to persist the history gap marker");
            }
        } else if has_hole && let Err(error) = disk.log.clear_incomplete() {
            tracing::error!(%error, "failed to clear the history gap marker");
        }
        fault::point(fault::Point::HistoryWritten);
        let written = match &all_positions {
            Some(all) => disk.table.rewrite(all.iter().map(|(key, value)| (*key, &value[..]))),
            None => disk.table.append(positions.iter().map(|(key, value)| (*key, &value[..]))),
        };
        let trimmed = trim_at.map_or(Ok(None), |now| disk.log.trim(now));
        let kept_from = trimmed.unwrap_or_else(|error| {
            tracing::warn!(%error, "failed to delete old history segments");
            None
        });
        let keys = positions.into_iter().map(|(key, _)| key).collect();
        Done { disk, locations, kept_from, cycle, positions: written, keys }
    }
}
