//! The state machine of a task, as a pure function (`docs/spec/negotiation.md` §3, §5).
//!
//! It reads no clock and no database. The store locks the row, gets the transition for an event here, and writes
//! exactly that. It fails by refusing: a final state stays final until a requeue, and only a live assignment accepts
//! reports.
use super::{TaskState, WaitFor};

/// State of an assignment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AssignmentState {
    /// Waits for its agent to accept.
    Awarded,
    /// Its agent works.
    Running,
    /// Waits for an answer or a verifier; it holds no slot and no lease.
    Waiting,
    /// Its result was accepted.
    Finished,
    /// Its agent refused it.
    Refused,
    /// Its agent did not answer in time.
    ConfirmTimeout,
    /// Its agent confirmed and did not start in time.
    StartTimeout,
    /// Its agent died, or sent no heartbeat within the lease.
    LeaseLost,
    /// Its agent lived but reported no progress.
    Stalled,
    /// Its agent gave it up.
    Released,
    /// The task was canceled, or the attempt took too long.
    Canceled,
    /// Its agent failed.
    Failed,
    /// Its result did not pass the check.
    Rejected,
}

impl AssignmentState {
    /// All states.
    pub const ALL: [Self; 13] = [
        Self::Awarded,
        Self::Running,
        Self::Waiting,
        Self::Finished,
        Self::Refused,
        Self::ConfirmTimeout,
        Self::StartTimeout,
        Self::LeaseLost,
        Self::Stalled,
        Self::Released,
        Self::Canceled,
        Self::Failed,
        Self::Rejected,
    ];

    /// The state with this word.
    #[must_use]
    pub fn parse(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|state| state.as_str() == word)
    }

    /// The word in the database.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Awarded => "awarded",
            Self::Running => "running",
            Self::Waiting => "waiting",
            Self::Finished => "finished",
            Self::Refused => "refused",
            Self::ConfirmTimeout => "confirm_timeout",
            Self::StartTimeout => "start_timeout",
            Self::LeaseLost => "lease_lost",
            Self::Stalled => "stalled",
            Self::Released => "released",
            Self::Canceled => "canceled",
            Self::Failed => "failed",
            Self::Rejected => "rejected",
        }
    }
}

/// The columns of a task that decide about an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Facts {
    /// Its state.
    pub state: TaskState,
    /// Attempts that started.
    pub attempt: i32,
    /// Attempts that are allowed.
    pub attempts_max: i32,
}

/// An event of a task.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TaskEvent {
    /// All dependencies have ended as needed.
    Unblocked {
        /// Whether its `run_at` has not passed.
        later: bool,
    },
    /// A dependency has failed or was canceled.
    DependencyFailed,
    /// Its `run_at` has passed.
    RunAt,
    /// The backoff is over.
    BackOffOver,
    /// The best offer of a round won.
    Award,
    /// The last allowed round brought no offer.
    RoundsExhausted,
    /// The request cannot be carried out.
    Unworkable,
    /// The winner confirms and starts later.
    Confirm,
    /// The winner accepts and starts.
    Accept,
    /// The winner refuses.
    Refuse,
    /// The winner did not answer in time.
    ConfirmTimeout,
    /// The winner confirmed and did not start in time.
    StartTimeout,
    /// The assignee needs an answer.
    Wait(WaitFor),
    /// The answer has come.
    Answer,
    /// The answer did not come in time.
    AnswerTimeout {
        /// Whether it waited for budget.
        budget: bool,
    },
    /// The assignee delivers its result.
    Finish,
    /// The assignee delivers a result that a verifier must check.
    FinishToVerify,
    /// The verifier accepts the result.
    Verified,
    /// The verification ended without a verdict.
    VerifierFailed,
    /// The result did not pass the check.
    Reject,
    /// The assignee fails.
    Fail {
        /// Whether another attempt may succeed.
        retryable: bool,
    },
    /// A trigger or constraint of the database refuses the result.
    Unstorable,
    /// The assignee gives the task back.
    Release,
    /// The assignee gives the task back for a time, and goes on then. It is the same attempt.
    Defer,
    /// The attempt ended because of an outage: a service is down, or the daemon ended. It does not count.
    Outage {
        /// Whether the assignee ended with it.
        lost: bool,
    },
    /// The assignee died, or its lease ran out.
    LeaseLost,
    /// The attempt took longer than allowed.
    AttemptTimeout,
    /// The assignee reported no progress for too long.
    Stall,
    /// The task is canceled.
    Cancel,
    /// The grace period of a canceled assignee is over.
    GraceOver,
    /// The deadline has passed.
    Deadline,
    /// The task is requeued after its end.
    Requeue {
        /// Whether it depends on others.
        blocked: bool,
    },
}

