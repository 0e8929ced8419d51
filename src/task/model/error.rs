//! Errors of commands, by what the caller can do about them.
use crate::task::TaskState;
use crate::{
    db,
    id::{AgentId, TaskId},
};
use tokio_postgres::error::SqlState;

/// Why a command did nothing. The text may be shown to a client.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The command is wrong; the text says what to change.
    #[error("{0}")]
    BadRequest(String),
    /// There is no such task, or the caller may not see it.
    #[error("there is no task {0}")]
    UnknownTask(TaskId),
    /// There is no such agent.
    #[error("there is no agent {0}")]
    UnknownAgent(AgentId),
    /// The agent may not offer on this task.
    #[error("agent {0} is not eligible for this task: its org or capabilities do not match, or it is gone")]
    NotEligible(AgentId),
    /// The agent has more open offers than it could take.
    #[error("agent {agent} has {open} offers under way already; with its free slots it may have {most}")]
    Overbid {
        /// The agent.
        agent: AgentId,
        /// Its open offers.
        open: usize,
        /// The open offers that it may have.
        most: usize,
    },
    /// The round is over.
    #[error("the offer is late: the round has closed")]
    Late,
    /// The task is in a state that does not take the command.
    #[error("the task is {}", state.as_str())]
    Conflict {
        /// Its state.
        state: TaskState,
    },
    /// The parent has ended or is being canceled, so it takes no more parts.
    #[error("its parent {parent} is {}", state.as_str())]
    ParentEnded {
        /// The parent.
        parent: TaskId,
        /// Its state.
        state: TaskState,
    },
    /// The assignment is over; reports of its holder are rejected.
    #[error("the assignment is over: the task was given to another, canceled or ended")]
    Fenced,
    /// The key was used with another request.
    #[error("the idempotency key was used for another request (task {0})")]
    IdempotencyConflict(TaskId),
    /// The caller may not do this.
    #[error("{0}")]
    Forbidden(String),
    /// Something is larger than allowed.
    #[error("{what} has {bytes} bytes; at most {bytes_max} are allowed")]
    TooLarge {
        /// The name of the value.
        what: &'static str,
        /// Its size.
        bytes: usize,
        /// Its largest size.
        bytes_max: usize,
    },
    /// Something is full; try again.
    #[error("{0}")]
    Busy(String),
    /// The database cannot store a value of the command; the sender must change it.
    #[error("the database cannot hold a value of this: {0}")]
    Unstorable(String),
    /// A trigger or a constraint of the database's owner refuses the result; the task has failed.
    #[error("the database refuses to keep the result (SQLSTATE {0}): the task has failed with it")]
    ResultRefused(String),
    /// The database cannot be reached, or the daemon is stopping; try again.
    #[error("the task store is not available now; try again")]
    Unavailable(#[source] Option<db::Error>),
    /// A row has a state that this version does not know. Only a newer daemon can work with it.
    #[error("{0}")]
    NewerSchema(String),
    /// A bug: logged with its cause, shown without.
    #[error("internal error")]
    Internal(#[source] db::Error),
}

impl Error {
    /// The code on the wire (`docs/spec/negotiation.md` §6).
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::BadRequest(_) | Self::Unstorable(_) => "bad_request",
            Self::UnknownTask(_) => "unknown_task",
            Self::UnknownAgent(_) => "unknown_agent",
            Self::NotEligible(_) | Self::Overbid { .. } => "not_eligible",
            Self::Late => "late",
            Self::Conflict { .. } | Self::ParentEnded { .. } | Self::ResultRefused(_) => "conflict",
            Self::Fenced => "fenced",
            Self::IdempotencyConflict(_) => "idempotency_conflict",
            Self::Forbidden(_) => "forbidden",
            Self::TooLarge { .. } => "too_large",
            Self::Busy(_) | Self::Unavailable(_) => "unavailable",
            Self::NewerSchema(_) | Self::Internal(_) => "internal",
        }
    }
}

impl Error {
    /// Why the database refused, without the text of the database, which may hold values of the row.
    pub(in crate::task) fn refusal(&self) -> String {
        match self {
            Self::Internal(cause) => match cause.sqlstate() {
                Some(state) => format!("SQLSTATE {}", state.code()),
                None => "it could not be sent".into(),
            },
            other => other.to_string(),
        }
    }
}

impl From<db::Error> for Error {
    fn from(error: db::Error) -> Self {
        if error.is_transient() {
            return Self::Unavailable(Some(error));
        }
        match error.sqlstate().and_then(unstorable) {
            Some(why) => Self::Unstorable(why),
            None => Self::Internal(error),
        }
    }
}

/// Why the database does not store a value (SQLSTATE class 22), without the text of the database, which quotes it.
fn unstorable(sqlstate: &SqlState) -> Option<String> {
    let code = sqlstate.code();
    let why = match *sqlstate {
        SqlState::CHARACTER_NOT_IN_REPERTOIRE | SqlState::UNTRANSLATABLE_CHARACTER => {
            "it has a character that the encoding of the database lacks"
        }
        SqlState::DATETIME_FIELD_OVERFLOW | SqlState::INVALID_DATETIME_FORMAT => {
            "it has a time outside of the range of the database"
        }
        SqlState::NUMERIC_VALUE_OUT_OF_RANGE => "it has a number outside of the range of its column",
        _ if code.starts_with("22") => "it has a value of a form that it does not take",
        _ => return None,
    };
    Some(format!("{why} (SQLSTATE {code})"))
}
