//! One requested subscription: an item of `config.postgres_changes` (`docs/spec/postgres-changes.md` §1.1). Pure.
use crate::{
    filter::{BadFilter, Filter, Test},
    wal::Op,
};
use serde_json::{Map, Value};
use std::fmt::Write;

/// A parsed item.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Item {
    /// The client's id for it.
    pub(super) id: u64,
    /// `None` for every kind of change.
    pub(super) op: Option<Operation>,
    pub(super) schema: Name,
    pub(super) table: Name,
    pub(super) filter: Filter,
    /// Sorted; `None` for all columns.
    pub(super) select: Option<Vec<String>>,
    /// Its form in error messages.
    pub(super) told: ItemLabel,
}

/// [`Op`] as a key of maps.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Operation {
    Insert,
    Update,
    Delete,
}

/// A name, or a wildcard.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Name {
    Any,
    Is(String),
}

/// The parts of an item in the form of error messages.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct ItemLabel {
    filters: String,
    select: Option<Vec<String>>,
}

impl Name {
    fn of(text: &str) -> Self {
        if text == "*" { Self::Any } else { Self::Is(text.to_owned()) }
    }

    pub(super) fn takes(&self, name: &str) -> bool {
        match self {
            Self::Any => true,
            Self::Is(own) => own == name,
        }
    }

    pub(super) fn exact(&self) -> Option<&str> {
        match self {
            Self::Any => None,
            Self::Is(name) => Some(name),
        }
    }

    fn as_str(&self) -> &str {
        self.exact().unwrap_or("*")
    }
}

impl Item {
    /// Parses an item that has its `id`. A null member counts as absent.
    ///
    /// # Errors
    /// The text of `docs/spec/postgres-changes.md` §1.5.
    pub(super) fn parse(item: &Map<String, Value>) -> Result<Self, String> {
        let member = |name: &str| item.get(name).filter(|value| !value.is_null());
        let text = |name: &str| match member(name) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text.as_str())),
            Some(_) => Err(nothing_to_subscribe_to(item)),
        };
        let (schema, table, filter) = (text("schema")?, text("table")?, text("filter")?);
        let (schema, table) = match (schema, table) {
            (None, None) => return Err(nothing_to_subscribe_to(item)),
            (_, None) | (None, _) if filter.is_some() => return Err(nothing_to_subscribe_to(item)),
            (Some(schema), table) => (Name::of(schema), table.map_or(Name::Any, Name::of)),
            (None, Some(table)) => (Name::of("public"), Name::of(table)),
        };
        let op = member("event").and_then(Value::as_str).and_then(|event| Operation::read(event.trim()));
        let select = select(member("select"), &schema, &table)?;
        let mut read = Self {
            id: item.get("id").and_then(Value::as_u64).unwrap_or_default(),
            op,
            schema,
            table,
            filter: Filter::default(),
            told: ItemLabel { filters: String::new(), select: select.clone() },
            select: select.map(|mut columns| {
                columns.sort();
                columns.dedup();
                columns
            }),
        };
        match Filter::parse(filter.unwrap_or_default()) {
            Ok(filter) => {
                read.told.filters = filters(&filter);
                read.filter = filter;
                Ok(read)
            }
            Err(bad @ (BadFilter::Keyword | BadFilter::TooMany)) => {
                Err(read.exception("P0001 (raise_exception)", &bad.to_string()))
            }
            Err(bad @ BadFilter::List(_)) => {
                Err(read.exception("22P02 (invalid_text_representation)", &bad.to_string()))
            }
            Err(bad) => Err(format!("Error parsing `filter` params: {}", bad.protocol_text())),
        }
    }

    /// Whether it matches changes of the table.
    pub(super) fn is_about(&self, schema: &str, table: &str) -> bool {
        self.schema.takes(schema) && self.table.takes(table)
    }

    pub(super) fn takes(&self, op: Op) -> bool {
        self.op.is_none_or(|own| own == Operation::from(op))
    }

    /// The text of a refusal because no published table matches.
    pub(super) fn not_published(&self) -> String {
        format!(
            "Unable to subscribe to changes with given parameters. Please check Realtime is enabled for the given \
             connect parameters: [{}]",
            self.parameters()
        )
    }

    /// The text of a refusal with a database error: `code` is the SQLSTATE with its name, `text` the message.
    pub(super) fn exception(&self, code: &str, text: &str) -> String {
        format!(
            "Unable to subscribe to changes with given parameters. An exception happened so please check your \
             connect parameters: [{}]. Exception: ERROR {code} {text}",
            self.parameters()
        )
    }

    fn parameters(&self) -> String {
        let event = self.op.map_or("*", Operation::as_str);
        let select = match &self.told.select {
            None => "nil".to_owned(),
            Some(columns) => format!("{columns:?}"),
        };
        let (schema, table) = (self.schema.as_str(), self.table.as_str());
        let filters = &self.told.filters;
        format!("event: {event}, schema: {schema}, table: {table}, filters: [{filters}], select: {select}")
    }
}

impl Operation {
    fn read(event: &str) -> Option<Self> {
        Some(match event.to_ascii_uppercase().as_str() {
            "INSERT" => Self::Insert,
            "UPDATE" => Self::Update,
            "DELETE" => Self::Delete,
            _ => return None,
        })
    }

    fn as_str(self) -> &'static str {
        match self {
            Self::Insert => "INSERT",
            Self::Update => "UPDATE",
            Self::Delete => "DELETE",
        }
    }
}

impl From<Op> for Operation {
    fn from(op: Op) -> Self {
        match op {
            Op::Insert => Self::Insert,
            Op::Update => Self::Update,
            Op::Delete => Self::Delete,
        }
    }
}

