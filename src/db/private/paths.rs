//! The folders and files of a private server, and the lock on them.
//!
//! Everything is under `data_dir`, with one exception: a root daemon runs the server as another user, who may
//! not be able to enter `data_dir`. Then the server's own files are in a folder of `/var/lib/convoke`, whose
//! name is stored in `data_dir` (`docs/decisions/0001-private-postgres.md`).
use super::os_user::Identity;
use crate::{
    clock::Clock,
    db::Error,
    files::{self, Folder},
};
use secrecy::{ExposeSecret, SecretString};
use sha2::{Digest, Sha256};
use std::{
    fs::{self, File, OpenOptions, TryLockError},
    io::{self, Read, Seek, Write},
    os::unix::fs::{MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
};
use tracing::warn;

/// The file in `data_dir` with the password of the role `convoke`.
pub(super) const PASSWORD_FILE: &str = "postgres.password";
/// The file in `data_dir` with the port of the last run. A restart uses it again, because other programs may
/// know it.
pub(super) const PORT_FILE: &str = "postgres.port";
/// Most bytes of the password file.
const PASSWORD_BYTES_MAX: u64 = 4 << 10;
/// The file in `data_dir` with the location of the server's files, if that is another folder.
const LOCATION_FILE: &str = "postgres.location";
/// Parent of the server's files if its user cannot enter `data_dir`.
const ELSEWHERE: &str = "/var/lib/convoke";
/// A socket's path has at most 107 bytes on Linux and 103 on macOS, of which the file name takes 15.
const SOCKET_FOLDER_MAX: usize = 103 - "/.s.PGSQL.65535".len();

/// The paths of one private server, all absolute.
#[derive(Clone, Debug)]
pub(super) struct ServerPaths {
    /// The daemon's folder.
    pub(super) data_dir: PathBuf,
    /// The server's data.
    pub(super) cluster: PathBuf,
    /// The server's log; a new file is started at the start of a server if it is large.
    pub(super) log: PathBuf,
    /// The folder of its socket.
    pub(super) sockets: PathBuf,
}

impl ServerPaths {
    /// Finds or creates the folders. The caller holds the lock on `data_dir`.
    pub(super) async fn resolve(data_dir: PathBuf, identity: &Identity) -> Result<Self, Error> {
        let base = base(&data_dir, identity).await?;
        let cluster = base.join("postgres");
        // The operator may have replaced the folder by a link, to keep the data on another disk. Only we
        // write to its parent, so the link can be trusted.
        let cluster = cluster.canonicalize().unwrap_or(cluster);
        if let Ok(metadata) = fs::symlink_metadata(&cluster)
            && metadata.uid() != identity.uid
        {
            return Err(foreign(cluster, metadata.uid(), identity));
        }
        let sockets = sockets(&base, identity)?;
        Ok(Self { data_dir, cluster, log: base.join("postgres.log"), sockets })
    }

    /// Path of the file with the port of the last run.
    pub(super) fn port_file(&self) -> PathBuf {
        self.data_dir.join(PORT_FILE)
    }

    /// Returns the password of the role `convoke`. Created at the first call, but never for existing data,
    /// which has one.
    pub(super) fn password(&self) -> Result<SecretString, Error> {
        let path = self.data_dir.join(PASSWORD_FILE);
        let kept =
            files::read_secret(&path, PASSWORD_BYTES_MAX).map_err(Error::of_files)?.unwrap_or_default();
        if !kept.trim().is_empty() {
            return Ok(SecretString::from(kept.trim().to_owned()));
        }
        if self.cluster.exists() {
            let (path, cluster) = (path.display(), self.cluster.display());
            let remedy = "restore the file, or use another database.data_dir";
            return Err(Error::Unfit(format!("{path} is gone, and {cluster} needs its password: {remedy}")));
        }
        let bytes: [u8; 24] = rand::random();
        let password = SecretString::from(hex(&bytes));
        files::write_own(&path, password.expose_secret().as_bytes()).map_err(Error::of_files)?;
        Ok(password)
    }
}

/// Creates `data_dir` and locks it. The lock is held as long as the returned file is open.
pub(super) fn lock(data_dir: &Path) -> Result<(PathBuf, File), Error> {
    files::own_folder(data_dir).map_err(|e| match e {
        files::Error::Io { source, .. } if source.kind() == io::ErrorKind::PermissionDenied => {
            not_ours(data_dir, source)
        }
        e => Error::of_files(e),
    })?;
    let data_dir = data_dir.canonicalize().map_err(|e| Error::file("create", data_dir, e))?;
    let path = data_dir.join("lock");
    let open = OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(&path);
    let mut file = open.map_err(|e| match e.kind() {
        io::ErrorKind::PermissionDenied => not_ours(&data_dir, e),
        _ => Error::file("open", &path, e),
    })?;
    // An advisory lock of the OS: it is released when the process ends, even by a kill.
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            let mut text = String::new();
            let _ = file.read_to_string(&mut text);
            let pid = text.trim().parse().unwrap_or_default();
            return Err(Error::DataDirInUse { path: data_dir, pid });
        }
        Err(TryLockError::Error(e)) => return Err(Error::file("lock", path, e)),
    }
    // Written after the lock is held: the process id is only for the error message of another daemon.
    let written = file.set_len(0).and_then(|()| file.rewind());
    written
        .and_then(|()| writeln!(file, "{}", std::process::id()))
        .map_err(|e| Error::file("write", path, e))?;
    Ok((data_dir, file))
}

