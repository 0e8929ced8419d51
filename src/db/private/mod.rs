//! The private PostgreSQL of a machine without one.
//!
//! Owns the server's whole life: the programs, the data, the lock on the folder,
//! the process, and its restart when it ends by itself. It is a server like any
//! other, on a socket and a loopback port with a password, so nothing else in the
//! daemon knows the difference. It stops with the daemon; when the daemon is
//! killed it goes on, and the next daemon takes it over. Fails with what to do:
//! see [`Server::open`]. `docs/decisions/0001-private-postgres.md` says why it is so.
mod binaries;
mod cluster;
mod identity;
mod places;
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

/// How long a running server is given to stop before it is stopped the hard way.
pub const STOP_TIMEOUT: Duration = Duration::from_secs(30);
/// The first pause before a server that ended by itself is started again; it doubles with each failure.
const RESTART_PAUSE: Duration = Duration::from_millis(200);
/// The longest pause.
const RESTART_PAUSE_MAX: Duration = Duration::from_secs(10);

/// A server that is kept running.
#[derive(Debug)]
pub(super) struct Private {
    server: Arc<Server>,
    keeping: CancellationToken,
}

impl Private {
    pub(super) async fn open(config: &Config, scope: &Scope) -> Result<Self, Error> {
        let (data_dir, bin_dir) = (config.data_dir.clone(), config.bin_dir.clone());
        let server = Server::open(&Options { data_dir, bin_dir, settings: Vec::new() }).await?;
        let server = Arc::new(server);
        let keeping = scope.stopping().child_token();
        let (kept, stop) = (Arc::clone(&server), keeping.clone());
        scope.spawn("private postgres", OnExit::Log, |_| async move {
            keep(kept, stop).await;
            Ok(())
        });
        Ok(Self { server, keeping })
    }

    pub(super) fn target(&self) -> &Target {
        self.server.target()
    }

    pub(super) fn url(&self) -> SecretString {
        SecretString::from(self.server.tcp_target().url())
    }

    pub(super) async fn stop(&self) -> Result<(), Error> {
        self.keeping.cancel();
        self.server.stop().await
    }
}

impl Drop for Private {
    fn drop(&mut self) {
        self.keeping.cancel();
    }
}

/// The file in a `data_dir` with the password of the private PostgreSQL, for programs that its address is told to.
#[must_use]
pub fn password_file(data_dir: &Path) -> PathBuf {
    data_dir.join(places::PASSWORD_FILE)
}

/// The address that the private PostgreSQL under `data_dir` last had, whoever runs it.
pub(super) fn left_url(data_dir: &Path) -> Result<SecretString, Error> {
    let read = |name: &str| {
        let path = data_dir.join(name);
        let text = std::fs::read_to_string(&path).map_err(|e| Error::file("read", path, e))?;
        Ok::<_, Error>(text.trim().to_owned())
    };
    let (password, port) = (read(places::PASSWORD_FILE)?, read(places::PORT_FILE)?);
    let name = cluster::NAME;
    Ok(SecretString::from(format!("postgres://{name}:{password}@127.0.0.1:{port}/{name}")))
}

/// Starts the server again whenever it ends by itself; connections come back by themselves.
async fn keep(server: Arc<Server>, stop: CancellationToken) {
    let mut pause = RESTART_PAUSE;
    loop {
        let how = tokio::select! {
            biased;
            () = stop.cancelled() => return,
            how = server.ended() => how,
        };
        error!(how, "the private PostgreSQL ended by itself and is started again");
        loop {
            let restarted = tokio::select! {
                biased;
                () = stop.cancelled() => return,
                restarted = server.restart() => restarted,
            };
            match restarted {
                Ok(()) => break,
                Err(error) => error!(error = format!("{:#}", anyhow::Error::new(error)), "no restart yet"),
            }
            tokio::select! {
                biased;
                () = stop.cancelled() => return,
                () = tokio::time::sleep(pause) => pause = (pause * 2).min(RESTART_PAUSE_MAX),
            }
        }
        pause = RESTART_PAUSE;
        info!(pid = server.pid(), "the private PostgreSQL runs again");
    }
}
