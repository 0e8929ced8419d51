//! One private server: the lock on its folder, its data, its process.
//!
//! Owns what must be released: the lock, which is released with the value, and the process, which is stopped
//! with increasingly hard signals. `start` starts it.
use super::{
    STOP_TIMEOUT,
    binaries::{self, Binaries},
    cluster,
    os_user::Identity,
    paths::{self, ServerPaths},
    process::ProcessHandle,
    start::{self, Outcome},
};
use crate::{
    db::{Error, Host, Target, connect},
    files,
    scope::Scope,
};
use rustix::process::Signal;
use std::{
    fs::File,
    net::Ipv4Addr,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};
use tokio::{process::Child, sync::Mutex};
use tracing::{debug, warn};

/// Options of a private server.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// The folder that is locked and holds every file.
    pub data_dir: PathBuf,
    /// The folder of the server programs. Defaults to the newest on this machine.
    pub bin_dir: Option<PathBuf>,
    /// Settings that override the daemon's own, like `("fsync", "off")`.
    pub settings: Vec<(String, String)>,
}

/// A running private server. Dropping it sends the signal to stop and does not wait.
#[derive(Debug)]
pub struct Server {
    pub(super) identity: Identity,
    pub(super) paths: ServerPaths,
    pub(super) binaries: Binaries,
    pub(super) target: Target,
    pub(super) process: Mutex<Option<Process>>,
    /// The same process for signals: `Drop` cannot wait for the async mutex.
    pub(super) handle: parking_lot::Mutex<Option<Arc<ProcessHandle>>>,
    lock: parking_lot::Mutex<Option<File>>,
}

/// The server's process.
#[derive(Debug)]
pub(super) enum Process {
    Child(Child),
    /// Left running by a killed daemon, or by a start that was canceled.
    Adopted(Arc<ProcessHandle>),
}

impl Server {
    /// Locks the folder, creates the data if there is none, and adopts or starts the server.
    ///
    /// # Errors
    /// [`Error::DataDirInUse`], [`Error::NoBinaries`], [`Error::OtherVersion`], [`Error::NoPermission`],
    /// [`Error::ForeignOwner`], [`Error::Initdb`], [`Error::Start`], [`Error::File`], [`Error::Unfit`].
    pub async fn open(options: &Options) -> Result<Self, Error> {
        let identity = Identity::find()?;
        if identity.switched && !identity.can_enter(Path::new("/")).await {
            let remedy = "run convoke as an ordinary user, or give database.url";
            let name = &identity.name;
            return Err(Error::Unfit(format!(
                "root may not become user {name} here, to run PostgreSQL: {remedy}"
            )));
        }
        // Locked before anything in the folder is created or changed.
        let (data_dir, lock) = paths::lock(&options.data_dir)?;
        let paths = ServerPaths::resolve(data_dir, &identity).await?;
        let major = cluster::version(&paths, &identity)?;
        let needed = major.map(|major| (major, paths.cluster.as_path()));
        let binaries = binaries::find(options.bin_dir.as_deref(), needed)?;
        let password = paths.password()?;
        if major.is_none() {
            cluster::init(&paths, &binaries, &identity, &password).await?;
        }
        let changed = cluster::configure(&paths, &identity, &options.settings)?;
        let target = Target::unix(paths.sockets.clone(), 0, cluster::NAME, password, cluster::NAME)?;
        let lock = parking_lot::Mutex::new(Some(lock));
        let (process, handle) = (Mutex::new(None), parking_lot::Mutex::new(None));
        let mut server = Self { identity, paths, binaries, target, process, handle, lock };
        server.adopt_or_start(changed).await?;
        let port = server.target.port.to_string();
        files::write_own(&server.paths.port_file(), port.as_bytes()).map_err(Error::of_files)?;
        server.make_database().await?;
        Ok(server)
    }

    /// The database `convoke` through the server's socket.
    #[must_use]
    pub fn target(&self) -> &Target {
        &self.target
    }

    /// The same database through the server's loopback port, for other programs.
    #[must_use]
    pub fn tcp_target(&self) -> Target {
        self.target.with_host(Host::Tcp(Ipv4Addr::LOCALHOST.to_string()))
    }

    /// The server's process id; `None` while it does not run.
    #[must_use]
    pub fn pid(&self) -> Option<i32> {
        self.handle.lock().as_ref().map(|handle| handle.pid())
    }

