//! The change log: a journal of the row changes of published tables, kept for as long as a subscriber may ask for them.
//!
//! Numbered parts of transactions in commit order: the last ones in memory, all of them in a [`journal`]
//! (`crate::journal`) with a limit of age and bytes. Each reader has a position of its own, so that a slow check or a
//! huge transaction delays no other reader. Numbers are microseconds and increase strictly. Changes that a full disk
//! did not store are delivered to live subscribers, and are a gap for later readers.
mod record;

pub(super) use record::Part;

use crate::{
    clock::Clock,
    fault,
    id::Lsn,
    journal::{self, LogLimits, Opened, Record, RecordLocation, SegmentReader},
    wal::{Batch, Relation},
};
use bytes::Bytes;
use parking_lot::Mutex;
use record::Reading;
use std::{
    collections::{BTreeSet, HashMap, VecDeque},
    fs,
    io::{ErrorKind, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};
use tokio::{
    sync::watch,
    task::JoinHandle,
    time::{Instant, timeout, timeout_at},
};

/// Most bytes of records in memory.
const MEMORY_BYTES_MAX: usize = 32 << 20;
/// Most bytes of a record on disk. A larger one is a gap there.
const RECORD_BYTES_MAX: usize = 32 << 20;
/// Most entries and bytes of one read.
const READ_ENTRIES_MAX: usize = 256;
const READ_BYTES_MAX: usize = 1 << 20;
/// Most time that an append delays the WAL consumer: once for the disk, and once for slow readers while the disk is
/// full. After that the change log continues without the disk, and later readers get a gap.
const APPEND_WITHIN: Duration = Duration::from_secs(2);
/// Most rows of one read, unless a single record has more.
const READ_ROWS_MAX: usize = 256;

/// A part of a transaction, or a gap.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) number: u64,
    /// `None` for a gap: earlier changes were lost with the replication slot.
    pub(super) part: Option<Part>,
    /// The id of the transaction; `None` if the entry was read from disk.
    pub(super) transaction: Option<u32>,
    bytes: usize,
}

/// The outcome of a read.
pub(super) enum ReadOutcome {
    /// In order; empty at the end of the change log.
    Entries(Vec<Arc<Entry>>),
    /// Everything up to this number may be missing.
    Missing(u64),
}

/// The reading end of the change log. Clones share it.
#[derive(Clone, Debug)]
pub(super) struct Log(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    clock: Clock,
    state: Mutex<State>,
    head: watch::Sender<u64>,
    /// The number up to which everything was delivered to live subscribers.
    delivered: watch::Sender<u64>,
    degraded: watch::Sender<bool>,
}

#[derive(Debug)]
struct State {
    head: u64,
    /// Number of subscribers, plus one if clients can resume. While it is 0, nothing is recorded.
    wanted: usize,
    memory: VecDeque<Arc<Entry>>,
    memory_bytes: usize,
    /// The number of the last part that was evicted from memory.
    evicted: u64,
    index: VecDeque<(u64, RecordLocation)>,
    readers: HashMap<u32, SegmentReader>,
    /// The number of the last part that was removed from disk.
    floor: u64,
    /// First and last number of each gap on disk, in order.
    holes: VecDeque<(u64, u64)>,
    reading: Reading,
}

/// The writing end of the change log.
#[derive(Debug)]
pub(super) struct Appender {
    log: Log,
    disk: Arc<Mutex<journal::Log>>,
    /// The last change in the change log. Postgres may send changes again after a reconnect; these are skipped.
    seen: Option<(Lsn, u32)>,
    /// The disk lacks the last records.
    hole: bool,
    /// A write that exceeded its timeout and still holds the lock of `disk`.
    hanging: Option<JoinHandle<Result<Written, String>>>,
    /// Whether clients can resume after a restart of the daemon.
    asked_later: bool,
}

/// The locations of records on disk, and the readers of their segments.
#[derive(Debug)]
struct Written {
    places: Vec<RecordLocation>,
    readers: Vec<(u32, SegmentReader)>,
}

/// The file that identifies the database of a change log.
const SOURCE_FILE: &str = "source";

