use super::*;
use crate::agent::think::testing::{model, note, tool_step};
use serde_json::json;

fn message(calls: Value) -> Value {
    json!({ "role": "assistant", "content": null, "tool_calls": calls })
}

fn function(name: &str, arguments: Value) -> Value {
    json!({ "id": "call_1", "type": "function", "function": { "name": name, "arguments": arguments } })
}

#[test]
fn calls_decide_how_an_answer_ended_and_finish_reason_is_a_hint() {
    let call = message(json!([function("look", json!("{}"))]));
    let half = message(json!([function("look", json!("{\"a\": "))]));
    let text = json!({ "content": "{\"urgency\": 4}" });
    let half_text = json!({ "content": "{\"urgency\": " });
    let nothing = json!({ "content": null });
    for (message, finish, ending) in [
        (&call, Some("tool_calls"), Ending::Calls),
        (&call, Some("stop"), Ending::Calls),
        (&call, None, Ending::Calls),
        (&call, Some("length"), Ending::Calls),
        (&call, Some("content_filter"), Ending::Calls),
        (&half, Some("length"), Ending::Cut),
        (&half, Some("stop"), Ending::Calls),
        (&text, Some("stop"), Ending::Text),
        (&text, Some("length"), Ending::Text),
        (&text, Some(""), Ending::Text),
        (&text, Some("eos_token"), Ending::Text),
        (&half_text, Some("LENGTH"), Ending::Cut),
        (&half_text, Some("tool_calls"), Ending::Text),
        (&nothing, Some("content_filter"), Ending::Refused),
        (&nothing, Some("tool_calls"), Ending::Text),
    ] {
        let answered = read(message, finish, ToolsBy::Native);
        assert_eq!(answered.ending, ending, "{message} {finish:?}");
        assert_eq!(answered.calls.is_empty(), ending != Ending::Calls, "{message} {finish:?}");
    }
    let refusal = json!({ "content": null, "refusal": "I cannot" });
    assert_eq!(read(&refusal, Some("stop"), ToolsBy::Native).ending, Ending::Refused);
}

#[test]
fn arguments_of_every_form_are_read_and_anything_cut_is_refused() {
    let object = json!({ "a": 1 });
    for (given, read) in [
        (json!(null), Ok(json!({}))),
        (json!(""), Ok(json!({}))),
        (json!("null"), Ok(json!({}))),
        (json!("{\"a\":1}"), Ok(object.clone())),
        (json!({ "a": 1 }), Ok(object.clone())),
        (json!("\"{\\\"a\\\":1}\""), Ok(object.clone())),
        (json!("```json\n{\"a\":1}\n```"), Ok(object)),
        (json!("{\"a\":1"), Err("the arguments are not read: ")),
        (json!("[1]"), Err("the arguments are not a JSON object")),
        (json!(7), Err("the arguments are not a JSON object")),
        (json!("{\"a\":123456789012345678901234567890}"), Err("the arguments are not read: a: the number")),
        (json!(format!("{{\"a\":\"{}\"}}", "x".repeat(70_000))), Err("the arguments are over 65536 bytes")),
    ] {
        match (arguments(&given), read) {
            (Ok(found), Ok(expected)) => assert_eq!(found, expected, "{given}"),
            (Err(found), Err(expected)) => assert!(found.starts_with(expected), "{found}"),
            (found, _) => panic!("{given}: {found:?}"),
        }
    }
}

#[test]
fn call_of_an_odd_form_keeps_its_place() {
    let odd = message(json!([
        7,
        { "id": 3, "function": { "arguments": "{}" } },
        { "function": { "name": "x".repeat(200) } },
        function("look", json!("{}")),
    ]));
    let calls = read(&odd, None, ToolsBy::Native).calls;
    assert_eq!(calls.len(), 4);
    assert!(calls[0].args.is_err());
    assert_eq!((calls[1].name.as_str(), &calls[1].wire_id), ("", &None));
    assert_eq!(calls[2].name.len(), NAME_BYTES_MAX);
    assert_eq!((calls[3].name.as_str(), calls[3].wire_id.as_deref()), ("look", Some("call_1")));
}