fn select(value: Option<&Value>, schema: &Name, table: &Name) -> Result<Option<Vec<String>>, String> {
    let columns: Vec<String> = match value {
        Some(Value::String(_)) => {
            let wish = "expected a list of column name strings, e.g. select: [\"col1\", \"col2\"]";
            return Err(format!("Error parsing `select` params: {wish}"));
        }
        Some(Value::Array(columns)) => {
            columns.iter().filter_map(|column| column.as_str().map(str::to_owned)).collect()
        }
        _ => return Ok(None),
    };
    if columns.is_empty() {
        return Ok(None);
    }
    if schema.exact().is_none() || table.exact().is_none() {
        let why = "Column selection is not supported for wildcard subscriptions.";
        return Err(format!("{why} Provide an explicit schema and table name."));
    }
    Ok(Some(columns))
}

/// The text of a refusal because the item names no table, in the format of Supabase Realtime.
fn nothing_to_subscribe_to(item: &Map<String, Value>) -> String {
    let secret = item.contains_key("user_token") || item.contains_key("auth_token");
    let shown = if secret { "<redacted>".to_owned() } else { inspected(item) };
    format!(
        "No subscription params provided. Please provide at least a `schema` or `table` to subscribe to: {shown}"
    )
}

fn inspected(item: &Map<String, Value>) -> String {
    let value = |value: &Value| match value {
        Value::Null => "nil".to_owned(),
        other => other.to_string(),
    };
    let members = item.iter().filter(|(name, _)| *name != "id");
    let members: Vec<String> = members.map(|(name, v)| format!("{name:?} => {}", value(v))).collect();
    format!("%{{{}}}", members.join(", "))
}

/// `{"column", "operator", "value", negated}` for each segment, in the format of Supabase Realtime.
fn filters(filter: &Filter) -> String {
    let mut out = String::new();
    for segment in filter.segments() {
        let (operator, value) = match &segment.test {
            Test::Compare(operator, value) => (operator.as_str(), value.clone()),
            Test::Is(keyword) => ("is", keyword.as_str().to_owned()),
            Test::In(values) => {
                let values = values.iter().map(|value| value.as_deref().unwrap_or("NULL"));
                ("in", format!("{{{}}}", values.collect::<Vec<_>>().join(",")))
            }
        };
        let comma = if out.is_empty() { "" } else { ", " };
        let _ = write!(out, "{comma}{{{:?}, {operator:?}, {value:?}, {}}}", segment.column, segment.negated);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn parse(item: Value) -> Result<Item, String> {
        Item::parse(item.as_object().unwrap())
    }

    #[test]
    fn names_default_as_the_protocol_defines() {
        let item = parse(json!({"event": "insert", "table": "t", "id": 3})).unwrap();
        assert_eq!((item.id, item.op), (3, Some(Operation::Insert)));
        assert!(item.is_about("public", "t") && !item.is_about("other", "t"));
        let item = parse(json!({"event": "*", "schema": "s", "table": null, "filter": null})).unwrap();
        assert!(item.is_about("s", "anything") && !item.is_about("public", "t"));
        assert_eq!(item.op, None);
        assert!(parse(json!({"schema": "*"})).unwrap().is_about("a", "b"));
        let exact = parse(json!({"schema": "public", "table": "a_b"})).unwrap();
        assert!(exact.is_about("public", "a_b") && !exact.is_about("public", "axb"));
    }

    #[test]
    fn invalid_item_has_the_text_of_the_protocol() {
        let none = parse(json!({"event": "INSERT", "id": 7})).unwrap_err();
        assert_eq!(
            none,
            "No subscription params provided. Please provide at least a `schema` or `table` to subscribe to: \
             %{\"event\" => \"INSERT\"}"
        );
        assert!(parse(json!({"schema": 1})).unwrap_err().starts_with("No subscription params"));
        assert!(parse(json!({"schema": "s", "filter": "a=eq.1"})).is_err());
        assert!(parse(json!({"user_token": "x"})).unwrap_err().ends_with("<redacted>"));
        let of =
            |filter: &str| parse(json!({"schema": "public", "table": "t", "filter": filter})).unwrap_err();
        assert_eq!(of("wrong"), "Error parsing `filter` params: [\"wrong\"]");
        assert_eq!(of("subject=foo.hey"), "Error parsing `filter` params: [\"foo\", \"hey\"]");
        assert!(of("id=gt.0,").ends_with("filter must not contain empty segments (check for extra commas)"));
        assert!(
            of("c=is.NULL").contains("Exception: ERROR P0001 (raise_exception) invalid value for is filter")
        );
        let select = parse(json!({"schema": "public", "table": "t", "select": "id"})).unwrap_err();
        assert!(select.starts_with("Error parsing `select` params: expected a list"));
        let wildcard = parse(json!({"schema": "public", "select": ["id"]})).unwrap_err();
        assert!(wildcard.starts_with("Column selection is not supported for wildcard subscriptions."));
    }

    #[test]
    fn refusal_lists_the_resolved_parameters() {
        let item = parse(json!({
            "event": "*", "schema": "public", "table": "t", "filter": "c=eq.x,d=not.in.(1,2)", "select": ["b", "a"],
        }));
        let item = item.unwrap();
        assert!(item.not_published().ends_with(
            "[event: *, schema: public, table: t, filters: [{\"c\", \"eq\", \"x\", false}, {\"d\", \"in\", \
             \"{1,2}\", true}], select: [\"b\", \"a\"]]"
        ));
        assert_eq!(item.select.unwrap(), ["a", "b"]);
    }
}
