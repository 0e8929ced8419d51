//! Calls of tools with limits (`per_minute`, `concurrent`): a call begins when it has its place, and waits for one at
//! most as long as its time limit. While it waits it has not begun, so a daemon that dies then leaves no doubt about it,
//! and an approval is not used up. The limits are those of the present definition, like all that is permitted.
use super::{machine, session::Session};
use crate::{
    agent::{
        Tool, ToolKind,
        job::retryable,
        tool::{Allowed, Permit},
    },
    task::{Failure, Step, StepState, ToolStep},
};
use futures_util::{StreamExt, stream::FuturesUnordered};
use std::{collections::BTreeMap, time::Duration};
use tokio::time::Instant;

impl Session<'_> {
    /// What the tool of a call allows. `None` if its calls are not counted.
    fn allowed(&self, call: &ToolStep) -> Option<Allowed> {
        let tool = self.thinker.definition.declared(&call.name);
        let tool = tool.filter(|tool| tool.kind != ToolKind::Sql)?;
        Some(Allowed { per_minute: tool.per_minute, concurrent: tool.concurrent })
    }

    /// Those of the calls that may begin now, with their places. Empty if all must wait.
    pub(super) fn placed<'c>(
        &self,
        calls: &[(&'c Step, &'c ToolStep)],
    ) -> (Vec<(&'c Step, &'c ToolStep)>, BTreeMap<i32, Permit>) {
        let (limits, org) = (&self.thinker.parts.tool_limits, &self.job.start.org);
        let mut places = self.places.lock();
        let mut taken = BTreeMap::new();
        let mut has_place = |step: &Step, call: &ToolStep| {
            let Some(allowed) = self.allowed(call) else { return true };
            let now = Instant::now();
            let place = match step.state {
                StepState::Planned => {
                    let until = *places.until.entry(step.seq).or_insert(now + self.patience(call));
                    let held = places.held.remove(&step.seq);
                    // After its deadline it must not take one: that would count in the minute.
                    let enter = || limits.try_enter(org, &call.name, allowed);
                    held.or_else(|| (now <= until).then(enter).flatten())
                }
                _ => Some(limits.still_runs(org, &call.name, true)),
            };
            place.is_some_and(|place| taken.insert(step.seq, place).is_none())
        };
        let placed = calls.iter().copied().filter(|(step, call)| has_place(step, call)).collect();
        (placed, taken)
    }

    /// The place of a command that was begun before this daemon, and that its keeper may still run.
    pub(super) fn place_of_kept(&self, call: &ToolStep) -> Option<Permit> {
        self.allowed(call)?;
        Some(self.thinker.parts.tool_limits.still_runs(&self.job.start.org, &call.name, false))
    }

    /// How long a call waits for its place.
    fn patience(&self, call: &ToolStep) -> Duration {
        self.thinker.definition.declared(&call.name).map_or(Duration::ZERO, Tool::timeout)
    }

    /// Waits until one of the calls has its place, which it keeps until it begins. Those that get none in time end.
    pub(super) async fn wait_for_place(&self, calls: &[(&Step, &ToolStep)]) -> Result<(), Failure> {
        let (limits, org) = (&self.thinker.parts.tool_limits, &self.job.start.org);
        let mut names: Vec<&str> = calls.iter().map(|(_, call)| call.name.as_str()).collect();
        names.dedup();
        self.shows(format!("waiting for the tool {}", names.join(", ")));
        let waits = calls.iter().filter_map(|(step, call)| {
            let until = *self.places.lock().until.get(&step.seq)?;
            let allowed = self.allowed(call)?;
            let enter = limits.enter(org, &call.name, allowed, until);
            Some(async move { (step, *call, if Instant::now() < until { enter.await } else { None }) })
        });
        let mut waits: FuturesUnordered<_> = waits.collect();
        let stop = self.job.stop_token();
        loop {
            let waited = tokio::select! {
                waited = waits.next() => waited,
                () = stop.cancelled() => return Err(retryable("the call of a tool was stopped")),
            };
            let Some((step, call, place)) = waited else { return Ok(()) };
            let Some(place) = place else {
                let bytes_max = self.pinned_bytes(&call.name);
                self.end_call(step.seq, StepState::Failed, machine::NO_PLACE, bytes_max, None).await?;
                continue;
            };
            // What has happened meanwhile is read before it begins: an approval may have expired.
            self.places.lock().held.insert(step.seq, place);
            return Ok(());
        }
    }
}
