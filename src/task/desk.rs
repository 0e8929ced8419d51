//! Commands on tasks: lock the rows, decide, write, commit.
//!
//! All commands that wait are carried out in one transaction (one lock, one
//! decision each, one statement a kind of effect), so that a commit serves many
//! under load and nobody waits for a batch to fill. What a command may do is
//! decided by the pure machine on the locked row: first the fence, then the state.
use super::arbiter::LOOK_EVERY;
use super::machine::{AssignmentState, Event, Next};
use super::store::{self, Live, Locked, Settled, run, sql};
use super::{
    AgentId, AssignmentKey, Error, Failure, Notice, Policy, Shared, Start, TaskId, TaskState, Update, Usage,
};
use crate::id::{Epoch, OrgId};
use deadpool_postgres::Transaction;
use serde_json::{Value, json};
use std::collections::HashMap;
use uuid::Uuid;

/// Longest back-off between attempts.
const RETRY_MS_MAX: i64 = 60_000;

/// What someone wants done with a task.
#[derive(Clone, Debug)]
pub(super) enum Act {
    Accept,
    Refuse {
        reason: String,
    },
    Finish {
        result: Value,
        usage: Usage,
    },
    Fail(Failure),
    Release {
        reason: String,
        checkpoint: Option<Value>,
    },
    Cancel {
        reason: String,
    },
    /// The holder is gone for good: its process ended, its socket closed, its host restarted.
    Lost,
    /// A timer came; which one, the row says.
    Timer,
}

/// A command with the right to give it.
#[derive(Clone, Debug)]
pub(super) struct Command {
    pub(super) task: TaskId,
    /// The assignment it speaks for; commands on the task itself have none.
    pub(super) holder: Option<(AssignmentKey, AgentId)>,
    pub(super) act: Act,
}

/// What a command did.
#[derive(Clone, Debug)]
pub(super) enum Done {
    Started(Box<Start>),
    Moved(Update),
    /// There was nothing to do.
    Nothing,
}

/// What a locked row and a command make together.
enum Effect {
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
    },
    /// A round is over: the arbiter closes it.
    Close,
    Rearm(i64),
    Reready,
}

/// What a transaction of the desk did, to be told once it has committed.
#[derive(Debug, Default)]
pub(super) struct Outcome {
    pub(super) answers: Vec<Result<Done, Error>>,
    pub(super) notices: Vec<Notice>,
    /// Agents whose slots became free, once for each.
    pub(super) freed: Vec<AgentId>,
    /// Tasks whose round is over.
    pub(super) closing: Vec<TaskId>,
    /// Whether something comes due sooner than the arbiter looks by itself.
    pub(super) soon: bool,
}

impl Outcome {
    /// Whether the arbiter should look.
    pub(super) fn leaves_work(&self) -> bool {
        self.soon || !self.freed.is_empty() || self.notices.iter().any(super::reopens)
    }
}

/// Carries out the commands, at most one a task, in this transaction.
pub(super) async fn carry_out(
    shared: &Shared,
    tx: &Transaction<'_>,
    commands: &[Command],
) -> Result<Outcome, Error> {
    let ids: Vec<TaskId> = commands.iter().map(|command| command.task).collect();
    let rows: HashMap<TaskId, Locked> =
        store::lock(tx, &ids).await?.into_iter().map(|row| (row.id, row)).collect();

    let mut outcome = Outcome::default();
    let mut effects: Vec<(usize, TaskId, Effect)> = Vec::new();
    for (at, command) in commands.iter().enumerate() {
        let decided = match rows.get(&command.task) {
            None => Err(Error::UnknownTask(command.task)),
            Some(row) => decide(shared, row, command),
        };
        outcome.answers.push(match decided {
            Ok(effect) => {
                effects.push((at, command.task, effect));
                Ok(Done::Nothing)
            }
            Err(error) => Err(error),
        });
    }
    start(tx, &rows, &effects, &mut outcome).await?;
    settle(tx, effects, &mut outcome).await?;
    settle_fenced(tx, commands, &mut outcome).await?;
    Ok(outcome)
}

