//! Errors of the journal's files.
use std::{
    io,
    path::{Path, PathBuf},
};

/// The failed operation and its file.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The operating system returned an error: a full disk, a missing permission, a lost device.
    #[error("{path} cannot be {doing}: {source}")]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// The failed operation as a participle, like `written`.
        doing: &'static str,
        /// The operating system's error.
        source: io::Error,
    },
    /// A record fails its checksum.
    #[error("{path} is damaged at byte {offset}")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// The byte offset of the record.
        offset: u64,
    },
    /// A record or a batch exceeds the size that the file format can hold.
    #[error("a record of {size} bytes is too large")]
    TooLarge {
        /// Bytes of the record with its header, or of the batch.
        size: usize,
    },
}

impl Error {
    pub(super) fn io(path: &Path, doing: &'static str) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io { path, doing, source }
    }
}
