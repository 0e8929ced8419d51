//! Descriptions of published tables, read from the catalog: columns, their comparison and their types.
use crate::{
    access::rows,
    db::{self, Database, Flights},
    filter::{Kind, Kinds},
};
use deadpool_postgres::Object;
use futures_util::FutureExt;
use parking_lot::Mutex;
use serde::Deserialize;
use std::{
    collections::{BTreeSet, HashMap},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};
use tokio::time::{Instant, timeout};
use tokio_postgres::{Row, types::Oid};

use super::{
    encode::{Shape, Shapes},
    value_checks::ValueChecks,
};

/// How long a cached description serves new subscriptions. Changes of tables in the WAL invalidate it at once.
const FRESH: Duration = Duration::from_secs(1);
/// Time limit of one statement, and of the wait for a connection.
const WITHIN: Duration = Duration::from_secs(5);
/// Most cached lists of tables.
const LISTS_MAX: usize = 1000;
/// Most levels of nested composite types.
const DEPTH_MAX: usize = 16;

/// A published table, as the catalog describes it.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Described {
    pub(super) oid: Oid,
    pub(super) schema: String,
    pub(super) name: String,
    /// Whether inserts, updates and deletes are published.
    pub(super) publishes: [bool; 3],
    /// The clients' publication has a row filter, but another publication has all rows: the filter has no effect.
    pub(super) unlimited: bool,
    /// In table order.
    pub(super) columns: Vec<CatalogColumn>,
}

#[derive(Debug, PartialEq, Eq)]
pub(super) struct CatalogColumn {
    pub(super) name: String,
    pub(super) type_oid: Oid,
    /// The name in `pg_type`.
    pub(super) type_name: String,
    /// A generated column, which is not in the WAL.
    pub(super) generated: bool,
    pub(super) kind: Kind,
    /// The JSON form of the values; `None` if `type_name` decides it.
    pub(super) shape: Option<Shape>,
}

#[derive(Deserialize)]
struct ColumnRow {
    name: String,
    type_oid: Oid,
    type_name: String,
    generated: bool,
    /// The type name does not decide the JSON form of the values.
    odd: bool,
}

