//! Builds the parts of a daemon in groups: storage, rights, negotiation, realtime, agents, doors, WAL.
use super::{
    Builder, CLIENTS_PUBLICATION, Daemon, Edge, PUBLICATION, Parts, change_log, dashboard_grants,
    database_broadcasts::DatabaseBroadcasts,
    health, history,
    leadership::{Leadership, Registration},
    publications,
    reload::{self, Reload},
    settings::Settings,
    traces, wal_consumer,
};
use crate::{
    access::{self, Access},
    agent::{self, Agents, Definition, Keeper, Trials},
    api,
    auth::{self, Keys},
    changes::{self, Appender, Changes},
    clock::Clock,
    config::{self, Config, Fingerprint, load_agents},
    dashboard,
    db::{self, Database, Reader},
    files,
    gateway::{self, Gateway},
    hub::{Hub, history::Rules},
    id::NodeId,
    llm::Models,
    presence::Tracker,
    remote::{self, Audience, Coordination, Identity, Inboxes},
    scope::{OnExit, Scope},
    task::{self, Notice, Tasks},
    telemetry::{Registry, Series},
    wal,
};
use anyhow::Context;
use parking_lot::RwLock;
use serde_json::json;
use std::{
    fmt::Write,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};
use tokio::{
    net::TcpListener,
    sync::{mpsc, watch},
    time::MissedTickBehavior,
};

/// Messages of clients to the daemon that wait for the dispatcher; more are dropped and counted.
const COORDINATION_MAX: usize = 4096;

/// Interval of the tries to write to a database that is read-only.
const WRITABLE_INTERVAL: Duration = Duration::from_secs(1);

/// Interval of the samples of metrics.
const SAMPLE_EVERY: Duration = Duration::from_secs(1);
/// Connections of the checks for an admin: some hold one while they ask on another.
const DOCTOR_CONNECTIONS: usize = 2;
/// Time limit of one statement of these checks.
const DOCTOR_WITHIN: Duration = Duration::from_secs(60);

/// What every group is built from.
struct Base {
    config: Config,
    scope: Scope,
    database: Database,
    clock: Clock,
    metrics: Registry,
    health: api::Health,
    addr: SocketAddr,
}

/// Who may do what on channels.
struct Rights {
    keys: Keys,
    access: Access,
}

/// Channels, presence and row changes.
struct Realtime {
    hub: Hub,
    tracker: Tracker,
    broadcasts: DatabaseBroadcasts,
    streaming: watch::Receiver<bool>,
    changes: Changes,
    appender: Appender,
}

/// The entries of commands and messages.
struct Doors {
    gateway: Gateway,
    identity: Identity,
    inboxes: Inboxes,
    coordination: mpsc::Receiver<Coordination>,
}