/// Removes the change log of another database, whose positions are invalid for this one.
fn of_source(dir: &Path, source: &str) -> Result<(), journal::Error> {
    let file = dir.join(SOURCE_FILE);
    if fs::read_to_string(&file).is_ok_and(|known| known == source) {
        return Ok(());
    }
    match fs::remove_dir_all(dir) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            return Err(journal::Error::Io { path: dir.to_owned(), doing: "emptied", source: error });
        }
        _ => {}
    }
    let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(dir);
    let mut options = fs::OpenOptions::new();
    options.write(true).create(true).truncate(true).mode(0o600);
    let written = made.and_then(|()| options.open(&file)?.write_all(source.as_bytes()));
    written.map_err(|error| journal::Error::Io { path: file, doing: "written", source: error })
}

/// Opens the change log of the database `source` in `dir`, limited to `bytes_max` bytes and `age`. Without `age`, the
/// records of an earlier process are not readable. Blocks.
pub(super) fn open(
    dir: &Path,
    source: &str,
    bytes_max: u64,
    age: Option<Duration>,
    clock: Clock,
) -> Result<(Log, Appender), journal::Error> {
    const UNASKED: Duration = Duration::from_secs(60);
    of_source(dir, source)?;
    let span = age.unwrap_or(UNASKED);
    let limits = LogLimits { bytes_max, span_max: u64::try_from(span.as_micros()).unwrap_or(u64::MAX) };
    let (mut index, mut holes, mut latest) = (VecDeque::new(), VecDeque::new(), Bytes::new());
    let mut before = 0;
    let opened = journal::Log::open(dir, limits, |number, place, payload| {
        if payload.is_empty() {
            holes.push_back((before + 1, number));
        } else {
            index.push_back((number, place));
            latest = Bytes::copy_from_slice(payload);
        }
        before = number;
    })?;
    let Opened { log: mut disk, floor, last, whole } = opened;
    let now = clock.micros();
    let head = last.max(now) + 1;
    let mut floor = floor;
    if !whole || last == 0 || age.is_none() {
        // A new change log also starts with a gap: it lacks everything before it.
        disk.append(&[Record { number: head, payload: Bytes::new() }])?;
        floor = head;
    }
    if age.is_none() {
        disk.mark_incomplete()?;
    }
    let mut reading = Reading::default();
    let part = reading.part(latest);
    let seen = part.and_then(|part| Some((part.commit_lsn, part.rows.last()?.0)));
    let segments: Vec<u32> = disk.segments().collect();
    let readers = segments.into_iter().filter_map(|segment| Some((segment, disk.reader(segment)?))).collect();
    let state = State {
        head,
        wanted: usize::from(age.is_some()),
        memory: VecDeque::new(),
        memory_bytes: 0,
        evicted: head,
        index,
        readers,
        floor,
        holes,
        reading,
    };
    let shared = Shared {
        clock,
        state: Mutex::new(state),
        head: watch::Sender::new(head),
        delivered: watch::Sender::new(head),
        degraded: watch::Sender::new(false),
    };
    let log = Log(Arc::new(shared));
    let disk = Arc::new(Mutex::new(disk));
    Ok((log.clone(), Appender { log, disk, seen, hole: false, hanging: None, asked_later: age.is_some() }))
}

impl Log {
    /// Adds a subscriber and returns the number of the last part. Every later commit has a higher number.
    pub(super) fn begin(&self) -> u64 {
        let mut state = self.0.state.lock();
        state.wanted += 1;
        state.head
    }

    /// The number of the last part.
    pub(super) fn head(&self) -> u64 {
        *self.0.head.borrow()
    }

    /// The last number of the gaps after `after`; `None` if there is no gap.
    pub(super) fn missing(&self, after: u64) -> Option<u64> {
        let state = self.0.state.lock();
        let hole = state.holes.back().map_or(0, |(_, last)| *last);
        Some(hole.max(state.floor)).filter(|last| *last > after)
    }

    /// Removes a subscriber that [`Self::begin`] added.
    pub(super) fn end(&self) {
        let mut state = self.0.state.lock();
        state.wanted = state.wanted.saturating_sub(1);
    }

    /// The number up to which everything was delivered to live subscribers.
    pub(super) fn delivered(&self) -> u64 {
        *self.0.delivered.borrow()
    }

    pub(super) fn set_delivered(&self, number: u64) {
        self.0.delivered.send_replace(number);
    }

    /// Whether the disk stores no records. The receiver is notified of changes.
    pub(super) fn degraded(&self) -> watch::Receiver<bool> {
        self.0.degraded.subscribe()
    }

    /// Resolves when there is a part after `number`. Cancel safe.
    pub(super) async fn grown(&self, number: u64) {
        // The sender lives as long as the change log.
        let mut head = self.0.head.subscribe();
        let _never_closed = head.wait_for(|head| *head > number).await;
    }

