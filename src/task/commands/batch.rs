//! The work of the group commits: a batch of commands in one transaction, and what follows its commit.
use crate::task::commands::after_commit::{publish, release_slots};
use crate::task::commands::command::{Action, CommandReply, TaskCommand};
use crate::task::commands::command_executor;
use crate::task::storage::statement::{async_commit, flush};
use crate::task::{Error, context::TaskContext};
use crate::{db, fault};
use std::sync::Arc;

/// A batch of accepts or of endings: one transaction. An ending is answered when it is on disk.
pub(in crate::task) async fn carry_out(
    context: Arc<TaskContext>,
    batch: Arc<Vec<TaskCommand>>,
) -> Result<Vec<Result<CommandReply, Error>>, Error> {
    let mut client = context.database.client().await?;
    let tx = client.transaction().await.map_err(db::Error::from)?;
    let ((), outcome) =
        futures_util::future::try_join(async_commit(&tx), command_executor::carry_out(&context, &tx, &batch))
            .await?;
    if outcome.leaves_work() {
        context.call_arbiter(&tx).await?;
    }
    fault::point(fault::Point::TaskCommandsBeforeCommit);
    tx.commit().await.map_err(db::Error::from)?;
    if outcome.soon || outcome.leads_on {
        context.notify_arbiter();
    }
    // The slots first: the arbiter that the notices wake finds them free.
    release_slots(&context, &outcome.freed);
    publish(&context, &outcome.freed, outcome.notices);
    if batch.iter().all(|command| matches!(command.action, Action::Accept)) {
        fault::point(fault::Point::TaskAccepted);
        return Ok(outcome.answers);
    }
    flush(&client).await?;
    if batch.iter().any(|command| matches!(command.action, Action::Finish { .. })) {
        fault::point(fault::Point::TaskFinished);
    }
    Ok(outcome.answers)
}
