//! The definitions that agents were registered with, by version.
use crate::task::storage::columns::columns;
use crate::task::storage::rows::{self, Columns, Unreadable};
use crate::task::storage::statement::sql;
use crate::task::{AgentId, Error, TaskReader, Tasks};
use chrono::{DateTime, Utc};
use serde_json::Value;
use tokio_postgres::Row;

/// A definition as people may see it.
#[derive(Clone, Debug, PartialEq)]
pub struct ShownDefinition {
    /// Its agent.
    pub agent: AgentId,
    /// Its hash.
    pub hash: String,
    /// Its keys, without values that may be secret.
    pub body: Value,
}

/// A definition that an agent was registered with.
#[derive(Clone, Debug, PartialEq)]
pub struct DefinitionVersion {
    /// The number, which grows with each change.
    pub version: i64,
    /// Its hash. The same definition again has the same hash.
    pub hash: String,
    /// When it was registered.
    pub applied_at: Option<DateTime<Utc>>,
    /// Its keys.
    pub body: Value,
}

impl Tasks {
    /// Keeps the definitions that agents are registered with now; others are left out. The latest 100 of an agent stay.
    ///
    /// # Errors
    /// `Unavailable`.
    pub async fn keep_definitions(&self, definitions: &[ShownDefinition]) -> Result<(), Error> {
        let columns = columns!("keep_definitions", definitions, |it| {
            id: &str = it.agent.as_str(),
            hash: &str = it.hash.as_str(),
            body: &Value = &it.body,
        });
        columns.query(&self.context.database).await.map(drop)
    }
}

impl TaskReader {
    /// The definitions that an agent was registered with, the latest first, at most 100.
    ///
    /// # Errors
    /// `Unavailable`.
    pub async fn definition_versions(&self, agent: &AgentId) -> Result<Vec<DefinitionVersion>, Error> {
        let rows = self.query(sql!("definition_versions"), &[&agent.as_str()]).await?;
        Ok(rows.iter().map(version).collect::<Result<_, _>>()?)
    }
}

fn version(row: &Row) -> Result<DefinitionVersion, Unreadable> {
    Ok(DefinitionVersion {
        version: row.read("version")?,
        hash: row.read("hash")?,
        applied_at: rows::time(row, "applied_at")?,
        body: row.read("body")?,
    })
}
