//! The rate limit (`per_minute`) and the concurrency limit (`concurrent`) of tools: a call begins when it has its permit,
//! and waits for one in a queue at most as long as its time limit. While it waits it has not begun, so a daemon that dies
//! then leaves no doubt about it, and an approval is not used up. A retry of a call whose outcome is unknown does not wait:
//! it may still have its effect. The limits are those of the present definition, like all that is permitted.
use super::{machine, session::Session};
use crate::{
    agent::{
        ToolKind,
        job::retryable,
        tool::{Allowed, Permit},
    },
    task::{Failure, Step, StepState, ToolStep},
};
use futures_util::{StreamExt, stream::FuturesUnordered};
use std::{collections::BTreeMap, time::Duration};
use tokio::time::Instant;

impl Session<'_> {
    /// The limits of a call, and the longest wait for its permit. `None` if calls of its tool need no permit.
    fn limits_of(&self, call: &ToolStep) -> Option<(Allowed, Duration)> {
        let tool = self.thinker.definition.declared(&call.name);
        let tool = tool.filter(|tool| tool.kind != ToolKind::Sql)?;
        Some((Allowed { per_minute: tool.per_minute, concurrent: tool.concurrent }, tool.timeout()))
    }

    /// Those of the calls that may begin now, with their permits. Empty if all must wait.
    pub(super) fn with_permits<'c>(
        &self,
        calls: &[(&'c Step, &'c ToolStep)],
    ) -> (Vec<(&'c Step, &'c ToolStep)>, BTreeMap<i32, Permit>) {
        let (limits, org) = (&self.thinker.parts.tool_limits, &self.job.start.org);
        let mut permits = self.permits.lock();
        let mut acquired = BTreeMap::new();
        let mut may_begin = |step: &Step, call: &ToolStep| {
            let Some((allowed, timeout)) = self.limits_of(call) else { return true };
            let now = Instant::now();
            let permit = match step.state {
                StepState::Planned => {
                    let deadline = *permits.deadlines.entry(step.seq).or_insert(now + timeout);
                    let held = permits.held.remove(&step.seq);
                    // After its deadline it must not acquire one: that would count towards `per_minute`.
                    let acquire = || limits.try_acquire(org, &call.name, allowed);
                    held.or_else(|| (now <= deadline).then(acquire).flatten())
                }
                _ => Some(limits.acquire_over_limit(org, &call.name, true)),
            };
            permit.is_some_and(|permit| acquired.insert(step.seq, permit).is_none())
        };
        let first = calls.iter().copied().filter(|(step, call)| may_begin(step, call)).collect();
        (first, acquired)
    }

    /// The permit of a command that was begun before this daemon, and that its keeper may still run.
    pub(super) fn permit_of_kept(&self, call: &ToolStep) -> Option<Permit> {
        self.limits_of(call)?;
        Some(self.thinker.parts.tool_limits.acquire_over_limit(&self.job.start.org, &call.name, false))
    }

    /// Waits until one of the calls has its permit, and keeps it until the call begins. Ends those that time out.
    pub(super) async fn wait_for_permit(&self, calls: &[(&Step, &ToolStep)]) -> Result<(), Failure> {
        let (limits, org) = (&self.thinker.parts.tool_limits, &self.job.start.org);
        let mut names: Vec<&str> = calls.iter().map(|(_, call)| call.name.as_str()).collect();
        names.dedup();
        self.shows(format!("waiting for the tool {}", names.join(", ")));
        let waits = calls.iter().filter_map(|(step, call)| {
            let deadline = *self.permits.lock().deadlines.get(&step.seq)?;
            let (allowed, _) = self.limits_of(call)?;
            let acquire = limits.acquire(org, &call.name, allowed, deadline);
            Some(async move { (step, *call, if Instant::now() < deadline { acquire.await } else { None }) })
        });
        let mut waits: FuturesUnordered<_> = waits.collect();
        let stop = self.job.stop_token();
        loop {
            let waited = tokio::select! {
                waited = waits.next() => waited,
                () = stop.cancelled() => return Err(retryable("the call of a tool was stopped")),
            };
            let Some((step, call, permit)) = waited else { return Ok(()) };
            let Some(permit) = permit else {
                let bytes_max = self.pinned_bytes(&call.name);
                self.end_call(step.seq, StepState::Failed, machine::NO_PERMIT, bytes_max, None).await?;
                continue;
            };
            // The rows are read again before it begins: an approval may have expired meanwhile.
            self.permits.lock().held.insert(step.seq, permit);
            return Ok(());
        }
    }
}
