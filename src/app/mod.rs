//! Wires everything: `build` makes a [`Daemon`] of the settings, `run` serves until it is told to stop.
//!
//! The composition root: it knows every part, and nothing but the command line knows
//! it. What one domain must hear of another passes through here as data: changes of
//! the log to the wake index ([`router`]), what commits did to channels and agents
//! ([`herald`]), who leads to the agents that it hosts ([`host`]).
//!
//! Start: bind (fail early) → database → migrate → negotiation → channels → agents →
//! log → accept. Stop, each phase with its limit: stop accepting → agents finish or
//! let go → sockets get their close → the log's last confirmation → the database.
mod channels;
mod clockwork;
mod health;
mod herald;
mod history;
mod host;
mod messages;
mod observers;
mod publications;
mod remote;
mod router;
mod row_changes;
mod serve;
mod voice;

pub use channels::Channels;
pub use serve::serve_http;

use crate::{
    access::{self, Access},
    agent::{self, Agents, Definition},
    api,
    auth::{self, Keys},
    changes,
    clock::Clock,
    config::{Config, load_agents},
    db::{self, Database},
    gateway::{self, Gateway},
    hub::{Hub, history::Rules},
    id::NodeId,
    llm::Models,
    presence::Tracker,
    scope::Scope,
    task::{self, Tasks},
    telemetry::Registry,
    wal,
};
use anyhow::Context;
use std::{
    fmt::Write,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};
use tokio::{net::TcpListener, sync::mpsc};
use tokio_util::sync::CancellationToken;

/// Publication of our own: the tables that wakes name.
pub const PUBLICATION: &str = "convoke";
/// Publication of the tables that clients watch.
pub const CLIENTS_PUBLICATION: &str = "supabase_realtime";

/// What clients say to agents and the daemon has not looked at yet; more is dropped and counted.
const SAID_MAX: usize = 4096;
/// How long running jobs may take over finishing when the daemon stops.
const JOBS_WITHIN: Duration = Duration::from_secs(10);
/// How long sockets may take over their last frames.
const SOCKETS_WITHIN: Duration = Duration::from_secs(2);
/// How long the first sockets wait for the log to be read.
const SETTLED_WITHIN: Duration = Duration::from_secs(3);
/// How often readiness is looked at while someone waits for it.
const READY_EVERY: Duration = Duration::from_millis(10);
/// How long everything else may take.
const REST_WITHIN: Duration = Duration::from_secs(5);

/// Puts a daemon together.
#[derive(Default)]
pub struct Builder {
    config: Config,
    definitions: Option<Vec<Definition>>,
    more: Vec<Definition>,
    registry: agent::Registry,
    models: Option<Models>,
    clock: Clock,
}

