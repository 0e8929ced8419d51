//! Rewrites serde's error messages, each with a remedy. Pure.
//!
//! Serde's errors are texts, so this parses them; tests pin the results.
use super::{path::Path, read::Fault};

/// Parses `missing field`; returns the field.
pub(super) fn missing_field(message: &str) -> Option<&str> {
    message.strip_prefix("missing field `")?.strip_suffix('`')
}

/// Parses `unknown variant`; returns the given variant.
pub(super) fn unknown_variant(message: &str) -> Option<&str> {
    message.strip_prefix("unknown variant `")?.split('`').next()
}

/// Parses `unknown variant`; returns the first known variant.
pub(super) fn first_variant(message: &str) -> Option<&str> {
    unknown_variant(message)?;
    message.split_once(", expected ")?.1.split('`').nth(1)
}

/// A required key is missing; reported at its table.
pub(super) fn missing(table: Path, field: &str) -> Fault {
    Fault { path: table.key(field), message: "missing".into(), remedy: Some(format!("add `{field} = …`")) }
}

/// A key that no setting has.
pub(super) fn unknown_key(path: Path, key: &str, known: &[&str]) -> Fault {
    let remedy = match nearest(key, known) {
        Some(near) => format!("did you mean `{near}`?"),
        None if known.is_empty() => "remove it".into(),
        None => format!("the keys here are {}", known.join(", ")),
    };
    Fault { path, message: "unknown key".into(), remedy: Some(remedy) }
}

/// A value of a wrong type, or outside the range of its type.
pub(super) fn wrong(path: Path, message: &str) -> Fault {
    let secret = path.0.last().is_some_and(|_| is_secret(&path.to_string()));
    let (message, remedy) = match variant(message) {
        Some(found) => found,
        None if message == "invalid socket address syntax" => {
            let remedy = "write numbers like \"127.0.0.1:7700\", or \"[::1]:7700\"";
            ("not an address with a port".into(), Some(remedy.into()))
        }
        None if secret => ("has the wrong type".into(), Some("write it as text, in quotes".into())),
        None => expected(message),
    };
    Fault { path, message, remedy }
}

/// Whether the key holds a secret, whose value no message may contain.
fn is_secret(path: &str) -> bool {
    ["secret", "password", "database.url", "api_key"].iter().any(|word| path.ends_with(word))
}

fn variant(message: &str) -> Option<(String, Option<String>)> {
    let given = unknown_variant(message)?;
    let (_, known) = message.split_once(", expected ")?;
    let known: Vec<_> = known.split('`').skip(1).step_by(2).collect();
    let remedy = match nearest(given, &known) {
        Some(near) => format!("did you mean \"{near}\"?"),
        None => format!("use one of {}", known.join(", ")),
    };
    Some((format!("unknown value \"{given}\""), Some(remedy)))
}

fn expected(message: &str) -> (String, Option<String>) {
    let split = ["invalid type: ", "invalid value: ", "invalid length "]
        .iter()
        .find_map(|start| message.strip_prefix(start)?.rsplit_once(", expected "));
    let Some((found, expected)) = split else { return (message.to_owned(), None) };
    let (expected, remedy) = match expected {
        "a duration" => ("a duration".into(), "write one like \"250ms\", \"30s\" or \"5m\"".to_owned()),
        "a string" | "a path" | "path string" => ("text".into(), "write it in quotes".to_owned()),
        "a boolean" => ("true or false".into(), "write true or false, without quotes".to_owned()),
        "a sequence" => ("a list".into(), "write it in brackets, like [\"a\", \"b\"]".to_owned()),
        "a map" => ("a table".into(), "write it as a section or in braces".to_owned()),
        "u8" | "u16" | "u32" | "u64" | "usize" => (whole(expected, "0"), "write a whole number".to_owned()),
        "i8" | "i16" | "i32" | "i64" => (whole(expected, ""), "write a whole number".to_owned()),
        "f32" | "f64" => ("a number".into(), "write a number, without quotes".to_owned()),
        other if other.starts_with("struct ") => {
            ("a table".into(), "write it as a section or in braces".to_owned())
        }
        other if other.starts_with("enum ") => {
            ("one of its words".into(), "write the word in quotes".to_owned())
        }
        other => return (format!("found {found}, expected {other}"), None),
    };
    (format!("found {}, expected {expected}", found.replace('`', "")), Some(remedy))
}

fn whole(int: &str, least: &str) -> String {
    let most = match int {
        "u8" => "255",
        "u16" => "65535",
        "u32" => "4294967295",
        _ => {
            return if least.is_empty() {
                "a whole number".into()
            } else {
                "a whole number, 0 or more".into()
            };
        }
    };
    format!("a whole number from {least} to {most}")
}

/// Returns the most similar known word, if at most a third of its letters differ.
fn nearest<'a>(word: &str, known: &[&'a str]) -> Option<&'a str> {
    let scored = known.iter().map(|candidate| (distance(word, candidate), *candidate));
    let (distance, best) = scored.min()?;
    (distance * 3 <= best.chars().count().max(3)).then_some(best)
}

/// Edit distance: letters to insert, delete, replace, or swap with a neighbor.
fn distance(from: &str, to: &str) -> usize {
    let (from, to): (Vec<char>, Vec<char>) = (from.chars().collect(), to.chars().collect());
    let mut before: Vec<usize> = Vec::new();
    let mut last: Vec<usize> = (0..=to.len()).collect();
    for (i, a) in from.iter().enumerate() {
        let mut row = vec![i + 1];
        for (j, b) in to.iter().enumerate() {
            let cell = |row: &[usize], at: usize| row.get(at).copied().unwrap_or(usize::MAX - 1);
            let mut best =
                (cell(&last, j) + usize::from(a != b)).min(cell(&last, j + 1) + 1).min(cell(&row, j) + 1);
            let swapped = i > 0 && j > 0 && from.get(i - 1) == Some(b) && to.get(j - 1) == Some(a);
            if swapped {
                best = best.min(cell(&before, j - 1) + 1);
            }
            row.push(best);
        }
        before = std::mem::replace(&mut last, row);
    }
    last.last().copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mistyped_word_finds_the_known_one() {
        let known = ["listen", "url", "data_dir", "slot"];
        assert_eq!(nearest("lisetn", &known), Some("listen"));
        assert_eq!(nearest("datadir", &known), Some("data_dir"));
        assert_eq!(nearest("slots", &known), Some("slot"));
        assert_eq!(nearest("password", &known), None);
    }

    #[test]
    fn message_of_a_wrong_type_has_no_name_of_the_code() {
        for (serde, told) in [
            ("integer `5`, expected enum LimitMember", ("one of its words", "write the word in quotes")),
            ("integer `5`, expected struct Run", ("a table", "write it as a section or in braces")),
        ] {
            let fault = wrong(Path::parse("run.x"), &format!("invalid type: {serde}"));
            assert_eq!(fault.message, format!("found integer 5, expected {}", told.0));
            assert_eq!(fault.remedy.as_deref(), Some(told.1));
        }
    }

    #[test]
    fn message_has_no_secret() {
        let fault = wrong(Path::parse("auth.jwt_secret"), "invalid type: integer `4711`, expected a string");
        assert!(!fault.message.contains("4711"), "{}", fault.message);
    }
}
