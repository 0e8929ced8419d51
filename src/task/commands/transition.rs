//! Turns a transition of the machine into the row to write: state, reason, due time, event and columns.
//!
//! Pure, like [`decide`](super::decide), which calls it with the event that a command or a timer means.
use crate::id::AgentId;
use crate::task::commands::command::{Action, TaskCommand};
use crate::task::commands::effect::{Cause, Effect, Inputs, policy_of};
use crate::task::machine::{AssignmentState, Next, TaskEvent, Transition};
use crate::task::storage::locked_task::LockedTask;
use crate::task::storage::statement::{millis, to_i64};
use crate::task::storage::store::{AskedQuestion, GivenAnswer, RareColumns, Settled};
use crate::task::{Error, Question, TaskState, Usage};
use serde_json::{Map, Value, json};
use std::sync::Arc;

/// How often a step was begun, each time without an end, before its task counts as killed by it.
const POISON_TRIES: i32 = 3;
/// Longest backoff between attempts, in milliseconds.
const RETRY_MS_MAX: i64 = 60_000;
/// Longest backoff during an outage, in milliseconds. It uses no attempts, so a task may be retried many times.
const OUTAGE_RETRY_MS_MAX: i64 = 300_000;
/// Least backoff after an agent stalled and no other agent can take the task, in milliseconds.
const STALLED_MS: i64 = 60_000;

/// The payload of a command, besides the event.
#[derive(Default)]
struct CommandEffects {
    result: Option<Arc<Value>>,
    error: Option<Value>,
    usage: Usage,
    checkpoint: Option<Value>,
    reason: Option<String>,
}

fn command_effects(command: &TaskCommand, cause: &Cause) -> CommandEffects {
    let message = |text: &str| Some(json!({ "message": text }));
    match &command.action {
        Action::Finish { result, usage, .. } => match &cause.rejected {
            None => {
                CommandEffects { result: Some(result.clone()), usage: *usage, ..CommandEffects::default() }
            }
            Some(why) => CommandEffects {
                error: message(why),
                usage: *usage,
                reason: Some(why.clone()),
                ..CommandEffects::default()
            },
        },
        Action::Fail(failure) => CommandEffects {
            error: Some(json!({ "message": failure.message, "retryable": failure.retryable })),
            usage: failure.usage,
            reason: Some(failure.message.clone()),
            ..CommandEffects::default()
        },
        Action::Unstorable { reason, usage } => CommandEffects {
            error: message(reason),
            usage: *usage,
            reason: Some(reason.clone()),
            ..CommandEffects::default()
        },
        Action::Release { reason, checkpoint, .. } => CommandEffects {
            checkpoint: checkpoint.clone(),
            reason: Some(reason.clone()),
            ..CommandEffects::default()
        },
        Action::Refuse { reason } | Action::Cancel { reason, .. } => {
            CommandEffects { reason: Some(reason.clone()), ..CommandEffects::default() }
        }
        Action::Wait(question) => CommandEffects {
            usage: question.usage,
            checkpoint: question.checkpoint.clone(),
            reason: Some(question.question.clone()),
            ..CommandEffects::default()
        },
        Action::Accept | Action::Confirm | Action::Answer { .. } | Action::Lost { .. } | Action::Timer => {
            let reason = cause.rejected.clone().or_else(|| cause.unverified.clone());
            CommandEffects { error: reason.as_deref().and_then(message), reason, ..CommandEffects::default() }
        }
    }
}

