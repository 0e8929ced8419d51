//! Settings: defaults < file < environment `CONVOKE_<SECTION>__<KEY>` < flags.
//!
//! Assembles every part's own `Config` type and loads the agents' files. Reads
//! everything before it complains, so that an operator mends all at once:
//! unknown keys, wrong types and values that cannot work, each with its file,
//! line and key. Never starts anything and never asks the database.
mod agents;
mod layers;
mod node;
mod path;
mod problem;
mod read;
mod source;
mod words;

pub use agents::{load_agents, locate};
pub use layers::{Options, keys, load};
pub use problem::{Problem, Problems};

use crate::{access, agent, api, auth, changes, db, gateway, hub::history, task, telemetry, wal};
use serde::Deserialize;
use std::path::PathBuf;

/// Every setting of the daemon. The sections are those of `config/convoke.toml`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Config {
    /// Where HTTP and websocket listen.
    pub server: api::Config,
    /// Which PostgreSQL, and how it is used.
    pub database: db::Config,
    /// How tokens are checked.
    pub auth: auth::Config,
    /// How the policies of private channels are asked.
    pub access: access::Config,
    /// Where the agents are.
    pub agents: agent::Config,
    /// How the write-ahead log is read.
    pub wal: wal::Config,
    /// How row changes reach clients.
    pub changes: changes::Config,
    /// What websocket clients may do.
    pub gateway: gateway::Config,
    /// Which topics keep what is said in them.
    pub channels: Vec<history::Rule>,
    /// How much of it.
    pub history: history::Config,
    /// How tasks are negotiated when a request does not say.
    pub task: task::Config,
    /// What is logged and how.
    pub telemetry: telemetry::Config,
}

/// Settings, and where they came from.
#[derive(Clone, Debug)]
pub struct Loaded {
    /// The settings.
    pub config: Config,
    /// The file that was read; none when there is none and none was asked for.
    pub file: Option<PathBuf>,
}

/// What no type can say about the settings: dotted key, what is wrong, what to do.
fn check(config: &Config) -> Vec<(String, String, String)> {
    let mut wrong: Vec<(&str, String, &str)> = Vec::new();
    if let Err(e) = telemetry::check_filter(&config.telemetry.log) {
        let message = e.to_string().replacen("telemetry.log = ", "", 1);
        wrong.push(("telemetry.log", message, "use a level like \"info\", or \"convoke=debug\""));
    }
    if let Err(e) = config.task.check() {
        wrong.push(("task.policy", e, "see the comments of config/convoke.toml"));
    }
    if let Err(e) = config.wal.check() {
        let message = e.to_string().replacen("wal.slot = ", "", 1);
        wrong.push(("wal.slot", message, "choose a name like \"convoke\""));
    }
    if config.database.pool_size_max == 0 {
        wrong.push(("database.pool_size_max", "0 connections are too few".into(), "use 2 or more, like 8"));
    }
    for key in config.gateway.limits.zeros() {
        wrong.push((
            key,
            "0 would let nothing through".into(),
            "use 1 or more, or a very large number for no limit",
        ));
    }
    let mut wrong: Vec<_> =
        wrong.into_iter().map(|(key, what, remedy)| (key.to_owned(), what, remedy.to_owned())).collect();
    let rules = history::check(&config.channels);
    wrong.extend(
        rules.into_iter().map(|(at, key, what, remedy)| (format!("channels.{at}.{key}"), what, remedy)),
    );
    let limits = config.changes.check();
    wrong.extend(limits.map(|(key, what, remedy)| (format!("changes.{key}"), what, remedy.to_owned())));
    let limits = config.history.check();
    wrong.extend(limits.map(|(key, what, remedy)| (format!("history.{key}"), what, remedy.to_owned())));
    wrong
}
