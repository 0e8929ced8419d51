//! Commands on tasks: lock the rows, decide, write, commit.
//!
//! All commands that wait are carried out in one transaction (one lock, one
//! decision each, one statement a kind of effect), so that a commit serves many
//! under load and nobody waits for a batch to fill. What a command may do is
//! decided by the pure machine on the locked row: first the fence, then the state.
use super::arbiter::LOOK_EVERY;
use super::budget;
use super::decide::{Effect, decide};
use super::depend::{self, Verification};
use super::store::{self, Live, Locked, Settled, run, sql};
use super::{
    AgentId, AssignmentKey, Error, Failure, Notice, Policy, Question, Shared, Start, TaskId, TaskState,
    Update, Usage,
};
use crate::id::{Epoch, OrgId};
use deadpool_postgres::Transaction;
use serde_json::{Value, json};
use std::collections::HashMap;
use uuid::Uuid;

/// What someone wants done with a task.
#[derive(Clone, Debug)]
pub(super) enum Act {
    Accept,
    /// Accepts, and starts later.
    Confirm,
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
    /// The assignee needs something before it goes on.
    Wait(Box<Question>),
    /// What a task waits for has come.
    Answer {
        answer: Value,
        by: String,
    },
    Cancel {
        reason: String,
    },
    /// The holder is gone for good: its process ended, its socket closed, its host restarted.
    Lost,
    /// A timer came, or something that the task depends on has ended; which one, the rows say.
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
    /// Whether the end of a task concerns others, which the arbiter moves.
    pub(super) look: bool,
}

