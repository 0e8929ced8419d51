//! Row changes: what a channel asks for, and what it gets (`reference/postgres-changes.md` §1, §2).
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use std::sync::Arc;

/// Which row changes a channel wants; all of them begin with every change of a published table.
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
    /// Only rows that come.
    #[must_use]
    pub fn inserts(self) -> Self {
        Self { event: "INSERT", ..self }
    }
    /// Only rows that change.
    #[must_use]
    pub fn updates(self) -> Self {
        Self { event: "UPDATE", ..self }
    }
    /// Only rows that go.
    #[must_use]
    pub fn deletes(self) -> Self {
        Self { event: "DELETE", ..self }
    }
    /// Only rows for which this holds, like `total=gt.100`.
    #[must_use]
    pub fn filter(self, filter: impl Into<String>) -> Self {
        Self { filter: Some(filter.into()), ..self }
    }
    /// Only these columns, and the primary key.
    #[must_use]
    pub fn columns<S: Into<String>>(self, columns: impl IntoIterator<Item = S>) -> Self {
        Self { select: columns.into_iter().map(Into::into).collect(), ..self }
    }

    /// Whether the server's echo in the join reply is this one.
    fn is_echoed(&self, echo: &Value) -> bool {
        let is = |member: &str, ours: Option<&str>| echo.get(member).and_then(Value::as_str) == ours;
        is("event", Some(self.event))
            && is("schema", Some(&self.schema))
            && is("table", self.table.as_deref())
            && is("filter", self.filter.as_deref())
    }
}

/// What happened to a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum ChangeKind {
    /// It came.
    Insert,
    /// It changed.
    Update,
    /// It went.
    Delete,
}

/// One row change.
#[derive(Clone, Debug, PartialEq, Deserialize)]
pub struct Change {
    /// What happened.
    #[serde(rename = "type")]
    pub kind: ChangeKind,
    /// Of the table.
    pub schema: String,
    /// Its name.
    pub table: String,
    /// When it was committed, `YYYY-MM-DDTHH:MM:SS.mmmZ`.
    #[serde(default)]
    pub commit_timestamp: Option<String>,
    /// The row's columns that the token may see.
    #[serde(default)]
    pub columns: Vec<Column>,
    /// The row as it is now; not for deletes.
    #[serde(default)]
    pub record: Option<Map<String, Value>>,
    /// What is known of the row as it was: its replica identity; not for inserts.
    #[serde(default)]
    pub old_record: Option<Map<String, Value>>,
    /// Why something is missing.
    #[serde(default)]
    pub errors: Option<Vec<String>>,
    /// The filters of this channel that it passed.
    #[serde(skip)]
    pub filters: Vec<Arc<ChangeFilter>>,
}

/// A column of a changed row.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Column {
    /// Its name.
    pub name: String,
    /// As Postgres calls it, like `int4` or `_text`.
    #[serde(rename = "type")]
    pub type_name: String,
}

/// The filters of a channel with the ids by which the server names them.
#[derive(Debug, Default)]
pub(super) struct Bindings(Vec<(Value, Arc<ChangeFilter>)>);

#[derive(Deserialize)]
struct Message {
    ids: Vec<Value>,
    data: Change,
}

impl Bindings {
    /// From the `response` of a join; nothing when the server took other filters than these.
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

    /// The payload of `postgres_changes`; nothing when it is none, or for no filter of ours.
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
    fn a_change_names_the_filters_it_passed_by_the_ids_of_the_join() {
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
