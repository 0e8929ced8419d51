//! Why a file of the journal cannot be used.
use std::{
    io,
    path::{Path, PathBuf},
};

/// What went wrong with which file.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The system refused: a full disk, a missing right, a lost device.
    #[error("{path} cannot be {doing}: {source}")]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What was tried, like `written`.
        doing: &'static str,
        /// The system's words.
        source: io::Error,
    },
    /// A record is not what was written there.
    #[error("{path} is damaged at byte {offset}")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// Where in it.
        offset: u64,
    },
    /// One record is larger than a segment can say.
    #[error("a record of {size} bytes is too large")]
    TooLarge {
        /// Of the record with its header.
        size: usize,
    },
}

impl Error {
    pub(super) fn io(path: &Path, doing: &'static str) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io { path, doing, source }
    }
}
