//! Small values by key, in one file: the last one written for a key holds.
use super::{
    Error,
    record::{self, Found},
};
use bytes::BytesMut;
use std::{
    fs::{self, File, OpenOptions},
    os::unix::fs::{FileExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

/// Length of a key.
pub const KEY_BYTES: usize = 16;
/// What a value is kept under.
pub type Key = [u8; KEY_BYTES];

/// The file. It grows with every write until [`Table::rewrite`] makes it as small as what it holds.
#[derive(Debug)]
pub struct Table {
    path: PathBuf,
    file: File,
    bytes: u64,
}

impl Table {
    /// Opens or makes the file and shows everything in it, oldest first; an empty value takes a key away.
    /// What is damaged at its end, and behind it, is dropped: a value may be older than the last one written.
    ///
    /// # Errors
    /// When the file cannot be read or written.
    pub fn open(path: &Path, mut each: impl FnMut(Key, &[u8])) -> Result<Self, Error> {
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false).mode(0o600);
        let file = options.open(path).map_err(Error::io(path, "opened"))?;
        let bytes = fs::read(path).map_err(Error::io(path, "read"))?;
        let mut at = 0;
        while let Some(Found::Record { payload, size, .. }) =
            record::first(bytes.get(at..).unwrap_or_default())
        {
            let Some((key, value)) = payload.split_first_chunk() else { break };
            each(*key, value);
            at += size;
        }
        file.set_len(at as u64).map_err(Error::io(path, "truncated"))?;
        Ok(Self { path: path.to_owned(), file, bytes: at as u64 })
    }

    /// Appends values in one write.
    ///
    /// # Errors
    /// When the disk does not take it; nothing is written then.
    pub fn append<'a>(&mut self, values: impl Iterator<Item = (Key, &'a [u8])>) -> Result<(), Error> {
        let bytes = encode(values);
        if bytes.is_empty() {
            return Ok(());
        }
        if let Err(e) = self.file.write_all_at(&bytes, self.bytes) {
            let _ = self.file.set_len(self.bytes);
            return Err(Error::io(&self.path, "written")(e));
        }
        self.bytes += bytes.len() as u64;
        Ok(())
    }

    /// Replaces the file by one that holds just these values, in one step.
    ///
    /// # Errors
    /// When the disk does not take it; the old file stays.
    pub fn rewrite<'a>(&mut self, values: impl Iterator<Item = (Key, &'a [u8])>) -> Result<(), Error> {
        let new = self.path.with_extension("new");
        let bytes = encode(values);
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(true).mode(0o600);
        let written = options.open(&new).and_then(|file| {
            file.write_all_at(&bytes, 0)?;
            file.sync_all()?;
            Ok(file)
        });
        let file = written.map_err(Error::io(&new, "written"))?;
        fs::rename(&new, &self.path).map_err(Error::io(&self.path, "replaced"))?;
        (self.file, self.bytes) = (file, bytes.len() as u64);
        Ok(())
    }

    /// How large the file is.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Makes what was written safe from a crash of the machine.
    ///
    /// # Errors
    /// When the disk does not take it.
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

    fn open(path: &Path) -> (Table, BTreeMap<Key, Vec<u8>>) {
        let mut values = BTreeMap::new();
        let table = Table::open(path, |key, value| {
            values.insert(key, value.to_vec());
        });
        (table.unwrap(), values)
    }

    #[test]
    fn the_last_value_holds_over_a_cut_and_a_rewrite() {
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
