//! The folders and files of a private server, and the lock on them.
//!
//! Everything is under `data_dir`, except where a root daemon's server, which is
//! another user, cannot get in there: then the server's own files are in a folder
//! of `/var/lib/convoke`, whose name is remembered in `data_dir`
//! (`docs/decisions/0001-private-postgres.md`).
use super::identity::Identity;
use crate::{clock::Clock, db::Error};
use secrecy::{ExposeSecret, SecretString};
use sha2::{Digest, Sha256};
use std::{
    fs::{self, DirBuilder, File, OpenOptions, TryLockError},
    io::{self, Read, Seek, Write},
    os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
};
use tracing::warn;

/// The file in `data_dir` with the password of the role `convoke`.
pub(super) const PASSWORD_FILE: &str = "postgres.password";
/// The file in `data_dir` with the port of the last run.
pub(super) const PORT_FILE: &str = "postgres.port";
/// Where the server's files go when it cannot get into `data_dir`.
const ELSEWHERE: &str = "/var/lib/convoke";
/// A socket's path is at most 107 bytes on Linux and 103 on macOS, and the name takes 15.
const SOCKET_FOLDER_MAX: usize = 103 - "/.s.PGSQL.65535".len();

/// Where everything is. All paths are absolute.
#[derive(Clone, Debug)]
pub(super) struct Places {
    /// The daemon's folder.
    pub(super) data_dir: PathBuf,
    /// The server's data.
    pub(super) cluster: PathBuf,
    /// What the server says; it starts anew when it is large.
    pub(super) log: PathBuf,
    /// The folder of its socket.
    pub(super) sockets: PathBuf,
}

impl Places {
    /// Finds or makes the folders; the caller holds the lock on `data_dir`.
    pub(super) async fn settle(data_dir: PathBuf, identity: &Identity) -> Result<Self, Error> {
        let base = base(&data_dir, identity).await?;
        let cluster = base.join("postgres");
        if let Ok(metadata) = fs::metadata(&cluster)
            && metadata.uid() != identity.uid
        {
            return Err(foreign(cluster, metadata.uid(), identity));
        }
        let sockets = sockets(&base, identity)?;
        Ok(Self { data_dir, cluster, log: base.join("postgres.log"), sockets })
    }

    /// Where the port of the last run is remembered.
    pub(super) fn port_file(&self) -> PathBuf {
        self.data_dir.join(PORT_FILE)
    }

    /// The server's own record of its process.
    pub(super) fn pid_file(&self) -> PathBuf {
        self.cluster.join("postmaster.pid")
    }

    /// The password of the role `convoke`, made at the first call; none is made for existing data.
    pub(super) fn password(&self) -> Result<SecretString, Error> {
        let path = self.data_dir.join(PASSWORD_FILE);
        match fs::read_to_string(&path) {
            Ok(text) if !text.trim().is_empty() => return Ok(SecretString::from(text.trim().to_owned())),
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(Error::file("read", path, e)),
            _ => {}
        }
        if self.cluster.exists() {
            let (path, cluster) = (path.display(), self.cluster.display());
            let remedy = "restore the file, or use another database.data_dir";
            return Err(Error::Unfit(format!("{path} is gone, and {cluster} needs its password: {remedy}")));
        }
        let bytes: [u8; 24] = rand::random();
        let password = SecretString::from(hex(&bytes));
        write_private(&path, password.expose_secret().as_bytes())?;
        Ok(password)
    }
}