/// The fence, then the machine.
fn decide(shared: &Shared, row: &Locked, command: &Command) -> Result<Effect, Error> {
    if let Some((key, agent)) = &command.holder {
        let live = row.live.as_ref().filter(|live| live.key == *key && live.agent == *agent);
        let Some(live) = live else { return Err(Error::Fenced) };
        if matches!(command.act, Act::Accept) && live.running {
            return Ok(Effect::Again { live: live.clone(), policy: policy_of(shared, row)? });
        }
    }
    let event = match &command.act {
        Act::Accept => Event::Accept,
        Act::Refuse { .. } => Event::Refuse,
        Act::Finish { result, .. } => match check_result(shared, row, result) {
            Ok(()) => Event::Finish,
            Err(reason) => {
                return step(shared, row, Event::Reject, command, Some(reason));
            }
        },
        // One agent's word that it cannot be done is not final while another could try.
        Act::Fail(failure) => Event::Fail { retryable: failure.retryable || others_could(shared, row) },
        Act::Release { .. } => Event::Release,
        Act::Cancel { .. } => Event::Cancel,
        Act::Lost => Event::LeaseLost,
        Act::Timer => match due_event(shared, row)? {
            Timer::Event(event) => event,
            Timer::Close => return Ok(Effect::Close),
            Timer::Later(wait_ms) => return Ok(Effect::Rearm(wait_ms)),
            Timer::Ready => return Ok(Effect::Reready),
        },
    };
    if event == Event::Accept
        && let Some(live) = &row.live
        && !live.confirm_late
    {
        row.facts.next(event).map_err(|refused| Error::Conflict { state: refused.state })?;
        return Ok(Effect::Start { live: live.clone(), policy: policy_of(shared, row)? });
    }
    if event == Event::Accept {
        return Err(Error::Fenced);
    }
    step(shared, row, event, command, None)
}

/// What has come due.
enum Timer {
    Event(Event),
    Close,
    Later(i64),
    Ready,
}

fn due_event(shared: &Shared, row: &Locked) -> Result<Timer, Error> {
    if row.deadline_came && !row.facts.state.is_final() {
        return Ok(Timer::Event(Event::Deadline));
    }
    let policy = policy_of(shared, row);
    Ok(match (row.facts.state, &row.live) {
        (TaskState::Scheduled, _) if row.run_at_came => Timer::Ready,
        (TaskState::Open, _) if row.bidding => Timer::Close,
        (TaskState::Open, _) => Timer::Ready,
        (TaskState::Awarded, Some(live)) if live.confirm_late => Timer::Event(Event::ConfirmTimeout),
        (TaskState::Running, Some(live)) if live.lease_late => Timer::Event(Event::LeaseLost),
        (TaskState::Running, Some(live)) if live.attempt_late => Timer::Event(Event::AttemptTimeout),
        (TaskState::Running, Some(live)) if live.silent_ms > store::millis(policy?.progress) => {
            Timer::Event(Event::Stall)
        }
        (TaskState::Running, Some(live)) => Timer::Later(live.lease_left_ms.max(1)),
        (TaskState::Canceling, _) => Timer::Event(Event::GraceOver),
        _ => Timer::Later(1_000),
    })
}

