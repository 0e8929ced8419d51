//! What is offered for an agent, and what one task of it may use.
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// `[offer]`: what is offered for an agent.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Offer {
    /// Who makes the offers.
    pub by: OfferBy,
    /// `command`: the program and its arguments; as `run.argv`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub argv: Option<Vec<String>>,
    /// `http`: where to POST; signed with `run.secret_env`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub url: Option<String>,
    /// `model`, `command`, `http`: how long it may think; 15 seconds unless said.
    #[serde(with = "humantime_serde")]
    pub timeout: Duration,
    /// `model`: most tokens of its answer; 300 unless said.
    pub tokens: u32,
    /// `model`, `command`, `http`: what thinking may cost in any 60 minutes; over it, the runtime offers. No
    /// limit unless said.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub microdollars_per_hour: Option<u64>,
    /// What a task costs, until measurements say otherwise; 0 unless said.
    pub cost_microdollars: u64,
    /// How sure it is of its results, 0 to 1; 0.6 unless said.
    pub confidence: f32,
    /// How long a task takes, until measurements say otherwise; 1 second unless said.
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

/// Who makes an agent's offers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OfferBy {
    /// The daemon, from the file and from what it measured.
    #[default]
    Runtime,
    /// The model of `kind = "llm"` thinks about it.
    Model,
    /// The command `argv` says it.
    Command,
    /// A POST to `url` says it.
    Http,
}

/// `[limits]`: what one task of an agent may use.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Limits {
    /// How long an attempt may take; the task's own limit holds too. 2 minutes unless said.
    #[serde(with = "humantime_serde")]
    pub timeout: Duration,
    /// Largest result, in bytes of JSON; 1 MiB unless said, which is also the most.
    pub output_bytes: usize,
    /// `command`: address space of each of its processes, in bytes; no limit unless said.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory_bytes: Option<u64>,
    /// `llm`: model tokens of one task, in and out; no limit unless said.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tokens_per_task: Option<u32>,
    /// What the agent may spend in any 60 minutes; over it, it refuses awards. No limit unless said.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub microdollars_per_hour: Option<u64>,
    /// At most one progress report in this time goes to the database; 250 ms unless said.
    #[serde(with = "humantime_serde")]
    pub progress_interval: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            timeout: Duration::from_secs(120),
            output_bytes: crate::task::INPUT_BYTES_MAX,
            memory_bytes: None,
            tokens_per_task: None,
            microdollars_per_hour: None,
            progress_interval: Duration::from_millis(250),
        }
    }
}
