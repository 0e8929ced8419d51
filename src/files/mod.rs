//! Files and folders that must be the daemon's own.
//!
//! The rules for everything that the daemon writes on its machine. Folders have mode 0700 (0711 for root,
//! whose PostgreSQL runs as another user and must pass through), files 0600. A folder or a secret that
//! belongs to another user, or that others may write to, is refused. In a folder of another user ([`Folder`])
//! no link is followed, and only what the same call created changes its owner. A file named by the settings
//! ([`read_named`]) must be a regular file of limited size that not every user may write to. Blocks for a few
//! system calls; never retries.
mod folder;

pub use folder::Folder;

use rustix::fs::{FileType, Mode, OFlags, StatVfsMountFlags, fstatvfs};
use std::{
    fs::{self, File},
    io::{self, Read, Write},
    os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
};

/// Mode bits that let group or others write.
const OTHERS_WRITE: u32 = 0o022;
/// Mode bit that lets every user write.
const EVERY_USER_WRITES: u32 = 0o002;
/// Mode bits that give group or others any access.
const OTHERS: u32 = 0o077;

/// Why a file or folder is refused.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The operating system refused an operation.
    #[error("cannot {doing} {}", path.display())]
    Io {
        /// A verb, like `create`.
        doing: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// The error of the operating system.
        source: io::Error,
    },
    /// Another user may have written it.
    #[error("{} {reason}: {remedy}", path.display())]
    Untrusted {
        /// The file or folder.
        path: PathBuf,
        /// The reason, like `belongs to user 1000`.
        reason: String,
        /// The remedy for the operator.
        remedy: String,
    },
}

impl Error {
    fn io(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io { doing, path, source }
    }

    fn untrusted(path: &Path, reason: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self::Untrusted { path: path.to_owned(), reason: reason.into(), remedy: remedy.into() }
    }
}

/// The effective user id of the daemon.
#[must_use]
pub fn me() -> u32 {
    rustix::process::geteuid().as_raw()
}

/// Checks that a data folder is ours and not writable by others. A missing one passes.
///
/// # Errors
/// [`Error::Untrusted`] with the owner or the mode, [`Error::Io`] if its metadata is not readable.
pub fn check_own_folder(path: &Path) -> Result<(), Error> {
    let metadata = match fs::metadata(path) {
        Ok(metadata) => metadata,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(Error::io("read", path)(e)),
    };
    if !metadata.is_dir() {
        return Err(Error::untrusted(path, "is not a folder", "use another folder"));
    }
    if metadata.uid() != me() {
        let reason = format!("belongs to user {}, and convoke runs as user {}", metadata.uid(), me());
        return Err(Error::untrusted(path, reason, "run convoke as its owner, or use another folder"));
    }
    let mode = metadata.mode() & 0o7777;
    if mode & OTHERS_WRITE != 0 {
        let reason = format!("can be written to by other users (mode {mode:o})");
        let remedy = format!("chmod go-w {}, or use another folder", path.display());
        return Err(Error::untrusted(path, reason, remedy));
    }
    Ok(())
}

/// Creates a data folder, or checks the existing one like [`check_own_folder`].
///
/// # Errors
/// Errors of [`check_own_folder`], and [`Error::Io`] if it cannot be created.
pub fn own_folder(path: &Path) -> Result<(), Error> {
    // 0711 lets other users pass through, but not list the folder.
    folder_with_mode(path, if me() == 0 { 0o711 } else { 0o700 })
}

/// Creates a folder inside the data folder, which no other user needs to enter, or checks the existing one like
/// [`check_own_folder`].
///
/// # Errors
/// Those of [`own_folder`].
pub fn inner_folder(path: &Path) -> Result<(), Error> {
    folder_with_mode(path, 0o700)
}

fn folder_with_mode(path: &Path, mode: u32) -> Result<(), Error> {
    if let Some(parent) = path.parent().filter(|parent| !parent.as_os_str().is_empty()) {
        fs::create_dir_all(parent).map_err(Error::io("create", path))?;
    }
    match fs::DirBuilder::new().mode(mode).create(path) {
        Ok(()) => Ok(()),
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => check_own_folder(path),
        Err(e) => Err(Error::io("create", path)(e)),
    }
}

