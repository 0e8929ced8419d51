//! A folder that may belong to another user, used through an open descriptor.
use super::{Error, FileType, Mode, OFlags, is_link, is_socket, me};
use rustix::fs::{AtFlags, fchown, fstat, openat, renameat, unlinkat};
use rustix::process::{Gid, Uid};
use std::{
    ffi::OsString,
    fs::File,
    io::{self, Read, Write},
    os::unix::{ffi::OsStringExt, fs::DirBuilderExt},
    path::{Path, PathBuf},
};

/// An open folder. Every operation uses its descriptor, so replacing the folder or a file in it by a link has
/// no effect.
#[derive(Debug)]
pub struct Folder {
    file: File,
    path: PathBuf,
}

impl Folder {
    /// Opens a folder of user `owner`; does not follow a link.
    ///
    /// # Errors
    /// [`Error::Untrusted`] for a link, anything else that is not a folder, and a folder of another user;
    /// [`Error::Io`] with kind `NotFound` if it does not exist.
    pub fn open(path: &Path, owner: u32) -> Result<Self, Error> {
        let folder = Self::open_any(path)?;
        let found = folder.owner()?;
        if found != owner {
            let reason = format!("belongs to user {found}, and must belong to user {owner}");
            return Err(Error::untrusted(path, reason, "check who created it, and move it away"));
        }
        Ok(folder)
    }

    /// Creates a folder with mode 0700 and gives it to `owner` (user and group).
    ///
    /// # Errors
    /// [`Error::Io`], with kind `AlreadyExists` if the name exists.
    pub fn make(path: &Path, owner: (u32, u32)) -> Result<Self, Error> {
        let made = std::fs::DirBuilder::new().mode(0o700).create(path);
        made.map_err(Error::io("create", path))?;
        // A user who may rename in the parent could have replaced the new folder by another one, which is not
        // ours.
        let folder = Self::open(path, me())?;
        folder.give(&folder.file, owner)?;
        Ok(folder)
    }

