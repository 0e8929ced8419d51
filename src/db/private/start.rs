//! How a server comes to run: taken over from a daemon that is gone, or started.
//!
//! A server that runs on our data is taken over when it answers with our password
//! and has our settings, and is stopped otherwise. The record of a server that no
//! longer runs is removed where PostgreSQL itself would be misled by another
//! process with the same number.
use super::{
    cluster,
    places::Places,
    process::{self, PidFile},
    server::{Process, Server},
};
use crate::{
    db::{Error, connect},
    fault,
    scope::Scope,
};
use std::{
    fs::{self, File, OpenOptions},
    io,
    net::{Ipv4Addr, TcpListener},
    os::unix::fs::OpenOptionsExt,
    process::Stdio,
    sync::atomic::Ordering,
    time::Duration,
};
use tokio::{process::Child, time::Instant};
use tracing::{debug, info, warn};

/// How long a server may be silent after its start; one that says it recovers may take longer.
const START_TIMEOUT: Duration = Duration::from_secs(60);
/// How long a server may recover from a crash.
const RECOVERY_TIMEOUT: Duration = Duration::from_secs(900);
/// How long a server that was left running may give no answer at all.
const SILENCE_MAX: Duration = Duration::from_secs(10);
/// How long one look at whether it answers may take.
pub(super) const PROBE_TIMEOUT: Duration = Duration::from_secs(5);
/// How long the processes of a predecessor may hold its data.
const HELD_MAX: Duration = Duration::from_secs(20);
/// How many free ports are tried, because another program can take one before the server does.
const PORTS_MAX: u32 = 5;
/// A log that is longer than this starts anew with the server; the old one is kept once.
const LOG_MAX_BYTES: u64 = 16 << 20;

/// How a started server's first moments ended.
pub(super) enum Outcome {
    Ready,
    PortTaken,
    /// A server that was killed still has processes, or one was started a moment ago by a killed daemon.
    StillHeld,
}

