//! Every state with every event, and properties of any sequence of events.
use super::*;
use proptest::prelude::*;

const EVENTS: [TaskEvent; 37] = [
    TaskEvent::Unblocked { later: true },
    TaskEvent::Unblocked { later: false },
    TaskEvent::DependencyFailed,
    TaskEvent::RunAt,
    TaskEvent::BackOffOver,
    TaskEvent::Award,
    TaskEvent::RoundsExhausted,
    TaskEvent::Unworkable,
    TaskEvent::Confirm,
    TaskEvent::Accept,
    TaskEvent::Refuse,
    TaskEvent::ConfirmTimeout,
    TaskEvent::StartTimeout,
    TaskEvent::Wait(WaitFor::Input),
    TaskEvent::Answer,
    TaskEvent::AnswerTimeout { budget: false },
    TaskEvent::AnswerTimeout { budget: true },
    TaskEvent::Finish,
    TaskEvent::FinishToVerify,
    TaskEvent::Verified,
    TaskEvent::VerifierFailed,
    TaskEvent::Reject,
    TaskEvent::Fail { retryable: true },
    TaskEvent::Fail { retryable: false },
    TaskEvent::Unstorable,
    TaskEvent::Release,
    TaskEvent::Defer,
    TaskEvent::Outage { lost: false },
    TaskEvent::Outage { lost: true },
    TaskEvent::LeaseLost,
    TaskEvent::AttemptTimeout,
    TaskEvent::Stall,
    TaskEvent::Cancel,
    TaskEvent::GraceOver,
    TaskEvent::Deadline,
    TaskEvent::Requeue { blocked: true },
    TaskEvent::Requeue { blocked: false },
];