    /// Reads the next entries after `after`, up to `upto`.
    pub(super) async fn read(&self, after: u64, upto: u64) -> ReadOutcome {
        let (places, readers) = {
            let state = self.0.state.lock();
            if after >= state.evicted {
                return ReadOutcome::Entries(state.recent(after, upto));
            }
            if state.floor > after {
                return ReadOutcome::Missing(state.floor);
            }
            let from = state.index.partition_point(|(number, _)| *number <= after);
            let hole = state.holes.iter().find(|(_, last)| *last > after).copied();
            let next = state.index.get(from).map(|(number, _)| *number);
            if let Some((_, last)) = hole.filter(|(first, _)| next.is_none_or(|next| next > *first)) {
                return ReadOutcome::Missing(last);
            }
            let upto = hole.map_or(upto, |(first, _)| upto.min(first));
            let mut bytes = 0;
            let places: Vec<_> = state
                .index
                .iter()
                .skip(from)
                .take_while(|(number, place)| {
                    let fits = bytes < READ_BYTES_MAX && *number <= upto;
                    bytes += place.size as usize;
                    fits
                })
                .take(READ_ENTRIES_MAX)
                .copied()
                .collect();
            let segments = places.iter().map(|(_, place)| place.segment);
            let readers: HashMap<u32, SegmentReader> = segments
                .filter_map(|segment| Some((segment, state.readers.get(&segment)?.clone())))
                .collect();
            (places, readers)
        };
        let Some((last, _)) = places.last().copied() else { return ReadOutcome::Entries(Vec::new()) };
        let read = tokio::task::spawn_blocking(move || {
            let read = |(_, place): &(u64, RecordLocation)| {
                readers.get(&place.segment).map(|reader| reader.read(place.offset, place.size)).transpose()
            };
            places.iter().map(read).collect::<Result<Option<Vec<_>>, _>>()
        });
        let records = match read.await {
            Ok(Ok(Some(records))) => records,
            Ok(Err(error)) => {
                tracing::error!(%error, "failed to read change log");
                return ReadOutcome::Missing(last);
            }
            _ => return ReadOutcome::Missing(last),
        };
        let mut state = self.0.state.lock();
        let entries = records.into_iter().map(|(number, payload)| {
            let bytes = payload.len();
            let part = state.reading.part(payload)?;
            Some(Arc::new(Entry { number, part: Some(part), transaction: None, bytes }))
        });
        entries.collect::<Option<Vec<_>>>().map_or(ReadOutcome::Missing(last), ReadOutcome::Entries)
    }
}

impl State {
    fn recent(&self, after: u64, upto: u64) -> Vec<Arc<Entry>> {
        let from = self.memory.partition_point(|entry| entry.number <= after);
        let (mut bytes, mut rows) = (0, 0);
        let few = |entry: &&Arc<Entry>| {
            let fits = bytes < READ_BYTES_MAX && rows < READ_ROWS_MAX && entry.number <= upto;
            bytes += entry.bytes;
            rows += entry.part.as_ref().map_or(0, |part| part.rows.len());
            fits
        };
        self.memory.iter().skip(from).take_while(few).take(READ_ENTRIES_MAX).cloned().collect()
    }
}

impl Appender {
    /// Appends the `wanted` rows of these batches, in order. When it returns, they survive the daemon.
    pub(super) async fn append(&mut self, batches: &[Batch], wanted: impl Fn(&Relation) -> bool) {
        let asked = self.log.0.state.lock().wanted > 0;
        let mut payloads = Vec::new();
        for batch in batches {
            let Some(last) = batch.changes.len().checked_sub(1) else { continue };
            let last = batch.first_index.saturating_add(u32::try_from(last).unwrap_or(u32::MAX));
            let after = match self.seen {
                Some((lsn, index)) if lsn == batch.commit_lsn => Some(index),
                Some((lsn, _)) if lsn > batch.commit_lsn => continue,
                _ => None,
            };
            if after.is_some_and(|after| after >= last) {
                continue;
            }
            let payload = record::encode(batch, after, &wanted).filter(|_| asked);
            payloads.extend(payload.map(|payload| (payload, Some(batch.xid))));
            self.seen = Some((batch.commit_lsn, last));
        }
        if !payloads.is_empty() {
            self.put(payloads).await;
        }
    }

