//! Threads (`run.thread`): the thread of a job, its turn, and the last results of the thread, with which it begins.
use super::{
    Finished, Job, hex,
    job::{permanent, retryable},
    retry::again,
    tool::shown,
    wake::{BadTemplate, Context, Template, number_text},
};
use crate::{
    fault,
    task::{Failure, ThreadResult, Turn, Usage},
};
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};

/// Names that a template may use.
const NAMES: [&str; 2] = ["input", "kind"];
/// Most bytes of one result, and of all: 12,000 tokens at three bytes a token.
const RESULT_BYTES_MAX: usize = 12_000;
const RESULTS_BYTES_MAX: usize = 36_000;

/// Parses `run.thread`. One that could name no thread of any task is an error.
pub(crate) fn thread_template(text: &str) -> Result<Template, BadTemplate> {
    let template = Template::naming(text, "thread", &NAMES)?;
    let bad = |reason: &str| BadTemplate { place: "thread".into(), reason: reason.into() };
    // Without names it has one value. With `input` that depends on the task.
    let nothing = Context::new(Map::from_iter([("kind".to_owned(), json!("a kind"))]));
    match template.fill("thread", &nothing) {
        Ok(value) => thread_text(value).map(|_| template).map_err(|why| bad(&why)),
        Err(_) if text.contains("input") => Ok(template),
        Err(error) => Err(error),
    }
}

/// The value with equal numbers in the same form: 7.0 as 7.
fn equal_numbers(value: Value) -> Value {
    match value {
        Value::Number(number) => serde_json::from_str(&number_text(&number)).unwrap_or(Value::Number(number)),
        Value::Array(items) => items.into_iter().map(equal_numbers).collect(),
        Value::Object(members) => {
            members.into_iter().map(|(name, value)| (name, equal_numbers(value))).collect()
        }
        other => other,
    }
}

/// The value as the text of a thread. The error says why it names none.
fn thread_text(value: Value) -> Result<String, String> {
    let what = match value {
        Value::String(text) if !text.trim().is_empty() => return Ok(text),
        Value::Number(number) => return Ok(number_text(&number)),
        Value::String(_) => "an empty text",
        Value::Null => "null",
        Value::Bool(_) => "true or false",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    };
    Err(format!("{what} names no thread: a text or a number does"))
}

/// Queues a job in its thread. Returns what its first message begins with, or how the job goes on later.
///
/// # Errors
/// The failure of the job if its input does not say which thread it belongs to: it may not run beside another task of
/// that thread.
pub(crate) async fn turn(template: &Template, job: &Job) -> Result<Result<String, Finished>, Failure> {
    let tasks = job.tasks().ok_or_else(|| permanent("an agent with threads works only in a daemon"))?;
    let thread = thread_of(template, &job.start.kind, job.start.input.clone())?;
    let turn = || tasks.thread_turn(job.start.key, &job.agent_id, &thread);
    match again(job.deadline, turn).await.map_err(|e| retryable(e.to_string()))? {
        Turn::Now { results } => {
            fault::point(fault::Point::ThreadTurn);
            Ok(Ok(memory(&results)))
        }
        Turn::Later { before, after } => Ok(Err(Finished::Deferred {
            reason: format!("the task {before} before it in its thread has not ended"),
            after,
            usage: Usage::default(),
        })),
    }
}

/// The thread of a task: a hash of the value that the template makes, which so may be long and is not kept twice.
fn thread_of(template: &Template, kind: &str, input: Value) -> Result<String, Failure> {
    // Also where an operator of the template makes a text of a number.
    let names = [("input", equal_numbers(input)), ("kind", json!(kind))];
    let context =
        Context::new(names.into_iter().map(|(name, value)| (name.to_owned(), value)).collect::<Map<_, _>>());
    let value = template.fill("thread", &context).map_err(|e| permanent(format!("run.{e}")))?;
    let text = thread_text(value).map_err(|why| permanent(format!("run.thread: {why}")))?;
    Ok(hex(&Sha256::digest(text)))
}

