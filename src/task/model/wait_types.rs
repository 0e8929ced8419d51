//! What a task may wait for besides an agent: other tasks, an answer, a verifier.
//! Shapes follow `docs/spec/negotiation.md` §3 and §5 (15, 18, 22).
use crate::task::{ApprovalCall, Policy, Usage, is_word};
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// The effect on a task when a dependency fails.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OnDependencyFailure {
    /// It is `canceled(dependency)` at once.
    #[default]
    Cancel,
    /// It runs when all dependencies have ended.
    Run,
}

impl OnDependencyFailure {
    pub(in crate::task) fn is_cancel(&self) -> bool {
        *self == Self::Cancel
    }
}

/// The ordinary task that verifies a result. Its input is `{task: {id, kind, input}, result}`, its result
/// `{accepted, reason}`. The agent of the result is asked only if no other can do it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Verifier {
    /// The kind of its task, like `support.review`.
    pub kind: String,
    /// Capabilities that the verifier must all have.
    #[serde(default)]
    pub requires: Vec<String>,
    /// Its own policy.
    #[serde(default)]
    pub policy: serde_json::Map<String, Value>,
}

impl Verifier {
    pub(in crate::task) fn check(&self) -> Result<(), String> {
        if !is_word(&self.kind) || !self.requires.iter().all(|word| is_word(word)) || self.requires.len() > 50
        {
            return Err("policy.verifier: a kind and up to 50 requires, each of 1 to 200 bytes".into());
        }
        if self.policy.contains_key("verifier") || self.policy.contains_key("result_schema") {
            return Err("policy.verifier.policy: what a verifier says is not verified".into());
        }
        Policy::default().with(&self.policy).map(drop).map_err(|e| format!("policy.verifier.{e}"))
    }
}

/// The effect on a task when its question is not answered in time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OnInputTimeout {
    /// It fails: `deadline`, or `budget` when it waited for that.
    #[default]
    Fail,
    /// The question is published again (event `escalated`) and waits as long again.
    Escalate,
}

/// A question of an assignee that needs the answer to continue. Asking ends its run: the slot is free, the lease is
/// suspended, and with the answer the task is awarded again, to the same agent first, with the checkpoint.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Question {
    /// What is needed.
    #[serde(rename = "for", default)]
    pub wait_for: WaitFor,
    /// What to ask, for people: 1 to [`crate::task::QUESTION_BYTES_MAX`] bytes.
    pub question: String,
    /// The checkpoint to continue from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub checkpoint: Option<Value>,
    /// Its usage so far.
    #[serde(default = "Usage::unreported")]
    pub usage: Usage,
    /// The calls that it asks to approve: only of agents that think.
    #[serde(skip)]
    pub calls: Vec<ApprovalCall>,
    /// Roles of tokens that may answer, beside those who may answer every question of the task.
    #[serde(skip)]
    pub approvers: Vec<String>,
}

/// What a task waits for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WaitFor {
    /// Input from a person.
    #[default]
    Input,
    /// Approval by a person.
    Approval,
    /// A higher budget.
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
