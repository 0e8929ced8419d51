//! One file of a log: a header, then records.
use super::{
    Error,
    record::{self, Parsed},
};
use bytes::{Bytes, BytesMut};
use std::{
    fs::{self, File, OpenOptions},
    os::unix::fs::{FileExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::Arc,
};

/// The first bytes of a segment. The number of the last record before it follows.
const MAGIC: &[u8; 8] = b"CNVKLOG1";
pub(super) const HEADER_BYTES: u64 = 16;

/// A segment and the range of its valid records.
#[derive(Debug)]
pub(super) struct Segment {
    pub(super) ordinal: u32,
    path: PathBuf,
    file: Arc<File>,
    /// The end of the last valid record.
    pub(super) bytes: u64,
    pub(super) first: Option<u64>,
    pub(super) last: Option<u64>,
    /// The number of the last record before this segment; zero for the first segment of a log.
    pub(super) before: u64,
}

/// A segment that was read, and whether all its bytes are valid records.
pub(super) struct Read {
    pub(super) segment: Segment,
    pub(super) whole: bool,
}

pub(super) fn path_of(dir: &Path, ordinal: u32) -> PathBuf {
    dir.join(format!("{ordinal:010}.log"))
}

/// The ordinal in a segment's file name; `None` for another file.
pub(super) fn ordinal_of(path: &Path) -> Option<u32> {
    let name = path.file_name()?.to_str()?.strip_suffix(".log")?;
    (name.len() == 10).then(|| name.parse().ok())?
}

impl Segment {
    pub(super) fn create(dir: &Path, ordinal: u32, before: u64) -> Result<Self, Error> {
        let path = path_of(dir, ordinal);
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(true).mode(0o600);
        let file = options.open(&path).map_err(Error::io(&path, "created"))?;
        let mut header = MAGIC.to_vec();
        header.extend_from_slice(&before.to_le_bytes());
        if let Err(e) = file.write_all_at(&header, 0) {
            let _ = fs::remove_file(&path);
            return Err(Error::io(&path, "written")(e));
        }
        let file = Arc::new(file);
        Ok(Self { ordinal, path, file, bytes: HEADER_BYTES, first: None, last: None, before })
    }

    /// Passes every valid record of a file to `each`. A cut record at the end is not damage in the `latest` segment,
    /// which was being written. Returns `None` for a file without a header.
    pub(super) fn read(
        dir: &Path,
        ordinal: u32,
        latest: bool,
        mut each: impl FnMut(u64, u64, &[u8]),
    ) -> Result<Option<Read>, Error> {
        let path = path_of(dir, ordinal);
        let mut options = OpenOptions::new();
        let file = options.read(true).write(true).open(&path).map_err(Error::io(&path, "opened"))?;
        let bytes = fs::read(&path).map_err(Error::io(&path, "read"))?;
        let before = bytes.get(8..16).and_then(|b| b.try_into().ok()).map(u64::from_le_bytes);
        let Some(before) = before.filter(|_| bytes.starts_with(MAGIC)) else { return Ok(None) };
        let (mut at, mut whole) = (HEADER_BYTES as usize, true);
        let (mut first, mut last) = (None, None);
        loop {
            match record::first(bytes.get(at..).unwrap_or_default()) {
                None => break,
                // Numbers must ascend: an old record behind a newer one is a remnant of an earlier write.
                Some(Parsed::Record { number, payload, size }) if number > last.unwrap_or(before) => {
                    each(number, at as u64, payload);
                    first.get_or_insert(number);
                    last = Some(number);
                    at += size;
                }
                Some(Parsed::Cut) if latest => break,
                Some(_) => {
                    whole = false;
                    break;
                }
            }
        }
        let segment = Self { ordinal, path, file: Arc::new(file), bytes: at as u64, first, last, before };
        Ok(Some(Read { segment, whole }))
    }

    /// Truncates the file after the last valid record.
    pub(super) fn truncate(&self) -> Result<(), Error> {
        self.file.set_len(self.bytes).map_err(Error::io(&self.path, "truncated"))
    }

    /// Appends `bytes`, the records `first` to `last`, wholly or not at all.
    pub(super) fn append(&mut self, bytes: &[u8], first: u64, last: u64) -> Result<(), Error> {
        if let Err(e) = self.file.write_all_at(bytes, self.bytes) {
            // A failed truncation is harmless: the next append overwrites the same offset.
            let _ = self.truncate();
            return Err(Error::io(&self.path, "written")(e));
        }
        self.bytes += bytes.len() as u64;
        self.first.get_or_insert(first);
        self.last = Some(last);
        Ok(())
    }

    pub(super) fn sync(&self) -> Result<(), Error> {
        self.file.sync_data().map_err(Error::io(&self.path, "made safe"))
    }

    pub(super) fn remove(&self) -> Result<(), Error> {
        fs::remove_file(&self.path).map_err(Error::io(&self.path, "removed"))
    }

    pub(super) fn reader(&self) -> SegmentReader {
        SegmentReader { path: self.path.as_path().into(), file: self.file.clone() }
    }
}

/// Reads records of one segment, also after the segment was deleted. Clones share the open file.
#[derive(Clone, Debug)]
pub struct SegmentReader {
    path: Arc<Path>,
    file: Arc<File>,
}

impl SegmentReader {
    /// Returns the number and the payload of the record at an offset. `size` includes the header. Blocks.
    ///
    /// # Errors
    /// [`Error::Io`], and [`Error::Damaged`] if the record fails its checksum.
    pub fn read(&self, offset: u32, size: u32) -> Result<(u64, Bytes), Error> {
        let mut bytes = BytesMut::zeroed(size as usize);
        self.file.read_exact_at(&mut bytes, offset.into()).map_err(Error::io(&self.path, "read"))?;
        let bytes = bytes.freeze();
        match record::first(&bytes) {
            Some(Parsed::Record { number, payload, .. }) => Ok((number, bytes.slice_ref(payload))),
            _ => Err(Error::Damaged { path: self.path.to_path_buf(), offset: offset.into() }),
        }
    }

    /// Syncs the segment, so that it survives a crash of the machine. Blocks.
    ///
    /// # Errors
    /// [`Error::Io`] if the sync fails.
    pub fn sync(&self) -> Result<(), Error> {
        self.file.sync_data().map_err(Error::io(&self.path, "made safe"))
    }
}
