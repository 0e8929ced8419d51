//! A daemon for a benchmark, on a database that it leaves as it was.
use super::{figures::Figures, history, machine::Postgres};
use anyhow::{Context, bail, ensure};
use convoke::{
    agent::{Agent, Definition},
    app::{Daemon, Parts},
    config::Config,
    db::{self, Database, private},
    scope::Scope,
};
use secrecy::ExposeSecret;
use sha2::{Digest, Sha256};
use std::{path::Path, sync::Arc, time::Duration};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// The replication slot of benchmarks, or how its name begins.
const SLOT: &str = "convoke_bench";
/// How the name of the folder of a private PostgreSQL begins; the process id follows.
const FOLDER: &str = "convoke-bench-";
/// How long the server may still name the reader of a slot after the reader has ended.
const SLOT_FREE_WITHIN: Duration = Duration::from_secs(10);
const READY_WITHIN: Duration = Duration::from_secs(30);
/// Time of one statement that writes finished tasks.
const HISTORY_WITHIN: Duration = Duration::from_secs(600);

/// A Rust agent with its definition.
pub(super) type HostedAgent = (Definition, Arc<dyn Agent>);

/// What a benchmark needs before it measures.
pub(super) struct Fixture {
    pub(super) config: Config,
    pub(super) agents: Vec<HostedAgent>,
    /// Agents whose code is not in this process.
    pub(super) definitions: Vec<Definition>,
    /// Statements that make the tables of the benchmark.
    pub(super) schema: &'static str,
    /// Finished tasks in the tables, each with an offer of every agent.
    pub(super) finished: u64,
}

impl Fixture {
    /// Runs the daemon while `work` measures, and then removes what the benchmark made, after figures, a failure,
    /// Ctrl-C or SIGTERM: a private PostgreSQL whole; of an existing database the replication slot and the tables.
    /// Tasks of org `bench` stay there until `task.retention` removes them.
    ///
    /// After SIGKILL, a private PostgreSQL is removed by the next benchmark on this machine, and a slot and tables by
    /// the next benchmark on that database.
    pub(super) async fn measure<T>(
        mut self,
        figures: &mut Figures,
        work: impl AsyncFnOnce(&Parts, &mut Figures) -> anyhow::Result<T>,
    ) -> anyhow::Result<T> {
        // From here on a signal no longer ends the process: it is looked at between steps that must not be cut short.
        let stop = StopSignals::listen()?;
        if self.config.database.url.is_some() {
            return self.on_existing_database(figures, work, stop).await;
        }
        remove_killed_servers(&self.config.database).await;
        let folder = std::env::temp_dir().join(format!("{FOLDER}{}", std::process::id()));
        self.config.database.data_dir.clone_from(&folder);
        self.config.wal.slot = SLOT.into();
        let outcome = self.run_daemon(figures, work, stop).await;
        if folder.exists() {
            remove_folder(&folder)?;
        }
        outcome
    }

    async fn on_existing_database<T>(
        mut self,
        figures: &mut Figures,
        work: impl AsyncFnOnce(&Parts, &mut Figures) -> anyhow::Result<T>,
        stop: StopSignals,
    ) -> anyhow::Result<T> {
        let database = self.config.database.clone();
        let slot = slot_name(&database)?;
        self.config.wal.slot.clone_from(&slot);
        // What a benchmark left that was killed.
        remove_leftovers(&database, &slot).await?;
        let outcome = self.run_daemon(figures, work, stop).await;
        let removed = remove_leftovers(&database, &slot).await;
        // The failure of the benchmark explains more than that of the removal after it.
        let outcome = outcome?;
        removed.map(|()| outcome)
    }

    async fn run_daemon<T>(
        self,
        figures: &mut Figures,
        work: impl AsyncFnOnce(&Parts, &mut Figures) -> anyhow::Result<T>,
        mut stop: StopSignals,
    ) -> anyhow::Result<T> {
        let Self { mut config, agents, definitions, schema, finished } = self;
        config.server.listen.set_port(0);
        prepare(&mut stop, &config.database, async |database| {
            let client = database.client().await?;
            client.batch_execute(schema).await.context("cannot make the tables of the benchmark")
        })
        .await?;
        if finished > 0 {
            let mut database = config.database.clone();
            database.statement_timeout = HISTORY_WITHIN;
            let bidders = u32::try_from(agents.len())?;
            prepare(&mut stop, &database, async |database| history::fill(database, finished, bidders).await)
                .await?;
        }
        let builder = Daemon::builder(config).definitions(definitions);
        let builder =
            agents.into_iter().fold(builder, |builder, (definition, agent)| builder.agent(definition, agent));
        let daemon = builder.build().await?;
        let (parts, end) = (daemon.parts().clone(), CancellationToken::new());
        let ended = end.clone();
        #[expect(clippy::disallowed_methods, reason = "the daemon has its own scope, and is awaited below")]
        let running = tokio::spawn(daemon.run(ended));
        let measured = async {
            parts.ready(READY_WITHIN).await?;
            let client = parts.database.client().await?;
            figures.postgres = Some(Postgres::read(&client, parts.database.is_private()).await?);
            drop(client);
            work(&parts, figures).await
        };
        let outcome = stop.or(measured).await;
        // The daemon waits for its parts when it stops.
        drop(parts);
        end.cancel();
        let stopped = running.await.context("the daemon panicked")?;
        let measured = outcome?;
        stopped?;
        Ok(measured)
    }
}

