//! What a locked row and a command make together: the fence, then the machine. Pure but for the roster.
//!
//! Reads no clock: what has come due stands in the row as the database saw it. Fails by refusing: `Fenced`
//! for a holder whose assignment is over, `Conflict` for a state that does not take the command.
use super::budget;
use super::depend::{Outlook, Verdict, Verification};
use super::desk::{Act, Command};
use super::machine::{AssignmentState, Event, Next, Step};
use super::store::{self, Live, Locked, Settled};
use super::{
    AgentId, AssignmentKey, Error, OnInputTimeout, Policy, Question, Shared, TaskState, Usage, WaitFor,
};
use serde_json::{Map, Value, json};

/// Longest back-off between attempts.
const RETRY_MS_MAX: i64 = 60_000;
/// Questions that one task may ask.
const QUESTIONS_MAX: i32 = 100;
/// How long an agent that stalled is kept off the task when nobody else can take it.
const STALLED_MS: i64 = 60_000;

/// What is to be written.
pub(super) enum Effect {
    Start {
        live: Live,
        policy: Policy,
    },
    /// An accept that was answered before and is asked again.
    Again {
        live: Live,
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
        live: Live,
        start_ms: i64,
    },
    /// A round is over: the arbiter closes it.
    Close,
    Rearm(i64),
    Reready,
    /// It has no time of its own: what it depends on wakes it.
    Rest,
    Nudge {
        live: Live,
        wait_ms: i64,
    },
    /// The question is told again, and waits as long again.
    Escalate(i64),
    /// It was done before: the answer is the task as it is.
    Done,
}

/// The fence, then the machine.
pub(super) fn decide(
    shared: &Shared,
    row: &Locked,
    outlook: Option<&Outlook>,
    command: &Command,
) -> Result<Effect, Error> {
    if let Some((key, agent)) = &command.holder {
        let live = row.live.as_ref().filter(|live| live.key == *key && live.agent == *agent);
        let Some(live) = live else { return Err(Error::Fenced) };
        match (&command.act, row.facts.state) {
            (Act::Accept, _) if live.running => {
                return Ok(Effect::Again { live: live.clone(), policy: policy_of(shared, row)? });
            }
            // The same report again, whose answer was lost.
            (Act::Finish { .. }, TaskState::Verifying) | (Act::Wait(_), TaskState::Waiting) => {
                return Ok(Effect::Done);
            }
            (Act::Confirm, TaskState::Awarded) if live.confirmed => return Ok(Effect::Done),
            // Whoever waits holds nothing that could be lost with it.
            (Act::Lost, TaskState::Waiting | TaskState::Verifying) => return Ok(Effect::Done),
            _ => {}
        }
    }
    let mut cause = Cause::default();
    let event = match &command.act {
        Act::Accept => return start(shared, row),
        Act::Confirm => return confirm(shared, row),
        Act::Refuse { .. } => Event::Refuse,
        Act::Finish { result, .. } => {
            let policy = policy_of(shared, row)?;
            match check_result(&policy, result) {
                Err(reason) => {
                    cause.rejected = Some(reason);
                    Event::Reject
                }
                Ok(()) if policy.verifier.is_some() => {
                    cause.verification =
                        policy.verifier.map(|verifier| Verification::of(shared, row.id, verifier));
                    Event::FinishToVerify
                }
                Ok(()) => Event::Finish,
            }
        }
        // One agent's word that it cannot be done is not final while another could try.
        Act::Fail(failure) => Event::Fail { retryable: failure.retryable || others_could(shared, row) },
        Act::Release { .. } => Event::Release,
        Act::Wait(_) if row.answers >= QUESTIONS_MAX => {
            return Err(Error::BadRequest(format!("the task has asked {QUESTIONS_MAX} times already")));
        }
        Act::Wait(question) => Event::Wait(question.wait_for),
        Act::Answer { .. } => Event::Answer,
        Act::Cancel { .. } => Event::Cancel,
        Act::Lost => Event::LeaseLost,
        Act::Timer => match due(shared, row, outlook, &mut cause)? {
            Due::Event(event) => event,
            Due::Effect(effect) => return Ok(*effect),
        },
    };
    step(shared, row, event, command, cause)
}

/// Why something happens that nobody commanded, and what follows of it.
#[derive(Default)]
struct Cause {
    rejected: Option<String>,
    /// Why the verifier said nothing.
    unverified: Option<String>,
    verification: Option<Verification>,
}

fn start(shared: &Shared, row: &Locked) -> Result<Effect, Error> {
    let conflict = |refused: super::machine::Refused| Error::Conflict { state: refused.state };
    row.facts.next(Event::Accept).map_err(conflict)?;
    match &row.live {
        Some(live) if !live.is_late() => {
            Ok(Effect::Start { live: live.clone(), policy: policy_of(shared, row)? })
        }
        _ => Err(Error::Fenced),
    }
}

