//! A daemon for a measurement, on a database of its own; nothing of it is left, however it ends.
use super::history;
use crate::{
    agent::{Agent, Definition},
    app::{Daemon, Parts},
    cli::Failure,
    config::Config,
    db::{self, Database},
    scope::Scope,
};
use anyhow::{Context, anyhow};
use std::{sync::Arc, time::Duration};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// A Rust agent with its definition.
pub(super) type Hosted = (Definition, Arc<dyn Agent>);

/// What there is before the daemon.
pub(super) struct Setting {
    pub(super) config: Config,
    pub(super) agents: Vec<Hosted>,
    /// Statements that make the tables that the measurement names.
    pub(super) schema: &'static str,
    /// Tasks that are done already, with an offer of each agent on each.
    pub(super) finished: u64,
}

impl Setting {
    /// Measures, and takes everything away again after figures, a failure or Ctrl-C.
    pub(super) async fn measure<T>(
        mut self,
        work: impl AsyncFnOnce(&Parts) -> Result<T, Failure>,
    ) -> Result<T, Failure> {
        let database = &mut self.config.database;
        let folder = database.url.is_none().then(|| {
            let folder = std::env::temp_dir().join(format!("convoke-bench-{}", std::process::id()));
            database.data_dir.clone_from(&folder);
            folder
        });
        // From now on it waits until somebody looks at it: what is being started is started and stopped.
        let interrupt = signal(SignalKind::interrupt())?;
        let outcome = self.with_daemon(work, interrupt).await;
        if let Some(folder) = folder.filter(|folder| folder.exists()) {
            std::fs::remove_dir_all(&folder)
                .with_context(|| format!("cannot remove {}", folder.display()))?;
        }
        outcome
    }

    async fn with_daemon<T>(
        self,
        work: impl AsyncFnOnce(&Parts) -> Result<T, Failure>,
        mut interrupt: Signal,
    ) -> Result<T, Failure> {
        let Self { mut config, agents, schema, finished } = self;
        config.server.listen.set_port(0);
        config.wal.slot = "convoke_bench".into();
        beforehand(&mut interrupt, &config.database, async |database| {
            let client = database.client().await?;
            client.batch_execute(schema).await.context("cannot make the tables of the measurement")
        })
        .await?;
        if finished > 0 {
            let mut config = config.database.clone();
            config.statement_timeout = Duration::from_secs(600);
            let bidders = u32::try_from(agents.len()).unwrap_or(u32::MAX);
            beforehand(&mut interrupt, &config, async |database| {
                history::fill(database, finished, bidders).await
            })
            .await?;
        }
        let builder = Daemon::builder(config).definitions(Vec::new());
        let builder =
            agents.into_iter().fold(builder, |builder, (definition, agent)| builder.agent(definition, agent));
        let daemon = builder.build().await?;
        let (parts, stop) = (daemon.parts().clone(), CancellationToken::new());
        let token = stop.clone();
        #[expect(
            clippy::disallowed_methods,
            reason = "the daemon's own scope is inside; this waits for all of it"
        )]
        let running = tokio::spawn(daemon.run(token));
        let measured = async {
            parts.ready(Duration::from_secs(30)).await?;
            work(&parts).await
        };
        let outcome = or_interrupted(&mut interrupt, measured).await;
        drop(parts);
        stop.cancel();
        let stopped = running.await.context("the daemon panicked")?;
        let figures = outcome?;
        stopped?;
        Ok(figures)
    }
}

/// Works on the database before there is a daemon, and stops it however that ends.
async fn beforehand(
    interrupt: &mut Signal,
    config: &db::Config,
    work: impl AsyncFnOnce(&Database) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let scope = Scope::default();
    let database = Database::open(config, &scope).await?;
    let outcome = or_interrupted(interrupt, work(&database)).await;
    database.stop().await?;
    let _ = scope.drain(Duration::from_secs(5)).await;
    outcome
}

async fn or_interrupted<T, E: From<anyhow::Error>>(
    interrupt: &mut Signal,
    work: impl Future<Output = Result<T, E>>,
) -> Result<T, E> {
    tokio::select! {
        outcome = work => outcome,
        _ = interrupt.recv() => Err(anyhow!("interrupted").into()),
    }
}