fn not_ours(data_dir: &Path, source: io::Error) -> Error {
    let me = rustix::process::geteuid().as_raw();
    match fs::metadata(data_dir) {
        Ok(metadata) if metadata.uid() != me => Error::ForeignOwner {
            path: data_dir.into(),
            owner: metadata.uid(),
            wanted: format!("user {me}"),
            remedy: "run convoke as its owner, or use another database.data_dir".into(),
        },
        _ => Error::NoPermission { path: data_dir.into(), source },
    }
}

fn foreign(path: PathBuf, owner: u32, identity: &Identity) -> Error {
    let remedy = if identity.switched {
        "it was made by a convoke that was not root: run convoke as that user, or use another database.data_dir"
    } else {
        "run convoke as its owner, or use another database.data_dir"
    };
    Error::ForeignOwner { path, owner, wanted: identity.name.clone(), remedy: remedy.into() }
}

/// Returns the parent folder of the server's files.
async fn base(data_dir: &Path, identity: &Identity) -> Result<PathBuf, Error> {
    if !identity.switched {
        return Ok(data_dir.to_owned());
    }
    let note = data_dir.join(LOCATION_FILE);
    let elsewhere = Path::new(ELSEWHERE).join(short_hash(data_dir));
    if let Ok(text) = fs::read_to_string(&note) {
        let noted = PathBuf::from(text.trim());
        // An unusable note still proves that the data is not in `data_dir`.
        let base = if noted.is_absolute() { noted } else { elsewhere.clone() };
        if base.join("postgres").exists() || !data_dir.join("postgres").exists() {
            make_elsewhere(&base, data_dir)?;
            return Ok(base);
        }
    }
    let owner = fs::metadata(data_dir.join("postgres")).ok().map(|metadata| metadata.uid());
    // Data of another owner stays where it is: the caller refuses it with the owner's id.
    if owner.is_some_and(|owner| owner != identity.uid) || identity.can_enter(data_dir).await {
        return Ok(data_dir.to_owned());
    }
    if owner.is_some() {
        let reason = format!("user {} cannot enter it any more", identity.name);
        let source = io::Error::new(io::ErrorKind::PermissionDenied, reason);
        return Err(Error::NoPermission { path: data_dir.into(), source });
    }
    rename_orphan(&elsewhere)?;
    make_elsewhere(&elsewhere, data_dir)?;
    files::write_own(&note, elsewhere.as_os_str().as_encoded_bytes()).map_err(Error::of_files)?;
    Ok(elsewhere)
}

fn make_elsewhere(base: &Path, data_dir: &Path) -> Result<(), Error> {
    for folder in [Path::new(ELSEWHERE), base] {
        files::own_folder(folder).map_err(Error::of_files)?;
    }
    let owner = base.join("belongs-to");
    if owner.exists() {
        return Ok(());
    }
    files::write_own(&owner, data_dir.as_os_str().as_encoded_bytes()).map_err(Error::of_files)
}

