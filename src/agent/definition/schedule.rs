//! `[[schedule]]`: the times that request a task.
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use std::time::Duration;

/// When, and the task that each of these times requests: exactly one, however many daemons there are.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Schedule {
    /// Minute, hour, day of month, month, day of week, with an optional second before: `0 9 * * 1-5`.
    pub cron: String,
    /// In whose time that is, like `Europe/Berlin`; `UTC` unless said.
    #[serde(default = "utc")]
    pub timezone: String,
    /// What happens to times that passed while no daemon ran.
    #[serde(default)]
    pub missed: Missed,
    /// The task.
    pub request: ScheduleRequest,
}

fn utc() -> String {
    "UTC".to_owned()
}

/// What happens to times that passed while no daemon ran.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Missed {
    /// The latest of them requests its task, late.
    #[default]
    Once,
    /// Each of them does, the latest hundred at most.
    All,
    /// None does that is more than a minute late.
    Skip,
}

/// The task that a time requests. Texts in `input` are templates: `{{ scheduled_at }}`, `{{ schedule }}`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ScheduleRequest {
    /// What kind of work.
    pub kind: String,
    /// Capabilities that an agent must all have.
    #[serde(default)]
    pub requires: Vec<String>,
    /// What the agent works on: any value; a text that is one `{{ expression }}` becomes that value.
    #[serde(default)]
    pub input: Value,
    /// Higher goes first; 0 unless said.
    #[serde(default)]
    pub priority: i16,
    /// The task fails when it is not done this long after its time.
    #[serde(default, skip_serializing_if = "Option::is_none", with = "humantime_serde")]
    pub deadline_after: Option<Duration>,
    /// How it is awarded, timed and retried: members of [`crate::task::Policy`] that differ from the
    /// daemon's defaults.
    #[serde(default)]
    pub policy: Map<String, Value>,
}
