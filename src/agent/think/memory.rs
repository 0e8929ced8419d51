//! The tools `remember`, `forget` and `recall`: what an agent knows from one task to the next.
use super::{
    calls::error,
    session::{Session, unwritten},
};
use crate::{
    agent::{
        MemorySettings,
        retry::again,
        tool::{Callable, Outcome},
    },
    fault,
    task::{
        CallEnd, Failure, MEMORY_BYTES_MAX, Memory, MemoryAction, MemoryChange, MemoryChanged, StepState,
        ToolStep,
    },
};
use serde_json::{Value, json};

/// Most bytes of entries that are recalled at once.
const RECALLED_BYTES_MAX: usize = 24 << 10;

impl Session<'_> {
    /// Changes the memory in the commit that ends the step.
    pub(super) async fn change_memory(
        &self,
        seq: i32,
        call: &ToolStep,
        tool: Callable<'_>,
        settings: MemorySettings,
    ) -> Result<(), Failure> {
        let bytes_max = tool.output_bytes();
        let change = match change(call.run_args(), matches!(tool, Callable::Forget(_)), settings) {
            Ok(change) => change,
            Err(why) => {
                let text = error("bad_arguments", &why, false);
                return self.end_call(seq, StepState::Failed, &text, bytes_max, None).await;
            }
        };
        let end = |changed: &MemoryChanged| -> CallEnd {
            match told(changed) {
                Ok(done) => self.shown_end(StepState::Done, &done.to_string(), bytes_max),
                Err(why) => self.shown_end(StepState::Failed, &error("failed", &why, false), bytes_max),
            }
        };
        let org = &self.job.start.org;
        let write = || self.tasks.end_call_remembering(&self.at, org, seq, &change, end);
        again(self.job.deadline, write).await.map_err(|e| unwritten(&e))?;
        fault::point(fault::Point::ToolRecorded);
        Ok(())
    }

    /// Reads the memory.
    pub(super) async fn recall(&self, call: &ToolStep, settings: MemorySettings) -> Outcome {
        let text = |name: &str| call.run_args().get(name).and_then(Value::as_str).unwrap_or_default();
        let (prefix, words) = (text("prefix"), text("words"));
        if prefix.contains('\0') || words.contains('\0') {
            return Outcome::Done(json!({ "entries": [], "more": false }).to_string());
        }
        let org = &self.job.start.org;
        let read = || self.tasks.recall(&self.at, org, settings.org, prefix, words);
        match again(self.job.deadline, read).await {
            Ok(found) => Outcome::Done(shown(&found).to_string()),
            Err(error) => Outcome::Failed("failed", error.to_string(), true),
        }
    }
}

/// The change that a call asks for.
fn change(args: &Value, forget: bool, settings: MemorySettings) -> Result<MemoryChange, String> {
    let of_org = args.get("scope").and_then(Value::as_str) == Some("org");
    if of_org && !settings.org {
        return Err("the agent has no memory of the org".into());
    }
    let key = args.get("key").and_then(Value::as_str).unwrap_or_default().to_owned();
    if key.chars().any(char::is_control) {
        return Err("a key has no control characters".into());
    }
    let action = if forget {
        MemoryAction::Forget
    } else {
        let value = args.get("value").cloned().unwrap_or_default();
        let bytes = value.to_string().len();
        if bytes > MEMORY_BYTES_MAX {
            return Err(format!("the value has {bytes} bytes: {MEMORY_BYTES_MAX} are the most"));
        }
        let days = args.get("days").and_then(Value::as_i64).and_then(|days| i32::try_from(days).ok());
        MemoryAction::Remember { value, version: args.get("version").and_then(Value::as_i64), days }
    };
    Ok(MemoryChange { of_org, key, action })
}

/// What the model is told about a change: the result, or why there is none.
fn told(changed: &MemoryChanged) -> Result<Value, String> {
    match changed {
        MemoryChanged::Written(version) => Ok(json!({ "version": version })),
        MemoryChanged::Forgotten(was_there) => Ok(json!({ "forgotten": was_there })),
        MemoryChanged::Full => Err("the memory is full: forget something first".into()),
        MemoryChanged::OtherVersion(Some(version)) => {
            Err(format!("the entry has version {version}: recall it first"))
        }
        MemoryChanged::OtherVersion(None) => Err("there is no such entry".into()),
        MemoryChanged::Unstorable => Err("a character of it cannot be stored".into()),
    }
}

/// The entries that fit, newest first.
fn shown(found: &[Memory]) -> Value {
    let (mut entries, mut bytes) = (Vec::new(), 0);
    for memory in found {
        bytes += memory.key.len() + usize::try_from(memory.bytes).unwrap_or_default();
        // The first one always: the limit of results cuts it in the middle.
        if bytes > RECALLED_BYTES_MAX && !entries.is_empty() {
            return json!({ "entries": entries, "more": true });
        }
        let scope = if memory.of_org { "org" } else { "agent" };
        entries.push(
            json!({ "key": memory.key, "scope": scope, "version": memory.version, "value": memory.value }),
        );
    }
    json!({ "entries": entries, "more": found.len() >= 20 })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn change_that_a_model_asks_for_is_checked() {
        let own = MemorySettings { org: false };
        let found =
            change(&json!({ "key": "a", "value": [1], "version": 3, "days": 7 }), false, own).unwrap();
        let action = MemoryAction::Remember { value: json!([1]), version: Some(3), days: Some(7) };
        assert_eq!(found, MemoryChange { of_org: false, key: "a".into(), action });
        assert!(change(&json!({ "key": "a", "scope": "org" }), true, own).is_err());
        assert!(
            change(&json!({ "key": "a", "scope": "org" }), true, MemorySettings { org: true })
                .unwrap()
                .of_org
        );
        assert!(change(&json!({ "key": "a\u{0}b", "value": 1 }), false, own).is_err());
        let big = json!({ "key": "a", "value": "x".repeat(MEMORY_BYTES_MAX) });
        assert!(change(&big, false, own).unwrap_err().contains("65536 are the most"));
    }

    #[test]
    fn recalled_entries_are_limited_and_the_first_one_is_always_shown() {
        let one = |key: &str, bytes: i32| Memory {
            key: key.into(),
            of_org: key == "b",
            value: json!(1),
            version: 1,
            bytes,
        };
        let found = shown(&[one("a", 40_000), one("b", 1)]);
        assert_eq!((found["entries"].as_array().unwrap().len(), &found["more"]), (1, &json!(true)));
        let found = shown(&[one("a", 1), one("b", 1)]);
        assert_eq!(found["entries"][1]["scope"], "org");
        assert_eq!(found["more"], false);
    }
}
