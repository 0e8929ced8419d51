//! Builds, from the catalog, one statement that checks rows of one table for one role.
//!
//! Policies are read as text and evaluated over rows of the table's own row type, under the table's name:
//! columns, whole-row references and sub-selects keep their meaning. Only columns that policies read are
//! sent.
use super::{
    cacheability,
    literal::{self, Source},
    types::{Image, PolicyTable, Rights, Security},
};
use std::{
    collections::BTreeSet,
    fmt::Write,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};
use tokio_postgres::{Client, Error, Row, types::Oid};

/// The number of the column `tableoid` in `pg_attribute`. The numbers of all system columns are negative.
const TABLEOID: i32 = -6;

/// Source of query ids, unique in the process. Prepared statements and cached outcomes are keyed by them.
static NEXT_QUERY_ID: AtomicU64 = AtomicU64::new(0);

/// The check of a table for a role; valid until the catalog changes.
#[derive(Debug)]
pub(super) struct Plan {
    pub(super) rights: Arc<Rights>,
    pub(super) check: Check,
    /// The table and its ancestors, from whose catalog rows the plan was made.
    pub(super) related: Vec<Oid>,
    /// The functions on whose definitions the outcome depends; empty unless policies are pure.
    pub(super) functions: Vec<Oid>,
}

/// How to check rows.
#[derive(Debug)]
pub(super) enum Check {
    /// Every row is visible.
    AllVisible,
    /// No row is visible.
    NoneVisible,
    /// The images lack a column that the policies read.
    MissingColumn,
    /// Postgres evaluates the policies.
    Query(Arc<PolicyQuery>),
}

/// The policies as one statement: takes rows as `text[]` and returns one boolean for each, in the same order.
#[derive(Debug)]
pub(super) struct PolicyQuery {
    pub(super) id: u64,
    pub(super) sql: String,
    /// Name for logs, like `public.orders`.
    pub(super) table: String,
    /// Whether the outcome is known to depend on the row and the claims alone, and may be cached.
    pub(super) pure: bool,
    /// Whether it once exceeded its share of the time of a round trip.
    heavy: AtomicBool,
    sources: Vec<Source>,
}

impl PolicyQuery {
    /// Whether it gets a round trip of its own. Relaxed: the flag only affects speed, and nothing else
    /// depends on it.
    pub(super) fn is_heavy(&self) -> bool {
        self.heavy.load(Ordering::Relaxed)
    }

    pub(super) fn set_heavy(&self) {
        self.heavy.store(true, Ordering::Relaxed);
    }

    /// Returns the image in the form that the statement takes; `None` if the image lacks a column that
    /// policies read.
    pub(super) fn row(&self, image: &Image) -> Option<String> {
        literal::row(&self.sources, image)
    }
}

/// Why no plan could be made.
#[derive(Debug, thiserror::Error)]
pub(super) enum PlanError {
    #[error("no such role")]
    UnknownRole,
    #[error("the catalog is not readable")]
    Query(#[from] Error),
}

/// A column of the table's current row type.
struct LiveColumn {
    name: String,
    quoted: String,
    number: i16,
    type_oid: Oid,
    is_domain: bool,
    generated: Option<String>,
}

struct Policy {
    permissive: bool,
    expression: String,
    tree: String,
    columns: Vec<i32>,
}

impl Plan {
    /// Reads the catalog and makes the plan. `cache` enables the analysis whether outcomes may be cached.
    ///
    /// The client must be in a transaction with an empty `search_path`, so that every name in an expression
    /// is qualified with its schema.
    pub(super) async fn read(
        client: &Client,
        table: &PolicyTable,
        role: &str,
        cache: bool,
    ) -> Result<Self, PlanError> {
        let row = client.query_opt(include_str!("sql/rights.sql"), &[&table.oid, &role]).await?;
        let Some(row) = row else { return Ok(Self::of_missing_table(table)) };
        let viewer: Oid = row.try_get::<_, Option<Oid>>("viewer")?.ok_or(PlanError::UnknownRole)?;
        let security = match (row.try_get("off")?, row.try_get("exempt")?) {
            (true, _) => Security::Off,
            (false, true) => Security::Exempt,
            (false, false) => Security::On,
        };
        let rights = Arc::new(rights(table, &row, security)?);
        let related = row.try_get("related")?;
        if security != Security::On {
            return Ok(Self { rights, check: Check::AllVisible, related, functions: Vec::new() });
        }
        let governing: Oid = row.try_get("governing")?;
        let policies = client.query(include_str!("sql/policies.sql"), &[&governing, &viewer]).await?;
        let policies = policies.iter().map(policy).collect::<Result<Vec<_>, _>>()?;
        // Without a permissive policy Postgres denies every row.
        if !policies.iter().any(|policy| policy.permissive) {
            return Ok(Self { rights, check: Check::NoneVisible, related, functions: Vec::new() });
        }
        let columns = client.query(include_str!("sql/columns.sql"), &[&governing]).await?;
        let columns = columns.iter().map(live_column).collect::<Result<Vec<_>, _>>()?;
        let expressions = policies.iter().map(|policy| (policy.tree.as_str(), policy.expression.as_str()));
        let functions = if cache { cacheability::functions(client, expressions).await? } else { None };
        // Changes of a partitioned table that is published via its root carry the oid of the root, not of the
        // partition, so `tableoid` is unknown then.
        let tableoid = (!row.try_get::<_, bool>("partitioned")?).then_some(table.oid);
        let system = system_columns(&policies, tableoid);
        let (Some(system), Some(sources)) = (system, sources(table, &columns, &policies)) else {
            return Ok(Self { rights, check: Check::MissingColumn, related, functions: Vec::new() });
        };
        let query = PolicyQuery {
            // Relaxed: only uniqueness matters.
            id: NEXT_QUERY_ID.fetch_add(1, Ordering::Relaxed),
            sql: statement(&columns, &policies, &sources, (row.try_get("row_type")?, row.try_get("alias")?))
                + &system,
            table: format!("{}.{}", table.schema, table.name),
            pure: functions.is_some(),
            heavy: AtomicBool::new(false),
            sources,
        };
        let functions = functions.unwrap_or_default();
        Ok(Self { rights, check: Check::Query(Arc::new(query)), related, functions })
    }

