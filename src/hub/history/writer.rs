//! The one task that writes what was said, and then lets it be heard, in the order of its numbers.
use super::{History, Said, body, index};
use crate::{
    fault,
    hub::Hub,
    journal::{Error, Key, Log, Mark, Place, Record, Table},
};
use std::time::Duration;
use tokio::{
    task::JoinHandle,
    time::{Instant, MissedTickBehavior, interval, timeout},
};
use tokio_util::sync::CancellationToken;

/// A disk that takes longer is one that takes nothing: live messages do not wait for it.
const WRITE_WITHIN: Duration = Duration::from_secs(2);
/// How often positions are written and everything is made safe from a crash of the machine.
const EVERY: Duration = Duration::from_secs(1);
/// The pause before a disk that took nothing is tried again.
const RETRY_PAUSE: Duration = Duration::from_secs(1);
/// A table of positions is written anew when it is so much larger than what it holds.
const TABLE_SLACK_BYTES: u64 = 4 << 20;

/// The files. They travel to the thread that blocks on them, and back.
pub(super) struct Disk {
    pub(super) log: Log,
    pub(super) table: Table,
}

/// What a thread did.
struct Done {
    disk: Disk,
    places: Result<Vec<Place>, Error>,
    /// The first segment that is still there, when some went.
    kept_from: Option<u32>,
    turn: u64,
    positions: Result<(), Error>,
    /// Those that were to be written.
    keys: Vec<Key>,
}

#[derive(Default)]
struct Job {
    records: Vec<Record>,
    positions: Vec<(Key, Vec<u8>)>,
    /// All of them, when the table is to be written anew.
    all_positions: Option<Vec<(Key, Vec<u8>)>>,
    turn: u64,
    /// Old segments go, and this is now.
    trim_at: Option<u64>,
    /// A hole was among the records: with them, everything is told.
    mended: bool,
}

pub(super) struct Writer {
    history: History,
    hub: Hub,
    disk: Option<Disk>,
    /// A thread that was given up on and still has the files.
    lagging: Option<JoinHandle<Done>>,
    /// Behind the last message that was heard and not written, while the disk takes nothing.
    hole: Option<u64>,
    retry_at: Instant,
    syncing: Option<JoinHandle<()>>,
    mark: Mark,
}

impl Writer {
    pub(super) fn new(history: History, hub: Hub, disk: Disk) -> Self {
        let mark = disk.log.mark();
        let retry_at = Instant::now();
        Self { history, hub, disk: Some(disk), lagging: None, hole: None, retry_at, syncing: None, mark }
    }

