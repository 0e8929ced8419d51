//! The change log: what the write-ahead log said about published rows, for as long as somebody may ask.
//!
//! Numbered parts of transactions in commit order; the last ones in memory, all of them in a [`journal`]
//! (`crate::journal`) bounded by age and bytes. Who delivers changes and who catches up read the same log, each
//! from a number of its own, so that a slow check or a huge transaction delays its readers and nobody else. Numbers are
//! microseconds and only grow. What a full disk did not take is delivered all the same, and told as missing to
//! whoever asks for it later.
mod record;

pub(super) use record::Part;

use crate::{
    clock::Clock,
    fault,
    id::Lsn,
    journal::{self, Limits, Opened, Place, Reader, Record},
    wal::{Batch, Relation},
};
use bytes::Bytes;
use parking_lot::Mutex;
use record::Reading;
use std::{
    collections::{HashMap, VecDeque},
    fs,
    io::ErrorKind,
    os::unix::fs::DirBuilderExt,
    path::Path,
    sync::Arc,
    time::Duration,
};
use tokio::sync::watch;

/// Bytes of records that stay in memory.
const MEMORY_BYTES_MAX: usize = 32 << 20;
/// A record that is larger is not kept on disk.
const RECORD_BYTES_MAX: usize = 32 << 20;
/// What is read at once.
const READ_ENTRIES_MAX: usize = 256;
const READ_BYTES_MAX: usize = 1 << 20;
/// Rows that are read at once, unless one record has more.
const READ_ROWS_MAX: usize = 256;

/// A part of a transaction, or a place behind which changes are missing.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) number: u64,
    /// Nothing: changes before it were lost with the replication slot.
    pub(super) part: Option<Part>,
    bytes: usize,
}

/// What a reader finds.
pub(super) enum Found {
    /// In order; nothing when there is no more.
    Entries(Vec<Arc<Entry>>),
    /// Everything up to this number may be missing.
    Missing(u64),
}

/// The log for its readers. Clones read the same one.
#[derive(Clone, Debug)]
pub(super) struct Log(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    clock: Clock,
    state: Mutex<State>,
    head: watch::Sender<u64>,
    /// Up to where the one who delivers has come.
    delivered: watch::Sender<u64>,
    degraded: watch::Sender<bool>,
}

#[derive(Debug)]
struct State {
    head: u64,
    /// Who listens, or can come back.
    wanted: usize,
    memory: VecDeque<Arc<Entry>>,
    memory_bytes: usize,
    /// The last part that is not in memory any more.
    evicted: u64,
    index: VecDeque<(u64, Place)>,
    readers: HashMap<u32, Reader>,
    /// Parts up to this number are gone.
    floor: u64,
    /// From and to which numbers parts are missing on the disk, in order.
    holes: VecDeque<(u64, u64)>,
    reading: Reading,
}

/// The end of the log at which it grows.
#[derive(Debug)]
pub(super) struct Appender {
    log: Log,
    disk: Arc<Mutex<journal::Log>>,
    /// The last change that is in the log: what comes again is passed over.
    seen: Option<(Lsn, u32)>,
    /// The disk has not taken something.
    hole: bool,
    /// Whether another life can be asked for what this one kept.
    asked_later: bool,
}

/// Which database's log a folder holds.
const SOURCE_FILE: &str = "source";

/// Throws away what is of another database: its positions mean nothing here.
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
    let written = made.and_then(|()| fs::write(&file, source));
    written.map_err(|error| journal::Error::Io { path: file, doing: "written", source: error })
}

/// Opens what an earlier life kept of the database `source` in `dir`, at most `bytes_max` bytes and `age`; without `age`, nobody can ask for
/// what an earlier life kept. Blocks.
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
    let limits = Limits { bytes_max, span_max: u64::try_from(span.as_micros()).unwrap_or(u64::MAX) };
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
        // Also of a new log: what came before it is not in it.
        disk.append(&[Record { number: head, payload: Bytes::new() }])?;
        floor = head;
    }
    if age.is_none() {
        disk.lost()?;
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
    Ok((log.clone(), Appender { log, disk, seen, hole: false, asked_later: age.is_some() }))
}

impl Log {
    /// The number of the last part; whoever takes it and listens from then on misses nothing that is committed later.
    pub(super) fn begin(&self) -> u64 {
        let mut state = self.0.state.lock();
        state.wanted += 1;
        state.head
    }

    /// The last part that has a number.
    pub(super) fn head(&self) -> u64 {
        *self.0.head.borrow()
    }

