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
            // One that a person or a guard has denied is not begun.
            if step.state == StepState::Done || step.tries > 0 {
                turn.called.begin(names(&call.name, &call.args));
            }
        }
        turn
    }

    /// Counts a call, also for the others of its answer.
    pub(super) fn count(&mut self, name: &str, args: &Value) {
        self.called.count(names(name, args));
    }
}

/// The names that a rule may have for a call.
fn names(name: &str, args: &Value) -> impl Iterator<Item = String> {
    kind_of(name, args).map(part_rule).into_iter().chain([name.to_owned()])
}

/// The kind of the part that a call requests. `None` for another tool.
pub(super) fn kind_of<'a>(name: &str, args: &'a Value) -> Option<&'a str> {
    args.get("kind").and_then(Value::as_str).filter(|_| name == REQUEST_TASK)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agent::CallRule;
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
        let mut expected = Called::default();
        for (name, count) in [("look", 5), (REQUEST_TASK, 1), ("request_task:a", 1)] {
            (0..count).for_each(|_| expected.count([name.to_owned()]));
            expected.begin([name.to_owned()]);
        }
        assert_eq!(Turn::after(&steps, false).called, expected);
    }

    #[test]
    fn only_a_call_that_has_begun_is_one_that_another_may_come_after() {
        for (state, tries, is_begun) in [
            (StepState::Planned, 0, false),
            (StepState::Denied, 0, false),
            (StepState::Failed, 0, false),
            (StepState::Failed, 1, true),
            (StepState::Unknown, 1, true),
            (StepState::Done, 1, true),
            // The result of an earlier run.
            (StepState::Done, 0, true),
        ] {
            let step = Step { state, tries, ..tool_step(3, 2, 0, "look", Effect::Once, None) };
            let called = Turn::after(&[note(1, "task"), model(2, json!({})), step], false).called;
            let rule = CallRule { after: vec!["look".into()], ..CallRule::default() };
            assert_eq!(rule.closed("pay", &called).is_none(), is_begun, "{state:?} {tries}");
        }
    }
}