/// The next step of a task that is open again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// None: the timer of the state, if it has one.
    Rest,
    /// A new round as soon as an agent has a free slot.
    Round,
    /// The next standby offer of the same round.
    Standby,
    /// A new round after the backoff, or at once if another agent can take it.
    RetryLater,
    /// A new round in which the same agent is asked first.
    Same,
}

/// The effect of an event on a task.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Transition {
    /// The new state.
    pub state: TaskState,
    /// The reason, for states that have one.
    pub reason: Option<&'static str>,
    /// The new state of its live assignment; `None` if there is none or it continues.
    pub assignment: Option<AssignmentState>,
    /// The next step.
    pub next: Next,
    /// Whether the attempt does not count: its continuation is the same attempt.
    pub attempt_goes_on: bool,
}

/// A task in this state does not take this event.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the task is {}", state.as_str())]
pub struct InvalidTransition {
    /// Its state.
    pub state: TaskState,
}

impl Facts {
    /// The transition for `event`.
    ///
    /// # Errors
    /// [`InvalidTransition`] when a task in this state does not take it; nothing changes then.
    pub fn next(self, event: TaskEvent) -> Result<Transition, InvalidTransition> {
        use AssignmentState as A;
        use TaskState as S;
        let to = |state, assignment, next| Transition {
            state,
            reason: None,
            assignment,
            next,
            attempt_goes_on: false,
        };
        let because = |state, reason, assignment| Transition {
            reason: Some(reason),
            ..to(state, assignment, Next::Rest)
        };
        let failed = |reason, assignment| because(S::Failed, reason, assignment);
        let again_or = |reason, assignment, next| {
            if self.attempt < self.attempts_max {
                to(S::Open, Some(assignment), next)
            } else {
                failed(reason, Some(assignment))
            }
        };
        let again = |assignment, next| again_or("attempts_exhausted", assignment, next);
        let live = match self.state {
            S::Awarded | S::Running | S::Waiting | S::Verifying | S::Canceling => Some(A::Canceled),
            _ => None,
        };
        Ok(match (self.state, event) {
            (S::Blocked, TaskEvent::Unblocked { later: true }) => to(S::Scheduled, None, Next::Rest),
            (S::Blocked, TaskEvent::Unblocked { later: false }) => to(S::Open, None, Next::Round),
            (S::Blocked, TaskEvent::DependencyFailed) => because(S::Canceled, "dependency", None),
            (S::Scheduled, TaskEvent::RunAt) | (S::Open, TaskEvent::BackOffOver) => {
                to(S::Open, None, Next::Round)
            }
            (S::Open, TaskEvent::Award) => to(S::Awarded, Some(A::Awarded), Next::Rest),
            (S::Open, TaskEvent::RoundsExhausted | TaskEvent::Unworkable) => failed("unallocatable", None),
            (S::Awarded, TaskEvent::Confirm) => to(S::Awarded, None, Next::Rest),
            (S::Awarded, TaskEvent::Accept) => to(S::Running, Some(A::Running), Next::Rest),
            (S::Awarded, TaskEvent::Refuse) => to(S::Open, Some(A::Refused), Next::Standby),
            (S::Awarded, TaskEvent::ConfirmTimeout) => to(S::Open, Some(A::ConfirmTimeout), Next::Standby),
            (S::Awarded, TaskEvent::StartTimeout) => to(S::Open, Some(A::StartTimeout), Next::Standby),
            (S::Awarded, TaskEvent::LeaseLost) => to(S::Open, Some(A::LeaseLost), Next::Standby),
            (S::Running, TaskEvent::Wait(what)) => because(S::Waiting, what.as_str(), Some(A::Waiting)),
            (S::Waiting, TaskEvent::Answer) => {
                Transition { attempt_goes_on: true, ..to(S::Open, Some(A::Released), Next::Same) }
            }
            (S::Waiting, TaskEvent::AnswerTimeout { budget: true }) => failed("budget", live),
            (S::Waiting, TaskEvent::AnswerTimeout { budget: false }) => failed("deadline", live),
            (S::Running | S::Waiting, TaskEvent::Finish) => to(S::Completed, Some(A::Finished), Next::Rest),
            (S::Running | S::Waiting, TaskEvent::FinishToVerify) => {
                to(S::Verifying, Some(A::Waiting), Next::Rest)
            }
            (S::Verifying, TaskEvent::Verified) => to(S::Completed, Some(A::Finished), Next::Rest),
            (S::Verifying, TaskEvent::VerifierFailed) => failed("verification", Some(A::Released)),
            (S::Running | S::Waiting | S::Verifying, TaskEvent::Reject) => {
                again_or("verification", A::Rejected, Next::Same)
            }
            (S::Running | S::Waiting, TaskEvent::Fail { retryable: true }) => {
                again(A::Failed, Next::RetryLater)
            }
            (S::Running | S::Waiting, TaskEvent::Fail { retryable: false }) => {
                failed("attempts_exhausted", Some(A::Failed))
            }
            (S::Running | S::Waiting | S::Verifying, TaskEvent::Unstorable) => {
                failed("result_refused", Some(A::Failed))
            }
            (S::Running | S::Waiting, TaskEvent::Release) => again(A::Released, Next::RetryLater),
            (S::Running | S::Waiting, TaskEvent::Defer) => {
                Transition { attempt_goes_on: true, ..to(S::Open, Some(A::Released), Next::Same) }
            }
            (S::Running | S::Waiting, TaskEvent::Outage { lost }) => {
                let ended = if lost { A::LeaseLost } else { A::Released };
                Transition { attempt_goes_on: true, ..to(S::Open, Some(ended), Next::RetryLater) }
            }
            (S::Running, TaskEvent::LeaseLost) => again(A::LeaseLost, Next::Round),
            (S::Running, TaskEvent::AttemptTimeout) => again(A::Canceled, Next::Round),
            (S::Running, TaskEvent::Stall) => again(A::Stalled, Next::RetryLater),
            // No agent works on it, so there is no grace period.
            (
                S::Blocked | S::Scheduled | S::Open | S::Awarded | S::Waiting | S::Verifying,
                TaskEvent::Cancel,
            ) => to(S::Canceled, live, Next::Rest),
            (S::Running, TaskEvent::Cancel) => to(S::Canceling, None, Next::Rest),
            (
                S::Canceling,
                TaskEvent::GraceOver
                | TaskEvent::Finish
                | TaskEvent::FinishToVerify
                | TaskEvent::Reject
                | TaskEvent::Wait(_)
                | TaskEvent::Fail { .. }
                | TaskEvent::Unstorable
                | TaskEvent::Release
                | TaskEvent::Defer
                | TaskEvent::Outage { .. }
                | TaskEvent::LeaseLost
                | TaskEvent::AttemptTimeout
                | TaskEvent::Deadline,
            ) => to(S::Canceled, live, Next::Rest),
            (state, TaskEvent::Deadline) if !state.is_final() => failed("deadline", live),
            (S::Failed | S::Canceled, TaskEvent::Requeue { blocked: true }) => {
                to(S::Blocked, None, Next::Rest)
            }
            (S::Failed | S::Canceled, TaskEvent::Requeue { blocked: false }) => {
                to(S::Open, None, Next::Round)
            }
            (state, _) => return Err(InvalidTransition { state }),
        })
    }
}

#[cfg(test)]
mod tests;
