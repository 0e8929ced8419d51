//! What a locked row and a command make together: the fence, then the machine. Pure.
//!
//! Reads no clock: what has come due stands in the row as the database saw it. Fails by refusing: `Fenced`
//! for a holder whose assignment is over, `Conflict` for a state that does not take the command.
use crate::task::commands::command::{Action, TaskCommand};
use crate::task::commands::dependents::{Outlook, Verdict, Verification};
use crate::task::commands::effect::{Cause, Effect, Inputs, policy_of};
use crate::task::commands::transition;
use crate::task::machine::{AssignmentState, InvalidTransition, TaskEvent};
use crate::task::model::{policies::Policies, schema::SchemaMismatch};
use crate::task::storage::locked_task::{LiveAssignment, LockedTask};
use crate::task::storage::rows::Unreadable;
use crate::task::storage::statement::millis;
use crate::task::{Error, OnInputTimeout, TaskState, WaitFor};

/// Questions that one task may ask.
const QUESTIONS_MAX: i32 = 100;

/// Decides what a command does to a task: the fence, then the machine.
///
/// # Errors
/// `Fenced`, `Conflict`, or [`Unreadable`] for a policy that cannot be used.
pub(in crate::task) fn decide(
    inputs: Inputs<'_>,
    row: &LockedTask,
    outlook: Option<&Outlook>,
    command: &TaskCommand,
) -> Result<Effect, Error> {
    // The fence before the state: an old holder learns only that its assignment is over.
    if let Some((key, agent)) = &command.holder {
        let live = row.live.as_ref().filter(|live| live.key == *key && live.agent == *agent);
        let Some(live) = live else { return Err(Error::Fenced) };
        match (&command.action, row.facts.state) {
            (Action::Accept, _) if live.state == AssignmentState::Running => {
                return Ok(Effect::Again { live: live.clone(), policy: policy_of(inputs.policies, row)? });
            }
            // A repeated report, whose first answer was lost.
            (Action::Finish { .. }, TaskState::Verifying) | (Action::Wait(_), TaskState::Waiting) => {
                return Ok(Effect::CommandReply);
            }
            (Action::Confirm, TaskState::Awarded) if live.confirmed => return Ok(Effect::CommandReply),
            // A waiting assignee holds no slot and no lease that could be lost.
            (Action::Lost { .. }, TaskState::Waiting | TaskState::Verifying) => {
                return Ok(Effect::CommandReply);
            }
            _ => {}
        }
    }
    let mut cause = Cause::default();
    let event = match &command.action {
        Action::Accept => return start(inputs, row),
        Action::Confirm => return confirm(inputs, row),
        Action::Refuse { .. } => TaskEvent::Refuse,
        Action::Finish { fit, .. } => {
            let policy = policy_of(inputs.policies, row)?;
            let verdict = match (&policy.result_schema, fit) {
                (None, _) => &Ok(()),
                (Some(schema), Some(fit)) if fit.schema == *schema => &fit.verdict,
                // A schema may take seconds, so it does not run while this transaction has the row locked. The
                // caller checks the result and sends the command again with the verdict.
                (Some(schema), _) => return Ok(Effect::Check(schema.clone())),
            };
            match verdict {
                Err(misfit @ SchemaMismatch::Schema(_)) => {
                    return Err(Unreadable::new("policy", misfit.to_string()).into());
                }
                Err(misfit) => {
                    cause.rejected = Some(misfit.to_string());
                    TaskEvent::Reject
                }
                Ok(()) if policy.verifier.is_some() => {
                    cause.verification = policy.verifier.map(|verifier| {
                        Verification::of(inputs.policies, (inputs.new_id)(), row.id, verifier)
                    });
                    TaskEvent::FinishToVerify
                }
                Ok(()) => TaskEvent::Finish,
            }
        }
        Action::Fail(failure) if failure.outage && row.has_outage_left(inputs.policies) => {
            TaskEvent::Outage { lost: false }
        }
        // A final failure of one agent is not final for the task while another agent could try.
        Action::Fail(failure) => {
            TaskEvent::Fail { retryable: failure.retryable || transition::others_could(inputs, row) }
        }
        Action::Unstorable { .. } => TaskEvent::Unstorable,
        Action::Release { after: Some(_), .. } => TaskEvent::Defer,
        Action::Release { outage: true, .. } if row.has_outage_left(inputs.policies) => {
            TaskEvent::Outage { lost: false }
        }
        Action::Release { .. } => TaskEvent::Release,
        Action::Wait(_) if row.answers >= QUESTIONS_MAX => {
            return Err(Error::BadRequest(format!("the task has asked {QUESTIONS_MAX} times already")));
        }
        Action::Wait(question) => TaskEvent::Wait(question.wait_for),
        Action::Answer { .. } => TaskEvent::Answer,
        Action::Cancel { .. } => TaskEvent::Cancel,
        Action::Lost { daemon } if row.run.is_some() => {
            cause.daemon_ended = *daemon;
            death(row)
        }
        // The end of the daemon does not count as an attempt. But the task itself may crash the daemon: after as many
        // ends as there are attempts, each of them counts.
        Action::Lost { daemon: true }
            if row.facts.state == TaskState::Running
                && row.outages < row.facts.attempts_max
                && row.has_outage_left(inputs.policies) =>
        {
            cause.daemon_ended = true;
            TaskEvent::Outage { lost: true }
        }
        Action::Lost { daemon } => {
            cause.daemon_ended = *daemon;
            TaskEvent::LeaseLost
        }
        Action::Timer => match due(inputs.policies, row, outlook, &mut cause)? {
            Due::TaskEvent(event) => event,
            Due::Effect(effect) => return Ok(*effect),
        },
    };
    transition::settle(inputs, row, event, command, cause)
}