    /// The commit position of the last change in the change log; zero if it is empty.
    pub(super) fn reached(&self) -> Lsn {
        self.seen.map_or(Lsn(0), |(lsn, _)| lsn)
    }

    /// Appends a gap for every reader: changes were lost.
    pub(super) async fn gap(&mut self) {
        self.seen = None;
        self.put(vec![(Bytes::new(), None)]).await;
    }

    /// Appends payloads with their transactions. An empty payload is a gap.
    async fn put(&mut self, payloads: Vec<(Bytes, Option<u32>)>) {
        let (payloads, transactions): (Vec<_>, Vec<_>) = payloads.into_iter().unzip();
        let records = self.numbered(payloads);
        let kept = self.write(records.clone()).await;
        fault::point(fault::Point::ChangesLogged);
        let has_room = self.make_room().await;
        let shared = &self.log.0;
        let mut state = shared.state.lock();
        if let Some(Written { places, readers }) = &kept {
            for (record, place) in records.iter().zip(places) {
                if !record.payload.is_empty() {
                    state.index.push_back((record.number, *place));
                }
            }
            state.readers.extend(readers.iter().cloned());
        }
        if let (None, Some(first), Some(last)) = (&kept, records.first(), records.last()) {
            // Live subscribers read it from memory. Later readers get a gap.
            state.holes.push_back((first.number, last.number));
        }
        for (Record { number, payload }, transaction) in records.into_iter().zip(transactions) {
            let bytes = payload.len();
            let is_gap = payload.is_empty();
            if is_gap {
                state.holes.push_back((number, number));
            }
            let part = if is_gap { None } else { state.reading.part(payload) };
            state.memory_bytes += bytes;
            state.memory.push_back(Arc::new(Entry { number, part, transaction, bytes }));
        }
        let delivered = *shared.delivered.borrow();
        while state.memory_bytes > MEMORY_BYTES_MAX {
            let Some(first) = state.memory.front() else { break };
            let (number, bytes) = (first.number, first.bytes);
            let on_disk = state.index.binary_search_by_key(&number, |(it, _)| *it).is_ok();
            // A part that is not on disk stays in memory for the readers. If they were too slow, they get a gap.
            if number > delivered && !on_disk && has_room {
                break;
            }
            (state.memory_bytes, state.evicted) = (state.memory_bytes - bytes, number);
            state.memory.pop_front();
        }
        let head = state.head;
        drop(state);
        shared.head.send_replace(head);
    }

    fn numbered(&mut self, payloads: Vec<Bytes>) -> Vec<Record> {
        let now = self.log.0.clock.micros();
        let mut state = self.log.0.state.lock();
        let number = |payload| {
            state.head = (state.head + 1).max(now);
            Record { number: state.head, payload }
        };
        payloads.into_iter().map(number).collect()
    }

    /// While the disk stores nothing, waits for the readers before the memory limit is exceeded. Returns false if they
    /// were too slow.
    async fn make_room(&self) -> bool {
        let shared = &self.log.0;
        let until = Instant::now() + APPEND_WITHIN;
        loop {
            let (full, first) = {
                let state = shared.state.lock();
                let first = state.memory.front().map_or(0, |first| first.number);
                (self.hole && state.memory_bytes > MEMORY_BYTES_MAX, first)
            };
            if !full || *shared.delivered.borrow() >= first {
                return true;
            }
            // The sender lives as long as the change log.
            let mut delivered = shared.delivered.subscribe();
            let caught_up = timeout_at(until, delivered.wait_for(|done| *done >= first)).await;
            if caught_up.is_err() {
                return false;
            }
        }
    }

