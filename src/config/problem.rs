//! Problems of the configuration, each with place and remedy.
use serde::Serialize;
use std::fmt;

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
        f.write_str(&self.file)?;
        if let Some(line) = self.line {
            write!(f, ":{line}")?;
        }
        if !self.key.is_empty() {
            write!(f, ": {}", self.key)?;
        }
        write!(f, ": {}", self.message)?;
        self.remedy.as_ref().map_or(Ok(()), |remedy| write!(f, "; {remedy}"))
    }
}

/// All problems; never empty.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{}", lines(.0))]
pub struct Problems(pub Vec<Problem>);

fn lines(problems: &[Problem]) -> String {
    problems.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")
}
