//! The offers of an agent, and the limits of one task.
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// `[offer]`: the offers of an agent.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Offer {
    /// What makes the offers.
    pub by: OfferBy,
    /// `command`: the program and its arguments; as `run.argv`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub argv: Option<Vec<String>>,
    /// `http`: the URL of the POST, which is signed with `run.secret_env`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub url: Option<String>,
    /// `model`, `command`, `http`: time limit of one offer. Defaults to 15 seconds.
    #[serde(with = "humantime_serde")]
    pub timeout: Duration,
    /// `model`: most tokens of its answer. Defaults to 300.
    pub tokens: u32,
    /// `model`, `command`, `http`: most cost of making offers in any 60 minutes; over it, the runtime makes them.
    /// Defaults to no limit.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub microdollars_per_hour: Option<u64>,
    /// Cost of a task, until it has been measured. Defaults to 0.
    pub cost_microdollars: u64,
    /// Confidence in its results, 0 to 1. Defaults to 0.6.
    pub confidence: f32,
    /// Duration of a task, until it has been measured. Defaults to 1 second.
    #[serde(with = "humantime_serde")]
    pub eta: Duration,
}

impl Default for Offer {
    fn default() -> Self {
        Self {
            by: OfferBy::Runtime,
            argv: None,
            url: None,
            timeout: Duration::from_secs(15),
            tokens: 300,
            microdollars_per_hour: None,
            cost_microdollars: 0,
            confidence: 0.6,
            eta: Duration::from_secs(1),
        }
    }
}

/// What makes the offers of an agent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OfferBy {
    /// The daemon, from the definition and its measurements.
    #[default]
    Runtime,
    /// The model of `kind = "llm"`.
    Model,
    /// The command `argv`.
    Command,
    /// A POST to `url`.
    Http,
}

/// `[limits]`: the limits of one task.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Limits {
    /// Time limit of an attempt, beside the task's own. Defaults to 2 minutes.
    #[serde(with = "humantime_serde")]
    pub timeout: Duration,
    /// Largest result, in bytes of JSON. Defaults to 1 MiB, which is also the maximum.
    pub output_bytes: usize,
    /// `command`: address space of each of its processes, in bytes. Defaults to no limit.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory_bytes: Option<u64>,
    /// `llm`: model tokens of one task, in and out. Defaults to no limit.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tokens_per_task: Option<u32>,
    /// `llm` with tools: questions to the model in one run. Defaults to 50.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub steps_max: Option<u32>,
    /// `llm` with tools: calls of tools in one run. Defaults to 200.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub calls_max: Option<u32>,
    /// Most cost of all its tasks in any 60 minutes; over it, the agent refuses awards. Defaults to no limit.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub microdollars_per_hour: Option<u64>,
    /// Least time between two progress reports to the database. Defaults to 250 ms.
    #[serde(with = "humantime_serde")]
    pub progress_interval: Duration,
}

impl Limits {
    /// The most questions of a run.
    pub(crate) fn steps(&self) -> u32 {
        self.steps_max.unwrap_or(50)
    }

    /// The most calls of a run.
    pub(crate) fn calls(&self) -> u32 {
        self.calls_max.unwrap_or(200)
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            timeout: Duration::from_secs(120),
            output_bytes: crate::task::INPUT_BYTES_MAX,
            memory_bytes: None,
            tokens_per_task: None,
            steps_max: None,
            calls_max: None,
            microdollars_per_hour: None,
            progress_interval: Duration::from_millis(250),
        }
    }
}
