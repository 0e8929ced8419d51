//! Files that commands read.
use anyhow::{Context, anyhow};
use std::{fs::File, io::Read, path::Path};

/// Reads a text of at most `bytes_max`.
///
/// # Errors
/// If it cannot be read, is larger, or is no UTF-8.
pub(super) fn read(file: &Path, bytes_max: u64) -> anyhow::Result<String> {
    let cannot = || format!("cannot read {}", file.display());
    let mut text = String::new();
    // A byte more than the limit, so that a larger file is noticed, whatever it is.
    let opened = File::open(file).with_context(cannot)?;
    opened.take(bytes_max + 1).read_to_string(&mut text).with_context(cannot)?;
    if u64::try_from(text.len()).is_ok_and(|bytes| bytes > bytes_max) {
        return Err(anyhow!("{} is over {} MiB", file.display(), bytes_max >> 20));
    }
    Ok(text)
}
