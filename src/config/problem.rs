//! Problems of the configuration, each with place and remedy.
use serde::Serialize;
use std::fmt::{self, Write as _};

/// One problem that prevents the start of the daemon.
///
/// Displayed like `agents/a.toml:12: run.kind: unknown variant "lm"; use one of llm, command`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Problem {
    /// The file, or the environment variable or flag with the value.
    pub file: String,
    /// Line in the file, from 1.
    pub line: Option<usize>,
    /// Path of the key, like `wake.0.filter`; empty for the file as a whole.
    pub key: String,
    /// The problem, with the value unless it is secret.
    pub message: String,
    /// The remedy.
    pub remedy: Option<String>,
}

impl Problem {
    /// A problem of a whole file, variable or flag.
    pub fn of_file(file: impl Into<String>, message: impl Into<String>, remedy: Option<&str>) -> Self {
        let (file, message) = (file.into(), message.into());
        Self { file, line: None, key: String::new(), message, remedy: remedy.map(str::to_owned) }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        one_line(f, &self.file)?;
        if let Some(line) = self.line {
            write!(f, ":{line}")?;
        }
        if !self.key.is_empty() {
            f.write_str(": ")?;
            one_line(f, &self.key)?;
        }
        f.write_str(": ")?;
        one_line(f, &self.message)?;
        self.remedy.as_ref().map_or(Ok(()), |remedy| {
            f.write_str("; ")?;
            one_line(f, remedy)
        })
    }
}

/// Writes a text of a file with its control characters escaped: a key may have any of them.
fn one_line(f: &mut fmt::Formatter<'_>, text: &str) -> fmt::Result {
    text.chars().try_for_each(|c| match c {
        c if c.is_control() => write!(f, "{}", c.escape_default()),
        c => f.write_char(c),
    })
}

/// All problems; never empty.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{}", lines(.0))]
pub struct Problems(pub Vec<Problem>);

fn lines(problems: &[Problem]) -> String {
    problems.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_characters_of_a_file_are_escaped() {
        let problem = Problem {
            file: "a.toml".into(),
            line: Some(7),
            key: "run.a\nb\u{1b}[31m".into(),
            message: "unknown key \"ä\r\"".into(),
            remedy: Some("x\ty".into()),
        };
        assert_eq!(problem.to_string(), "a.toml:7: run.a\\nb\\u{1b}[31m: unknown key \"ä\\r\"; x\\ty");
    }
}