/// Runs `work` on a private PostgreSQL that is removed afterwards, as for [`Fixture::measure`].
pub(super) async fn on_private_server<T>(
    config: &Config,
    work: impl AsyncFnOnce(&Database) -> anyhow::Result<T>,
) -> anyhow::Result<T> {
    let mut stop = StopSignals::listen()?;
    remove_killed_servers(&config.database).await;
    let mut config = config.database.clone();
    config.data_dir = std::env::temp_dir().join(format!("{FOLDER}{}", std::process::id()));
    let folder = config.data_dir.clone();
    let mut value = None;
    let outcome = prepare(&mut stop, &config, async |database| {
        value = Some(work(database).await?);
        Ok(())
    })
    .await;
    if folder.exists() {
        remove_folder(&folder)?;
    }
    outcome?;
    value.context("the work has no outcome")
}

/// SIGINT and SIGTERM.
struct StopSignals {
    interrupt: Signal,
    terminate: Signal,
}

impl StopSignals {
    fn listen() -> anyhow::Result<Self> {
        Ok(Self { interrupt: signal(SignalKind::interrupt())?, terminate: signal(SignalKind::terminate())? })
    }

    /// Returns the outcome of `work`, or an error once one of the signals has arrived.
    async fn or<T>(&mut self, work: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
        tokio::select! {
            outcome = work => outcome,
            _ = self.interrupt.recv() => bail!("interrupted"),
            _ = self.terminate.recv() => bail!("terminated"),
        }
    }
}

/// Works on the database before the daemon starts, and closes it whatever the outcome.
async fn prepare(
    stop: &mut StopSignals,
    config: &db::Config,
    work: impl AsyncFnOnce(&Database) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let scope = Scope::default();
    let database = Database::open(config, &scope).await?;
    let outcome = stop.or(work(&database)).await;
    database.stop().await?;
    let _ = scope.drain(Duration::from_secs(5)).await;
    outcome
}

/// One slot for each database, because slots belong to the whole server: two benchmarks on two databases of one server
/// must not take each other's.
fn slot_name(config: &db::Config) -> anyhow::Result<String> {
    let Some(url) = &config.url else { return Ok(SLOT.into()) };
    let name = db::Target::parse(url.expose_secret())?.database;
    let hash = Sha256::digest(name).iter().take(6).map(|byte| format!("{byte:02x}")).collect::<String>();
    Ok(format!("{SLOT}_{hash}"))
}

/// Drops the slot, for which the server would keep WAL until its disk is full, and the tables of the benchmark.
async fn remove_leftovers(config: &db::Config, slot: &str) -> anyhow::Result<()> {
    let scope = Scope::default();
    let database = Database::open(config, &scope).await?;
    let removed = async {
        let client = database.client().await?;
        let began = tokio::time::Instant::now();
        // The server notices the end of the slot's reader a moment later.
        while let Some(row) = client.query_opt(include_str!("sql/drop_slot.sql"), &[&slot]).await? {
            if row.try_get::<_, bool>("dropped")? {
                break;
            }
            let reader: Option<i32> = row.try_get("active_pid")?;
            let reader = reader.unwrap_or_default();
            ensure!(
                began.elapsed() < SLOT_FREE_WITHIN,
                "replication slot {slot} is in use by process {reader} of the server: is another benchmark running on \
                 this database?"
            );
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        anyhow::Ok(client.batch_execute(include_str!("sql/drop_tables.sql")).await?)
    };
    let outcome = removed.await;
    database.stop().await?;
    let _ = scope.drain(Duration::from_secs(5)).await;
    outcome.with_context(|| format!("cannot remove what a benchmark left in the database, with slot {slot}"))
}

/// Stops and removes every private PostgreSQL whose benchmark was killed. A server outlives SIGKILL of its daemon, and
/// nothing else would ever stop it. A failure is reported and does not stop this benchmark.
async fn remove_killed_servers(config: &db::Config) {
    let folders = std::fs::read_dir(std::env::temp_dir()).into_iter().flatten().flatten();
    for folder in folders {
        let name = folder.file_name();
        let pid = name.to_str().and_then(|name| name.strip_prefix(FOLDER)?.parse::<u32>().ok());
        // A benchmark that runs has a process, and holds the lock on its folder only a moment after it is made.
        let Some(_) = pid.filter(|pid| !Path::new(&format!("/proc/{pid}")).exists()) else { continue };
        if let Err(error) = remove_killed_server(config, &folder.path()).await {
            eprintln!("cannot remove {}, which a benchmark left: {error:#}", folder.path().display());
        }
    }
}

async fn remove_killed_server(config: &db::Config, folder: &Path) -> anyhow::Result<()> {
    let bin_dir = config.bin_dir.clone();
    let options = private::Options { data_dir: folder.to_owned(), bin_dir, settings: Vec::new() };
    // Refuses a folder of another user, takes the server over if it runs, and starts it if it does not.
    private::Server::open(&options).await?.stop().await?;
    remove_folder(folder)
}

fn remove_folder(folder: &Path) -> anyhow::Result<()> {
    std::fs::remove_dir_all(folder).with_context(|| format!("cannot remove {}", folder.display()))
}