/// Why the catalog could not be read.
#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    #[error("the database cannot be reached")]
    Database(#[from] db::Error),
    #[error("the catalog cannot be read")]
    Query(#[from] tokio_postgres::Error),
    #[error("the catalog does not answer in time")]
    Slow,
    #[error("the catalog cannot be understood")]
    Columns(#[from] serde_json::Error),
    #[error(transparent)]
    Shared(Arc<Self>),
}

/// Reads the catalog, with a cache of [`FRESH`].
#[derive(Debug)]
pub(super) struct Catalog {
    database: Database,
    publications: Vec<String>,
    lists: Mutex<HashMap<Wanted, (Instant, Tables)>>,
    reading: Flights<Wanted, Result<Tables, Arc<Error>>>,
    /// Whether the last statement got no answer.
    away: AtomicBool,
    /// Number of answered statements.
    answered: AtomicU64,
    /// Checks of filter values, shared by concurrent joins.
    pub(super) values: ValueChecks,
    /// The same [`Arc`] while the description of a table is unchanged: caches of row security use its address as key.
    tables: Mutex<HashMap<Oid, ForRights>>,
}

/// The tables that match a schema and a name.
pub(super) type Tables = Arc<[Arc<Described>]>;

/// A table, and its form for row security.
type ForRights = (Arc<Described>, Arc<rows::PolicyTable>);

/// Schema and name; `None` matches every one.
type Wanted = (Option<String>, Option<String>);

impl Catalog {
    /// `publications`: the clients' publication first, then the others of the stream.
    pub(super) fn new(database: Database, publications: Vec<String>) -> Self {
        Self {
            database,
            publications,
            lists: Mutex::default(),
            reading: Flights::default(),
            away: AtomicBool::new(false),
            answered: AtomicU64::new(0),
            values: ValueChecks::default(),
            tables: Mutex::default(),
        }
    }

    /// Runs `question` on a pooled connection, with the time limit [`WITHIN`].
    pub(super) async fn ask<T>(
        &self,
        question: impl AsyncFnOnce(&mut Object) -> Result<T, Error>,
    ) -> Result<T, Error> {
        let client = timeout(WITHIN, self.database.client()).await;
        let Ok(client) = client else {
            // All connections are busy, which does not mean that the database is unavailable.
            return Err(Error::Slow);
        };
        let mut client = client.inspect_err(|error| self.set_away(!matches!(error, db::Error::Busy(_))))?;
        let before = self.answered.load(Ordering::Relaxed);
        match timeout(WITHIN, question(&mut client)).await {
            Ok(outcome) => {
                self.answered.fetch_add(1, Ordering::Relaxed);
                let is_away = match &outcome {
                    Err(Error::Query(error)) => db::is_transient(error) || error.is_closed(),
                    Err(Error::Database(_)) => true,
                    _ => false,
                };
                self.set_away(is_away);
                outcome
            }
            Err(_) => {
                // A connection that does not answer must not go back to the pool.
                drop(Object::take(client));
                // A database that answered other statements meanwhile is busy and not unavailable.
                self.set_away(self.answered.load(Ordering::Relaxed) == before);
                Err(Error::Slow)
            }
        }
    }

    fn set_away(&self, away: bool) {
        self.away.store(away, Ordering::Relaxed);
    }

    /// Whether the last statement got no answer. If false, a caller that waits is waiting for other callers.
    pub(super) fn is_away(&self) -> bool {
        self.away.load(Ordering::Relaxed)
    }

    /// The published tables that match these names; `anew` bypasses the cache.
    pub(super) async fn tables(
        self: &Arc<Self>,
        schema: Option<&str>,
        name: Option<&str>,
        anew: bool,
    ) -> Result<Tables, Error> {
        let wanted = (schema.map(str::to_owned), name.map(str::to_owned));
        let known = self.lists.lock().get(&wanted).filter(|(at, _)| at.elapsed() < FRESH).cloned();
        if let Some((_, tables)) = known.filter(|_| !anew) {
            return Ok(tables);
        }
        loop {
            let (catalog, wanted) = (self.clone(), wanted.clone());
            let key = wanted.clone();
            let read = || async move { catalog.list(wanted).await.map_err(Arc::new) }.boxed();
            let landed = self.reading.ask(key, read).await;
            // A shared read that had already begun may be older than this call.
            if !(anew && landed.was_under_way) {
                return landed.answer.map_err(Error::Shared);
            }
        }
    }

    /// Reads the published tables that match these names, and caches the list.
    async fn list(&self, wanted: Wanted) -> Result<Tables, Error> {
        let (schema, name) = (wanted.0.as_deref(), wanted.1.as_deref());
        let tables: Tables = self.read(schema, name, None).await?.into();
        let mut lists = self.lists.lock();
        if lists.len() >= LISTS_MAX {
            lists.retain(|_, (at, _)| at.elapsed() < FRESH);
            if lists.len() >= LISTS_MAX {
                lists.clear();
            }
        }
        lists.insert(wanted, (Instant::now(), tables.clone()));
        Ok(tables)
    }

    /// The table with this oid; `None` if it is not published.
    pub(super) async fn table(&self, oid: Oid) -> Result<Option<Arc<Described>>, Error> {
        Ok(self.read(None, None, Some(oid)).await?.pop())
    }

    /// The form of the table for row security.
    pub(super) fn for_rights(&self, table: &Arc<Described>) -> Arc<rows::PolicyTable> {
        let mut tables = self.tables.lock();
        let known = tables.get(&table.oid).filter(|(known, _)| known == table);
        if let Some((_, rights)) = known {
            return rights.clone();
        }
        let columns = table.columns.iter().filter(|column| !column.generated);
        let columns =
            columns.map(|column| rows::PolicyColumn { name: column.name.clone(), type_oid: column.type_oid });
        let rights = Arc::new(rows::PolicyTable {
            oid: table.oid,
            schema: table.schema.clone(),
            name: table.name.clone(),
            columns: columns.collect(),
        });
        tables.insert(table.oid, (table.clone(), rights.clone()));
        rights
    }

    async fn read(
        &self,
        schema: Option<&str>,
        name: Option<&str>,
        oid: Option<Oid>,
    ) -> Result<Vec<Arc<Described>>, Error> {
        self.ask(async |client: &mut Object| {
            let statement = client.prepare_cached(include_str!("sql/published.sql")).await?;
            let publication = self.publications.first();
            let rows =
                client.query(&statement, &[&publication, &schema, &name, &oid, &self.publications]).await?;
            let tables =
                rows.iter().map(|row| Ok((row, columns(row)?))).collect::<Result<Vec<_>, Error>>()?;
            let columns = tables.iter().flat_map(|(_, columns)| columns);
            let odd = columns.filter(|column| column.odd).map(|column| column.type_oid);
            let shapes = shapes(client, odd.collect()).await?;
            let oids = tables.iter().map(|(row, _)| row.try_get("oid")).collect::<Result<Vec<Oid>, _>>()?;
            let kinds = Kinds::read(&***client, &oids).await?;
            tables.into_iter().map(|(row, columns)| described(row, columns, &kinds, &shapes)).collect()
        })
        .await
    }
}

fn columns(row: &Row) -> Result<Vec<ColumnRow>, Error> {
    Ok(serde_json::from_value(row.try_get("columns")?)?)
}

fn described(
    row: &Row,
    columns: Vec<ColumnRow>,
    kinds: &Kinds,
    shapes: &Shapes,
) -> Result<Arc<Described>, Error> {
    let oid: Oid = row.try_get("oid")?;
    // A column that changed between the two statements is omitted. The next change reads the table again.
    let column = |column: ColumnRow| {
        let ColumnRow { name, type_oid, type_name, generated, odd } = column;
        let kind = kinds.of(oid, &name, type_oid)?.clone();
        let shape = if odd { shapes.of(type_oid) } else { None };
        Some(CatalogColumn { name, type_oid, type_name, generated, kind, shape })
    };
    Ok(Arc::new(Described {
        oid,
        schema: row.try_get("schema")?,
        name: row.try_get("name")?,
        publishes: [row.try_get("pubinsert")?, row.try_get("pubupdate")?, row.try_get("pubdelete")?],
        unlimited: row.try_get("unlimited")?,
        columns: columns.into_iter().filter_map(column).collect(),
    }))
}

/// Reads these types, and the types of their parts, to [`DEPTH_MAX`] levels.
async fn shapes(client: &Object, mut wanted: BTreeSet<Oid>) -> Result<Shapes, Error> {
    let mut shapes = Shapes::default();
    for _ in 0..DEPTH_MAX {
        if wanted.is_empty() {
            break;
        }
        let oids: Vec<Oid> = wanted.into_iter().collect();
        let statement = client.prepare_cached(include_str!("sql/types.sql")).await?;
        for row in client.query(&statement, &[&oids]).await? {
            let delimiter: String = row.try_get("delimiter")?;
            shapes.learn(
                row.try_get("oid")?,
                row.try_get("name")?,
                (row.try_get("base")?, row.try_get("element")?),
                delimiter.bytes().next().unwrap_or(b','),
                row.try_get::<_, Vec<String>>("names")?.into_iter().zip(row.try_get::<_, Vec<Oid>>("types")?),
            );
        }
        wanted = shapes.unknown();
    }
    Ok(shapes)
}
