//! Checks that a JSON text can be parsed without loss: its numbers and its depth. One pass, without
//! recursion.
use super::{DEPTH_MAX, Refused};
use std::{borrow::Cow, collections::HashSet};

/// Significant digits that identify every double: a fraction with at most so many digits is parsed as the
/// double that it means.
const DIGITS_MAX: usize = 17;
/// Most bytes of a number in an error text.
const SHOWN_BYTES_MAX: usize = 40;

/// Refuses a text with too deep a nesting, or with a number that would be rounded.
///
/// The member `usage` of the outermost object is not checked, because its counts are parsed leniently.
/// Whether the text is JSON at all is the parser's decision.
pub(crate) fn check(text: &[u8]) -> Result<(), Refused> {
    run(Scan { text, at: 0, open: Vec::new(), members: None })
}

/// Like [`check`], and refuses an object that has a member twice.
///
/// Of such members, parsers keep the first or the last, or refuse them: a command must mean the same to all.
pub(crate) fn check_command(text: &[u8]) -> Result<(), Refused> {
    run(Scan { text, at: 0, open: Vec::new(), members: Some(Vec::new()) })
}

fn run(mut scan: Scan<'_>) -> Result<(), Refused> {
    while let Some(byte) = scan.peek() {
        match byte {
            b'{' | b'[' => {
                if scan.open.len() >= DEPTH_MAX {
                    return Err(Refused::TooDeep);
                }
                scan.open.push(if byte == b'{' { Position::Key(&[]) } else { Position::Index(0) });
                if let Some(members) = &mut scan.members {
                    members.push(HashSet::new());
                }
                scan.at += 1;
            }
            b'}' | b']' => {
                scan.open.pop();
                if let Some(members) = &mut scan.members {
                    members.pop();
                }
                scan.at += 1;
            }
            b',' => {
                if let Some(Position::Index(index)) = scan.open.last_mut() {
                    *index += 1;
                }
                scan.at += 1;
            }
            b'"' => scan.string()?,
            b'-' | b'0'..=b'9' => scan.number()?,
            _ => scan.at += 1,
        }
    }
    Ok(())
}

/// The position in an open object or list.
#[derive(Clone, Copy)]
enum Position<'a> {
    Key(&'a [u8]),
    Index(usize),
}

struct Scan<'a> {
    text: &'a [u8],
    at: usize,
    open: Vec<Position<'a>>,
    /// The names in each open object so far; `None` if a name may come twice.
    members: Option<Vec<HashSet<Cow<'a, [u8]>>>>,
}

impl<'a> Scan<'a> {
    fn peek(&self) -> Option<u8> {
        self.text.get(self.at).copied()
    }

    /// Skips a string; it becomes the current key if a colon follows.
    fn string(&mut self) -> Result<(), Refused> {
        let begin = self.at + 1;
        self.at = begin;
        while let Some(byte) = self.peek() {
            match byte {
                b'"' => break,
                b'\\' => self.at += 2,
                _ => self.at += 1,
            }
        }
        let text = self.text.get(begin..self.at).unwrap_or_default();
        self.at += 1;
        let rest = self.text.get(self.at..).unwrap_or_default().trim_ascii_start();
        if let (Some(Position::Key(key)), Some(b':')) = (self.open.last_mut(), rest.first()) {
            *key = text;
            let names = self.members.as_mut().and_then(|members| members.last_mut());
            if names.is_some_and(|names| !names.insert(unescaped(text))) {
                return Err(Refused::Duplicate { place: self.place() });
            }
        }
        Ok(())
    }

    fn number(&mut self) -> Result<(), Refused> {
        let rest = self.text.get(self.at..).unwrap_or_default();
        let is_part = |byte: &u8| matches!(byte, b'-' | b'+' | b'.' | b'e' | b'E' | b'0'..=b'9');
        let length = rest.iter().position(|byte| !is_part(byte)).unwrap_or(rest.len());
        self.at += length;
        let number =
            rest.get(..length).and_then(|number| std::str::from_utf8(number).ok()).unwrap_or_default();
        if is_kept(number) || matches!(self.open.first(), Some(Position::Key(b"usage"))) {
            return Ok(());
        }
        let mut shown: String = number.chars().take(SHOWN_BYTES_MAX).collect();
        if shown.len() < number.len() {
            shown.push('…');
        }
        Err(Refused::Inexact { place: self.place(), number: shown })
    }

    /// The path of the current value, like `input.items.3: `.
    fn place(&self) -> String {
        let names = self.open.iter().map(|place| match place {
            Position::Key(key) => String::from_utf8_lossy(key).chars().take(SHOWN_BYTES_MAX).collect(),
            Position::Index(index) => index.to_string(),
        });
        let place = names.collect::<Vec<String>>().join(".");
        if place.is_empty() { place } else { format!("{place}: ") }
    }
}

/// The name that a key means: the same name can be written with and without escapes.
fn unescaped(key: &[u8]) -> Cow<'_, [u8]> {
    if !key.contains(&b'\\') {
        return Cow::Borrowed(key);
    }
    let quoted = [b"\"", key, b"\""].concat();
    serde_json::from_slice::<String>(&quoted).map_or(Cow::Borrowed(key), |name| name.into_bytes().into())
}

