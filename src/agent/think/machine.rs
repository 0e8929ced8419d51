//! What comes next in a run, from its rows alone: pure, total, without clock or chance.
use crate::task::{Approval, AskedModel, Effect, Ending, NoteKind, Step, StepBody, StepState, ToolStep};

/// The tool that ends a run with its result.
pub(crate) const FINISH: &str = "finish";
/// The tool that ends a run without a result.
pub(crate) const GIVE_UP: &str = "give_up";
/// The tool that asks a person.
pub(crate) const ASK: &str = "ask";
/// Tools without a program behind them: the loop itself carries them out, after the others of an answer.
pub(crate) const BUILT_IN: [&str; 3] = [FINISH, GIVE_UP, ASK];

/// The result of a call that timed out in the queue for a permit of its tool.
pub(crate) const NO_PERMIT: &str =
    r#"{"error":{"code":"rate_limited","message":"the tool had no place in time","retryable":true}}"#;

/// Reading tools that run at the same time.
pub(crate) const READS_MAX: usize = 8;
/// Answers in a row whose text is no result, before the attempt fails: two nudges lie between them.
const TEXTS_MAX: usize = 3;
/// Answers in a row without a valid call, before the attempt fails.
const BAD_ANSWERS_MAX: usize = 3;
/// Equal answers in a row: at the first number the calls are not run, at the second the attempt fails.
pub(crate) const SAME_WARNED: usize = 3;
const SAME_MAX: usize = 5;

/// Most steps and calls of a run.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rules {
    pub(crate) steps_max: usize,
    pub(crate) calls_max: usize,
}

/// The next action of a run. Numbers are those of steps.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Action {
    /// Put this in, and go on.
    Note(NoteKind),
    /// Ask the model.
    Ask {
        /// The step that was begun and has no answer.
        again: Option<i32>,
        /// Whether to offer only the tools that end the run.
        last: bool,
    },
    /// Use the text of this answer as the result, if it is one; else a nudge.
    TryText(i32),
    /// Run these calls, at the same time if they are several.
    Run(Vec<i32>),
    /// Record that it is unknown whether this call had its effect.
    Doubt(i32),
    /// Find out whether this call had its effect, and run it again if it did not.
    Probe(i32),
    /// Ask a person about this call, or use the answer: its tool is `ask`, or its outcome is unknown.
    AskPerson(i32),
    /// Ask a person to approve these calls, or use the answer. All others of their answer have ended.
    AskApproval(Vec<i32>),
    /// `finish` beside a call that failed: it is refused, and the model goes on.
    RefuseFinish(i32),
    /// End with the result of this step.
    Finish(i32),
    /// End with the reason of this `give_up`.
    GiveUp(i32),
    /// End the run and the attempt.
    End(Why),
}

/// Why a run ended without result.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Why {
    /// The limit of steps or calls.
    Steps,
    /// The same calls again and again.
    Loop,
    /// No valid call in several answers.
    BadCalls,
    /// Text that is no result, in several answers.
    NoResult,
    /// Two answers in a row that were cut off.
    Length,
    /// The model or its endpoint refused.
    Refused,
}

/// The next action.
pub(crate) fn next(steps: &[Step], rules: Rules) -> Action {
    let Some((at, model)) = steps.iter().enumerate().rfind(|(_, step)| is_model(step)) else {
        return ask(steps, rules, None);
    };
    let StepBody::Model { ending, last, .. } = &model.body else { return ask(steps, rules, None) };
    let ending = match (model.state, ending) {
        (StepState::Done, Some(ending)) => *ending,
        // It was too large, and results are left out of the next one.
        (StepState::Failed, _) => return Action::Ask { again: None, last: *last },
        // The answer was lost, if there was one: the same question again.
        _ => return Action::Ask { again: Some(model.seq), last: *last },
    };
    let after = steps.get(at + 1..).unwrap_or_default();
    let noted = after.iter().any(is_note);
    match ending {
        Ending::Refused => Action::End(Why::Refused),
        Ending::Cut if noted => ask(steps, rules, Some(*last)),
        Ending::Cut if in_a_row(steps, |step| ending_of(step) == Some(Ending::Cut)) >= 2 => {
            Action::End(Why::Length)
        }
        Ending::Cut => Action::Note(NoteKind::Smaller),
        Ending::Text if noted => ask(steps, rules, Some(*last)),
        Ending::Text if model.rejected => Action::Note(NoteKind::Rejected),
        Ending::Text => Action::TryText(model.seq),
        Ending::Calls => calls(steps, after, rules, *last),
    }
}

