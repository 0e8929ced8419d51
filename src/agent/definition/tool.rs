//! `[[tool]]`: what the model of an agent may call.
use super::{
    approval::{self, ApprovalRule},
    unknown::{OnDaemonDeath, OnUnknown},
};
use crate::{
    agent::{think::BUILT_IN, tool::Callable},
    task::Effect,
};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::{collections::BTreeMap, time::Duration};

/// A tool that the model may call.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Tool {
    /// Its name: `[a-z][a-z0-9_]{0,62}`.
    pub name: String,
    /// What it does, for the model.
    #[serde(default)]
    pub description: String,
    /// What carries it out.
    pub kind: ToolKind,
    /// JSON schema of its arguments, an object. Defaults to no arguments.
    #[serde(default = "no_arguments")]
    pub parameters: Value,
    /// The class of its effect. Defaults to `database` for a statement, and to `once` for the others.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub effect: Option<Effect>,
    /// `checked`: the tool that says whether a call had its effect.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub probe: Option<String>,
    /// What happens to a call whose outcome is unknown. Defaults to `ask`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub on_unknown: Option<OnUnknown>,
    /// `read` and `keyed`: how often a call that failed for a time is repeated before the model is told. Defaults to 0.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub retries: u32,
    /// Whether a new run may repeat a call of an earlier run of the task. Defaults to false: it gets the earlier result.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub repeat: bool,
    /// `command`: what happens to a program that runs when the daemon dies. Defaults to `kill` for `read`, else to
    /// `finish`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub on_daemon_death: Option<OnDaemonDeath>,
    /// Which calls may not begin before a person approves them. Defaults to none.
    #[serde(default, deserialize_with = "approval::read", skip_serializing_if = "Option::is_none")]
    pub approval: Option<ApprovalRule>,
    /// Time limit of a call. Defaults to 30 seconds; 5 seconds for a statement.
    #[serde(default, with = "humantime_serde", skip_serializing_if = "Option::is_none")]
    pub timeout: Option<Duration>,
    /// `command` and `http`: most calls that begin in a minute, of all agents of the org with a tool of this name. Defaults
    /// to no limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub per_minute: Option<u32>,
    /// `command` and `http`: most calls at once, likewise. Defaults to no limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub concurrent: Option<u32>,
    /// `command` and `http`: microdollars of a call. Defaults to nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cost_microdollars: Option<u64>,
    /// `command` and `http`: the most that a call may cost, in microdollars, if its output says what it cost.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_cost_microdollars: Option<u64>,
    /// Most bytes of a result that the model is shown; the middle of a longer one is left out. Defaults to 32 KiB.
    #[serde(default = "output_bytes")]
    pub output_bytes: usize,

    /// `command`: the program and its arguments; no shell.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub argv: Option<Vec<String>>,
    /// `command`: variables of the daemon's environment that the process gets. Defaults to none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub env: Vec<String>,
    /// `http`: the URL of the POST.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub url: Option<String>,
    /// `http`: headers whose values are variables of the environment.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub headers_env: BTreeMap<String, String>,
    /// `sql`: one statement; `:name` is the argument of that name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub statement: Option<String>,
    /// `sql`: the role that it runs as.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub role: Option<String>,
}

/// What carries out a tool.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ToolKind {
    /// A process.
    Command,
    /// A POST.
    Http,
    /// A statement in the daemon's own database.
    Sql,
}

fn is_zero(number: &u32) -> bool {
    *number == 0
}
fn no_arguments() -> Value {
    json!({ "type": "object", "additionalProperties": false })
}
fn output_bytes() -> usize {
    32 << 10
}

impl Tool {
    /// The class of its effect.
    #[must_use]
    pub fn effect(&self) -> Effect {
        self.effect.unwrap_or(match self.kind {
            ToolKind::Sql => Effect::Database,
            ToolKind::Command | ToolKind::Http => Effect::Once,
        })
    }

    /// The most that a call may cost, in microdollars.
    #[must_use]
    pub fn cost_max(&self) -> u64 {
        self.max_cost_microdollars.or(self.cost_microdollars).unwrap_or(0)
    }

    /// Time limit of a call.
    #[must_use]
    pub fn timeout(&self) -> Duration {
        self.timeout.unwrap_or(Duration::from_secs(if self.kind == ToolKind::Sql { 5 } else { 30 }))
    }

    /// What happens to its program when the daemon dies.
    #[must_use]
    pub fn on_daemon_death(&self) -> OnDaemonDeath {
        let is_read = self.effect() == Effect::Read;
        self.on_daemon_death.unwrap_or(if is_read { OnDaemonDeath::Kill } else { OnDaemonDeath::Finish })
    }

    /// Whether a name has the form of a tool's name.
    pub(super) fn is_name(name: &str) -> bool {
        let mut chars = name.chars();
        let first = chars.next().is_some_and(|c| c.is_ascii_lowercase());
        first && name.len() <= 63 && chars.all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_')
    }

    /// Whether the daemon has a tool of this name itself.
    pub(super) fn is_built_in(name: &str) -> bool {
        BUILT_IN.contains(&name) || Callable::BUILT_IN.contains(&name)
    }
}