/// Builds a daemon on an open database. On an error the caller drains `scope`.
pub(super) async fn assemble(
    builder: Builder,
    scope: Scope,
    listener: TcpListener,
    database: Database,
) -> anyhow::Result<Daemon> {
    let Builder { config, definitions, files_read, settings, more, registry, models, keeper, clock, stop: _ } =
        builder;
    let addr = listener.local_addr()?;
    let (metrics, health) = (Registry::default(), api::Health::default());
    for part in ["database", "wal", "agents"] {
        health.set(part, api::PartState::Down, "starting");
    }
    let base = Base { config, scope, database, clock, metrics, health, addr };

    prepare_storage(&base).await?;
    let rights = build_rights(&base).await?;
    let (tasks, notices) = build_negotiation(&base);
    let realtime = build_realtime(&base, &rights.access).await?;
    let follows_files = files_read.is_some() || definitions.is_none();
    let mut definitions = definitions.map_or_else(|| load_agents(&base.config.agents.dir), Ok)?;
    definitions.extend(more.iter().cloned());
    let models =
        models.unwrap_or_else(|| Models::new(base.clock.clone())).with_config(base.config.llm.clone());
    models.register(&base.metrics);
    traces::start(&base.scope, &tasks, models.clients(), &base.config, &base.metrics)?;
    let keeper = keeper.map(|executable| keeper_of(&base.config, executable)).transpose()?;
    let hosting = (definitions, registry, models.clone(), keeper);
    let agents = build_agents(&base, &tasks, &realtime.tracker, &rights.keys, hosting).await?;
    let doors = build_doors(&base, &rights, &realtime);
    let Doors { gateway, identity, inboxes, coordination } = doors;
    let registration = Registration::default();
    let received = (coordination, notices);
    start_remote(&base, &tasks, &agents, &realtime, (&identity, &inboxes), received).await?;
    publish_tables(&base, &agents).await?;
    let Realtime { hub, tracker, .. } = &realtime;
    let (hub, tracker) = (hub.clone(), tracker.clone());
    let wal = start_wal(&base, &tasks, &agents, realtime, registration.clone()).await?;
    let shown = Arc::new(RwLock::new(config::shown(&base.config)));
    let reload = if follows_files {
        let settings = settings.map(|from| Settings::new(from, base.config.clone(), shown.clone()));
        let files = (more, registration, settings, files_read);
        follow_files(&base, &tasks, &agents, &identity, files)
    } else {
        Reload::never()
    };

    let Base { config, scope, database, clock, metrics, health, addr } = base;
    let edge = Edge::new(&config.server, &metrics, gateway.memory());
    health::start(&scope, (database.clone(), tasks.clone(), models.clone()), edge.clone(), health.clone());
    let (serving, keys) = (scope.child(), rights.keys);
    let series = sample_series(&scope, &metrics, &clock);
    let doctor = doctor(&config, &database)?;
    let trials = Trials::new(&database)?;
    let page = dashboard::Deps { database: database.clone(), keys: keys.clone(), clock: clock.clone() };
    let page = dashboard::router(&config.dashboard, page)?;
    let routes = gateway::router(&gateway).merge(page).merge(api::router(api::Deps {
        tasks: tasks.commands(),
        agents: agents.clone(),
        gateway: gateway.clone(),
        keys: keys.clone(),
        clock,
        health: health.clone(),
        metrics,
        identity,
        inboxes: inboxes.clone(),
        polls: api::Polls::default(),
        presence_rate: api::PresenceRate::default(),
        overviews: api::Overviews::default(),
        models,
        series,
        doctor,
        trials,
        reload: reload_of_api(&reload),
        settings: shown,
        viewers_see_data: config.dashboard.viewers_see_data(),
        stop: serving.stopping(),
    }));
    let parts = Parts { addr, database, tasks, hub, tracker, agents, keys, health, reload, gateway, inboxes };
    Ok(Daemon { listener, routes, edge, parts, scope, wal, serving })
}

/// Keeps the past of the metrics, with a sample each second.
fn sample_series(scope: &Scope, metrics: &Registry, clock: &Clock) -> Series {
    let series = Series::default();
    let (own, metrics, clock) = (series.clone(), metrics.clone(), clock.clone());
    scope.spawn("series of metrics", OnExit::Log, |stop| async move {
        let mut ticks = tokio::time::interval(SAMPLE_EVERY);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
        while stop.run_until_cancelled(ticks.tick()).await.is_some() {
            own.sample(&metrics, clock.now().timestamp());
        }
        Ok(())
    });
    series
}

/// The agents beside the files, the right to register, the settings, and the files that were read already.
type FollowedFiles = (Vec<Definition>, Registration, Option<Settings>, Option<Fingerprint>);

/// Reads the agents' files and the settings again when they change.
fn follow_files(
    base: &Base,
    tasks: &Tasks,
    agents: &Agents,
    identity: &Identity,
    (from_code, registration, settings, read): FollowedFiles,
) -> Reload {
    let deps = reload::Deps {
        dir: base.config.agents.dir.clone(),
        from_code,
        agents: agents.clone(),
        tasks: tasks.clone(),
        identity: identity.clone(),
        health: base.health.clone(),
        registration,
        settings,
    };
    reload::start(&base.scope, deps, read)
}

