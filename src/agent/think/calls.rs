//! Reads the calls of an answer, and plans them: which run, and which are answered with an error at once.
use super::machine::{self, BUILT_IN, Rules};
use super::messages::ToolsBy;
use crate::{
    agent::hex,
    json,
    task::{EarlierEffect, Effect, Ending, NewCall, Step, StepState},
};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

/// Largest arguments of one call, in bytes.
const ARGS_BYTES_MAX: usize = 64 << 10;
/// Most calls of one answer.
const CALLS_MAX: usize = 64;
/// Longest name of a tool that is kept, in bytes.
const NAME_BYTES_MAX: usize = 100;

/// An answer that was read.
#[derive(Debug)]
pub(crate) struct Answered {
    pub(crate) ending: Ending,
    pub(crate) calls: Vec<Call>,
}

/// A call as the model wrote it.
#[derive(Debug, PartialEq)]
pub(crate) struct Call {
    pub(crate) wire_id: Option<String>,
    pub(crate) name: String,
    /// The inner error says why the text is not JSON.
    pub(crate) args: Result<Value, String>,
}

/// What the catalog says about a call.
pub(crate) enum Verdict {
    /// It may run.
    Valid {
        name: String,
        effect: Effect,
        /// Whether a new run may repeat a call of an earlier one.
        repeat: bool,
    },
    /// It is answered with this error.
    Refused { name: String, error: String },
}

/// An error for the model.
pub(crate) fn error(code: &str, message: &str, retryable: bool) -> String {
    json!({ "error": { "code": code, "message": message, "retryable": retryable } }).to_string()
}

/// Reads an assistant message. The calls decide how it ended; `finish_reason` is only a hint.
pub(crate) fn read(message: &Value, finish: Option<&str>, by: ToolsBy) -> Answered {
    let finish = finish.unwrap_or_default().to_ascii_lowercase();
    let was_cut = matches!(finish.as_str(), "length" | "model_length" | "max_tokens");
    let calls = match by {
        ToolsBy::Native => native(message),
        ToolsBy::Schema => by_schema(message).into_iter().collect(),
    };
    if was_cut && calls.iter().any(|call| call.args.is_err()) {
        return Answered { ending: Ending::Cut, calls: Vec::new() };
    }
    let text = text_of(message);
    let refused = finish == "content_filter"
        || message.get("refusal").and_then(Value::as_str).is_some_and(|it| !it.is_empty());
    let ending = match calls.is_empty() {
        false => Ending::Calls,
        true if refused => Ending::Refused,
        true if was_cut && !is_json(&text) => Ending::Cut,
        true => Ending::Text,
    };
    Answered { ending, calls }
}

/// The text of a message: a string, or the parts of type `text` joined.
pub(crate) fn text_of(message: &Value) -> String {
    match message.get("content") {
        Some(Value::String(text)) => text.clone(),
        Some(Value::Array(parts)) => {
            let text = |part: &Value| Some(part.get("text")?.as_str()?.to_owned());
            parts.iter().filter_map(text).collect()
        }
        _ => String::new(),
    }
}

/// Whether a text is one JSON value, in a fence or without.
pub(crate) fn is_json(text: &str) -> bool {
    serde_json::from_str::<serde::de::IgnoredAny>(unfenced(text)).is_ok()
}

fn native(message: &Value) -> Vec<Call> {
    let calls = message.get("tool_calls").and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
    let one = |call: &Value| {
        let function = call.get("function")?;
        let name = function.get("name").and_then(Value::as_str).unwrap_or_default();
        Some(Call {
            wire_id: call.get("id").and_then(Value::as_str).map(|id| shortened(id).to_owned()),
            name: shortened(name).to_owned(),
            args: arguments(function.get("arguments").unwrap_or(&Value::Null)),
        })
    };
    // A call that cannot be read would shift the places of those after it.
    let bad = || Call { wire_id: None, name: String::new(), args: Err("the call has no function".into()) };
    calls.iter().map(|call| one(call).unwrap_or_else(bad)).collect()
}

/// The call in the JSON text of an answer. `None` if the text has no member `tool`.
fn by_schema(message: &Value) -> Option<Call> {
    let text = text_of(message);
    let value = json::parse(unfenced(&text).as_bytes()).ok()?;
    let name = value.get("tool")?.as_str()?;
    let args = arguments(value.get("arguments").unwrap_or(&Value::Null));
    Some(Call { wire_id: None, name: shortened(name).to_owned(), args })
}

/// Arguments as text or as an object; empty ones are `{}`, and one text around the JSON is removed.
fn arguments(given: &Value) -> Result<Value, String> {
    let Value::String(text) = given else {
        return match given {
            Value::Null => Ok(json!({})),
            Value::Object(_) if given.to_string().len() <= ARGS_BYTES_MAX => Ok(given.clone()),
            Value::Object(_) => Err(format!("the arguments are over {ARGS_BYTES_MAX} bytes")),
            _ => Err("the arguments are not a JSON object".into()),
        };
    };
    if text.len() > ARGS_BYTES_MAX {
        return Err(format!("the arguments are over {ARGS_BYTES_MAX} bytes"));
    }
    let text = unfenced(text);
    if text.is_empty() {
        return Ok(json!({}));
    }
    match json::parse(text.as_bytes()).map_err(|e| format!("the arguments are not read: {e}"))? {
        Value::Null => Ok(json!({})),
        Value::String(inner) => match json::parse(inner.as_bytes()) {
            Ok(inner @ Value::Object(_)) => Ok(inner),
            _ => Err("the arguments are not a JSON object".into()),
        },
        object @ Value::Object(_) => Ok(object),
        _ => Err("the arguments are not a JSON object".into()),
    }
}

