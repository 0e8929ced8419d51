//! `[run.calls]`: when a tool is open to the model, and the form of its arguments.
use super::REQUEST_TASK;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::BTreeMap;

/// The rule of a tool, or of a kind of parts as `request_task:KIND`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct CallRule {
    /// Most calls in a run. Defaults to no limit but that of all calls.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub most: Option<u32>,
    /// The tools and kinds of parts that a run must have called before.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub after: Vec<String>,
    /// A JSON schema that the arguments must satisfy besides that of the tool, and that the model sees in its place.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub arguments: Option<Value>,
}

/// How often each tool and kind of parts was called.
pub(crate) type Called = BTreeMap<String, u32>;

/// The name of a kind of parts in the rules.
pub(crate) fn part_rule(kind: &str) -> String {
    format!("{REQUEST_TASK}:{kind}")
}

impl CallRule {
    /// What the description of the tool says about the rule, which may be that of a kind of parts.
    pub(crate) fn told(&self, kind: Option<&str>) -> String {
        let most = self.most.map(|most| format!("at most {most} times in a run"));
        let after = (!self.after.is_empty()).then(|| format!("only after {}", self.after.join(" and ")));
        let words: Vec<String> = most.into_iter().chain(after).collect();
        match (words.is_empty(), kind) {
            (true, _) => String::new(),
            (false, None) => format!(". Rule: {}", words.join(", ")),
            (false, Some(kind)) => format!(". Rule of {kind}: {}", words.join(", ")),
        }
    }

    /// Why the tool with this rule is not open after these calls. `None` if it is.
    pub(crate) fn closed(&self, name: &str, called: &Called) -> Option<String> {
        let count = |name: &str| called.get(name).copied().unwrap_or_default();
        if let Some(most) = self.most.filter(|most| count(name) >= *most) {
            return Some(format!("{name} may be called {most} times in a run, and was"));
        }
        let missing = self.after.iter().find(|other| count(other) == 0)?;
        Some(format!("{name} comes after {missing}"))
    }
}
