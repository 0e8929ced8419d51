//! Finished tasks, for benchmarks on tables as large as a busy year leaves them.
use anyhow::Context;
use convoke::db::{self, Database};

/// Tasks that one statement writes.
const BATCH: u64 = 100_000;
const TABLES: [&str; 4] = ["tasks", "offers", "assignments", "events"];

/// Migrates the database and writes so many finished tasks, each with its assignment, its events and an offer of each
/// bidder. The tables are vacuumed and analyzed afterwards, as the server does by itself in time.
pub(super) async fn fill(database: &Database, tasks: u64, bidders: u32) -> anyhow::Result<()> {
    db::migrate(database).await?;
    let client = database.client().await?;
    // Skips triggers and foreign keys: the rows are consistent, and checking each one takes most of the time.
    client.batch_execute("set session_replication_role = replica").await?;
    let history = client.prepare(include_str!("sql/history.sql")).await?;
    let bidders = i64::from(bidders);
    for from in (0..tasks).step_by(usize::try_from(BATCH)?) {
        let to = tasks.min(from + BATCH);
        let (first, last) = (i64::try_from(from + 1)?, i64::try_from(to)?);
        let written = client.execute(&history, &[&first, &last, &bidders]).await;
        written.context("cannot write finished tasks")?;
    }
    for table in TABLES {
        client.batch_execute(&format!("vacuum (analyze) convoke.{table}")).await?;
    }
    client.batch_execute("checkpoint").await?;
    Ok(())
}
