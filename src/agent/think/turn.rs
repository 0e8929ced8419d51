//! What decides which tools are open to the next answer of a run.
use super::machine;
use crate::{
    agent::definition::{Called, REQUEST_TASK, part_rule},
    task::{Step, StepState},
};
use serde_json::Value;

/// A question to the model, as far as the rules of calls care.
#[derive(Clone, Debug, Default)]
pub(super) struct Turn {
    /// Whether only the tools that end the run are open.
    pub(super) last: bool,
    /// The calls before it.
    pub(super) called: Called,
}

impl Turn {
    /// The turn after these steps. A call counts however it ended, unless it was refused before it began.
    pub(super) fn after(steps: &[Step], last: bool) -> Self {
        let mut turn = Self { last, called: Called::default() };
        for (step, call) in steps.iter().filter_map(machine::tool) {
            if step.state != StepState::Failed || step.tries > 0 {
                turn.count(&call.name, &call.args);
            }
        }
        turn
    }

    /// Counts a call, also for the others of its answer.
    pub(super) fn count(&mut self, name: &str, args: &Value) {
        let kind = kind_of(name, args).map(part_rule);
        for name in kind.into_iter().chain([name.to_owned()]) {
            let count = self.called.entry(name).or_default();
            *count = count.saturating_add(1);
        }
    }
}

/// The kind of the part that a call requests. `None` for another tool.
pub(super) fn kind_of<'a>(name: &str, args: &'a Value) -> Option<&'a str> {
    args.get("kind").and_then(Value::as_str).filter(|_| name == REQUEST_TASK)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agent::think::testing::{model, note, tool_step};
    use crate::task::{Effect, StepBody};
    use serde_json::json;

    #[test]
    fn call_counts_unless_it_was_refused_before_it_began() {
        let mut steps = vec![note(1, "task"), model(2, json!({}))];
        for (seq, state, tries) in [
            (3, StepState::Done, 1),
            (4, StepState::Failed, 1),
            (5, StepState::Failed, 0),
            (6, StepState::Denied, 0),
            (7, StepState::Planned, 0),
            (8, StepState::Unknown, 1),
        ] {
            let step = tool_step(seq, 2, 0, "look", Effect::Read, None);
            steps.push(Step { state, tries, ..step });
        }
        let mut part = tool_step(9, 2, 0, REQUEST_TASK, Effect::Database, Some("x"));
        if let StepBody::Tool(call) = &mut part.body {
            call.args = json!({ "kind": "a" });
        }
        steps.push(Step { tries: 1, ..part });
        let called = Turn::after(&steps, false).called;
        let expected = [("look", 5), (REQUEST_TASK, 1), ("request_task:a", 1)];
        assert_eq!(called, expected.map(|(name, count)| (name.to_owned(), count)).into());
    }
}
