//! Publications: which tables' changes the log hands over.
//!
//! A running stream follows a change of its publications by itself; the
//! publication only has to exist before the slot does.
use super::error::Error;
use std::collections::BTreeSet;
use tokio_postgres::{GenericClient, error::SqlState};

/// A table as (schema, name), unquoted.
pub type TableName = (String, String);

/// Creates `publication` when it is missing and makes it name exactly `tables`.
///
/// Partitions of a named table are published under the name of the root.
///
/// # Errors
/// [`Error::MissingTable`] for a table that is not there (views do not count);
/// [`Error::NoReplicaIdentity`] for one whose updates and deletes Postgres
/// would refuse once it is published; [`Error::Query`] for the rest.
pub async fn publish(
    client: &impl GenericClient,
    publication: &str,
    tables: &[TableName],
) -> Result<(), Error> {
    let wanted: BTreeSet<&TableName> = tables.iter().collect();
    check(client, publication, &wanted).await?;
    ensure(client, publication).await?;
    let current = published(client, publication).await?;
    if current.iter().eq(wanted.iter().copied()) {
        return Ok(());
    }
    let list = |tables: &mut dyn Iterator<Item = &TableName>| {
        tables
            .map(|(schema, name)| format!("{}.{}", quoted(schema), quoted(name)))
            .collect::<Vec<_>>()
            .join(", ")
    };
    let publication = quoted(publication);
    let statement = if wanted.is_empty() {
        format!("alter publication {publication} drop table {}", list(&mut current.iter()))
    } else {
        format!("alter publication {publication} set table {}", list(&mut wanted.into_iter()))
    };
    client.batch_execute(&statement).await?;
    Ok(())
}

/// Creates `publication` without tables when it is missing; leaves the tables of an existing one alone.
///
/// # Errors
/// [`Error::Query`], for instance without the right to create in the database.
pub async fn ensure(client: &impl GenericClient, publication: &str) -> Result<(), Error> {
    let exists = "select 1 from pg_publication where pubname = $1";
    if client.query_opt(exists, &[&publication]).await?.is_some() {
        return Ok(());
    }
    let publication = quoted(publication);
    let create = format!("create publication {publication} with (publish_via_partition_root = true)");
    match client.batch_execute(&create).await {
        // Another daemon was faster.
        Err(e) if e.code() == Some(&SqlState::DUPLICATE_OBJECT) => Ok(()),
        Err(e) if e.code() == Some(&SqlState::UNIQUE_VIOLATION) => Ok(()),
        other => Ok(other?),
    }
}

async fn check(
    client: &impl GenericClient,
    publication: &str,
    wanted: &BTreeSet<&TableName>,
) -> Result<(), Error> {
    let (schemas, names): (Vec<&str>, Vec<&str>) =
        wanted.iter().map(|(schema, name)| (schema.as_str(), name.as_str())).unzip();
    for row in client.query(include_str!("sql/tables_to_publish.sql"), &[&schemas, &names]).await? {
        let (schema, table) = (row.try_get(0)?, row.try_get(1)?);
        if !row.try_get::<_, bool>(2)? {
            return Err(Error::MissingTable { schema, table, publication: publication.to_owned() });
        }
        if row.try_get::<_, Option<bool>>(3)? != Some(true) {
            return Err(Error::NoReplicaIdentity { schema, table });
        }
    }
    Ok(())
}

async fn published(client: &impl GenericClient, publication: &str) -> Result<BTreeSet<TableName>, Error> {
    let rows = client.query(include_str!("sql/published_tables.sql"), &[&publication]).await?;
    rows.iter().map(|row| Ok((row.try_get(0)?, row.try_get(1)?))).collect()
}

/// An identifier as it stands in a statement.
pub(super) fn quoted(identifier: &str) -> String {
    format!("\"{}\"", identifier.replace('"', "\"\""))
}
