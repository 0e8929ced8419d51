//! Carries out a batch of commands in one transaction: locks the rows, decides, writes.
//!
//! One statement locks all rows, and one statement for each kind of effect writes them, so that under load a commit
//! serves many commands. The pure code in `decide` says what a command does to its locked row: first the fence, then
//! the state.
use crate::task::commands::command::{Action, BatchOutcome, CommandReply, TaskCommand};
use crate::task::commands::decide::decide;
use crate::task::commands::dependents::{self, Outlook, Verification};
use crate::task::commands::effect::{Effect, Inputs};
use crate::task::machine::AssignmentState;
use crate::task::storage::columns::columns;
use crate::task::storage::locked_task::{LiveAssignment, LockedTask, lock};
use crate::task::storage::rows::{self, Columns, Unreadable, UnreadableTask};
use crate::task::storage::statement::{millis, run, sql, to_i64};
use crate::task::storage::store::{self, Settled};
use crate::task::{
    Error, Notice, POLL_EVERY, Policy, Start, TaskContext, TaskState, Update, Usage, storage::charges,
    upkeep::unreadable,
};
use crate::{db, id::TaskId};
use deadpool_postgres::Transaction;
use serde_json::{Value, json};
use std::collections::HashMap;
use tokio_postgres::Row;
use uuid::Uuid;

/// Carries out the commands in this transaction, at most one for each task.
pub(in crate::task) async fn carry_out(
    context: &TaskContext,
    tx: &Transaction<'_>,
    commands: &[TaskCommand],
) -> Result<BatchOutcome, Error> {
    let ids: Vec<TaskId> = commands.iter().map(|command| command.task).collect();
    let (rows, mut broken) = lock(tx, &ids).await?;
    let rows: HashMap<TaskId, LockedTask> = rows.into_iter().map(|row| (row.id, row)).collect();
    let outlooks = dependents::outlooks(tx, rows.values()).await?;

    let mut outcome = BatchOutcome::default();
    let mut effects: Vec<(usize, TaskId, Effect)> = Vec::new();
    let decided = decide_all(context, &rows, &outlooks, commands);
    for ((at, command), decided) in commands.iter().enumerate().zip(decided) {
        match decided {
            Ok(Effect::Check(schema)) => outcome.answers.push(Ok(CommandReply::Unchecked(schema))),
            Ok(effect) => {
                effects.push((at, command.task, effect));
                outcome.answers.push(Ok(CommandReply::Nothing));
            }
            Err(error) => {
                if let Error::Internal(db::Error::Unreadable(why)) = &error {
                    broken.push(UnreadableTask::new(command.task, why));
                }
                outcome.answers.push(Err(error));
            }
        }
    }
    broken.extend(start(tx, &rows, &effects, &mut outcome).await?);
    settle(tx, &rows, effects, &mut outcome).await?;
    let states = unreadable::end(tx, context, &broken, &mut outcome).await?;
    answer_broken(commands, &broken, &states, &mut outcome);
    settle_fenced(tx, commands, &mut outcome).await?;
    Ok(outcome)
}

/// Decides about every command, in their order.
fn decide_all(
    context: &TaskContext,
    rows: &HashMap<TaskId, LockedTask>,
    outlooks: &HashMap<TaskId, Outlook>,
    commands: &[TaskCommand],
) -> Vec<Result<Effect, Error>> {
    // One lock for the batch; it is released before the next statement is sent.
    let roster = context.roster.lock();
    let inputs = Inputs { policies: &context.policies, roster: &roster, new_id: TaskId::generate };
    let one = |command: &TaskCommand| {
        let row = rows.get(&command.task).ok_or(Error::UnknownTask(command.task))?;
        context
            .catch_panic("deciding about a task", || decide(inputs, row, outlooks.get(&row.id), command))
            .unwrap_or_else(|why| Err(Unreadable::new("task", why).into()))
    };
    commands.iter().map(one).collect()
}

/// Answers the commands on tasks whose rows cannot be read.
fn answer_broken(
    commands: &[TaskCommand],
    broken: &[UnreadableTask],
    states: &HashMap<TaskId, TaskState>,
    outcome: &mut BatchOutcome,
) {
    for (command, answer) in commands.iter().zip(&mut outcome.answers) {
        let Some(one) = broken.iter().find(|one| one.id == command.task) else { continue };
        *answer = Err(match (states.get(&command.task), &command.holder) {
            _ if one.newer_schema => Error::NewerSchema(one.why.clone()),
            (None, _) => Unreadable::new("task", one.why.clone()).into(),
            (Some(_), Some(_)) => Error::Fenced,
            (Some(state), None) => Error::Conflict { state: *state },
        });
    }
}

