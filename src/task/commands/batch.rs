//! The work of the group commits: a batch of commands in one transaction, and what follows its commit.
use crate::fault;
use crate::task::commands::after_commit::{publish, release_slots};
use crate::task::commands::command::{Action, BatchOutcome, CommandReply, TaskCommand};
use crate::task::commands::command_executor::{DecidedBatch, end_broken};
use crate::task::storage::transaction::{Flushed, Transaction};
use crate::task::{Error, context::TaskContext};
use futures_util::future::ready;
use std::sync::{Arc, atomic::Ordering};

/// A batch of accepts or of endings: one transaction. An ending is answered when it is on disk.
///
/// Two round trips, if the batch is plain: begin, lock and read; then write, commit and flush.
pub(in crate::task) async fn carry_out(
    context: Arc<TaskContext>,
    batch: Arc<Vec<TaskCommand>>,
) -> Result<Vec<Result<CommandReply, Error>>, Error> {
    let accepts = batch.iter().all(|command| matches!(command.action, Action::Accept));
    let mut client = context.database.client().await?;
    let tx = Transaction::begin_async(&mut client);
    let decided = DecidedBatch::read(&context, &tx, &batch).await?;
    // The arbiter of another node is called in the transaction, when it is known what that leaves.
    if decided.is_plain() && context.arbitrates.load(Ordering::Relaxed) {
        let (mut outcome, broken, flushed) = decided.write_and_commit(&tx, !accepts).await?;
        if broken.is_empty() {
            let answers = tell(&context, outcome);
            return on_disk(&batch, accepts, answers, flushed).await;
        }
        flushed.await?;
        drop(tx);
        end_broken(&context, &mut client, &batch, &broken, &mut outcome).await?;
        return Ok(tell(&context, outcome));
    }
    let outcome = decided.write(&context, &tx).await?;
    if outcome.leaves_work() {
        context.call_arbiter(&tx).await?;
    }
    fault::point(fault::Point::TaskCommandsBeforeCommit);
    let ((), flushed) = tx.commit_after(ready(Ok(())), !accepts).await?;
    let answers = tell(&context, outcome);
    on_disk(&batch, accepts, answers, flushed).await
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
