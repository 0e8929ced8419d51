//! What the catalog says about one table and one role, made into one statement that judges rows.
//!
//! Policies are read as text and evaluated over rows of the table's own row type, under the table's
//! name, so that columns, whole rows and references from sub-selects mean what they mean in Postgres.
//! Only the columns that policies look at travel.
use super::{
    literal::{self, Source},
    pure,
    types::{Image, Rights, Security, Table},
};
use std::{
    collections::BTreeSet,
    fmt::Write,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};
use tokio_postgres::{Client, Error, Row, types::Oid};

/// Names each question of this process: statements and outcomes are remembered by it.
static QUESTIONS: AtomicU64 = AtomicU64::new(0);

/// What is known about a table and a role until the catalog changes.
#[derive(Debug)]
pub(super) struct Plan {
    pub(super) rights: Arc<Rights>,
    pub(super) check: Check,
    /// The table and those above it, whose catalog rows the plan was made of.
    pub(super) related: Vec<Oid>,
    /// The functions that the outcome was found to depend on.
    pub(super) functions: Vec<Oid>,
}

/// How rows are judged.
#[derive(Debug)]
pub(super) enum Check {
    /// Every row is visible.
    All,
    /// No row is.
    None,
    /// The images lack a column that the policies look at.
    Lacking,
    /// Postgres says.
    Ask(Arc<Question>),
}

/// The policies as one statement: takes rows as `text[]`, gives a boolean for each, in their order.
#[derive(Debug)]
pub(super) struct Question {
    pub(super) id: u64,
    pub(super) sql: String,
    /// For logs, like `public.orders`.
    pub(super) table: String,
    /// Whether the outcome depends on nothing but the row and the claims.
    pub(super) pure: bool,
    sources: Vec<Source>,
}

impl Question {
    /// The image as the statement takes it; nothing when a value that policies look at is not known.
    pub(super) fn row(&self, image: &Image) -> Option<String> {
        literal::row(&self.sources, image)
    }
}

/// Why there is no plan.
#[derive(Debug, thiserror::Error)]
pub(super) enum NoPlan {
    #[error("no such role")]
    UnknownRole,
    #[error("the catalog cannot be read")]
    Query(#[from] Error),
}

/// A column of the row type, as it is now.
struct Live {
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
    /// Reads the catalog. The client must be in a transaction with an empty `search_path`, so that every
    /// name in an expression comes with its schema.
    pub(super) async fn read(client: &Client, table: &Table, role: &str) -> Result<Self, NoPlan> {
        let row = client.query_opt(include_str!("sql/rights.sql"), &[&table.oid, &role]).await?;
        let Some(row) = row else { return Ok(Self::gone(table)) };
        let viewer: Oid = row.try_get::<_, Option<Oid>>("viewer")?.ok_or(NoPlan::UnknownRole)?;
        let security = match (row.try_get("off")?, row.try_get("exempt")?) {
            (true, _) => Security::Off,
            (false, true) => Security::Exempt,
            (false, false) => Security::On,
        };
        let rights = Arc::new(rights(table, &row, security)?);
        let related = row.try_get("related")?;
        if security != Security::On {
            return Ok(Self { rights, check: Check::All, related, functions: Vec::new() });
        }
        let governing: Oid = row.try_get("governing")?;
        let policies = client.query(include_str!("sql/policies.sql"), &[&governing, &viewer]).await?;
        let policies = policies.iter().map(policy).collect::<Result<Vec<_>, _>>()?;
        if !policies.iter().any(|policy| policy.permissive) {
            return Ok(Self { rights, check: Check::None, related, functions: Vec::new() });
        }
        let columns = client.query(include_str!("sql/columns.sql"), &[&governing]).await?;
        let columns = columns.iter().map(live).collect::<Result<Vec<_>, _>>()?;
        let functions = pure::functions(client, policies.iter().map(|policy| policy.tree.as_str())).await?;
        let Some(sources) = sources(table, &columns, &policies) else {
            return Ok(Self { rights, check: Check::Lacking, related, functions: Vec::new() });
        };
        let question = Question {
            id: QUESTIONS.fetch_add(1, Ordering::Relaxed),
            sql: statement(&columns, &policies, &sources, row.try_get("row_type")?, row.try_get("alias")?),
            table: format!("{}.{}", table.schema, table.name),
            pure: functions.is_some(),
            sources,
        };
        let functions = functions.unwrap_or_default();
        Ok(Self { rights, check: Check::Ask(Arc::new(question)), related, functions })
    }

