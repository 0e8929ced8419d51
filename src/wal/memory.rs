//! What this machine keeps about the WAL outside the database: it shows when the database was restored.
//!
//! A database that is put back from an older copy takes its stored position back with it, so nothing inside it
//! tells. Outside are the positions that this process handed over and stored, and a small file with the last stored
//! one. The file is written after the database stored the same position: it is never ahead of a database that did
//! not go back.
use crate::id::Lsn;
use parking_lot::Mutex;
use std::{
    fs, io,
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::PathBuf,
};

/// Which log it is: the cluster, and the timeline that it wrote last.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Log {
    pub(super) system: String,
    pub(super) timeline: u32,
}

/// A log, and how far it was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Known {
    pub(super) log: Log,
    /// The highest position that the database stored.
    pub(super) stored: Lsn,
}

/// The last known log of one slot; empty on the first start.
#[derive(Debug, Default)]
pub(super) struct Memory {
    known: Mutex<Option<Known>>,
    file: Option<PathBuf>,
}

impl Memory {
    /// Reads the file of an earlier process. A file that cannot be read is ignored.
    pub(super) fn open(file: Option<PathBuf>) -> Self {
        let text = file.as_ref().and_then(|file| fs::read_to_string(file).ok());
        Self { known: Mutex::new(text.as_deref().and_then(parse)), file }
    }

    pub(super) fn known(&self) -> Option<Known> {
        self.known.lock().clone()
    }

    /// The stream begins on this log; `anew` when earlier positions mean nothing there.
    pub(super) fn begin(&self, log: Log, anew: bool) {
        let mut known = self.known.lock();
        let stored = known.as_ref().filter(|_| !anew).map_or(Lsn(0), |known| known.stored);
        *known = Some(Known { log, stored });
    }

    /// The database stored this position.
    ///
    /// # Errors
    /// When the file cannot be written; this process remembers it all the same.
    pub(super) fn stored(&self, position: Lsn) -> io::Result<()> {
        let mut known = self.known.lock();
        let Some(known) = known.as_mut() else { return Ok(()) };
        known.stored = position;
        let Some(file) = &self.file else { return Ok(()) };
        let Known { log: Log { system, timeline }, stored } = known;
        if let Some(folder) = file.parent() {
            fs::DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
        }
        // Whole or not at all: half a position would be a wrong one.
        let draft = file.with_extension("new");
        let mut options = fs::OpenOptions::new();
        let mut open = options.write(true).create(true).truncate(true).mode(0o600).open(&draft)?;
        io::Write::write_all(&mut open, format!("{system} {timeline} {stored}\n").as_bytes())?;
        fs::rename(&draft, file)
    }
}

fn parse(text: &str) -> Option<Known> {
    let mut words = text.split_ascii_whitespace();
    let (system, timeline, stored) = (words.next()?, words.next()?, words.next()?);
    let log = Log { system: system.to_owned(), timeline: timeline.parse().ok()? };
    words.next().is_none().then_some(Known { log, stored: stored.parse().ok()? })
}

/// Where the WAL left `timeline`, by the history of its present timeline; `None` if it was never on it.
pub(super) fn left_at(history: &str, timeline: u32) -> Option<Lsn> {
    let line = |line: &str| {
        let mut words = line.split_ascii_whitespace();
        let of: u32 = words.next()?.parse().ok()?;
        Some((of, words.next()?.parse().ok()?))
    };
    history.lines().filter_map(line).find(|(of, _)| *of == timeline).map(|(_, at)| at)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stored_position_is_known_to_the_next_life_and_rubbish_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("wal").join("slot.position");
        let log = Log { system: "7".into(), timeline: 3 };
        let memory = Memory::open(Some(file.clone()));
        memory.begin(log.clone(), false);
        memory.stored(Lsn(0x10)).unwrap();
        assert_eq!(Memory::open(Some(file.clone())).known(), Some(Known { log, stored: Lsn(0x10) }));
        for rubbish in ["", "7 3", "7 x 0/10", "7 3 0/10 more"] {
            fs::write(&file, rubbish).unwrap();
            assert_eq!(Memory::open(Some(file.clone())).known(), None, "{rubbish}");
        }
    }

    #[test]
    fn timeline_history_gives_the_switch_position() {
        let history = "1\t0/3000148\tno recovery target specified\n\n2\t0/50000A0\tbefore 2026-01-01\n";
        assert_eq!(left_at(history, 2), Some(Lsn(0x0500_00a0)));
        assert_eq!((left_at(history, 3), left_at("", 1)), (None, None));
    }
}