/// The transition of the machine as a row to write.
pub(in crate::task) fn settle(
    inputs: Inputs<'_>,
    row: &LockedTask,
    event: TaskEvent,
    command: &TaskCommand,
    cause: Cause,
) -> Result<Effect, Error> {
    let mut step = row.facts.next(event)?;
    let poison = poison(row, event, &step);
    if poison.is_some() {
        step.reason = Some("poison");
    }
    let CommandEffects { result, error, usage, checkpoint, reason } = command_effects(command, &cause);
    let usage = usage.limited();
    let canceled_meanwhile = row.facts.state == TaskState::Canceling && command.holder.is_some();
    let result = result.filter(|_| matches!(step.state, TaskState::Completed | TaskState::Verifying));
    let due_ms = match (step.state, step.next) {
        (TaskState::Canceling, _) => Some(millis(policy_of(inputs.policies, row)?.cancel_grace)),
        (TaskState::Waiting, _) => Some(millis(policy_of(inputs.policies, row)?.input)),
        (TaskState::Scheduled, _) => Some(row.run_in_ms),
        (_, Next::Standby) => Some(0),
        (_, Next::Same) => deferred_ms(command),
        (_, Next::RetryLater) => retry_ms(inputs, row, event),
        _ => None,
    };
    let verifying = step.state == TaskState::Verifying;
    let rare = rare_columns(row, event, &step, command, &cause);
    let mut body = Map::new();
    let mut put = |name: &str, value: Option<Value>| {
        body.extend(value.map(|value| (name.to_owned(), value)));
    };
    put("state", serde_json::to_value(step.state).ok());
    put("reason", step.reason.map(Into::into));
    let error = error.or(poison).or_else(|| timer_error(event, cause.daemon_ended));
    let message = reason.map(Value::from).or_else(|| error.as_ref()?.get("message").cloned());
    put("message", message);
    put("assignment", step.assignment.map(|state| state.as_str().into()));
    put("assignment_id", row.live.as_ref().map(|live| live.key.assignment_id.to_string().into()));
    put(
        "usage",
        Some(usage).filter(|usage| *usage != Usage::default()).and_then(|u| serde_json::to_value(u).ok()),
    );
    put("verifier_id", cause.verification.as_ref().map(|made| json!(made.id)).filter(|_| verifying));
    if let Action::Answer { answer, by } = &command.action {
        put("answer", Some(answer.clone()));
        put("by", Some(by.clone().into()));
    }
    if let Action::Cancel { by, .. } = &command.action {
        put("by", by.clone().map(Value::from));
    }
    // The assignee is asked to stop, unless it has ended its work itself.
    let has_stopped = matches!(
        event,
        TaskEvent::Answer | TaskEvent::Verified | TaskEvent::VerifierFailed | TaskEvent::Reject
    );
    let stop = row.live.as_ref().filter(|_| {
        command.holder.is_none()
            && !has_stopped
            && (step.assignment.is_some() || step.state == TaskState::Canceling)
    });
    let stop = stop.map(|live| (live.agent.clone(), live.key));
    let ends = step.assignment.and(row.live.as_ref());
    Ok(Effect::Settle {
        settled: Box::new(Settled {
            task: row.id,
            assignment: ends.map(|live| live.key.assignment_id),
            assignee: ends.map(|live| live.agent.clone()),
            assignment_state: step.assignment,
            state: step.state,
            reason: step.reason.map(str::to_owned).or(match (&command.action, step.state) {
                (Action::Cancel { reason, .. }, _) => Some(reason.clone()),
                (_, TaskState::Canceled) => row.state_reason.clone(),
                _ => None,
            }),
            result,
            error,
            due_ms,
            standby: step.next == Next::Standby,
            tried: is_tried(event, &step),
            holds_slot: ends.is_some_and(|live| live.state != AssignmentState::Waiting),
            tokens: to_i64(usage.tokens),
            microdollars: to_i64(usage.microdollars),
            usage_known: command.action.reports_usage() && !usage.presumed,
            // The event has one name, also for a release because of an outage.
            event: if matches!(command.action, Action::Release { .. }) {
                "released"
            } else {
                event_name(event)
            },
            body: Value::Object(body),
            checkpoint,
            rare,
        }),
        stop,
        answer: if canceled_meanwhile { Err(Error::Conflict { state: TaskState::Canceled }) } else { Ok(()) },
        verification: cause.verification.filter(|_| verifying),
    })
}

/// The columns that few transitions write.
fn rare_columns(
    row: &LockedTask,
    event: TaskEvent,
    step: &Transition,
    command: &TaskCommand,
    cause: &Cause,
) -> RareColumns {
    let agent = row.live.as_ref().map(|live| live.agent.clone());
    let question = match &command.action {
        Action::Wait(asked) if step.state == TaskState::Waiting => {
            let Question { wait_for, question, calls, approvers, .. } = &**asked;
            Some(AskedQuestion {
                wait_for: *wait_for,
                question: question.clone(),
                agent_id: agent.clone(),
                calls: calls.clone(),
                approvers: approvers.clone(),
            })
        }
        _ => None,
    };
    let answer = match &command.action {
        Action::Answer { answer, by } => Some(GivenAnswer { answer: answer.clone(), by: by.clone() }),
        _ => None,
    };
    let reopens = step.state == TaskState::Open;
    // It is open again only for the other agents.
    let unable = reopens
        && matches!(event, TaskEvent::Fail { .. })
        && matches!(&command.action, Action::Fail(failure) if !failure.retryable);
    RareColumns {
        question,
        answer,
        prefer: agent.filter(|_| step.next == Next::Same),
        rejected: cause.rejected.clone().filter(|_| reopens),
        verifier_id: cause
            .verification
            .as_ref()
            .map(|made| made.id)
            .filter(|_| step.state == TaskState::Verifying),
        attempt_goes_on: step.attempt_goes_on,
        jitter: step.next == Next::RetryLater,
        // A run that goes forward has no outage that could last too long.
        outage: matches!(event, TaskEvent::Outage { .. }) && !goes_forward(row, event),
        unable,
    }
}

/// How long the task waits before the same agent goes on with it.
fn deferred_ms(command: &TaskCommand) -> Option<i64> {
    match &command.action {
        Action::Release { after, .. } => after.map(millis),
        _ => None,
    }
}

/// Whether other agents are asked before this one. A rejected result goes back to its agent.
fn is_tried(event: TaskEvent, step: &Transition) -> bool {
    use AssignmentState as A;
    match event {
        // Other agents may not depend on what is down. The end of the daemon is no fault of the agent.
        TaskEvent::Outage { lost } => !lost,
        _ => {
            !step.attempt_goes_on
                && matches!(
                    step.assignment,
                    Some(A::Failed | A::Released | A::Stalled | A::LeaseLost | A::Canceled)
                )
        }
    }
}

