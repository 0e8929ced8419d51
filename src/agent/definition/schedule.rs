//! `[[schedule]]`: the times that request a task.
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use std::time::Duration;

/// Times, and the task that each of them requests: exactly one, however many daemons run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Schedule {
    /// Minute, hour, day of month, month, day of week, with an optional second before: `0 9 * * 1-5`.
    pub cron: String,
    /// The time zone of `cron`, like `Europe/Berlin`. Defaults to `UTC`.
    #[serde(default = "utc")]
    pub timezone: String,
    /// The policy for times that passed while no daemon ran.
    #[serde(default)]
    pub missed: Missed,
    /// The task.
    pub request: ScheduleRequest,
}

fn utc() -> String {
    "UTC".to_owned()
}

/// The policy for times that passed while no daemon ran.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Missed {
    /// The latest of them requests its task, late.
    #[default]
    Once,
    /// Each of them requests its task, up to the latest 100.
    All,
    /// Those that are less than a minute late request their tasks.
    Skip,
}

/// The task that a time requests. Texts in `input` are templates: `{{ scheduled_at }}`, `{{ schedule }}`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ScheduleRequest {
    /// The kind of the task.
    pub kind: String,
    /// Capabilities that the agent must have, all of them.
    #[serde(default)]
    pub requires: Vec<String>,
    /// The input: any value. A text that is one `{{ expression }}` becomes that value.
    #[serde(default)]
    pub input: Value,
    /// Tasks of higher priority go first. Defaults to 0.
    #[serde(default)]
    pub priority: i16,
    /// The task fails if it is not completed this long after its time.
    #[serde(default, skip_serializing_if = "Option::is_none", with = "humantime_serde")]
    pub deadline_after: Option<Duration>,
    /// Members of [`crate::task::Policy`] that differ from the daemon's defaults: award, timeouts, retries.
    #[serde(default)]
    pub policy: Map<String, Value>,
}
