//! Wakes: which row change requests which task.
//!
//! Owns the templates and the index over the wakes of all agents; the filters are
//! [`crate::filter`]'s, the same as those of clients. A change is looked up by schema
//! and table, so a table without wakes costs two failed look-ups. The database is asked
//! only what it alone can say ([`WakeIndex::wakes`]), for many changes at once. It
//! decides nothing about exactly-once: a wake names its trigger and its place in the
//! log, and whoever records it keys it by these. Fails loudly: a template that cannot be
//! filled in, and a question that the database takes for an error, is a wake with the
//! reason in place of the request; what does not fit a table is logged once for each
//! version of the table and counted.
mod check;
mod fit;
mod index;
mod template;

pub use index::{Commit, Placed, WakeIndex};
pub use template::BadTemplate;
pub(crate) use template::{Context, Template};

use super::definition::WakeRequest;
use crate::task::Request;
use serde_json::Value;

/// What the templates of a wake may name.
pub(crate) const NAMES: [&str; 8] =
    ["new", "old", "event", "schema", "table", "commit_lsn", "committed_at", "changes"];

/// A wake's request with its templates read.
#[derive(Debug)]
pub(crate) struct RequestTemplate {
    request: WakeRequest,
    input: Template,
}

impl RequestTemplate {
    /// Reads the templates.
    pub(crate) fn parse(request: &WakeRequest) -> Result<Self, BadTemplate> {
        let input = Template::parse(&request.input, "input", &NAMES)?;
        // The template has it all; one copy is enough for a thousand agents.
        Ok(Self { request: WakeRequest { input: Value::Null, ..request.clone() }, input })
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
            ..Request::default()
        })
    }
}