/// What each event makes of a task in each state, in the order of [`TaskState::ALL`] without the final
/// states of success: blocked, scheduled, open, awarded, running, verifying, waiting, canceling, completed,
/// failed, canceled. `.` is refused, else the first two letters of the state that follows; the second word
/// of a cell is what the live assignment becomes.
const TABLE: [(&str, [&str; 11]); 37] = [
    ("Unblocked { later: true }", ["scheduled", ".", ".", ".", ".", ".", ".", ".", ".", ".", "."]),
    ("Unblocked { later: false }", ["open", ".", ".", ".", ".", ".", ".", ".", ".", ".", "."]),
    ("DependencyFailed", ["canceled", ".", ".", ".", ".", ".", ".", ".", ".", ".", "."]),
    ("RunAt", [".", "open", ".", ".", ".", ".", ".", ".", ".", ".", "."]),
    ("BackOffOver", [".", ".", "open", ".", ".", ".", ".", ".", ".", ".", "."]),
    ("Award", [".", ".", "awarded awarded", ".", ".", ".", ".", ".", ".", ".", "."]),
    ("RoundsExhausted", [".", ".", "failed", ".", ".", ".", ".", ".", ".", ".", "."]),
    ("Unworkable", [".", ".", "failed", ".", ".", ".", ".", ".", ".", ".", "."]),
    ("Confirm", [".", ".", ".", "awarded", ".", ".", ".", ".", ".", ".", "."]),
    ("Accept", [".", ".", ".", "running running", ".", ".", ".", ".", ".", ".", "."]),
    ("Refuse", [".", ".", ".", "open refused", ".", ".", ".", ".", ".", ".", "."]),
    ("ConfirmTimeout", [".", ".", ".", "open confirm_timeout", ".", ".", ".", ".", ".", ".", "."]),
    ("StartTimeout", [".", ".", ".", "open start_timeout", ".", ".", ".", ".", ".", ".", "."]),
    ("Wait(Input)", [".", ".", ".", ".", "waiting waiting", ".", ".", "canceled canceled", ".", ".", "."]),
    ("Answer", [".", ".", ".", ".", ".", ".", "open released", ".", ".", ".", "."]),
    (
        "AnswerTimeout { budget: false }",
        [".", ".", ".", ".", ".", ".", "failed canceled", ".", ".", ".", "."],
    ),
    ("AnswerTimeout { budget: true }", [".", ".", ".", ".", ".", ".", "failed canceled", ".", ".", ".", "."]),
    (
        "Finish",
        [
            ".",
            ".",
            ".",
            ".",
            "completed finished",
            ".",
            "completed finished",
            "canceled canceled",
            ".",
            ".",
            ".",
        ],
    ),
    (
        "FinishToVerify",
        [
            ".",
            ".",
            ".",
            ".",
            "verifying waiting",
            ".",
            "verifying waiting",
            "canceled canceled",
            ".",
            ".",
            ".",
        ],
    ),
    ("Verified", [".", ".", ".", ".", ".", "completed finished", ".", ".", ".", ".", "."]),
    ("VerifierFailed", [".", ".", ".", ".", ".", "failed released", ".", ".", ".", ".", "."]),
    (
        "Reject",
        [
            ".",
            ".",
            ".",
            ".",
            "open rejected",
            "open rejected",
            "open rejected",
            "canceled canceled",
            ".",
            ".",
            ".",
        ],
    ),
    (
        "Fail { retryable: true }",
        [".", ".", ".", ".", "open failed", ".", "open failed", "canceled canceled", ".", ".", "."],
    ),
    (
        "Fail { retryable: false }",
        [".", ".", ".", ".", "failed failed", ".", "failed failed", "canceled canceled", ".", ".", "."],
    ),
    (
        "Unstorable",
        [
            ".",
            ".",
            ".",
            ".",
            "failed failed",
            "failed failed",
            "failed failed",
            "canceled canceled",
            ".",
            ".",
            ".",
        ],
    ),
    (
        "Release",
        [".", ".", ".", ".", "open released", ".", "open released", "canceled canceled", ".", ".", "."],
    ),
    (
        "Defer",
        [".", ".", ".", ".", "open released", ".", "open released", "canceled canceled", ".", ".", "."],
    ),
    (
        "Outage { lost: false }",
        [".", ".", ".", ".", "open released", ".", "open released", "canceled canceled", ".", ".", "."],
    ),
    (
        "Outage { lost: true }",
        [".", ".", ".", ".", "open lease_lost", ".", "open lease_lost", "canceled canceled", ".", ".", "."],
    ),
    (
        "LeaseLost",
        [".", ".", ".", "open lease_lost", "open lease_lost", ".", ".", "canceled canceled", ".", ".", "."],
    ),
    ("AttemptTimeout", [".", ".", ".", ".", "open canceled", ".", ".", "canceled canceled", ".", ".", "."]),
    ("Stall", [".", ".", ".", ".", "open stalled", ".", ".", ".", ".", ".", "."]),
    (
        "Cancel",
        [
            "canceled",
            "canceled",
            "canceled",
            "canceled canceled",
            "canceling",
            "canceled canceled",
            "canceled canceled",
            ".",
            ".",
            ".",
            ".",
        ],
    ),
    ("GraceOver", [".", ".", ".", ".", ".", ".", ".", "canceled canceled", ".", ".", "."]),
    (
        "Deadline",
        [
            "failed",
            "failed",
            "failed",
            "failed canceled",
            "failed canceled",
            "failed canceled",
            "failed canceled",
            "canceled canceled",
            ".",
            ".",
            ".",
        ],
    ),
    ("Requeue { blocked: true }", [".", ".", ".", ".", ".", ".", ".", ".", ".", "blocked", "blocked"]),
    ("Requeue { blocked: false }", [".", ".", ".", ".", ".", ".", ".", ".", ".", "open", "open"]),
];

fn facts(state: TaskState, attempt: i32) -> Facts {
    Facts { state, attempt, attempts_max: 3 }
}

#[test]
fn every_event_in_every_state_matches_the_table() {
    for (event, (name, row)) in EVENTS.into_iter().zip(TABLE) {
        assert_eq!(format!("{event:?}"), name);
        for (state, expected) in TaskState::ALL.into_iter().zip(row) {
            let found = match facts(state, 1).next(event) {
                Err(refused) => {
                    assert_eq!(refused.state, state);
                    ".".to_owned()
                }
                Ok(Transition { state, assignment: Some(assignment), .. }) => {
                    format!("{} {}", state.as_str(), assignment.as_str())
                }
                Ok(step) => step.state.as_str().to_owned(),
            };
            assert_eq!(found, expected, "{event:?} when {state:?}");
        }
    }
}

#[test]
fn the_last_attempt_that_fails_ends_the_task() {
    for (event, reason) in [
        (TaskEvent::Fail { retryable: true }, "attempts_exhausted"),
        (TaskEvent::LeaseLost, "attempts_exhausted"),
        (TaskEvent::Stall, "attempts_exhausted"),
        (TaskEvent::Release, "attempts_exhausted"),
        (TaskEvent::Reject, "verification"),
    ] {
        let step = facts(TaskState::Running, 3).next(event).unwrap();
        assert_eq!((step.state, step.reason), (TaskState::Failed, Some(reason)), "{event:?}");
        assert_eq!(facts(TaskState::Running, 2).next(event).unwrap().state, TaskState::Open, "{event:?}");
    }
}

