//! The support desk: its table, its tickets, and their progress. Uses plain SQL, as an application would; the daemon's
//! own tables are only read.
use crate::{
    db::{self, Database},
    scope::Scope,
};
use anyhow::Context;
use chrono::{DateTime, Utc};
use std::time::Duration;
use tokio_postgres::Row;

/// One ticket and its task.
#[derive(Clone, Debug)]
pub(super) struct Ticket {
    pub(super) id: i64,
    pub(super) subject: String,
    /// `urgency category: reason`, once an agent has written it.
    pub(super) result: Option<String>,
    pub(super) task_id: Option<String>,
    pub(super) state: Option<String>,
    pub(super) state_reason: Option<String>,
    pub(super) agent: Option<String>,
    pub(super) offers: Option<String>,
    pub(super) took_ms: Option<f64>,
}

impl Ticket {
    /// Whether the ticket has a result.
    pub(super) fn is_done(&self) -> bool {
        self.result.is_some()
    }

    /// Whether the ticket will not change any more.
    pub(super) fn is_over(&self) -> bool {
        self.is_done() || matches!(self.state.as_deref(), Some("failed" | "canceled"))
    }
}

/// What an agent did in this run.
pub(super) struct Score {
    pub(super) agent: String,
    pub(super) won: i64,
    pub(super) lost: i64,
    pub(super) ms: Option<f64>,
    pub(super) microdollars: i64,
}

/// The insert statements of the file, each with a small group of tickets.
pub(super) fn arrivals(tickets: &str) -> Vec<String> {
    let lines = tickets.lines().filter(|line| !line.starts_with("--"));
    let text = lines.collect::<Vec<_>>().join("\n");
    text.split(";\n").map(str::trim).filter(|part| !part.is_empty()).map(str::to_owned).collect()
}

/// Creates the desk's table and trigger. Runs before the daemon starts, because its agents' wakes name the table.
pub(super) async fn create_tables(config: &db::Config, schema: &str) -> anyhow::Result<()> {
    let scope = Scope::default();
    let database = Database::open(config, &scope).await?;
    let created = migrate_and_create(&database, schema).await;
    database.stop().await?;
    let _ = scope.drain(Duration::from_secs(5)).await;
    created
}

async fn migrate_and_create(database: &Database, schema: &str) -> anyhow::Result<()> {
    db::migrate(database).await?;
    let client = database.client().await?;
    client.batch_execute(schema).await.context("cannot create the tables of the example")
}

/// A connection to the desk during one run.
pub(super) struct Desk {
    client: deadpool_postgres::Object,
    since: DateTime<Utc>,
}

impl Desk {
    pub(super) async fn open(database: &Database) -> anyhow::Result<Self> {
        let client = database.client().await?;
        let since = client.query_one("select clock_timestamp()", &[]).await?.try_get(0)?;
        Ok(Self { client, since })
    }

    /// Removes the tickets of an earlier run. The sequence of ids continues, so that an unfinished task of that run
    /// cannot write to a ticket of this one.
    pub(super) async fn clear(&self) -> anyhow::Result<()> {
        Ok(self.client.batch_execute("truncate public.tickets").await?)
    }

    /// Runs one insert statement.
    pub(super) async fn insert(&self, statement: &str) -> anyhow::Result<()> {
        self.client.batch_execute(statement).await.context("cannot insert the tickets")
    }

    /// The tickets with the progress of their tasks.
    pub(super) async fn tickets(&self) -> anyhow::Result<Vec<Ticket>> {
        let rows = self.client.query(include_str!("sql/progress.sql"), &[&self.since]).await?;
        rows.iter().map(ticket).collect()
    }

    /// What each agent did since this connection was opened.
    pub(super) async fn agents(&self) -> anyhow::Result<Vec<Score>> {
        let rows = self.client.query(include_str!("sql/agents.sql"), &[&self.since]).await?;
        let score = |row: &Row| {
            Ok(Score {
                agent: row.try_get("agent_id")?,
                won: row.try_get("won")?,
                lost: row.try_get("lost")?,
                ms: row.try_get("ms")?,
                microdollars: row.try_get("microdollars")?,
            })
        };
        rows.iter().map(score).collect()
    }
}

fn ticket(row: &Row) -> anyhow::Result<Ticket> {
    let (urgency, category): (Option<i32>, Option<String>) =
        (row.try_get("urgency")?, row.try_get("category")?);
    let reason: Option<String> = row.try_get("reason")?;
    let result = urgency.zip(category).map(|(urgency, category)| {
        format!("{urgency} {category}: {}", reason.as_deref().unwrap_or_default())
    });
    Ok(Ticket {
        id: row.try_get("id")?,
        subject: row.try_get("subject")?,
        result,
        task_id: row.try_get::<_, Option<uuid::Uuid>>("task_id")?.map(|id| id.to_string()),
        state: row.try_get("state")?,
        state_reason: row.try_get("state_reason")?,
        agent: row.try_get("agent_id")?,
        offers: row.try_get("offers")?,
        took_ms: row.try_get("took_ms")?,
    })
}