/// After a text that is no result: a nudge, or the end.
pub(crate) fn no_result(steps: &[Step]) -> Action {
    let texts = in_a_row(steps, |step| ending_of(step) == Some(Ending::Text));
    if texts >= TEXTS_MAX { Action::End(Why::NoResult) } else { Action::Note(NoteKind::Nudge) }
}

fn calls(steps: &[Step], after: &[Step], rules: Rules, last: bool) -> Action {
    let tools: Vec<(&Step, &ToolStep)> = after.iter().filter_map(tool).collect();
    let (own, work): (Vec<_>, Vec<_>) =
        tools.iter().partition(|(_, tool)| BUILT_IN.contains(&tool.name.as_str()));
    if let Some(action) = pending(&work) {
        return action;
    }
    if let Some((step, tool)) = own.iter().find(|(step, _)| !step.state.has_ended()) {
        let failed = work.iter().any(|(step, _)| matches!(step.state, StepState::Failed | StepState::Denied));
        return match tool.name.as_str() {
            FINISH if failed => Action::RefuseFinish(step.seq),
            FINISH => Action::Finish(step.seq),
            GIVE_UP => Action::GiveUp(step.seq),
            _ => Action::AskPerson(step.seq),
        };
    }
    let noted = after.iter().any(is_note);
    if let Some((step, tool)) = own.iter().find(|(step, _)| step.state == StepState::Done)
        && !noted
    {
        match tool.name.as_str() {
            // The crash came between the record and the end of the task.
            FINISH if !step.rejected => return Action::Finish(step.seq),
            FINISH => return Action::Note(NoteKind::Rejected),
            GIVE_UP => return Action::GiveUp(step.seq),
            _ => {}
        }
    }
    if same_answers(steps) >= SAME_MAX {
        return Action::End(Why::Loop);
    }
    if in_a_row(steps, |step| has_no_valid_call(steps, step)) >= BAD_ANSWERS_MAX {
        return Action::End(Why::BadCalls);
    }
    ask(steps, rules, Some(last))
}

/// The first calls that have not ended: reading ones together, others alone, and at the end all that wait for an
/// approval, so that a person is asked once.
fn pending(work: &[&(&Step, &ToolStep)]) -> Option<Action> {
    let waiting = work.iter().copied().filter(|(step, _)| !step.state.has_ended());
    let (held, free): (Vec<_>, Vec<_>) = waiting.partition(|(_, tool)| tool.is_held());
    let Some((first, tool)) = free.first() else {
        let held: Vec<i32> = held.iter().map(|(step, _)| step.seq).collect();
        return (!held.is_empty()).then_some(Action::AskApproval(held));
    };
    if first.state == StepState::Unknown {
        return Some(Action::AskPerson(first.seq));
    }
    if first.state == StepState::Started && tool.effect == Effect::Checked {
        return Some(Action::Probe(first.seq));
    }
    if is_doubtful(first, tool) {
        return Some(Action::Doubt(first.seq));
    }
    if tool.effect != Effect::Read {
        return Some(Action::Run(vec![first.seq]));
    }
    let reads = free.iter().take_while(|(step, tool)| {
        tool.effect == Effect::Read && step.state != StepState::Unknown && !is_doubtful(step, tool)
    });
    Some(Action::Run(reads.take(READS_MAX).map(|(step, _)| step.seq).collect()))
}