/// Reads a secret of the daemon, at most `bytes_max` bytes; `None` if it does not exist. If others may read
/// it, its mode is set to 0600 and a warning is logged.
///
/// # Errors
/// [`Error::Untrusted`] for a link, anything else that is not a regular file, a file of another user, and one
/// that others may write to.
pub fn read_secret(path: &Path, bytes_max: u64) -> Result<Option<String>, Error> {
    let renew = "put the right one in its place, or delete it to have a new one made";
    // Non-blocking, because opening a planted FIFO would block the start.
    let flags = (OFlags::NOFOLLOW | OFlags::NONBLOCK).bits();
    let opened = fs::OpenOptions::new().read(true).custom_flags(flags.cast_signed()).open(path);
    let file = match opened {
        Ok(file) => file,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) if is_link(&e) => return Err(Error::untrusted(path, "is a symbolic link", renew)),
        Err(e) if is_socket(&e) => return Err(Error::untrusted(path, "is not a regular file", renew)),
        Err(e) => return Err(Error::io("read", path)(e)),
    };
    let metadata = file.metadata().map_err(Error::io("read", path))?;
    let mode = metadata.mode() & 0o7777;
    if !metadata.is_file() {
        return Err(Error::untrusted(path, "is not a regular file", renew));
    }
    if metadata.uid() != me() {
        let reason = format!("belongs to user {}, and convoke runs as user {}", metadata.uid(), me());
        return Err(Error::untrusted(path, reason, renew));
    }
    if mode & OTHERS_WRITE != 0 {
        let reason = format!("can be written to by other users (mode {mode:o})");
        return Err(Error::untrusted(path, reason, renew));
    }
    if mode & OTHERS != 0 {
        file.set_permissions(fs::Permissions::from_mode(0o600)).map_err(Error::io("chmod", path))?;
        let path = path.display();
        tracing::warn!(%path, was = format!("{mode:o}"), "secret was readable by other users: mode set to 600");
    }
    let mut text = String::new();
    file.take(bytes_max).read_to_string(&mut text).map_err(Error::io("read", path))?;
    Ok(Some(text))
}

/// Reads a file named by the settings. Links are followed: the operator chose the name.
///
/// # Errors
/// Kind `InvalidInput` for anything but a regular file, such as a FIFO, which would block its reader;
/// `PermissionDenied` without an error of the operating system if every user may write to it; `FileTooLarge` for
/// more than `bytes_max` bytes; else the error of the operating system.
pub fn read_named(path: &Path, bytes_max: u64) -> io::Result<Vec<u8>> {
    // Non-blocking, because opening a FIFO waits for a writer.
    let flags = OFlags::NONBLOCK.bits().cast_signed();
    let not_plain = || io::Error::new(io::ErrorKind::InvalidInput, "it is no plain file");
    let opened = fs::OpenOptions::new().read(true).custom_flags(flags).open(path);
    let file = opened.map_err(|e| if is_socket(&e) { not_plain() } else { e })?;
    if !file.metadata()?.is_file() {
        return Err(not_plain());
    }
    refuse_writable_by_all(&file)?;
    let mut bytes = Vec::new();
    file.take(bytes_max.saturating_add(1)).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > bytes_max {
        let text = format!("it has more than {bytes_max} bytes");
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, text));
    }
    Ok(bytes)
}

/// Checks a folder named by the settings, all files of which are read: not every user may create one there.
///
/// # Errors
/// `PermissionDenied` without an error of the operating system if every user may write to it; else the error of
/// the operating system.
pub fn check_named_folder(path: &Path) -> io::Result<()> {
    refuse_writable_by_all(&File::open(path)?)
}

/// Refuses what every user of the machine may write to: an agent's file names programs that the daemon runs, a key
/// set names the issuers that it trusts. A writable group is the operator's choice.
fn refuse_writable_by_all(file: &File) -> io::Result<()> {
    let mode = file.metadata()?.mode() & 0o7777;
    // The mode has no effect on a file system that is mounted read-only. Container platforms mount settings so, in
    // folders of mode 777.
    let is_writable = || Ok::<_, io::Error>(!fstatvfs(file)?.f_flag.contains(StatVfsMountFlags::RDONLY));
    if mode & EVERY_USER_WRITES != 0 && is_writable()? {
        let text = format!("every user of this machine can write to it (mode {mode:o})");
        return Err(io::Error::new(io::ErrorKind::PermissionDenied, text));
    }
    Ok(())
}

