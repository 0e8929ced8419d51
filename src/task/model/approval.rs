//! Approvals of calls before they begin: what a person is asked, and how the answer is read. Pure.
use crate::task::{Effect, TaskId};
use serde::Serialize;
use serde_json::Value;
use sha2::{Digest, Sha256};
use std::{fmt::Write, time::Duration};

/// Digits of the hash in an id: enough that no other arguments with the same ones are found.
const ID_DIGITS: usize = 20;
/// Longest reason of a denial that the model is shown, in characters.
const REASON_CHARS_MAX: usize = 1_000;

/// A call that a person is asked to approve.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ApprovalCall {
    /// Its name in the answer. Another task, run, step, tool or other arguments have another id.
    pub id: String,
    /// The step of the call.
    pub seq: i32,
    /// The tool.
    pub tool: String,
    /// The class of its effect.
    pub effect: Effect,
    /// The arguments: JSON, exactly the text that is hashed.
    pub arguments: String,
    /// SHA-256 of `arguments`, in hexadecimal.
    pub args_sha256: String,
}

impl ApprovalCall {
    /// The question about the call in a step of a run of a task.
    #[must_use]
    pub fn new(task: TaskId, (run, seq): (i32, i32), tool: &str, effect: Effect, args: &Value) -> Self {
        let arguments = args.to_string();
        let args_sha256 = hex(&arguments);
        let mark = hex(&format!("{task}:{run}:{seq}:{tool}:{args_sha256}"));
        let id = format!("{seq}-{}", mark.get(..ID_DIGITS).unwrap_or_default());
        Self { id, seq, tool: tool.to_owned(), effect, arguments, args_sha256 }
    }
}

fn hex(text: &str) -> String {
    Sha256::digest(text).iter().fold(String::new(), |mut hex, byte| {
        let _ = write!(hex, "{byte:02x}");
        hex
    })
}

/// A person's decision about one call.
#[derive(Clone, Debug, PartialEq)]
pub enum Decision {
    /// It runs.
    Approve,
    /// It does not run: the reason, for the model.
    Deny(String),
    /// It runs with these arguments.
    Edit(Value),
}

/// What a person decided about one call.
#[derive(Clone, Debug)]
pub struct CallDecision {
    /// The step of the call.
    pub seq: i32,
    /// The decision.
    pub decision: Decision,
    /// SHA-256 of the arguments that the person gave, in hexadecimal. `None` if they are those of the model.
    pub edited_sha256: Option<String>,
    /// What the model is shown, if the call is denied.
    pub result: Option<String>,
    /// How long after the answer the call may begin.
    pub expires: Duration,
}

/// Reads the answer to a question about these calls: an object with a decision for each id. A call that is not named
/// is denied. Returns the decisions in the order of `ids`.
///
/// # Errors
/// One line: no object, no call, an unknown call, or no decision.
pub fn decisions(ids: &[&str], answer: &Value) -> Result<Vec<Decision>, String> {
    let form = "\"approve\", {\"deny\": \"reason\"} or {\"edit\": {…}}";
    let named = answer.as_object().filter(|named| !named.is_empty());
    let named = named.ok_or_else(|| format!("name the calls: {{\"ID\": {form}}}"))?;
    if let Some(unknown) = named.keys().find(|id| !ids.contains(&id.as_str())) {
        let unknown: String = unknown.chars().take(80).collect();
        return Err(format!("{unknown:?} is no call that waits for approval: use {}", ids.join(", ")));
    }
    let one = |id: &&str| match named.get(*id) {
        None => Ok(Decision::Deny("a person did not approve this call".into())),
        Some(decision) => {
            decision_of(decision).ok_or_else(|| format!("{id}: the decision is none of {form}"))
        }
    };
    ids.iter().map(one).collect()
}

fn decision_of(value: &Value) -> Option<Decision> {
    if let Value::String(word) = value {
        return (word == "approve").then_some(Decision::Approve);
    }
    let members = value.as_object().filter(|members| members.len() == 1)?;
    match members.iter().next()? {
        (word, Value::String(reason)) if word == "deny" => {
            let reason: String = reason.trim().chars().take(REASON_CHARS_MAX).collect();
            let reason = if reason.is_empty() { "a person denied this call".to_owned() } else { reason };
            Some(Decision::Deny(reason))
        }
        (word, args @ Value::Object(_)) if word == "edit" => Some(Decision::Edit(args.clone())),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn asked(run: i32, seq: i32, tool: &str, args: Value) -> ApprovalCall {
        ApprovalCall::new(TaskId::from(uuid::Uuid::nil()), (run, seq), tool, Effect::Once, &args)
    }

    #[test]
    fn id_is_of_one_call_with_its_arguments() {
        let id = |run, seq, tool, args| asked(run, seq, tool, args).id;
        let first = id(1, 3, "pay", json!({ "a": 1 }));
        assert_eq!(first, id(1, 3, "pay", json!({ "a": 1 })));
        for other in [
            id(2, 3, "pay", json!({ "a": 1 })),
            id(1, 4, "pay", json!({ "a": 1 })),
            id(1, 3, "send", json!({ "a": 1 })),
            id(1, 3, "pay", json!({ "a": 2 })),
        ] {
            assert_ne!(first, other);
        }
        let asked = asked(1, 3, "pay", json!({ "b": "\u{0}", "a": 1.50 }));
        assert_eq!(
            (asked.arguments.as_str(), asked.args_sha256),
            ("{\"a\":1.5,\"b\":\"\\u0000\"}", hex(&asked.arguments))
        );
    }

    #[test]
    fn answer_decides_about_the_calls_that_it_names_and_denies_the_others() {
        let ids = ["3-a", "5-b", "7-c"];
        let answer = json!({ "5-b": "approve", "3-a": { "edit": { "n": 2 } } });
        let found = decisions(&ids, &answer).unwrap();
        assert_eq!(found[..2], [Decision::Edit(json!({ "n": 2 })), Decision::Approve]);
        assert!(matches!(&found[2], Decision::Deny(reason) if reason.contains("did not approve")));
        let long = decisions(&ids[..1], &json!({ "3-a": { "deny": "x".repeat(5_000) } })).unwrap();
        assert_eq!(long, [Decision::Deny("x".repeat(REASON_CHARS_MAX))]);
    }

    #[test]
    fn answer_of_another_form_decides_nothing() {
        for answer in [
            json!("approve"),
            json!(null),
            json!([]),
            json!({}),
            json!({ "4-a": "approve" }),
            json!({ "3-a": "approve", "4-a": "approve" }),
            json!({ "3-a": true }),
            json!({ "3-a": "Approve" }),
            json!({ "3-a": { "deny": 1 } }),
            json!({ "3-a": { "edit": [] } }),
            json!({ "3-a": { "edit": {}, "deny": "x" } }),
            json!({ "3-a": {} }),
        ] {
            assert!(decisions(&["3-a"], &answer).is_err(), "{answer}");
        }
    }
}
