//! Numbered records over several files, oldest first.
use super::{
    Error,
    mark::Mark,
    record,
    segment::{self, Read, Reader, Segment},
};
use bytes::{Bytes, BytesMut};
use std::{
    collections::VecDeque,
    fs,
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
};

/// How much a log keeps.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Bytes of all segments; the oldest go first.
    pub bytes_max: u64,
    /// Records whose number is smaller than the latest by more than this may go: numbers that are
    /// microseconds make it an age.
    pub span_max: u64,
}

/// Segments that a full log has about.
const SEGMENTS: u64 = 16;
/// Offsets in a segment are 32 bits wide.
const SEGMENT_BYTES_MAX: u64 = 1 << 30;

/// Where a record is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// Its segment; later ones are larger.
    pub segment: u32,
    /// Bytes from the beginning of the segment.
    pub offset: u32,
    /// Bytes of the record.
    pub size: u32,
}

/// One thing to append.
#[derive(Clone, Debug)]
pub struct Record {
    /// Larger than every number before it.
    pub number: u64,
    /// What it says.
    pub payload: Bytes,
}

/// What was found when a log was opened.
#[derive(Debug)]
pub struct Opened {
    /// The log.
    pub log: Log,
    /// Records up to this number are gone, if there were any.
    pub floor: u64,
    /// The number of the last record.
    pub last: u64,
    /// Whether everything after `floor` that was ever appended is there.
    pub whole: bool,
}

/// Records in segments under one folder. One at a time may have the folder open.
#[derive(Debug)]
pub struct Log {
    dir: PathBuf,
    limits: Limits,
    segments: VecDeque<Segment>,
    next_ordinal: u32,
    last: u64,
    mark: Mark,
    dirty: bool,
}

impl Log {
    /// Opens or makes the log in `dir` and shows each record that is there: number, place, payload.
    ///
    /// # Errors
    /// When the folder or a file cannot be read or written. Damage is no error: see [`Opened::whole`].
    pub fn open(
        dir: &Path,
        limits: Limits,
        mut each: impl FnMut(u64, Place, &[u8]),
    ) -> Result<Opened, Error> {
        let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(dir);
        made.map_err(Error::io(dir, "created"))?;
        let mark = Mark::new(dir.join("whole"));
        let ordinals = ordinals(dir)?;
        let latest = ordinals.last().copied();
        let mut whole = ordinals.is_empty() || mark.is_whole();
        let mut segments: VecDeque<Segment> = VecDeque::new();
        let mut last = 0;
        for ordinal in ordinals {
            let is_latest = Some(ordinal) == latest;
            let read = Segment::read(dir, ordinal, is_latest, |number, offset, payload| {
                let size = record::HEADER_BYTES + record::NUMBER_BYTES + payload.len();
                if let (Ok(offset), Ok(size)) = (u32::try_from(offset), u32::try_from(size)) {
                    each(number, Place { segment: ordinal, offset, size }, payload);
                }
            })?;
            let Some(Read { segment, whole: good }) = read else {
                // Killed while it was made: it is empty. An older one without a header is damage.
                whole &= is_latest;
                let path = segment::path_of(dir, ordinal);
                fs::remove_file(&path).map_err(Error::io(&path, "removed"))?;
                continue;
            };
            whole &= good && (segments.is_empty() || segment.before == last);
            last = segment.last.unwrap_or(segment.before).max(last);
            segments.push_back(segment);
        }
        if let Some(latest) = segments.back() {
            latest.truncate()?;
        }
        mark.open()?;
        let floor = segments.front().map_or(0, |segment| segment.before);
        let next_ordinal = latest.map_or(1, |ordinal| ordinal.saturating_add(1));
        let log = Self { dir: dir.to_owned(), limits, segments, next_ordinal, last, mark, dirty: false };
        Ok(Opened { log, floor, last, whole })
    }

    /// Appends records in one write and says where they are. Nothing is appended when it fails.
    ///
    /// # Errors
    /// [`Error::Io`], like a full disk, and [`Error::TooLarge`].
    pub fn append(&mut self, records: &[Record]) -> Result<Vec<Place>, Error> {
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
                let place = Place { segment: ordinal, offset, size };
                offset = offset.saturating_add(size);
                place
            })
            .collect())
    }

    /// Removes segments that are too old at `now` or too many. Gives the first that is kept, when any went.
    ///
    /// # Errors
    /// When a file cannot be removed; it is tried again the next time.
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

    /// Makes what was appended safe from a crash of the machine.
    ///
    /// # Errors
    /// When the disk does not take it.
    pub fn sync(&mut self) -> Result<(), Error> {
        if let Some(latest) = self.segments.back().filter(|_| self.dirty) {
            latest.sync()?;
            self.dirty = false;
        }
        Ok(())
    }

    /// Notes, even on a full disk, that something is not in the log: the next [`Log::open`] finds it not whole.
    ///
    /// # Errors
    /// When even that cannot be noted.
    pub fn lost(&self) -> Result<(), Error> {
        self.mark.remove()
    }

    /// Takes back [`Log::lost`], once what was lost is itself in the log.
    ///
    /// # Errors
    /// When the disk does not take it.
    pub fn found(&self) -> Result<(), Error> {
        self.mark.open()
    }

    /// Makes everything safe and notes that nothing is missing, unless `lost` was said.
    ///
    /// # Errors
    /// When the disk does not take it.
    pub fn close(mut self) -> Result<(), Error> {
        self.sync()?;
        self.settle()
    }

    /// Notes that nothing is missing, unless `lost` was said. Nothing may be appended afterwards.
    ///
    /// # Errors
    /// When the disk does not take it.
    pub fn settle(&self) -> Result<(), Error> {
        if self.mark.is_whole() { self.mark.close() } else { Ok(()) }
    }

    /// All segments, oldest first.
    pub fn segments(&self) -> impl Iterator<Item = u32> + '_ {
        self.segments.iter().map(|segment| segment.ordinal)
    }

    /// What makes safe what was appended since this was last asked, without stopping who appends more.
    pub fn unsafe_part(&mut self) -> Option<Reader> {
        let latest = self.segments.back().filter(|_| self.dirty)?;
        self.dirty = false;
        Some(latest.reader())
    }

    /// What notes a loss while the log itself is busy.
    #[must_use]
    pub fn mark(&self) -> Mark {
        self.mark.clone()
    }

    /// What reads the records of a segment, if it is still there.
    #[must_use]
    pub fn reader(&self, segment: u32) -> Option<Reader> {
        self.segments.iter().find(|it| it.ordinal == segment).map(Segment::reader)
    }

    /// The segment that the next records go to; a new one when the latest is full or old.
    fn segment_for(&mut self, number: u64, bytes: u64) -> Result<&mut Segment, Error> {
        let Limits { bytes_max, span_max } = self.limits;
        let full = (bytes_max / SEGMENTS).min(SEGMENT_BYTES_MAX);
        let fits = self.segments.back().is_some_and(|latest| {
            let young = latest.first.is_none_or(|first| number.saturating_sub(first) <= span_max / SEGMENTS);
            latest.first.is_none() || (young && latest.bytes + bytes <= full)
        });
        if !fits {
            // What is left behind is safe before anything newer is, so that only the last one can be cut.
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