/// What the machine says, as a row to write.
fn step(
    shared: &Shared,
    row: &Locked,
    event: Event,
    command: &Command,
    rejected: Option<String>,
) -> Result<Effect, Error> {
    let step = row.facts.next(event).map_err(|refused| Error::Conflict { state: refused.state })?;
    let assignee = row.live.as_ref().map(|live| live.agent.clone());
    let (result, error, usage, checkpoint, reason) = match &command.act {
        Act::Finish { result, usage } => match &rejected {
            None => (Some(result.clone()), None, *usage, None, None),
            Some(why) => (None, Some(json!({ "message": why })), *usage, None, Some(why.clone())),
        },
        Act::Fail(failure) => {
            let error = json!({ "message": failure.message, "retryable": failure.retryable });
            (None, Some(error), failure.usage, None, Some(failure.message.clone()))
        }
        Act::Release { reason, checkpoint } => {
            (None, None, Usage::default(), checkpoint.clone(), Some(reason.clone()))
        }
        Act::Refuse { reason } | Act::Cancel { reason } => {
            (None, None, Usage::default(), None, Some(reason.clone()))
        }
        Act::Accept | Act::Lost | Act::Timer => (None, None, Usage::default(), None, None),
    };
    let canceled_meanwhile = row.facts.state == TaskState::Canceling && command.holder.is_some();
    let result = result.filter(|_| step.state == TaskState::Completed);
    let due_ms = match (step.state, step.next) {
        (TaskState::Canceling, _) => Some(store::millis(policy_of(shared, row)?.cancel_grace)),
        (_, Next::Standby) => Some(0),
        (_, Next::RetryLater) => retry_ms(shared, row),
        _ => None,
    };
    let mut body = json!({ "state": step.state });
    if let Some(members) = body.as_object_mut() {
        let mut put = |name: &str, value: Option<Value>| {
            if let Some(value) = value {
                members.insert(name.to_owned(), value);
            }
        };
        put("reason", step.reason.map(Into::into));
        put("message", reason.clone().map(Into::into));
        put("assignment", step.assignment.map(|state| state.as_str().into()));
        put("assignment_id", row.live.as_ref().map(|live| live.key.assignment_id.to_string().into()));
        if usage != Usage::default() {
            put("usage", serde_json::to_value(usage).ok());
        }
    }
    // Who must stop working without having asked for the end itself.
    let stop = row
        .live
        .as_ref()
        .filter(|_| {
            command.holder.is_none() && (step.assignment.is_some() || step.state == TaskState::Canceling)
        })
        .map(|live| (live.agent.clone(), live.key));
    Ok(Effect::Settle {
        settled: Box::new(Settled {
            task: row.id,
            assignment: step.assignment.and(row.live.as_ref()).map(|live| live.key.assignment_id),
            assignee: step.assignment.and(assignee),
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
            tried: matches!(
                step.assignment,
                Some(
                    AssignmentState::Failed
                        | AssignmentState::Rejected
                        | AssignmentState::Released
                        | AssignmentState::Stalled
                        | AssignmentState::LeaseLost
                        | AssignmentState::Canceled
                )
            ),
            tokens: store::to_i64(usage.tokens),
            microdollars: store::to_i64(usage.microdollars),
            event: event_name(event),
            body,
            checkpoint,
        }),
        stop,
        answer: if canceled_meanwhile { Err(Error::Conflict { state: TaskState::Canceled }) } else { Ok(()) },
    })
}

fn event_name(event: Event) -> &'static str {
    match event {
        Event::RunAt => "scheduled",
        Event::BackOffOver => "back_off_over",
        Event::Award => "awarded",
        Event::RoundsExhausted => "unallocatable",
        Event::Unworkable => "unworkable",
        Event::Accept => "started",
        Event::Refuse => "refused",
        Event::ConfirmTimeout => "confirm_timeout",
        Event::Finish => "finished",
        Event::Reject => "rejected",
        Event::Fail { .. } => "failed",
        Event::Release => "released",
        Event::LeaseLost => "lease_lost",
        Event::AttemptTimeout => "attempt_timeout",
        Event::Stall => "stalled",
        Event::Cancel => "cancel",
        Event::GraceOver => "canceled",
        Event::Deadline => "deadline",
    }
}

