//! The criteria of a wake, bound to one version of its table: columns found, values parsed, Postgres' checks tried.
use crate::{
    db,
    filter::{Answers, Bound, ColumnValue, Filter, Kind, Kinds, ProbeError, Truth},
    wal::{Cell, Relation, RowChange},
};
use deadpool_postgres::Client;
use sha2::{Digest, Sha256};
use std::time::Duration;

/// Time limit of Postgres for one question about at most 500 rows.
pub(super) const ASK_WITHIN: Duration = Duration::from_secs(5);
/// Longest key of coalesced changes, in bytes: an index must take it.
const KEY_BYTES_MAX: usize = 500;
/// First oid of user-defined types.
const FIRST_USER_OID: u32 = 16_384;

/// The criteria of a wake for rows.
#[derive(Clone, Debug, Default)]
pub(super) struct WakeCriteria {
    pub(super) filter: Filter,
    /// Columns whose values select the changes that are coalesced.
    pub(super) by: Vec<String>,
}

impl WakeCriteria {
    /// Whether every row matches, whatever its columns.
    pub(super) fn nothing(&self) -> bool {
        self.filter.conditions.is_empty() && self.by.is_empty()
    }
}

/// Why a wake cannot be bound to a table: the key of the definition, and what is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct BindError {
    pub(super) key: &'static str,
    pub(super) message: String,
}

/// A wake bound to one version of a table, ready to test rows.
#[derive(Debug, Default)]
pub(super) struct BoundWake {
    bound: Bound,
    asks: bool,
    by: Vec<usize>,
}

/// How the columns compare, by their positions. A column that the catalog does not have any more compares by the name
/// of its type.
pub(super) fn kinds_of(relation: &Relation, kinds: &Kinds) -> Vec<Kind> {
    let of = |column: &crate::wal::Column| {
        let known = kinds.of(relation.oid, &column.name, column.type_oid).cloned();
        known.unwrap_or_else(|| Kind::builtin(&column.type_name, column.type_oid >= FIRST_USER_OID))
    };
    relation.columns.iter().map(of).collect()
}

impl BoundWake {
    /// Finds the columns and parses the values.
    pub(super) fn new(relation: &Relation, kinds: &[Kind], wants: &WakeCriteria) -> Result<Self, BindError> {
        let column = |name: &str| {
            let at = relation.position(name)?;
            Some((at, kinds.get(at)?))
        };
        let bound = Bound::new(&wants.filter, column)
            .map_err(|e| BindError { key: "filter", message: e.to_string() })?;
        let place = |name: &String| {
            let message = || format!("invalid column for coalesce_by {name}");
            relation.position(name).ok_or_else(|| BindError { key: "coalesce_by", message: message() })
        };
        let by = wants.by.iter().map(place).collect::<Result<_, _>>()?;
        Ok(Self { asks: bound.needs_oracle(), bound, by })
    }

    /// The same, after Postgres has accepted the questions that only it can answer.
    pub(super) async fn verified(
        client: &mut Client,
        relation: &Relation,
        kinds: &[Kind],
        wants: &WakeCriteria,
    ) -> Result<Result<Self, BindError>, db::Error> {
        let refused = |refused: ProbeError| BindError { key: "filter", message: refused.to_string() };
        let kind = |name: &str| kinds.get(relation.position(name)?);
        let written = match Answers::normalize(client, &wants.filter, kind).await? {
            Ok(filter) => WakeCriteria { filter, by: wants.by.clone() },
            Err(why) => return Ok(Err(refused(why))),
        };
        let fit = match Self::new(relation, kinds, &written) {
            Ok(fit) => fit,
            Err(misfit) => return Ok(Err(misfit)),
        };
        let verified = Answers::verify(client, &fit.bound, ASK_WITHIN).await?;
        Ok(verified.map(|()| fit).map_err(refused))
    }

    /// Whether Postgres must be asked about rows.
    pub(super) fn asks(&self) -> bool {
        self.asks
    }

    /// The coalescing key of a change: the values of its columns as a JSON list, or their digest if that is long.
    /// `None` if the WAL does not carry all of them.
    pub(super) fn key(&self, change: &RowChange) -> Option<String> {
        let value = |at: &usize| match change.cell_at(*at)? {
            Cell::Unchanged => None,
            Cell::Null => Some(None),
            cell @ Cell::Text(_) => Some(Some(cell.text()?)),
        };
        let values: Vec<Option<&str>> = self.by.iter().map(value).collect::<Option<_>>()?;
        let key = serde_json::to_string(&values).unwrap_or_default();
        Some(if key.len() > KEY_BYTES_MAX { crate::agent::hex(&Sha256::digest(&key)) } else { key })
    }

    /// Whether the filter matches the new row, or for a delete the old one.
    pub(super) fn test(&self, change: &RowChange, answers: &mut Answers) -> Truth {
        let cell = |at: usize| match change.cell_at(at) {
            None | Some(Cell::Unchanged) => ColumnValue::Absent,
            Some(Cell::Null) => ColumnValue::Null,
            Some(cell @ Cell::Text(_)) => cell.text().map_or(ColumnValue::Absent, ColumnValue::Text),
        };
        self.bound.test(&cell, answers)
    }
}
