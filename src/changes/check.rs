//! Validates a requested subscription: its tables, the rights of its role, and the values of its filters.
use super::{
    catalog::{Catalog, CatalogColumn, Described, Error, Tables},
    item::Item,
};
use crate::{
    access::rows::{Failure, Rows, Viewer},
    filter::{Bound, Class, Operator, Unbindable},
};
use std::sync::Arc;
use tokio_postgres::error::{DbError, SqlState};

/// Why an item is refused.
#[derive(Clone, Debug)]
pub(super) enum Refusal {
    /// Invalid, with the text for the client. A retry does not help.
    Asked(String),
    /// The database is unavailable. A retry may help.
    Away(Arc<Error>),
}

impl From<Error> for Refusal {
    fn from(error: Error) -> Self {
        Self::Away(Arc::new(error))
    }
}

/// Validates an item and normalizes its values to Postgres's text form. Returns the tables that it matches now.
pub(super) async fn check(
    catalog: &Arc<Catalog>,
    rows: &Rows,
    viewer: &Viewer,
    item: &mut Item,
) -> Result<Tables, Refusal> {
    let (schema, name) = (item.schema.exact().map(str::to_owned), item.table.exact().map(str::to_owned));
    for anew in [false, true] {
        let tables = catalog.tables(schema.as_deref(), name.as_deref(), anew).await?;
        match against(catalog, rows, viewer, item, &tables).await {
            // The table or column may be newer than the cached catalog: retried once without the cache.
            Err(Refusal::Asked(_)) if !anew => {}
            Err(refusal) => return Err(refusal),
            Ok(()) => return Ok(tables),
        }
    }
    Err(Refusal::Asked(item.not_published()))
}

async fn against(
    catalog: &Catalog,
    rows: &Rows,
    viewer: &Viewer,
    item: &mut Item,
    tables: &Tables,
) -> Result<(), Refusal> {
    if tables.is_empty() {
        return Err(Refusal::Asked(item.not_published()));
    }
    for table in tables.iter() {
        let raised = |text: String| Refusal::Asked(item.exception("P0001 (raise_exception)", &text));
        let rights = rows.rights(&catalog.for_rights(table), viewer.role()).await;
        let rights = rights.map_err(|failure| match failure {
            Failure::UnknownRole => Refusal::Asked(item.exception(
                "42704 (undefined_object)",
                &format!("role \"{}\" does not exist", viewer.named_role()),
            )),
            other => raised(other.to_string()),
        })?;
        let carried: Vec<&CatalogColumn> = table.columns.iter().filter(|column| !column.generated).collect();
        let readable = |name: &str| {
            let at = carried.iter().position(|column| column.name == name)?;
            rights.selectable.get(at).copied().unwrap_or_default().then_some(at)
        };
        for segment in item.filter.segments() {
            if readable(&segment.column).is_none() {
                return Err(raised(format!("invalid column for filter {}", segment.column)));
            }
        }
        for column in item.select.iter().flatten() {
            if readable(column).is_none() {
                return Err(raised(format!("invalid column for select {column}")));
            }
        }
    }
    let only = match &tables[..] {
        [only] => Some(only.clone()),
        _ => None,
    };
    for table in tables.iter() {
        values(catalog, item, table, only.is_some()).await?;
    }
    Ok(())
}