    pub(super) async fn run(mut self, stop: CancellationToken) -> anyhow::Result<()> {
        let shared = self.history.0.clone();
        let mut tick = interval(EVERY);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let (stopping, ticked) = tokio::select! {
                biased;
                () = stop.cancelled() => (true, true),
                () = shared.work.notified() => (false, false),
                _ = tick.tick() => (false, true),
            };
            self.turn(ticked).await;
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
                tracing::error!(%error, "the history is not safe on the disk");
            }
        }
        Ok(())
    }

    /// Writes what waits and lets it be heard.
    async fn turn(&mut self, ticked: bool) {
        let shared = self.history.0.clone();
        let now = shared.clock.micros();
        if ticked {
            self.make_safe();
        }
        let (said, head, mut job) = {
            let mut state = shared.state.lock();
            let said = std::mem::take(&mut state.waiting);
            state.waiting_bytes = 0;
            state.turn += 1;
            let mut job = Job { turn: state.turn, trim_at: ticked.then_some(now), ..Job::default() };
            job.positions = state.positions.take_changed();
            (said, state.head, job)
        };
        if ticked {
            self.expire(now, &mut job);
        }
        for Said { room, messages, by } in &said {
            let record = |(number, message): &(u64, crate::hub::Message)| Record {
                number: *number,
                payload: body::message(room, by.client, message),
            };
            job.records.extend(messages.iter().map(record));
        }
        let said_nothing = said.is_empty();
        let outcome = self.write(job).await;
        self.note(&said, outcome);
        for said in said {
            self.hub.deliver_kept(&said.room, &said.messages, said.by.except);
            for (outbox, frame) in said.by.then {
                // A closed outbox means that nobody is left to be told.
                let _closed = outbox.push(&frame);
            }
        }
        if !said_nothing {
            fault::point("history.heard");
        }
        shared.heard.send_if_modified(|heard| std::mem::replace(heard, head) != head);
    }

    /// In the background: nobody waits for the disk's own pace.
    fn make_safe(&mut self) {
        if self.syncing.as_ref().is_some_and(|thread| !thread.is_finished()) {
            return;
        }
        let part = self.disk.as_mut().and_then(|disk| disk.log.unsafe_part());
        self.syncing = part.map(|part| {
            tokio::task::spawn_blocking(move || {
                if let Err(error) = part.sync() {
                    tracing::warn!(%error, "the history is not safe from a crash of the machine");
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
        // About 64 bytes each.
        if table_bytes > state.positions.len() as u64 * 128 + TABLE_SLACK_BYTES {
            job.all_positions = Some(state.positions.all());
        }
    }

    /// Puts what was written, or was not, into the index, before anybody hears it.
    fn note(&mut self, said: &[Said], outcome: Option<Vec<Place>>) {
        let shared = self.history.0.clone();
        let count: usize = said.iter().map(|said| said.messages.len()).sum();
        let mut state = shared.state.lock();
        let all = said.iter().flat_map(|said| said.messages.iter().map(move |(number, _)| (said, *number)));
        match outcome {
            Some(places) => {
                shared.metrics.messages.inc_by(count as u64);
                let disk = self.disk.as_ref();
                for ((said, number), place) in all.zip(places) {
                    state.index.add_reader(place.segment, || disk?.log.reader(place.segment));
                    state.index.add(&said.room, index::Entry { number, place });
                }
            }
            None => {
                shared.metrics.lost.inc_by(count as u64);
                for (said, number) in all {
                    state.index.lose(&said.room, number);
                    self.hole = Some(number + 1);
                }
            }
        }
        for said in said {
            let Some(history) = shared.rules.history(&said.room.topic) else { continue };
            let old =
                shared.clock.micros().saturating_sub(u64::try_from(history.as_micros()).unwrap_or(u64::MAX));
            state.index.expire(&said.room, old);
        }
    }

    /// Where the records are, or nothing when the disk did not take them.
    async fn write(&mut self, mut job: Job) -> Option<Vec<Place>> {
        if self.disk.is_none() {
            self.reclaim().await;
        }
        if job.is_empty() && self.hole.is_none() {
            self.history.0.stored.send_replace(job.turn);
            return Some(Vec::new());
        }
        let resting = self.hole.is_some() && Instant::now() < self.retry_at;
        let disk = if resting { None } else { self.disk.take() };
        let Some(disk) = disk else {
            self.untouched(job);
            return None;
        };
        let skip = usize::from(self.hole.is_some());
        if let Some(number) = self.hole {
            job.records.insert(0, Record { number, payload: body::hole() });
            job.mended = true;
        }
        let mut thread = tokio::task::spawn_blocking(move || job.carry_out(disk));
        let Ok(done) = timeout(WRITE_WITHIN, &mut thread).await else {
            self.lagging = Some(thread);
            let mark = self.mark.clone();
            drop(tokio::task::spawn_blocking(move || mark.remove()));
            self.degrade("the disk takes too long");
            return None;
        };
        let done = match done {
            Ok(done) => done,
            Err(error) => {
                self.degrade(&error.to_string());
                return None;
            }
        };
        self.take_back(done).map(|mut places| places.split_off(skip.min(places.len())))
    }

    /// What a thread brings back.
    fn take_back(&mut self, done: Done) -> Option<Vec<Place>> {
        let Done { disk, places, kept_from, turn, positions, keys } = done;
        let shared = self.history.0.clone();
        shared.metrics.bytes.set(i64::try_from(disk.log.bytes()).unwrap_or(i64::MAX));
        self.disk = Some(disk);
        if let Some(segment) = kept_from {
            shared.state.lock().index.trim(segment);
        }
        let mut troubles = Vec::new();
        if let Err(error) = positions {
            // They are only older than they could be: what is replayed is more, not less.
            troubles.push(error.to_string());
            shared.state.lock().positions.unwritten(keys.into_iter());
        } else {
            shared.stored.send_replace(turn);
        }
        let places = places.map_err(|error| troubles.push(error.to_string())).ok();
        if places.is_some() {
            self.hole = None;
        }
        match troubles.first() {
            Some(trouble) => self.degrade(trouble),
            None if *shared.degraded.borrow() => {
                tracing::info!("the disk takes the history again");
                self.set_degraded(false);
            }
            None => {}
        }
        places
    }

    /// The files, when a thread that was given up on has come back with them.
    async fn reclaim(&mut self) {
        let Some(thread) = self.lagging.take_if(|thread| thread.is_finished()) else { return };
        if let Ok(done) = thread.await {
            // What it wrote was heard as lost: it stays lost, and a hole behind it says so.
            let Done { disk, positions, keys, .. } = done;
            if positions.is_err() {
                self.history.0.state.lock().positions.unwritten(keys.into_iter());
            }
            self.disk = Some(disk);
        }
    }

    /// Positions that could not even be tried are changed still.
    fn untouched(&self, job: Job) {
        let mut state = self.history.0.state.lock();
        state.positions.unwritten(job.positions.into_iter().map(|(key, _)| key));
    }

    fn degrade(&mut self, why: &str) {
        self.retry_at = Instant::now() + RETRY_PAUSE;
        if !*self.history.0.degraded.borrow() {
            tracing::error!(
                why,
                "the history is not written: messages go on, and clients that come back are told"
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

    /// In a thread that may block.
    fn carry_out(self, mut disk: Disk) -> Done {
        let Self { records, positions, all_positions, turn, trim_at, mended } = self;
        let places = disk.log.append(&records);
        if places.is_err() {
            // Before anybody hears what is not kept, so that a kill does not make it forgotten.
            if let Err(error) = disk.log.lost() {
                tracing::error!(%error, "that the history has a hole cannot be noted");
            }
        } else if mended && let Err(error) = disk.log.found() {
            tracing::error!(%error, "the history stays marked as not whole");
        }
        fault::point("history.written");
        let written = match &all_positions {
            Some(all) => disk.table.rewrite(all.iter().map(|(key, value)| (*key, &value[..]))),
            None => disk.table.append(positions.iter().map(|(key, value)| (*key, &value[..]))),
        };
        let trimmed = trim_at.map_or(Ok(None), |now| disk.log.trim(now));
        let kept_from = trimmed.unwrap_or_else(|error| {
            tracing::warn!(%error, "old history is not removed");
            None
        });
        let keys = positions.into_iter().map(|(key, _)| key).collect();
        Done { disk, places, kept_from, turn, positions: written, keys }
    }
}