/// The reload as the routes know it.
fn reload_of_api(reload: &Reload) -> api::Reload {
    let reload = reload.clone();
    api::Reload::new(move || {
        let reload = reload.clone();
        Box::pin(async move {
            match reload.now().await {
                Ok(Ok(reloaded)) => api::Reloaded::Applied(json!(reloaded)),
                Ok(Err(problems)) => api::Reloaded::Refused(problems.to_string()),
                Err(error) => api::Reloaded::Not(error.to_string()),
            }
        })
    })
}

/// The checks of `convoke doctor` on connections of their own: a slow one must not take those of the negotiation.
fn doctor(config: &Config, database: &Database) -> anyhow::Result<api::Doctor> {
    let database = database.beside("convoke doctor", DOCTOR_CONNECTIONS, DOCTOR_WITHIN, "")?;
    let config = Arc::new(config.clone());
    Ok(api::Doctor::new(move || {
        let (config, database) = (config.clone(), database.clone());
        Box::pin(async move {
            match super::doctor::inspect(&config, &database, false, Some(DOCTOR_WITHIN)).await {
                Ok(findings) => serde_json::to_value(findings).ok(),
                Err(error) => {
                    tracing::warn!(error = format!("{error:#}"), "checks of the daemon could not be made");
                    None
                }
            }
        })
    }))
}

/// Migrates the database and checks that the daemon can work on it.
async fn prepare_storage(base: &Base) -> anyhow::Result<()> {
    let applied = migrate(&base.database).await?;
    if !applied.applied.is_empty() {
        tracing::info!(migrations = applied.applied.len(), "database migrated");
    }
    check_replication(&base.database).await
}

/// Migrates the database. Waits while it is read-only, like a standby that is not promoted yet; a running daemon waits
/// for it as well. Returns any other error, so that a mistake in the settings ends the start.
async fn migrate(database: &Database) -> Result<db::Migrated, db::Error> {
    let mut is_logged = false;
    loop {
        match db::migrate(database).await {
            Err(error @ db::Error::ReadOnly { .. }) => {
                if !std::mem::replace(&mut is_logged, true) {
                    tracing::warn!(%error, "database is read-only: the daemon starts when it accepts writes");
                }
                tokio::time::sleep(WRITABLE_INTERVAL).await;
            }
            outcome => return outcome,
        }
    }
}

/// Refuses an external database whose WAL cannot be streamed: on it no task would ever be awarded.
async fn check_replication(database: &Database) -> anyhow::Result<()> {
    if database.is_private() {
        return Ok(());
    }
    let mut missing = String::new();
    for finding in db::inspect(database).await? {
        if !finding.ok && matches!(finding.name, "primary" | "wal_level" | "replication_right") {
            let remedy = finding.remedy.unwrap_or_default();
            let _ = write!(missing, "\n  {}: {}: {remedy}", finding.name, finding.found);
        }
    }
    anyhow::ensure!(missing.is_empty(), "the log of {} cannot be read:{missing}", database.url_redacted());
    Ok(())
}

async fn build_rights(base: &Base) -> anyhow::Result<Rights> {
    let Base { config, scope, database, metrics, .. } = base;
    access::check_roles(database, &config.auth.roles).await?;
    let keys = super::keys(config)?;
    keys.keep_fresh(scope);
    for finding in access::prepare(database).await?.into_iter().filter(|finding| !finding.ok) {
        let remedy = finding.remedy.unwrap_or_default();
        tracing::warn!(
            what = finding.what,
            found = finding.found,
            remedy,
            "private channel setup incomplete"
        );
    }
    let access = Access::new(database, &config.access, metrics)?;
    access::partition_maintenance::start(scope, database, config.access.messages_retention);
    Ok(Rights { keys, access })
}

fn build_negotiation(base: &Base) -> (Tasks, mpsc::Receiver<Vec<Notice>>) {
    let metrics = task::Metrics::register(&base.metrics);
    let (mut settings, otlp) = (base.config.task.clone(), &base.config.telemetry.otlp);
    settings.traced_percent = if otlp.is_on() { otlp.percent } else { 0 };
    Tasks::start(&base.scope, base.database.clone(), NodeId::generate(), &settings, metrics)
}

