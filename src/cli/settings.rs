//! The flags of every command, and the settings that result from them.
use super::{exit::Failure, secrets};
use crate::{
    auth::Keys,
    config::{self, Config, Loaded, Options},
    telemetry,
};
use clap::Args;
use std::path::PathBuf;

/// Flags, which take precedence over the environment and the file.
#[derive(Args, Clone, Debug, Default)]
#[command(next_help_heading = "Settings")]
pub(super) struct Settings {
    /// Settings file [default: config/convoke.toml, else convoke.toml, if it exists]
    #[arg(long, global = true, value_name = "FILE", env = "CONVOKE_CONFIG")]
    pub(super) config: Option<PathBuf>,
    /// Folder of the private PostgreSQL and of generated secrets [default: .convoke]
    #[arg(long, global = true, value_name = "DIR")]
    pub(super) data_dir: Option<String>,
    /// An existing PostgreSQL, postgres://user:password@host/database [default: a private one]
    #[arg(long, global = true, value_name = "URL", env = secrets::VARIABLE, hide_env = true)]
    pub(super) database_url: Option<String>,
    /// Address and port of HTTP and websocket [default: 127.0.0.1:7700]
    #[arg(long, global = true, value_name = "ADDRESS:PORT")]
    pub(super) listen: Option<String>,
    /// Folder of the agents' files [default: agents]
    #[arg(long, global = true, value_name = "DIR")]
    pub(super) agents: Option<String>,
    /// Filter of the process log, like info or convoke=debug
    #[arg(long, global = true, value_name = "FILTER")]
    pub(super) log: Option<String>,
    /// Write results as JSON
    #[arg(long, global = true)]
    pub(super) json: bool,
}

/// Loads the keys of these settings. Warnings about the secret's file go to standard error.
pub(super) fn keys(config: &Config) -> anyhow::Result<Keys> {
    telemetry::init(&config.telemetry)?;
    Ok(Keys::load_with_roles(&config.auth, &config.dashboard.roles, &config.database.data_dir)?)
}

impl Settings {
    /// Loads the settings of all layers.
    ///
    /// # Errors
    /// All problems of all layers.
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