/// Writes a file with mode 0600 atomically. Its folder must be one of our own.
///
/// # Errors
/// [`Error::Io`]; the old file is kept then.
pub fn write_own(path: &Path, content: &[u8]) -> Result<(), Error> {
    let mut new = path.as_os_str().to_owned();
    new.push(".new");
    let new = PathBuf::from(new);
    // A file that a killed process left may be a link or have another mode, so it is never reused.
    let _ = fs::remove_file(&new);
    let opened = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&new);
    let written = opened.and_then(|mut file| {
        file.write_all(content)?;
        file.sync_all()
    });
    written.and_then(|()| fs::rename(&new, path)).map_err(Error::io("write", path))?;
    sync_folder_of(path)
}

/// Syncs the folder of a new file, so that its name survives a power cut.
///
/// # Errors
/// [`Error::Io`] if the folder cannot be synced.
pub fn sync_folder_of(path: &Path) -> Result<(), Error> {
    let folder = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(folder).and_then(|folder| folder.sync_all()).map_err(Error::io("sync", folder))
}

/// Whether the error means that the file is a socket, or a device that does not exist: neither can be opened.
fn is_socket(error: &io::Error) -> bool {
    error.raw_os_error() == Some(rustix::io::Errno::NXIO.raw_os_error())
}

