//! Agents: what their files say, what wakes them, and doing the work they win.
//!
//! Owns the definitions ([`Definition`], [`check`]), the index from row changes
//! to tasks ([`WakeIndex`]), and the supervisor ([`Agents`]) with one actor for
//! each agent that has something to do. An actor accepts awards, runs each job by
//! its kind (a model, a process, a POST, code in this process), renews leases,
//! reports progress and presence from evidence, and hands in results. It never
//! writes a task row (that is `task`'s), never listens to the log, and never
//! decides who wins. Fails towards the task: whatever goes wrong with a job
//! becomes its failure or its release, with a line that is safe to show; a
//! finished result is handed in again until the database has taken or fenced it.
mod actor;
mod definition;
mod env;
mod job;
pub mod kind;
mod mail;
mod metrics;
mod offer;
mod pass;
mod presence;
mod schedule;
mod spend;
mod supervisor;
mod wake;
mod work;

pub use definition::{
    Definition, Kind, Limits, Missed, Offer, OfferBy, Price, Problem, ResponseFormat, Run, Schedule,
    ScheduleRequest, Wake, WakeEvent, WakeRequest, check, check_all, check_in,
};
pub use env::Env;
pub use job::{Agent, Finished, Job, Registry, Reporter};
pub use mail::{Handled, Message};
pub use metrics::{Ended, Metrics};
pub use pass::{Pass, Passes};
pub use schedule::{Clockwork, clockworks};
pub use supervisor::{Agents, Deps, Error};
pub use wake::{BadTemplate, Commit, Placed, WakeIndex};

use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// Where agents come from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Config {
    /// The folder of the agents' files, `*.toml`, one agent each.
    pub dir: PathBuf,
    /// Whether an agent without a file may join.
    pub remote: Remote,
}

/// Whether an agent without a file may join.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Remote {
    /// `open` when the daemon listens on loopback only, else `listed`.
    #[default]
    Auto,
    /// Whoever has a token with its id.
    Open,
    /// Only agents that have a file.
    Listed,
    /// No agent works from outside.
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
