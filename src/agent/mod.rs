//! Agents: their definitions, their wakes, and the jobs of hosted ones.
//!
//! Owns the definitions ([`Definition`], [`check`], [`CompiledAgent`]), the index from row changes to tasks
//! ([`WakeIndex`]), and the supervisor ([`Agents`]) with one actor for each agent that has work. An actor accepts
//! awards, runs each job by its kind (a model, a process, a POST, code in this process), renews leases, reports
//! progress and presence from evidence, and delivers results. It never writes a task row (`task` does), never reads
//! the WAL, and never decides an award. Every error of a job becomes its failure or its release, with a line that is
//! safe to show; a result is delivered again until the database has accepted or fenced it.
mod actor;
mod agent_set;
mod asking;
mod assignment_run;
mod command;
mod compiled;
mod credentials;
mod definition;
mod delivery;
mod env;
mod failover;
mod hosted;
mod job;
pub mod kind;
mod mailbox;
mod mcp;
mod metrics;
mod offer;
mod presence;
mod reload;
mod retry;
mod rolling_spend;
mod schedule;
mod supervisor;
mod think;
mod thread;
mod tool;
mod wake;

pub use compiled::CompiledAgent;
pub use credentials::{CredentialIssuer, JobCredentials};
pub use definition::{ApprovalRule, NamedApproval, OnDaemonDeath, OnUnknown};
pub use definition::{
    CallRule, Definition, Failover, Fetch, FetchMethod, FoundTool, Guard, GuardOn, Kind, Limits, McpPin,
    McpPinRule, McpProtocol, McpServer, MemorySettings, Missed, ModelChoice, Offer, OfferBy, PartKind, Price,
    Problem, ResponseFormat, Run, Schedule, ScheduleRequest, SqlRead, Stream, Tier, Tool, ToolKind, Wake,
    WakeEvent, WakeRequest, check, check_all, check_in,
};
pub use env::Env;
pub use job::{Agent, Finished, Job, Registry, Reporter};
pub use mailbox::{AgentMessage, Handled};
pub use metrics::{Ended, Metrics};
pub use reload::Reloaded;
pub use schedule::CronSchedule;
pub use supervisor::{Agents, Deps, Error};
pub use think::ToolsBy;
pub use tool::Keeper;
pub(crate) use tool::{KEEP, keep_call, unfit_readers};
pub use wake::{
    BadTemplate, Commit, PositionedChange, Trial, TrialError, TrialOutcome, TrialRow, Trials, TriedCondition,
    WakeIndex,
};

use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// The agents of a daemon.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Config {
    /// The folder of the definitions, `*.toml`, one agent each.
    pub dir: PathBuf,
    /// Which remote agents may register.
    pub remote: Remote,
}

/// Which remote agents may register.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Remote {
    /// `open` if the daemon listens on loopback only, else `listed`.
    #[default]
    Auto,
    /// Any agent with a token of its id.
    Open,
    /// Only agents with a definition of kind `remote`.
    Listed,
    /// None.
    Off,
}

impl Default for Config {
    fn default() -> Self {
        Self { dir: PathBuf::from("agents"), remote: Remote::default() }
    }
}

/// Bytes as hexadecimal digits.
pub(crate) fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write;
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}