    /// Of a table that is no more nobody can say who might see it.
    fn gone(table: &Table) -> Self {
        let selectable = vec![false; table.columns.len()];
        let rights = Rights { selectable, primary_key: None, security: Security::On };
        Self { rights: Arc::new(rights), check: Check::None, related: vec![table.oid], functions: Vec::new() }
    }
}

fn rights(table: &Table, row: &Row, security: Security) -> Result<Rights, Error> {
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

fn live(row: &Row) -> Result<Live, Error> {
    Ok(Live {
        name: row.try_get("name")?,
        quoted: row.try_get("quoted")?,
        number: row.try_get("attnum")?,
        type_oid: row.try_get("type_oid")?,
        is_domain: row.try_get("is_domain")?,
        generated: row.try_get("generated")?,
    })
}

/// Where each column takes its value from; nothing when the images lack one that policies look at.
fn sources(table: &Table, columns: &[Live], policies: &[Policy]) -> Option<Vec<Source>> {
    let looked_at: BTreeSet<i32> =
        policies.iter().flat_map(|policy| policy.columns.iter().copied()).collect();
    let is_looked_at = |column: &Live| looked_at.contains(&i32::from(column.number));
    // A reference to the whole row, or a column made of others: all are needed.
    let all = policies.iter().any(|policy| policy.tree.contains(":varattno 0 "))
        || columns.iter().any(|column| column.generated.is_some() && is_looked_at(column));
    let position = |column: &Live| {
        let same = |c: &super::Column| c.name == column.name && c.type_oid == column.type_oid;
        table.columns.iter().position(same)
    };
    let source = |column: &Live| {
        if column.generated.is_some() {
            return Some(Source::Nothing);
        }
        match position(column) {
            Some(at) if all || is_looked_at(column) => Some(Source::Needed(at)),
            None if all || is_looked_at(column) => None,
            Some(at) if column.is_domain => Some(Source::Wanted(at)),
            _ => Some(Source::Nothing),
        }
    };
    columns.iter().map(source).collect()
}

fn statement(
    columns: &[Live],
    policies: &[Policy],
    sources: &[Source],
    row_type: &str,
    alias: &str,
) -> String {
    let rows = format!("select t::{row_type} from unnest($1::text[]) as t");
    let needed = sources.iter().any(|source| matches!(source, Source::Needed(_)));
    let rows = if needed && columns.iter().any(|column| column.generated.is_some()) {
        let value = |column: &Live| match &column.generated {
            Some(expression) => format!("({expression})"),
            None => format!("{alias}.{}", column.quoted),
        };
        let values: Vec<String> = columns.iter().map(value).collect();
        format!("select row({})::{row_type} from unnest(array({rows})) as {alias}", values.join(", "))
    } else {
        rows
    };
    let mut sql = String::from("select coalesce(");
    for policy in policies.iter().filter(|policy| !policy.permissive) {
        let _ = write!(sql, "({}) and ", policy.expression);
    }
    let permissive = policies.iter().filter(|policy| policy.permissive);
    let permissive: Vec<String> = permissive.map(|policy| format!("({})", policy.expression)).collect();
    let _ = write!(sql, "({}), false) from unnest(array({rows})) as {alias}", permissive.join(" or "));
    sql
}
