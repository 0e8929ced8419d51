//! A private PostgreSQL, for machines without a configured one.
//!
//! Owns the server's whole life: its programs, its data, the lock on the folder, the process, and its restart
//! if it ends by itself. It is a server like any other, on a socket and a loopback port with a password, so
//! the rest of the daemon does not differ. It stops with the daemon. If the daemon is killed, it keeps
//! running, and the next daemon adopts it. Errors of [`Server::open`] name the remedy. Reasons:
//! `docs/decisions/0001-private-postgres.md`.
mod binaries;
mod cluster;
mod os_user;
mod paths;
mod process;
mod server;
mod start;

pub use server::{Options, Server};

use super::{Config, Error, Target};
use crate::scope::{OnExit, Scope};
use secrecy::SecretString;
use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};
use tokio_util::sync::CancellationToken;
use tracing::{error, info};

/// How long a server may take for a fast shutdown before harder signals follow.
pub const STOP_TIMEOUT: Duration = Duration::from_secs(30);
/// First pause before a server that ended by itself is started again; it doubles with each failure.
const RESTART_PAUSE: Duration = Duration::from_millis(200);
/// Longest pause.
const RESTART_PAUSE_MAX: Duration = Duration::from_secs(10);

/// A server that is restarted if it ends by itself.
#[derive(Debug)]
pub(super) struct Private {
    server: Arc<Server>,
    supervision: CancellationToken,
}

impl Private {
    pub(super) async fn open(config: &Config, scope: &Scope) -> Result<Self, Error> {
        let (data_dir, bin_dir) = (config.data_dir.clone(), config.bin_dir.clone());
        let server = Server::open(&Options { data_dir, bin_dir, settings: Vec::new() }).await?;
        let server = Arc::new(server);
        let supervision = scope.stopping().child_token();
        let (supervised, stop) = (Arc::clone(&server), supervision.clone());
        scope.spawn("private postgres", OnExit::Log, |_| async move {
            supervise(supervised, stop).await;
            Ok(())
        });
        Ok(Self { server, supervision })
    }

    pub(super) fn target(&self) -> &Target {
        self.server.target()
    }

    pub(super) fn url(&self) -> SecretString {
        SecretString::from(self.server.tcp_target().url())
    }

    pub(super) async fn stop(&self) -> Result<(), Error> {
        // First, so that the end of the server is not taken for a failure.
        self.supervision.cancel();
        self.server.stop().await
    }
}

impl Drop for Private {
    fn drop(&mut self) {
        self.supervision.cancel();
    }
}

/// Whether a folder has the programs of a PostgreSQL server.
pub(super) fn has_programs(dir: &Path) -> bool {
    binaries::has_programs(dir)
}

/// Checks that this machine has the programs that a private PostgreSQL under `data_dir` needs. Starts
/// nothing.
///
/// # Errors
/// [`Error::NoBinaries`], [`Error::OtherVersion`], and errors about unusable data.
pub fn check_programs(config: &Config) -> Result<(), Error> {
    let cluster = config.data_dir.join("postgres");
    // Data in another location, or of another user, is not readable here; the start checks it.
    let version = std::fs::read_to_string(cluster.join("PG_VERSION")).ok();
    let major = version.and_then(|text| text.trim().parse().ok());
    let needed = major.map(|major| (major, cluster.as_path()));
    binaries::find(config.bin_dir.as_deref(), needed).map(drop)
}

/// The file in a `data_dir` with the password of the private PostgreSQL, for programs that connect to it.
#[must_use]
pub fn password_file(data_dir: &Path) -> PathBuf {
    data_dir.join(paths::PASSWORD_FILE)
}

/// Returns the last address of the private PostgreSQL under `data_dir`, whichever daemon runs it.
pub(super) fn last_url(data_dir: &Path) -> Result<SecretString, Error> {
    let read = |name: &str| {
        let path = data_dir.join(name);
        let text = std::fs::read_to_string(&path).map_err(|e| Error::file("read", path, e))?;
        Ok::<_, Error>(text.trim().to_owned())
    };
    let (password, port) = (read(paths::PASSWORD_FILE)?, read(paths::PORT_FILE)?);
    let name = cluster::NAME;
    Ok(SecretString::from(format!("postgres://{name}:{password}@127.0.0.1:{port}/{name}")))
}

/// Starts the server again whenever it ends by itself; clients reconnect on their own.
async fn supervise(server: Arc<Server>, stop: CancellationToken) {
    let mut pause = RESTART_PAUSE;
    loop {
        let how = tokio::select! {
            biased;
            () = stop.cancelled() => return,
            how = server.ended() => how,
        };
        error!(how, "private PostgreSQL ended by itself, restarting it");
        loop {
            let restarted = tokio::select! {
                biased;
                () = stop.cancelled() => return,
                restarted = server.restart() => restarted,
            };
            match restarted {
                Ok(()) => break,
                Err(error) => error!(
                    error = format!("{:#}", anyhow::Error::new(error)),
                    "failed to restart private PostgreSQL, will retry"
                ),
            }
            tokio::select! {
                biased;
                () = stop.cancelled() => return,
                () = tokio::time::sleep(pause) => pause = (pause * 2).min(RESTART_PAUSE_MAX),
            }
        }
        pause = RESTART_PAUSE;
        info!(pid = server.pid(), "private PostgreSQL restarted");
    }
}
