//! Group commit: the commands that wait are carried out in one transaction, and none waits for a batch to fill.
//!
//! One loop with a bounded mailbox takes all that is there, up to a batch, runs it in one transaction and answers
//! after the commit. When a batch fails because of one of its members, each is run alone, so that one bad command
//! fails alone. While the database cannot be reached, the batch is retried: every command is guarded by ids and
//! epochs, so running it twice changes nothing.
use crate::task::{Error, context::TaskContext, upkeep::catch_panic::catch_panic};
use std::{collections::HashSet, hash::Hash, sync::Arc, time::Duration};
use tokio::{
    sync::{mpsc, oneshot},
    time::Instant,
};
use tokio_util::sync::CancellationToken;

/// Commands that may wait in a mailbox; more wait at their sender.
const MAILBOX_MAX: usize = 4096;
/// Commands that one transaction carries out.
pub(in crate::task) const BATCH_MAX: usize = 200;
/// How long a batch is retried while the database cannot be reached.
const RETRY_WITHIN: Duration = Duration::from_secs(10);
/// Pause between two tries.
const RETRY_PAUSE: Duration = Duration::from_millis(200);

/// A command in the mailbox, and where its answer goes.
struct Pending<C, A> {
    command: C,
    reply: oneshot::Sender<Result<A, Error>>,
}

/// The sending half of a group commit.
#[derive(Debug)]
pub(in crate::task) struct GroupCommit<C, A> {
    mailbox: mpsc::Sender<Pending<C, A>>,
}

impl<C, A> Clone for GroupCommit<C, A> {
    fn clone(&self) -> Self {
        Self { mailbox: self.mailbox.clone() }
    }
}

/// The receiving half of a group commit.
pub(in crate::task) struct Mailbox<C, A>(mpsc::Receiver<Pending<C, A>>);

pub(in crate::task) fn group_commit<C, A>() -> (GroupCommit<C, A>, Mailbox<C, A>) {
    let (sender, receiver) = mpsc::channel(MAILBOX_MAX);
    (GroupCommit { mailbox: sender }, Mailbox(receiver))
}

impl<C, A> GroupCommit<C, A> {
    /// Waits for the commit that carries out the command.
    pub(in crate::task) async fn send(&self, command: C) -> Result<A, Error> {
        let (reply, answer) = oneshot::channel();
        self.mailbox.send(Pending { command, reply }).await.map_err(|_| Error::Unavailable(None))?;
        answer.await.unwrap_or(Err(Error::Unavailable(None)))
    }
}

impl<C: Clone, A> Mailbox<C, A> {
    /// Serves until `stop`. Commands with the same `key` go into different transactions. `work` answers each
    /// command of a batch, in order; it gets the batch as an `Arc`, so that a retry copies no payload.
    pub(in crate::task) async fn serve<K: Eq + Hash, F>(
        mut self,
        context: &TaskContext,
        stop: CancellationToken,
        key: impl Fn(&C) -> Option<K>,
        work: impl Fn(Arc<Vec<C>>) -> F,
    ) where
        F: Future<Output = Result<Vec<Result<A, Error>>, Error>>,
    {
        let mut held: Vec<Pending<C, A>> = Vec::new();
        loop {
            if held.is_empty() {
                tokio::select! {
                    biased;
                    () = stop.cancelled() => break,
                    count = self.0.recv_many(&mut held, BATCH_MAX) => if count == 0 { break },
                }
            } else {
                while held.len() < BATCH_MAX
                    && let Ok(pending) = self.0.try_recv()
                {
                    held.push(pending);
                }
            }
            // A second command with the key of a first waits for the next transaction, in its order.
            let mut seen = HashSet::new();
            let (batch, later) = held
                .into_iter()
                .partition(|pending| key(&pending.command).is_none_or(|key| seen.insert(key)));
            held = later;
            // A panic fails the batch like an error of one member: then each is run alone.
            let work = |commands| catch_panic(context, "a batch of commands", work(commands));
            carry_out(context, batch, &work, &stop).await;
        }
        // Senders that still wait get `Unavailable`: nothing was done for them.
        self.0.close();
    }
}

async fn carry_out<C: Clone, A, F>(
    context: &TaskContext,
    batch: Vec<Pending<C, A>>,
    work: &impl Fn(Arc<Vec<C>>) -> F,
    stop: &CancellationToken,
) where
    F: Future<Output = Result<Vec<Result<A, Error>>, Error>>,
{
    let started = Instant::now();
    let (commands, replies): (Vec<C>, Vec<_>) =
        batch.into_iter().map(|pending| (pending.command, pending.reply)).unzip();
    let commands = Arc::new(commands);
    let failed = loop {
        match work(commands.clone()).await {
            Ok(answers) => {
                return replies.into_iter().zip(answers).for_each(|(to, answer)| reply(context, to, answer));
            }
            Err(Error::Unavailable(cause)) if started.elapsed() < RETRY_WITHIN && !stop.is_cancelled() => {
                tracing::debug!(cause = ?cause, "task store retries a batch");
                tokio::time::sleep(RETRY_PAUSE).await;
            }
            Err(error) => break error,
        }
    };
    if commands.len() == 1 || matches!(failed, Error::Unavailable(_)) {
        // An error cannot be cloned: the first gets it with its cause.
        let mut failed = Some(failed);
        let mut next = || failed.take().unwrap_or(Error::Unavailable(None));
        return replies.into_iter().for_each(|to| reply(context, to, Err(next())));
    }
    // The only reference is left here, so this moves the commands.
    for (command, to) in Arc::unwrap_or_clone(commands).into_iter().zip(replies) {
        let answer = match work(Arc::new(vec![command])).await {
            Ok(mut answers) => answers.pop().unwrap_or(Err(Error::Unavailable(None))),
            Err(error) => Err(error),
        };
        reply(context, to, answer);
    }
}

fn reply<A>(context: &TaskContext, to: oneshot::Sender<Result<A, Error>>, answer: Result<A, Error>) {
    if let Err(Error::Internal(cause)) = &answer {
        context.metrics.commands_failed.inc();
        if let Some(held_back) = context.internal_lines.pass() {
            // Only the SQLSTATE: the database's own text may hold values of the row.
            let sqlstate = cause.sqlstate().map(tokio_postgres::error::SqlState::code);
            tracing::error!(sqlstate, held_back, "task command failed");
        }
    }
    // The sender may be gone; the command stands all the same.
    let _ = to.send(answer);
}
