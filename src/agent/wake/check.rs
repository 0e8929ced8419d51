//! Checks that the tables and columns of wakes exist.
use super::{
    WakeIndex,
    bind::{BindError, BoundWake, kinds_of},
};
use crate::{
    agent::definition::Problem,
    db::{self, Database},
    filter::Kinds,
    id::AgentId,
    wal::{Column, Relation},
};
use tokio_postgres::GenericClient;

impl WakeIndex {
    /// Checks every wake against the database: missing tables and columns, values that do not fit the type of their
    /// column, patterns that Postgres refuses. Each problem comes with its agent and the key of its definition.
    ///
    /// # Errors
    /// If the database cannot be read.
    pub async fn check(&self, database: &Database) -> Result<Vec<(AgentId, Problem)>, db::Error> {
        let mut client = database.client().await?;
        let (schemas, names): (Vec<_>, Vec<_>) = self.tables().into_iter().unzip();
        let relations = relations(&**client, &schemas, &names).await?;
        let oids: Vec<u32> = relations.iter().map(|relation| relation.oid).collect();
        let kinds = Kinds::read(&**client, &oids).await?;
        let mut problems = Vec::new();
        for (schema, name, entry) in self.entries() {
            let relation = relations.iter().find(|seen| seen.schema == schema && seen.name == name);
            let (key, message, remedy) = match relation {
                None => (
                    "table",
                    format!("there is no table {schema}.{name} in the database"),
                    Some("create the table first, or correct its name".to_owned()),
                ),
                Some(relation) => {
                    let kinds = kinds_of(relation, &kinds);
                    match BoundWake::verified(&mut client, relation, &kinds, &entry.wants).await? {
                        Ok(_) => continue,
                        Err(BindError { key, message }) => (key, format!("{schema}.{name}: {message}"), None),
                    }
                }
            };
            let key = format!("wake.{}.{key}", entry.at);
            problems.push((entry.agent.clone(), Problem { key, message, remedy }));
        }
        problems.sort_by(|a, b| (&a.0, &a.1.key).cmp(&(&b.0, &b.1.key)));
        Ok(problems)
    }
}

/// The tables with these schemas and names as the WAL describes them; one that does not exist is missing.
pub(super) async fn relations(
    client: &impl GenericClient,
    schemas: &[String],
    names: &[String],
) -> Result<Vec<Relation>, db::Error> {
    let mut relations: Vec<Relation> = Vec::new();
    for row in client.query(include_str!("sql/columns.sql"), &[&schemas, &names]).await? {
        let oid: u32 = row.try_get(2)?;
        if relations.last().is_none_or(|seen| seen.oid != oid) {
            let replica_identity = char::from(row.try_get::<_, i8>(3)?.unsigned_abs());
            let (schema, name) = (row.try_get(0)?, row.try_get(1)?);
            relations.push(Relation { oid, schema, name, replica_identity, columns: Vec::new() });
        }
        if let (Some(relation), Some(column)) = (relations.last_mut(), row.try_get(4)?) {
            let (type_oid, type_name) = (row.try_get(5)?, row.try_get(6)?);
            relation.columns.push(Column::new(column, type_oid, -1, row.try_get(7)?, type_name));
        }
    }
    Ok(relations)
}
