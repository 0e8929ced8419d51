//! Transactions with retries where PostgreSQL allows them.
use super::{Database, Error, is_transient};
use deadpool_postgres::{ClientWrapper, Object};
use futures_util::FutureExt;
use rand::RngExt;
use std::{
    error::Error as StdError,
    io,
    ops::Deref,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};
use tokio_postgres::error::{DbError, SqlState};
use tracing::debug;

/// Most attempts; the error of the last one is returned.
const ATTEMPTS_MAX: u32 = 5;

/// A pooled connection inside a transaction; use it like a client. [`Database::transaction`] begins, commits
/// and rolls back. A clone that outlives the transaction is a connection without one.
#[derive(Clone, Debug)]
pub struct Transaction(Arc<Open>);

#[derive(Debug)]
struct Open {
    client: Object,
    ended: AtomicBool,
}

impl Deref for Transaction {
    type Target = ClientWrapper;

    fn deref(&self) -> &ClientWrapper {
        &self.0.client
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        if !*self.ended.get_mut() {
            // The first poll queues the message behind the running statements. The answer is not needed: the
            // pool hands the connection on, and the server runs the rollback before the next user's
            // statements.
            let _ = self.client.batch_execute("rollback").now_or_never();
        }
    }
}

impl Database {
    /// Runs `work` in a transaction and commits it; rolls back on an error.
    ///
    /// Retries after a serialization failure, a deadlock, or the loss of the connection before the commit: up
    /// to five attempts with a growing random backoff. So `work` must have no effect outside its transaction.
    /// Dropping the future rolls back.
    ///
    /// # Errors
    /// The last error of `work`; [`Error::CommitUnknown`] if the connection was lost during the commit; those
    /// of [`Database::client`].
    pub async fn transaction<T, E, F, Fut>(&self, mut work: F) -> Result<T, E>
    where
        F: FnMut(Transaction) -> Fut,
        Fut: Future<Output = Result<T, E>>,
        E: From<Error> + StdError + 'static,
    {
        let mut attempt = 1;
        loop {
            let error = match self.attempt(&mut work).await {
                Ok(value) => return Ok(value),
                Err(error) => error,
            };
            if attempt == ATTEMPTS_MAX || !is_worth_retrying(&error) {
                return Err(error);
            }
            debug!(attempt, error = %error, "transaction failed, will retry");
            // 20 ms, doubled with each attempt, ±50 %: transactions that collided must not collide again.
            let spread = rand::rng().random_range(0.5..1.5);
            tokio::time::sleep(Duration::from_millis(10 << attempt).mul_f64(spread)).await;
            attempt += 1;
        }
    }

    async fn attempt<T, E, F, Fut>(&self, work: &mut F) -> Result<T, E>
    where
        F: FnMut(Transaction) -> Fut,
        Fut: Future<Output = Result<T, E>>,
        E: From<Error>,
    {
        let client = self.client().await?;
        let open = Transaction(Arc::new(Open { client, ended: AtomicBool::new(false) }));
        open.batch_execute("begin").await.map_err(Error::Query)?;
        let value = work(open.clone()).await?;
        // In an aborted transaction `commit` rolls back without an error; the `select` before it fails then.
        match open.batch_execute("select; commit").await {
            Ok(()) => {
                open.0.ended.store(true, Ordering::Relaxed);
                Ok(value)
            }
            // The server answered, so the transaction is rolled back for certain. Class 57 (shutdown) proves
            // nothing.
            Err(e) if e.code().is_some_and(|code| !code.code().starts_with("57")) => {
                Err(Error::Query(e).into())
            }
            Err(e) => Err(Error::CommitUnknown(e).into()),
        }
    }
}

/// Searches the chain of sources for an error of PostgreSQL or of the network that permits a retry.
fn is_worth_retrying(error: &(dyn StdError + 'static)) -> bool {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(Error::CommitUnknown(_)) = error.downcast_ref::<Error>() {
            return false;
        }
        if let Some(error) = error.downcast_ref::<tokio_postgres::Error>() {
            return is_transient(error) && error.code().is_none_or(is_rolled_back);
        }
        if let Some(error) = error.downcast_ref::<DbError>() {
            return is_rolled_back(error.code());
        }
        if error.is::<io::Error>() {
            return true;
        }
        next = error.source();
    }
    false
}

/// Whether the server rolled the transaction back: because of another one (40), a shutdown (57P) or a lost
/// connection (08).
fn is_rolled_back(code: &SqlState) -> bool {
    code.code().starts_with("40") || code.code().starts_with("57P") || code.code().starts_with("08")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Compiles only if a transaction that borrows can run in a spawned task.
    #[expect(dead_code, reason = "its compilation is the test")]
    fn a_transaction_can_cross_threads(db: Database, id: String) {
        fn is_send<T: Send>(_: T) {}
        is_send(async move {
            let id = &id;
            db.transaction(|tx| async move {
                tx.execute("select $1::text", &[id]).await.map_err(Error::Query)?;
                Ok::<_, Error>(7)
            })
            .await
        });
    }
}
