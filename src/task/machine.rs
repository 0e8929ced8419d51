//! The life of a task as a pure function (`reference/negotiation.md` §3, §5).
//!
//! It reads no clock and no database. The store locks the row, asks here what an
//! event makes of it, and writes exactly that. It fails by refusing: a final state
//! stays final unless someone requeues it, and only a live assignment can be reported on.
use super::{TaskState, WaitFor};

/// State of an assignment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AssignmentState {
    /// Waits for its agent to accept.
    Awarded,
    /// Its agent works.
    Running,
    /// A person, budget or a verifier is waited for; it holds no slot and no lease.
    Waiting,
    /// Its result was accepted.
    Finished,
    /// Its agent refused it.
    Refused,
    /// Its agent did not answer in time.
    ConfirmTimeout,
    /// Its agent confirmed and did not start in time.
    StartTimeout,
    /// Its agent died, or was silent for longer than the lease.
    LeaseLost,
    /// Its agent lived but showed no work.
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

    /// Whether nothing can change it any more.
    #[must_use]
    pub fn is_final(self) -> bool {
        matches!(self, Self::Completed | Self::Failed | Self::Canceled)
    }
}

/// What is known of a task when something happens to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Facts {
    /// Where it is.
    pub state: TaskState,
    /// Attempts that started.
    pub attempt: i32,
    /// Attempts that are allowed.
    pub attempts_max: i32,
}

/// What happens to a task.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// All that it depends on has ended as it needs.
    Unblocked {
        /// Whether its `run_at` is still to come.
        later: bool,
    },
    /// Something that it depends on has failed or was canceled.
    DependencyFailed,
    /// Its `run_at` has come.
    RunAt,
    /// A back-off is over.
    BackOffOver,
    /// The best offer of a round won.
    Award,
    /// The last allowed round brought no offer.
    RoundsExhausted,
    /// The request itself cannot be carried out.
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
    /// The assignee needs a person or budget.
    Wait(WaitFor),
    /// What it waited for has come.
    Answer,
    /// What it waited for did not come in time.
    AnswerTimeout {
        /// Whether it was budget.
        budget: bool,
    },
    /// The assignee delivers.
    Finish,
    /// The assignee delivers what a verifier has to look at.
    FinishToVerify,
    /// The verifier accepts the result.
    Verified,
    /// The verifier could not say anything.
    VerifierFailed,
    /// The assignee delivered what does not pass the check.
    Reject,
    /// The assignee fails.
    Fail {
        /// Whether another attempt may do better.
        retryable: bool,
    },
    /// The assignee gives up.
    Release,
    /// The assignee died, or its lease ran out.
    LeaseLost,
    /// The attempt took longer than allowed.
    AttemptTimeout,
    /// The assignee shows no work.
    Stall,
    /// Someone cancels the task.
    Cancel,
    /// A canceled assignee had time enough to stop.
    GraceOver,
    /// The deadline has come.
    Deadline,
    /// Someone wants it tried again after its end.
    Requeue {
        /// Whether it depends on others.
        blocked: bool,
    },
}

/// What to do with a task that is open again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// Nothing by itself: the state's own timer, or none.
    Rest,
    /// A new round as soon as an agent has a free slot.
    Round,
    /// The next standby offer of the same round.
    Standby,
    /// A new round after the back-off, unless another agent can take it at once.
    RetryLater,
    /// A new round in which the same agent is asked first.
    Same,
}

/// What an event makes of a task.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Step {
    /// Where it goes.
    pub state: TaskState,
    /// Why, for states that need a reason.
    pub reason: Option<&'static str>,
    /// What its live assignment becomes; nothing when there is none or it goes on.
    pub assignment: Option<AssignmentState>,
    /// What comes then.
    pub next: Next,
    /// Whether the attempt that ends with this was none: its continuation is the same attempt.
    pub attempt_goes_on: bool,
}

/// A task in this state does not take this event.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the task is {}", state.as_str())]
pub struct Refused {
    /// Where it is.
    pub state: TaskState,
}

