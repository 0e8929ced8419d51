//! Calls of tools that cost something (`docs/spec/thinking-agents.md` §6, C10).
//!
//! The most of a call is reserved in every budget and recorded before the call begins, like that of a question to a model.
//! What it cost takes its place in the commit that ends its step. A call whose end is not known counts as its most.
use super::session::{Session, unwritten};
use crate::{
    agent::{
        Finished, Tool,
        asking::{Asking, added},
        job::retryable,
        retry::again,
        tool::Outcome,
    },
    fault,
    json::count,
    task::{Failure, ModelUsage, StepState, ToolStep, Usage},
};
use serde_json::Value;
use std::collections::BTreeMap;

/// What calls may cost that have begun, by their steps. Calls that cost nothing are not among them.
pub(super) type Costs<'a> = BTreeMap<i32, Asking<'a>>;

/// A call that has ended, and what it cost.
pub(super) struct Paid<'a> {
    asking: &'a Asking<'a>,
    used: ModelUsage,
}

impl Session<'_> {
    /// The tool of a call as it is declared now: what a call costs is no behaviour of the run.
    fn costing(&self, call: &ToolStep) -> Option<&Tool> {
        self.thinker.definition.declared(&call.name).filter(|tool| tool.cost_max() > 0)
    }

    /// Begins calls: their intent is on disk when this returns, and what they may cost is reserved before. The inner
    /// error is how the job goes on if a limit of the day has no room; nothing has begun then.
    pub(super) async fn begin_calls<'b>(
        &'b self,
        calls: &[(i32, &'b ToolStep)],
    ) -> Result<Result<Costs<'b>, Finished>, Failure> {
        let org_limit = self.thinker.parts.models.org_limit(self.job.start.org.as_str());
        let (mut costs, mut used) = (Costs::new(), self.used_with_calls());
        for (seq, call) in calls {
            let Some(tool) = self.costing(call) else { continue };
            let most = Usage { microdollars: tool.cost_max(), ..Usage::default() };
            let step = (self.at.run, *seq);
            let asking = Asking::of_call(self.job, &call.name, step, most, org_limit, used);
            let begun = asking.begin().await;
            if !matches!(begun, Ok(true)) {
                // None of the calls has begun, so those before it cost nothing.
                for other in costs.values() {
                    other.ended(&ModelUsage::none()).await;
                }
                let deferral = asking.deferral();
                begun?;
                return Ok(Err(deferral.ok_or_else(|| retryable("a limit of the day has no room"))?));
            }
            used = added(used, most);
            costs.insert(*seq, asking);
        }
        let seqs: Vec<i32> = calls.iter().map(|(seq, _)| *seq).collect();
        let begin = || self.tasks.begin_calls(&self.at, &seqs);
        again(self.job.deadline, begin).await.map_err(|e| unwritten(&e))?;
        fault::point(fault::Point::ToolIntended);
        Ok(Ok(costs))
    }

    /// What a call cost that ended in this way. `None` if its tool costs nothing.
    pub(super) fn paid<'b>(
        &self,
        asking: Option<&'b Asking<'b>>,
        call: &ToolStep,
        outcome: &Outcome,
    ) -> Option<Paid<'b>> {
        let (asking, tool) = (asking?, self.costing(call));
        let used = match outcome {
            Outcome::Done(output) => cost(tool, output, asking.most()),
            // It had no effect.
            Outcome::Failed(..) => ModelUsage::none(),
            Outcome::Uncertain(_) | Outcome::Stopped => ModelUsage::presumed(asking.most()),
        };
        Some(Paid { asking, used })
    }

    /// Ends a call with its result, and with what it cost in the same commit. `paid`: `None` if it costs nothing.
    pub(super) async fn end_call(
        &self,
        seq: i32,
        state: StepState,
        text: &str,
        bytes_max: usize,
        paid: Option<&Paid<'_>>,
    ) -> Result<(), Failure> {
        let end = self.shown_end(state, text, bytes_max);
        let cost = paid.map(|paid| (paid.asking.record().id, &paid.used));
        let ended = again(self.job.deadline, || self.tasks.end_call(&self.at, seq, &end, cost)).await;
        if let Some(paid) = paid {
            self.count(paid);
            if ended.is_err() {
                // What it cost is known, even if its result is not recorded because the assignment is over.
                paid.asking.record_end(&paid.used).await;
            }
        }
        ended.map_err(|e| unwritten(&e))?;
        fault::point(fault::Point::ToolRecorded);
        Ok(())
    }

    /// Records what a call counts as whose end is not known.
    pub(super) async fn pay_unknown(&self, paid: &Paid<'_>) {
        self.count(paid);
        paid.asking.record_end(&paid.used).await;
    }

    /// Counts what a call cost to the use of the assignment.
    fn count(&self, paid: &Paid<'_>) {
        paid.asking.count(paid.used.usage);
        let mut sum = self.calls_used.lock();
        *sum = added(*sum, paid.used.usage);
    }

    /// What this assignment has used, with the calls of the present action.
    pub(super) fn used_with_calls(&self) -> Usage {
        added(self.used, *self.calls_used.lock())
    }
}

/// The cost of a call that gave this output: what it says, at most the most, else what its tool always costs. One that
/// says nothing and may cost different amounts counts as its most.
fn cost(tool: Option<&Tool>, output: &str, most: Usage) -> ModelUsage {
    let said = || count(serde_json::from_str::<Value>(output).ok()?.get("microdollars")?);
    let said = tool.filter(|tool| tool.max_cost_microdollars.is_some()).and_then(|_| said());
    let usual = tool.and_then(|tool| tool.cost_microdollars);
    match said.or(usual) {
        Some(cost) => {
            let usage = Usage { microdollars: cost.min(most.microdollars), ..Usage::default() };
            ModelUsage { usage, named: said, ..ModelUsage::default() }
        }
        None => ModelUsage::presumed(most),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cost_is_what_the_output_says_at_most_the_most() {
        let tool = |usual: Option<u64>, max: Option<u64>| Tool {
            cost_microdollars: usual,
            max_cost_microdollars: max,
            ..serde_json::from_str("{\"name\": \"t\", \"kind\": \"http\"}").unwrap()
        };
        let most = |tool: &Tool| Usage { microdollars: tool.cost_max(), ..Usage::default() };
        let of = |tool: &Tool, output: &str| {
            let usage = cost(Some(tool), output, most(tool)).usage;
            (usage.microdollars, usage.presumed)
        };
        let fixed = tool(Some(70), None);
        assert_eq!(of(&fixed, "{\"microdollars\": 5}"), (70, false), "an output does not change it");
        let told = tool(None, Some(100));
        for (output, expected) in [
            ("{\"microdollars\": 5}", (5, false)),
            ("{\"microdollars\": 0}", (0, false)),
            ("{\"microdollars\": 4.2, \"x\": 1}", (5, false)),
            ("{\"microdollars\": 1e30}", (100, false)),
            ("{\"microdollars\": -5}", (100, true)),
            ("{\"microdollars\": null}", (100, true)),
            ("[1]", (100, true)),
            ("no JSON", (100, true)),
        ] {
            assert_eq!(of(&told, output), expected, "{output}");
        }
        let both = tool(Some(70), Some(100));
        assert_eq!((of(&both, "plain"), of(&both, "{\"microdollars\": 90}")), ((70, false), (90, false)));
        // The tool may be gone from the definition meanwhile.
        assert_eq!(cost(None, "{}", most(&told)).usage, Usage { presumed: true, ..most(&told) });
    }
}
