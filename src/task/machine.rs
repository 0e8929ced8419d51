//! The life of a task as a pure function (`reference/negotiation.md` §3, §5).
//!
//! It reads no clock and no database. The store locks the row, asks here what an
//! event makes of it, and writes exactly that. It fails by refusing: a final state
//! stays final, and only a live assignment can be reported on.
use super::TaskState;

/// State of an assignment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AssignmentState {
    /// Waits for its agent to accept.
    Awarded,
    /// Its agent works.
    Running,
    /// Its agent waits for a person or for budget.
    Waiting,
    /// Its result was accepted.
    Finished,
    /// Its agent refused it.
    Refused,
    /// Its agent did not answer in time.
    ConfirmTimeout,
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
    /// The winner accepts and starts.
    Accept,
    /// The winner refuses.
    Refuse,
    /// The winner did not answer in time.
    ConfirmTimeout,
    /// The assignee delivers.
    Finish,
    /// The assignee delivers what does not pass the check.
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
        let to = |state, assignment, next| Step { state, reason: None, assignment, next };
        let failed = |reason, assignment| Step {
            state: S::Failed,
            reason: Some(reason),
            assignment,
            next: Next::Rest,
        };
        let again = |assignment, next| {
            if self.attempt < self.attempts_max {
                to(S::Open, Some(assignment), next)
            } else {
                failed("attempts_exhausted", Some(assignment))
            }
        };
        let live = match self.state {
            S::Awarded | S::Running | S::Waiting | S::Verifying | S::Canceling => Some(A::Canceled),
            _ => None,
        };
        Ok(match (self.state, event) {
            (S::Scheduled, Event::RunAt) | (S::Open, Event::BackOffOver) => to(S::Open, None, Next::Round),
            (S::Open, Event::Award) => to(S::Awarded, Some(A::Awarded), Next::Rest),
            (S::Open, Event::RoundsExhausted) => failed("unallocatable", None),
            (S::Open, Event::Unworkable) => failed("bad_request", None),
            (S::Awarded, Event::Accept) => to(S::Running, Some(A::Running), Next::Rest),
            (S::Awarded, Event::Refuse) => to(S::Open, Some(A::Refused), Next::Standby),
            (S::Awarded, Event::ConfirmTimeout) => to(S::Open, Some(A::ConfirmTimeout), Next::Standby),
            (S::Awarded, Event::LeaseLost) => to(S::Open, Some(A::LeaseLost), Next::Standby),
            (S::Running, Event::Finish) => to(S::Completed, Some(A::Finished), Next::Rest),
            (S::Running, Event::Reject) => again(A::Rejected, Next::RetryLater),
            (S::Running, Event::Fail { retryable: true }) => again(A::Failed, Next::RetryLater),
            (S::Running, Event::Fail { retryable: false }) => failed("not_retryable", Some(A::Failed)),
            (S::Running | S::Waiting, Event::Release) => again(A::Released, Next::RetryLater),
            (S::Running | S::Waiting, Event::LeaseLost) => again(A::LeaseLost, Next::Round),
            (S::Running, Event::AttemptTimeout) => again(A::Canceled, Next::Round),
            (S::Running, Event::Stall) => again(A::Stalled, Next::Round),
            (S::Blocked | S::Scheduled | S::Open | S::Awarded, Event::Cancel) => {
                to(S::Canceled, live, Next::Rest)
            }
            (S::Running | S::Waiting | S::Verifying, Event::Cancel) => to(S::Canceling, None, Next::Rest),
            (
                S::Canceling,
                Event::GraceOver
                | Event::Finish
                | Event::Reject
                | Event::Fail { .. }
                | Event::Release
                | Event::LeaseLost
                | Event::AttemptTimeout,
            ) => to(S::Canceled, live, Next::Rest),
            (state, Event::Deadline) if !state.is_final() => failed("deadline", live),
            (state, _) => return Err(Refused { state }),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const EVENTS: [Event; 19] = [
        Event::RunAt,
        Event::BackOffOver,
        Event::Award,
        Event::RoundsExhausted,
        Event::Unworkable,
        Event::Accept,
        Event::Refuse,
        Event::ConfirmTimeout,
        Event::Finish,
        Event::Reject,
        Event::Fail { retryable: true },
        Event::Fail { retryable: false },
        Event::Release,
        Event::LeaseLost,
        Event::AttemptTimeout,
        Event::Stall,
        Event::Cancel,
        Event::GraceOver,
        Event::Deadline,
    ];

    fn facts(state: TaskState, attempt: i32) -> Facts {
        Facts { state, attempt, attempts_max: 3 }
    }

    #[test]
    fn a_final_state_takes_no_event() {
        for state in TaskState::ALL.into_iter().filter(|state| state.is_final()) {
            for event in EVENTS {
                assert_eq!(facts(state, 1).next(event), Err(Refused { state }), "{event:?}");
            }
        }
    }

    #[test]
    fn the_last_attempt_that_fails_ends_the_task() {
        for event in [Event::Fail { retryable: true }, Event::LeaseLost, Event::Stall, Event::Release] {
            let step = facts(TaskState::Running, 3).next(event).unwrap();
            assert_eq!(
                (step.state, step.reason),
                (TaskState::Failed, Some("attempts_exhausted")),
                "{event:?}"
            );
            assert_eq!(facts(TaskState::Running, 2).next(event).unwrap().state, TaskState::Open, "{event:?}");
        }
    }

    #[test]
    fn a_death_before_the_start_is_no_attempt() {
        for event in [Event::Refuse, Event::ConfirmTimeout, Event::LeaseLost] {
            let step = facts(TaskState::Awarded, 3).next(event).unwrap();
            assert_eq!((step.state, step.next), (TaskState::Open, Next::Standby));
        }
    }

    #[test]
    fn a_word_reads_as_it_is_written() {
        for state in TaskState::ALL {
            assert_eq!(TaskState::parse(state.as_str()), Some(state));
        }
        assert_eq!(TaskState::parse("done"), None);
    }

    proptest! {
        /// Any sequence: a live assignment exists exactly in the states that need one, a failed
        /// state has a reason, and a task that can never end does not exist.
        #[test]
        fn no_sequence_of_events_breaks_a_task(events in prop::collection::vec(0..EVENTS.len(), 0..60)) {
            let mut now = facts(TaskState::Open, 0);
            let mut live = false;
            for event in events.into_iter().map(|at| EVENTS[at]) {
                let Ok(step) = now.next(event) else { continue };
                match step.assignment {
                    Some(AssignmentState::Awarded) => { prop_assert!(!live); live = true; }
                    Some(AssignmentState::Running) => { prop_assert!(live); now.attempt += 1; }
                    Some(_) => { prop_assert!(live); live = false; }
                    None => {}
                }
                now.state = step.state;
                let needs = matches!(now.state, TaskState::Awarded | TaskState::Running | TaskState::Canceling);
                prop_assert_eq!(live, needs, "{:?} after {:?}", now.state, event);
                prop_assert_eq!(now.state == TaskState::Failed, step.reason.is_some());
                prop_assert!(now.attempt <= now.attempts_max);
            }
        }
    }
}
