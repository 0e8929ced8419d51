//! A transaction of the task store whose begin and commit share round trips with its statements.
//!
//! A message to Postgres is sent when its future is polled first, and messages are answered in the order in which
//! they were sent. [`Transaction::begin`] sends the begin and does not wait for it; [`Transaction::commit_after`] sends the
//! commit behind the last statements. If one of these fails, Postgres rolls back in place of the commit, so nothing is
//! committed whose statements did not all succeed. Dropped without a commit, the transaction is rolled back.
use crate::db;
use crate::task::Error;
use crate::task::storage::statement::flush;
use deadpool_postgres::Object;
use futures_util::{
    FutureExt,
    future::{BoxFuture, ready, try_join},
    poll,
};
use parking_lot::Mutex;
use std::{
    pin::pin,
    sync::atomic::{AtomicBool, AtomicUsize, Ordering},
    task::Poll,
};
use tokio_postgres::{
    Row, Statement,
    types::{ToSql, Type},
};

/// Waits until the commits before it are on disk.
pub(in crate::task) type Flushed<'a> = BoxFuture<'a, Result<(), Error>>;

/// An open transaction on a pooled connection.
pub(in crate::task) struct Transaction<'a> {
    client: &'a Object,
    /// The answer to the begin, until a statement has taken it.
    begin: Mutex<Option<BoxFuture<'a, Result<(), tokio_postgres::Error>>>>,
    /// Statements that are being prepared, and so are not sent.
    unsent: AtomicUsize,
    /// Whether the commit or the rollback is sent.
    ended: AtomicBool,
}

impl<'a> Transaction<'a> {
    /// Begins a transaction that commits as the session does.
    pub(in crate::task) fn begin(client: &'a mut Object) -> Self {
        Self::send_begin(client, "begin")
    }

    /// Begins a transaction that commits without waiting for the disk, so that its locks are released at once
    /// (`docs/decisions/0010-told-when-on-disk.md`). A caller that promises the commit waits for a flush first.
    pub(in crate::task) fn begin_async(client: &'a mut Object) -> Self {
        Self::send_begin(client, "begin; set local synchronous_commit = off")
    }

    /// Begins a transaction with these statements behind its begin. [`Self::begun`] has their error.
    pub(in crate::task) fn begin_with(client: &'a mut Object, statements: &str) -> Self {
        Self::send_begin(client, &format!("begin; {statements}"))
    }

    /// `client` is exclusive, so that no statement of another user comes in between.
    fn send_begin(client: &'a mut Object, begin: &str) -> Self {
        let (client, begin): (&'a Object, _) = (client, begin.to_owned());
        let begin = async move { client.batch_execute(&begin).await };
        Self {
            client,
            begin: Mutex::new(Some(sent(begin.boxed()))),
            unsent: AtomicUsize::new(0),
            ended: AtomicBool::new(false),
        }
    }

    /// Runs a statement of `sql/`, prepared once for each connection. Statements that are polled together are sent
    /// together, in the order of their first poll.
    pub(in crate::task) async fn query(
        &self,
        statement: &str,
        params: &[&(dyn ToSql + Sync)],
    ) -> Result<Vec<Row>, Error> {
        let statement = self.prepare(statement).await?;
        if self.ended.load(Ordering::Relaxed) {
            return Err(db::Error::Unfit("a statement follows the commit of its transaction".into()).into());
        }
        let rows = self.client.query(&statement, params).await.map_err(db::Error::from);
        // If the begin failed, that is the cause.
        self.begun().await.map_err(db::Error::from)?;
        Ok(rows?)
    }

    /// Runs statements without parameters and results.
    pub(in crate::task) async fn batch(&self, statements: &str) -> Result<(), tokio_postgres::Error> {
        self.client.batch_execute(statements).await
    }

    /// Runs a statement that is not kept, whose values have the types that it gives them. It is not sent before the
    /// begin has succeeded.
    pub(in crate::task) async fn query_once(
        &self,
        statement: &str,
        values: &[&(dyn ToSql + Sync)],
    ) -> Result<Vec<Row>, tokio_postgres::Error> {
        self.begun().await?;
        let values: Vec<_> = values.iter().map(|value| (*value, Type::UNKNOWN)).collect();
        self.client.query_typed(statement, &values).await
    }

    /// Prepares statements on this connection, so that they are sent in their order when they are polled together: one
    /// that must be prepared first would be sent behind the others.
    pub(in crate::task) async fn prepare_all(&self, statements: &[&str]) -> Result<(), Error> {
        for statement in statements {
            self.prepare(statement).await?;
        }
        Ok(())
    }

    async fn prepare(&self, statement: &str) -> Result<Statement, Error> {
        // Relaxed: the counter is read by the task that polls the statements.
        self.unsent.fetch_add(1, Ordering::Relaxed);
        let prepared = self.client.prepare_cached(statement).await.map_err(db::Error::from);
        self.unsent.fetch_sub(1, Ordering::Relaxed);
        Ok(prepared?)
    }

    /// Takes the answer to the begin, which precedes that of any statement.
    async fn begun(&self) -> Result<(), tokio_postgres::Error> {
        let begin = self.begin.lock().take();
        match begin {
            Some(begin) => begin.await,
            None => Ok(()),
        }
    }

    /// Commits, and sends a flush behind the commit: the returned future waits for it.
    pub(in crate::task) async fn commit_and_flush(&self) -> Result<Flushed<'a>, Error> {
        Ok(self.commit_after(ready(Ok(())), true).await?.1)
    }

