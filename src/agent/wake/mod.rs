//! Wakes: which row change requests which task.
//!
//! Owns the filters, the templates and the index over them. A change is looked
//! up by schema and table, so a table without wakes costs two failed look-ups.
//! Filters and templates do no I/O and read no clock; only [`WakeIndex::check`]
//! asks the database, whether the named tables and columns exist. It decides
//! nothing about exactly-once: a hit names its trigger, and whoever records it
//! keys it by log position. Fails loudly: a template that cannot be filled in is
//! a [`Hit`] with the reason in place of the request, a filter that a table no
//! longer fits is logged once for each version of the table and counted.
mod bound;
mod check;
mod filter;
mod index;
mod template;
mod value;

pub use bound::Unbindable;
pub use filter::{BadFilter, Filter, Keyword, Order, Segment, Test};
pub use index::{Commit, Hit, WakeIndex};
pub use template::BadTemplate;
pub(crate) use template::{Context, Template};

use super::definition::WakeRequest;
use crate::task::Request;
use serde_json::Value;

/// What the templates of a wake may name.
pub(crate) const NAMES: [&str; 7] = ["new", "old", "event", "schema", "table", "commit_lsn", "committed_at"];

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
