//! Publications: the tables whose changes the WAL stream carries.
//!
//! A running stream follows a change of its publications by itself; the
//! publication only has to exist before the slot does.
use super::error::Error;
use std::collections::BTreeSet;
use tokio_postgres::{GenericClient, Row, error::SqlState};

/// A table as (schema, name), unquoted.
pub type TableName = (String, String);

/// What became of the tables that a publication shall name.
#[derive(Debug, Default)]
pub struct Reconciled {
    /// Those that were not published before.
    pub added: Vec<TableName>,
    /// Those that cannot be published, each with its reason.
    pub left_out: Vec<(TableName, Error)>,
}

/// Creates `publication` when it is missing and makes it name exactly those of `tables` that can be published.
///
/// Each table is added and removed by itself, so that one that cannot be published costs the others nothing. A
/// table that was dropped and made again, or took the name of another, is published anew. Waits a quarter of a
/// second at most for the lock of a table. Partitions of a named table are published under the name of the root.
/// `beside`: the other publications of the same stream. A table is left out of which one of them has only some
/// columns, or whose changes it has under the name of another table of the same partition tree. Whether generated
/// columns are published follows theirs.
///
/// # Errors
/// [`Error::Query`] when the catalog cannot be read or the publication not be made.
pub async fn reconcile(
    client: &impl GenericClient,
    publication: &str,
    tables: &[TableName],
    beside: &[&str],
) -> Result<Reconciled, Error> {
    ensure(client, publication).await?;
    follow_generated_columns(client, publication, beside).await?;
    let mut outcome = Reconciled::default();
    let (mut kept, mut missing) = (Vec::new(), Vec::new());
    for Found { name, oid, published, problem } in inspect(client, publication, tables, beside).await? {
        match (problem, oid) {
            (None, Some(oid)) => {
                kept.push(oid);
                if !published {
                    missing.push(name);
                }
            }
            (problem, _) => outcome.left_out.extend(problem.map(|problem| (name, problem))),
        }
    }
    let quoted_publication = quoted(publication);
    for row in client.query(include_str!("sql/published_tables.sql"), &[&publication]).await? {
        if !kept.contains(&row.try_get(2)?) {
            let table = sql_name(row.try_get(0)?, row.try_get(1)?);
            // One that was dropped meanwhile is out of the publication, which is what is wanted.
            let _ =
                alter(client, &format!("alter publication {quoted_publication} drop table {table}")).await;
        }
    }
    for name in missing {
        let statement =
            format!("alter publication {quoted_publication} add table {}", sql_name(&name.0, &name.1));
        match alter(client, &statement).await {
            Ok(()) => outcome.added.push(name),
            // Another daemon was faster.
            Err(e) if e.code() == Some(&SqlState::DUPLICATE_OBJECT) => {}
            Err(source) => {
                let (schema, table) = name.clone();
                outcome.left_out.push((name, Error::NotPublished { schema, table, source }));
            }
        }
    }
    Ok(outcome)
}

/// As [`reconcile`], where every table must be published.
///
/// # Errors
/// Why the first that cannot be is not; nothing is changed then, if it is known beforehand.
pub async fn publish(
    client: &impl GenericClient,
    publication: &str,
    tables: &[TableName],
) -> Result<(), Error> {
    if let Some((_, problem)) = unpublishable(client, publication, tables, &[]).await?.into_iter().next() {
        return Err(problem);
    }
    let left_out = reconcile(client, publication, tables, &[]).await?.left_out;
    left_out.into_iter().next().map_or(Ok(()), |(_, problem)| Err(problem))
}

/// Which of `tables` cannot be published, and why. Changes nothing. `beside`: as for [`reconcile`].
///
/// # Errors
/// [`Error::Query`] when the catalog cannot be read.
pub async fn unpublishable(
    client: &impl GenericClient,
    publication: &str,
    tables: &[TableName],
    beside: &[&str],
) -> Result<Vec<(TableName, Error)>, Error> {
    let found = inspect(client, publication, tables, beside).await?.into_iter();
    Ok(found.filter_map(|found| Some((found.name, found.problem?))).collect())
}