/// Makes `data_dir` and takes its lock, which is held as long as the file is open.
pub(super) fn lock(data_dir: &Path, identity: &Identity) -> Result<(PathBuf, File), Error> {
    let failed = |e| Error::file("create", data_dir, e);
    if let Some(parent) = data_dir.parent().filter(|parent| !parent.as_os_str().is_empty()) {
        fs::create_dir_all(parent).map_err(failed)?;
    }
    // Another user's server must get through, but not look around; what is secret in there is 0600 anyway.
    let mode = if identity.switched { 0o711 } else { 0o700 };
    match DirBuilder::new().mode(mode).create(data_dir) {
        Err(e) if e.kind() != io::ErrorKind::AlreadyExists => return Err(failed(e)),
        _ => {}
    }
    let data_dir = data_dir.canonicalize().map_err(failed)?;
    let path = data_dir.join("lock");
    let open = OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(&path);
    let mut file = open.map_err(|e| match e.kind() {
        io::ErrorKind::PermissionDenied => not_ours(&data_dir, e),
        _ => Error::file("open", &path, e),
    })?;
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

/// The folder that holds the server's files.
async fn base(data_dir: &Path, identity: &Identity) -> Result<PathBuf, Error> {
    if !identity.switched {
        return Ok(data_dir.to_owned());
    }
    let note = data_dir.join("postgres.location");
    if let Ok(text) = fs::read_to_string(&note) {
        let base = PathBuf::from(text.trim());
        if base.join("postgres").exists() || !data_dir.join("postgres").exists() {
            make_elsewhere(&base, data_dir)?;
            return Ok(base);
        }
    }
    let owner = fs::metadata(data_dir.join("postgres")).ok().map(|metadata| metadata.uid());
    // Another owner's data is refused by the caller, wherever it is.
    if owner.is_some_and(|owner| owner != identity.uid) || identity.can_enter(data_dir).await {
        return Ok(data_dir.to_owned());
    }
    if owner.is_some() {
        let reason = format!("user {} cannot enter it any more", identity.name);
        let source = io::Error::new(io::ErrorKind::PermissionDenied, reason);
        return Err(Error::NoPermission { path: data_dir.into(), source });
    }
    let base = Path::new(ELSEWHERE).join(short_hash(data_dir));
    set_aside(&base)?;
    make_elsewhere(&base, data_dir)?;
    write_private(&note, base.as_os_str().as_encoded_bytes())?;
    Ok(base)
}

fn make_elsewhere(base: &Path, data_dir: &Path) -> Result<(), Error> {
    if base.is_dir() {
        return Ok(());
    }
    fs::create_dir_all(ELSEWHERE).map_err(|e| Error::file("create", ELSEWHERE, e))?;
    DirBuilder::new().mode(0o711).create(base).map_err(|e| Error::file("create", base, e))?;
    write_private(&base.join("belongs-to"), data_dir.as_os_str().as_encoded_bytes())
}

/// Data of a `data_dir` that was deleted since: kept, because only its owner knows, but out of the way.
fn set_aside(base: &Path) -> Result<(), Error> {
    if !base.exists() {
        return Ok(());
    }
    let mut aside = base.as_os_str().to_owned();
    aside.push(format!(".left-{}", Clock::System.now().format("%Y%m%dT%H%M%S%.3f")));
    let aside = PathBuf::from(aside);
    fs::rename(base, &aside).map_err(|e| Error::file("rename", base, e))?;
    warn!(path = %aside.display(), "data of a deleted data_dir was set aside; delete it when it is not needed");
    Ok(())
}

/// A folder short enough for a socket's path, that nobody but the server's user writes to.
fn sockets(base: &Path, identity: &Identity) -> Result<PathBuf, Error> {
    let own = base.join("run");
    if own.as_os_str().len() <= SOCKET_FOLDER_MAX {
        return sole(&own, identity)?.ok_or_else(|| {
            let source = io::Error::new(io::ErrorKind::PermissionDenied, "it belongs to somebody else");
            Error::NoPermission { path: own.clone(), source }
        });
    }
    let hash = short_hash(base);
    for attempt in 0..10 {
        if let Some(folder) = sole(&PathBuf::from(format!("/tmp/convoke-{hash}-{attempt}")), identity)? {
            return Ok(folder);
        }
    }
    Err(Error::Unfit(format!("no folder for a socket: /tmp/convoke-{hash}-* all belong to others")))
}

/// Makes the folder or checks that it is what we would have made; none if it is somebody else's.
fn sole(folder: &Path, identity: &Identity) -> Result<Option<PathBuf>, Error> {
    match DirBuilder::new().mode(0o700).create(folder) {
        Ok(()) => identity.own(folder)?,
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {
            let metadata = fs::symlink_metadata(folder).map_err(|e| Error::file("look at", folder, e))?;
            let daemon = rustix::process::geteuid().as_raw();
            if !metadata.is_dir()
                || metadata.mode() & 0o022 != 0
                || ![identity.uid, daemon].contains(&metadata.uid())
            {
                return Ok(None);
            }
            // A kill between making and handing over leaves it ours.
            identity.own(folder)?;
        }
        Err(e) => return Err(Error::file("create", folder, e)),
    }
    Ok(Some(folder.to_owned()))
}

fn short_hash(path: &Path) -> String {
    let digest = Sha256::digest(path.as_os_str().as_encoded_bytes());
    hex(digest.get(..8).unwrap_or_default())
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Writes a file that only its owner reads, whole or not at all.
pub(super) fn write_private(path: &Path, content: &[u8]) -> Result<(), Error> {
    let failed = |e| Error::file("write", path, e);
    let mut new = path.as_os_str().to_owned();
    new.push(".new");
    let new = PathBuf::from(new);
    let options = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&new);
    let mut file = options.map_err(failed)?;
    file.write_all(content).and_then(|()| file.sync_all()).map_err(failed)?;
    fs::rename(&new, path).map_err(failed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_data_dir_gets_a_short_socket_folder_of_its_own() {
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
    fn a_socket_folder_that_others_can_write_to_is_not_used() {
        use std::os::unix::fs::PermissionsExt;
        let identity = Identity::find().unwrap();
        let parent = tempfile::tempdir().unwrap();
        let open = parent.path().join("run");
        fs::create_dir(&open).unwrap();
        fs::set_permissions(&open, fs::Permissions::from_mode(0o777)).unwrap();
        assert_eq!(sole(&open, &identity).unwrap(), None);
        let link = parent.path().join("link");
        std::os::unix::fs::symlink(parent.path(), &link).unwrap();
        assert_eq!(sole(&link, &identity).unwrap(), None);
    }
}
