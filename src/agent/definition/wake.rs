//! `[[wake]]`: the row changes that request a task.
use crate::filter::Filter;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use std::time::Duration;

/// The changes of a table, and the task that each of them requests.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Wake {
    /// `schema.table`. The schema defaults to `public`.
    pub table: String,
    /// The kinds of changes. Defaults to all but `TRUNCATE`.
    #[serde(default = "row_events")]
    pub events: Vec<WakeEvent>,
    /// The rows, like `priority=gte.3,state=eq.new`. Defaults to all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub filter: Option<String>,
    /// Coalesces changes: one task when no change has come for this time, or after ten times that.
    #[serde(default, skip_serializing_if = "Option::is_none", with = "humantime_serde")]
    pub debounce: Option<Duration>,
    /// Coalesces changes: one pending task for each value of these columns, or one for all with an empty list.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub coalesce_by: Option<Vec<String>>,
    /// The task.
    pub request: WakeRequest,
}

/// The kind of a row change.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum WakeEvent {
    /// A row was inserted.
    Insert,
    /// A row was updated; the filter sees the new row.
    Update,
    /// A row was deleted; the filter sees only the columns of its replica identity.
    Delete,
    /// The table was truncated; there is no row, so no filter.
    Truncate,
}

impl WakeEvent {
    /// As written in a definition.
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
    /// The kind of the task.
    pub kind: String,
    /// Capabilities that the agent must have, all of them.
    #[serde(default)]
    pub requires: Vec<String>,
    /// The input: any value. A text that is one `{{ expression }}` becomes that value.
    #[serde(default = "whole_change")]
    pub input: Value,
    /// Tasks of higher priority go first. Defaults to 0.
    #[serde(default)]
    pub priority: i16,
    /// One task for all changes with the same key (not supported yet: each change requests its own).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub idempotency_key: Option<String>,
    /// The task fails if it is not completed this long after the commit.
    #[serde(default, skip_serializing_if = "Option::is_none", with = "humantime_serde")]
    pub deadline_after: Option<Duration>,
    /// The trace that the task belongs to, as W3C `traceparent`: a template, like `{{ new.traceparent }}`. A value that is
    /// none is ignored.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub traceparent: Option<String>,
    /// Members of [`crate::task::Policy`] that differ from the daemon's defaults: award, timeouts, retries.
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

    /// The columns that decide about a row, each once: those of the filter, and those that select what is coalesced.
    #[must_use]
    pub fn columns(&self) -> Vec<String> {
        let filter = Filter::parse(self.filter.as_deref().unwrap_or_default()).unwrap_or_default();
        let mut columns = filter.columns();
        for name in self.coalesce_by.iter().flatten() {
            if !columns.contains(name) {
                columns.push(name.clone());
            }
        }
        columns
    }
}
