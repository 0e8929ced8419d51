//! A file that records whether a log is complete.
//!
//! While a log is open the file holds the boot id of the machine. After a kill of the process the id is
//! unchanged, so the kernel still has every write. After a power loss it differs, and writes may be lost.
//! A loss is recorded by deleting the file, which needs no space and so works on a full disk.
use super::Error;
use std::{
    fs,
    io::{self, Write},
    os::unix::fs::OpenOptionsExt,
    path::PathBuf,
};

const CLOSED: &str = "closed";

/// The marker of one log. Clones name the same file.
#[derive(Clone, Debug)]
pub struct ShutdownMarker {
    path: PathBuf,
    boot: String,
}

impl ShutdownMarker {
    pub(super) fn new(path: PathBuf) -> Self {
        // Without this file the id is empty on every boot: a power loss cannot be distinguished from a kill.
        let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
        Self { path, boot: format!("open {}", boot.trim()) }
    }

    /// Whether the last process left the log complete.
    pub(super) fn is_whole(&self) -> bool {
        fs::read_to_string(&self.path).is_ok_and(|text| text == CLOSED || text == self.boot)
    }

    /// Marks the log as open and complete so far.
    pub(super) fn open(&self) -> Result<(), Error> {
        self.write(&self.boot)
    }

    /// Marks the log as closed and synced.
    pub(super) fn close(&self) -> Result<(), Error> {
        self.write(CLOSED)
    }

    /// Records a loss, like [`Log::mark_incomplete`](super::Log::mark_incomplete).
    ///
    /// # Errors
    /// [`Error::Io`] if the file cannot be deleted.
    pub fn remove(&self) -> Result<(), Error> {
        match fs::remove_file(&self.path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(Error::io(&self.path, "removed")(e)),
            _ => Ok(()),
        }
    }

    /// Replaces the file atomically: a kill must not leave an empty marker.
    fn write(&self, text: &str) -> Result<(), Error> {
        let new = self.path.with_extension("new");
        let mut options = fs::OpenOptions::new();
        options.write(true).create(true).truncate(true).mode(0o600);
        let written = options.open(&new).and_then(|mut file| {
            file.write_all(text.as_bytes())?;
            file.sync_all()
        });
        written.map_err(Error::io(&new, "written"))?;
        fs::rename(&new, &self.path).map_err(Error::io(&self.path, "replaced"))
    }
}
