//! Tasks that were done long ago, so that a measurement runs on tables as a busy year leaves them.
use crate::db::{self, Database};
use anyhow::Context;

/// Rows that one statement makes.
const BATCH: u64 = 100_000;
const TABLES: [&str; 4] = ["tasks", "offers", "assignments", "events"];

/// Makes the tables and puts so many finished tasks into them, each with its assignment, its events and an offer
/// of each bidder; vacuumed and analyzed, as the server does by itself in time.
pub(super) async fn fill(database: &Database, tasks: u64, bidders: u32) -> anyhow::Result<()> {
    db::migrate(database).await?;
    let client = database.client().await?;
    // Rows that are made together need no check that they belong together.
    client.batch_execute("set session_replication_role = replica").await?;
    let history = client.prepare(include_str!("sql/history.sql")).await?;
    for from in (0..tasks).step_by(usize::try_from(BATCH)?) {
        let to = tasks.min(from + BATCH);
        let range: [i64; 3] = [i64::try_from(from + 1)?, i64::try_from(to)?, i64::from(bidders)];
        client
            .execute(&history, &[&range[0], &range[1], &range[2]])
            .await
            .context("cannot make a history")?;
    }
    for table in TABLES {
        client.batch_execute(&format!("vacuum (analyze) convoke.{table}")).await?;
    }
    client.batch_execute("checkpoint").await?;
    Ok(())
}
