//! Small values by key in one append-only file. The last value written for a key is the current one.
use super::{
    Error,
    record::{self, Parsed},
};
use bytes::BytesMut;
use std::{
    fs::{self, File, OpenOptions},
    os::unix::fs::{FileExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

/// Length of a key.
pub const KEY_BYTES: usize = 16;
/// The key of a value.
pub type Key = [u8; KEY_BYTES];

/// The open file. It grows with every write until [`KeyValueLog::rewrite`] compacts it.
#[derive(Debug)]
pub struct KeyValueLog {
    path: PathBuf,
    file: File,
    bytes: u64,
    /// A failed write may have left records behind `bytes`, which could not be truncated.
    has_remnant: bool,
}

impl KeyValueLog {
    /// Opens or creates the file and passes every value to `each`, oldest first. An empty value deletes its key.
    /// The first damaged record and everything after it are dropped, so a value may be older than the last written.
    ///
    /// # Errors
    /// [`Error::Io`] if the file cannot be read or written.
    pub fn open(path: &Path, mut each: impl FnMut(Key, &[u8])) -> Result<Self, Error> {
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false).mode(0o600);
        // Mode 0600: the values derive from user data.
        let file = options.open(path).map_err(Error::io(path, "opened"))?;
        let bytes = fs::read(path).map_err(Error::io(path, "read"))?;
        let mut at = 0;
        while let Some(Parsed::Record { payload, size, .. }) =
            record::first(bytes.get(at..).unwrap_or_default())
        {
            let Some((key, value)) = payload.split_first_chunk() else { break };
            each(*key, value);
            at += size;
        }
        file.set_len(at as u64).map_err(Error::io(path, "truncated"))?;
        Ok(Self { path: path.to_owned(), file, bytes: at as u64, has_remnant: false })
    }

    /// Appends values with one write.
    ///
    /// # Errors
    /// [`Error::Io`] if the write fails. Nothing is appended then, unless the process ends before the disk takes a
    /// truncation again.
    pub fn append<'a>(&mut self, values: impl Iterator<Item = (Key, &'a [u8])>) -> Result<(), Error> {
        let bytes = encode(values);
        if bytes.is_empty() {
            return Ok(());
        }
        if self.has_remnant {
            // Before the write: a shorter one would end at the beginning of an old record, which the next `open` would
            // read as the current value of its key.
            self.file.set_len(self.bytes).map_err(Error::io(&self.path, "truncated"))?;
            self.has_remnant = false;
        }
        if let Err(e) = self.file.write_all_at(&bytes, self.bytes) {
            self.has_remnant = self.file.set_len(self.bytes).is_err();
            return Err(Error::io(&self.path, "written")(e));
        }
        self.bytes += bytes.len() as u64;
        Ok(())
    }

    /// Atomically replaces the file by one that holds only these values.
    ///
    /// # Errors
    /// [`Error::Io`] if the write fails. The old file stays then.
    pub fn rewrite<'a>(&mut self, values: impl Iterator<Item = (Key, &'a [u8])>) -> Result<(), Error> {
        let new = self.path.with_extension("new");
        let bytes = encode(values);
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(true).mode(0o600);
        let written = options.open(&new).and_then(|file| {
            file.write_all_at(&bytes, 0)?;
            // Synced before the rename: after a power loss the name must not refer to an empty file.
            file.sync_all()?;
            Ok(file)
        });
        let file = written.map_err(Error::io(&new, "written"))?;
        fs::rename(&new, &self.path).map_err(Error::io(&self.path, "replaced"))?;
        (self.file, self.bytes, self.has_remnant) = (file, bytes.len() as u64, false);
        Ok(())
    }

    /// The size of the file in bytes.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Syncs the file, so that its values survive a crash of the machine.
    ///
    /// # Errors
    /// [`Error::Io`] if the sync fails.
    pub fn sync(&self) -> Result<(), Error> {
        self.file.sync_data().map_err(Error::io(&self.path, "made safe"))
    }
}

fn encode<'a>(values: impl Iterator<Item = (Key, &'a [u8])>) -> BytesMut {
    let mut bytes = BytesMut::new();
    for (key, value) in values {
        record::put(&mut bytes, 0, |out| {
            out.extend_from_slice(&key);
            out.extend_from_slice(value);
        });
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    fn open(path: &Path) -> (KeyValueLog, BTreeMap<Key, Vec<u8>>) {
        let mut values = BTreeMap::new();
        let table = KeyValueLog::open(path, |key, value| {
            values.insert(key, value.to_vec());
        });
        (table.unwrap(), values)
    }

    #[test]
    fn remnant_of_a_failed_write_is_not_read_after_the_next_write() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("table");
        let (mut table, _) = open(&path);
        let [one, two, three] = [[1; KEY_BYTES], [2; KEY_BYTES], [3; KEY_BYTES]];
        table.append([(one, &b"a"[..])].into_iter()).unwrap();
        // The disk takes two records and then fails: neither the write nor the truncation succeeds.
        let remnant = encode([(one, &b"x"[..]), (two, &b"y"[..])].into_iter());
        table.file.write_all_at(&remnant, table.bytes).unwrap();
        let writable = std::mem::replace(&mut table.file, File::open(&path).unwrap());
        let refused = || [(one, &b"x"[..]), (two, &b"y"[..])].into_iter();
        table.append(refused()).unwrap_err();
        table.append(refused()).unwrap_err();
        table.file = writable;
        table.append([(three, &b"b"[..])].into_iter()).unwrap();
        drop(table);
        let expected = BTreeMap::from([(one, b"a".to_vec()), (three, b"b".to_vec())]);
        assert_eq!(open(&path).1, expected);
    }

    #[test]
    fn last_value_survives_a_cut_and_a_rewrite() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("table");
        let (mut table, _) = open(&path);
        let [one, two] = [[1; KEY_BYTES], [2; KEY_BYTES]];
        table.append([(one, &b"a"[..]), (two, &b"b"[..])].into_iter()).unwrap();
        table.append([(one, &b"c"[..])].into_iter()).unwrap();
        let expected = BTreeMap::from([(one, b"c".to_vec()), (two, b"b".to_vec())]);
        drop(table);
        // A kill in the middle of the next write.
        let mut bytes = fs::read(&path).unwrap();
        bytes.extend_from_slice(&bytes.clone()[..20]);
        fs::write(&path, bytes).unwrap();
        let (mut table, values) = open(&path);
        assert_eq!(values, expected);
        let before = table.bytes();
        table.rewrite(values.iter().map(|(key, value)| (*key, &value[..]))).unwrap();
        assert!(table.bytes() < before);
        table.append([(two, &b"d"[..])].into_iter()).unwrap();
        drop(table);
        assert_eq!(open(&path).1, BTreeMap::from([(one, b"c".to_vec()), (two, b"d".to_vec())]));
    }
}