impl Facts {
    /// What `event` makes of the task.
    ///
    /// # Errors
    /// [`Refused`] when a task in this state does not take it; nothing changes then.
    pub fn next(self, event: Event) -> Result<Step, Refused> {
        use AssignmentState as A;
        use TaskState as S;
        let to =
            |state, assignment, next| Step { state, reason: None, assignment, next, attempt_goes_on: false };
        let because =
            |state, reason, assignment| Step { reason: Some(reason), ..to(state, assignment, Next::Rest) };
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
            (S::Blocked, Event::Unblocked { later: true }) => to(S::Scheduled, None, Next::Rest),
            (S::Blocked, Event::Unblocked { later: false }) => to(S::Open, None, Next::Round),
            (S::Blocked, Event::DependencyFailed) => because(S::Canceled, "dependency", None),
            (S::Scheduled, Event::RunAt) | (S::Open, Event::BackOffOver) => to(S::Open, None, Next::Round),
            (S::Open, Event::Award) => to(S::Awarded, Some(A::Awarded), Next::Rest),
            (S::Open, Event::RoundsExhausted | Event::Unworkable) => failed("unallocatable", None),
            (S::Awarded, Event::Confirm) => to(S::Awarded, None, Next::Rest),
            (S::Awarded, Event::Accept) => to(S::Running, Some(A::Running), Next::Rest),
            (S::Awarded, Event::Refuse) => to(S::Open, Some(A::Refused), Next::Standby),
            (S::Awarded, Event::ConfirmTimeout) => to(S::Open, Some(A::ConfirmTimeout), Next::Standby),
            (S::Awarded, Event::StartTimeout) => to(S::Open, Some(A::StartTimeout), Next::Standby),
            (S::Awarded, Event::LeaseLost) => to(S::Open, Some(A::LeaseLost), Next::Standby),
            (S::Running, Event::Wait(what)) => because(S::Waiting, what.as_str(), Some(A::Waiting)),
            (S::Waiting, Event::Answer) => {
                Step { attempt_goes_on: true, ..to(S::Open, Some(A::Released), Next::Same) }
            }
            (S::Waiting, Event::AnswerTimeout { budget: true }) => failed("budget", live),
            (S::Waiting, Event::AnswerTimeout { budget: false }) => failed("deadline", live),
            (S::Running | S::Waiting, Event::Finish) => to(S::Completed, Some(A::Finished), Next::Rest),
            (S::Running | S::Waiting, Event::FinishToVerify) => {
                to(S::Verifying, Some(A::Waiting), Next::Rest)
            }
            (S::Verifying, Event::Verified) => to(S::Completed, Some(A::Finished), Next::Rest),
            (S::Verifying, Event::VerifierFailed) => failed("verification", Some(A::Released)),
            (S::Running | S::Waiting | S::Verifying, Event::Reject) => {
                again_or("verification", A::Rejected, Next::Same)
            }
            (S::Running | S::Waiting, Event::Fail { retryable: true }) => again(A::Failed, Next::RetryLater),
            (S::Running | S::Waiting, Event::Fail { retryable: false }) => {
                failed("attempts_exhausted", Some(A::Failed))
            }
            (S::Running | S::Waiting, Event::Release) => again(A::Released, Next::RetryLater),
            (S::Running, Event::LeaseLost) => again(A::LeaseLost, Next::Round),
            (S::Running, Event::AttemptTimeout) => again(A::Canceled, Next::Round),
            (S::Running, Event::Stall) => again(A::Stalled, Next::RetryLater),
            // Nobody works on it, so nobody has to be given time to stop.
            (S::Blocked | S::Scheduled | S::Open | S::Awarded | S::Waiting | S::Verifying, Event::Cancel) => {
                to(S::Canceled, live, Next::Rest)
            }
            (S::Running, Event::Cancel) => to(S::Canceling, None, Next::Rest),
            (
                S::Canceling,
                Event::GraceOver
                | Event::Finish
                | Event::FinishToVerify
                | Event::Reject
                | Event::Wait(_)
                | Event::Fail { .. }
                | Event::Release
                | Event::LeaseLost
                | Event::AttemptTimeout
                | Event::Deadline,
            ) => to(S::Canceled, live, Next::Rest),
            (state, Event::Deadline) if !state.is_final() => failed("deadline", live),
            (S::Failed | S::Canceled, Event::Requeue { blocked: true }) => to(S::Blocked, None, Next::Rest),
            (S::Failed | S::Canceled, Event::Requeue { blocked: false }) => to(S::Open, None, Next::Round),
            (state, _) => return Err(Refused { state }),
        })
    }
}

#[cfg(test)]
mod tests;
