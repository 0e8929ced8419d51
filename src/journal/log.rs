//! A log of numbered records in segment files, oldest first.
use super::{
    Error, record,
    segment::{self, Read, Segment, SegmentReader},
    shutdown_marker::ShutdownMarker,
};
use bytes::{Bytes, BytesMut};
use std::{
    collections::VecDeque,
    fs,
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
};

/// The retention of a log.
#[derive(Clone, Copy, Debug)]
pub struct LogLimits {
    /// Bytes of all segments. The oldest segments are deleted first.
    pub bytes_max: u64,
    /// Records whose number is smaller than the latest by more than this may be deleted. If numbers are
    /// microseconds, this is an age.
    pub span_max: u64,
}

/// The number of segments of a full log, about. Retention works in whole segments.
const SEGMENTS: u64 = 16;
/// Offsets in a segment are 32 bits wide.
const SEGMENT_BYTES_MAX: u64 = 1 << 30;

/// The location of a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RecordLocation {
    /// The ordinal of its segment. Ordinals ascend.
    pub segment: u32,
    /// Bytes from the start of the segment.
    pub offset: u32,
    /// Bytes of the record with its header.
    pub size: u32,
}

/// A record to append.
#[derive(Clone, Debug)]
pub struct Record {
    /// Must be larger than every number before it.
    pub number: u64,
    /// The content.
    pub payload: Bytes,
}

/// The result of opening a log.
#[derive(Debug)]
pub struct Opened {
    /// The log.
    pub log: Log,
    /// Records up to this number may have been deleted.
    pub floor: u64,
    /// The number of the last record, or 0.
    pub last: u64,
    /// Whether every record after `floor` that was ever appended is present.
    pub whole: bool,
}

/// Records in segments in one folder. Only one `Log` may have the folder open.
#[derive(Debug)]
pub struct Log {
    dir: PathBuf,
    limits: LogLimits,
    segments: VecDeque<Segment>,
    next_ordinal: u32,
    last: u64,
    marker: ShutdownMarker,
    dirty: bool,
}

impl Log {
    /// Opens or creates the log in `dir` and passes each record to `each`: number, location, payload.
    ///
    /// # Errors
    /// [`Error::Io`] if the folder or a file cannot be read or written. Damage is not an error: see [`Opened::whole`].
    pub fn open(
        dir: &Path,
        limits: LogLimits,
        mut each: impl FnMut(u64, RecordLocation, &[u8]),
    ) -> Result<Opened, Error> {
        let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(dir);
        made.map_err(Error::io(dir, "created"))?;
        let marker = ShutdownMarker::new(dir.join("whole"));
        let ordinals = ordinals(dir)?;
        let latest = ordinals.last().copied();
        let mut whole = ordinals.is_empty() || marker.is_whole();
        let mut segments: VecDeque<Segment> = VecDeque::new();
        let mut last = 0;
        for ordinal in ordinals {
            let is_latest = Some(ordinal) == latest;
            let read = Segment::read(dir, ordinal, is_latest, |number, offset, payload| {
                let size = record::HEADER_BYTES + record::NUMBER_BYTES + payload.len();
                if let (Ok(offset), Ok(size)) = (u32::try_from(offset), u32::try_from(size)) {
                    each(number, RecordLocation { segment: ordinal, offset, size }, payload);
                }
            })?;
            let Some(Read { segment, whole: good }) = read else {
                // A kill during `Segment::create` leaves an empty latest file. An older one without a header is damage.
                whole &= is_latest;
                let path = segment::path_of(dir, ordinal);
                fs::remove_file(&path).map_err(Error::io(&path, "removed"))?;
                continue;
            };
            // Each segment stores the number before it: a mismatch means that a segment between is missing.
            whole &= good && (segments.is_empty() || segment.before == last);
            last = segment.last.unwrap_or(segment.before).max(last);
            segments.push_back(segment);
        }
        if let Some(latest) = segments.back() {
            // Removes the cut record of a kill, so that appends continue behind the last good one.
            latest.truncate()?;
        }
        // Only after the check above: from here on a kill loses nothing that was appended.
        marker.open()?;
        let floor = segments.front().map_or(0, |segment| segment.before);
        let next_ordinal = latest.map_or(1, |ordinal| ordinal.saturating_add(1));
        let log = Self { dir: dir.to_owned(), limits, segments, next_ordinal, last, marker, dirty: false };
        Ok(Opened { log, floor, last, whole })
    }

    /// Appends records with one write and returns their locations. Nothing is appended if it fails.
    ///
    /// # Errors
    /// [`Error::Io`], like a full disk, and [`Error::TooLarge`].
    pub fn append(&mut self, records: &[Record]) -> Result<Vec<RecordLocation>, Error> {
        let (Some(first), Some(last)) = (records.first(), records.last()) else { return Ok(Vec::new()) };
        let mut bytes = BytesMut::new();
        let mut sizes = Vec::with_capacity(records.len());
        for Record { number, payload } in records {
            let before = bytes.len();
            record::put(&mut bytes, *number, |out| out.extend_from_slice(payload));
            let size = bytes.len() - before;
            if payload.len() > record::BODY_BYTES_MAX - record::NUMBER_BYTES {
                return Err(Error::TooLarge { size });
            }
            sizes.push(u32::try_from(size).map_err(|_| Error::TooLarge { size })?);
        }
        if bytes.len() as u64 > SEGMENT_BYTES_MAX {
            return Err(Error::TooLarge { size: bytes.len() });
        }
        let segment = self.segment_for(first.number, bytes.len() as u64)?;
        let mut offset = u32::try_from(segment.bytes).unwrap_or(u32::MAX);
        segment.append(&bytes, first.number, last.number)?;
        let ordinal = segment.ordinal;
        (self.last, self.dirty) = (last.number, true);
        Ok(sizes
            .into_iter()
            .map(|size| {
                let location = RecordLocation { segment: ordinal, offset, size };
                offset = offset.saturating_add(size);
                location
            })
            .collect())
    }