fn event_name(event: TaskEvent) -> &'static str {
    match event {
        TaskEvent::Unblocked { .. } => "unblocked",
        TaskEvent::DependencyFailed => "dependency_failed",
        TaskEvent::RunAt => "scheduled",
        TaskEvent::BackOffOver => "back_off_over",
        TaskEvent::Award => "awarded",
        TaskEvent::RoundsExhausted => "unallocatable",
        TaskEvent::Unworkable => "unworkable",
        TaskEvent::Confirm => "confirmed",
        TaskEvent::Accept => "started",
        TaskEvent::Refuse => "refused",
        TaskEvent::ConfirmTimeout => "confirm_timeout",
        TaskEvent::StartTimeout => "start_timeout",
        TaskEvent::Wait(_) => "waiting",
        TaskEvent::Answer => "answered",
        TaskEvent::AnswerTimeout { .. } => "unanswered",
        TaskEvent::Finish => "finished",
        TaskEvent::FinishToVerify => "verifying",
        TaskEvent::Verified => "verified",
        TaskEvent::VerifierFailed => "unverified",
        TaskEvent::Reject => "rejected",
        TaskEvent::Fail { .. } => "failed",
        TaskEvent::Unstorable => "result_refused",
        TaskEvent::Release | TaskEvent::Defer => "released",
        TaskEvent::Outage { lost: false } => "outage",
        TaskEvent::Outage { lost: true } => "lease_lost",
        TaskEvent::LeaseLost => "lease_lost",
        TaskEvent::AttemptTimeout => "attempt_timeout",
        TaskEvent::Stall => "stalled",
        TaskEvent::Cancel => "cancel",
        TaskEvent::GraceOver => "canceled",
        TaskEvent::Deadline => "deadline",
        TaskEvent::Requeue { .. } => "requeued",
    }
}

fn timer_error(event: TaskEvent, daemon_ended: bool) -> Option<Value> {
    let message = match event {
        TaskEvent::Outage { lost: true } | TaskEvent::LeaseLost if daemon_ended => {
            "the daemon ended while the agent worked"
        }
        TaskEvent::Outage { lost: true } | TaskEvent::LeaseLost => {
            "the agent died or was silent for longer than its lease"
        }
        TaskEvent::AttemptTimeout => "the attempt took longer than the policy allows",
        TaskEvent::Stall => "the agent lived but showed no work",
        TaskEvent::Deadline => "the deadline passed",
        TaskEvent::AnswerTimeout { .. } => "no answer came in time",
        _ => return None,
    };
    Some(json!({ "message": message }))
}

/// Whether a death interrupts a run in which a step has ended since its attempt began.
fn goes_forward(row: &LockedTask, event: TaskEvent) -> bool {
    event == TaskEvent::Outage { lost: true } && row.progressed()
}

/// The error of a task whose last attempts all died at the same step.
fn poison(row: &LockedTask, event: TaskEvent, step: &Transition) -> Option<Value> {
    let (seq, tries) = row.run.filter(|run| !run.progressed)?.under_way?;
    let is_poison = event == TaskEvent::LeaseLost && step.state == TaskState::Failed && tries >= POISON_TRIES;
    is_poison.then(|| {
        let message = format!("the agent or its daemon died {tries} times at step {seq} of the run");
        json!({ "message": message, "seq": seq })
    })
}

/// Whether an eligible agent has not tried yet.
pub(in crate::task) fn others_could(inputs: Inputs<'_>, row: &LockedTask) -> bool {
    let assignee = row.live.as_ref().map(|live| &live.agent);
    let tried = |id: &AgentId| Some(id) == assignee || row.tried.iter().any(|tried| tried == id.as_str());
    // A direct award asks only the named agent.
    let named = policy_of(inputs.policies, row).ok().and_then(|policy| policy.agent);
    let asked = |id: &AgentId| named.as_ref().is_none_or(|named| named == id);
    inputs.roster.eligible(&row.org, &row.requires).iter().any(|id| asked(id) && !tried(id))
}

/// The backoff before the next round, which doubles; `None` if another agent can take the task at once.
fn retry_ms(inputs: Inputs<'_>, row: &LockedTask, event: TaskEvent) -> Option<i64> {
    if goes_forward(row, event) {
        return None;
    }
    if let TaskEvent::Outage { lost } = event {
        // Every other agent is asked once before the task waits: some may decline every time.
        let able = inputs.roster.eligible(&row.org, &row.requires).len();
        let others = usize::try_from(row.outages).is_ok_and(|outages| outages < able);
        if (lost && row.outages == 0) || (!lost && others && others_could(inputs, row)) {
            return None;
        }
        return Some((1_000_i64 << row.outages.clamp(0, 10)).min(OUTAGE_RETRY_MS_MAX));
    }
    if others_could(inputs, row) {
        return None;
    }
    let doublings = row.facts.attempt.clamp(1, 7) - 1;
    let wait_ms = (1_000_i64 << doublings).min(RETRY_MS_MAX);
    Some(if event == TaskEvent::Stall { wait_ms.max(STALLED_MS) } else { wait_ms })
}
