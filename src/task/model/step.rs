//! Runs and steps of agents that think: what `convoke.runs` and `convoke.steps` contain (`docs/spec/thinking-agents.md`).
use serde::{Deserialize, Serialize};
use serde_json::Value;
use uuid::Uuid;

/// Defines an enum whose variants are words of a column.
macro_rules! words {
    ($(#[$about:meta])* $name:ident { $($(#[$doc:meta])* $variant:ident = $word:literal,)* }) => {
        $(#[$about])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
        #[serde(rename_all = "snake_case")]
        pub enum $name {
            $($(#[$doc])* $variant,)*
        }

        impl $name {
            /// Every variant.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)*];

            /// The word in the rows.
            #[must_use]
            pub fn as_str(self) -> &'static str {
                match self {
                    $(Self::$variant => $word,)*
                }
            }

            /// The variant of a word. `None` for a word of a newer schema.
            #[must_use]
            pub fn parse(word: &str) -> Option<Self> {
                Self::ALL.iter().copied().find(|one| one.as_str() == word)
            }
        }
    };
}

words! {
    /// What a tool does outside the run, and so what happens to a call of it after a crash.
    Effect {
        /// No effect: it runs again.
        Read = "read",
        /// An effect in the daemon's own database, committed with its step: exactly once.
        Database = "database",
        /// One effect for each idempotency key: it runs again with the same key.
        Keyed = "keyed",
        /// A probe says whether it happened, and it runs again only if it did not.
        Checked = "checked",
        /// It may not run again: a person says whether it happened.
        Once = "once",
    }
}

words! {
    /// State of a step.
    StepState {
        /// A call that has not begun.
        Planned = "planned",
        /// Under way, or lost in a crash.
        Started = "started",
        /// Ended with a result.
        Done = "done",
        /// Ended with an error that the model is shown.
        Failed = "failed",
        /// A person did not approve it, so it did not begin.
        Denied = "denied",
        /// A person decided that it is not carried out.
        Skipped = "skipped",
        /// Whether it happened is unknown.
        Unknown = "unknown",
    }
}

impl StepState {
    /// Whether the step has its result.
    #[must_use]
    pub fn has_ended(self) -> bool {
        matches!(self, Self::Done | Self::Failed | Self::Denied | Self::Skipped)
    }
}

words! {
    /// Approval of a call that may not begin without one.
    Approval {
        /// A person is asked.
        Asked = "asked",
        /// The call may begin, once.
        Granted = "granted",
        /// It was granted, and the call did not begin in time.
        Expired = "expired",
        /// The call has begun with it.
        Used = "used",
    }
}

words! {
    /// How the answer of a model ended, after it was read.
    Ending {
        /// It calls tools.
        Calls = "calls",
        /// It has text and no calls.
        Text = "text",
        /// It was cut off at the limit of tokens, with a call that is not complete.
        Cut = "cut",
        /// The endpoint or the model refused.
        Refused = "refused",
    }
}

words! {
    /// Why a text was put into a run.
    NoteKind {
        /// The task: the first note of every run.
        Input = "input",
        /// Messages from other agents.
        Messages = "messages",
        /// The result was rejected by the verifier.
        Rejected = "rejected",
        /// The text was not a result.
        Nudge = "nudge",
        /// The answer was cut off.
        Smaller = "smaller",
        /// Most of the steps or calls are used.
        Limit = "limit",
        /// Long results of earlier steps are left out of later questions.
        Compacted = "compacted",
    }
}

/// One step of a run, as it is in its row.
#[derive(Clone, Debug, PartialEq)]
pub struct Step {
    /// From 1.
    pub seq: i32,
    /// Its state.
    pub state: StepState,
    /// How often it was begun.
    pub tries: i32,
    /// Whether the assignment that ended it was rejected by the verifier.
    pub rejected: bool,
    /// What it is.
    pub body: StepBody,
}

/// What a step is.
#[derive(Clone, Debug, PartialEq)]
pub enum StepBody {
    /// A text that was put in.
    Note {
        /// Why.
        kind: NoteKind,
        /// The text.
        text: String,
    },
    /// A question to the model, and its answer.
    Model {
        /// The assistant message as received. `None` until it is recorded.
        answer: Option<Value>,
        /// How it ended.
        ending: Option<Ending>,
        /// Whether only the tools that end the run were offered.
        last: bool,
        /// The model that it was sent to last. `None` for one of before there was a choice.
        asked: Option<AskedModel>,
    },
    /// A call of a tool.
    Tool(ToolStep),
}

/// A model that was asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AskedModel {
    /// Name of the provider.
    pub provider: String,
    /// Name of the model at its provider.
    pub model: String,
}

/// A call of a tool.
#[derive(Clone, Debug, PartialEq)]
pub struct ToolStep {
    /// The model step that has the call.
    pub after_seq: i32,
    /// Its place among the calls of that answer, from 0.
    pub place: i32,
    /// The tool. The name that the model gave, if there is no such tool.
    pub name: String,
    /// The arguments. `null` if they could not be read.
    pub args: Value,
    /// SHA-256 of the arguments, in hexadecimal.
    pub args_sha256: String,
    /// What a person made of the arguments when approving.
    pub edited: Option<Value>,
    /// The class of its effect.
    pub effect: Effect,
    /// `None` if the call needs no approval, or nobody has judged yet whether it does.
    pub approval: Option<Approval>,
    /// The idempotency key.
    pub key: String,
    /// What the model is shown.
    pub result: Option<String>,
    /// How many answers the task had when the person was asked.
    pub asked_after: Option<i32>,
    /// Whether it has ended without knowing whether it had its effect.
    pub doubtful: bool,
    /// Time since it was begun last, by the database's clock.
    pub age: std::time::Duration,
}

impl ToolStep {
    /// The arguments that it runs with.
    #[must_use]
    pub fn run_args(&self) -> &Value {
        self.edited.as_ref().unwrap_or(&self.args)
    }

    /// Whether it waits for an approval.
    #[must_use]
    pub fn is_held(&self) -> bool {
        matches!(self.approval, Some(Approval::Asked | Approval::Expired))
    }
}

/// A run: one line of thought of one agent on one task.
#[derive(Clone, Debug)]
pub struct Run {
    /// From 1, within the task.
    pub number: i32,
    /// The definition that it began with: `Definition::hash`.
    pub definition: String,
    /// The body of that definition.
    pub body: Value,
    /// Tokens of its model steps so far.
    pub tokens: u64,
    /// Cost of its model steps so far.
    pub microdollars: u64,
    /// Its steps in order.
    pub steps: Vec<Step>,
}

/// An effect of an earlier run of the same task.
#[derive(Clone, Debug, PartialEq)]
pub struct EarlierEffect {
    /// The tool.
    pub name: String,
    /// SHA-256 of the arguments, in hexadecimal.
    pub args_sha256: String,
    /// `done`, or `unknown` if it is not known whether it happened.
    pub state: StepState,
    /// Its result.
    pub result: Option<String>,
}

/// A call that is recorded with the answer that has it.
#[derive(Clone, Debug, PartialEq)]
pub struct NewCall {
    /// The provider's own id of the call.
    pub wire_id: Option<String>,
    /// The tool.
    pub name: String,
    /// The arguments.
    pub args: Value,
    /// SHA-256 of the arguments, in hexadecimal.
    pub args_sha256: String,
    /// The class of its effect.
    pub effect: Effect,
    /// `planned`, or how it ended without being run.
    pub state: StepState,
    /// The result of a call that is not run.
    pub result: Option<String>,
}

/// The end of a model step.
#[derive(Clone, Debug)]
pub struct ModelEnd {
    /// The assistant message as received.
    pub answer: Value,
    /// How it ended.
    pub ending: Ending,
    /// `finish_reason` of the endpoint.
    pub finish: Option<String>,
    /// The id of the request at its endpoint.
    pub request_id: Option<String>,
    /// The record of the question.
    pub question: Uuid,
    /// What the step used.
    pub used: super::model_question::ModelUsage,
    /// The calls in their order.
    pub calls: Vec<NewCall>,
}