    /// The plan of a table that was dropped: every row is hidden, because its policies are gone.
    fn of_missing_table(table: &PolicyTable) -> Self {
        let selectable = vec![false; table.columns.len()];
        let rights = Rights { selectable, primary_key: None, security: Security::On };
        Self {
            rights: Arc::new(rights),
            check: Check::NoneVisible,
            related: vec![table.oid],
            functions: Vec::new(),
        }
    }
}

fn rights(table: &PolicyTable, row: &Row, security: Security) -> Result<Rights, Error> {
    let selectable: Vec<String> = row.try_get("selectable")?;
    let selectable: BTreeSet<String> = selectable.into_iter().collect();
    let key: Vec<String> = row.try_get("key")?;
    let position = |name: &String| table.columns.iter().position(|column| column.name == *name);
    let primary_key = (!key.is_empty()).then(|| key.iter().map(position).collect()).flatten();
    let selectable = table.columns.iter().map(|column| selectable.contains(&column.name)).collect();
    Ok(Rights { selectable, primary_key, security })
}

fn policy(row: &Row) -> Result<Policy, Error> {
    Ok(Policy {
        permissive: row.try_get("permissive")?,
        expression: row.try_get("expression")?,
        tree: row.try_get("tree")?,
        columns: row.try_get("columns")?,
    })
}

fn live_column(row: &Row) -> Result<LiveColumn, Error> {
    Ok(LiveColumn {
        name: row.try_get("name")?,
        quoted: row.try_get("quoted")?,
        number: row.try_get("attnum")?,
        type_oid: row.try_get("type_oid")?,
        is_domain: row.try_get("is_domain")?,
        generated: row.try_get("generated")?,
    })
}

/// Returns the SQL that adds the system columns which policies read; `None` if the WAL does not carry one of
/// them: `ctid`, `xmin` and the like, and `tableoid` where the row may be of any partition.
fn system_columns(policies: &[Policy], tableoid: Option<Oid>) -> Option<String> {
    let mut read = policies.iter().flat_map(|policy| &policy.columns).filter(|column| **column < 0);
    match (read.next(), tableoid) {
        (None, _) => Some(String::new()),
        (Some(&TABLEOID), Some(oid)) if read.all(|column| *column == TABLEOID) => {
            Some(format!(" cross join (select '{oid}'::pg_catalog.oid as tableoid) as system_columns"))
        }
        _ => None,
    }
}

/// Returns the source of each column's value; `None` if the images lack a column that policies read.
fn sources(table: &PolicyTable, columns: &[LiveColumn], policies: &[Policy]) -> Option<Vec<Source>> {
    let read: BTreeSet<i32> = policies.iter().flat_map(|policy| policy.columns.iter().copied()).collect();
    let is_read = |column: &LiveColumn| read.contains(&i32::from(column.number));
    // A whole-row reference, or a generated column, may read any column.
    let all = policies.iter().any(|policy| policy.tree.contains(":varattno 0 "))
        || columns.iter().any(|column| column.generated.is_some() && is_read(column));
    let position = |column: &LiveColumn| {
        let same = |c: &super::PolicyColumn| c.name == column.name && c.type_oid == column.type_oid;
        table.columns.iter().position(same)
    };
    let source = |column: &LiveColumn| {
        // The statement computes generated columns itself.
        if column.generated.is_some() {
            return Some(Source::Omitted);
        }
        match position(column) {
            Some(at) if all || is_read(column) => Some(Source::Required(at)),
            None if all || is_read(column) => None,
            Some(at) if column.is_domain => Some(Source::Optional(at)),
            _ => Some(Source::Omitted),
        }
    };
    columns.iter().map(source).collect()
}

fn statement(
    columns: &[LiveColumn],
    policies: &[Policy],
    sources: &[Source],
    (row_type, alias): (&str, &str),
) -> String {
    let rows = format!("select t::{row_type} from unnest($1::text[]) as t");
    let needed = sources.iter().any(|source| matches!(source, Source::Required(_)));
    let rows = if needed && columns.iter().any(|column| column.generated.is_some()) {
        let value = |column: &LiveColumn| match &column.generated {
            Some(expression) => format!("({expression})"),
            None => format!("{alias}.{}", column.quoted),
        };
        let values: Vec<String> = columns.iter().map(value).collect();
        format!("select row({})::{row_type} from unnest(array({rows})) as {alias}", values.join(", "))
    } else {
        rows
    };
    // Like Postgres: every restrictive policy and at least one permissive policy must hold; null counts as
    // false.
    let mut sql = String::from("select coalesce(");
    for policy in policies.iter().filter(|policy| !policy.permissive) {
        let _ = write!(sql, "({}) and ", policy.expression);
    }
    let permissive = policies.iter().filter(|policy| policy.permissive);
    let permissive: Vec<String> = permissive.map(|policy| format!("({})", policy.expression)).collect();
    let _ = write!(sql, "({}), false) from unnest(array({rows})) as {alias}", permissive.join(" or "));
    sql
}