async fn build_realtime(base: &Base, access: &Access) -> anyhow::Result<Realtime> {
    let Base { config, scope, clock, metrics, health, .. } = base;
    let hub = Hub::new(metrics);
    history::start(scope, &hub, config, clock, metrics, health)?;
    let tracker = Tracker::start(scope, hub.clone(), metrics);
    let payload_bytes_max = config.gateway.payload_bytes_max;
    let (broadcasts, streaming) =
        DatabaseBroadcasts::new(hub.clone(), access.clone(), payload_bytes_max, metrics);
    let deps = changes_deps(base, hub.clone(), streaming.clone())?;
    let (changes, appender) = change_log::start(scope, deps, config, health).await?;
    Ok(Realtime { hub, tracker, broadcasts, streaming, changes, appender })
}

fn changes_deps(base: &Base, hub: Hub, streaming: watch::Receiver<bool>) -> anyhow::Result<changes::Deps> {
    let Base { config, scope, database, clock, metrics, .. } = base;
    // Pools of their own: slow policies and filters of clients must not take the negotiation's connections.
    let timeout = config.database.statement_timeout;
    let filters = changes::FILTERS_CONNECTIONS;
    Ok(changes::Deps {
        database: database.beside("convoke changes", config.changes.connections_max, timeout, "")?,
        filters: database.beside_at_low_priority("convoke filters", filters, timeout)?,
        rows: access::rows::Rows::new(scope, database.clone(), config.access.rows.clone(), metrics),
        hub,
        clock: clock.clone(),
        registry: metrics.clone(),
        publications: vec![CLIENTS_PUBLICATION.into(), PUBLICATION.into()],
        streaming,
        resumable: Rules::new(config.channels.clone()).longest(),
    })
}

/// Keepers that are this executable. The outputs of programs are in their folder, so it is the daemon's own.
fn keeper_of(config: &Config, executable: std::path::PathBuf) -> anyhow::Result<Keeper> {
    let folder = config.database.data_dir.join("calls");
    files::inner_folder(&folder)?;
    // The keepers and the daemon may have other working folders.
    Ok(Keeper::new(executable, std::path::absolute(folder)?))
}

async fn build_agents(
    base: &Base,
    tasks: &Tasks,
    tracker: &Tracker,
    keys: &Keys,
    (definitions, registry, models, keeper): (Vec<Definition>, agent::Registry, Models, Option<Keeper>),
) -> anyhow::Result<Agents> {
    let (env, reader) = (agent::Env::process(), Reader::new(base.database.target().clone()));
    let unfit = agent::unfit_readers(&definitions, &env, &reader).await;
    let deps = agent::Deps {
        tasks: tasks.commands(),
        tracker: tracker.clone(),
        clock: base.clock.clone(),
        metrics: agent::Metrics::registered(&base.metrics),
        models,
        env,
        credentials: credential_issuer(base.addr, keys, &base.clock),
        reader: Some(reader),
        keeper,
        unfit,
    };
    Ok(Agents::start(&base.scope, deps, definitions, registry)?)
}

/// Issues the tokens with which jobs of hosted agents request parts over HTTP. A token ends with its job.
fn credential_issuer(addr: SocketAddr, keys: &Keys, clock: &Clock) -> agent::CredentialIssuer {
    let ip = match addr.ip() {
        ip if ip.is_unspecified() && ip.is_ipv4() => IpAddr::from(Ipv4Addr::LOCALHOST),
        ip if ip.is_unspecified() => IpAddr::from(Ipv6Addr::LOCALHOST),
        ip => ip,
    };
    let (url, keys, clock) =
        (format!("http://{}", SocketAddr::new(ip, addr.port())), keys.clone(), clock.clone());
    agent::CredentialIssuer::new(move |agent, org, ttl| {
        let (org, agent_id) = (Some(org.clone()), Some(agent.clone()));
        let request =
            auth::MintRequest { org, agent_id, ttl, ..auth::MintRequest::new(auth::Role::Authenticated) };
        let token = auth::mint(&keys, &request, clock.now()).ok()?;
        Some(agent::JobCredentials { url: url.clone(), token })
    })
}