    /// Deletes segments that are too old at `now` or exceed the limit of bytes. Returns the first remaining segment
    /// if any was deleted. The latest segment always stays.
    ///
    /// # Errors
    /// [`Error::Io`] if a file cannot be deleted. The next call tries again.
    pub fn trim(&mut self, now: u64) -> Result<Option<u32>, Error> {
        let old = now.saturating_sub(self.limits.span_max);
        let mut bytes: u64 = self.segments.iter().map(|segment| segment.bytes).sum();
        let mut kept = None;
        while self.segments.len() > 1 {
            let Some(oldest) = self.segments.front() else { break };
            if bytes <= self.limits.bytes_max && oldest.last.is_some_and(|last| last >= old) {
                break;
            }
            oldest.remove()?;
            bytes -= oldest.bytes;
            self.segments.pop_front();
            kept = self.segments.front().map(|segment| segment.ordinal);
        }
        Ok(kept)
    }

    /// Bytes of all segments.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.segments.iter().map(|segment| segment.bytes).sum()
    }

    /// Syncs the log, so that what was appended survives a crash of the machine.
    ///
    /// # Errors
    /// [`Error::Io`] if the sync fails.
    pub fn sync(&mut self) -> Result<(), Error> {
        if let Some(latest) = self.segments.back().filter(|_| self.dirty) {
            latest.sync()?;
            self.dirty = false;
        }
        Ok(())
    }

    /// Marks the log as incomplete: the next [`Log::open`] returns `whole == false`. Works on a full disk.
    ///
    /// # Errors
    /// [`Error::Io`] if even that fails.
    pub fn mark_incomplete(&self) -> Result<(), Error> {
        self.marker.remove()
    }

    /// Takes [`Log::mark_incomplete`] back, after a record that accounts for the loss was appended.
    ///
    /// # Errors
    /// [`Error::Io`] if the write fails.
    pub fn clear_incomplete(&self) -> Result<(), Error> {
        self.marker.open()
    }

    /// Syncs everything and marks the log as complete, unless [`Log::mark_incomplete`] was called.
    ///
    /// # Errors
    /// [`Error::Io`] if the sync or the write fails.
    pub fn close(mut self) -> Result<(), Error> {
        self.sync()?;
        self.mark_closed()
    }

    /// Marks the log as complete, unless [`Log::mark_incomplete`] was called. Nothing may be appended afterwards.
    ///
    /// # Errors
    /// [`Error::Io`] if the write fails.
    pub fn mark_closed(&self) -> Result<(), Error> {
        if self.marker.is_whole() { self.marker.close() } else { Ok(()) }
    }

    /// The ordinals of all segments, oldest first.
    pub fn segments(&self) -> impl Iterator<Item = u32> + '_ {
        self.segments.iter().map(|segment| segment.ordinal)
    }

    /// A reader that syncs what was appended since the last call, while more is appended. `None` if nothing was.
    pub fn unsynced(&mut self) -> Option<SegmentReader> {
        let latest = self.segments.back().filter(|_| self.dirty)?;
        // Older segments need no sync: `segment_for` syncs a segment before it creates the next.
        self.dirty = false;
        Some(latest.reader())
    }

    /// A handle that marks a loss while the log itself is busy on another thread.
    #[must_use]
    pub fn marker(&self) -> ShutdownMarker {
        self.marker.clone()
    }

    /// A reader of the records of a segment; `None` if the segment was deleted.
    #[must_use]
    pub fn reader(&self, segment: u32) -> Option<SegmentReader> {
        self.segments.iter().find(|it| it.ordinal == segment).map(Segment::reader)
    }

    /// The segment for the next records. Creates a new one if the latest is full or spans too much time.
    fn segment_for(&mut self, number: u64, bytes: u64) -> Result<&mut Segment, Error> {
        let LogLimits { bytes_max, span_max } = self.limits;
        let full = (bytes_max / SEGMENTS).min(SEGMENT_BYTES_MAX);
        let fits = self.segments.back().is_some_and(|latest| {
            let young = latest.first.is_none_or(|first| number.saturating_sub(first) <= span_max / SEGMENTS);
            latest.first.is_none() || (young && latest.bytes + bytes <= full)
        });
        if !fits {
            // The old segment is synced before a newer one exists, so that a crash can cut only the latest segment.
            self.sync()?;
            let segment = Segment::create(&self.dir, self.next_ordinal, self.last)?;
            self.next_ordinal = self.next_ordinal.saturating_add(1);
            self.segments.push_back(segment);
        }
        let dir = &self.dir;
        self.segments.back_mut().ok_or_else(|| Error::io(dir, "written")(std::io::ErrorKind::NotFound.into()))
    }
}

fn ordinals(dir: &Path) -> Result<Vec<u32>, Error> {
    let mut ordinals = Vec::new();
    for file in fs::read_dir(dir).map_err(Error::io(dir, "read"))? {
        let file = file.map_err(Error::io(dir, "read"))?;
        ordinals.extend(segment::ordinal_of(&file.path()));
    }
    ordinals.sort_unstable();
    Ok(ordinals)
}

#[cfg(test)]
mod tests;