    /// Commits.
    pub(in crate::task) async fn commit(self) -> Result<(), Error> {
        self.send_commit().await
    }

    /// Rolls back, and waits until the locks are released.
    pub(in crate::task) async fn rollback(self) -> Result<(), Error> {
        self.ended.store(true, Ordering::Relaxed);
        Ok(self.client.batch_execute("rollback").await.map_err(db::Error::from)?)
    }

    async fn send_commit(&self) -> Result<(), Error> {
        self.ended.store(true, Ordering::Relaxed);
        let committed = self.client.batch_execute("commit").await.map_err(db::Error::from);
        self.begun().await.map_err(db::Error::from)?;
        Ok(committed?)
    }

    /// Runs the last statements and commits, in one round trip where the connection has prepared them. `statements` must
    /// send all of them when it is polled first: none may depend on the answer to another.
    ///
    /// If it `flushes`, a flush follows the commit, and the second value waits for it. The locks are released before.
    pub(in crate::task) async fn commit_after<T>(
        &self,
        statements: impl Future<Output = Result<T, Error>>,
        flushes: bool,
    ) -> Result<(T, Flushed<'a>), Error> {
        let flush = |client| if flushes { flush(client).boxed() } else { ready(Ok(())).boxed() };
        self.commit_with(statements, flush).await
    }

    /// Like [`Self::commit_after`], with any message behind the commit: the second value waits for its answer.
    pub(in crate::task) async fn commit_with<T, U: Send + 'static>(
        &self,
        statements: impl Future<Output = Result<T, Error>>,
        behind: impl FnOnce(&'a Object) -> BoxFuture<'a, U>,
    ) -> Result<(T, BoxFuture<'a, U>), Error> {
        let client = self.client;
        let behind = || sent(behind(client));
        let mut statements = pin!(statements);
        let first = poll!(statements.as_mut());
        // A commit in front of a statement that is not sent would leave it outside of the transaction.
        if first.is_ready() || self.unsent.load(Ordering::Relaxed) > 0 {
            let value = match first {
                Poll::Ready(value) => value?,
                Poll::Pending => statements.await?,
            };
            self.send_commit().await?;
            return Ok((value, behind()));
        }
        let mut commit = pin!(self.send_commit());
        if let Poll::Ready(committed) = poll!(commit.as_mut()) {
            // The connection is lost: the statements know how.
            let value = statements.await?;
            committed?;
            return Ok((value, behind()));
        }
        let behind = behind();
        let (value, ()) = try_join(statements, commit).await?;
        Ok((value, behind))
    }
}

impl Drop for Transaction<'_> {
    fn drop(&mut self) {
        if !*self.ended.get_mut() {
            // The first poll sends the message behind the running statements; the answer is not needed.
            let _ = self.client.batch_execute("rollback").now_or_never();
        }
    }
}

/// Polls a future once, which sends its message.
fn sent<T: Send + 'static>(mut future: BoxFuture<'_, T>) -> BoxFuture<'_, T> {
    match (&mut future).now_or_never() {
        Some(done) => ready(done).boxed(),
        None => future,
    }
}
