//! Wakes: which row change requests which task.
//!
//! Owns the templates and the index over the wakes of all agents; the filters are
//! [`crate::filter`]'s, the same as those of clients. A change is looked up by schema
//! and table, so a table without wakes costs two failed look-ups. The database is asked only what it alone can answer
//! ([`WakeIndex::wakes`]), for many changes at once. Exactly-once is the recorder's part: a wake has its trigger and
//! WAL position, and `task` keys it by these. A template that cannot be filled in, or a question that fails in the
//! database, becomes a wake with the reason in place of its request; a wake that cannot be bound to its table is
//! counted, and logged once for each version of the table.
mod bind;
mod check;
mod index;
mod template;
mod trial;

pub use index::{Commit, PositionedChange, WakeIndex};
pub use template::BadTemplate;
pub(crate) use template::{Context, Template, number_text};
pub use trial::{Trial, TrialError, TrialOutcome, TrialRow, Trials, TriedCondition};

use super::definition::{Wake, WakeRequest};
use crate::{filter::Filter, id::TraceContext, task::Request};
use serde_json::Value;
use std::sync::Arc;

/// Names that the templates of a wake may use.
pub(crate) const NAMES: [&str; 8] =
    ["new", "old", "event", "schema", "table", "commit_lsn", "committed_at", "changes"];

/// A `[[wake]]` whose filter and templates are parsed.
#[derive(Clone, Debug)]
pub(crate) struct CompiledWake {
    filter: Filter,
    request: Arc<RequestTemplate>,
}

impl CompiledWake {
    /// Parses a wake.
    ///
    /// # Errors
    /// The key below `wake.<n>`, and what is wrong with it.
    pub(crate) fn parse(wake: &Wake) -> Result<Self, (String, String)> {
        let filter = Filter::parse(wake.filter.as_deref().unwrap_or_default());
        let filter = filter.map_err(|error| ("filter".to_owned(), error.to_string()))?;
        let request = RequestTemplate::parse(&wake.request);
        let request = request.map_err(|error| (format!("request.{}", error.place), error.reason))?;
        Ok(Self { filter, request: Arc::new(request) })
    }
}

/// The request of a wake with its templates parsed.
#[derive(Debug)]
pub(crate) struct RequestTemplate {
    request: WakeRequest,
    input: Template,
    traceparent: Option<Template>,
}

impl RequestTemplate {
    /// Parses the templates.
    pub(crate) fn parse(request: &WakeRequest) -> Result<Self, BadTemplate> {
        let input = Template::parse(&request.input, "input", &NAMES)?;
        let traceparent = request
            .traceparent
            .as_ref()
            .map(|text| Template::parse(&Value::String(text.clone()), "traceparent", &NAMES));
        let traceparent = traceparent.transpose()?;
        // The template holds the input: one copy is enough.
        Ok(Self { request: WakeRequest { input: Value::Null, ..request.clone() }, input, traceparent })
    }

    /// The trace that the row names. Whatever cannot be read is none: a row without a trace is no mistake.
    fn trace(&self, context: &Context) -> Option<TraceContext> {
        let found = self.traceparent.as_ref()?.fill("traceparent", context).ok()?;
        found.as_str()?.parse().ok()
    }

    fn fill(&self, commit: &Commit, context: &Context) -> Result<Request, BadTemplate> {
        let request = &self.request;
        let after = request.deadline_after.and_then(|after| chrono::TimeDelta::from_std(after).ok());
        Ok(Request {
            kind: request.kind.clone(),
            requires: request.requires.clone(),
            input: self.input.fill("input", context)?,
            priority: request.priority,
            deadline: after.and_then(|after| commit.committed_at.checked_add_signed(after)),
            policy: request.policy.clone(),
            traceparent: self.trace(context),
            ..Request::default()
        })
    }
}