/// In a transaction of its own, which waits shortly for locks.
async fn alter(client: &impl GenericClient, statement: &str) -> Result<(), tokio_postgres::Error> {
    let outcome =
        client.batch_execute(&format!("begin; set local lock_timeout = '250ms'; {statement}; commit")).await;
    if outcome.is_err() {
        client.batch_execute("rollback").await?;
    }
    outcome
}

pub(super) fn sql_name(schema: &str, name: &str) -> String {
    format!("{}.{}", quoted(schema), quoted(name))
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

/// Publishes generated columns if one of the other publications does.
///
/// PostgreSQL 18 streams no table with such a column of which two publications differ in this. Ours has no use for
/// either, so the user's setting counts.
async fn follow_generated_columns(
    client: &impl GenericClient,
    publication: &str,
    beside: &[&str],
) -> Result<(), Error> {
    let sql = include_str!("sql/generated_columns.sql");
    let Some(row) = client.query_opt(sql, &[&publication, &beside]).await? else { return Ok(()) };
    let wanted = if row.try_get(0)? { "stored" } else { "none" };
    let publication = quoted(publication);
    Ok(alter(client, &format!("alter publication {publication} set (publish_generated_columns = {wanted})"))
        .await?)
}

/// A table that shall be published, as the catalog has it.
struct Found {
    name: TableName,
    oid: Option<u32>,
    published: bool,
    problem: Option<Error>,
}

async fn inspect(
    client: &impl GenericClient,
    publication: &str,
    tables: &[TableName],
    beside: &[&str],
) -> Result<Vec<Found>, Error> {
    let wanted: BTreeSet<&TableName> = tables.iter().collect();
    let (schemas, names): (Vec<&str>, Vec<&str>) =
        wanted.iter().map(|(schema, name)| (schema.as_str(), name.as_str())).unzip();
    let sql = include_str!("sql/tables_to_publish.sql");
    let rows = client.query(sql, &[&schemas, &names, &publication, &beside]).await?;
    rows.iter().map(|row| found(row, publication)).collect()
}

fn found(row: &Row, publication: &str) -> Result<Found, Error> {
    let (schema, table): (String, String) = (row.try_get("schema_name")?, row.try_get("table_name")?);
    let (oid, published): (Option<u32>, bool) = (row.try_get("oid")?, row.try_get("published")?);
    let name = (schema.clone(), table.clone());
    let may_add = published || row.try_get::<_, Option<bool>>("owned")? == Some(true);
    let bare_schema: Option<String> = row.try_get("bare_schema")?;
    let bare = bare_schema.zip(row.try_get::<_, Option<String>>("bare_name")?);
    let problem = if oid.is_none() {
        Some(Error::MissingTable { schema, table, publication: publication.to_owned() })
    } else if let Some((schema, table)) = bare {
        Some(Error::NoReplicaIdentity { schema, table })
    } else if !may_add {
        Some(Error::NotOwner { schema, table, owner: row.try_get("owner")?, role: row.try_get("role")? })
    } else if let Some(beside) = row.try_get("other_columns")? {
        Some(Error::OtherColumns { schema, table, beside })
    } else {
        other_part(row, schema, table)?
    };
    Ok(Found { name, oid, published, problem })
}

/// The problem of a table whose changes come under the name of another one of its partition tree, or the other's
/// under its name.
fn other_part(row: &Row, schema: String, table: String) -> Result<Option<Error>, Error> {
    let Some(other) = row.try_get::<_, Option<String>>("part_name")? else { return Ok(None) };
    let ours = sql_name(&schema, &table);
    let publication = row.try_get::<_, Option<String>>("part_publication")?;
    let (is_above, has_ours): (bool, bool) = (row.try_get("part_is_above")?, row.try_get("part_has_wanted")?);
    let remedy = match publication.as_deref().map(quoted) {
        Some(publication) if !is_above => {
            let add = if has_ours {
                String::new()
            } else {
                format!("; alter publication {publication} add table {ours}")
            };
            format!("alter publication {publication} set (publish_via_partition_root = true){add}")
        }
        _ => format!("let the wake name {other}"),
    };
    let beside = publication.map_or_else(|| "another wake".to_owned(), |name| format!("publication {name}"));
    Ok(Some(Error::OtherPart { schema, table, beside, other, remedy }))
}

/// An identifier as it stands in a statement.
pub(super) fn quoted(identifier: &str) -> String {
    format!("\"{}\"", identifier.replace('"', "\"\""))
}
