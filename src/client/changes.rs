//! Row changes: the filters of a channel and the changes it receives (`docs/spec/postgres-changes.md` §1, §2).
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use std::sync::Arc;

/// The row changes that a channel subscribes to. Every filter starts as all changes of its tables.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ChangeFilter {
    event: &'static str,
    schema: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    table: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    filter: Option<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    select: Vec<String>,
}

impl ChangeFilter {
    /// Changes of one table.
    pub fn table(schema: impl Into<String>, table: impl Into<String>) -> Self {
        Self { table: Some(table.into()), ..Self::schema(schema) }
    }
    /// Changes of every published table of a schema.
    pub fn schema(schema: impl Into<String>) -> Self {
        Self { event: "*", schema: schema.into(), table: None, filter: None, select: Vec::new() }
    }
    /// Only inserts.
    #[must_use]
    pub fn inserts(self) -> Self {
        Self { event: "INSERT", ..self }
    }
    /// Only updates.
    #[must_use]
    pub fn updates(self) -> Self {
        Self { event: "UPDATE", ..self }
    }
    /// Only deletes.
    #[must_use]
    pub fn deletes(self) -> Self {
        Self { event: "DELETE", ..self }
    }
    /// Only rows that match a condition, like `total=gt.100`.
    #[must_use]
    pub fn filter(self, filter: impl Into<String>) -> Self {
        Self { filter: Some(filter.into()), ..self }
    }
    /// Only these columns, and the primary key.
    #[must_use]
    pub fn columns<S: Into<String>>(self, columns: impl IntoIterator<Item = S>) -> Self {
        Self { select: columns.into_iter().map(Into::into).collect(), ..self }
    }

    /// Whether the server's echo in the join reply describes this filter.
    fn is_echoed(&self, echo: &Value) -> bool {
        let is = |member: &str, ours: Option<&str>| echo.get(member).and_then(Value::as_str) == ours;
        is("event", Some(self.event))
            && is("schema", Some(&self.schema))
            && is("table", self.table.as_deref())
            && is("filter", self.filter.as_deref())
    }
}

/// The kind of a row change.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum ChangeKind {
    /// A new row.
    Insert,
    /// A changed row.
    Update,
    /// A deleted row.
    Delete,
}

/// One row change.
#[derive(Clone, Debug, PartialEq, Deserialize)]
pub struct Change {
    /// The kind of change.
    #[serde(rename = "type")]
    pub kind: ChangeKind,
    /// The schema of the table.
    pub schema: String,
    /// The name of the table.
    pub table: String,
    /// The time of the commit, `YYYY-MM-DDTHH:MM:SS.mmmZ`.
    #[serde(default)]
    pub commit_timestamp: Option<String>,
    /// The row's columns that the token may read.
    #[serde(default)]
    pub columns: Vec<Column>,
    /// The new row; `None` for deletes.
    #[serde(default)]
    pub record: Option<Map<String, Value>>,
    /// The known part of the old row: its replica identity. `None` for inserts.
    #[serde(default)]
    pub old_record: Option<Map<String, Value>>,
    /// Why parts are missing.
    #[serde(default)]
    pub errors: Option<Vec<String>>,
    /// The channel's filters that the change passed.
    #[serde(skip)]
    pub filters: Vec<Arc<ChangeFilter>>,
}

/// A column of a changed row.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Column {
    /// The column's name.
    pub name: String,
    /// The type's name in Postgres, like `int4` or `_text`.
    #[serde(rename = "type")]
    pub type_name: String,
}

/// The filters of a channel with the ids that the server assigned.
#[derive(Debug, Default)]
pub(super) struct Bindings(Vec<(Value, Arc<ChangeFilter>)>);

#[derive(Deserialize)]
struct Message {
    ids: Vec<Value>,
    data: Change,
}

impl Bindings {
    /// Matches filters with the `response` of a join; `None` if the server accepted other filters.
    pub(super) fn match_up(filters: &[Arc<ChangeFilter>], response: &Value) -> Option<Self> {
        let none = Vec::new();
        let echoes = match response.get("postgres_changes") {
            Some(echoes) => echoes.as_array()?,
            None => &none,
        };
        let bound = filters.iter().enumerate().map(|(at, filter)| {
            let echo = echoes.get(at).filter(|echo| filter.is_echoed(echo))?;
            Some((echo.get("id")?.clone(), filter.clone()))
        });
        bound.collect::<Option<_>>().map(Self)
    }

    /// Decodes the payload of `postgres_changes`; `None` if it is invalid or matches no filter of the channel.
    pub(super) fn read(&self, payload: &[u8]) -> Option<Change> {
        let Message { ids, mut data } = serde_json::from_slice(payload).ok()?;
        let wanted = self.0.iter().filter(|(id, _)| ids.contains(id));
        data.filters = wanted.map(|(_, filter)| filter.clone()).collect();
        (!data.filters.is_empty()).then_some(data)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn change_lists_the_filters_it_passed_by_join_ids() {
        let orders = Arc::new(ChangeFilter::table("public", "orders").inserts().filter("total=gt.100"));
        let all = Arc::new(ChangeFilter::schema("public"));
        let asked = serde_json::to_value([&orders, &all]).unwrap();
        assert_eq!(
            asked,
            json!([{"event": "INSERT", "schema": "public", "table": "orders", "filter": "total=gt.100"},
                   {"event": "*", "schema": "public"}])
        );
        let filters = [orders.clone(), all.clone()];
        let mut echo = asked.clone();
        (echo[0]["id"], echo[1]["id"]) = (json!(7), json!(8));
        let bindings = Bindings::match_up(&filters, &json!({"postgres_changes": echo})).unwrap();
        let data = json!({"schema": "public", "table": "orders", "type": "INSERT", "commit_timestamp": null,
            "columns": [{"name": "id", "type": "int8"}], "record": {"id": 1}, "errors": null});
        let read = |ids: Value| bindings.read(json!({"ids": ids, "data": data}).to_string().as_bytes());
        let change = read(json!([8])).unwrap();
        assert_eq!((change.kind, &change.filters), (ChangeKind::Insert, &vec![all]));
        assert_eq!(change.record.unwrap()["id"], 1);
        assert_eq!(read(json!([8, 7])).unwrap().filters.len(), 2);
        assert!(read(json!([9])).is_none());
        assert!(bindings.read(b"[]").is_none());

        for wrong in
            [json!({}), json!({"postgres_changes": [{"event": "*"}]}), json!({"postgres_changes": 1})]
        {
            assert!(Bindings::match_up(&filters, &wrong).is_none(), "{wrong}");
        }
        assert!(Bindings::match_up(&[], &json!({})).is_some());
    }
}
