//! Settings, merged from defaults < file < environment `CONVOKE_<SECTION>__<KEY>` < flags.
//!
//! Assembles the `Config` types of all modules, and loads the agents' files. Reports every problem in one
//! run: unknown keys, wrong types and values that cannot work, each with its file, line and key. Starts
//! nothing and never asks the database.
mod agents;
mod changed;
mod fingerprint;
mod layers;
mod messages;
mod path;
mod problem;
mod read;
mod shown;
mod source;
mod tree_deserializer;

pub use agents::{load_agents, load_agents_with, locate};
pub use changed::changed_keys;
pub use fingerprint::Fingerprint;
pub use layers::{Options, file, keys, load};
pub use problem::{Problem, Problems};
pub use shown::shown;

use crate::{
    access, agent, api, auth, changes, dashboard, db, gateway, hub::history, llm, task, telemetry, wal,
};
use serde::Deserialize;
use std::path::PathBuf;

/// Every setting of the daemon. The sections are those of `config/convoke.toml`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Config {
    /// Addresses and limits of HTTP and websockets.
    pub server: api::Config,
    /// Connection to PostgreSQL.
    pub database: db::Config,
    /// Verification of tokens.
    pub auth: auth::Config,
    /// Evaluation of policies.
    pub access: access::Config,
    /// The page for operators.
    pub dashboard: dashboard::Config,
    /// Location of the agents' files.
    pub agents: agent::Config,
    /// Models as a shared resource.
    pub llm: llm::Config,
    /// Reading of the write-ahead log.
    pub wal: wal::Config,
    /// Delivery of row changes to clients.
    pub changes: changes::Config,
    /// Limits of websocket clients.
    pub gateway: gateway::Config,
    /// Topics with a history.
    pub channels: Vec<history::Rule>,
    /// Limits of histories.
    pub history: history::Config,
    /// Defaults of the negotiation.
    pub task: task::Config,
    /// Level and form of the process log.
    pub telemetry: telemetry::Config,
}

/// Settings and their file.
#[derive(Clone, Debug)]
pub struct Loaded {
    /// The settings.
    pub config: Config,
    /// The file that was read; `None` if no file exists and none was named.
    pub file: Option<PathBuf>,
}

/// Checks what types cannot express. Returns dotted key, problem, and remedy.
fn check(config: &Config) -> Vec<(String, String, String)> {
    let mut wrong: Vec<(&str, String, &str)> = Vec::new();
    if let Err(e) = telemetry::check_filter(&config.telemetry.log) {
        let message = e.to_string().replacen("telemetry.log = ", "", 1);
        wrong.push(("telemetry.log", message, "use a level like \"info\", or \"convoke=debug\""));
    }
    wrong.extend(config.telemetry.otlp.check());
    if let Err(e) = config.task.check() {
        wrong.push(("task.policy", e, "see the comments of config/convoke.toml"));
    }
    if let Err(e) = config.wal.check() {
        let message = e.to_string().replacen("wal.slot = ", "", 1);
        wrong.push(("wal.slot", message, "choose a name like \"convoke\""));
    }
    for key in config.gateway.limits.zeros() {
        wrong.push((
            key,
            "0 would block everything".into(),
            "use 1 or more, or a very large number for no limit",
        ));
    }
    if !config.dashboard.viewers_see_data() && config.access.observers.open(config.server.listen) {
        let problem =
            "\"operators\" hides nothing while every key hears the inputs of tasks (access.observers)";
        wrong.push(("dashboard.data", problem.into(), "set access.observers = \"token\""));
    }
    let mut wrong: Vec<_> =
        wrong.into_iter().map(|(key, what, remedy)| (key.to_owned(), what, remedy.to_owned())).collect();
    let database = config.database.check();
    wrong.extend(
        database.into_iter().map(|(key, what, remedy)| (format!("database.{key}"), what, remedy.to_owned())),
    );
    let auth = config.auth.check().into_iter();
    wrong.extend(
        auth.map(|(key, what)| (format!("auth.{key}"), what, "see [auth] in config/convoke.toml".into())),
    );
    let rules = history::check(&config.channels);
    wrong.extend(
        rules.into_iter().map(|(at, key, what, remedy)| (format!("channels.{at}.{key}"), what, remedy)),
    );
    let limits = config.changes.check();
    wrong.extend(limits.map(|(key, what, remedy)| (format!("changes.{key}"), what, remedy.to_owned())));
    let page = config.dashboard.check();
    wrong.extend(page.map(|(key, what, remedy)| (format!("dashboard.{key}"), what, remedy.to_owned())));
    let providers = config.llm.check().into_iter();
    wrong.extend(providers.map(|(key, what, remedy)| (format!("llm.{key}"), what, remedy.to_owned())));
    let limits = config.history.check();
    wrong.extend(limits.map(|(key, what, remedy)| (format!("history.{key}"), what, remedy.to_owned())));
    wrong
}
