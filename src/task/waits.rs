//! What a task may wait for besides an agent: other tasks, an answer, a verifier.
//! Shapes follow `reference/negotiation.md` §3 and §5 (15, 18, 22).
use super::{Policy, Usage};
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// What becomes of a task when something that it depends on has failed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OnDependencyFailure {
    /// It is `canceled(dependency)` at once.
    #[default]
    Cancel,
    /// It runs once everything that it depends on has ended.
    Run,
}

impl OnDependencyFailure {
    pub(super) fn is_cancel(&self) -> bool {
        *self == Self::Cancel
    }
}

/// The ordinary task that verifies a result. Its input is `{task: {id, kind, input}, result}`, its result
/// `{accepted, reason}`. Whoever made the result is not asked while somebody else can do it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Verifier {
    /// What kind of work that is, like `support.review`.
    pub kind: String,
    /// Capabilities that the verifier must all have.
    #[serde(default)]
    pub requires: Vec<String>,
    /// Its own policy.
    #[serde(default)]
    pub policy: serde_json::Map<String, Value>,
}

impl Verifier {
    pub(super) fn check(&self) -> Result<(), String> {
        let named = |word: &String| (1..=200).contains(&word.len()) && !word.contains(char::is_control);
        if !named(&self.kind) || !self.requires.iter().all(named) || self.requires.len() > 50 {
            return Err("policy.verifier: a kind and up to 50 requires, each of 1 to 200 bytes".into());
        }
        if self.policy.contains_key("verifier") || self.policy.contains_key("result_schema") {
            return Err("policy.verifier.policy: what a verifier says is not verified".into());
        }
        Policy::default().with(&self.policy).map(drop).map_err(|e| format!("policy.verifier.{e}"))
    }
}

/// What happens to a task whose question nobody answers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OnInputTimeout {
    /// It fails: `deadline`, or `budget` when it waited for that.
    #[default]
    Fail,
    /// The question is told to the org again (event `escalated`), and waits as long again.
    Escalate,
}

/// What an assignee needs before it can go on. Asking ends its run: the slot is free, the lease is
/// suspended, and with the answer the task is awarded again, to the same agent first, with the checkpoint.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Question {
    /// What is needed.
    #[serde(rename = "for", default)]
    pub wait_for: WaitFor,
    /// What to ask, for people: 1 to [`super::QUESTION_BYTES_MAX`] bytes.
    pub question: String,
    /// What the assignee goes on from when it is answered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub checkpoint: Option<Value>,
    /// What it used until now.
    #[serde(default)]
    pub usage: Usage,
}

/// What a task waits for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WaitFor {
    /// Something that only a person knows.
    #[default]
    Input,
    /// Somebody's consent.
    Approval,
    /// More to spend.
    Budget,
}

impl WaitFor {
    /// The word in the database and on the wire; it is the task's `state_reason` while it waits.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Input => "input",
            Self::Approval => "approval",
            Self::Budget => "budget",
        }
    }
}