/// Starts the accepted assignments; the answers carry the input. Returns the tasks whose input cannot be read.
async fn start(
    tx: &Transaction<'_>,
    rows: &HashMap<TaskId, LockedTask>,
    effects: &[(usize, TaskId, Effect)],
    outcome: &mut BatchOutcome,
) -> Result<Vec<UnreadableTask>, Error> {
    let mut broken = Vec::new();
    let mut starting: HashMap<TaskId, (usize, &LiveAssignment, &Policy)> = HashMap::new();
    for (at, _, effect) in effects {
        match effect {
            Effect::Start { live, policy } => {
                starting.insert(live.key.task_id, (*at, live, policy));
            }
            Effect::Again { live, policy } => {
                let found =
                    run(tx, sql!("restart_answer"), &[&live.key.task_id.as_uuid(), &live.key.epoch.0])
                        .await?;
                let again = HashMap::from([(live.key.task_id, (*at, live, policy))]);
                broken.extend(answer_start(&found, &again, rows, outcome)?);
            }
            _ => {}
        }
    }
    if starting.is_empty() {
        return Ok(broken);
    }
    // When the timers of a running task are first due.
    let first_due = |policy: &Policy| policy.lease.min(policy.attempt).min(policy.progress);
    outcome.soon = starting.values().any(|(_, _, policy)| first_due(policy) < POLL_EVERY);
    let columns = columns!("start", &starting, |(task, (_, live, policy))| {
        task_id: Uuid = task.as_uuid(),
        assignment_id: Uuid = live.key.assignment_id.as_uuid(),
        lease_ms: i64 = millis(policy.lease),
        attempt_ms: i64 = millis(policy.attempt),
        due_ms: i64 = millis(first_due(policy)),
    });
    let found = columns.run(tx, &[]).await?;
    drop(columns);
    broken.extend(answer_start(&found, &starting, rows, outcome)?);
    for (id, (_, live, _)) in starting {
        if let Some(row) = rows.get(&id) {
            let running = row.update_as(TaskState::Running, None, Some(live.agent.clone()));
            outcome.notices.push(Notice::Updated(running));
        }
    }
    Ok(broken)
}

fn answer_start(
    found: &[Row],
    starting: &HashMap<TaskId, (usize, &LiveAssignment, &Policy)>,
    rows: &HashMap<TaskId, LockedTask>,
    outcome: &mut BatchOutcome,
) -> Result<Vec<UnreadableTask>, Error> {
    let mut broken = Vec::new();
    for row in found {
        let id = rows::task_id(row, "id")?;
        let (Some((at, live, policy)), Some(locked)) = (starting.get(&id), rows.get(&id)) else { continue };
        let begun = Start {
            key: live.key,
            org: locked.org.clone(),
            kind: locked.kind.clone(),
            input: Value::Null,
            attempt: 0,
            lease: policy.lease,
            attempt_timeout: policy.attempt,
            checkpoint: None,
            result_schema: policy.result_schema.clone(),
            deadline: None,
            answers: Vec::new(),
            rejected: None,
            budgeted: false,
        };
        match begun.filled(row) {
            Ok(start) => {
                if let Some(answer) = outcome.answers.get_mut(*at) {
                    *answer = Ok(CommandReply::Started(Box::new(start)));
                }
            }
            Err(why) => broken.push(UnreadableTask::new(id, &why)),
        }
    }
    Ok(broken)
}

impl Start {
    /// With the columns of `start.sql` or `restart_answer.sql`.
    fn filled(self, row: &Row) -> Result<Self, Unreadable> {
        let answers: Option<Value> = row.read("answers")?;
        Ok(Self {
            input: row.read("input")?,
            attempt: row.read("attempt")?,
            checkpoint: row.read("checkpoint")?,
            deadline: rows::time(row, "deadline_at")?,
            answers: answers.and_then(|answers| answers.as_array().cloned()).unwrap_or_default(),
            rejected: row.read("rejected")?,
            budgeted: row.read("budgeted")?,
            ..self
        })
    }
}

/// Writes all effects but the starts.
async fn settle(
    tx: &Transaction<'_>,
    rows: &HashMap<TaskId, LockedTask>,
    effects: Vec<(usize, TaskId, Effect)>,
    outcome: &mut BatchOutcome,
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
        let id = rows::task_id(&row, "id")?;
        let Some((at, answer)) = places.remove(&id) else { continue };
        outcome.freed.extend(rows::agent(&row, "assignee")?);
        outcome.leads_on |= row.read::<bool>("leads_on")?;
        let update = Update::from_row(&row)?;
        outcome.notices.push(Notice::Updated(update.clone()));
        if let Some(place) = outcome.answers.get_mut(at) {
            *place = answer.map(|()| CommandReply::Moved(update));
        }
    }
    outcome.leads_on |= !verifications.is_empty();
    dependents::verify(tx, &verifications).await?;
    outcome.notices.extend(stops);
    Ok(())
}

/// The index of the command that a moved task answers, and whether it succeeded.
type PendingReply = (usize, Result<(), Error>);

