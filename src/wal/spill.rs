//! Where transactions that are too big for memory wait for their commit: one file each.
//!
//! A file is removed with its transaction, and what a killed daemon left
//! behind when the next stream begins. Files hold row values and can be read
//! by their owner only. A full disk is [`Error::Spill`]: the stream begins
//! again later, nothing is lost.
use super::{error::Error, pgoutput::Malformed};
use bytes::{Buf, BufMut, Bytes, BytesMut};
use prometheus_client::metrics::counter::Counter;
use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read, Seek, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

/// How much is read or written at once.
const CHUNK_BYTES: usize = 256 << 10;

/// A message as it waits: the (sub)transaction it belongs to, its tag, its body.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) xid: u32,
    pub(super) tag: u8,
    pub(super) body: Bytes,
}

/// An entry in a file: xid, tag and length come before the body.
const HEADER_BYTES: usize = 9;

/// The folder, and whose files in it are ours.
#[derive(Clone, Debug)]
pub(super) struct Area {
    dir: PathBuf,
    slot: String,
    written: Counter,
}

impl Area {
    pub(super) fn new(dir: PathBuf, slot: &str, written: Counter) -> Self {
        Self { dir, slot: slot.to_owned(), written }
    }

    /// Removes what an earlier life left behind; a folder that is not there has nothing.
    pub(super) fn clean(&self) -> Result<(), Error> {
        let files = match fs::read_dir(&self.dir) {
            Ok(files) => files,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(e) => return Err(failed(&self.dir, e)),
        };
        for file in files {
            let file = file.map_err(|e| failed(&self.dir, e))?;
            let name = file.file_name();
            let rest = name.to_str().and_then(|name| name.strip_prefix(&self.slot));
            if rest.is_some_and(|rest| rest.starts_with('-') && rest.ends_with(".spill")) {
                fs::remove_file(file.path()).map_err(|e| failed(&file.path(), e))?;
            }
        }
        Ok(())
    }

    fn create(&self, xid: u32) -> Result<Spilled, Error> {
        let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(&self.dir);
        made.map_err(|e| failed(&self.dir, e))?;
        let path = self.dir.join(format!("{}-{xid}.spill", self.slot));
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(true).mode(0o600);
        let file = options.open(&path).map_err(|e| failed(&path, e))?;
        Ok(Spilled { file, path })
    }
}

fn failed(path: &Path, source: io::Error) -> Error {
    Error::Spill { path: path.to_owned(), source }
}

/// One transaction's file; removed when dropped.
#[derive(Debug)]
struct Spilled {
    file: File,
    path: PathBuf,
}

impl Drop for Spilled {
    fn drop(&mut self) {
        if let Err(e) = fs::remove_file(&self.path) {
            tracing::warn!(path = %self.path.display(), error = %e, "a spill file could not be removed");
        }
    }
}

/// The messages of one transaction in order: the older ones perhaps in a file, the newer in memory.
#[derive(Debug, Default)]
pub(super) struct Buffered {
    spilled: Option<Spilled>,
    memory: Vec<Entry>,
    memory_bytes: usize,
}

impl Buffered {
    pub(super) fn memory_bytes(&self) -> usize {
        self.memory_bytes
    }

    pub(super) fn push(&mut self, entry: Entry) {
        self.memory_bytes += entry.body.len() + size_of::<Entry>();
        self.memory.push(entry);
    }

    /// Whether it went to disk before and has a chunk more by now.
    pub(super) fn wants_spill(&self) -> bool {
        self.spilled.is_some() && self.memory_bytes >= CHUNK_BYTES
    }

    /// Moves everything from memory to the file.
    pub(super) fn spill(&mut self, area: &Area, xid: u32) -> Result<(), Error> {
        if self.spilled.is_none() {
            self.spilled = Some(area.create(xid)?);
        }
        let Some(Spilled { file, path }) = &mut self.spilled else { return Ok(()) };
        let mut chunk = Vec::with_capacity(CHUNK_BYTES);
        let last = self.memory.len().saturating_sub(1);
        for (at, Entry { xid, tag, body }) in std::mem::take(&mut self.memory).into_iter().enumerate() {
            chunk.put_u32(xid);
            chunk.put_u8(tag);
            // A message of the protocol has a 32 bit length itself.
            chunk.put_u32(u32::try_from(body.len()).unwrap_or(u32::MAX));
            chunk.extend_from_slice(&body);
            if chunk.len() >= CHUNK_BYTES || at == last {
                file.write_all(&chunk).map_err(|e| failed(path, e))?;
                area.written.inc_by(chunk.len() as u64);
                chunk.clear();
            }
        }
        self.memory_bytes = 0;
        Ok(())
    }

    /// Everything again, in order, once.
    pub(super) fn drain(mut self) -> Result<Drain, Error> {
        if let Some(Spilled { file, path }) = &mut self.spilled {
            file.rewind().map_err(|e| failed(path, e))?;
        }
        Ok(Drain { file: self.spilled, read: BytesMut::new(), memory: self.memory.into_iter() })
    }
}

/// Reads a transaction's messages back.
#[derive(Debug)]
pub(super) struct Drain {
    file: Option<Spilled>,
    read: BytesMut,
    memory: std::vec::IntoIter<Entry>,
}

impl Drain {
    pub(super) fn next(&mut self) -> Result<Option<Entry>, Error> {
        while self.file.is_some() {
            if let Some(entry) = self.parse()? {
                return Ok(Some(entry));
            }
            self.fill()?;
        }
        Ok(self.memory.next())
    }

    fn parse(&mut self) -> Result<Option<Entry>, Error> {
        let mut header = self.read.get(..HEADER_BYTES).unwrap_or_default();
        if header.is_empty() {
            return Ok(None);
        }
        let (xid, tag, length) = (header.get_u32(), header.get_u8(), header.get_u32() as usize);
        if self.read.len() < HEADER_BYTES + length {
            return Ok(None);
        }
        self.read.advance(HEADER_BYTES);
        Ok(Some(Entry { xid, tag, body: self.read.split_to(length).freeze() }))
    }

    fn fill(&mut self) -> Result<(), Error> {
        let Some(Spilled { file, path }) = &mut self.file else { return Ok(()) };
        let kept = self.read.len();
        let mut length = self.read.get(5..HEADER_BYTES).unwrap_or_default();
        let missing = if length.is_empty() { 0 } else { HEADER_BYTES + length.get_u32() as usize };
        // A fresh chunk a time: what was cut from the old one is still in use.
        let mut chunk = BytesMut::zeroed(missing.max(kept + CHUNK_BYTES));
        let (head, tail) = chunk.split_at_mut(kept);
        head.copy_from_slice(&self.read);
        let n = file.read(tail).map_err(|e| failed(path, e))?;
        if n == 0 {
            self.file = None;
            return if kept == 0 { Ok(()) } else { Err(Malformed::Empty.into()) };
        }
        chunk.truncate(kept + n);
        self.read = chunk;
        Ok(())
    }
}
