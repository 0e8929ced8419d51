//! Checks of values that callers send, before they reach the database. Pure.
use crate::task::{Error, JSON_DEPTH_MAX};
use chrono::{DateTime, Datelike as _, Utc};
use serde_json::{Map, Value};

/// Longest task kind, capability and idempotency key in bytes.
const WORD_BYTES_MAX: usize = 200;

/// Whether a text may be a kind, capability or idempotency key: 1 to 200 bytes without control characters.
pub(crate) fn is_word(text: &str) -> bool {
    (1..=WORD_BYTES_MAX).contains(&text.len()) && !text.contains(char::is_control)
}

/// Refuses a text that is no word.
pub(in crate::task) fn word(name: &str, text: &str) -> Result<(), Error> {
    if !is_word(text) {
        return Err(Error::BadRequest(format!(
            "{name} has 1 to {WORD_BYTES_MAX} bytes and no control characters"
        )));
    }
    Ok(())
}

/// Refuses a time that not every client can represent.
pub(in crate::task) fn check_time(what: &str, time: Option<DateTime<Utc>>) -> Result<(), Error> {
    if time.is_some_and(|time| !(1..=9999).contains(&time.year())) {
        return Err(Error::BadRequest(format!("{what} is not between the years 1 and 9999")));
    }
    Ok(())
}

/// Refuses JSON that is nested too deep.
pub(in crate::task) fn check_depth(what: &str, value: &Value) -> Result<(), Error> {
    if is_deeper(value, JSON_DEPTH_MAX) { Err(too_deep(what)) } else { Ok(()) }
}

/// As [`check_depth`], of an object.
pub(in crate::task) fn check_map_depth(what: &str, map: &Map<String, Value>) -> Result<(), Error> {
    let is_deep = map.values().any(|member| is_deeper(member, JSON_DEPTH_MAX - 1));
    if is_deep { Err(too_deep(what)) } else { Ok(()) }
}

fn too_deep(what: &str) -> Error {
    Error::BadRequest(format!("{what} is nested more than {JSON_DEPTH_MAX} deep"))
}

/// Whether lists and objects are nested more than `left` deep.
fn is_deeper(value: &Value, left: usize) -> bool {
    let Some(left) = left.checked_sub(1) else { return value.is_array() || value.is_object() };
    match value {
        Value::Array(items) => items.iter().any(|item| is_deeper(item, left)),
        Value::Object(members) => members.values().any(|member| is_deeper(member, left)),
        _ => false,
    }
}

/// Refuses JSON that is too large or too deep, or has the character U+0000, which the database cannot store.
pub(crate) fn check_json(what: &'static str, value: &Value, bytes_max: usize) -> Result<(), Error> {
    check_depth(what, value)?;
    check_text(what, &serde_json::to_string(value).unwrap_or_default(), bytes_max)
}

/// As [`check_json`], of JSON text that is not nested too deep.
pub(in crate::task) fn check_text(what: &'static str, text: &str, bytes_max: usize) -> Result<(), Error> {
    if text.len() > bytes_max {
        return Err(Error::TooLarge { what, bytes: text.len(), bytes_max });
    }
    // `\\u0000` is an escaped backslash and plain text: reading the escapes in pairs distinguishes the two.
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        if c == '\\' && chars.next() == Some('u') && chars.as_str().starts_with("0000") {
            return Err(Error::BadRequest(format!(
                "{what} contains the character U+0000, which cannot be stored"
            )));
        }
    }
    Ok(())
}

/// The text as one line of at most so many bytes.
pub(in crate::task) fn one_line(text: &str, bytes_max: usize) -> String {
    let mut line: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    while line.len() > bytes_max {
        line.pop();
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn nul_character_is_refused_and_its_escaped_text_is_not() {
        assert!(check_json("input", &json!({ "a": "\u{0}" }), 100).is_err());
        assert!(check_json("input", &json!({ "a": "\\u0000" }), 100).is_ok());
        assert!(check_json("input", &json!("x".repeat(200)), 100).is_err());
    }

    #[test]
    fn json_deeper_than_100_levels_is_refused() {
        let nested = |depth: usize| (0..depth).fold(json!(1), |inner, _| json!([inner]));
        assert!(check_json("input", &nested(JSON_DEPTH_MAX), 1000).is_ok());
        let refused = check_json("input", &nested(JSON_DEPTH_MAX + 1), 1000).unwrap_err();
        assert_eq!(refused.to_string(), "input is nested more than 100 deep");
    }

    #[test]
    fn text_becomes_one_line_within_the_limit() {
        assert_eq!(one_line("a\nb\tc", 100), "a b c");
        assert_eq!(one_line("äää", 3), "ä");
    }
}