    /// Up to which number something behind `after` is missing, if anything is.
    pub(super) fn missing(&self, after: u64) -> Option<u64> {
        let state = self.0.state.lock();
        let hole = state.holes.back().map_or(0, |(_, last)| *last);
        Some(hole.max(state.floor)).filter(|last| *last > after)
    }

    /// Who [began](Self::begin) listens no more.
    pub(super) fn end(&self) {
        let mut state = self.0.state.lock();
        state.wanted = state.wanted.saturating_sub(1);
    }

    /// Up to which number everything was put out to everybody who listens.
    pub(super) fn delivered(&self) -> u64 {
        *self.0.delivered.borrow()
    }

    pub(super) fn set_delivered(&self, number: u64) {
        self.0.delivered.send_replace(number);
    }

    /// Whether the disk takes nothing; changes are seen.
    pub(super) fn degraded(&self) -> watch::Receiver<bool> {
        self.0.degraded.subscribe()
    }

    /// Resolves when there is something after `number`. Cancel safe.
    pub(super) async fn grown(&self, number: u64) {
        // The sender lives as long as the log.
        let mut head = self.0.head.subscribe();
        let _never_closed = head.wait_for(|head| *head > number).await;
    }

    /// What follows `after`, up to `upto`.
    pub(super) async fn read(&self, after: u64, upto: u64) -> Found {
        let (places, readers) = {
            let state = self.0.state.lock();
            if after >= state.evicted {
                return Found::Entries(state.recent(after, upto));
            }
            if state.floor > after {
                return Found::Missing(state.floor);
            }
            let from = state.index.partition_point(|(number, _)| *number <= after);
            let hole = state.holes.iter().find(|(_, last)| *last > after).copied();
            let next = state.index.get(from).map(|(number, _)| *number);
            if let Some((_, last)) = hole.filter(|(first, _)| next.is_none_or(|next| next > *first)) {
                return Found::Missing(last);
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
            let readers: HashMap<u32, Reader> = segments
                .filter_map(|segment| Some((segment, state.readers.get(&segment)?.clone())))
                .collect();
            (places, readers)
        };
        let Some((last, _)) = places.last().copied() else { return Found::Entries(Vec::new()) };
        let read = tokio::task::spawn_blocking(move || {
            let read = |(_, place): &(u64, Place)| {
                readers.get(&place.segment).map(|reader| reader.read(place.offset, place.size)).transpose()
            };
            places.iter().map(read).collect::<Result<Option<Vec<_>>, _>>()
        });
        let records = match read.await {
            Ok(Ok(Some(records))) => records,
            Ok(Err(error)) => {
                tracing::error!(%error, "the change log cannot be read");
                return Found::Missing(last);
            }
            _ => return Found::Missing(last),
        };
        let mut state = self.0.state.lock();
        let entries = records.into_iter().map(|(number, payload)| {
            let bytes = payload.len();
            let part = state.reading.part(payload)?;
            Some(Arc::new(Entry { number, part: Some(part), bytes }))
        });
        entries.collect::<Option<Vec<_>>>().map_or(Found::Missing(last), Found::Entries)
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
    /// Takes the rows of these batches that are `wanted`, in order; when it is done, they outlive the daemon.
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
            payloads.extend(record::encode(batch, after, &wanted).filter(|_| asked));
            self.seen = Some((batch.commit_lsn, last));
        }
        if !payloads.is_empty() {
            self.put(payloads).await;
        }
    }

    /// Changes were lost: whoever reads on is told.
    pub(super) async fn gap(&mut self) {
        self.seen = None;
        self.put(vec![Bytes::new()]).await;
    }

