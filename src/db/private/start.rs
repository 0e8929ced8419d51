//! Starts a private server, or adopts one that a killed daemon left running.
//!
//! A server that runs on our data is adopted if it accepts our password and has our settings, and stopped
//! otherwise. Whether one runs is asked of the operating system. Its `postmaster.pid` only tells the address,
//! and is removed if no server runs.
use super::{
    cluster,
    process::{self, PidFile, ProcessHandle},
    server::{Process, Server},
};
use crate::{
    db::{Error, connect},
    fault,
    files::Folder,
    scope::Scope,
};
use std::{
    fs::{self, File, OpenOptions},
    io,
    net::{Ipv4Addr, TcpListener},
    os::unix::fs::OpenOptionsExt,
    process::Stdio,
    sync::Arc,
    time::Duration,
};
use tokio::{process::Child, time::Instant};
use tracing::{debug, info, warn};

/// How long a new server may give no answer; one that reports a recovery may take longer.
const START_TIMEOUT: Duration = Duration::from_secs(60);
/// How long a server may recover from a crash.
const RECOVERY_TIMEOUT: Duration = Duration::from_secs(900);
/// How long a server that was left running may give no answer.
const SILENCE_MAX: Duration = Duration::from_secs(10);
/// Timeout of one probe.
pub(super) const PROBE_TIMEOUT: Duration = Duration::from_secs(5);
/// How long processes of a predecessor may hold the data.
const HELD_MAX: Duration = Duration::from_secs(20);
/// How many free ports are tried: another program may take one before the server does.
const PORTS_MAX: u32 = 5;
/// A longer log is renamed at the start of a server; one old log is kept.
const LOG_MAX_BYTES: u64 = 16 << 20;

/// The server's own file about its process, in its data folder.
const PID_FILE: &str = "postmaster.pid";
/// Most bytes of that file; a real one has about a hundred.
const RECORD_BYTES_MAX: u64 = 4 << 10;

/// The result of starting a server.
pub(super) enum Outcome {
    Ready,
    PortTaken,
    /// Processes of a killed server still hold the data, or a killed daemon started a server a moment ago.
    StillHeld,
}

