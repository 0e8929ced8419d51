//! The whole daemon in this process: rows, the log, agents, channels and HTTP together.
mod accounts;
mod encoding;
mod killed;
mod line;
mod log_lines;
mod offers;
mod parts;
mod reload;
mod stalled;
mod states;
mod taken;
mod typos;
mod unready;

pub use killed::Up;

use crate::support::{PATIENCE, TestDb, crypto, database};
use convoke::{
    agent::{Agent, Definition, Finished, Job},
    app::{Daemon, Parts},
    config::Config,
    task::Failure,
};
use std::{path::Path, sync::Arc};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

/// A daemon on a database of its own.
pub struct Running {
    pub parts: Parts,
    pub stop: CancellationToken,
    task: tokio::task::JoinHandle<anyhow::Result<()>>,
}

pub fn config(db: &TestDb, data_dir: &Path) -> Config {
    let mut config = Config { database: db.config(), ..Config::default() };
    config.database.data_dir = data_dir.to_owned();
    config.server.listen.set_port(0);
    config.wal.slot = db.slot();
    config
}

impl Running {
    pub async fn start(config: Config, agents: Vec<(Definition, Arc<dyn Agent>)>) -> Self {
        let builder = Daemon::builder(config).definitions(Vec::new());
        let builder = agents.into_iter().fold(builder, |builder, (d, agent)| builder.agent(d, agent));
        Self::run(builder).await
    }

    /// With agents whose code is not in this process.
    pub async fn start_with(config: Config, definitions: Vec<Definition>) -> Self {
        Self::run(Daemon::builder(config).definitions(definitions)).await
    }

    async fn run(builder: convoke::app::Builder) -> Self {
        let running = Self::launch(builder).await;
        running.parts.ready(PATIENCE).await.unwrap();
        running
    }

    /// A daemon that need not become ready.
    pub async fn launch(builder: convoke::app::Builder) -> Self {
        let _ = convoke::telemetry::init(&convoke::telemetry::Config {
            log: "convoke=debug,info".into(),
            ..Default::default()
        });
        let daemon = builder.build().await.unwrap();
        let (parts, stop) = (daemon.parts().clone(), CancellationToken::new());
        #[expect(clippy::disallowed_methods, reason = "the test waits for it in stop")]
        let task = tokio::spawn(daemon.run(stop.clone()));
        Self { parts, stop, task }
    }

    pub async fn stop(self) {
        self.stop.cancel();
        self.task.await.unwrap().unwrap();
    }
}

/// A Rust agent of org `demo` that can `work`, with more TOML after it.
pub fn definition(id: &str, more: &str) -> Definition {
    toml::from_str(&format!(
        "id = \"{id}\"\norg = \"demo\"\ncapabilities = [\"work\"]\n[run]\nkind = \"rust\"\nname = \"{id}\"\n{more}"
    ))
    .unwrap()
}

/// Tells the test each input that it gets, and answers with it.
pub struct Echo(pub mpsc::Sender<serde_json::Value>);

#[async_trait::async_trait]
impl Agent for Echo {
    async fn run(&self, job: Job) -> Result<Finished, Failure> {
        self.0.send(job.input().clone()).await.unwrap();
        Ok(job.input().clone().into())
    }
}

pub async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    match tokio::time::timeout(PATIENCE, future).await {
        Ok(found) => found,
        Err(_) => panic!("not in time: {what}"),
    }
}

pub async fn fresh() -> (TestDb, tempfile::TempDir) {
    crypto();
    (database().await, tempfile::tempdir().unwrap())
}