/// The effects of a batch, by the statement that writes them.
#[derive(Default)]
struct Sorted {
    settled: Vec<Settled>,
    places: HashMap<TaskId, PendingReply>,
    verifications: Vec<Verification>,
    stops: Vec<Notice>,
    due: Vec<(TaskId, i64)>,
    ready: Vec<Uuid>,
    untimed: Vec<Uuid>,
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
        rows: &HashMap<TaskId, LockedTask>,
        outcome: &mut BatchOutcome,
    ) {
        let row = rows.get(&task);
        let update = |state| row.map(|row| row.update_as(state, None, row.agent.clone()));
        match effect {
            Effect::Settle { settled, stop, answer, verification } => {
                self.places.insert(task, (at, answer));
                self.stops.extend(stop.map(|(agent_id, key)| Notice::Cancel {
                    agent_id,
                    key,
                    reason: settled.reason.clone().unwrap_or_else(|| settled.event.to_owned()),
                }));
                self.verifications.extend(verification);
                self.settled.push(*settled);
            }
            Effect::Close => outcome.closing.push(task),
            Effect::SetDue(wait_ms) => self.due.push((task, wait_ms)),
            Effect::MarkReady => {
                if row.is_some_and(|row| row.facts.state == TaskState::Scheduled) {
                    outcome.notices.extend(update(TaskState::Open).map(Notice::Updated));
                }
                self.ready.push(task.as_uuid());
            }
            Effect::ClearTimer => self.untimed.push(task.as_uuid()),
            Effect::Confirm { live, start_ms } => {
                self.confirmed.push((live.key.assignment_id.as_uuid(), start_ms));
                let confirmed =
                    row.map(|row| Update { version: row.version.saturating_add(1), ..row.update() });
                self.answered(at, confirmed, outcome);
            }
            Effect::Nudge { live, wait_ms } => {
                self.nudged.push(live.key.assignment_id.as_uuid());
                self.due.push((task, wait_ms));
                outcome.notices.push(Notice::Nudge { agent_id: live.agent, key: live.key });
            }
            Effect::Escalate(wait_ms) => {
                self.escalated.push(task.as_uuid());
                self.due.push((task, wait_ms));
                outcome.notices.extend(row.map(LockedTask::update).map(Notice::Updated));
            }
            Effect::CommandReply => self.answered(at, row.map(LockedTask::update), outcome),
            Effect::Start { .. } | Effect::Again { .. } | Effect::Check(_) => {}
        }
    }

    /// Answers with the task as it is.
    fn answered(&mut self, at: usize, now: Option<Update>, outcome: &mut BatchOutcome) {
        if let (Some(place), Some(now)) = (outcome.answers.get_mut(at), now) {
            *place = Ok(CommandReply::Moved(now));
        }
    }

    async fn write_small(&self, tx: &Transaction<'_>) -> Result<(), Error> {
        store::set_due(tx, &self.due).await?;
        for (tasks, statement) in [
            (&self.ready, sql!("mark_ready")),
            (&self.untimed, sql!("clear_timer")),
            (&self.nudged, sql!("nudge")),
            (&self.escalated, sql!("escalate")),
        ] {
            if !tasks.is_empty() {
                run(tx, statement, &[tasks]).await?;
            }
        }
        if !self.confirmed.is_empty() {
            let columns = columns!("confirm", &self.confirmed, |(assignment, start_within)| {
                id: Uuid = *assignment,
                start_ms: i64 = *start_within,
            });
            columns.run(tx, &[]).await?;
        }
        Ok(())
    }
}

/// Answers reports on assignments that are over: a repeated report gets the stored outcome, any other is recorded in
/// the event log as an orphan result, and its cost is charged.
async fn settle_fenced(
    tx: &Transaction<'_>,
    commands: &[TaskCommand],
    outcome: &mut BatchOutcome,
) -> Result<(), Error> {
    for (command, answer) in commands.iter().zip(&mut outcome.answers) {
        let (Err(Error::Fenced), Some((key, agent))) = (&*answer, &command.holder) else { continue };
        let (ended, usage, body) = match &command.action {
            Action::Finish { result, usage, .. } => {
                (AssignmentState::Finished, *usage, json!({ "result": &**result }))
            }
            Action::Fail(failure) => {
                (AssignmentState::Failed, failure.usage, json!({ "error": failure.message }))
            }
            Action::Unstorable { usage, .. } => (AssignmentState::Failed, *usage, Value::Null),
            Action::Release { .. } => (AssignmentState::Released, Usage::default(), Value::Null),
            Action::Refuse { .. } => (AssignmentState::Refused, Usage::default(), Value::Null),
            _ => continue,
        };
        let outage = matches!(&command.action, Action::Fail(failure) if failure.outage);
        let (task, assignment) = (key.task_id.as_uuid(), key.assignment_id.as_uuid());
        let found = run(tx, sql!("ended_as"), &[&assignment, &task, &agent.as_str(), &key.epoch.0]).await?;
        let Some(row) = found.first() else { continue };
        let state = rows::assignment_state(row, "ended_as")?;
        if state == Some(ended) || (outage && state == Some(AssignmentState::Released)) {
            *answer = Ok(CommandReply::Moved(Update::from_row(row)?));
        } else if !body.is_null() {
            let usage = usage.limited();
            let (tokens, money) = (to_i64(usage.tokens), to_i64(usage.microdollars));
            run(tx, sql!("orphan"), &[&task, &assignment, &agent.as_str(), &tokens, &money, &body]).await?;
            charges::settle_late(tx, assignment, usage).await?;
        }
    }
    Ok(())
}