/// What a task is told of its thread: the last results that have room, oldest first. Empty if there is none.
fn memory(results: &[ThreadResult]) -> String {
    let mut room = RESULTS_BYTES_MAX;
    let mut told: Vec<String> = Vec::new();
    for ThreadResult { task, kind, text, cut } in results {
        let shown = shown(text, &[], RESULT_BYTES_MAX);
        let result = match (serde_json::from_str::<Value>(&shown.text), *cut || shown.cut) {
            (Ok(value), false) => value,
            // No JSON any more, so a text.
            _ => json!(shown.text),
        };
        let line = json!({ "task": task, "kind": kind, "result": result }).to_string();
        // The older ones are left out, too: a history with gaps misleads.
        let Some(left) = room.checked_sub(line.len()) else { break };
        room = left;
        told.push(line);
    }
    if told.is_empty() {
        return String::new();
    }
    told.reverse();
    // As data, like the input: results of models must not be instructions.
    format!("Results of the last tasks of this thread, oldest first:\n{}\n\n", told.join("\n"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::TaskId;

    fn thread(template: &str, input: Value) -> Result<String, String> {
        thread_of(&thread_template(template).unwrap(), "k", input).map_err(|failure| failure.message)
    }

    #[test]
    fn thread_is_that_of_the_value_and_a_value_that_names_none_is_refused() {
        let by = "{{ input.customer }}";
        let of = |value: Value| thread(by, json!({ "customer": value }));
        assert_eq!(of(json!("7")), of(json!(7)));
        assert_ne!(of(json!("7")), of(json!("8")));
        for (one, other) in [("7", "7.0"), ("0", "-0.0"), ("-3", "-3.0"), ("1e3", "1000")] {
            let value = |text: &str| serde_json::from_str::<Value>(text).unwrap();
            assert_eq!(of(value(one)), of(value(other)), "{one}");
            let joined = |text| thread("c-{{ input.c }}", json!({ "c": value(text) })).unwrap();
            assert_eq!(joined(one), joined(other), "{one}");
            let added = |text| thread("{{ 'c-' ~ input[0].c }}", json!([{ "c": value(text) }])).unwrap();
            assert_eq!(added(one), added(other), "{one}");
            assert_ne!(of(value(one)), of(json!(0.5)));
        }
        assert_eq!(of(json!(u64::MAX)), thread("18446744073709551615", json!(0)));
        assert!(of(json!("x".repeat(100_000))).unwrap().len() == 64);
        let error = |value: Value| of(value).unwrap_err();
        assert_eq!(error(json!(null)), "run.thread: null names no thread: a text or a number does");
        assert_eq!(error(json!(" ")), "run.thread: an empty text names no thread: a text or a number does");
        assert_eq!(error(json!([1])), "run.thread: a list names no thread: a text or a number does");
        assert_eq!(error(json!({})), "run.thread: an object names no thread: a text or a number does");
        assert_eq!(error(json!(true)), "run.thread: true or false names no thread: a text or a number does");
        for value in [json!(null), json!(" "), json!([]), json!({}), json!(false)] {
            let told = thread("c-{{ input.c }}", json!({ "c": value })).unwrap_err();
            assert_eq!(told, "run.thread: a value in it is neither a text nor a number, or an empty text");
        }
        assert_eq!(thread(by, json!({})).unwrap_err(), "run.thread: there is no input.customer");
        assert_eq!(thread(by, json!("text")).unwrap_err(), "run.thread: there is no input.customer");
        assert!(thread("{{ kind }}/{{ input.a }}", json!({ "a": 1 })).is_ok());
    }

    #[test]
    fn template_that_names_no_thread_of_any_task_is_refused() {
        for (text, why) in [
            (" ", "thread: an empty text names no thread: a text or a number does"),
            ("{{ true }}", "thread: true or false names no thread: a text or a number does"),
            ("{{ [1] }}", "thread: a list names no thread: a text or a number does"),
            ("{{ kind.x }}", "thread: there is no kind.x"),
            ("{{ kinds }}", "thread: there is no \"kinds\": use input, kind"),
            ("c-{{ none }}", "thread: a value in it is neither a text nor a number, or an empty text"),
        ] {
            assert_eq!(thread_template(text).unwrap_err().to_string(), why, "{text}");
        }
        for text in ["all", "{{ 1 }}", "{{ kind }}", "{{ input }}", "{{ input.a }}-{{ kind }}"] {
            assert!(thread_template(text).is_ok(), "{text}");
        }
    }

    fn result(text: &str, cut: bool) -> ThreadResult {
        ThreadResult { task: TaskId::generate(), kind: "k".into(), text: text.into(), cut }
    }

    #[test]
    fn newest_results_that_have_room_are_told_oldest_first() {
        assert_eq!(memory(&[]), "");
        let two = [result("{\"n\": 2}", false), result("1", false)];
        let told = memory(&two);
        let lines: Vec<Value> =
            told.trim_end().lines().skip(1).map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!(lines[0], json!({ "task": two[1].task, "kind": "k", "result": 1 }));
        assert_eq!(lines[1]["result"], json!({ "n": 2 }));

        let long = format!("\"{}\"", "x".repeat(20_000));
        let many: Vec<ThreadResult> = (0..10).map(|_| result(&long, false)).collect();
        let told = memory(&many);
        assert!(told.len() <= RESULTS_BYTES_MAX + 100, "{}", told.len());
        assert_eq!(told.matches("bytes are left out here").count(), 2);
        assert!(told.contains(&many[0].task.to_string()), "the newest is told");
        assert!(memory(&[result("\"abc", true)]).contains(r#""result":"\"abc""#));
    }
}
