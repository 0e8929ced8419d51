//! Commands to tasks and their answers, as data: what the callers send, the group commits batch and the executor
//! carries out.
use crate::id::{OrgId, Requester};
use crate::task::model::schema::SchemaMismatch;
use crate::task::{
    AgentId, AssignmentKey, Error, Failure, Notice, Progress, Question, Start, TaskId, TaskState, Update,
    Usage,
};
use serde_json::Value;
use std::{sync::Arc, time::Duration};

/// What a command does to a task.
#[derive(Clone, Debug)]
pub(in crate::task) enum Action {
    Accept,
    /// Accepts now and starts later.
    Confirm,
    Refuse {
        reason: String,
    },
    Finish {
        /// Shared by the command, the event and the row.
        result: Arc<Value>,
        usage: Usage,
        /// Whether the result fits its schema, as checked between two reads of the row.
        fit: Option<Box<SchemaCheck>>,
    },
    Fail(Failure),
    /// The database refuses the result; the reason has the SQLSTATE.
    Unstorable {
        reason: String,
        usage: Usage,
    },
    Release {
        reason: String,
        checkpoint: Option<Value>,
        /// Whether it is because of an outage: then it counts as no attempt.
        outage: bool,
        /// When the same agent goes on with the same attempt. `None` if the attempt is over.
        after: Option<Duration>,
    },
    /// The assignee needs an answer before it can continue.
    Wait(Box<Question>),
    /// The answer that a task waits for.
    Answer {
        answer: Value,
        by: String,
    },
    Cancel {
        reason: String,
        /// `None` if no principal ordered it, as for the parts of a canceled task.
        by: Option<String>,
    },
    /// The holder is gone: its process ended, its socket closed, or its daemon ended.
    Lost {
        /// Whether its daemon ended.
        daemon: bool,
    },
    /// A timer of the task is due, or a task that it depends on has ended. The rows say which.
    Timer,
}

impl Action {
    /// Whether it reports what the assignment used.
    pub(in crate::task) fn reports_usage(&self) -> bool {
        matches!(self, Self::Finish { .. } | Self::Fail(_) | Self::Unstorable { .. } | Self::Wait(_))
    }
}

/// The verdict on a result, and the schema that it is about.
#[derive(Clone, Debug)]
pub(in crate::task) struct SchemaCheck {
    pub(in crate::task) schema: Value,
    pub(in crate::task) verdict: Result<(), SchemaMismatch>,
}

/// A command, and the assignment that gives the right to it.
#[derive(Clone, Debug)]
pub(in crate::task) struct TaskCommand {
    pub(in crate::task) task: TaskId,
    /// The assignment that reports; `None` for commands on the task itself.
    pub(in crate::task) holder: Option<(AssignmentKey, AgentId)>,
    pub(in crate::task) action: Action,
}

/// The answer to a command.
#[derive(Clone, Debug)]
pub(in crate::task) enum CommandReply {
    Started(Box<Start>),
    Moved(Update),
    /// Nothing was to be done.
    Nothing,
    /// Nothing was done: the result must be checked against this schema first, in the turns of the task's requester.
    Unchecked(Value, Option<(OrgId, Requester)>),
}

/// A report of an assignee: it lives, with or without evidence of work.
#[derive(Clone, Debug)]
pub(in crate::task) struct Report {
    pub(in crate::task) key: AssignmentKey,
    pub(in crate::task) agent: AgentId,
    pub(in crate::task) evidence: Option<Progress>,
}

/// The effects of a batch, to be published after the commit.
#[derive(Debug, Default)]
pub(in crate::task) struct BatchOutcome {
    pub(in crate::task) answers: Vec<Result<CommandReply, Error>>,
    pub(in crate::task) notices: Vec<Notice>,
    /// Agents whose slots became free, one entry for each slot.
    pub(in crate::task) freed: Vec<AgentId>,
    /// Tasks whose round is over.
    pub(in crate::task) closing: Vec<TaskId>,
    /// Whether a task is due before the arbiter polls by itself.
    pub(in crate::task) soon: bool,
    /// Whether a task ended that others depend on or are parts of, which the arbiter moves.
    pub(in crate::task) leads_on: bool,
}

impl BatchOutcome {
    /// Whether the arbiter must poll.
    pub(in crate::task) fn leaves_work(&self) -> bool {
        self.soon || self.leads_on || !self.freed.is_empty() || self.notices.iter().any(reopens)
    }
}

/// Whether the arbiter has something to do for the task: a round to open, or a grace period to end.
pub(in crate::task) fn reopens(notice: &Notice) -> bool {
    matches!(notice, Notice::Updated(update) if matches!(update.state, TaskState::Open | TaskState::Canceling))
}
