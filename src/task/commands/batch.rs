//! The work of the group commits: a batch of commands in one transaction, and what follows its commit.
use crate::fault;
use crate::task::commands::after_commit::{publish, release_slots};
use crate::task::commands::command::{Action, BatchOutcome, CommandReply, TaskCommand};
use crate::task::commands::command_executor::{DecidedBatch, end_broken};
use crate::task::commands::fresh_awards::FreshAward;
use crate::task::commands::starts::{StartEffect, answer_starts, write_starts};
use crate::task::storage::statement::{run, sql};
use crate::task::storage::transaction::{Flushed, Transaction};
use crate::task::{Error, TaskState, Update, context::TaskContext};
use futures_util::future::{ready, try_join};
use std::sync::{Arc, atomic::Ordering};
use tokio_postgres::types::ToSql;
use uuid::Uuid;

/// A batch of accepts or of endings: one transaction. An ending is answered when it is on disk.
///
/// One round trip, if they accept awards that this node has just made; what these do not start is carried out as the
/// rows say.
pub(in crate::task) async fn carry_out(
    context: Arc<TaskContext>,
    batch: Arc<Vec<TaskCommand>>,
) -> Result<Vec<Result<CommandReply, Error>>, Error> {
    // Where another node arbitrates, it may have to be called in the transaction.
    let here = context.arbitrates.load(Ordering::Relaxed);
    let fresh = if here { context.fresh_awards.take(&batch) } else { None };
    let Some(starts) = fresh.and_then(|awards| start_effects(&context, awards)) else {
        return carry_out_locked(&context, &batch).await;
    };
    let mut answers = start_fresh(&context, &batch, &starts).await?;
    let unmoved = |answer: &Result<CommandReply, Error>| matches!(answer, Ok(CommandReply::Nothing));
    let left = batch.iter().zip(&answers).filter(|(_, answer)| unmoved(answer));
    let left: Vec<TaskCommand> = left.map(|(command, _)| command.clone()).collect();
    if !left.is_empty() {
        let replies = carry_out_locked(&context, &left).await?;
        for (answer, reply) in answers.iter_mut().filter(|answer| unmoved(answer)).zip(replies) {
            *answer = reply;
        }
    }
    Ok(answers)
}

/// The starts of awards that were just made; `None` if a policy cannot be used any more.
fn start_effects(context: &TaskContext, awards: Vec<FreshAward>) -> Option<Vec<StartEffect>> {
    let start = |(at, award): (usize, FreshAward)| {
        let FreshAward { assigned, task, policy } = award;
        let policy = context.policies.of_task(&task.kind, &policy).ok()?;
        let running = Update { state: TaskState::Running, ..task };
        Some(StartEffect { at, key: assigned.key, policy, again: false, running })
    };
    awards.into_iter().enumerate().map(start).collect()
}

/// Starts assignments in one round trip: begin, lock, start, commit. What cannot start keeps the answer `Nothing`.
async fn start_fresh(
    context: &TaskContext,
    batch: &[TaskCommand],
    starts: &[StartEffect],
) -> Result<Vec<Result<CommandReply, Error>>, Error> {
    let mut client = context.database.client().await?;
    let tx = Transaction::begin_async(&mut client);
    let ids: Vec<Uuid> = batch.iter().map(|command| command.task.as_uuid()).collect();
    let starting: Vec<&StartEffect> = starts.iter().collect();
    tx.prepare_all(&[sql!("lock_tasks"), sql!("start")]).await?;
    let locks: [&(dyn ToSql + Sync); 1] = [&ids];
    // In this order on one connection: the start must see what was committed while the locks were waited for.
    let statements = try_join(run(&tx, sql!("lock_tasks"), &locks), write_starts(&tx, &starting, true));
    fault::point(fault::Point::TaskCommandsBeforeCommit);
    let ((_, rows), _) = tx.commit_after(statements, false).await?;
    drop(tx);
    let answers = batch.iter().map(|_| Ok(CommandReply::Nothing)).collect();
    let mut outcome = BatchOutcome { answers, ..BatchOutcome::default() };
    let broken = answer_starts(&rows, &starting, &mut outcome)?;
    if !broken.is_empty() {
        end_broken(context, &mut client, batch, &broken, &mut outcome).await?;
    }
    let answers = tell(context, outcome);
    fault::point(fault::Point::TaskAccepted);
    Ok(answers)
}

/// A batch of accepts or of endings as the rows say.
///
/// Two round trips, if the batch is plain: begin, lock and read; then write, commit and flush.
async fn carry_out_locked(
    context: &TaskContext,
    batch: &[TaskCommand],
) -> Result<Vec<Result<CommandReply, Error>>, Error> {
    let accepts = batch.iter().all(|command| matches!(command.action, Action::Accept));
    let mut client = context.database.client().await?;
    let tx = Transaction::begin_async(&mut client);
    let decided = DecidedBatch::read(context, &tx, batch).await?;
    // The arbiter of another node is called in the transaction, when it is known what that leaves.
    if decided.is_plain() && context.arbitrates.load(Ordering::Relaxed) {
        let (mut outcome, broken, flushed) = decided.write_and_commit(&tx, !accepts).await?;
        if broken.is_empty() {
            let answers = tell(context, outcome);
            return on_disk(batch, accepts, answers, flushed).await;
        }
        flushed.await?;
        drop(tx);
        end_broken(context, &mut client, batch, &broken, &mut outcome).await?;
        return Ok(tell(context, outcome));
    }
    let outcome = decided.write(context, &tx).await?;
    if outcome.leaves_work() {
        context.call_arbiter(&tx).await?;
    }
    fault::point(fault::Point::TaskCommandsBeforeCommit);
    let ((), flushed) = tx.commit_after(ready(Ok(())), !accepts).await?;
    let answers = tell(context, outcome);
    on_disk(batch, accepts, answers, flushed).await
}

/// Publishes what a commit did, and returns its answers.
fn tell(context: &TaskContext, outcome: BatchOutcome) -> Vec<Result<CommandReply, Error>> {
    if outcome.soon || outcome.leads_on {
        context.notify_arbiter();
    }
    // The slots first: the arbiter that the notices wake finds them free.
    release_slots(context, &outcome.freed);
    publish(context, &outcome.freed, outcome.notices);
    outcome.answers
}

/// The answers, when they may be given.
async fn on_disk(
    batch: &[TaskCommand],
    accepts: bool,
    answers: Vec<Result<CommandReply, Error>>,
    flushed: Flushed<'_>,
) -> Result<Vec<Result<CommandReply, Error>>, Error> {
    if accepts {
        fault::point(fault::Point::TaskAccepted);
        return Ok(answers);
    }
    flushed.await?;
    if batch.iter().any(|command| matches!(command.action, Action::Finish { .. })) {
        fault::point(fault::Point::TaskFinished);
    }
    Ok(answers)
}
