//! The flags that every command takes, and the settings that they lead to.
use super::failure::Failure;
use crate::config::{self, Loaded, Options};
use clap::Args;
use std::path::PathBuf;

/// Flags over the settings of file and environment.
#[derive(Args, Clone, Debug, Default)]
#[command(next_help_heading = "Settings")]
pub(super) struct Settings {
    /// Settings file [default: config/convoke.toml, else convoke.toml, if there]
    #[arg(long, global = true, value_name = "FILE", env = "CONVOKE_CONFIG")]
    config: Option<PathBuf>,
    /// Folder of the private PostgreSQL and of generated secrets [default: .convoke]
    #[arg(long, global = true, value_name = "DIR")]
    pub(super) data_dir: Option<String>,
    /// An outside PostgreSQL, postgres://user:password@host/database [default: a private one]
    #[arg(long, global = true, value_name = "URL", hide_env_values = true)]
    pub(super) database_url: Option<String>,
    /// Address and port of HTTP and websocket [default: 127.0.0.1:7700]
    #[arg(long, global = true, value_name = "ADDRESS:PORT")]
    pub(super) listen: Option<String>,
    /// Folder of the agents' files [default: agents]
    #[arg(long, global = true, value_name = "DIR")]
    pub(super) agents: Option<String>,
    /// What is logged, like info or convoke=debug
    #[arg(long, global = true, value_name = "FILTER")]
    pub(super) log: Option<String>,
    /// Write results as JSON
    #[arg(long, global = true)]
    pub(super) json: bool,
}

impl Settings {
    /// The settings of all layers.
    ///
    /// # Errors
    /// Every problem that they have.
    pub(super) fn load(&self) -> Result<Loaded, Failure> {
        Ok(config::load(&self.options())?)
    }

    pub(super) fn options(&self) -> Options {
        let given = [
            ("--data-dir", "database.data_dir", &self.data_dir),
            ("--database-url", "database.url", &self.database_url),
            ("--listen", "server.listen", &self.listen),
            ("--agents", "agents.dir", &self.agents),
            ("--log", "telemetry.log", &self.log),
        ];
        let flags = given.into_iter().filter_map(|(flag, key, value)| Some((flag, key, value.clone()?)));
        Options { file: self.config.clone(), flags: flags.collect(), environment: None }
    }
}
