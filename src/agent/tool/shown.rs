//! What a model is shown of a tool's output: without secrets and control characters, and cut in the middle. Pure.

/// Shortest value that is replaced: a shorter one would also be found in innocent text.
const SECRET_BYTES_MIN: usize = 8;

/// A result as the model sees it.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Shown {
    pub(crate) text: String,
    /// Whether something is missing.
    pub(crate) cut: bool,
}

/// Prepares an output of at most `bytes_max`. `secrets` are names and values.
pub(crate) fn shown(output: &str, secrets: &[(String, String)], bytes_max: usize) -> Shown {
    let mut text: String = output.chars().filter(|c| !c.is_control() || matches!(c, '\n' | '\t')).collect();
    for (name, value) in secrets.iter().filter(|(_, value)| value.len() >= SECRET_BYTES_MIN) {
        if text.contains(value.as_str()) {
            text = text.replace(value.as_str(), &format!("[secret {name}]"));
        }
    }
    if text.len() <= bytes_max {
        return Shown { text, cut: false };
    }
    let head = boundary(&text, bytes_max.saturating_mul(7) / 10);
    let tail = boundary(&text, text.len() - (bytes_max - bytes_max.saturating_mul(7) / 10));
    let (first, last) = (text.get(..head).unwrap_or_default(), text.get(tail..).unwrap_or_default());
    let missing = tail - head;
    Shown { text: format!("{first}\n[{missing} bytes are left out here]\n{last}"), cut: true }
}

/// The next position at which the text may be cut.
fn boundary(text: &str, from: usize) -> usize {
    (from..=text.len()).find(|at| text.is_char_boundary(*at)).unwrap_or(text.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_and_control_characters_are_removed() {
        let secrets = [("KEY".to_owned(), "sk-12345678".to_owned()), ("PIN".to_owned(), "1234".to_owned())];
        let found = shown("a\u{0}\u{1b}[31m sk-12345678 1234\n\tb\r", &secrets, 1_000);
        assert_eq!(found, Shown { text: "a[31m [secret KEY] 1234\n\tb".into(), cut: false });
    }

    #[test]
    fn long_output_is_cut_in_the_middle() {
        let found = shown(&"é".repeat(1_000), &[], 100);
        assert!(found.cut && found.text.len() < 140, "{}", found.text.len());
        assert!(found.text.contains("\n[1900 bytes are left out here]\n"), "{}", found.text);
        assert_eq!(shown("short", &[], 5), Shown { text: "short".into(), cut: false });
    }
}
