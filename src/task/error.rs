//! What can go wrong with a command, made for the caller's next decision.
use super::TaskState;
use crate::{
    db,
    id::{AgentId, TaskId},
};

/// Why a command did nothing. The text is safe to show to a client.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The command itself is wrong; the text says what to change.
    #[error("{0}")]
    BadRequest(String),
    /// There is no such task, or it is not the asker's.
    #[error("there is no task {0}")]
    UnknownTask(TaskId),
    /// There is no such agent.
    #[error("there is no agent {0}")]
    UnknownAgent(AgentId),
    /// The agent may not offer on this task.
    #[error("agent {0} is not eligible for this task: its org or capabilities do not match, or it is gone")]
    NotEligible(AgentId),
    /// The agent has more offers under way than it could take.
    #[error("agent {agent} has {open} offers under way already; with its free slots it may have {most}")]
    Overbid {
        /// Who.
        agent: AgentId,
        /// How many it has.
        open: usize,
        /// How many it may have.
        most: usize,
    },
    /// The round is over.
    #[error("the offer is late: the round has closed")]
    Late,
    /// The task is in a state that does not take the command.
    #[error("the task is {}", state.as_str())]
    Conflict {
        /// Where it is.
        state: TaskState,
    },
    /// What the task is a part of takes no parts any more.
    #[error("its parent {parent} is {}", state.as_str())]
    ParentEnded {
        /// The parent.
        parent: TaskId,
        /// Where that is.
        state: TaskState,
    },
    /// The assignment is over; what its holder reports no longer counts.
    #[error("the assignment is over: the task was given to another, canceled or ended")]
    Fenced,
    /// The key was used with another request.
    #[error("the idempotency key was used for another request (task {0})")]
    IdempotencyConflict(TaskId),
    /// The asker may not do this.
    #[error("{0}")]
    Forbidden(String),
    /// Something is larger than allowed.
    #[error("{what} has {bytes} bytes; at most {bytes_max} are allowed")]
    TooLarge {
        /// What is too large.
        what: &'static str,
        /// How large it is.
        bytes: usize,
        /// How large it may be.
        bytes_max: usize,
    },
    /// Something is full; try again.
    #[error("{0}")]
    Busy(String),
    /// The database cannot be reached, or the daemon is stopping; try again.
    #[error("the task store is not available now; try again")]
    Unavailable(#[source] Option<db::Error>),
    /// A bug: logged with its cause, shown without.
    #[error("internal error")]
    Internal(#[source] db::Error),
}

impl Error {
    /// The code on the wire (`reference/negotiation.md` §6).
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::BadRequest(_) => "bad_request",
            Self::UnknownTask(_) => "unknown_task",
            Self::UnknownAgent(_) => "unknown_agent",
            Self::NotEligible(_) | Self::Overbid { .. } => "not_eligible",
            Self::Late => "late",
            Self::Conflict { .. } | Self::ParentEnded { .. } => "conflict",
            Self::Fenced => "fenced",
            Self::IdempotencyConflict(_) => "idempotency_conflict",
            Self::Forbidden(_) => "forbidden",
            Self::TooLarge { .. } => "too_large",
            Self::Busy(_) | Self::Unavailable(_) => "unavailable",
            Self::Internal(_) => "internal",
        }
    }
}

impl From<db::Error> for Error {
    fn from(error: db::Error) -> Self {
        if error.is_transient() { Self::Unavailable(Some(error)) } else { Self::Internal(error) }
    }
}