    /// Writes the records. Returns their locations; `None` if the disk did not store them within [`APPEND_WITHIN`].
    async fn write(&mut self, mut records: Vec<Record>) -> Option<Written> {
        // A write that hangs holds the lock. Further writes would block behind it, each on a thread.
        if self.hanging.as_ref().is_some_and(|thread| !thread.is_finished()) {
            self.hole = true;
            return None;
        }
        self.hanging = None;
        let before = records.first().map_or(0, |record| record.number.saturating_sub(1));
        // After a gap, the first record that is stored again marks its end.
        let closes_hole = self.hole;
        if closes_hole {
            records.insert(0, Record { number: before, payload: Bytes::new() });
        }
        let (disk, given_up) = (self.disk.clone(), Arc::new(AtomicBool::new(false)));
        let (asked_later, is_given_up) = (self.asked_later, given_up.clone());
        let mut thread = tokio::task::spawn_blocking(move || {
            let mut disk = disk.lock();
            let written = write_records(&mut disk, &records, closes_hole && asked_later);
            // The records of a write that exceeded its timeout count as lost, also after a kill.
            if is_given_up.load(Ordering::Acquire) {
                note_loss(&disk);
            }
            written
        });
        let outcome = match timeout(APPEND_WITHIN, &mut thread).await {
            Ok(written) => written.unwrap_or_else(|error| Err(error.to_string())),
            Err(_) => {
                given_up.store(true, Ordering::Release);
                self.hanging = Some(thread);
                Err(format!("the disk has not answered within {APPEND_WITHIN:?}"))
            }
        };
        let was_degraded = *self.log.0.degraded.borrow();
        match outcome {
            Ok(mut written) => {
                self.hole = false;
                if was_degraded {
                    tracing::info!("change log written again");
                    self.log.0.degraded.send_replace(false);
                }
                written.places.drain(..usize::from(closes_hole).min(written.places.len()));
                Some(written)
            }
            Err(why) => {
                if !was_degraded {
                    tracing::error!(
                        why,
                        "change log not written: delivery goes on, clients that resume get a gap"
                    );
                    self.log.0.degraded.send_replace(true);
                }
                self.hole = true;
                None
            }
        }
    }

    /// Returns the maintenance of the files, see [`Keeper::tidy`].
    pub(super) fn keeper(&self) -> Keeper {
        Keeper { log: self.log.clone(), disk: self.disk.clone() }
    }
}

/// Appends in one write. Blocks. `closes_hole`: these records contain the end of the gap, so its marker is removed.
fn write_records(disk: &mut journal::Log, records: &[Record], closes_hole: bool) -> Result<Written, String> {
    let largest = records.iter().map(|record| record.payload.len()).max().unwrap_or_default();
    let places = match largest {
        ..=RECORD_BYTES_MAX => disk.append(records).map_err(|error| error.to_string()),
        _ => Err(format!("a record of {largest} bytes is too large")),
    };
    let places = places.inspect_err(|_| note_loss(disk))?;
    if closes_hole && let Err(error) = disk.clear_incomplete() {
        tracing::error!(%error, "failed to clear change-log gap marker");
    }
    let segments: BTreeSet<u32> = places.iter().map(|place| place.segment).collect();
    let readers = segments.into_iter().filter_map(|segment| Some((segment, disk.reader(segment)?))).collect();
    Ok(Written { places, readers })
}

/// Marks the files as incomplete, before a reader gets changes that are not on disk: a kill must not hide the loss.
fn note_loss(disk: &journal::Log) {
    if let Err(error) = disk.mark_incomplete() {
        tracing::error!(%error, "failed to persist change-log gap marker");
    }
}

/// Maintains the files.
pub(super) struct Keeper {
    log: Log,
    disk: Arc<Mutex<journal::Log>>,
}

impl Keeper {
    /// Syncs new records, which then survive a crash of the machine, and removes old segments. Blocks.
    pub(super) fn tidy(&self) {
        let now = self.log.0.clock.micros();
        let (fresh, trimmed) = {
            let mut disk = self.disk.lock();
            (disk.unsynced(), disk.trim(now))
        };
        if let Some(Err(error)) = fresh.map(|fresh| fresh.sync()) {
            tracing::warn!(%error, "failed to sync change log");
        }
        match trimmed {
            Ok(None) => {}
            Ok(Some(segment)) => self.log.0.state.lock().trim(segment),
            Err(error) => tracing::warn!(%error, "failed to trim change log"),
        }
    }

    /// Syncs and marks the files as closed at a regular stop. Blocks.
    pub(super) fn close(&self) {
        let mut disk = self.disk.lock();
        if let Err(error) = disk.sync().and_then(|()| disk.mark_closed()) {
            tracing::error!(%error, "failed to sync change log at stop");
        }
    }
}

impl State {
    /// Forgets the segments before `segment`, which were removed.
    fn trim(&mut self, segment: u32) {
        while let Some((number, place)) = self.index.front().copied() {
            if place.segment >= segment {
                break;
            }
            self.floor = self.floor.max(number);
            self.index.pop_front();
        }
        while self.holes.front().is_some_and(|(_, last)| *last <= self.floor) {
            self.holes.pop_front();
        }
        self.readers.retain(|ordinal, _| *ordinal >= segment);
    }
}

#[cfg(test)]
mod tests;