    /// Releases the folder and leaves the server running, for the next `open` to adopt.
    pub fn leave(self) {
        // Without a handle `Drop` sends no signal.
        *self.handle.lock() = None;
    }

    /// Waits until the server ends by itself; returns how. Cancel safe.
    pub(super) async fn ended(&self) -> String {
        let mut process = self.process.lock().await;
        let how = match process.as_mut() {
            Some(process) => process.wait().await,
            None => return "it does not run".into(),
        };
        *process = None;
        *self.handle.lock() = None;
        how
    }

    /// Starts the server again after [`Server::ended`]. On the same port, which other programs may know.
    pub(super) async fn restart(&self) -> Result<(), Error> {
        self.remove_leftovers()?;
        match self.start(self.target.port).await? {
            Outcome::Ready => Ok(()),
            Outcome::PortTaken => {
                let port = self.target.port;
                Err(Error::Unfit(format!(
                    "port {port} of the private PostgreSQL is taken by another program"
                )))
            }
            Outcome::StillHeld => Err(self.failed("finds the memory of its predecessor in use", 0)),
        }
    }

    /// Stops the server: fast shutdown first, immediate shutdown after [`STOP_TIMEOUT`], then a kill. Then
    /// unlocks the folder.
    ///
    /// # Errors
    /// [`Error::Unfit`] if it still runs after that.
    pub async fn stop(&self) -> Result<(), Error> {
        let known = self.process.lock().await.take();
        // A canceled start has set only `handle`.
        let stopped = match known.or_else(|| self.handle.lock().clone().map(Process::Adopted)) {
            Some(mut process) => self.terminate(&mut process).await,
            None => Ok(()),
        };
        *self.handle.lock() = None;
        // The folder is unlocked last: the next daemon must not find a server that is stopping.
        *self.lock.lock() = None;
        stopped
    }

    /// Sends increasingly hard signals until the process has ended.
    pub(super) async fn terminate(&self, process: &mut Process) -> Result<(), Error> {
        let Some(handle) = process.handle() else { return Ok(()) };
        let pid = handle.pid();
        let steps = [
            (Signal::INT, STOP_TIMEOUT),
            (Signal::QUIT, Duration::from_secs(5)),
            (Signal::KILL, Duration::from_secs(5)),
        ];
        for (signal, within) in steps {
            handle.signal(signal);
            if let Ok(how) = tokio::time::timeout(within, process.wait()).await {
                debug!(pid, how, "private PostgreSQL stopped");
                return Ok(());
            }
            warn!(pid, ?within, "private PostgreSQL did not stop in time");
        }
        Err(Error::Unfit(format!("the private PostgreSQL with process id {pid} cannot be stopped")))
    }

    async fn make_database(&self) -> Result<(), Error> {
        let scope = Scope::default();
        let target = self.target.with_database("postgres");
        let client = connect::connect_apart(&target, "convoke start", start::PROBE_TIMEOUT, &scope).await?;
        let exists = "select from pg_database where datname = $1";
        if client.query_opt(exists, &[&cluster::NAME]).await?.is_none() {
            client.batch_execute(&format!("create database {}", connect::quote(cluster::NAME))).await?;
        }
        Ok(())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(handle) = self.handle.get_mut() {
            handle.signal(Signal::INT);
        }
    }
}

impl Process {
    /// The process for signals; `None` for a child that has ended and was waited for.
    fn handle(&self) -> Option<Arc<ProcessHandle>> {
        match self {
            Self::Child(child) => {
                let pid = child.id().and_then(|pid| i32::try_from(pid).ok())?;
                ProcessHandle::of(pid).map(Arc::new)
            }
            Self::Adopted(handle) => Some(Arc::clone(handle)),
        }
    }

    /// Waits for the end of the process and returns its status. Cancel safe.
    async fn wait(&mut self) -> String {
        match self {
            Self::Child(child) => match child.wait().await {
                Ok(status) => status.to_string(),
                Err(e) => format!("unknown: {e}"),
            },
            Self::Adopted(handle) => {
                // Only a parent can wait for a process, so its end is polled.
                while handle.is_alive() {
                    tokio::time::sleep(Duration::from_millis(250)).await;
                }
                "unknown, the process is not a child of this one".into()
            }
        }
    }
}