/// Whether a call that was begun may not run again by itself. An approval that was used is used: also a call that
/// could be repeated is not repeated with it.
fn is_doubtful(step: &Step, tool: &ToolStep) -> bool {
    step.state == StepState::Started && (tool.effect == Effect::Once || tool.approval == Some(Approval::Used))
}

/// Asks, within the limits. `was_last` is that of the question before.
fn ask(steps: &[Step], rules: Rules, was_last: Option<bool>) -> Action {
    let asked = steps.iter().filter(|step| is_model(step)).count();
    let called = steps.iter().filter(|step| tool(step).is_some()).count();
    if was_last == Some(true) {
        return Action::End(Why::Steps);
    }
    if asked >= rules.steps_max || called >= rules.calls_max {
        return Action::Ask { again: None, last: true };
    }
    let most = |used: usize, max: usize| used > 0 && used.saturating_mul(5) >= max.saturating_mul(4);
    let told = steps.iter().any(|step| matches!(step.body, StepBody::Note { kind: NoteKind::Limit, .. }));
    if !told && (most(asked, rules.steps_max) || most(called, rules.calls_max)) {
        return Action::Note(NoteKind::Limit);
    }
    Action::Ask { again: None, last: false }
}

/// How many of the last answers are equal to the last one: the same tools with the same arguments, in any order.
pub(crate) fn same_answers(steps: &[Step]) -> usize {
    let mut answers = steps.iter().rev().filter(|step| is_model(step)).map(|step| calls_of(steps, step.seq));
    let Some(last) = answers.next().filter(|last| !last.is_empty()) else { return 0 };
    1 + answers.take_while(|calls| *calls == last).count()
}

/// The calls of the last answer.
pub(crate) fn last_calls(steps: &[Step]) -> Vec<(&str, &str)> {
    let last = steps.iter().rfind(|step| is_model(step));
    last.map(|model| calls_of(steps, model.seq)).unwrap_or_default()
}

/// The calls of an answer, in an order that does not depend on the model.
fn calls_of(steps: &[Step], seq: i32) -> Vec<(&str, &str)> {
    let of = steps.iter().filter_map(tool).filter(|(_, tool)| tool.after_seq == seq);
    let mut calls: Vec<_> = of.map(|(_, tool)| (tool.name.as_str(), tool.args_sha256.as_str())).collect();
    calls.sort_unstable();
    calls
}

/// Whether every call of an answer was refused before it began. One that only timed out in a queue was valid.
fn has_no_valid_call(steps: &[Step], model: &Step) -> bool {
    let mut of = steps.iter().filter_map(tool).filter(|(_, tool)| tool.after_seq == model.seq).peekable();
    let is_refused = |(step, tool): (&Step, &ToolStep)| {
        step.state == StepState::Failed && step.tries == 0 && tool.result.as_deref() != Some(NO_PERMIT)
    };
    of.peek().is_some() && of.all(is_refused)
}

/// The model that was asked last. `None` before the first question.
pub(crate) fn asked_last(steps: &[Step]) -> Option<&AskedModel> {
    steps.iter().rev().find_map(|step| match &step.body {
        StepBody::Model { asked, .. } => asked.as_ref(),
        _ => None,
    })
}

/// How many of the last answers are such.
fn in_a_row(steps: &[Step], is_such: impl Fn(&Step) -> bool) -> usize {
    steps.iter().rev().filter(|step| is_model(step)).take_while(|step| is_such(step)).count()
}

fn ending_of(step: &Step) -> Option<Ending> {
    match &step.body {
        StepBody::Model { ending, .. } => *ending,
        _ => None,
    }
}

fn is_model(step: &Step) -> bool {
    matches!(step.body, StepBody::Model { .. })
}

fn is_note(step: &Step) -> bool {
    matches!(step.body, StepBody::Note { .. })
}

pub(crate) fn tool(step: &Step) -> Option<(&Step, &ToolStep)> {
    match &step.body {
        StepBody::Tool(tool) => Some((step, tool)),
        _ => None,
    }
}

#[cfg(test)]
mod tests;
