//! The messages of the next question, from the rows of a run alone: the same rows give the same bytes.
use super::{compact, machine::tool};
use crate::{
    agent::hex,
    task::{AskedModel, NoteKind, Step, StepBody, StepState, ToolStep},
};
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};

/// Members of an answer that no endpoint takes back.
const NOT_SENT_BACK: [&str; 4] = ["index", "audio", "annotations", "refusal"];
/// Members of an answer that every endpoint takes.
const TAKEN_EVERYWHERE: [&str; 3] = ["role", "content", "tool_calls"];
/// Length of a call's id: some endpoints take nothing else.
const ID_CHARS: usize = 9;

/// How the model calls tools.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ToolsBy {
    /// With the endpoint's own tool calls.
    #[default]
    Native,
    /// With a JSON answer that the endpoint constrains by a schema.
    Schema,
}

/// The id of a call on the wire, from its step: 9 of `[a-z0-9]`, unique in the run.
fn wire_id(run: i32, seq: i32) -> String {
    // 9 hexadecimal digits would collide in long runs of equal prefixes, so the number itself is part of the id.
    let digits = format!("{seq:05}");
    let hash = hex(&Sha256::digest(format!("{run}:{seq}")));
    let room = ID_CHARS.saturating_sub(digits.len());
    format!("{}{digits}", hash.get(..room).unwrap_or_default())
}

/// The messages after the system message, as `to` takes them.
pub(crate) fn messages(run: i32, steps: &[Step], by: ToolsBy, to: &AskedModel) -> Vec<Value> {
    let mut messages = Vec::with_capacity(steps.len());
    let left_out_until = compact::left_out_until(steps);
    for step in steps {
        match &step.body {
            StepBody::Note { kind: NoteKind::Compacted, .. } => {
                messages.push(json!({ "role": "user", "content": compact::TOLD }));
            }
            StepBody::Note { text, .. } => messages.push(json!({ "role": "user", "content": text })),
            StepBody::Model { answer: Some(answer), asked, .. } => {
                let calls: Vec<&Step> = called(steps, step.seq);
                // Reasoning and signatures mean something to the model that gave them only.
                let is_own = asked.as_ref().is_none_or(|asked| asked == to);
                messages.extend(assistant(run, answer, &calls, by, is_own));
            }
            StepBody::Model { answer: None, .. } => {}
            StepBody::Tool(call) => {
                let stub = compact::stub(step, call, left_out_until);
                messages.extend(result(run, step, call, stub, by));
            }
        }
    }
    messages
}

/// The calls of an answer, in their order.
fn called(steps: &[Step], model: i32) -> Vec<&Step> {
    let of = steps.iter().filter_map(tool).filter(|(_, call)| call.after_seq == model);
    of.map(|(step, _)| step).collect()
}

/// The answer as it is sent back. `None` if nothing of it is left, as of one that was cut off.
fn assistant(run: i32, answer: &Value, calls: &[&Step], by: ToolsBy, is_own: bool) -> Option<Value> {
    let mut message: Map<String, Value> = answer.as_object().cloned().unwrap_or_default();
    for name in NOT_SENT_BACK {
        message.remove(name);
    }
    if !is_own {
        message.retain(|name, _| TAKEN_EVERYWHERE.contains(&name.as_str()));
    }
    message.insert("role".into(), json!("assistant"));
    let theirs = message.remove("tool_calls").filter(|_| is_own);
    if by == ToolsBy::Native && !calls.is_empty() {
        message.insert("tool_calls".into(), sent_calls(run, theirs.as_ref(), calls));
        message.entry("content").or_insert(Value::Null);
        return Some(Value::Object(message));
    }
    let is_empty = match message.get("content") {
        None | Some(Value::Null) => true,
        Some(Value::String(text)) => text.is_empty(),
        Some(_) => false,
    };
    if is_empty {
        // Some endpoints refuse an assistant message without content and calls.
        return None;
    }
    Some(Value::Object(message))
}

/// The calls with our ids. Members of a call that we do not know, like signatures, stay.
fn sent_calls(run: i32, theirs: Option<&Value>, calls: &[&Step]) -> Value {
    let theirs = theirs.and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
    let ours = calls.iter().filter_map(|step| tool(step)).map(|(step, call)| {
        let place = usize::try_from(call.place).unwrap_or(usize::MAX);
        let mut sent = theirs.get(place).and_then(Value::as_object).cloned().unwrap_or_default();
        sent.remove("index");
        let arguments = if call.args.is_null() { "{}".to_owned() } else { call.args.to_string() };
        let mut function = sent.get("function").and_then(Value::as_object).cloned().unwrap_or_default();
        function.insert("name".into(), json!(call.name));
        function.insert("arguments".into(), json!(arguments));
        sent.insert("id".into(), json!(wire_id(run, step.seq)));
        sent.insert("type".into(), json!("function"));
        sent.insert("function".into(), Value::Object(function));
        Value::Object(sent)
    });
    ours.collect()
}

