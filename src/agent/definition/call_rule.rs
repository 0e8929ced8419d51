//! `[run.calls]`: when a tool is open to the model, and the form of its arguments.
use super::REQUEST_TASK;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};

/// The rule of a tool, or of a kind of parts as `request_task:KIND`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct CallRule {
    /// Most calls in a run. Defaults to no limit but that of all calls.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub most: Option<u32>,
    /// The tools and kinds of parts that an earlier answer of the run must have called, and that have begun.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub after: Vec<String>,
    /// A JSON schema that the arguments must satisfy besides that of the tool, and that the model sees in its place.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub arguments: Option<Value>,
}

/// The calls of a run so far, by tool and by kind of parts.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Called {
    /// How often each was called, also by the answer that is being read. `most` limits these.
    counts: BTreeMap<String, u32>,
    /// Those that an earlier answer called and that have begun. `after` waits for these.
    begun: BTreeSet<String>,
}

impl Called {
    /// Counts a call by each name that a rule may have for it.
    pub(crate) fn count(&mut self, names: impl IntoIterator<Item = String>) {
        for name in names {
            let count = self.counts.entry(name).or_default();
            *count = count.saturating_add(1);
        }
    }

    /// Notes a call that has begun, and whose result the model has seen.
    pub(crate) fn begin(&mut self, names: impl IntoIterator<Item = String>) {
        self.begun.extend(names);
    }
}

/// The name of a kind of parts in the rules.
pub(crate) fn part_rule(kind: &str) -> String {
    format!("{REQUEST_TASK}:{kind}")
}

impl CallRule {
    /// Whether a tool with this rule is closed for the whole run.
    pub(crate) fn is_never_open(&self) -> bool {
        self.most == Some(0)
    }

    /// What the description of the tool says about the rule, which may be that of a kind of parts.
    pub(crate) fn told(&self, kind: Option<&str>) -> String {
        let most = self.most.map(|most| match most {
            0 if kind.is_some() => "never".to_owned(),
            // Of such tools only `give_up` is offered at all.
            0 => "only if no other tool is open".to_owned(),
            most => format!("at most {most} times in a run"),
        });
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
        let count = called.counts.get(name).copied().unwrap_or_default();
        match self.most {
            Some(0) => return Some(format!("{name} may not be called")),
            Some(most) if count >= most => {
                return Some(format!("{name} may be called {most} times in a run, and was"));
            }
            _ => {}
        }
        let missing = self.after.iter().find(|other| !called.begun.contains(*other))?;
        Some(format!("{name} comes after {missing}, in a later answer"))
    }
}
