//! The kinds of columns, read from the database's catalog.
use super::{Class, Kind};
use std::collections::HashMap;
use tokio_postgres::{Error, GenericClient, Row};

/// How the columns of some tables compare.
#[derive(Clone, Debug, Default)]
pub struct Kinds(HashMap<u32, HashMap<String, (u32, Kind)>>);

impl Kinds {
    /// Reads the kinds of the tables with these oids in `pg_class`; a dropped table has none. One query.
    ///
    /// # Errors
    /// An error of the database.
    pub async fn read(client: &impl GenericClient, tables: &[u32]) -> Result<Self, Error> {
        let mut kinds: HashMap<u32, HashMap<String, (u32, Kind)>> = HashMap::new();
        for row in client.query(include_str!("sql/kinds.sql"), &[&tables]).await? {
            let columns = kinds.entry(row.try_get("table")?).or_default();
            columns.insert(row.try_get("column")?, (row.try_get("type_oid")?, kind(&row)?));
        }
        Ok(Self(kinds))
    }

    /// The kind of a column that the WAL carries with this type; `None` if the table no longer has the column, or has
    /// it with another type.
    #[must_use]
    pub fn of(&self, table: u32, column: &str, type_oid: u32) -> Option<&Kind> {
        let (current, kind) = self.0.get(&table)?.get(column)?;
        (*current == type_oid).then_some(kind)
    }
}

fn kind(row: &Row) -> Result<Kind, Error> {
    let (name, schema): (String, String) = (row.try_get("name")?, row.try_get("schema")?);
    let (form, category): (String, String) = (row.try_get("type")?, row.try_get("category")?);
    let builtin = schema == "pg_catalog";
    let mut kind = Kind::builtin(&name, !builtin);
    kind.type_name = row.try_get("type_name")?;
    kind.sql_type = format!("{}.{}", quoted(&schema), quoted(&name));
    match (form.as_str(), category.as_str()) {
        ("e", _) => {
            let labels: Vec<String> = row.try_get("labels")?;
            kind.class = Class::Enum(labels.into_iter().map(String::into_boxed_str).collect());
            kind.ordered = true;
        }
        ("c" | "p", _) | (_, "A") => kind.class = Class::Incomparable,
        ("b", _) if !builtin => {
            // A type of an extension has operators of its own, in its own schema.
            kind.class = Class::Asked;
            kind.operators = quoted(&schema);
        }
        (_, _) if !builtin => kind.class = Class::Asked,
        _ => {}
    }
    if let Some(bytewise) = row.try_get::<_, Option<bool>>("bytewise")? {
        kind.ordered = bytewise;
        kind.collation = row.try_get("collation")?;
        if !row.try_get::<_, bool>("deterministic")? {
            kind.class = Class::Asked;
        }
    }
    Ok(kind)
}

fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}