#[test]
fn every_reason_of_a_failure_is_one_of_the_contract() {
    let known = [
        "attempts_exhausted",
        "deadline",
        "verification",
        "budget",
        "unallocatable",
        "dependency",
        "result_refused",
    ];
    for state in TaskState::ALL {
        for (event, attempt) in EVENTS.into_iter().flat_map(|event| [(event, 1), (event, 3)]) {
            let Ok(step) = facts(state, attempt).next(event) else { continue };
            if step.state == TaskState::Failed {
                assert!(known.contains(&step.reason.unwrap()), "{event:?}: {:?}", step.reason);
            }
        }
    }
}

#[test]
fn lost_assignment_before_the_start_counts_no_attempt() {
    for event in [TaskEvent::Refuse, TaskEvent::ConfirmTimeout, TaskEvent::StartTimeout, TaskEvent::LeaseLost]
    {
        let step = facts(TaskState::Awarded, 3).next(event).unwrap();
        assert_eq!((step.state, step.next), (TaskState::Open, Next::Standby));
    }
}

#[test]
fn an_outage_uses_no_attempt() {
    for event in [TaskEvent::Outage { lost: false }, TaskEvent::Outage { lost: true }] {
        let step = facts(TaskState::Running, 3).next(event).unwrap();
        assert_eq!((step.state, step.next, step.attempt_goes_on), (TaskState::Open, Next::RetryLater, true));
    }
}

#[test]
fn answer_continues_the_attempt_and_asks_the_same_agent_first() {
    let step = facts(TaskState::Waiting, 3).next(TaskEvent::Answer).unwrap();
    assert_eq!((step.next, step.attempt_goes_on), (Next::Same, true));
}

#[test]
fn a_word_reads_as_it_is_written() {
    for state in TaskState::ALL {
        assert_eq!(TaskState::parse(state.as_str()), Some(state));
    }
    assert_eq!(TaskState::parse("done"), None);
}

proptest! {
    /// Any sequence: a live assignment exists exactly in the states that need one (I1), the epoch never
    /// falls, what is finished is of the last award (I2), nothing happens after the end but a requeue (I3),
    /// slots are given back exactly once (I5), a failed state has a reason, and every state that is not
    /// final takes some event (I6).
    #[test]
    fn no_sequence_of_events_breaks_a_task(events in prop::collection::vec(0..EVENTS.len(), 0..80)) {
        let mut now = facts(TaskState::Open, 0);
        let (mut live, mut slots, mut epoch, mut finished) = (false, 0, 0_u32, None);
        for event in events.into_iter().map(|at| EVENTS[at]) {
            let was_final = now.state.is_final();
            let Ok(step) = now.next(event) else { continue };
            prop_assert!(!was_final || matches!(event, TaskEvent::Requeue { .. }), "{:?}", event);
            prop_assert!(now.state != TaskState::Completed, "{:?}", event);
            let waited = matches!(now.state, TaskState::Waiting | TaskState::Verifying);
            match step.assignment {
                Some(AssignmentState::Awarded) => {
                    prop_assert!(!live);
                    (live, slots, epoch) = (true, slots + 1, epoch + 1);
                }
                Some(AssignmentState::Running) => { prop_assert!(live); now.attempt += 1; }
                Some(AssignmentState::Waiting) => { prop_assert!(live); slots -= i32::from(!waited); }
                Some(state) => {
                    prop_assert!(live);
                    (live, slots) = (false, slots - i32::from(!waited));
                    if state == AssignmentState::Finished { finished = Some(epoch); }
                }
                None => {}
            }
            if matches!(event, TaskEvent::Requeue { .. }) { now.attempt = 0; }
            now.attempt -= i32::from(step.attempt_goes_on);
            now.state = step.state;
            let needs = matches!(now.state, TaskState::Awarded | TaskState::Running | TaskState::Waiting
                | TaskState::Verifying | TaskState::Canceling);
            prop_assert_eq!(live, needs, "{:?} after {:?}", now.state, event);
            let holds = matches!(now.state, TaskState::Awarded | TaskState::Running | TaskState::Canceling);
            prop_assert_eq!(slots, i32::from(holds), "{:?} after {:?}", now.state, event);
            prop_assert!(now.state != TaskState::Failed || step.reason.is_some());
            prop_assert_eq!(now.state == TaskState::Completed, finished == Some(epoch) && epoch > 0);
            prop_assert!((0..=now.attempts_max).contains(&now.attempt));
            prop_assert_eq!(now.state.is_final(), EVENTS.into_iter().all(|event| {
                matches!(event, TaskEvent::Requeue { .. }) || now.next(event).is_err()
            }));
        }
    }
}
