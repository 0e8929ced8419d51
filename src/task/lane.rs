//! Group commit: what waits is carried out together, and nothing waits for company.
//!
//! A lane is one loop with a bounded mailbox. It takes all that is there, up to a
//! batch, runs it in one transaction and answers after the commit. When a batch
//! fails for a reason of one of its members, each is run alone, so that a poisoned
//! command harms nobody else. A database that is gone for a moment is retried: every
//! command is guarded by ids and epochs, so running it twice changes nothing.
use super::Error;
use std::{future::Future, time::Duration};
use tokio::{
    sync::{mpsc, oneshot},
    time::Instant,
};
use tokio_util::sync::CancellationToken;

/// Commands that may wait in a lane; more wait at their sender.
const MAILBOX_MAX: usize = 4096;
/// Commands that one transaction carries out.
pub(super) const BATCH_MAX: usize = 200;
/// How long a command is retried while the database is away.
const PATIENCE: Duration = Duration::from_secs(10);
/// Pause between two tries.
const RETRY_PAUSE: Duration = Duration::from_millis(200);

struct Waiting<C, A> {
    command: C,
    reply: oneshot::Sender<Result<A, Error>>,
}

/// Address of a lane.
#[derive(Debug)]
pub(super) struct Lane<C, A> {
    mailbox: mpsc::Sender<Waiting<C, A>>,
}

impl<C, A> Clone for Lane<C, A> {
    fn clone(&self) -> Self {
        Self { mailbox: self.mailbox.clone() }
    }
}

/// The lane's own end.
pub(super) struct Mailbox<C, A>(mpsc::Receiver<Waiting<C, A>>);

pub(super) fn lane<C, A>() -> (Lane<C, A>, Mailbox<C, A>) {
    let (sender, receiver) = mpsc::channel(MAILBOX_MAX);
    (Lane { mailbox: sender }, Mailbox(receiver))
}

impl<C, A> Lane<C, A> {
    /// Waits for the commit that carries out the command.
    pub(super) async fn send(&self, command: C) -> Result<A, Error> {
        let (reply, answer) = oneshot::channel();
        self.mailbox.send(Waiting { command, reply }).await.map_err(|_| Error::Unavailable(None))?;
        answer.await.unwrap_or(Err(Error::Unavailable(None)))
    }
}

impl<C: Clone, A> Mailbox<C, A> {
    /// Serves until told to stop. `key`: commands with the same key go into different transactions.
    /// `work` answers each command of a batch, in order.
    pub(super) async fn serve<K: Eq + std::hash::Hash, F>(
        mut self,
        stop: CancellationToken,
        key: impl Fn(&C) -> Option<K>,
        work: impl Fn(Vec<C>) -> F,
    ) where
        F: Future<Output = Result<Vec<Result<A, Error>>, Error>>,
    {
        let mut held: Vec<Waiting<C, A>> = Vec::new();
        loop {
            if held.is_empty() {
                tokio::select! {
                    biased;
                    () = stop.cancelled() => break,
                    count = self.0.recv_many(&mut held, BATCH_MAX) => if count == 0 { break },
                }
            } else if held.len() < BATCH_MAX {
                while held.len() < BATCH_MAX
                    && let Ok(waiting) = self.0.try_recv()
                {
                    held.push(waiting);
                }
            }
            let mut seen = std::collections::HashSet::new();
            let (batch, later) = held
                .into_iter()
                .partition(|waiting| key(&waiting.command).is_none_or(|key| seen.insert(key)));
            held = later;
            carry_out(batch, &work, &stop).await;
        }
        // Whoever still waits learns that nothing was done.
        self.0.close();
    }
}

async fn carry_out<C: Clone, A, F>(
    batch: Vec<Waiting<C, A>>,
    work: &impl Fn(Vec<C>) -> F,
    stop: &CancellationToken,
) where
    F: Future<Output = Result<Vec<Result<A, Error>>, Error>>,
{
    let started = Instant::now();
    let commands: Vec<C> = batch.iter().map(|waiting| waiting.command.clone()).collect();
    let mut failed = loop {
        match work(commands.clone()).await {
            Ok(answers) => {
                for (waiting, answer) in batch.into_iter().zip(answers) {
                    // The asker may have gone away; that is its business.
                    let _ = waiting.reply.send(answer);
                }
                return;
            }
            Err(Error::Unavailable(cause)) if started.elapsed() < PATIENCE && !stop.is_cancelled() => {
                tracing::debug!(cause = ?cause, "task store retries");
                tokio::time::sleep(RETRY_PAUSE).await;
            }
            Err(error) => break Some(error),
        }
    };
    let alone = batch.len() == 1;
    for waiting in batch {
        let answer = if alone || matches!(failed, Some(Error::Unavailable(_))) {
            Err(failed.take().unwrap_or(Error::Unavailable(None)))
        } else {
            match work(vec![waiting.command]).await {
                Ok(mut answers) => answers.pop().unwrap_or(Err(Error::Unavailable(None))),
                Err(error) => Err(error),
            }
        };
        if let Err(Error::Internal(cause)) = &answer {
            // The database's own words may hold values of the row.
            let sqlstate = cause.sqlstate().map(tokio_postgres::error::SqlState::code);
            tracing::error!(sqlstate, "task command failed");
        }
        let _ = waiting.reply.send(answer);
    }
}