/// Whether a number is parsed to exactly its value. True for a malformed number, which the parser refuses.
fn is_kept(number: &str) -> bool {
    if number.parse::<i64>().is_ok() || number.parse::<u64>().is_ok() {
        return true;
    }
    let Ok(double) = number.parse::<f64>() else { return true };
    let (digits, exponent) = scientific(number);
    if !double.is_finite() || (double == 0.0 && !digits.is_empty()) {
        return false;
    }
    digits.len() <= DIGITS_MAX || scientific(&format!("{double:e}")) == (digits, exponent)
}

/// Returns the significant digits, and the exponent of the first of them.
fn scientific(number: &str) -> (String, i64) {
    let number = number.trim_start_matches('-');
    let (mantissa, power) = number.split_once(['e', 'E']).unwrap_or((number, "0"));
    // An overflow means an infinite or zero double, which the caller has handled before.
    let power = power.trim_start_matches('+').parse::<i32>().map_or(i64::from(i32::MAX), i64::from);
    let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    let all = format!("{whole}{fraction}");
    let leading = all.len() - all.trim_start_matches('0').len();
    let digits = all.trim_matches('0').to_owned();
    let place = |length: usize| i64::try_from(length).unwrap_or(i64::MAX);
    let exponent = if digits.is_empty() { 0 } else { power + place(whole.len()) - place(leading) - 1 };
    (digits, exponent)
}

#[cfg(test)]
mod tests {
    use super::super::parse;
    use super::*;
    use proptest::prelude::*;
    use serde_json::{Value, json};

    #[test]
    fn inexact_number_is_refused_with_its_path() {
        let kept = [
            "0",
            "-0",
            "1.10",
            "18446744073709551615",
            "-9223372036854775808",
            "1e20",
            "100000000000000000000",
            "0.30000000000000004",
            "0.10000000000000001",
            "1.7976931348623157e308",
            "5e-324",
            "1E+2",
            "0e999999",
            "123456789.00000000000000000000",
            "0.0000",
        ];
        for number in kept {
            assert!(parse(number.as_bytes()).is_ok(), "{number}");
        }
        for number in [
            "18446744073709551616",
            "-9223372036854775809",
            "123456789012345678901234567890",
            "1e400",
            "-1e400",
            "1e-400",
            "3.14159265358979323846",
            "0.1234567890123456789",
            "1e99999999999",
        ] {
            let message =
                parse(format!("{{\"input\": {{\"n\": [0, {number}]}}}}").as_bytes()).unwrap_err().to_string();
            assert!(
                message.starts_with(&format!("input.n.1: the number {number} has more digits")),
                "{message}"
            );
        }
    }

    #[test]
    fn numbers_in_strings_and_in_usage_are_not_checked() {
        let text =
            r#"{"a":"1e400 \" 123456789012345678901","usage":{"tokens":123456789012345678901234567890}}"#;
        assert_eq!(parse(text.as_bytes()).unwrap()["a"], "1e400 \" 123456789012345678901");
        assert!(parse(br#"{"result":{"usage":123456789012345678901234567890}}"#).is_err());
    }

    #[test]
    fn duplicate_member_of_a_command_is_refused_with_its_path() {
        for (text, place) in [
            (r#"{"a":1,"a":1}"#, "a"),
            (r#"{"a":1,"\u0061":2}"#, "\\u0061"),
            (r#"{"input":[{"n":{},"b":"n:","n":[]}]}"#, "input.0.n"),
            (r#"{"a":{"b":1},"b":{"b":{"c":1,"d":1,"c" : 2}}}"#, "b.b.c"),
            (r#"{"":1,"":2}"#, ""),
        ] {
            let place = if place.is_empty() { String::new() } else { format!("{place}: ") };
            assert_eq!(check_command(text.as_bytes()), Err(Refused::Duplicate { place }), "{text}");
            assert_eq!(check(text.as_bytes()), Ok(()), "{text}");
        }
        for text in [r#"{"a":{"a":[{"a":"a"},{"a":"a:"}]},"b":["a","a"]}"#, "[]", "]}\"", "\"a\":1", "{\"a\\"]
        {
            assert_eq!(check_command(text.as_bytes()), Ok(()), "{text}");
        }
    }

    #[test]
    fn nesting_beyond_the_limit_is_refused() {
        let nested = |depth: usize| format!("{}1{}", "[".repeat(depth), "]".repeat(depth));
        assert!(parse(nested(DEPTH_MAX).as_bytes()).is_ok());
        assert_eq!(parse(nested(DEPTH_MAX + 1).as_bytes()), Err(Refused::TooDeep));
        assert_eq!(parse("{\"a\":".repeat(200).as_bytes()), Err(Refused::TooDeep));
        assert_eq!(parse(b"{\"a\": nope}"), Err(Refused::Syntax { line: 1, column: 8 }));
    }

    proptest! {
        #[test]
        fn serialized_value_is_parsed_to_itself(number in any::<f64>(), whole in any::<i64>(), more in any::<u64>()) {
            let value = json!({ "n": number, "i": whole, "u": more });
            prop_assert_eq!(parse(value.to_string().as_bytes()).unwrap(), value);
        }

        #[test]
        fn no_text_causes_a_panic(text in any::<Vec<u8>>(), ascii in "[-+0-9eE.,:{}\\[\\]\"\\\\ ]{0,60}") {
            let _ = parse(&text);
            let _ = check_command(&text);
            if let Ok(value) = parse(ascii.as_bytes()) {
                prop_assert!(serde_json::from_str::<Value>(&ascii).unwrap() == value);
            }
        }
    }
}