/// Renames the data of a `data_dir` that was deleted. It is kept, because only the operator knows whether it
/// is needed.
fn rename_orphan(base: &Path) -> Result<(), Error> {
    if !base.exists() {
        return Ok(());
    }
    let mut aside = base.as_os_str().to_owned();
    aside.push(format!(".left-{}", Clock::System.now().format("%Y%m%dT%H%M%S%.3f")));
    let aside = PathBuf::from(aside);
    fs::rename(base, &aside).map_err(|e| Error::file("rename", base, e))?;
    warn!(path = %aside.display(), "data of a deleted data_dir renamed; delete it if it is not needed");
    Ok(())
}

/// Returns a folder that is short enough for a socket's path, and writable only for the server's user.
fn sockets(base: &Path, identity: &Identity) -> Result<PathBuf, Error> {
    let own = base.join("run");
    if own.as_os_str().len() <= SOCKET_FOLDER_MAX {
        return exclusive(&own, identity)?.ok_or_else(|| {
            let source = io::Error::new(io::ErrorKind::PermissionDenied, "it belongs to another user");
            Error::NoPermission { path: own.clone(), source }
        });
    }
    let hash = short_hash(base);
    for attempt in 0..10 {
        if let Some(folder) = exclusive(&PathBuf::from(format!("/tmp/convoke-{hash}-{attempt}")), identity)? {
            return Ok(folder);
        }
    }
    Err(Error::Unfit(format!("no folder for a socket: /tmp/convoke-{hash}-* all belong to other users")))
}

/// Creates the folder, or checks that it has the owner and mode of a created one; `None` if it belongs to
/// another user.
fn exclusive(folder: &Path, identity: &Identity) -> Result<Option<PathBuf>, Error> {
    let metadata = match fs::symlink_metadata(folder) {
        Ok(metadata) => metadata,
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            Folder::make(folder, identity.owner()).map_err(Error::of_files)?;
            return Ok(Some(folder.to_owned()));
        }
        Err(e) => return Err(Error::file("read", folder, e)),
    };
    if !metadata.is_dir() || metadata.mode() & 0o022 != 0 {
        return Ok(None);
    }
    if metadata.uid() == identity.uid {
        return Ok(Some(folder.to_owned()));
    }
    // A kill between creating a folder and handing it over leaves it empty and ours. It is created anew:
    // handing over an existing one could hand over what another user put there.
    if metadata.uid() != files::me() || fs::remove_dir(folder).is_err() {
        return Ok(None);
    }
    Folder::make(folder, identity.owner()).map_err(Error::of_files)?;
    Ok(Some(folder.to_owned()))
}

fn short_hash(path: &Path) -> String {
    let digest = Sha256::digest(path.as_os_str().as_encoded_bytes());
    hex(digest.get(..8).unwrap_or_default())
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_data_dir_gets_a_short_socket_folder() {
        let identity = Identity::find().unwrap();
        let parent = tempfile::tempdir().unwrap();
        let base = parent.path().join("x".repeat(120));
        fs::create_dir(&base).unwrap();
        let folder = sockets(&base, &identity).unwrap();
        assert!(folder.as_os_str().len() <= SOCKET_FOLDER_MAX);
        assert_eq!(fs::metadata(&folder).unwrap().uid(), identity.uid);
        assert_eq!(sockets(&base, &identity).unwrap(), folder, "the same again");
        fs::remove_dir(folder).unwrap();
    }

    #[test]
    fn socket_folder_writable_by_others_is_not_used() {
        use std::os::unix::fs::PermissionsExt;
        let identity = Identity::find().unwrap();
        let parent = tempfile::tempdir().unwrap();
        let open = parent.path().join("run");
        fs::create_dir(&open).unwrap();
        fs::set_permissions(&open, fs::Permissions::from_mode(0o777)).unwrap();
        assert_eq!(exclusive(&open, &identity).unwrap(), None);
        let link = parent.path().join("link");
        std::os::unix::fs::symlink(parent.path(), &link).unwrap();
        assert_eq!(exclusive(&link, &identity).unwrap(), None);
    }
}
