//! Wires everything: `build` makes a [`Daemon`] from the settings, `run` serves until its token is cancelled.
//!
//! The composition root: it knows every part, and only the command line knows it. Data that one domain needs from
//! another passes through here: row changes to the wake index and the change log (`wal_consumer`), leadership to the
//! hosted agents and the arbiter (`leadership`). Everything about agents outside the daemon is in [`crate::remote`].
//!
//! Start (`assemble`): bind (a taken port fails first) → database → migrations → rights → negotiation → realtime →
//! agents → doors → WAL → accept. Stop, each phase with its limit: stop accepting → agents finish or release →
//! websockets close → the last confirmation to the WAL → the database.
mod assemble;
mod change_log;
mod channels;
mod dashboard_grants;
mod database_broadcasts;
pub mod doctor;
mod health;
mod history;
mod leadership;
mod publications;
mod reload;
mod scheduler;
mod serve;
mod settings;
mod traces;
mod wal_consumer;

pub use channels::Channels;
pub use reload::{NotReloaded, Reload, ReloadOutcome, ReloadReport};
pub use serve::{Edge, serve_http};
pub use settings::SettingsChange;

use crate::{
    agent::{self, Agents, Definition},
    api,
    auth::{self, Keys},
    clock::Clock,
    config::{Config, Fingerprint, Options},
    db::Database,
    files,
    gateway::Gateway,
    hub::Hub,
    llm::Models,
    presence::Tracker,
    remote::Inboxes,
    scope::Scope,
    task::Tasks,
};
use anyhow::Context;
use assemble::assemble;
use std::{net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

/// The daemon's own publication: the tables that wakes name.
pub const PUBLICATION: &str = "convoke";
/// The publication of the tables that clients subscribe to.
pub const CLIENTS_PUBLICATION: &str = "supabase_realtime";

/// Time limit for running jobs to finish when the daemon stops.
const JOBS_WITHIN: Duration = Duration::from_secs(10);
/// Time limit for the last frames of websockets.
const SOCKETS_WITHIN: Duration = Duration::from_secs(2);
/// How long the first clients wait for the WAL stream to begin.
const SETTLED_WITHIN: Duration = Duration::from_secs(3);
/// Interval of the checks of [`Parts::ready`].
const READY_EVERY: Duration = Duration::from_millis(10);
/// Time limit for everything else to stop.
const REST_WITHIN: Duration = Duration::from_secs(5);

/// Puts a daemon together.
#[derive(Default)]
pub struct Builder {
    config: Config,
    definitions: Option<Vec<Definition>>,
    /// The files that `definitions` were read from, which are read again. `None`: they come from a program.
    files_read: Option<Fingerprint>,
    settings: Option<Options>,
    more: Vec<Definition>,
    registry: agent::Registry,
    models: Option<Models>,
    keeper: Option<PathBuf>,
    clock: Clock,
    stop: CancellationToken,
}

impl Builder {
    /// Hosts exactly these agents instead of those of `agents.dir`, whose files are not read.
    #[must_use]
    pub fn definitions(mut self, definitions: Vec<Definition>) -> Self {
        self.definitions = Some(definitions);
        self
    }

    /// Hosts these agents, which were read from `agents.dir`, and reads that folder again when its files are others than
    /// those of `read`, which is taken before the reading.
    #[must_use]
    pub fn definitions_of_files(mut self, definitions: Vec<Definition>, read: Fingerprint) -> Self {
        self.files_read = Some(read);
        self.definitions(definitions)
    }

    /// Reads the settings again, from where `config` was loaded, together with the agents' files.
    #[must_use]
    pub fn settings_of(mut self, options: Options) -> Self {
        self.settings = Some(options);
        self
    }

    /// Hosts an agent of this process beside the others; `definition.run.kind` is `rust`.
    #[must_use]
    pub fn agent(mut self, definition: Definition, agent: Arc<dyn agent::Agent>) -> Self {
        let name = definition.run.name.clone().unwrap_or_else(|| definition.id.to_string());
        self.registry.register(&name, agent);
        self.more.push(definition);
        self
    }

    /// Registers code that agents' files name with `kind = "rust"`.
    #[must_use]
    pub fn register(mut self, name: &str, agent: Arc<dyn agent::Agent>) -> Self {
        self.registry.register(name, agent);
        self
    }

    /// Uses these models instead of those that the agents' files name; for tests.
    #[must_use]
    pub fn models(mut self, models: Models) -> Self {
        self.models = Some(models);
        self
    }

    /// Reads the time of day from this clock, for tests: the expiry of tokens and sessions, histories and series. The
    /// database decides every deadline of a task.
    #[must_use]
    pub fn clock(mut self, clock: Clock) -> Self {
        self.clock = clock;
        self
    }

    /// Runs the programs of tools under keepers, so that their outcome is known also if this process is killed.
    /// `executable` is `convoke` itself. Without this call they end with this process.
    #[must_use]
    pub fn keeper(mut self, executable: PathBuf) -> Self {
        self.keeper = Some(executable);
        self
    }

    /// Gives up [`Builder::build`] when this token is canceled. Defaults to a token that never is.
    #[must_use]
    pub fn stop(mut self, stop: CancellationToken) -> Self {
        self.stop = stop;
        self
    }

    /// Binds, opens and migrates the database, and starts every part except accepting connections.
    ///
    /// # Errors
    /// The obstacle, in words for an operator: a port in use, a database that cannot be reached, a mistake in an
    /// agent's definition; or the token of [`Builder::stop`] was canceled. Everything that was started is stopped
    /// again. A read-only database is no error: the call waits until it accepts writes.
    pub async fn build(self) -> anyhow::Result<Daemon> {
        // HTTP clients use the TLS provider of the process; the program may have installed another one before.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let scope = Scope::default();
        let listen = self.config.server.listen;
        let listener =
            TcpListener::bind(listen).await.with_context(|| format!("cannot listen on {listen}"))?;
        // Before the folder is read or written: another user's files in it may be hostile. Made here, because the
        // first part that writes would make it with a mode that keeps the server's user out of it.
        files::own_folder(&self.config.database.data_dir)?;
        let database = Database::open(&self.config.database, &scope).await?;
        // Not before: a start of the private PostgreSQL that is cut off would leave a server that nothing stops. Opening
        // has limits of its own; what follows may wait without one.
        let stop = self.stop.clone();
        let assembled =
            stop.run_until_cancelled(assemble(self, scope.clone(), listener, database.clone())).await;
        match assembled.unwrap_or_else(|| Err(anyhow::anyhow!("stopped before the daemon was ready"))) {
            Ok(daemon) => Ok(daemon),
            Err(error) => {
                let _ = scope.drain(REST_WITHIN).await;
                let _ = database.stop().await;
                Err(error)
            }
        }
    }
}

/// A daemon that is ready to run.
pub struct Daemon {
    listener: TcpListener,
    routes: axum::Router,
    edge: Edge,
    parts: Parts,
    scope: Scope,
    /// The WAL stream and its consumer. Stops before the rest: its last confirmation needs the database.
    wal: Scope,
    /// Connections. Stops first, so that no new one is accepted and long polls end.
    serving: Scope,
}

/// The parts of a daemon that a program may use while it runs. Cloning is cheap.
#[derive(Clone)]
pub struct Parts {
    /// The address that it listens on.
    pub addr: SocketAddr,
    /// Its database.
    pub database: Database,
    /// The negotiation.
    pub tasks: Tasks,
    /// The channels.
    pub hub: Hub,
    /// The presence of clients and agents.
    pub tracker: Tracker,
    /// The agents that it hosts.
    pub agents: Agents,
    /// The keys of its tokens.
    pub keys: Keys,
    /// The state of its parts.
    pub health: api::Health,
    /// Reads the agents' files again.
    pub reload: Reload,
    gateway: Gateway,
    inboxes: Inboxes,
}

impl Parts {
    /// Waits until the daemon is ready: it leads and hosts its agents, or stands by for another leader.
    ///
    /// # Errors
    /// If it is not ready after `within`; the message names the missing parts.
    pub async fn ready(&self, within: Duration) -> anyhow::Result<()> {
        let ready = async {
            while !self.health.is_ready() {
                tokio::time::sleep(READY_EVERY).await;
            }
        };
        let outcome = tokio::time::timeout(within, ready).await;
        outcome.with_context(|| format!("not ready within {within:?}: {}", self.health.missing()))
    }
}

impl Daemon {
    /// A builder with these settings.
    #[must_use]
    pub fn builder(config: Config) -> Builder {
        Builder { config, ..Builder::default() }
    }

    /// Its parts, for programs that run it in their own process.
    #[must_use]
    pub fn parts(&self) -> &Parts {
        &self.parts
    }

    /// Serves until `stop` is cancelled, then stops everything in order.
    ///
    /// # Errors
    /// If a required part has failed; everything is stopped then, too.
    pub async fn run(self, stop: CancellationToken) -> anyhow::Result<()> {
        let Self { listener, routes, edge, parts, scope, wal, serving } = self;
        // Clients that reconnect after a restart then find the WAL stream open. A standby, or a daemon without its
        // database, accepts them after this limit all the same.
        let _late = stop.run_until_cancelled(parts.ready(SETTLED_WITHIN)).await;
        serve_http(&serving, crate::scope::OnExit::StopDaemon, listener, routes, edge);

        let failed = tokio::select! {
            () = stop.cancelled() => false,
            () = scope.failed() => true,
        };
        tracing::info!("stopping");
        serving.stop();
        parts.agents.drain(JOBS_WITHIN).await;
        // With the websockets, so that their agents are deregistered while the database is still open.
        parts.inboxes.stop();
        if let Err(stuck) = parts.gateway.stop(SOCKETS_WITHIN).await {
            tracing::warn!(left = stuck.left, "websockets did not close in time");
        }
        for (name, part, within) in
            [("wal", &wal, REST_WITHIN), ("http", &serving, SOCKETS_WITHIN), ("daemon", &scope, REST_WITHIN)]
        {
            if let Err(stuck) = part.drain(within).await {
                tracing::warn!(part = name, left = stuck.left, "spawned tasks did not stop in time");
            }
        }
        parts.database.stop().await.context("cannot stop the database")?;
        anyhow::ensure!(!failed, "a required part has failed; the process log names it");
        Ok(())
    }
}

/// The keys of the daemon's tokens: the secret of the settings, or the one in the data folder.
///
/// # Errors
/// If the secret cannot be read or generated.
pub fn keys(config: &Config) -> Result<Keys, auth::Error> {
    Keys::load_with_roles(&config.auth, &config.dashboard.roles, &config.database.data_dir)
}