#[test]
fn call_by_schema_is_read_from_the_text() {
    let read = |text: &str| read(&json!({ "content": text }), Some("stop"), ToolsBy::Schema);
    let answered = read("```json\n{\"tool\": \"look\", \"arguments\": {\"a\": 1}}\n```  ");
    assert_eq!(answered.ending, Ending::Calls);
    assert_eq!(answered.calls, [Call { wire_id: None, name: "look".into(), args: Ok(json!({ "a": 1 })) }]);
    for text in ["{\"urgency\": 4}", "look", "{\"tool\": 4}"] {
        assert_eq!(read(text).ending, Ending::Text, "{text}");
    }
}

const RULES: Rules = Rules { steps_max: 50, calls_max: 10 };

fn valid(name: &str, effect: Effect) -> (Call, Verdict) {
    let call = Call { wire_id: None, name: name.into(), args: Ok(json!({})) };
    (call, Verdict::Valid { name: name.into(), effect, repeat: false })
}

fn codes(planned: &[NewCall]) -> Vec<String> {
    let code = |call: &NewCall| {
        let error = call.result.as_ref().and_then(|text| serde_json::from_str::<Value>(text).ok());
        error
            .and_then(|it| Some(it["error"]["code"].as_str()?.to_owned()))
            .unwrap_or_else(|| call.state.as_str().into())
    };
    planned.iter().map(code).collect()
}

#[test]
fn calls_over_a_limit_and_a_second_end_are_refused() {
    let planned = plan(&[], &[], vec![valid("finish", Effect::Read), valid("ask", Effect::Read)], RULES);
    assert_eq!(codes(&planned), ["planned", "one_at_a_time"]);
    let many = (0..12).map(|_| valid("look", Effect::Read)).collect();
    let planned = codes(&plan(&[], &[], many, RULES));
    assert_eq!((planned[9].as_str(), planned[10].as_str()), ("planned", "limit"));
    let rules = Rules { calls_max: 200, ..RULES };
    let planned = codes(&plan(&[], &[], (0..70).map(|_| valid("look", Effect::Read)).collect(), rules));
    assert_eq!((planned[63].as_str(), planned[64].as_str(), planned.len()), ("planned", "too_many", 70));
}

#[test]
fn effect_of_an_earlier_run_is_not_repeated() {
    let known = |state, result: Option<&str>| EarlierEffect {
        name: "pay".into(),
        args_sha256: args_sha256(&json!({})),
        state,
        result: result.map(str::to_owned),
    };
    let pay = || vec![valid("pay", Effect::Keyed)];
    let planned = plan(&[], &[known(StepState::Done, Some("paid"))], pay(), RULES);
    assert_eq!(planned[0].state, StepState::Done);
    assert_eq!(planned[0].result.as_deref(), Some("{\"already_done\":true,\"result\":\"paid\"}"));
    let planned = plan(&[], &[known(StepState::Unknown, None)], pay(), RULES);
    assert_eq!(codes(&planned), ["unknown_outcome"]);
    let other = vec![valid("refund", Effect::Keyed), valid("pay", Effect::Read)];
    let planned = plan(&[], &[known(StepState::Done, Some("paid"))], other, RULES);
    assert_eq!(codes(&planned), ["planned", "planned"]);
}

#[test]
fn third_equal_answer_in_a_row_is_not_run() {
    let mut steps = vec![note(1, "task")];
    for n in 0..4 {
        let planned = plan(&steps, &[], vec![valid("look", Effect::Read)], RULES);
        assert_eq!(codes(&planned), [if n < 2 { "planned" } else { "loop" }], "answer {n}");
        let seq = 2 + 2 * n;
        steps.push(model(seq, json!({})));
        steps.push(tool_step(seq + 1, seq, 0, "look", Effect::Read, Some("x")));
    }
    let other = plan(&steps, &[], vec![valid("list", Effect::Read)], RULES);
    assert_eq!(codes(&other), ["planned"]);
}