fn build_doors(base: &Base, rights: &Rights, realtime: &Realtime) -> Doors {
    let Base { config, scope, clock, metrics, .. } = base;
    let Realtime { hub, tracker, changes, streaming, .. } = realtime;
    let (sender, coordination) = mpsc::channel(COORDINATION_MAX);
    // The check of the settings refuses open observers if viewers see no data.
    let audience = match config.access.observers.open(config.server.listen) {
        true => Audience::Everybody,
        false if config.dashboard.viewers_see_data() => Audience::Org,
        false => Audience::OrgWithoutViewers,
    };
    let identity = Identity::new(tracker.clone(), Some(sender), audience);
    let inboxes = Inboxes::new(scope, hub.clone(), identity.clone());
    let deps = gateway::Deps {
        keys: rights.keys.clone(),
        access: rights.access.clone(),
        hub: hub.clone(),
        tracker: tracker.clone(),
        clock: clock.clone(),
        registry: metrics.clone(),
        identity: identity.clone(),
        changes: Some(changes.clone()),
        streaming: Some(streaming.clone()),
    };
    let gateway = Gateway::new(scope, config.gateway.clone(), deps);
    Doors { gateway, identity, inboxes, coordination }
}

async fn start_remote(
    base: &Base,
    tasks: &Tasks,
    agents: &Agents,
    realtime: &Realtime,
    (identity, inboxes): (&Identity, &Inboxes),
    (coordination, notices): (mpsc::Receiver<Coordination>, mpsc::Receiver<Vec<Notice>>),
) -> anyhow::Result<()> {
    let deps = remote::Deps {
        tasks: tasks.clone(),
        agents: agents.clone(),
        tracker: realtime.tracker.clone(),
        hub: realtime.hub.clone(),
        clock: base.clock.clone(),
        identity: identity.clone(),
        inboxes: inboxes.clone(),
        admission: remote::Admission::of(base.config.agents.remote, base.config.server.listen),
        coordination,
        notices,
    };
    Ok(remote::start(&base.scope, deps).await?)
}

/// Publishes the tables that wakes and dashboards read, before the WAL stream starts.
async fn publish_tables(base: &Base, agents: &Agents) -> anyhow::Result<()> {
    let Base { config, scope, database, health, .. } = base;
    publications::start(scope, database, agents, health).await?;
    let observed = config.task.observed.then_some(CLIENTS_PUBLICATION);
    dashboard_grants::apply(database, observed, config.access.observers.open(config.server.listen)).await
}

/// Starts the WAL stream and its consumer in a scope of their own.
async fn start_wal(
    base: &Base,
    tasks: &Tasks,
    agents: &Agents,
    realtime: Realtime,
    registration: Registration,
) -> anyhow::Result<Scope> {
    let Base { config, scope, database, metrics, health, clock, .. } = base;
    let Realtime { broadcasts, appender, .. } = realtime;
    let (own, data_dir) = (Scope::default(), &config.database.data_dir);
    let local = wal::Local {
        spill_dir: data_dir.join("spill"),
        position_file: Some(data_dir.join("wal").join(format!("{}.position", config.wal.slot))),
        reached: appender.reached(),
    };
    let stream = wal::start(
        &own,
        database.clone(),
        config.wal.clone(),
        vec![PUBLICATION.into(), CLIENTS_PUBLICATION.into()],
        local,
        wal::Metrics::register(metrics),
    );
    let ignored = prometheus_client::metrics::counter::Counter::default();
    let help = "DatabaseBroadcasts in the WAL with the daemon's prefix that are not the daemon's";
    metrics.register("wal_messages_ignored", help, ignored.clone());
    let deps = wal_consumer::Deps {
        database: database.clone(),
        tasks: tasks.triggers(),
        wake_key: tasks.wake_key().await.context("cannot read the key of wake-ups")?,
        ignored,
        agents: agents.clone(),
        health: health.clone(),
        messages: broadcasts,
        appender,
        progress: scope.watch("wal_consumer", health::STALLED_AFTER),
        clock: clock.clone(),
    };
    let leadership = Leadership::new(scope, tasks.clone(), agents.clone(), health.clone(), registration);
    wal_consumer::start(&own, stream, deps, leadership);
    Ok(own)
}
