//! Rows for the tests of the loop.
use crate::task::{Effect, Ending, NoteKind, Step, StepBody, StepState, ToolStep};
use serde_json::{Value, json};

fn step(seq: i32, state: StepState, body: StepBody) -> Step {
    Step { seq, state, tries: 1, rejected: false, body }
}

pub(crate) fn note_of(seq: i32, kind: NoteKind, text: &str) -> Step {
    step(seq, StepState::Done, StepBody::Note { kind, text: text.into() })
}

pub(crate) fn note(seq: i32, text: &str) -> Step {
    note_of(seq, NoteKind::Input, text)
}

/// An answer with calls.
pub(crate) fn model(seq: i32, answer: Value) -> Step {
    model_of(seq, answer, Ending::Calls, false)
}

pub(crate) fn model_of(seq: i32, answer: Value, ending: Ending, last: bool) -> Step {
    let body = StepBody::Model { answer: Some(answer), ending: Some(ending), last, asked: None };
    step(seq, StepState::Done, body)
}

/// A question without an answer.
pub(crate) fn asked(seq: i32) -> Step {
    step(seq, StepState::Started, StepBody::Model { answer: None, ending: None, last: false, asked: None })
}

/// A call that is done if it has a result, else planned.
pub(crate) fn tool_step(
    seq: i32,
    after_seq: i32,
    place: i32,
    name: &str,
    effect: Effect,
    result: Option<&str>,
) -> Step {
    let state = if result.is_some() { StepState::Done } else { StepState::Planned };
    let args = json!({});
    let tool = ToolStep {
        after_seq,
        place,
        name: name.into(),
        args_sha256: super::calls::args_sha256(&args),
        args,
        edited: None,
        effect,
        approval: None,
        key: format!("key-{seq}"),
        result: result.map(str::to_owned),
        asked_after: None,
        doubtful: false,
        age: std::time::Duration::ZERO,
    };
    let tries = i32::from(result.is_some());
    Step { tries, ..step(seq, state, StepBody::Tool(tool)) }
}