/// The death of an agent that works, or of its daemon. Of a run in which a step has ended it is no attempt, so that work
/// that goes forward is not given up. Of a run without one it is: the step under way may be what kills the daemon.
fn death(row: &LockedTask) -> TaskEvent {
    if row.progressed() { TaskEvent::Outage { lost: true } } else { TaskEvent::LeaseLost }
}

impl From<InvalidTransition> for Error {
    fn from(invalid: InvalidTransition) -> Self {
        Self::Conflict { state: invalid.state }
    }
}

fn start(inputs: Inputs<'_>, row: &LockedTask) -> Result<Effect, Error> {
    row.facts.next(TaskEvent::Accept)?;
    match &row.live {
        Some(live) if !live.is_late() => {
            Ok(Effect::Start { live: live.clone(), policy: policy_of(inputs.policies, row)? })
        }
        _ => Err(Error::Fenced),
    }
}

fn confirm(inputs: Inputs<'_>, row: &LockedTask) -> Result<Effect, Error> {
    row.facts.next(TaskEvent::Confirm)?;
    match &row.live {
        Some(live) if !live.is_late() => {
            let start_ms = millis(policy_of(inputs.policies, row)?.start);
            Ok(Effect::Confirm { live: live.clone(), start_ms })
        }
        _ => Err(Error::Fenced),
    }
}

/// What is due.
enum Due {
    TaskEvent(TaskEvent),
    Effect(Box<Effect>),
}

