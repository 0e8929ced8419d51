//! One private server: the lock on its folder, its data, its process.
//!
//! Owns what must be let go of again: the lock, which goes with the value, and the
//! process, which is stopped step by step harder. How it comes to run is `start`.
use super::{
    STOP_TIMEOUT,
    binaries::{self, Binaries},
    cluster,
    identity::Identity,
    places::{self, Places},
    process,
    start::{self, Outcome},
};
use crate::{
    db::{Error, Host, Target, connect},
    scope::Scope,
};
use rustix::process::Signal;
use std::{
    fs::File,
    net::Ipv4Addr,
    path::{Path, PathBuf},
    sync::atomic::{AtomicI32, Ordering},
    time::Duration,
};
use tokio::{process::Child, sync::Mutex};
use tracing::{debug, warn};

/// What a server is made from.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// The folder that is locked and holds everything.
    pub data_dir: PathBuf,
    /// The folder of the server binaries; none looks for the newest.
    pub bin_dir: Option<PathBuf>,
    /// Settings that win over the daemon's own, like `("fsync", "off")`.
    pub settings: Vec<(String, String)>,
}

/// A running private server. Dropping it tells it to stop without waiting.
#[derive(Debug)]
pub struct Server {
    pub(super) identity: Identity,
    pub(super) places: Places,
    pub(super) binaries: Binaries,
    pub(super) target: Target,
    pub(super) process: Mutex<Option<Process>>,
    /// The same process for `Drop`, which cannot wait; 0 for none.
    pub(super) pid: AtomicI32,
    lock: parking_lot::Mutex<Option<File>>,
}

/// The server's process.
#[derive(Debug)]
pub(super) enum Process {
    Child(Child),
    /// Left running by a daemon that is gone.
    Adopted(i32),
}

impl Server {
    /// Locks the folder, makes the data if there is none, and starts the server or takes it over.
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
        let (data_dir, lock) = places::lock(&options.data_dir, &identity)?;
        let places = Places::settle(data_dir, &identity).await?;
        let major = cluster::version(&places.cluster)?;
        let needed = major.map(|major| (major, places.cluster.as_path()));
        let binaries = binaries::find(options.bin_dir.as_deref(), needed)?;
        let password = places.password()?;
        if major.is_none() {
            cluster::init(&places, &binaries, &identity, &password).await?;
        }
        let changed = cluster::configure(&places, &identity, &options.settings)?;
        let target = Target::unix(places.sockets.clone(), 0, cluster::NAME, password, cluster::NAME)?;
        let lock = parking_lot::Mutex::new(Some(lock));
        let (process, pid) = (Mutex::new(None), AtomicI32::new(0));
        let mut server = Self { identity, places, binaries, target, process, pid, lock };
        server.adopt_or_start(changed).await?;
        places::write_private(&server.places.port_file(), server.target.port.to_string().as_bytes())?;
        server.make_database().await?;
        Ok(server)
    }

    /// The database `convoke` by the server's socket.
    #[must_use]
    pub fn target(&self) -> &Target {
        &self.target
    }

    /// The same database by the server's loopback port, for other programs.
    #[must_use]
    pub fn tcp_target(&self) -> Target {
        self.target.with_host(Host::Tcp(Ipv4Addr::LOCALHOST.to_string()))
    }

    /// The server's process id, or none while it does not run.
    #[must_use]
    pub fn pid(&self) -> Option<i32> {
        Some(self.pid.load(Ordering::Relaxed)).filter(|pid| *pid > 0)
    }

    /// Lets go of the folder and leaves the server running, for the next one to take over.
    pub fn leave(self) {
        self.pid.store(0, Ordering::Relaxed);
    }

    /// Waits until the server ends by itself; says how. Cancel safe.
    pub(super) async fn ended(&self) -> String {
        let mut process = self.process.lock().await;
        let how = match process.as_mut() {
            Some(process) => process.wait().await,
            None => return "it does not run".into(),
        };
        *process = None;
        self.pid.store(0, Ordering::Relaxed);
        how
    }

    /// Starts the server again after [`Server::ended`], on the same port, which others know by now.
    pub(super) async fn restart(&self) -> Result<(), Error> {
        start::remove_stale(&self.places);
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

    /// Stops the server: first the fast way, after [`STOP_TIMEOUT`] at once; then unlocks the folder.
    ///
    /// # Errors
    /// [`Error::Unfit`] when it is still there after all that.
    pub async fn stop(&self) -> Result<(), Error> {
        let known = self.process.lock().await.take();
        // A start that was cancelled has a process id only.
        let stopped = match known.or_else(|| self.pid().map(Process::Adopted)) {
            Some(mut process) => self.terminate(&mut process).await,
            None => Ok(()),
        };
        self.pid.store(0, Ordering::Relaxed);
        *self.lock.lock() = None;
        stopped
    }

    /// Step by step harder, until it is gone.
    pub(super) async fn terminate(&self, process: &mut Process) -> Result<(), Error> {
        let Some(pid) = process.pid() else { return Ok(()) };
        let steps = [
            (Signal::INT, STOP_TIMEOUT),
            (Signal::QUIT, Duration::from_secs(5)),
            (Signal::KILL, Duration::from_secs(5)),
        ];
        for (signal, within) in steps {
            process::signal(pid, signal);
            if let Ok(how) = tokio::time::timeout(within, process.wait()).await {
                debug!(pid, how, "the private PostgreSQL stopped");
                return Ok(());
            }
            warn!(pid, ?within, "the private PostgreSQL did not stop in time");
        }
        Err(Error::Unfit(format!("the private PostgreSQL with process id {pid} cannot be stopped")))
    }

    async fn make_database(&self) -> Result<(), Error> {
        let scope = Scope::default();
        let target = self.target.with_database("postgres");
        let client = connect::connect(&target, "convoke start", start::PROBE_TIMEOUT, &scope).await?;
        let exists = "select from pg_database where datname = $1";
        if client.query_opt(exists, &[&cluster::NAME]).await?.is_none() {
            client.batch_execute(&format!("create database {}", connect::quote(cluster::NAME))).await?;
        }
        Ok(())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(pid) = self.pid() {
            process::signal(pid, Signal::INT);
        }
    }
}

impl Process {
    fn pid(&self) -> Option<i32> {
        match self {
            Self::Child(child) => child.id().and_then(|pid| i32::try_from(pid).ok()),
            Self::Adopted(pid) => Some(*pid),
        }
    }

    /// Cancel safe.
    async fn wait(&mut self) -> String {
        match self {
            Self::Child(child) => match child.wait().await {
                Ok(status) => status.to_string(),
                Err(e) => format!("unknown: {e}"),
            },
            Self::Adopted(pid) => {
                while process::is_alive(*pid) {
                    tokio::time::sleep(Duration::from_millis(250)).await;
                }
                "unknown, it was not our child".into()
            }
        }
    }
}