/// The result of a call as a message, or the line in its place. `None` while it has none.
fn result(run: i32, step: &Step, call: &ToolStep, stub: Option<String>, by: ToolsBy) -> Option<Value> {
    let result = call.result.as_deref().filter(|_| step.state.has_ended())?;
    let result = stub.as_deref().unwrap_or(result);
    let text = match &call.edited {
        None => result.to_owned(),
        Some(args) => format!("A person changed the arguments to {args}\n{result}"),
    };
    Some(match by {
        ToolsBy::Native => {
            json!({ "role": "tool", "tool_call_id": wire_id(run, step.seq), "content": text })
        }
        ToolsBy::Schema => {
            let failed = if step.state == StepState::Done { "" } else { " (failed)" };
            json!({ "role": "user", "content": format!("Result of {}{failed}:\n{text}", call.name) })
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agent::think::testing::{model, note, tool_step};
    use crate::task::Effect;

    fn to(model: &str) -> AskedModel {
        AskedModel { provider: "p".into(), model: model.into() }
    }

    #[test]
    fn every_call_is_followed_by_its_result_before_any_other_message() {
        let answer = json!({
            "role": "assistant", "content": "", "index": 0, "audio": null, "reasoning_content": "because",
            "tool_calls": [
                { "index": 0, "id": "call_x", "type": "function", "function": { "name": "LOOK", "arguments": "" },
                  "extra_content": { "google": { "thought_signature": "s" } } },
                { "index": 1, "id": "call_x", "type": "function", "function": { "name": "look", "arguments": "{\"a\":1}" } },
            ],
        });
        let steps = [
            note(1, "the task"),
            model(2, answer),
            tool_step(3, 2, 0, "look", Effect::Read, Some("one")),
            tool_step(4, 2, 1, "look", Effect::Read, Some("two")),
            note(5, "a message"),
        ];
        let sent = messages(1, &steps, ToolsBy::Native, &to("m"));
        let roles: Vec<&str> = sent.iter().map(|message| message["role"].as_str().unwrap()).collect();
        assert_eq!(roles, ["user", "assistant", "tool", "tool", "user"]);
        assert_eq!(sent[1]["reasoning_content"], "because");
        assert!(sent[1].get("index").is_none() && sent[1].get("audio").is_none());
        let calls = sent[1]["tool_calls"].as_array().unwrap();
        assert_eq!(calls[0]["extra_content"]["google"]["thought_signature"], "s");
        assert_eq!(calls[0]["function"], json!({ "name": "look", "arguments": "{}" }));
        for (call, result) in calls.iter().zip(&sent[2..4]) {
            let id = call["id"].as_str().unwrap();
            assert_eq!(result["tool_call_id"], id);
            assert!(
                id.len() == 9 && id.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit()),
                "{id}"
            );
        }
        assert_ne!(calls[0]["id"], calls[1]["id"], "the provider's ids repeat, ours do not");
        assert_eq!(calls[1].get("index"), None);
    }

    #[test]
    fn another_model_gets_neither_reasoning_nor_signatures() {
        let answer = json!({
            "role": "assistant", "content": "so", "reasoning": "because", "reasoning_details": [1],
            "tool_calls": [{ "id": "c", "type": "function", "function": { "name": "look", "arguments": "{}" },
                "extra_content": { "google": { "thought_signature": "s" } } }],
        });
        let mut asked = model(2, answer);
        if let StepBody::Model { asked, .. } = &mut asked.body {
            *asked = Some(to("one"));
        }
        let steps = [note(1, "the task"), asked, tool_step(3, 2, 0, "look", Effect::Read, Some("one"))];
        let own = messages(1, &steps, ToolsBy::Native, &to("one"));
        assert_eq!((&own[1]["reasoning"], &own[1]["reasoning_details"]), (&json!("because"), &json!([1])));
        assert!(own[1]["tool_calls"][0].get("extra_content").is_some());
        let other = messages(1, &steps, ToolsBy::Native, &to("two"));
        let members: Vec<&String> = other[1].as_object().unwrap().keys().collect();
        assert_eq!(members, ["content", "role", "tool_calls"]);
        let call = json!({ "id": own[1]["tool_calls"][0]["id"], "type": "function",
            "function": { "name": "look", "arguments": "{}" } });
        assert_eq!((&other[1]["content"], &other[1]["tool_calls"]), (&json!("so"), &json!([call])));
        assert_eq!(other[2], own[2], "the result is the same message");
    }

    #[test]
    fn results_are_messages_of_the_user_where_tools_are_called_by_schema() {
        let answer = json!({ "role": "assistant", "content": "{\"tool\":\"look\",\"arguments\":{}}" });
        let steps = [
            note(1, "the task"),
            model(2, answer.clone()),
            tool_step(3, 2, 0, "look", Effect::Read, Some("one")),
        ];
        let sent = messages(1, &steps, ToolsBy::Schema, &to("m"));
        assert_eq!(sent[1], answer);
        assert_eq!(sent[2], json!({ "role": "user", "content": "Result of look:\none" }));
    }

    #[test]
    fn ids_of_a_run_are_unique() {
        let ids: std::collections::HashSet<String> = (1..2000).map(|seq| wire_id(3, seq)).collect();
        assert_eq!(ids.len(), 1999);
    }
}