    fn open_any(path: &Path) -> Result<Self, Error> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let opened = rustix::fs::open(path, flags, Mode::empty()).map_err(io::Error::from);
        let file = File::from(opened.map_err(|e| match e.kind() {
            io::ErrorKind::NotADirectory => {
                Error::untrusted(path, "is not a folder, or a link to one", "check who created it")
            }
            _ if is_link(&e) => Error::untrusted(path, "is a symbolic link", "check who created it"),
            _ => Error::io("open", path)(e),
        })?);
        Ok(Self { file, path: path.to_owned() })
    }

    fn owner(&self) -> Result<u32, Error> {
        let found = fstat(&self.file).map_err(|e| Error::io("read", &self.path)(e.into()))?;
        Ok(found.st_uid)
    }

    /// Reads a regular file, at most `bytes_max` bytes; `None` if it does not exist. Bytes that are not UTF-8
    /// are replaced.
    ///
    /// # Errors
    /// [`Error::Untrusted`] for a link and for anything else that is not a regular file.
    pub fn read(&self, name: &str, bytes_max: u64) -> Result<Option<String>, Error> {
        let path = self.path.join(name);
        // Non-blocking: opening a FIFO would otherwise wait for a writer.
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let opened = openat(&self.file, name, flags, Mode::empty()).map_err(io::Error::from);
        let file = match opened {
            Ok(file) => File::from(file),
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(e) if is_link(&e) => {
                return Err(Error::untrusted(&path, "is a symbolic link", "remove it"));
            }
            Err(e) if is_socket(&e) => {
                return Err(Error::untrusted(&path, "is not a regular file", "remove it"));
            }
            Err(e) => return Err(Error::io("read", &path)(e)),
        };
        let kind = fstat(&file).map_err(|e| Error::io("read", &path)(e.into()))?.st_mode;
        if FileType::from_raw_mode(kind) != FileType::RegularFile {
            return Err(Error::untrusted(&path, "is not a regular file", "remove it"));
        }
        let mut bytes = Vec::new();
        file.take(bytes_max).read_to_end(&mut bytes).map_err(Error::io("read", &path))?;
        Ok(Some(String::from_utf8_lossy(&bytes).into_owned()))
    }

    /// Writes a file with mode 0600 and owner `owner` (user and group), atomically. An existing file is
    /// replaced, not written to.
    ///
    /// # Errors
    /// [`Error::Io`]; the old file is kept then.
    pub fn write(&self, name: &str, content: &[u8], owner: (u32, u32)) -> Result<(), Error> {
        let (path, new) = (self.path.join(name), format!("{name}.new"));
        let failed = || Error::io("write", &path);
        match unlinkat(&self.file, new.as_str(), AtFlags::empty()) {
            Ok(()) | Err(rustix::io::Errno::NOENT) => {}
            Err(e) => return Err(failed()(e.into())),
        }
        // With O_EXCL the file is certainly the one created here: no link, no second name, no other owner.
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let made = openat(&self.file, new.as_str(), flags, Mode::RUSR | Mode::WUSR);
        let mut file = File::from(made.map_err(|e| failed()(e.into()))?);
        self.give(&file, owner)?;
        file.write_all(content).and_then(|()| file.sync_all()).map_err(failed())?;
        renameat(&self.file, new.as_str(), &self.file, name).map_err(|e| failed()(e.into()))?;
        self.file.sync_all().map_err(failed())
    }

    /// Removes a file or a link; a missing one is no error.
    ///
    /// # Errors
    /// [`Error::Io`] if it remains.
    pub fn remove(&self, name: &str) -> Result<(), Error> {
        match unlinkat(&self.file, name, AtFlags::empty()) {
            Ok(()) | Err(rustix::io::Errno::NOENT) => Ok(()),
            Err(e) => Err(Error::io("remove", &self.path.join(name))(e.into())),
        }
    }

    /// Removes every file and link in the folder, but no folder.
    ///
    /// # Errors
    /// [`Error::Io`] if the folder cannot be listed, or an entry remains.
    pub fn clear(&self) -> Result<(), Error> {
        let failed = |e: rustix::io::Errno| Error::io("empty", &self.path)(e.into());
        for entry in rustix::fs::Dir::read_from(&self.file).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            let name = OsString::from_vec(entry.file_name().to_bytes().to_vec());
            if name == "." || name == ".." || entry.file_type() == FileType::Directory {
                continue;
            }
            unlinkat(&self.file, &name, AtFlags::empty()).map_err(failed)?;
        }
        Ok(())
    }

    /// Changes the owner of a file or folder that this process has just created.
    fn give(&self, made: &File, (uid, gid): (u32, u32)) -> Result<(), Error> {
        if uid == me() {
            return Ok(());
        }
        fchown(made, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)))
            .map_err(|e| Error::io("chown", &self.path)(e.into()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{
        fs,
        os::unix::fs::{MetadataExt, symlink},
    };

    /// A folder of another user if the test runs as root, else one of our own.
    fn foreign() -> (tempfile::TempDir, PathBuf, (u32, u32)) {
        let parent = tempfile::tempdir().unwrap();
        let owner = if me() == 0 { (4242, 4242) } else { (me(), rustix::process::getegid().as_raw()) };
        let path = parent.path().join("theirs");
        Folder::make(&path, owner).unwrap();
        (parent, path, owner)
    }

    #[test]
    fn planted_link_is_neither_written_through_nor_given_away() {
        let (parent, path, owner) = foreign();
        let victim = parent.path().join("victim");
        fs::write(&victim, "untouched").unwrap();
        let before = fs::metadata(&victim).unwrap();
        for name in ["postgresql.conf", "postgresql.conf.new"] {
            symlink(&victim, path.join(name)).unwrap();
        }
        let folder = Folder::open(&path, owner.0).unwrap();
        assert!(folder.read("postgresql.conf", 100).unwrap_err().to_string().contains("symbolic link"));
        folder.write("postgresql.conf", b"ours", owner).unwrap();
        assert_eq!(folder.read("postgresql.conf", 100).unwrap().as_deref(), Some("ours"));
        let (after, written) =
            (fs::metadata(&victim).unwrap(), fs::symlink_metadata(path.join("postgresql.conf")).unwrap());
        assert_eq!(fs::read_to_string(&victim).unwrap(), "untouched");
        assert_eq!((after.uid(), after.mode()), (before.uid(), before.mode()));
        assert_eq!((written.uid(), written.gid(), written.mode() & 0o7777), (owner.0, owner.1, 0o600));
    }

    #[test]
    fn hard_link_under_the_new_name_keeps_its_owner_and_content() {
        let (parent, path, owner) = foreign();
        let victim = parent.path().join("victim");
        fs::write(&victim, "untouched").unwrap();
        fs::hard_link(&victim, path.join("postgresql.conf.new")).unwrap();
        Folder::open(&path, owner.0).unwrap().write("postgresql.conf", b"ours", owner).unwrap();
        assert_eq!(fs::read_to_string(&victim).unwrap(), "untouched");
        assert_eq!(fs::metadata(&victim).unwrap().uid(), me());
    }

    #[test]
    fn folder_that_is_a_link_or_of_another_user_is_refused() {
        let (parent, path, owner) = foreign();
        let link = parent.path().join("link");
        symlink(&path, &link).unwrap();
        let error = Folder::open(&link, owner.0).unwrap_err();
        assert!(matches!(error, Error::Untrusted { .. }), "{error}");
        let error = Folder::open(&path, owner.0 + 1).unwrap_err();
        assert!(error.to_string().contains(&format!("belongs to user {}", owner.0)), "{error}");
    }

    #[test]
    fn clearing_a_folder_removes_links_and_not_their_targets() {
        let (parent, path, owner) = foreign();
        let victim = parent.path().join("victim");
        fs::create_dir(&victim).unwrap();
        fs::write(victim.join("kept"), "").unwrap();
        symlink(&victim, path.join("link")).unwrap();
        fs::write(path.join(".s.PGSQL.5432.lock"), "").unwrap();
        Folder::open(&path, owner.0).unwrap().clear().unwrap();
        assert_eq!(fs::read_dir(&path).unwrap().count(), 0);
        assert!(victim.join("kept").exists());
    }

    #[test]
    fn fifo_and_socket_are_refused_without_blocking() {
        let (_parent, path, owner) = foreign();
        assert!(
            std::process::Command::new("mkfifo").arg(path.join("PG_VERSION")).status().unwrap().success()
        );
        let folder = Folder::open(&path, owner.0).unwrap();
        let _socket = std::os::unix::net::UnixListener::bind(path.join("postmaster.pid")).unwrap();
        for name in ["PG_VERSION", "postmaster.pid"] {
            assert!(
                folder.read(name, 100).unwrap_err().to_string().contains("is not a regular file"),
                "{name}"
            );
        }
        assert_eq!(folder.read("nothing", 100).unwrap(), None);
    }
}