fn confirm(shared: &Shared, row: &Locked) -> Result<Effect, Error> {
    row.facts.next(Event::Confirm).map_err(|refused| Error::Conflict { state: refused.state })?;
    match &row.live {
        Some(live) if !live.is_late() => {
            let start_ms = store::millis(policy_of(shared, row)?.start);
            Ok(Effect::Confirm { live: live.clone(), start_ms })
        }
        _ => Err(Error::Fenced),
    }
}

/// What has come due.
enum Due {
    Event(Event),
    Effect(Box<Effect>),
}

fn due(shared: &Shared, row: &Locked, outlook: Option<&Outlook>, cause: &mut Cause) -> Result<Due, Error> {
    if row.deadline_came && !row.facts.state.is_final() {
        return Ok(Due::Event(Event::Deadline));
    }
    let policy = policy_of(shared, row);
    let later = |wait_ms: i64| Due::Effect(Box::new(Effect::Rearm(wait_ms.max(1))));
    Ok(match (row.facts.state, &row.live) {
        (TaskState::Blocked, _) => blocked(row, outlook),
        (TaskState::Verifying, _) => verified(outlook, cause),
        (TaskState::Scheduled, _) if row.run_in_ms <= 0 => Due::Effect(Box::new(Effect::Reready)),
        (TaskState::Scheduled, _) => later(row.run_in_ms),
        (TaskState::Open, _) if row.bidding => Due::Effect(Box::new(Effect::Close)),
        (TaskState::Open, _) => Due::Effect(Box::new(Effect::Reready)),
        (TaskState::Awarded, Some(live)) if live.is_late() && live.confirmed => {
            Due::Event(Event::StartTimeout)
        }
        (TaskState::Awarded, Some(live)) if live.is_late() => Due::Event(Event::ConfirmTimeout),
        (TaskState::Running, Some(live)) if live.lease_late => Due::Event(Event::LeaseLost),
        (TaskState::Running, Some(live)) if live.attempt_late => Due::Event(Event::AttemptTimeout),
        (TaskState::Running, Some(live)) => {
            let quiet_ms = store::millis(policy?.progress);
            if live.silent_ms >= quiet_ms.saturating_mul(2) {
                Due::Event(Event::Stall)
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
                OnInputTimeout::Escalate => {
                    Due::Effect(Box::new(Effect::Escalate(store::millis(policy.input))))
                }
                OnInputTimeout::Fail => Due::Event(Event::AnswerTimeout {
                    budget: row.state_reason.as_deref() == Some(WaitFor::Budget.as_str()),
                }),
            }
        }
        (TaskState::Canceling, _) => Due::Event(Event::GraceOver),
        _ => later(1_000),
    })
}

fn blocked(row: &Locked, outlook: Option<&Outlook>) -> Due {
    match outlook {
        Some(outlook) if outlook.one_failed && !row.run_anyway => Due::Event(Event::DependencyFailed),
        Some(outlook) if outlook.all_ended => Due::Event(Event::Unblocked { later: row.run_in_ms > 0 }),
        _ => Due::Effect(Box::new(Effect::Rest)),
    }
}

fn verified(outlook: Option<&Outlook>, cause: &mut Cause) -> Due {
    match outlook.map(|outlook| &outlook.verdict) {
        Some(Verdict::Accepted) => Due::Event(Event::Verified),
        Some(Verdict::Rejected(reason)) => {
            cause.rejected = Some(reason.clone());
            Due::Event(Event::Reject)
        }
        Some(Verdict::None(reason)) => {
            cause.unverified = Some(reason.clone());
            Due::Event(Event::VerifierFailed)
        }
        Some(Verdict::Pending) | None => Due::Effect(Box::new(Effect::Rest)),
    }
}

/// What a command says about the task, besides the event.
#[derive(Default)]
struct Said {
    result: Option<Value>,
    error: Option<Value>,
    usage: Usage,
    checkpoint: Option<Value>,
    reason: Option<String>,
}