/// Whether the error means that a symbolic link was not followed.
fn is_link(error: &io::Error) -> bool {
    error.raw_os_error() == Some(rustix::io::Errno::LOOP.raw_os_error())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    fn with_mode(path: &Path, mode: u32) {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    }

    #[test]
    fn secret_that_others_can_read_is_closed_and_one_that_they_can_write_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("jwt.secret");
        assert_eq!(read_secret(&path, 100).unwrap(), None);
        write_own(&path, b"s3cret").unwrap();
        for mode in [0o644, 0o640, 0o604, 0o755] {
            with_mode(&path, mode);
            assert_eq!(read_secret(&path, 100).unwrap().as_deref(), Some("s3cret"), "{mode:o}");
            assert_eq!(fs::metadata(&path).unwrap().mode() & 0o7777, 0o600, "{mode:o}");
        }
        for mode in [0o666, 0o620, 0o602] {
            with_mode(&path, mode);
            let error = read_secret(&path, 100).unwrap_err().to_string();
            assert!(error.contains("jwt.secret") && error.contains(&format!("mode {mode:o}")), "{error}");
            assert!(!error.contains("s3cret"), "{error}");
        }
    }

    #[test]
    fn secret_that_is_a_link_a_fifo_a_socket_or_of_another_user_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let (real, path) = (folder.path().join("real"), folder.path().join("jwt.secret"));
        write_own(&real, b"s3cret").unwrap();
        symlink(&real, &path).unwrap();
        assert!(read_secret(&path, 100).unwrap_err().to_string().contains("symbolic link"));
        fs::remove_file(&path).unwrap();
        assert!(std::process::Command::new("mkfifo").arg(&path).status().unwrap().success());
        assert!(read_secret(&path, 100).unwrap_err().to_string().contains("is not a regular file"));
        fs::remove_file(&path).unwrap();
        let _socket = std::os::unix::net::UnixListener::bind(&path).unwrap();
        assert!(read_secret(&path, 100).unwrap_err().to_string().contains("is not a regular file"));
        fs::remove_file(&path).unwrap();
        if me() == 0 {
            write_own(&path, b"s3cret").unwrap();
            std::os::unix::fs::chown(&path, Some(4242), None).unwrap();
            assert!(read_secret(&path, 100).unwrap_err().to_string().contains("belongs to user 4242"));
        }
    }

    #[test]
    fn folder_of_another_user_or_open_to_others_is_refused_by_name() {
        let parent = tempfile::tempdir().unwrap();
        let path = parent.path().join("deep/data");
        check_own_folder(&path).unwrap();
        own_folder(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o066, 0, "others neither read nor write");
        own_folder(&path).unwrap();
        for mode in [0o777, 0o770, 0o1777, 0o702] {
            with_mode(&path, mode);
            let error = own_folder(&path).unwrap_err().to_string();
            assert!(error.contains(&format!("mode {mode:o}")) && error.contains("chmod go-w"), "{error}");
        }
        with_mode(&path, 0o755);
        own_folder(&path).unwrap();
        if me() == 0 {
            std::os::unix::fs::chown(&path, Some(4242), None).unwrap();
            assert!(own_folder(&path).unwrap_err().to_string().contains("belongs to user 4242"));
        }
    }

    #[test]
    fn planted_new_file_is_replaced_and_never_written_through() {
        let folder = tempfile::tempdir().unwrap();
        let (victim, path) = (folder.path().join("victim"), folder.path().join("url"));
        fs::write(&victim, "untouched").unwrap();
        symlink(&victim, folder.path().join("url.new")).unwrap();
        symlink(&victim, &path).unwrap();
        write_own(&path, b"http://x").unwrap();
        assert_eq!(fs::read_to_string(&victim).unwrap(), "untouched");
        assert!(fs::symlink_metadata(&path).unwrap().is_file());
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o7777, 0o600);
    }

    #[test]
    fn hard_link_to_another_file_is_replaced_and_never_written_through() {
        let folder = tempfile::tempdir().unwrap();
        let (victim, path) = (folder.path().join("victim"), folder.path().join("url"));
        fs::write(&victim, "untouched").unwrap();
        for name in ["url", "url.new"] {
            fs::hard_link(&victim, folder.path().join(name)).unwrap();
        }
        write_own(&path, b"http://x").unwrap();
        assert_eq!(fs::read_to_string(&victim).unwrap(), "untouched");
        assert_eq!(fs::read_to_string(&path).unwrap(), "http://x");
        // A secret with a second name: closing the file closes it under both.
        fs::write(&path, "s3cret").unwrap();
        fs::hard_link(&path, folder.path().join("second")).unwrap();
        with_mode(&path, 0o644);
        assert_eq!(read_secret(&path, 100).unwrap().as_deref(), Some("s3cret"));
        assert_eq!(fs::metadata(folder.path().join("second")).unwrap().mode() & 0o7777, 0o600);
    }

    #[test]
    fn a_named_file_is_plain_and_bounded() {
        let folder = tempfile::tempdir().unwrap();
        let (path, link, fifo) =
            (folder.path().join("file"), folder.path().join("link"), folder.path().join("fifo"));
        fs::write(&path, "12345").unwrap();
        symlink(&path, &link).unwrap();
        rustix::fs::mknodat(rustix::fs::CWD, &fifo, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
        let kind = |path: &Path, max| read_named(path, max).map_err(|error| error.kind());
        assert_eq!(kind(&link, 5), Ok(b"12345".to_vec()));
        assert_eq!(kind(&path, 4), Err(io::ErrorKind::FileTooLarge));
        assert_eq!(kind(&fifo, 5), Err(io::ErrorKind::InvalidInput), "it does not wait for a writer");
        assert_eq!(kind(folder.path(), 5), Err(io::ErrorKind::InvalidInput));
        let socket = folder.path().join("socket");
        let _listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
        assert_eq!(kind(&socket, 5), Err(io::ErrorKind::InvalidInput));
        assert_eq!(kind(Path::new("/dev/zero"), 5), Err(io::ErrorKind::InvalidInput));
        assert_eq!(kind(&folder.path().join("none"), 5), Err(io::ErrorKind::NotFound));
    }

    #[test]
    fn named_file_or_folder_that_every_user_can_write_to_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        fs::write(&path, "12345").unwrap();
        for mode in [0o644, 0o664, 0o600] {
            with_mode(&path, mode);
            assert_eq!(read_named(&path, 5).unwrap(), b"12345", "{mode:o}");
        }
        for mode in [0o666, 0o602, 0o777] {
            with_mode(&path, mode);
            let error = read_named(&path, 5).unwrap_err();
            assert!(error.kind() == io::ErrorKind::PermissionDenied && error.raw_os_error().is_none());
            assert!(error.to_string().contains(&format!("mode {mode:o}")), "{error}");
        }
        check_named_folder(folder.path()).unwrap();
        for mode in [0o777, 0o1777] {
            with_mode(folder.path(), mode);
            let error = check_named_folder(folder.path()).unwrap_err().to_string();
            assert!(error.contains(&format!("mode {mode:o}")), "{error}");
        }
    }
}