impl Outcome {
    /// Whether the arbiter should look.
    pub(super) fn leaves_work(&self) -> bool {
        self.soon || self.look || !self.freed.is_empty() || self.notices.iter().any(super::reopens)
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

    let outlooks = depend::outlooks(tx, rows.values()).await?;

    let mut outcome = Outcome::default();
    let mut effects: Vec<(usize, TaskId, Effect)> = Vec::new();
    for (at, command) in commands.iter().enumerate() {
        let decided = match rows.get(&command.task) {
            None => Err(Error::UnknownTask(command.task)),
            Some(row) => decide(shared, row, outlooks.get(&row.id), command),
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
    settle(tx, &rows, effects, &mut outcome).await?;
    settle_fenced(tx, commands, &mut outcome).await?;
    Ok(outcome)
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
                let found =
                    run(tx, sql!("restart_answer"), &[&live.key.task_id.as_uuid(), &live.key.epoch.0])
                        .await?;
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
    let first_look = |policy: &Policy| policy.lease.min(policy.attempt).min(policy.progress);
    outcome.soon = starting.values().any(|(_, _, policy)| first_look(policy) < LOOK_EVERY);
    let looks: Vec<i64> = starting.values().map(|(_, _, policy)| store::millis(first_look(policy))).collect();
    let found = run(tx, sql!("start"), &[&tasks, &assignments, &leases, &attempts, &looks]).await?;
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
            deadline: row.get("deadline_at"),
            answers: row
                .get::<_, Option<Value>>("answers")
                .and_then(|answers| answers.as_array().cloned())
                .unwrap_or_default(),
            rejected: row.get("rejected"),
            budgeted: row.get("budgeted"),
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
    rows: &HashMap<TaskId, Locked>,
    effects: Vec<(usize, TaskId, Effect)>,
    outcome: &mut Outcome,
) -> Result<(), Error> {
    let mut sorted = Sorted::default();
    for (at, task, effect) in effects {
        sorted.put(at, task, effect, rows, outcome);
    }
    let Sorted { settled, places, verifications, stops, .. } = &mut sorted;
    let mut places = std::mem::take(places);
    let (settled, verifications, stops) =
        (std::mem::take(settled), std::mem::take(verifications), std::mem::take(stops));
    sorted.write_small(tx).await?;
    for row in store::settle(tx, &settled).await? {
        let id = TaskId::from(row.get::<_, Uuid>("id"));
        let Some((at, answer, reason)) = places.remove(&id) else { continue };
        outcome.freed.extend(store::agent_of(&row, "assignee"));
        let Some(update) = moved(&row, id, reason) else { continue };
        outcome.notices.push(Notice::Updated(update.clone()));
        outcome.look |= row.get::<_, bool>("leads_on");
        if let Some(place) = outcome.answers.get_mut(at) {
            *place = answer.map(|()| Done::Moved(update));
        }
    }
    outcome.look |= !verifications.is_empty();
    depend::verify(tx, &verifications).await?;
    outcome.notices.extend(stops);
    Ok(())
}

/// Whom a task that moves answers, with what, and why it moved.
type Place = (usize, Result<(), Error>, Option<String>);

/// Effects by the statement that writes them.
#[derive(Default)]
struct Sorted {
    settled: Vec<Settled>,
    places: HashMap<TaskId, Place>,
    verifications: Vec<Verification>,
    stops: Vec<Notice>,
    rearmed: Vec<(TaskId, i64)>,
    ready: Vec<Uuid>,
    resting: Vec<Uuid>,
    confirmed: Vec<(Uuid, i64)>,
    nudged: Vec<Uuid>,
    escalated: Vec<Uuid>,
}

impl Sorted {
    fn put(
        &mut self,
        at: usize,
        task: TaskId,
        effect: Effect,
        rows: &HashMap<TaskId, Locked>,
        outcome: &mut Outcome,
    ) {
        let row = rows.get(&task);
        let tell = |state| row.and_then(|row| update(row, state, None, row.agent.clone()));
        match effect {
            Effect::Settle { settled, stop, answer, verification } => {
                self.places.insert(task, (at, answer, settled.reason.clone()));
                self.stops.extend(stop.map(|(agent_id, key)| Notice::Cancel {
                    agent_id,
                    key,
                    reason: settled.reason.clone().unwrap_or_else(|| settled.event.to_owned()),
                }));
                self.verifications.extend(verification);
                self.settled.push(*settled);
            }
            Effect::Close => outcome.closing.push(task),
            Effect::Rearm(wait_ms) => self.rearmed.push((task, wait_ms)),
            Effect::Reready => {
                if row.is_some_and(|row| row.facts.state == TaskState::Scheduled) {
                    outcome.notices.extend(tell(TaskState::Open).map(Notice::Updated));
                }
                self.ready.push(task.as_uuid());
            }
            Effect::Rest => self.resting.push(task.as_uuid()),
            Effect::Confirm { live, start_ms } => {
                self.confirmed.push((live.key.assignment_id.as_uuid(), start_ms));
                self.answered(at, row, outcome);
            }
            Effect::Nudge { live, wait_ms } => {
                self.nudged.push(live.key.assignment_id.as_uuid());
                self.rearmed.push((task, wait_ms));
                outcome.notices.push(Notice::Nudge { agent_id: live.agent, key: live.key });
            }
            Effect::Escalate(wait_ms) => {
                self.escalated.push(task.as_uuid());
                self.rearmed.push((task, wait_ms));
                outcome.notices.extend(
                    row.and_then(|row| {
                        update(row, row.facts.state, row.state_reason.clone(), row.agent.clone())
                    })
                    .map(Notice::Updated),
                );
            }
            Effect::Done => self.answered(at, row, outcome),
            Effect::Start { .. } | Effect::Again { .. } => {}
        }
    }

    /// The answer is the task as it is.
    fn answered(&mut self, at: usize, row: Option<&Locked>, outcome: &mut Outcome) {
        let now = row.and_then(|row| {
            update(row, row.facts.state, row.state_reason.clone(), row.agent.clone()).map(Done::Moved)
        });
        if let (Some(place), Some(now)) = (outcome.answers.get_mut(at), now) {
            *place = Ok(now);
        }
    }

    async fn write_small(&self, tx: &Transaction<'_>) -> Result<(), Error> {
        store::rearm(tx, &self.rearmed).await?;
        for (tasks, statement) in [
            (&self.ready, sql!("reready")),
            (&self.resting, sql!("rest")),
            (&self.nudged, sql!("nudge")),
            (&self.escalated, sql!("escalate")),
        ] {
            if !tasks.is_empty() {
                run(tx, statement, &[tasks]).await?;
            }
        }
        if !self.confirmed.is_empty() {
            let (ids, times): (Vec<Uuid>, Vec<i64>) = self.confirmed.iter().copied().unzip();
            run(tx, sql!("confirm"), &[&ids, &times]).await?;
        }
        Ok(())
    }
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
            budget::settle_late(tx, assignment, usage).await?;
        }
    }
    Ok(())
}
