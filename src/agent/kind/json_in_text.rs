//! Finds the JSON in the text of a model.
//!
//! Models that are asked for JSON alone may still put it into a fence, behind a `<think>` block or into a sentence.
//! Pure.
use crate::json::{self, Refused};
use serde_json::Value;

/// A value, or why it cannot be stored although it is JSON.
pub(super) type AnswerJson = Result<Value, Refused>;

/// Tags around the reasoning of a model.
const THOUGHTS: [&str; 3] = ["</think>", "</thinking>", "</reasoning>"];
/// Start positions of JSON that are tried. Each try may read to the end of the text.
const PLACES_MAX: usize = 64;

/// The JSON values in a text, the most likely first: the whole text, then its fences, then values between words; of
/// several, the last one first, and objects before other values.
pub(super) fn candidates(text: &str) -> Vec<AnswerJson> {
    let text = without_thoughts(text).trim().trim_start_matches('\u{feff}').trim();
    if let Some(found) = read(text) {
        return vec![found];
    }
    let mut found = fenced(text);
    if found.is_empty() {
        found = embedded(text);
        // A number in brackets is more often a footnote than an answer.
        found.sort_by_key(|found| !found.as_ref().is_ok_and(Value::is_object));
    }
    found
}

/// The value of a text. `None` if it is not JSON.
fn read(text: &str) -> Option<AnswerJson> {
    match json::parse(text.as_bytes()) {
        Err(Refused::Syntax { .. }) => None,
        found => Some(found),
    }
}

/// The text after the last end of reasoning. Reasoning that does not end has no answer after it.
fn without_thoughts(text: &str) -> &str {
    let lower = text.to_ascii_lowercase();
    let ends = THOUGHTS.iter().filter_map(|tag| lower.rfind(tag).map(|at| at + tag.len()));
    // A result may contain such a tag in one of its texts.
    let whole = serde_json::from_str::<serde::de::IgnoredAny>(text.trim()).is_ok();
    match ends.max() {
        Some(end) if !whole => text.get(end..).unwrap_or(text),
        _ => text,
    }
}

/// The contents of fences of backticks or tildes, the last one first.
fn fenced(text: &str) -> Vec<AnswerJson> {
    let mut found = Vec::new();
    let mut rest = text;
    while let Some(begin) = rest.find("```").into_iter().chain(rest.find("~~~")).min() {
        let fence = rest.get(begin..begin + 3).unwrap_or_default();
        let inside = rest.get(begin + 3..).unwrap_or_default();
        // The name of the language before the value, in any case.
        let inside = inside.trim_start_matches(|c: char| c.is_ascii_alphanumeric() || c == '`' || c == '~');
        // A text in the value may contain a fence, so the first end that leaves JSON counts.
        let ends = inside.match_indices(fence).map(|(end, _)| end).chain([inside.len()]).take(PLACES_MAX);
        let value = ends.into_iter().find_map(|end| Some((end, read(inside.get(..end)?.trim())?)));
        let end = match value {
            Some((end, value)) => {
                found.push(value);
                end
            }
            None => inside.find(fence).unwrap_or(inside.len()),
        };
        rest = inside.get(end..).unwrap_or_default().trim_start_matches(['`', '~']);
        if found.len() >= PLACES_MAX {
            break;
        }
    }
    found.reverse();
    found
}

/// Objects and lists between words, the last one first.
fn embedded(text: &str) -> Vec<AnswerJson> {
    let mut found = Vec::new();
    let mut rest = text;
    for _ in 0..PLACES_MAX {
        let Some(begin) = rest.find(['{', '[']) else { break };
        rest = rest.get(begin..).unwrap_or_default();
        let mut stream = serde_json::Deserializer::from_str(rest).into_iter::<serde::de::IgnoredAny>();
        let length = match stream.next() {
            Some(Ok(_)) => {
                let length = stream.byte_offset();
                found.extend(rest.get(..length).and_then(read));
                length
            }
            _ => 1,
        };
        rest = rest.get(length..).unwrap_or_default();
    }
    found.reverse();
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn answer_is_found_between_fences_reasoning_and_words() {
        let texts = [
            "{\"a\":1}",
            "\u{feff} {\"a\":1}\n",
            "```json\n{\"a\":1}\n```",
            "```JSON\n{\"a\":1}\n```",
            "```Json5\r\n{\"a\":1}```",
            "~~~\n{\"a\":1}\n~~~",
            "Here it is:\n```json\n{\"a\":1}\n```\nI hope that helps.",
            "First ```json\n{\"a\":0}\n``` no, better:\n```\n{\"a\":1}\n```",
            "<think>\nIs it {\"a\": 5}? No.\n</think>\n\n{\"a\":1}",
            "<THINK>{</THINK>```json\n{\"a\":1}\n```",
            "so it must be one.</think>{\"a\":1}",
            "The answer is {\"a\":1}, as the source [1] says.",
            "{not json} {\"a\":1}",
            "```json\n{\"a\":1}",
        ];
        for text in texts {
            assert_eq!(candidates(text).first(), Some(&Ok(json!({ "a": 1 }))), "{text}");
        }
    }

    #[test]
    fn text_that_is_json_is_taken_whole() {
        for whole in
            [json!("say </think> or ```json\n1\n```"), json!({ "t": "</think>{}" }), json!(7), json!([1])]
        {
            assert_eq!(candidates(&whole.to_string()), [Ok(whole)]);
        }
        let fence = json!({ "code": "```\nx\n```" });
        assert_eq!(candidates(&format!("```json\n{fence}\n```")), [Ok(fence)]);
    }

    #[test]
    fn answer_that_cannot_be_stored_is_an_error_and_not_rounded() {
        let number = "123456789012345678901234567890";
        for text in [
            format!("{{\"n\":{number}}}"),
            format!("```json\n{{\"n\":{number}}}\n```"),
            format!("So: {{\"n\":{number}}}."),
        ] {
            let why = candidates(&text).remove(0).unwrap_err().to_string();
            assert!(why.contains(number), "{why}");
        }
        assert_eq!(candidates(&format!("Order {number}: {{\"a\":1}}")), [Ok(json!({ "a": 1 }))]);
    }

    #[test]
    fn text_without_json_has_no_answer_and_hostile_text_ends_soon() {
        assert_eq!(candidates("I think it is urgent"), Vec::<AnswerJson>::new());
        assert_eq!(candidates("<think>never ends {"), Vec::<AnswerJson>::new());
        assert_eq!(candidates(""), Vec::<AnswerJson>::new());
        // Only JSON that is nested too deeply from its first byte is reported as such.
        for deep in ["[".repeat(1 << 20), "{\"a\":".repeat(1 << 18)] {
            assert_eq!(candidates(&deep), [Err(Refused::TooDeep)]);
        }
        for hostile in ["{".repeat(1 << 20), "```".repeat(1 << 18), "```json {".repeat(1 << 16)] {
            assert_eq!(candidates(&hostile), Vec::<AnswerJson>::new());
        }
    }
}