impl Builder {
    /// Hosts exactly these agents instead of those of `agents.dir`.
    #[must_use]
    pub fn definitions(mut self, definitions: Vec<Definition>) -> Self {
        self.definitions = Some(definitions);
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

    /// Asks these models instead of those that the agents' files name; for tests.
    #[must_use]
    pub fn models(mut self, models: Models) -> Self {
        self.models = Some(models);
        self
    }

    /// Binds, opens and migrates the database, and starts every part but the accepting of connections.
    ///
    /// # Errors
    /// What stands in the way, made for an operator to read: a port in use, a database that
    /// cannot be reached, an agent's file with a mistake. What was started is stopped again.
    pub async fn build(self) -> anyhow::Result<Daemon> {
        // HTTP clients take their TLS from the process; a program may have chosen another before.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let scope = Scope::default();
        let listen = self.config.server.listen;
        let listener =
            TcpListener::bind(listen).await.with_context(|| format!("cannot listen on {listen}"))?;
        let database = Database::open(&self.config.database, &scope).await?;
        match assemble(self, scope.clone(), listener, database.clone()).await {
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
    parts: Parts,
    scope: Scope,
    /// Stops before the rest, so that the log's last confirmation finds the database there.
    log: Scope,
    /// Stops first: nothing new is accepted and long polls end.
    serving: Scope,
}

/// The parts of a daemon that others may use while it runs. Cloning is cheap.
#[derive(Clone)]
pub struct Parts {
    /// Where it listens.
    pub addr: SocketAddr,
    /// Its database.
    pub database: Database,
    /// The negotiation.
    pub tasks: Tasks,
    /// The channels.
    pub hub: Hub,
    /// Who is present.
    pub tracker: Tracker,
    /// The agents that it hosts.
    pub agents: Agents,
    /// What its tokens are made and checked with.
    pub keys: Keys,
    /// How its parts are.
    pub health: api::Health,
    gateway: Gateway,
}

impl Parts {
    /// Waits until the daemon is ready: it leads and hosts its agents, or stands by for another.
    ///
    /// # Errors
    /// When it is not after `within`.
    pub async fn ready(&self, within: Duration) -> anyhow::Result<()> {
        let ready = async {
            while !self.health.is_ready() {
                tokio::time::sleep(READY_EVERY).await;
            }
        };
        tokio::time::timeout(within, ready).await.with_context(|| format!("not ready within {within:?}"))
    }
}

impl Daemon {
    /// Begins to put a daemon together with these settings.
    #[must_use]
    pub fn builder(config: Config) -> Builder {
        Builder { config, ..Builder::default() }
    }

    /// Its parts, for the tests and programs that run it in their own process.
    #[must_use]
    pub fn parts(&self) -> &Parts {
        &self.parts
    }

    /// Serves until `stop` is cancelled, then stops everything in order.
    ///
    /// # Errors
    /// When a part that it cannot do without has failed; everything is stopped then, too.
    pub async fn run(self, stop: CancellationToken) -> anyhow::Result<()> {
        let Self { listener, routes, parts, scope, log, serving } = self;
        // Clients that come back with the daemon find the log read; whoever stands by, or waits for its database,
        // answers all the same.
        let _late = stop.run_until_cancelled(parts.ready(SETTLED_WITHIN)).await;
        serve_http(&serving, crate::scope::OnExit::StopDaemon, listener, routes);

        let failed = tokio::select! {
            () = stop.cancelled() => false,
            () = scope.failed() => true,
        };
        tracing::info!("stopping");
        serving.stop();
        parts.agents.drain(JOBS_WITHIN).await;
        if let Err(stuck) = parts.gateway.stop(SOCKETS_WITHIN).await {
            tracing::warn!(left = stuck.left, "sockets did not close in time");
        }
        for (name, part, within) in
            [("log", &log, REST_WITHIN), ("http", &serving, SOCKETS_WITHIN), ("daemon", &scope, REST_WITHIN)]
        {
            if let Err(stuck) = part.drain(within).await {
                tracing::warn!(part = name, left = stuck.left, "tasks did not stop in time");
            }
        }
        parts.database.stop().await.context("cannot stop the database")?;
        anyhow::ensure!(!failed, "a part that the daemon needs has failed; the log says which");
        Ok(())
    }
}

/// Refuses an outside database whose log cannot be read: without it nothing would ever be awarded.
async fn able_to_stream(database: &Database) -> anyhow::Result<()> {
    if database.is_private() {
        return Ok(());
    }
    let mut lacks = String::new();
    for finding in db::inspect(database).await? {
        if !finding.ok && matches!(finding.name, "primary" | "wal_level" | "replication_right") {
            let remedy = finding.remedy.unwrap_or_default();
            let _ = write!(lacks, "\n  {}: {}: {remedy}", finding.name, finding.found);
        }
    }
    anyhow::ensure!(lacks.is_empty(), "the log of {} cannot be read:{lacks}", database.url_redacted());
    Ok(())
}

/// What lets the jobs of hosted agents request parts over HTTP: a token of their agent that ends with them.
fn passes(addr: SocketAddr, keys: &Keys, clock: &Clock) -> agent::Passes {
    let ip = match addr.ip() {
        ip if ip.is_unspecified() && ip.is_ipv4() => IpAddr::from(Ipv4Addr::LOCALHOST),
        ip if ip.is_unspecified() => IpAddr::from(Ipv6Addr::LOCALHOST),
        ip => ip,
    };
    let (url, keys, clock) =
        (format!("http://{}", SocketAddr::new(ip, addr.port())), keys.clone(), clock.clone());
    agent::Passes::new(move |agent, org, ttl| {
        let (org, agent_id) = (Some(org.clone()), Some(agent.clone()));
        let wish = auth::MintRequest { role: auth::Role::Authenticated, org, agent_id, ttl };
        let token = auth::mint(&keys, &wish, clock.now()).ok()?;
        Some(agent::Pass { url: url.clone(), token })
    })
}

async fn assemble(
    builder: Builder,
    scope: Scope,
    listener: TcpListener,
    database: Database,
) -> anyhow::Result<Daemon> {
    let Builder { config, definitions, more, registry, models, clock } = builder;
    let listen = config.server.listen;
    let applied = db::migrate(&database).await?;
    if !applied.applied.is_empty() {
        tracing::info!(migrations = applied.applied.len(), "database migrated");
    }
    able_to_stream(&database).await?;
    let metrics = Registry::default();
    let node = NodeId::generate();
    let keys = Keys::load_or_generate(&config.auth, &config.database.data_dir)?;
    keys.keep_fresh(&scope);
    let health = api::Health::default();
    for part in ["database", "wal", "agents"] {
        health.set(part, api::PartState::Down, "starting");
    }

    let (tasks, notices) =
        Tasks::start(&scope, database.clone(), node, &config.task, task::Metrics::register(&metrics));
    let hub = Hub::new(&metrics);
    history::start(&scope, &hub, &config, &clock, &metrics, &health)?;
    let tracker = Tracker::start(&scope, hub.clone(), &metrics);
    let mut definitions = match definitions {
        Some(definitions) => definitions,
        None => load_agents(&config.agents.dir)?,
    };
    definitions.extend(more);
    let deps = agent::Deps {
        tasks: tasks.clone(),
        tracker: tracker.clone(),
        clock: clock.clone(),
        metrics: agent::Metrics::registered(&metrics),
        models: models.unwrap_or_else(|| Models::new(clock.clone())),
        env: agent::Env::process(),
        passes: passes(listener.local_addr()?, &keys, &clock),
    };
    let agents = Agents::start(&scope, deps, definitions, registry)?;
    for finding in access::prepare(&database).await?.into_iter().filter(|finding| !finding.ok) {
        let remedy = finding.remedy.unwrap_or_default();
        tracing::warn!(what = finding.what, found = finding.found, remedy, "private channels lack something");
    }
    let access = Access::new(&database, &config.access, &metrics)?;
    let (messages, streaming) =
        messages::Messages::new(hub.clone(), access.clone(), config.gateway.payload_bytes_max, &metrics);
    access::upkeep::start(&scope, &database, config.access.messages_retention);
    let rows = access::rows::Rows::new(&scope, database.clone(), config.access.rows.clone(), &metrics);
    let deps = changes::Deps {
        database: database.beside(
            "convoke changes",
            config.changes.connections_max,
            config.database.statement_timeout,
        )?,
        rows,
        hub: hub.clone(),
        clock: clock.clone(),
        registry: metrics.clone(),
        publications: vec![CLIENTS_PUBLICATION.into(), PUBLICATION.into()],
        streaming: streaming.clone(),
        resumable: Rules::new(config.channels.clone()).longest(),
    };
    let (changes, appender) = row_changes::start(&scope, deps, &config, &health).await?;
    let (said, heard) = mpsc::channel(SAID_MAX);
    let gateway = Gateway::new(
        &scope,
        config.gateway.clone(),
        gateway::Deps {
            keys: keys.clone(),
            access,
            hub: hub.clone(),
            tracker: tracker.clone(),
            clock: clock.clone(),
            registry: metrics.clone(),
            coordination: Some(said),
            changes: Some(changes),
            streaming: Some(streaming),
        },
    );
    let voice = voice::Voice { hub: hub.clone(), clock: clock.clone() };
    let remote = remote::Deps {
        tasks: tasks.clone(),
        agents: agents.clone(),
        tracker: tracker.clone(),
        voice: voice.clone(),
        attendance: gateway.attendance(),
        post: gateway.post(),
        admission: remote::Admission::of(config.agents.remote, listen),
    };
    let remote = remote::start(&scope, remote, heard);
    herald::start(&scope, notices, voice, agents.clone(), remote);
    publications::start(&scope, &database, &agents).await?;
    let observed = config.task.observed.then_some(CLIENTS_PUBLICATION);
    observers::admit(&database, observed).await?;

    let log = Scope::default();
    let stream = wal::start(
        &log,
        database.clone(),
        config.wal.clone(),
        vec![PUBLICATION.into(), CLIENTS_PUBLICATION.into()],
        config.database.data_dir.join("spill"),
        wal::Metrics::register(&metrics),
    );
    let host = host::Host::new(&scope, tasks.clone(), agents.clone(), health.clone());
    router::start(
        &log,
        stream,
        router::Deps {
            database: database.clone(),
            tasks: tasks.clone(),
            wakes: agents.wakes(),
            health: health.clone(),
            messages,
            appender,
        },
        host,
    );
    health::start(&scope, database.clone(), health.clone());

    let serving = scope.child();
    let routes = gateway::router(&gateway).merge(api::router(api::Deps {
        tasks: tasks.clone(),
        gateway: gateway.clone(),
        keys: keys.clone(),
        clock,
        health: health.clone(),
        metrics,
        post: gateway.post(),
        polls: api::Polls::default(),
        stop: serving.stopping(),
    }));
    let addr = listener.local_addr()?;
    let parts = Parts { addr, database, tasks, hub, tracker, agents, keys, health, gateway };
    Ok(Daemon { listener, routes, parts, scope, log, serving })
}

/// What the daemon's tokens are made with: the secret of the settings, or the one kept in the data folder.
///
/// # Errors
/// When the secret cannot be read or made.
pub fn keys(config: &Config) -> Result<Keys, auth::Error> {
    Keys::load_or_generate(&config.auth, &config.database.data_dir)
}