/// The text without a fence of backticks around it.
fn unfenced(text: &str) -> &str {
    let text = text.trim();
    let Some(inner) = text.strip_prefix("```").and_then(|rest| rest.strip_suffix("```")) else { return text };
    let inner = inner.strip_prefix("json").or_else(|| inner.strip_prefix("JSON")).unwrap_or(inner);
    inner.trim()
}

fn shortened(text: &str) -> &str {
    let end = (0..=NAME_BYTES_MAX.min(text.len())).rev().find(|at| text.is_char_boundary(*at));
    text.get(..end.unwrap_or(0)).unwrap_or_default()
}

/// SHA-256 of arguments: members are sorted, so their order does not matter.
pub(crate) fn args_sha256(args: &Value) -> String {
    hex(&Sha256::digest(args.to_string()))
}

/// Plans the calls of an answer that follows `steps`.
pub(crate) fn plan(
    steps: &[Step],
    earlier: &[EarlierEffect],
    calls: Vec<(Call, Verdict)>,
    rules: Rules,
) -> Vec<NewCall> {
    let before = steps.iter().filter(|step| machine::tool(step).is_some()).count();
    let mut ends = false;
    let mut planned = Vec::with_capacity(calls.len());
    for (place, (call, verdict)) in calls.into_iter().enumerate() {
        let (mut new, repeat) = match verdict {
            Verdict::Valid { name, effect, repeat } => (new_call(call, name, effect), repeat),
            Verdict::Refused { name, error } => (refused(new_call(call, name, Effect::Read), error), false),
        };
        if new.state == StepState::Planned {
            if let Some(why) = not_run(&new, place, before, rules, &mut ends) {
                new = refused(new, why);
            } else if let Some(known) = known(&new, earlier).filter(|_| !repeat) {
                new = known;
            }
        }
        planned.push(new);
    }
    if repeats(steps, &planned) {
        let why = error(
            "loop",
            "this is the third equal answer in a row: the calls were not run. Use the results that you have, or do something else",
            false,
        );
        let planned = planned.into_iter();
        return planned
            .map(|call| if call.state == StepState::Planned { refused(call, why.clone()) } else { call })
            .collect();
    }
    planned
}

fn new_call(call: Call, name: String, effect: Effect) -> NewCall {
    let args = call.args.unwrap_or(Value::Null);
    let args_sha256 = args_sha256(&args);
    NewCall {
        wire_id: call.wire_id,
        name,
        args,
        args_sha256,
        effect,
        state: StepState::Planned,
        result: None,
    }
}

fn refused(call: NewCall, error: String) -> NewCall {
    NewCall { state: StepState::Failed, result: Some(error), ..call }
}

/// Why a valid call is not run.
fn not_run(call: &NewCall, place: usize, before: usize, rules: Rules, ends: &mut bool) -> Option<String> {
    let is_own = BUILT_IN.contains(&call.name.as_str());
    if place >= CALLS_MAX {
        return Some(error("too_many", "an answer may have 64 calls", true));
    }
    if !is_own && before.saturating_add(place) >= rules.calls_max {
        return Some(error("limit", "the run has used all of its calls: finish with what you have", false));
    }
    // One of them decides how the run goes on.
    if is_own && std::mem::replace(ends, true) {
        return Some(error("one_at_a_time", "finish, give_up and ask come one in an answer", true));
    }
    None
}

/// A call whose effect is known from before: it gets the earlier result, or the news that its outcome is unknown.
fn known(call: &NewCall, earlier: &[EarlierEffect]) -> Option<NewCall> {
    if call.effect == Effect::Read || BUILT_IN.contains(&call.name.as_str()) {
        return None;
    }
    let same = |effect: &&EarlierEffect| effect.name == call.name && effect.args_sha256 == call.args_sha256;
    // Only of earlier runs: within a run, a repeated call is the model's own decision.
    let found = earlier.iter().find(same)?;
    Some(match found.state {
        StepState::Done => {
            let result = json!({ "already_done": true, "result": found.result }).to_string();
            NewCall { state: StepState::Done, result: Some(result), ..call.clone() }
        }
        _ => {
            let why = "an earlier run of this task began this call, and its outcome is unknown: look whether it happened";
            refused(call.clone(), error("unknown_outcome", why, false))
        }
    })
}

/// Whether the calls make the third equal answer in a row, or a later one.
fn repeats(steps: &[Step], planned: &[NewCall]) -> bool {
    let mut now: Vec<(&str, &str)> =
        planned.iter().map(|call| (call.name.as_str(), call.args_sha256.as_str())).collect();
    now.sort_unstable();
    !now.is_empty()
        && machine::last_calls(steps) == now
        && machine::same_answers(steps) + 1 >= machine::SAME_WARNED
}

#[cfg(test)]
mod tests;
