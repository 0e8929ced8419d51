//! Carries out a batch of commands in one transaction: locks the rows, decides, writes.
//!
//! One statement locks all rows, and one statement for each kind of effect writes them, so that under load a commit
//! serves many commands. The pure code in `decide` says what a command does to its locked row: first the fence, then
//! the state.
use crate::task::commands::command::{Action, BatchOutcome, CommandReply, TaskCommand};
use crate::task::commands::decide::decide;
use crate::task::commands::dependents::{self, Outlook, Verification};
use crate::task::commands::effect::{Effect, Inputs};
use crate::task::commands::starts::{StartEffect, answer_starts, start, write_starts};
use crate::task::machine::AssignmentState;
use crate::task::storage::columns::columns;
use crate::task::storage::locked_task::{LiveAssignment, LockedTask, lock};
use crate::task::storage::rows::{self, Columns, Unreadable, UnreadableTask};
use crate::task::storage::statement::{run, sql, to_i64};
use crate::task::storage::store::{self, Settled};
use crate::task::storage::transaction::{Flushed, Transaction};
use crate::task::{
    Error, Notice, Policy, TaskContext, TaskState, Update, Usage, storage::charges, upkeep::unreadable,
};
use crate::{db, fault, id::TaskId};
use deadpool_postgres::Object;
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
    DecidedBatch::read(context, tx, commands).await?.write(context, tx).await
}

/// Commands that are decided and not written. The transaction has locked their tasks.
pub(in crate::task) struct DecidedBatch<'a> {
    commands: &'a [TaskCommand],
    rows: HashMap<TaskId, LockedTask>,
    starts: Vec<StartEffect>,
    effects: Vec<(usize, TaskId, Effect)>,
    broken: Vec<UnreadableTask>,
    outcome: BatchOutcome,
}

impl<'a> DecidedBatch<'a> {
    /// Locks the tasks of the commands, reads them and decides.
    pub(in crate::task) async fn read(
        context: &TaskContext,
        tx: &Transaction<'_>,
        commands: &'a [TaskCommand],
    ) -> Result<Self, Error> {
        let ids: Vec<TaskId> = commands.iter().map(|command| command.task).collect();
        let (rows, broken) = lock(tx, &ids).await?;
        let rows: HashMap<TaskId, LockedTask> = rows.into_iter().map(|row| (row.id, row)).collect();
        let outlooks = dependents::outlooks(tx, rows.values()).await?;
        let decided = decide_all(context, &rows, &outlooks, commands);
        let (starts, effects, outcome) = (Vec::new(), Vec::new(), BatchOutcome::default());
        let mut batch = Self { commands, rows, starts, effects, broken, outcome };
        for ((at, command), decided) in commands.iter().enumerate().zip(decided) {
            let answer = match decided {
                Ok(effect) => Ok(batch.take(at, command.task, effect)),
                Err(error) => {
                    if let Error::Internal(db::Error::Unreadable(why)) = &error {
                        batch.broken.push(UnreadableTask::new(command.task, why));
                    }
                    Err(error)
                }
            };
            batch.outcome.answers.push(answer);
        }
        Ok(batch)
    }

    /// Keeps an effect to be written. Returns the answer until then.
    fn take(&mut self, at: usize, task: TaskId, effect: Effect) -> CommandReply {
        match effect {
            Effect::Check(schema) => {
                let of = self.rows.get(&task).map(|task| (task.org.clone(), task.requester.clone()));
                return CommandReply::Unchecked(schema, of);
            }
            Effect::Start { live, policy } => self.starts.extend(self.start(at, live, policy, false)),
            Effect::Again { live, policy } => self.starts.extend(self.start(at, live, policy, true)),
            effect => self.effects.push((at, task, effect)),
        }
        CommandReply::Nothing
    }

    fn start(&self, at: usize, live: LiveAssignment, policy: Policy, again: bool) -> Option<StartEffect> {
        let row = self.rows.get(&live.key.task_id)?;
        let running = row.update_as(TaskState::Running, None, Some(live.agent));
        Some(StartEffect { at, key: live.key, policy, again, running })
    }