impl Server {
    /// Ready when it returns well, with the port in the target.
    pub(super) async fn adopt_or_start(&mut self, settings_changed: bool) -> Result<(), Error> {
        let remembered = fs::read_to_string(self.places.port_file()).ok().and_then(|t| t.trim().parse().ok());
        let mut port = remembered.filter(|port| is_free(*port)).map_or_else(free_port, Ok)?;
        let (mut ports_tried, began) = (1, Instant::now());
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

    /// Takes over a server that runs on our data; false when there is none any more.
    async fn adopt(&mut self, settings_changed: bool) -> Result<bool, Error> {
        let text = match fs::read_to_string(self.places.pid_file()) {
            Ok(text) => text,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(false),
            Err(e) => return Err(Error::file("read", self.places.pid_file(), e)),
        };
        let pid = text.lines().next().and_then(|line| line.trim().parse().ok()).unwrap_or_default();
        if !process::serves(pid, &self.places.cluster) {
            remove_stale(&self.places);
            return Ok(false);
        }
        let mut process = Process::Adopted(pid);
        if let Some(file) = PidFile::parse(&text)
            && file.sockets == self.places.sockets
            && !settings_changed
        {
            self.target.port = file.port;
            let (began, mut patience) = (Instant::now(), SILENCE_MAX);
            while process::is_alive(pid) && began.elapsed() < patience {
                match self.probe().await {
                    Ok(()) => {
                        info!(pid, "took over the private PostgreSQL of a daemon that is gone");
                        self.pid.store(pid, Ordering::Relaxed);
                        *self.process.get_mut() = Some(process);
                        return Ok(true);
                    }
                    Err(Error::Unreachable { source, .. }) => {
                        // It starts, recovers or stops: it will answer or go away.
                        if source.kind() == io::ErrorKind::ResourceBusy {
                            patience = RECOVERY_TIMEOUT;
                        }
                        tokio::time::sleep(Duration::from_millis(50)).await;
                    }
                    Err(error) => {
                        warn!(pid, %error, "the running private PostgreSQL is not fit and is stopped");
                        break;
                    }
                }
            }
        }
        self.terminate(&mut process).await?;
        Ok(false)
    }

    /// Starts the process and waits until it answers. On an error it does not run.
    pub(super) async fn start(&self, port: u16) -> Result<Outcome, Error> {
        let (log, log_start) = self.open_log()?;
        let failed = |e| Error::file("write", &self.places.log, e);
        let program = self.binaries.dir.join("postgres");
        let mut command = self.identity.command(&program);
        command.arg("-D").arg(&self.places.cluster).arg("-p").arg(port.to_string());
        command.arg("-k").arg(&self.places.sockets);
        command.stdout(Stdio::from(log.try_clone().map_err(failed)?)).stderr(Stdio::from(log));
        let mut child = command.spawn().map_err(|e| Error::file("run", &program, e))?;
        let pid = child.id().and_then(|pid| i32::try_from(pid).ok()).unwrap_or_default();
        // From here on, so that a start that is cancelled leaves no server that nobody knows.
        self.pid.store(pid, Ordering::Relaxed);
        fault::point("db.server_started");
        let outcome = self.wait_ready(&mut child, log_start).await;
        if let Ok(Outcome::Ready) = outcome {
            debug!(pid, port, "the private PostgreSQL runs");
            *self.process.lock().await = Some(Process::Child(child));
            return outcome;
        }
        let _ = self.terminate(&mut Process::Child(child)).await;
        self.pid.store(0, Ordering::Relaxed);
        outcome
    }

    async fn wait_ready(&self, child: &mut Child, log_start: u64) -> Result<Outcome, Error> {
        let began = Instant::now();
        let mut pause = Duration::from_millis(5);
        loop {
            if let Ok(Some(status)) = child.try_wait() {
                let said = self.log_since(log_start);
                if said.contains("Address already in use") || said.contains("could not bind") {
                    return Ok(Outcome::PortTaken);
                }
                let held = said.contains("shared memory block") && said.contains("still in use");
                if held || said.contains("lock file \"postmaster.pid\" already exists") {
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
                    let file = self.places.data_dir.join("postgres.password");
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

    /// Whether the server lets us in.
    async fn probe(&self) -> Result<(), Error> {
        let target = self.target.with_database("postgres");
        let scope = Scope::default();
        connect::connect(&target, "convoke start", PROBE_TIMEOUT, &scope).await.map(drop)
    }

    /// The log to append to, and where this start's lines begin.
    fn open_log(&self) -> Result<(File, u64), Error> {
        let path = &self.places.log;
        if fs::metadata(path).is_ok_and(|metadata| metadata.len() > LOG_MAX_BYTES) {
            let _ = fs::rename(path, path.with_extension("log.1"));
        }
        let failed = |e| Error::file("write", path, e);
        let log = OpenOptions::new().append(true).create(true).mode(0o600).open(path).map_err(failed)?;
        let length = log.metadata().map_err(failed)?.len();
        Ok((log, length))
    }

    fn log_since(&self, start: u64) -> String {
        let bytes = fs::read(&self.places.log).unwrap_or_default();
        let start = usize::try_from(start).unwrap_or_default();
        String::from_utf8_lossy(bytes.get(start..).unwrap_or_default()).into_owned()
    }

    pub(super) fn failed(&self, what: &str, log_start: u64) -> Error {
        let tail = cluster::last_lines(&self.log_since(log_start), 10);
        Error::Start { what: what.to_owned(), log: self.places.log.clone(), tail }
    }
}

/// The record of a server that is gone. PostgreSQL removes its own, except where another process of the
/// same user has got the number: then it would refuse to start.
pub(super) fn remove_stale(places: &Places) {
    let Ok(text) = fs::read_to_string(places.pid_file()) else { return };
    let pid = text.lines().next().and_then(|line| line.trim().parse().ok()).unwrap_or_default();
    if process::is_alive(pid) && !process::serves(pid, &places.cluster) {
        warn!(pid, "removing the record of a private PostgreSQL that is gone");
        let _ = fs::remove_file(places.pid_file());
    }
    for socket in fs::read_dir(&places.sockets).into_iter().flatten().flatten() {
        let _ = fs::remove_file(socket.path());
    }
}

fn free_port() -> Result<u16, Error> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).and_then(|listener| listener.local_addr());
    listener.map(|address| address.port()).map_err(|e| Error::file("find a free port at", "127.0.0.1", e))
}

fn is_free(port: u16) -> bool {
    TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok()
}
