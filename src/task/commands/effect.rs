//! What a decision reads and what it makes: its inputs, the cause of an event, and the effect to be written.
use crate::id::{AgentId, TaskId};
use crate::task::commands::dependents::Verification;
use crate::task::model::policies::Policies;
use crate::task::rounds::roster::Roster;
use crate::task::storage::locked_task::{LiveAssignment, LockedTask};
use crate::task::storage::rows::Unreadable;
use crate::task::storage::store::Settled;
use crate::task::{AssignmentKey, Error, Policy};
use serde_json::Value;

/// What a decision needs besides the row and the command.
#[derive(Clone, Copy)]
pub(in crate::task) struct Inputs<'a> {
    pub(in crate::task) policies: &'a Policies,
    pub(in crate::task) roster: &'a Roster,
    /// Makes the id of a verification.
    pub(in crate::task) new_id: fn() -> TaskId,
}

/// What is to be written.
pub(in crate::task) enum Effect {
    Start {
        live: LiveAssignment,
        policy: Policy,
    },
    /// A repeated accept, whose first answer was lost.
    Again {
        live: LiveAssignment,
        policy: Policy,
    },
    Settle {
        settled: Box<Settled>,
        stop: Option<(AgentId, AssignmentKey)>,
        answer: Result<(), Error>,
        verification: Option<Verification>,
    },
    /// The winner starts within so many milliseconds.
    Confirm {
        live: LiveAssignment,
        start_ms: i64,
    },
    /// The round is over: the arbiter closes it.
    Close,
    SetDue(i64),
    MarkReady,
    /// It has no due time: the end of the tasks that it depends on wakes it.
    ClearTimer,
    Nudge {
        live: LiveAssignment,
        wait_ms: i64,
    },
    /// The question is published again and waits as long again.
    Escalate(i64),
    /// A repeated command: the answer is the task as it is.
    CommandReply,
    /// The result must be checked against this schema first.
    Check(Value),
}

/// The cause of an event that no command names, and what follows from it.
#[derive(Default)]
pub(in crate::task) struct Cause {
    pub(in crate::task) rejected: Option<String>,
    /// Why there is no verdict of the verifier.
    pub(in crate::task) unverified: Option<String>,
    pub(in crate::task) verification: Option<Verification>,
    /// Whether the assignee ended with its daemon.
    pub(in crate::task) daemon_ended: bool,
}

/// The policy of a task.
///
/// # Errors
/// [`Unreadable`] for a policy that cannot be used.
pub(in crate::task) fn policy_of(policies: &Policies, row: &LockedTask) -> Result<Policy, Error> {
    policies.of_task(&row.kind, &row.policy).map_err(|why| Unreadable::new("policy", why).into())
}
