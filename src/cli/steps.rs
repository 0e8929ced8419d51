//! `convoke task steps`: prints the runs of a task, one line a step.
#![expect(clippy::indexing_slicing, reason = "indexing a JSON value returns null for a missing member")]
use super::output;
use serde_json::Value;

/// Longest text of a step that is printed, in characters.
const TEXT_CHARS_MAX: usize = 200;

/// Prints the runs. Nothing if there are none.
pub(super) fn print(runs: &Value) {
    for run in runs.as_array().into_iter().flatten() {
        let ended = run["ended_as"].as_str().map(|how| format!(", ended with {how}")).unwrap_or_default();
        let (agent, model) = (output::text(&run["agent_id"]), output::text(&run["model"]));
        let forked = match (run["forked_from"].as_str(), run["forked_at"].as_i64()) {
            (Some(task), Some(at)) => format!(", forked from {task} at step {at}"),
            _ => String::new(),
        };
        let cost = format!("{} tokens, {}", run["tokens"], output::dollars(&run["microdollars"]));
        output::line(format!("\nrun {} of {agent} with {model} ({cost}){forked}{ended}", run["run"]));
        for step in run["steps"].as_array().into_iter().flatten() {
            output::line(line(step));
        }
    }
}

/// `  3  tool   done     look (read) {"id":7} -> …`
fn line(step: &Value) -> String {
    let (kind, state) = (output::text(&step["kind"]), output::text(&step["state"]));
    let tries = step["tries"].as_i64().filter(|tries| *tries > 1);
    let tries = tries.map(|tries| format!(", {tries} tries")).unwrap_or_default();
    let what = match kind.as_str() {
        "tool" => {
            let args = shortened(&step["args"]);
            let result = shortened(&step["result"]);
            let arrow = if result.is_empty() { "" } else { " -> " };
            format!(
                "{} ({}) {args}{}{arrow}{result}",
                output::text(&step["tool"]),
                output::text(&step["effect"]),
                approval(step),
            )
        }
        "model" => {
            let text = shortened(&step["answer"]["content"]);
            let ending = step["ending"].as_str().unwrap_or("no answer");
            let tokens =
                step["tokens"].as_i64().map(|tokens| format!(", {tokens} tokens")).unwrap_or_default();
            let request =
                step["request_id"].as_str().map(|id| format!(" [request {id}]")).unwrap_or_default();
            format!("{ending}{tokens}{}{request} {text}", passed_over(step))
        }
        _ => format!("{} {}", output::text(&step["note_kind"]), shortened(&step["note"])),
    };
    let line =
        format!("  {:>3}  {kind:<6} {:<9} {what}", output::text(&step["seq"]), format!("{state}{tries}"));
    line.trim_end().to_owned()
}

/// ` [asked b; a at host: model endpoint failed (500)]`; empty if the first model of the list answered.
fn passed_over(step: &Value) -> String {
    let Some(why) = step["passed_over"].as_str() else { return String::new() };
    format!(" [asked {}; {why}]", output::text(&step["model_asked"]))
}

/// ` [approved by ada, used; edited: {"n":1}]`; empty for a call without approval.
fn approval(step: &Value) -> String {
    let Some(approval) = step["approval"].as_str() else { return String::new() };
    let by = step["approved_by"].as_str().map(|by| format!(" by {by}")).unwrap_or_default();
    let told = match (approval, step["state"].as_str()) {
        (_, Some("denied")) => format!("denied{by}"),
        ("asked", _) => "waits for approval".to_owned(),
        ("granted", _) => format!("approved{by}"),
        (other, _) => format!("approved{by}, {other}"),
    };
    let edited = match &step["edited_args"] {
        Value::Null => String::new(),
        args => format!("; edited: {}", shortened(args)),
    };
    format!(" [{told}{edited}]")
}

/// A value as one short line; empty for null.
fn shortened(value: &Value) -> String {
    let text = match value {
        Value::Null => String::new(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    };
    let line: String =
        text.chars().take(TEXT_CHARS_MAX).map(|c| if c.is_control() { ' ' } else { c }).collect();
    if text.chars().nth(TEXT_CHARS_MAX).is_some() { format!("{line}…") } else { line }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn step_of_every_kind_is_one_line() {
        let tool = json!({ "seq": 3, "kind": "tool", "state": "done", "tries": 2, "tool": "look", "effect": "read",
            "args": { "id": 7 }, "result": "a\nb" });
        assert_eq!(line(&tool), "    3  tool   done, 2 tries look (read) {\"id\":7} -> a b");
        let model = json!({ "seq": 2, "kind": "model", "state": "started", "tries": 1 });
        assert_eq!(line(&model), "    2  model  started   no answer");
        let answered = json!({ "seq": 2, "kind": "model", "state": "done", "ending": "text", "tokens": 7,
            "request_id": "req_1", "answer": { "content": "yes" } });
        assert_eq!(line(&answered), "    2  model  done      text, 7 tokens [request req_1] yes");
        let note = json!({ "seq": 1, "kind": "note", "state": "done", "note_kind": "input", "note": "x".repeat(300) });
        assert!(line(&note).ends_with("x…") && line(&note).contains("input xxx"));
        let without_contents =
            json!({ "seq": 3, "kind": "tool", "state": "failed", "tool": "look", "effect": "read" });
        assert_eq!(line(&without_contents), "    3  tool   failed    look (read)");
    }
}