fn due(
    policies: &Policies,
    row: &LockedTask,
    outlook: Option<&Outlook>,
    cause: &mut Cause,
) -> Result<Due, Error> {
    if row.deadline_came && !row.facts.state.is_final() {
        return Ok(Due::TaskEvent(TaskEvent::Deadline));
    }
    // Only the states that need it fail for a policy that cannot be read.
    let policy = policy_of(policies, row);
    let later = |wait_ms: i64| Due::Effect(Box::new(Effect::SetDue(wait_ms.max(1))));
    Ok(match (row.facts.state, &row.live) {
        (TaskState::Blocked, _) => blocked(row, outlook),
        (TaskState::Verifying, _) => verified(outlook, cause),
        (TaskState::Scheduled, _) if row.run_in_ms <= 0 => Due::Effect(Box::new(Effect::MarkReady)),
        (TaskState::Scheduled, _) => later(row.run_in_ms),
        (TaskState::Open, _) if row.bidding => Due::Effect(Box::new(Effect::Close)),
        (TaskState::Open, _) => Due::Effect(Box::new(Effect::MarkReady)),
        (TaskState::Awarded, Some(live)) if live.is_late() && live.confirmed => {
            Due::TaskEvent(TaskEvent::StartTimeout)
        }
        (TaskState::Awarded, Some(live)) if live.is_late() => Due::TaskEvent(TaskEvent::ConfirmTimeout),
        (TaskState::Running, Some(live)) if live.lease_late => Due::TaskEvent(death(row)),
        (TaskState::Running, Some(live)) if live.attempt_late => Due::TaskEvent(TaskEvent::AttemptTimeout),
        (TaskState::Running, Some(live)) => {
            let quiet_ms = millis(policy?.progress);
            if live.silent_ms >= quiet_ms.saturating_mul(2) {
                Due::TaskEvent(TaskEvent::Stall)
            } else if live.silent_ms >= quiet_ms && !live.nudged {
                let wait_ms = live.lease_left_ms.min(quiet_ms.saturating_mul(2) - live.silent_ms).max(1);
                Due::Effect(Box::new(Effect::Nudge { live: live.clone(), wait_ms }))
            } else {
                let next_ms = if live.nudged { quiet_ms.saturating_mul(2) } else { quiet_ms };
                later(live.lease_left_ms.min(next_ms - live.silent_ms))
            }
        }
        (TaskState::Waiting, _) => {
            let policy = policy?;
            match policy.on_input_timeout {
                OnInputTimeout::Escalate => Due::Effect(Box::new(Effect::Escalate(millis(policy.input)))),
                OnInputTimeout::Fail => Due::TaskEvent(TaskEvent::AnswerTimeout {
                    budget: row.state_reason.as_deref() == Some(WaitFor::Budget.as_str()),
                }),
            }
        }
        (TaskState::Canceling, _) => Due::TaskEvent(TaskEvent::GraceOver),
        _ => later(1_000),
    })
}

fn blocked(row: &LockedTask, outlook: Option<&Outlook>) -> Due {
    match outlook {
        Some(outlook) if outlook.one_failed && !row.run_anyway => Due::TaskEvent(TaskEvent::DependencyFailed),
        Some(outlook) if outlook.all_ended => {
            Due::TaskEvent(TaskEvent::Unblocked { later: row.run_in_ms > 0 })
        }
        _ => Due::Effect(Box::new(Effect::ClearTimer)),
    }
}

fn verified(outlook: Option<&Outlook>, cause: &mut Cause) -> Due {
    match outlook.map(|outlook| &outlook.verdict) {
        Some(Verdict::Accepted) => Due::TaskEvent(TaskEvent::Verified),
        Some(Verdict::Rejected(reason)) => {
            cause.rejected = Some(reason.clone());
            Due::TaskEvent(TaskEvent::Reject)
        }
        Some(Verdict::None(reason)) => {
            cause.unverified = Some(reason.clone());
            Due::TaskEvent(TaskEvent::VerifierFailed)
        }
        Some(Verdict::Pending) | None => Due::Effect(Box::new(Effect::ClearTimer)),
    }
}

impl LiveAssignment {
    /// Whether the time to accept, or to start after a confirmation, is over.
    fn is_late(&self) -> bool {
        if self.confirmed { self.start_late } else { self.confirm_late }
    }
}

impl LockedTask {
    /// Whether attempts that end because of an outage still do not count.
    fn has_outage_left(&self, policies: &Policies) -> bool {
        policy_of(policies, self)
            .is_ok_and(|policy| u128::try_from(self.outage_ms).unwrap_or(0) < policy.outage.as_millis())
    }
}
