//! The states of a task, and their words in the database and on the wire.
use serde::{Deserialize, Serialize};

/// State of a task (`docs/spec/negotiation.md` §3).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TaskState {
    /// Waits for dependencies.
    Blocked,
    /// Waits for `run_at`.
    Scheduled,
    /// Collects offers.
    Open,
    /// Waits for the winner to accept.
    Awarded,
    /// Is being worked on.
    Running,
    /// Its result is being checked.
    Verifying,
    /// Waits for input, approval or budget.
    Waiting,
    /// Its assignee was asked to stop.
    Canceling,
    /// Completed.
    Completed,
    /// Failed; the reason says why.
    Failed,
    /// Canceled.
    Canceled,
}

impl TaskState {
    /// All states.
    pub const ALL: [Self; 11] = [
        Self::Blocked,
        Self::Scheduled,
        Self::Open,
        Self::Awarded,
        Self::Running,
        Self::Verifying,
        Self::Waiting,
        Self::Canceling,
        Self::Completed,
        Self::Failed,
        Self::Canceled,
    ];

    /// The word in the database and on the wire.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Blocked => "blocked",
            Self::Scheduled => "scheduled",
            Self::Open => "open",
            Self::Awarded => "awarded",
            Self::Running => "running",
            Self::Verifying => "verifying",
            Self::Waiting => "waiting",
            Self::Canceling => "canceling",
            Self::Completed => "completed",
            Self::Failed => "failed",
            Self::Canceled => "canceled",
        }
    }

    /// The state with this word.
    #[must_use]
    pub fn parse(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|state| state.as_str() == word)
    }

    /// Whether it is an end; only a requeue leaves it.
    #[must_use]
    pub fn is_final(self) -> bool {
        matches!(self, Self::Completed | Self::Failed | Self::Canceled)
    }
}
