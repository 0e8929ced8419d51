//! Calls of tools with limits (`per_minute`, `concurrent`): a call that has begun waits for its place, at most as long as
//! its time limit. The limits are those of the present definition, like all that is permitted.
use super::session::Session;
use crate::{
    agent::tool::{Allowed, Callable, Outcome, Permit},
    task::ToolStep,
};
use tokio::time::Instant;

impl Session<'_> {
    /// Runs a tool when it has its place, which it keeps until its last try has ended.
    pub(super) async fn outcome_in_place(&self, tool: Callable<'_>, seq: i32, call: &ToolStep) -> Outcome {
        match self.place(call).await {
            Ok(_place) => self.outcome(tool, seq, call).await,
            Err(outcome) => outcome,
        }
    }

    /// The place of a call. `None` if its tool has no limits.
    async fn place(&self, call: &ToolStep) -> Result<Option<Permit>, Outcome> {
        let tool = self.thinker.definition.declared(&call.name);
        let tool = tool.filter(|tool| tool.per_minute.is_some() || tool.concurrent.is_some());
        let Some(tool) = tool else { return Ok(None) };
        let (limits, org) = (&self.thinker.parts.tool_limits, &self.job.start.org);
        let allowed = Allowed { per_minute: tool.per_minute, concurrent: tool.concurrent };
        if let Some(place) = limits.try_enter(org, &call.name, allowed) {
            return Ok(Some(place));
        }
        self.shows(format!("waiting for the tool {}", call.name));
        let stop = self.job.stop_token();
        let place = tokio::select! {
            place = limits.enter(org, &call.name, allowed, Instant::now() + tool.timeout()) => place,
            () = stop.cancelled() => return Err(Outcome::Stopped),
        };
        let late = || Outcome::Failed("rate_limited", "the tool had no place in time".into(), true);
        self.shows(format!("calling {}", call.name));
        place.map(Some).ok_or_else(late)
    }
}