fn said(command: &Command, cause: &Cause) -> Said {
    let message = |text: &str| Some(json!({ "message": text }));
    match &command.act {
        Act::Finish { result, usage } => match &cause.rejected {
            None => Said { result: Some(result.clone()), usage: *usage, ..Said::default() },
            Some(why) => {
                Said { error: message(why), usage: *usage, reason: Some(why.clone()), ..Said::default() }
            }
        },
        Act::Fail(failure) => Said {
            error: Some(json!({ "message": failure.message, "retryable": failure.retryable })),
            usage: failure.usage,
            reason: Some(failure.message.clone()),
            ..Said::default()
        },
        Act::Release { reason, checkpoint } => {
            Said { checkpoint: checkpoint.clone(), reason: Some(reason.clone()), ..Said::default() }
        }
        Act::Refuse { reason } | Act::Cancel { reason } => {
            Said { reason: Some(reason.clone()), ..Said::default() }
        }
        Act::Wait(question) => Said {
            usage: question.usage,
            checkpoint: question.checkpoint.clone(),
            reason: Some(question.question.clone()),
            ..Said::default()
        },
        Act::Accept | Act::Confirm | Act::Answer { .. } | Act::Lost | Act::Timer => {
            let reason = cause.rejected.clone().or_else(|| cause.unverified.clone());
            Said { error: reason.as_deref().and_then(message), reason, ..Said::default() }
        }
    }
}

/// What the machine says, as a row to write.
fn step(
    shared: &Shared,
    row: &Locked,
    event: Event,
    command: &Command,
    cause: Cause,
) -> Result<Effect, Error> {
    let step = row.facts.next(event).map_err(|refused| Error::Conflict { state: refused.state })?;
    let Said { result, error, usage, checkpoint, reason } = said(command, &cause);
    let canceled_meanwhile = row.facts.state == TaskState::Canceling && command.holder.is_some();
    let result = result.filter(|_| matches!(step.state, TaskState::Completed | TaskState::Verifying));
    let due_ms = match (step.state, step.next) {
        (TaskState::Canceling, _) => Some(store::millis(policy_of(shared, row)?.cancel_grace)),
        (TaskState::Waiting, _) => Some(store::millis(policy_of(shared, row)?.input)),
        (TaskState::Scheduled, _) => Some(row.run_in_ms),
        (_, Next::Standby) => Some(0),
        (_, Next::RetryLater) => retry_ms(shared, row, event),
        _ => None,
    };
    let verifying = step.state == TaskState::Verifying;
    let more = more(row, &step, command, &cause);
    let mut body = Map::new();
    let mut put = |name: &str, value: Option<Value>| {
        body.extend(value.map(|value| (name.to_owned(), value)));
    };
    put("state", serde_json::to_value(step.state).ok());
    put("reason", step.reason.map(Into::into));
    put("message", reason.map(Into::into));
    put("assignment", step.assignment.map(|state| state.as_str().into()));
    put("assignment_id", row.live.as_ref().map(|live| live.key.assignment_id.to_string().into()));
    put(
        "usage",
        Some(usage).filter(|usage| *usage != Usage::default()).and_then(|u| serde_json::to_value(u).ok()),
    );
    put("verifier_id", cause.verification.as_ref().map(|made| json!(made.id)).filter(|_| verifying));
    if let Act::Answer { answer, by } = &command.act {
        put("answer", Some(answer.clone()));
        put("by", Some(by.clone().into()));
    }
    // Who must stop working without having asked for the end itself.
    let told = matches!(event, Event::Answer | Event::Verified | Event::VerifierFailed | Event::Reject);
    let stop = row.live.as_ref().filter(|_| {
        command.holder.is_none() && !told && (step.assignment.is_some() || step.state == TaskState::Canceling)
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
            reason: step.reason.map(str::to_owned).or(match (&command.act, step.state) {
                (Act::Cancel { reason }, _) => Some(reason.clone()),
                (_, TaskState::Canceled) => row.state_reason.clone(),
                _ => None,
            }),
            result,
            error: error.or_else(|| timer_error(event)),
            due_ms,
            standby: step.next == Next::Standby,
            tried: is_tried(&step),
            holds_slot: ends.is_some_and(|live| !live.waiting),
            tokens: store::to_i64(usage.tokens),
            microdollars: store::to_i64(usage.microdollars),
            usage_known: budget::is_known(&command.act),
            event: event_name(event),
            body: Value::Object(body),
            checkpoint,
            more,
        }),
        stop,
        answer: if canceled_meanwhile { Err(Error::Conflict { state: TaskState::Canceled }) } else { Ok(()) },
        verification: cause.verification.filter(|_| verifying),
    })
}

