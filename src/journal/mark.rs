//! A file that says whether everything that was appended is still there.
//!
//! While a log is open it holds the id of the machine's boot, so that after a kill the kernel is
//! known to have kept what it was given, and after a power cut it is known that it may not have.
//! Removing it needs no space, which is how a full disk is remembered over a kill.
use super::Error;
use std::{
    fs,
    io::{self, Write},
    path::PathBuf,
};

const CLOSED: &str = "closed";

/// Where the log notes that something is missing in it. Clones name the same file.
#[derive(Clone, Debug)]
pub struct Mark {
    path: PathBuf,
    boot: String,
}

impl Mark {
    pub(super) fn new(path: PathBuf) -> Self {
        // Where there is no such file, a crash of the machine cannot be told from a kill.
        let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
        Self { path, boot: format!("open {}", boot.trim()) }
    }

    /// Whether the last life left everything behind that it appended.
    pub(super) fn is_whole(&self) -> bool {
        fs::read_to_string(&self.path).is_ok_and(|text| text == CLOSED || text == self.boot)
    }

    /// From now on everything that is appended is there.
    pub(super) fn open(&self) -> Result<(), Error> {
        self.write(&self.boot)
    }

    /// Everything is safe on the disk and nothing more comes.
    pub(super) fn close(&self) -> Result<(), Error> {
        self.write(CLOSED)
    }

    /// Something is missing from now on: as [`Log::lost`](super::Log::lost).
    ///
    /// # Errors
    /// When even that cannot be noted.
    pub fn remove(&self) -> Result<(), Error> {
        match fs::remove_file(&self.path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(Error::io(&self.path, "removed")(e)),
            _ => Ok(()),
        }
    }

    /// In one step: a kill must not leave a mark that is empty.
    fn write(&self, text: &str) -> Result<(), Error> {
        let new = self.path.with_extension("new");
        let written = fs::File::create(&new).and_then(|mut file| {
            file.write_all(text.as_bytes())?;
            file.sync_all()
        });
        written.map_err(Error::io(&new, "written"))?;
        fs::rename(&new, &self.path).map_err(Error::io(&self.path, "replaced"))
    }
}