    async fn put(&mut self, payloads: Vec<Bytes>) {
        let records = self.numbered(payloads);
        let kept = self.write(records.clone()).await;
        fault::point("changes.logged");
        self.make_room().await;
        let shared = &self.log.0;
        let mut state = shared.state.lock();
        if let Some(places) = &kept {
            let disk = self.disk.lock();
            for (record, place) in records.iter().zip(places) {
                if !record.payload.is_empty() {
                    state.index.push_back((record.number, *place));
                }
                if !state.readers.contains_key(&place.segment) {
                    state.readers.extend(disk.reader(place.segment).map(|reader| (place.segment, reader)));
                }
            }
        }
        if let (None, Some(first), Some(last)) = (&kept, records.first(), records.last()) {
            // Live listeners have it from memory; nobody finds it later.
            state.holes.push_back((first.number, last.number));
        }
        for Record { number, payload } in records {
            let bytes = payload.len();
            let is_gap = payload.is_empty();
            if is_gap {
                state.holes.push_back((number, number));
            }
            let part = if is_gap { None } else { state.reading.part(payload) };
            state.memory_bytes += bytes;
            state.memory.push_back(Arc::new(Entry { number, part, bytes }));
        }
        let delivered = *shared.delivered.borrow();
        while state.memory_bytes > MEMORY_BYTES_MAX {
            let Some(first) = state.memory.front() else { break };
            let (number, bytes) = (first.number, first.bytes);
            if number > delivered && state.index.binary_search_by_key(&number, |(it, _)| *it).is_err() {
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

    /// While the disk takes nothing, what is not delivered may not leave the memory: the log waits.
    async fn make_room(&self) {
        let shared = &self.log.0;
        loop {
            let (full, first) = {
                let state = shared.state.lock();
                let first = state.memory.front().map_or(0, |first| first.number);
                (self.hole && state.memory_bytes > MEMORY_BYTES_MAX, first)
            };
            if !full || *shared.delivered.borrow() >= first {
                return;
            }
            // The sender lives as long as the log.
            let mut delivered = shared.delivered.subscribe();
            let _never_closed = delivered.wait_for(|done| *done >= first).await;
        }
    }

    /// Where the records are on disk; nothing when it does not take them.
    async fn write(&mut self, mut records: Vec<Record>) -> Option<Vec<Place>> {
        let largest = records.iter().map(|record| record.payload.len()).max().unwrap_or_default();
        let before = records.first().map_or(0, |record| record.number.saturating_sub(1));
        // Once something is missing, the first record that is kept again says so.
        let mended = self.hole;
        if mended {
            records.insert(0, Record { number: before, payload: Bytes::new() });
        }
        let (disk, asked_later) = (self.disk.clone(), self.asked_later);
        let written = tokio::task::spawn_blocking(move || {
            let mut disk = disk.lock();
            let too_large = largest > RECORD_BYTES_MAX;
            let places = if too_large { None } else { Some(disk.append(&records)) };
            match places {
                Some(Ok(places)) => {
                    if mended
                        && asked_later
                        && let Err(error) = disk.found()
                    {
                        tracing::error!(%error, "the change log stays marked as not whole");
                    }
                    Ok(places)
                }
                other => {
                    // Before anybody hears what is not kept, so that a kill does not make it forgotten.
                    if let Err(error) = disk.lost() {
                        tracing::error!(%error, "that the change log has a hole cannot be noted");
                    }
                    Err(match other {
                        Some(Err(error)) => error.to_string(),
                        _ => format!("a record of {largest} bytes is too large"),
                    })
                }
            }
        });
        let outcome = written.await.unwrap_or_else(|error| Err(error.to_string()));
        let was_degraded = *self.log.0.degraded.borrow();
        match outcome {
            Ok(mut places) => {
                self.hole = false;
                if was_degraded {
                    tracing::info!("the disk takes the change log again");
                    self.log.0.degraded.send_replace(false);
                }
                Some(places.split_off(usize::from(mended).min(places.len())))
            }
            Err(why) => {
                if !was_degraded {
                    tracing::error!(
                        why,
                        "the change log is not written: changes go on, and clients that come back are told"
                    );
                    self.log.0.degraded.send_replace(true);
                }
                self.hole = true;
                None
            }
        }
    }

    /// What looks after the files once a second: see [`Keeper::tidy`].
    pub(super) fn keeper(&self) -> Keeper {
        Keeper { log: self.log.clone(), disk: self.disk.clone() }
    }
}

/// Looks after the files.
pub(super) struct Keeper {
    log: Log,
    disk: Arc<Mutex<journal::Log>>,
}

impl Keeper {
    /// Makes what was written safe from a crash of the machine, and removes what is too old. Blocks.
    pub(super) fn tidy(&self) {
        let now = self.log.0.clock.micros();
        let (fresh, trimmed) = {
            let mut disk = self.disk.lock();
            (disk.unsafe_part(), disk.trim(now))
        };
        if let Some(Err(error)) = fresh.map(|fresh| fresh.sync()) {
            tracing::warn!(%error, "the change log is not safe from a crash of the machine");
        }
        match trimmed {
            Ok(None) => {}
            Ok(Some(segment)) => self.log.0.state.lock().trim(segment),
            Err(error) => tracing::warn!(%error, "the old change log is not removed"),
        }
    }

    /// The daemon stops in good order. Blocks.
    pub(super) fn close(&self) {
        let mut disk = self.disk.lock();
        if let Err(error) = disk.sync().and_then(|()| disk.settle()) {
            tracing::error!(%error, "the change log is not safe on the disk");
        }
    }
}

impl State {
    /// Segments before `segment` are gone.
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