fn timer_error(event: Event) -> Option<Value> {
    let message = match event {
        Event::LeaseLost => "the agent died or was silent for longer than its lease",
        Event::AttemptTimeout => "the attempt took longer than the policy allows",
        Event::Stall => "the agent lived but showed no work",
        Event::Deadline => "the deadline passed",
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
fn retry_ms(shared: &Shared, row: &Locked) -> Option<i64> {
    if others_could(shared, row) {
        return None;
    }
    let doublings = row.facts.attempt.clamp(1, 7) - 1;
    Some((1_000_i64 << doublings).min(RETRY_MS_MAX))
}

fn policy_of(shared: &Shared, row: &Locked) -> Result<Policy, Error> {
    shared.policy(&row.policy).map_err(Error::BadRequest)
}

fn check_result(shared: &Shared, row: &Locked, result: &Value) -> Result<(), String> {
    if row.policy.as_object().is_none_or(serde_json::Map::is_empty) {
        return Ok(());
    }
    let Some(schema) = shared.policy(&row.policy)?.result_schema else { return Ok(()) };
    let validator = jsonschema::validator_for(&schema).map_err(|e| format!("policy.result_schema: {e}"))?;
    validator
        .validate(result)
        .map_err(|e| format!("the result does not fit its schema at {:?}: {e}", e.instance_path().as_str()))
}

/// Begins the work of those who accepted; the answer carries the input.
async fn start(
    tx: &Transaction<'_>,
    rows: &HashMap<TaskId, Locked>,
    effects: &[(usize, TaskId, Effect)],
    outcome: &mut Outcome,
) -> Result<(), Error> {
    let mut starting: HashMap<TaskId, (usize, &Live, &Policy)> = HashMap::new();
    for (at, _, effect) in effects {
        match effect {
            Effect::Start { live, policy } => {
                starting.insert(live.key.task_id, (*at, live, policy));
            }
            Effect::Again { live, policy } => {
                let found = run(tx, sql!("restart_answer"), &[&live.key.task_id.as_uuid()]).await?;
                answer_start(
                    &found,
                    &HashMap::from([(live.key.task_id, (*at, live, policy))]),
                    rows,
                    outcome,
                );
            }
            _ => {}
        }
    }
    if starting.is_empty() {
        return Ok(());
    }
    let tasks: Vec<Uuid> = starting.keys().map(|id| id.as_uuid()).collect();
    let assignments: Vec<Uuid> =
        starting.values().map(|(_, live, _)| live.key.assignment_id.as_uuid()).collect();
    let leases: Vec<i64> = starting.values().map(|(_, _, policy)| store::millis(policy.lease)).collect();
    let attempts: Vec<i64> = starting.values().map(|(_, _, policy)| store::millis(policy.attempt)).collect();
    outcome.soon = starting.values().any(|(_, _, policy)| policy.lease.min(policy.attempt) < LOOK_EVERY);
    let found = run(tx, sql!("start"), &[&tasks, &assignments, &leases, &attempts]).await?;
    answer_start(&found, &starting, rows, outcome);
    for (id, (_, live, _)) in starting {
        if let Some(row) = rows.get(&id) {
            outcome
                .notices
                .extend(update(row, TaskState::Running, None, Some(live.agent.clone())).map(Notice::Updated));
        }
    }
    Ok(())
}

fn answer_start(
    found: &[tokio_postgres::Row],
    starting: &HashMap<TaskId, (usize, &Live, &Policy)>,
    rows: &HashMap<TaskId, Locked>,
    outcome: &mut Outcome,
) {
    for row in found {
        let id = TaskId::from(row.get::<_, Uuid>("id"));
        let (Some((at, live, policy)), Some(locked)) = (starting.get(&id), rows.get(&id)) else { continue };
        let Ok(org) = OrgId::try_from(locked.org.as_str()) else { continue };
        let start = Start {
            key: live.key,
            org,
            kind: locked.kind.clone(),
            input: row.get("input"),
            attempt: row.get("attempt"),
            lease: policy.lease,
            attempt_timeout: policy.attempt,
            checkpoint: row.get("checkpoint"),
            result_schema: policy.result_schema.clone(),
        };
        if let Some(answer) = outcome.answers.get_mut(*at) {
            *answer = Ok(Done::Started(Box::new(start)));
        }
    }
}

fn update(row: &Locked, state: TaskState, reason: Option<String>, agent: Option<AgentId>) -> Option<Update> {
    Some(Update {
        id: row.id,
        org: OrgId::try_from(row.org.as_str()).ok()?,
        kind: row.kind.clone(),
        state,
        state_reason: reason,
        epoch: row.epoch,
        agent_id: agent,
        requester: row.requester.clone(),
    })
}

/// Moves the tasks and ends the assignments.
async fn settle(
    tx: &Transaction<'_>,
    effects: Vec<(usize, TaskId, Effect)>,
    outcome: &mut Outcome,
) -> Result<(), Error> {
    let (mut settled, mut rearmed, mut ready, mut stops) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    let mut places = HashMap::new();
    for (at, task, effect) in effects {
        match effect {
            Effect::Settle { settled: row, stop, answer } => {
                places.insert(task, (at, answer, row.reason.clone()));
                stops.extend(stop.map(|(agent_id, key)| Notice::Cancel {
                    agent_id,
                    key,
                    reason: row.reason.clone().unwrap_or_else(|| row.event.to_owned()),
                }));
                settled.push(*row);
            }
            Effect::Close => outcome.closing.push(task),
            Effect::Rearm(wait_ms) => rearmed.push((task, wait_ms)),
            Effect::Reready => ready.push(task.as_uuid()),
            Effect::Start { .. } | Effect::Again { .. } => {}
        }
    }
    store::rearm(tx, &rearmed).await?;
    if !ready.is_empty() {
        run(tx, sql!("reready"), &[&ready]).await?;
    }
    for row in store::settle(tx, &settled).await? {
        let id = TaskId::from(row.get::<_, Uuid>("id"));
        let Some((at, answer, reason)) = places.remove(&id) else { continue };
        outcome.freed.extend(store::agent_of(&row, "assignee"));
        let Some(update) = moved(&row, id, reason) else { continue };
        outcome.notices.push(Notice::Updated(update.clone()));
        if let Some(place) = outcome.answers.get_mut(at) {
            *place = answer.map(|()| Done::Moved(update));
        }
    }
    outcome.notices.extend(stops);
    Ok(())
}

fn moved(row: &tokio_postgres::Row, id: TaskId, state_reason: Option<String>) -> Option<Update> {
    Some(Update {
        id,
        org: OrgId::try_from(row.get::<_, &str>("org")).ok()?,
        kind: row.get("kind"),
        state: TaskState::parse(row.get("state"))?,
        state_reason,
        epoch: Epoch(row.get("epoch")),
        agent_id: store::agent_of(row, "agent_id"),
        requester: row.get("requester"),
    })
}

/// A report on an assignment that is over: the same report again gets the stored outcome,
/// any other is kept in the log as an orphan and its cost is charged.
async fn settle_fenced(
    tx: &Transaction<'_>,
    commands: &[Command],
    outcome: &mut Outcome,
) -> Result<(), Error> {
    for (command, answer) in commands.iter().zip(&mut outcome.answers) {
        let (Err(Error::Fenced), Some((key, agent))) = (&*answer, &command.holder) else { continue };
        let (ended, usage, body) = match &command.act {
            Act::Finish { result, usage } => ("finished", *usage, json!({ "result": result })),
            Act::Fail(failure) => ("failed", failure.usage, json!({ "error": failure.message })),
            Act::Release { .. } => ("released", Usage::default(), Value::Null),
            Act::Refuse { .. } => ("refused", Usage::default(), Value::Null),
            _ => continue,
        };
        let (task, assignment) = (key.task_id.as_uuid(), key.assignment_id.as_uuid());
        let found = run(tx, sql!("ended_as"), &[&assignment, &task, &agent.as_str(), &key.epoch.0]).await?;
        let Some(row) = found.first() else { continue };
        if row.get::<_, &str>("state") == ended {
            let update = Update {
                id: key.task_id,
                org: OrgId::try_from(row.get::<_, &str>("org"))
                    .map_err(|e| Error::BadRequest(e.to_string()))?,
                kind: row.get("kind"),
                state: TaskState::parse(row.get("task_state")).unwrap_or(TaskState::Failed),
                state_reason: row.get("state_reason"),
                epoch: Epoch(row.get("epoch")),
                agent_id: store::agent_of(row, "agent_id"),
                requester: row.get("requester"),
            };
            *answer = Ok(Done::Moved(update));
        } else if !body.is_null() {
            let (tokens, money) = (store::to_i64(usage.tokens), store::to_i64(usage.microdollars));
            run(tx, sql!("orphan"), &[&task, &assignment, &agent.as_str(), &tokens, &money, &body]).await?;
        }
    }
    Ok(())
}
