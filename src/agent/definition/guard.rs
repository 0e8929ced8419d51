//! `[[guard]]`: what judges the texts and calls of a run before they count.
use super::mcp::matches;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// A guard: one of `regex`, `schema` and `tool` judges.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Guard {
    /// Its name, shown to the model and the operator.
    pub name: String,
    /// What it judges.
    pub on: GuardOn,
    /// The tools whose calls or results it judges: names in calls, with `*` for any characters. Defaults to all.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tools: Vec<String>,
    /// A pattern that is not allowed, in a text or in the JSON of a value.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub regex: Option<String>,
    /// What stands in the place of each match, which is allowed then. `$1` is the first group.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replace: Option<String>,
    /// A JSON schema that must be satisfied.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub schema: Option<Value>,
    /// A declared tool with `effect = "read"` that judges.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tool: Option<String>,
}

/// What a guard judges.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum GuardOn {
    /// The input of a run, before it begins.
    Input,
    /// The arguments of a call, before it begins.
    Call,
    /// The output of a call, before it is recorded and the model sees it.
    Result,
    /// The result of the run, before it ends.
    Answer,
}

impl GuardOn {
    /// The word in files and for tools that judge.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Input => "input",
            Self::Call => "call",
            Self::Result => "result",
            Self::Answer => "answer",
        }
    }
}

impl Guard {
    /// Whether it judges this of a tool; of none for the input and the answer.
    pub(crate) fn judges(&self, on: GuardOn, tool: Option<&str>) -> bool {
        let is_named = |tool| self.tools.iter().any(|pattern| matches(pattern, tool));
        self.on == on && (self.tools.is_empty() || tool.is_some_and(is_named))
    }
}