/// What few transitions write.
fn more(row: &Locked, step: &Step, command: &Command, cause: &Cause) -> Option<Value> {
    let mut more = Map::new();
    let agent = row.live.as_ref().map(|live| &live.agent);
    match &command.act {
        Act::Wait(question) if step.state == TaskState::Waiting => {
            let Question { wait_for, question, .. } = &**question;
            more.insert(
                "question".into(),
                json!({ "for": wait_for, "question": question, "agent_id": agent }),
            );
        }
        Act::Answer { answer, by } => {
            more.insert("answer".into(), json!({ "answer": answer, "by": by }));
        }
        _ => {}
    }
    if step.next == Next::Same {
        more.insert("prefer".into(), json!(agent));
    }
    if step.attempt_goes_on {
        more.insert("attempt_goes_on".into(), true.into());
    }
    if let (Some(reason), TaskState::Open) = (&cause.rejected, step.state) {
        more.insert("rejected".into(), json!(reason));
    }
    if let (Some(verification), TaskState::Verifying) = (&cause.verification, step.state) {
        more.insert("verifier_id".into(), json!(verification.id));
    }
    (!more.is_empty()).then_some(Value::Object(more))
}

/// Whether somebody else is to have a go first. What was rejected goes back to whoever made it.
fn is_tried(step: &Step) -> bool {
    use AssignmentState as A;
    !step.attempt_goes_on
        && matches!(step.assignment, Some(A::Failed | A::Released | A::Stalled | A::LeaseLost | A::Canceled))
}

fn event_name(event: Event) -> &'static str {
    match event {
        Event::Unblocked { .. } => "unblocked",
        Event::DependencyFailed => "dependency_failed",
        Event::RunAt => "scheduled",
        Event::BackOffOver => "back_off_over",
        Event::Award => "awarded",
        Event::RoundsExhausted => "unallocatable",
        Event::Unworkable => "unworkable",
        Event::Confirm => "confirmed",
        Event::Accept => "started",
        Event::Refuse => "refused",
        Event::ConfirmTimeout => "confirm_timeout",
        Event::StartTimeout => "start_timeout",
        Event::Wait(_) => "waiting",
        Event::Answer => "answered",
        Event::AnswerTimeout { .. } => "unanswered",
        Event::Finish => "finished",
        Event::FinishToVerify => "verifying",
        Event::Verified => "verified",
        Event::VerifierFailed => "unverified",
        Event::Reject => "rejected",
        Event::Fail { .. } => "failed",
        Event::Release => "released",
        Event::LeaseLost => "lease_lost",
        Event::AttemptTimeout => "attempt_timeout",
        Event::Stall => "stalled",
        Event::Cancel => "cancel",
        Event::GraceOver => "canceled",
        Event::Deadline => "deadline",
        Event::Requeue { .. } => "requeued",
    }
}

fn timer_error(event: Event) -> Option<Value> {
    let message = match event {
        Event::LeaseLost => "the agent died or was silent for longer than its lease",
        Event::AttemptTimeout => "the attempt took longer than the policy allows",
        Event::Stall => "the agent lived but showed no work",
        Event::Deadline => "the deadline passed",
        Event::AnswerTimeout { .. } => "nobody answered in time",
        _ => return None,
    };
    Some(json!({ "message": message }))
}

/// Whether an agent that has not tried yet is eligible.
fn others_could(shared: &Shared, row: &Locked) -> bool {
    let assignee = row.live.as_ref().map(|live| &live.agent);
    let tried = |id: &AgentId| Some(id) == assignee || row.tried.iter().any(|tried| tried == id.as_str());
    shared.roster.lock().eligible(&row.org, &row.requires).iter().any(|id| !tried(id))
}

/// At once if another agent can take it, else after a back-off that doubles.
fn retry_ms(shared: &Shared, row: &Locked, event: Event) -> Option<i64> {
    if others_could(shared, row) {
        return None;
    }
    let doublings = row.facts.attempt.clamp(1, 7) - 1;
    let wait_ms = (1_000_i64 << doublings).min(RETRY_MS_MAX);
    Some(if event == Event::Stall { wait_ms.max(STALLED_MS) } else { wait_ms })
}

pub(super) fn policy_of(shared: &Shared, row: &Locked) -> Result<Policy, Error> {
    shared.policy(&row.kind, &row.policy).map_err(Error::BadRequest)
}

fn check_result(policy: &Policy, result: &Value) -> Result<(), String> {
    let Some(schema) = &policy.result_schema else { return Ok(()) };
    let validator = jsonschema::validator_for(schema).map_err(|e| format!("policy.result_schema: {e}"))?;
    validator
        .validate(result)
        .map_err(|e| format!("the result does not fit its schema at {:?}: {e}", e.instance_path().as_str()))
}

impl Live {
    /// Whether the time to accept, or to start after a confirmation, is over.
    fn is_late(&self) -> bool {
        if self.confirmed { self.start_late } else { self.confirm_late }
    }
}

impl Locked {
    /// Whether its fate hangs on other tasks.
    pub(super) fn waits_for_others(&self) -> bool {
        matches!(self.facts.state, TaskState::Blocked | TaskState::Verifying)
    }
}
