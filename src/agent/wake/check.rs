//! Whether the tables and columns that wakes name are there.
use super::{WakeIndex, bound::Bound};
use crate::{
    agent::definition::Problem,
    id::AgentId,
    wal::{Column, Relation},
};
use tokio_postgres::GenericClient;

impl WakeIndex {
    /// Holds every wake against the database: missing tables and columns, values that are none of their
    /// column's type. Each problem comes with its agent; the key is that of the agent's file.
    ///
    /// # Errors
    /// When the database cannot be asked.
    pub async fn check(
        &self,
        client: &impl GenericClient,
    ) -> Result<Vec<(AgentId, Problem)>, tokio_postgres::Error> {
        let (schemas, names): (Vec<_>, Vec<_>) = self.tables().into_iter().unzip();
        let mut relations: Vec<Relation> = Vec::new();
        for row in client.query(include_str!("sql/columns.sql"), &[&schemas, &names]).await? {
            let (schema, name): (String, String) = (row.try_get(0)?, row.try_get(1)?);
            let at = relations.iter().position(|seen| seen.schema == schema && seen.name == name);
            let relation = match at.and_then(|at| relations.get_mut(at)) {
                Some(relation) => relation,
                None => {
                    let identity = char::from(row.try_get::<_, i8>(2)?.unsigned_abs());
                    let columns = Vec::new();
                    relations.push(Relation { oid: 0, schema, name, replica_identity: identity, columns });
                    let Some(relation) = relations.last_mut() else { continue };
                    relation
                }
            };
            if let Some(column) = row.try_get::<_, Option<String>>(3)? {
                let (oid, type_name) = (row.try_get(4)?, row.try_get(5)?);
                relation.columns.push(Column::new(column, oid, -1, row.try_get(6)?, type_name));
            }
        }
        let mut problems: Vec<_> = self
            .entries()
            .filter_map(|(schema, table, entry)| {
                let found = relations.iter().find(|seen| seen.schema == schema && seen.name == table);
                let key = |key| format!("wake.{}.{key}", entry.at);
                let problem = match found {
                    None => Problem {
                        key: key("table"),
                        message: format!("there is no table {schema}.{table} in the database"),
                        remedy: Some("create the table first, or correct its name".into()),
                    },
                    Some(relation) => Problem {
                        key: key("filter"),
                        message: Bound::new(&entry.filter, relation).err()?.to_string(),
                        remedy: None,
                    },
                };
                Some((entry.agent.clone(), problem))
            })
            .collect();
        problems.sort_by(|a, b| (&a.0, &a.1.key).cmp(&(&b.0, &b.1.key)));
        Ok(problems)
    }
}