/// Validates the values of a filter against the columns of a table. With `keep`, replaces them by Postgres's text form.
async fn values(
    catalog: &Catalog,
    item: &mut Item,
    table: &Arc<Described>,
    keep: bool,
) -> Result<(), Refusal> {
    if item.filter.conditions.is_empty() {
        return Ok(());
    }
    let mut filter = item.filter.clone();
    for (column, operator, value) in filter.values_mut() {
        let Some(column) = table.columns.iter().find(|it| it.name == column) else { continue };
        let kind = &column.kind;
        let pattern = operator.is_some_and(Operator::is_pattern);
        let word = operator.map_or("in", Operator::as_str);
        if let Err(why) = kind.check(&column.name, word, pattern) {
            return Err(Refusal::Asked(item.exception("P0001 (raise_exception)", &why.to_string())));
        }
        if pattern {
            let asked = operator.filter(|it| *it != Operator::Like || value.ends_with('\\'));
            if let Some(operator) = asked {
                let sql = format!(
                    "select {} from (select ''::text, $1::text) as p(v, l)",
                    kind.expression(operator)
                );
                catalog
                    .values
                    .ask(catalog, &sql, value)
                    .await?
                    .map_err(|said| bad_pattern(item, operator, &said))?;
            }
        } else if !is_certain(column, value) {
            let said = catalog.values.ask(catalog, &kind.output_sql(), value).await?;
            let written =
                said.map_err(|said| Refusal::Asked(item.exception(&code(&said), said.message())))?;
            // A valid value does not imply that its type has the operator.
            if matches!(kind.class, Class::Asked) || !kind.ordered {
                let operator = operator.unwrap_or(Operator::Equal);
                let sql = format!(
                    "select {} from (select null::text, $1::text) as p(v, l)",
                    kind.expression(operator)
                );
                catalog.values.ask(catalog, &sql, value).await?.map_err(|_| {
                    let why = Unbindable::Incomparable {
                        column: column.name.clone(),
                        type_name: kind.type_name.clone(),
                        operator: word,
                    };
                    Refusal::Asked(item.exception("P0001 (raise_exception)", &why.to_string()))
                })?;
            }
            if let Some(written) = written {
                *value = written;
            }
        }
    }
    let place = |name: &str| {
        let at = table.columns.iter().position(|column| column.name == name)?;
        Some((at, &table.columns.get(at)?.kind))
    };
    if let Err(why) = Bound::new(&filter, place) {
        let code = match &why {
            Unbindable::NoValue { .. } => "22P02 (invalid_text_representation)",
            _ => "P0001 (raise_exception)",
        };
        return Err(Refusal::Asked(item.exception(code, &why.to_string())));
    }
    if keep {
        item.filter = filter;
    }
    Ok(())
}

/// Whether a value is known without a query to be valid for the column and in Postgres's text form.
fn is_certain(column: &CatalogColumn, value: &str) -> bool {
    let digits = || value.strip_prefix('-').unwrap_or(value).bytes().all(|b| b.is_ascii_digit());
    match (&column.kind.class, column.kind.type_name.as_str()) {
        (Class::Number, "smallint") => digits() && value.parse::<i16>().is_ok(),
        (Class::Number, "integer") => digits() && value.parse::<i32>().is_ok(),
        (Class::Number, "bigint") => digits() && value.parse::<i64>().is_ok(),
        (Class::Bool, _) => matches!(value, "t" | "f" | "true" | "false"),
        (Class::Text, "text" | "character varying") | (Class::Padded, _) => true,
        (Class::Enum(labels), _) => labels.iter().any(|label| **label == *value),
        (Class::Uuid, _) => value.parse::<uuid::Uuid>().is_ok_and(|id| id.to_string() == value),
        _ => false,
    }
}

fn bad_pattern(item: &Item, operator: Operator, said: &DbError) -> Refusal {
    let what = format!("invalid regular expression for {} filter: {}", operator.as_str(), said.message());
    let text =
        if *said.code() == SqlState::INVALID_REGULAR_EXPRESSION { what } else { said.message().to_owned() };
    Refusal::Asked(item.exception("P0001 (raise_exception)", &text))
}

/// The SQLSTATE with its name, in the format of Supabase Realtime.
fn code(said: &DbError) -> String {
    let name = match said.code().code() {
        "22P02" => "invalid_text_representation",
        "22003" => "numeric_value_out_of_range",
        "22007" => "invalid_datetime_format",
        "22008" => "datetime_field_overflow",
        "2201B" => "invalid_regular_expression",
        "42883" => "undefined_function",
        "23514" => "check_violation",
        _ => "data_exception",
    };
    format!("{} ({name})", said.code().code())
}