    /// Whether starts and ends are all that is to be written: two statements, of which none depends on the other.
    pub(in crate::task) fn is_plain(&self) -> bool {
        let ends = |(_, _, effect): &(usize, TaskId, Effect)| {
            matches!(effect, Effect::Settle { verification: None, .. })
        };
        let recorded = |(command, answer): (&TaskCommand, &Result<CommandReply, Error>)| {
            matches!(answer, Err(Error::Fenced)) && command.holder.is_some() && is_recorded(&command.action)
        };
        self.broken.is_empty()
            && self.starts.iter().all(|start| !start.again)
            && self.effects.iter().all(ends)
            && !self.commands.iter().zip(&self.outcome.answers).any(recorded)
    }

    /// Writes a plain batch and commits it in the same round trip, with a flush behind the commit if it `flushes`.
    /// Returns also the tasks that have started and whose input cannot be read, for [`end_broken`].
    pub(in crate::task) async fn write_and_commit<'t>(
        mut self,
        tx: &Transaction<'t>,
        flushes: bool,
    ) -> Result<(BatchOutcome, Vec<UnreadableTask>, Flushed<'t>), Error> {
        let mut sorted = Sorted::default();
        for (at, task, effect) in std::mem::take(&mut self.effects) {
            sorted.put(at, task, effect, &self.rows, &mut self.outcome);
        }
        let starting: Vec<&StartEffect> = self.starts.iter().collect();
        let statements = futures_util::future::try_join(
            write_starts(tx, &starting, false),
            store::settle(tx, &sorted.settled),
        );
        fault::point(fault::Point::TaskCommandsBeforeCommit);
        let ((started, settled), flushed) = tx.commit_after(statements, flushes).await?;
        let broken = answer_starts(&started, &starting, &mut self.outcome)?;
        sorted.answer(&settled, &mut self.outcome)?;
        Ok((self.outcome, broken, flushed))
    }

    /// Writes everything.
    pub(in crate::task) async fn write(
        mut self,
        context: &TaskContext,
        tx: &Transaction<'_>,
    ) -> Result<BatchOutcome, Error> {
        let Self { commands, rows, starts, effects, broken, outcome } = &mut self;
        broken.extend(start(tx, starts, outcome).await?);
        settle(tx, rows, std::mem::take(effects), outcome).await?;
        let states = unreadable::end(tx, context, broken, outcome).await?;
        answer_broken(commands, broken, &states, outcome);
        settle_fenced(tx, commands, outcome).await?;
        Ok(self.outcome)
    }
}

/// Ends tasks that have just started and cannot be read, in a transaction of its own, and answers their commands.
pub(in crate::task) async fn end_broken(
    context: &TaskContext,
    client: &mut Object,
    commands: &[TaskCommand],
    broken: &[UnreadableTask],
    outcome: &mut BatchOutcome,
) -> Result<(), Error> {
    let tx = Transaction::begin(client);
    let ids: Vec<Uuid> = broken.iter().map(|one| one.id.as_uuid()).collect();
    run(&tx, sql!("lock_tasks"), &[&ids]).await?;
    let states = unreadable::end(&tx, context, broken, outcome).await?;
    tx.commit().await?;
    answer_broken(commands, broken, &states, outcome);
    Ok(())
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
    sorted.write_small(tx).await?;
    let moved = store::settle(tx, &sorted.settled).await?;
    dependents::verify(tx, &sorted.verifications).await?;
    sorted.answer(&moved, outcome)
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

    /// Answers the commands whose tasks have moved, with the rows of `settle.sql`.
    fn answer(self, moved: &[Row], outcome: &mut BatchOutcome) -> Result<(), Error> {
        let Self { mut places, verifications, stops, .. } = self;
        for row in moved {
            let id = rows::task_id(row, "id")?;
            let Some((at, answer)) = places.remove(&id) else { continue };
            outcome.freed.extend(rows::agent(row, "assignee")?);
            outcome.leads_on |= row.read::<bool>("leads_on")?;
            let update = Update::from_row(row)?;
            outcome.notices.push(Notice::Updated(update.clone()));
            if let Some(place) = outcome.answers.get_mut(at) {
                *place = answer.map(|()| CommandReply::Moved(update));
            }
        }
        outcome.leads_on |= !verifications.is_empty();
        outcome.notices.extend(stops);
        Ok(())
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

/// Whether a report on an assignment that is over is answered from the outcome, or recorded.
fn is_recorded(action: &Action) -> bool {
    use Action::{Fail, Finish, Refuse, Release, Unstorable};
    matches!(action, Finish { .. } | Fail(_) | Unstorable { .. } | Release { .. } | Refuse { .. })
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
        if !is_recorded(&command.action) {
            continue;
        }
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
