//! Runs the statements of `sql/`, and converts amounts and durations to the integers of the database.
//!
//! Transactions commit without waiting for the disk (`docs/decisions/0010-told-when-on-disk.md`), so locks are held
//! only while the statements run. A promise to a requester, an assignee or the WAL waits for one [`flush`].
use crate::db::{self, Database};
use crate::task::Error;
use crate::task::storage::transaction::Transaction;
use deadpool_postgres::Object;
use tokio_postgres::{Row, types::ToSql};

macro_rules! sql {
    ($name:literal) => {
        include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/src/task/sql/", $name, ".sql"))
    };
}
pub(in crate::task) use sql;

/// Runs a statement of `sql/`, prepared once for each connection.
pub(in crate::task) async fn run(
    tx: &Transaction<'_>,
    statement: &str,
    params: &[&(dyn ToSql + Sync)],
) -> Result<Vec<Row>, Error> {
    tx.query(statement, params).await
}

/// Runs one statement in a transaction of its own.
pub(in crate::task) async fn query(
    database: &Database,
    statement: &str,
    params: &[&(dyn ToSql + Sync)],
) -> Result<Vec<Row>, Error> {
    let client = database.client().await?;
    let statement = client.prepare_cached(statement).await.map_err(db::Error::from)?;
    Ok(client.query(&statement, params).await.map_err(db::Error::from)?)
}

/// Waits until every earlier commit is on disk.
pub(in crate::task) async fn flush(client: &Object) -> Result<(), Error> {
    // A commit that waits for the disk flushes the WAL up to itself, and the WAL is in commit order. The transaction
    // must write: Postgres does not flush for one that only has an id. A sequence takes no lock that others wait for.
    let statement =
        client.prepare_cached("select setval('convoke.flush', 1)").await.map_err(db::Error::from)?;
    client.query(&statement, &[]).await.map_err(db::Error::from)?;
    Ok(())
}

/// Largest amount that is stored. It is above every real amount, and a thousand of them still fit a `bigint`.
const AMOUNT_MAX: i64 = 1_000_000_000_000_000;

/// An amount as a signed integer of the database, at most [`AMOUNT_MAX`].
pub(in crate::task) fn to_i64(amount: u64) -> i64 {
    i64::try_from(amount).unwrap_or(i64::MAX).min(AMOUNT_MAX)
}

/// A duration in whole milliseconds, at least one.
pub(in crate::task) fn millis(duration: std::time::Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX).max(1)
}

/// The members of the object `more` that a statement reads.
#[cfg(test)]
pub(in crate::task) fn members_read(statement: &'static str) -> std::collections::BTreeSet<&'static str> {
    let uses = statement.split("i.more ").skip(1);
    uses.filter_map(|read| read.split('\'').nth(1).filter(|_| read.starts_with(['-', '?']))).collect()
}