impl Server {
    /// Adopts or starts a server; on success it answers, and the target has its port.
    pub(super) async fn adopt_or_start(&mut self, settings_changed: bool) -> Result<(), Error> {
        let remembered = fs::read_to_string(self.paths.port_file()).ok().and_then(|t| t.trim().parse().ok());
        let mut port = remembered.filter(|port| is_free(*port)).map_or_else(free_port, Ok)?;
        let (mut ports_tried, began) = (1, Instant::now());
        // Adoption is tried before every start: a server that a killed daemon has just launched may be up
        // only now, and a second one on the same data would fail.
        while !self.adopt(settings_changed).await? {
            self.target.port = port;
            match self.start(port).await? {
                Outcome::Ready => break,
                Outcome::PortTaken if ports_tried < PORTS_MAX => {
                    ports_tried += 1;
                    port = free_port()?;
                }
                Outcome::StillHeld if began.elapsed() < HELD_MAX => {
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
                Outcome::PortTaken => return Err(self.failed("finds no free port", 0)),
                Outcome::StillHeld => return Err(self.failed("finds its predecessor still running", 0)),
            }
        }
        Ok(())
    }

    /// Adopts a server that runs on our data; false if none is left.
    async fn adopt(&mut self, settings_changed: bool) -> Result<bool, Error> {
        let (data, uid) = (&self.paths.cluster, self.identity.uid);
        let record = Folder::open(data, uid).and_then(|folder| folder.read(PID_FILE, RECORD_BYTES_MAX));
        // A link or FIFO in place of the file counts as no record, and is removed with the other remains.
        let record = record.ok().flatten().unwrap_or_default();
        let named = PidFile::parse(&record).and_then(|file| process::server(file.pid, data, uid));
        // The file may be damaged after a power cut, and missing while a server starts: then the process list
        // decides.
        let Some(handle) = named.or_else(|| process::find_server(data, uid)).map(Arc::new) else {
            self.remove_leftovers()?;
            return Ok(false);
        };
        let pid = handle.pid();
        let mut process = Process::Adopted(Arc::clone(&handle));
        if let Some(file) = PidFile::parse(&record)
            && file.pid == pid
            && file.sockets == self.paths.sockets
            && !settings_changed
        {
            self.target.port = file.port;
            let (began, mut patience) = (Instant::now(), SILENCE_MAX);
            while handle.is_alive() && began.elapsed() < patience {
                match self.probe().await {
                    Ok(()) => {
                        info!(pid, "private PostgreSQL of a killed daemon adopted");
                        *self.handle.get_mut() = Some(handle);
                        *self.process.get_mut() = Some(process);
                        return Ok(true);
                    }
                    Err(Error::Unreachable { source, .. }) => {
                        // The server starts, recovers or stops: it will answer or end.
                        if source.kind() == io::ErrorKind::ResourceBusy {
                            patience = RECOVERY_TIMEOUT;
                        }
                        tokio::time::sleep(Duration::from_millis(50)).await;
                    }
                    Err(error) => {
                        warn!(pid, %error, "running private PostgreSQL not usable, stopping it");
                        break;
                    }
                }
            }
        }
        self.terminate(&mut process).await?;
        Ok(false)
    }

    /// Starts the process and waits until it answers. On an error it is stopped.
    pub(super) async fn start(&self, port: u16) -> Result<Outcome, Error> {
        let (log, log_start) = self.open_log()?;
        let failed = |e| Error::file("write", &self.paths.log, e);
        let program = self.binaries.dir.join("postgres");
        let mut command = self.identity.command(&program);
        command.arg("-D").arg(&self.paths.cluster).arg("-p").arg(port.to_string());
        command.arg("-k").arg(&self.paths.sockets);
        command.stdout(Stdio::from(log.try_clone().map_err(failed)?)).stderr(Stdio::from(log));
        let mut child = command.spawn().map_err(|e| Error::file("run", &program, e))?;
        let pid = child.id().and_then(|pid| i32::try_from(pid).ok()).unwrap_or_default();
        // Set before the first await, so that `stop` and `Drop` find the process even if this future is
        // dropped.
        *self.handle.lock() = ProcessHandle::of(pid).map(Arc::new);
        fault::point(fault::Point::DbServerStarted);
        let outcome = self.wait_ready(&mut child, log_start).await;
        if let Ok(Outcome::Ready) = outcome {
            debug!(pid, port, "private PostgreSQL started");
            *self.process.lock().await = Some(Process::Child(child));
            return outcome;
        }
        let _ = self.terminate(&mut Process::Child(child)).await;
        *self.handle.lock() = None;
        outcome
    }

    async fn wait_ready(&self, child: &mut Child, log_start: u64) -> Result<Outcome, Error> {
        let began = Instant::now();
        let mut pause = Duration::from_millis(5);
        loop {
            if let Ok(Some(status)) = child.try_wait() {
                let output = self.log_since(log_start);
                // The server gives its reason only in the log. `lc_messages = C` makes the texts stable.
                if output.contains("Address already in use") || output.contains("could not bind") {
                    return Ok(Outcome::PortTaken);
                }
                let held = output.contains("shared memory block") && output.contains("still in use");
                if held || output.contains("lock file \"postmaster.pid\" already exists") {
                    return Ok(Outcome::StillHeld);
                }
                return Err(self.failed(&format!("ended with {status}"), log_start));
            }
            let error = match self.probe().await {
                Ok(()) => return Ok(Outcome::Ready),
                Err(error) => error,
            };
            let recovers = matches!(&error, Error::Unreachable { source, .. }
                if source.kind() == io::ErrorKind::ResourceBusy);
            match error {
                Error::Unreachable { .. } => {}
                Error::WrongPassword { .. } => {
                    let file = self.paths.data_dir.join("postgres.password");
                    let text = "does not hold the password of the private PostgreSQL: restore the file, or use \
                                another database.data_dir";
                    return Err(Error::Unfit(format!("{} {text}", file.display())));
                }
                error => return Err(error),
            }
            if began.elapsed() > if recovers { RECOVERY_TIMEOUT } else { START_TIMEOUT } {
                return Err(self.failed(&format!("did not answer within {:?}", began.elapsed()), log_start));
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(Duration::from_millis(100));
        }
    }

    /// Connects once, to check address, password and readiness.
    async fn probe(&self) -> Result<(), Error> {
        // The database `convoke` does not exist yet at the first start.
        let target = self.target.with_database("postgres");
        let scope = Scope::default();
        connect::connect_apart(&target, "convoke start", PROBE_TIMEOUT, &scope).await.map(drop)
    }

    /// Opens the log for appending; returns the offset at which this start's lines begin.
    fn open_log(&self) -> Result<(File, u64), Error> {
        let path = &self.paths.log;
        if fs::metadata(path).is_ok_and(|metadata| metadata.len() > LOG_MAX_BYTES) {
            let _ = fs::rename(path, path.with_extension("log.1"));
        }
        let failed = |e| Error::file("write", path, e);
        let log = OpenOptions::new().append(true).create(true).mode(0o600).open(path).map_err(failed)?;
        let length = log.metadata().map_err(failed)?.len();
        Ok((log, length))
    }

    fn log_since(&self, start: u64) -> String {
        let bytes = fs::read(&self.paths.log).unwrap_or_default();
        let start = usize::try_from(start).unwrap_or_default();
        String::from_utf8_lossy(bytes.get(start..).unwrap_or_default()).into_owned()
    }

    /// Removes `postmaster.pid` and the sockets if no server runs on the data. PostgreSQL would refuse to
    /// start if the file is damaged, or if another process of the same user has the process id in it.
    pub(super) fn remove_leftovers(&self) -> Result<(), Error> {
        let (data, uid) = (&self.paths.cluster, self.identity.uid);
        if process::find_server(data, uid).is_some() {
            return Ok(());
        }
        let folder = Folder::open(data, uid).map_err(Error::of_files)?;
        let record = folder.read(PID_FILE, RECORD_BYTES_MAX).ok().flatten();
        let file = record.as_deref().and_then(PidFile::parse);
        // PostgreSQL removes a valid file of an ended process itself, after it has checked the shared memory
        // named in it.
        if file.is_none_or(|file| ProcessHandle::of(file.pid).is_some()) {
            folder.remove(PID_FILE).map_err(Error::of_files)?;
        }
        Folder::open(&self.paths.sockets, uid).and_then(|folder| folder.clear()).map_err(Error::of_files)
    }

    pub(super) fn failed(&self, what: &str, log_start: u64) -> Error {
        let tail = cluster::last_lines(&self.log_since(log_start), 10);
        Error::Start { what: what.to_owned(), log: self.paths.log.clone(), tail }
    }
}

fn free_port() -> Result<u16, Error> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).and_then(|listener| listener.local_addr());
    listener.map(|address| address.port()).map_err(|e| Error::file("find a free port at", "127.0.0.1", e))
}

fn is_free(port: u16) -> bool {
    TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok()
}
