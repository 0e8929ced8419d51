//! `[[wake]]`: the row changes that request a task.
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use std::time::Duration;

/// A table, which of its changes matter, and the task that each of them requests.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Wake {
    /// `schema.table`; the schema is `public` unless said.
    pub table: String,
    /// Which changes; all but `TRUNCATE` unless said.
    #[serde(default = "row_events")]
    pub events: Vec<WakeEvent>,
    /// Which rows, like `priority=gte.3,state=eq.new`; all unless said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub filter: Option<String>,
    /// One task for a burst of changes, made when none has come for so long, or after ten times that.
    #[serde(default, skip_serializing_if = "Option::is_none", with = "humantime_serde")]
    pub debounce: Option<Duration>,
    /// One pending task for each value of these columns; with an empty list one for all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub coalesce_by: Option<Vec<String>>,
    /// The task.
    pub request: WakeRequest,
}

/// What happened to a row, or to all rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum WakeEvent {
    /// A row came.
    Insert,
    /// A row changed; the filter looks at the row as it is now.
    Update,
    /// A row went; the filter sees the columns of its replica identity only.
    Delete,
    /// All rows went at once; has no row, so no filter.
    Truncate,
}

impl WakeEvent {
    /// As it is written in a file.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Insert => "INSERT",
            Self::Update => "UPDATE",
            Self::Delete => "DELETE",
            Self::Truncate => "TRUNCATE",
        }
    }
}

fn row_events() -> Vec<WakeEvent> {
    vec![WakeEvent::Insert, WakeEvent::Update, WakeEvent::Delete]
}

/// The task that a change requests. Texts in `input` are templates.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct WakeRequest {
    /// What kind of work.
    pub kind: String,
    /// Capabilities that an agent must all have.
    #[serde(default)]
    pub requires: Vec<String>,
    /// What the agent works on: any value; a text that is one `{{ expression }}` becomes that value.
    #[serde(default = "whole_change")]
    pub input: Value,
    /// Higher goes first; 0 unless said.
    #[serde(default)]
    pub priority: i16,
    /// One task for all changes with the same key (not supported yet: each change requests its own).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub idempotency_key: Option<String>,
    /// The task fails when it is not done this long after the commit.
    #[serde(default, skip_serializing_if = "Option::is_none", with = "humantime_serde")]
    pub deadline_after: Option<Duration>,
    /// How it is awarded, timed and retried: members of [`crate::task::Policy`] that differ from the
    /// daemon's defaults.
    #[serde(default)]
    pub policy: Map<String, Value>,
}

fn whole_change() -> Value {
    serde_json::json!({ "event": "{{ event }}", "table": "{{ table }}", "new": "{{ new }}", "old": "{{ old }}" })
}

impl Wake {
    /// Schema and table.
    #[must_use]
    pub fn table_name(&self) -> (&str, &str) {
        self.table.split_once('.').unwrap_or(("public", &self.table))
    }
}
