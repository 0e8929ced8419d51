//! One file of a log: a header, then records.
use super::{
    Error,
    record::{self, Found},
};
use bytes::{Bytes, BytesMut};
use std::{
    fs::{self, File, OpenOptions},
    os::unix::fs::{FileExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::Arc,
};

/// What a segment begins with; then the number of the last record before it.
const MAGIC: &[u8; 8] = b"CNVKLOG1";
pub(super) const HEADER_BYTES: u64 = 16;

/// A segment whose records are known to be good.
#[derive(Debug)]
pub(super) struct Segment {
    pub(super) ordinal: u32,
    path: PathBuf,
    file: Arc<File>,
    /// Up to the end of the last good record.
    pub(super) bytes: u64,
    pub(super) first: Option<u64>,
    pub(super) last: Option<u64>,
    /// The last record before this segment; zero when it is the first of its log.
    pub(super) before: u64,
}

/// A segment that was read, and whether all of it could be.
pub(super) struct Read {
    pub(super) segment: Segment,
    pub(super) whole: bool,
}

pub(super) fn path_of(dir: &Path, ordinal: u32) -> PathBuf {
    dir.join(format!("{ordinal:010}.log"))
}

/// The number in a segment's name.
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

    /// Reads every good record of a file. What is cut off at the end is no damage when it is the `latest`
    /// segment: it was being written. A file without a header is [`None`].
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
                Some(Found::Record { number, payload, size }) if number > last.unwrap_or(before) => {
                    each(number, at as u64, payload);
                    first.get_or_insert(number);
                    last = Some(number);
                    at += size;
                }
                Some(Found::Cut) if latest => break,
                Some(_) => {
                    whole = false;
                    break;
                }
            }
        }
        let segment = Self { ordinal, path, file: Arc::new(file), bytes: at as u64, first, last, before };
        Ok(Some(Read { segment, whole }))
    }

    /// Removes what is behind the last good record.
    pub(super) fn truncate(&self) -> Result<(), Error> {
        self.file.set_len(self.bytes).map_err(Error::io(&self.path, "truncated"))
    }

    /// Writes `bytes`, the records `first` to `last`, behind the others, wholly or not at all.
    pub(super) fn append(&mut self, bytes: &[u8], first: u64, last: u64) -> Result<(), Error> {
        if let Err(e) = self.file.write_all_at(bytes, self.bytes) {
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

    pub(super) fn reader(&self) -> Reader {
        Reader { path: self.path.as_path().into(), file: self.file.clone() }
    }
}

/// Reads records of one segment, even after it was removed. Clones read the same file.
#[derive(Clone, Debug)]
pub struct Reader {
    path: Arc<Path>,
    file: Arc<File>,
}

impl Reader {
    /// The number and payload of the record at a place; `size` is the whole record's. Blocks.
    ///
    /// # Errors
    /// [`Error::Io`], and [`Error::Damaged`] when it is not what was written.
    pub fn read(&self, offset: u32, size: u32) -> Result<(u64, Bytes), Error> {
        let mut bytes = BytesMut::zeroed(size as usize);
        self.file.read_exact_at(&mut bytes, offset.into()).map_err(Error::io(&self.path, "read"))?;
        let bytes = bytes.freeze();
        match record::first(&bytes) {
            Some(Found::Record { number, payload, .. }) => Ok((number, bytes.slice_ref(payload))),
            _ => Err(Error::Damaged { path: self.path.to_path_buf(), offset: offset.into() }),
        }
    }

    /// Makes the segment safe from a crash of the machine. Blocks.
    ///
    /// # Errors
    /// When the disk does not take it.
    pub fn sync(&self) -> Result<(), Error> {
        self.file.sync_data().map_err(Error::io(&self.path, "made safe"))
    }
}
