//! What a wake wants of a row, fitted to one version of its table: columns found, values read, questions tried.
use crate::{
    db,
    filter::{Answers, Bound, Filter, Found, Kind, Kinds, Refused, Truth},
    wal::{Cell, Relation, RowChange},
};
use deadpool_postgres::Client;
use sha2::{Digest, Sha256};
use std::time::Duration;

/// How long Postgres may take over one question, which is about at most five hundred rows.
pub(super) const ASK_WITHIN: Duration = Duration::from_secs(5);
/// Longest key of changes that are put together, which an index must take.
const KEY_BYTES_MAX: usize = 500;
/// Types from here on are made by users.
const FIRST_USER_OID: u32 = 16_384;

/// What a wake says about rows.
#[derive(Clone, Debug, Default)]
pub(super) struct Wants {
    pub(super) filter: Filter,
    /// Columns whose values say which changes are put together.
    pub(super) by: Vec<String>,
}

impl Wants {
    /// Whether any row will do, whatever its columns.
    pub(super) fn nothing(&self) -> bool {
        self.filter.conditions.is_empty() && self.by.is_empty()
    }
}

/// Why a wake does not fit a table: the key of the agent's file, and what is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Misfit {
    pub(super) key: &'static str,
    pub(super) message: String,
}

/// A wake's wants, ready to be asked of rows of one version of a table.
#[derive(Debug, Default)]
pub(super) struct Fit {
    bound: Bound,
    asks: bool,
    by: Vec<usize>,
}

/// How the columns compare, by their places; as far as the catalog does not know them any more, by the names of
/// their types.
pub(super) fn kinds_of(relation: &Relation, kinds: &Kinds) -> Vec<Kind> {
    let of = |column: &crate::wal::Column| {
        let known = kinds.of(relation.oid, &column.name, column.type_oid).cloned();
        known.unwrap_or_else(|| Kind::builtin(&column.type_name, column.type_oid >= FIRST_USER_OID))
    };
    relation.columns.iter().map(of).collect()
}

impl Fit {
    /// Finds the columns and reads the values.
    pub(super) fn new(relation: &Relation, kinds: &[Kind], wants: &Wants) -> Result<Self, Misfit> {
        let column = |name: &str| {
            let at = relation.position(name)?;
            Some((at, kinds.get(at)?))
        };
        let bound = Bound::new(&wants.filter, column)
            .map_err(|e| Misfit { key: "filter", message: e.to_string() })?;
        let place = |name: &String| {
            let message = || format!("invalid column for coalesce_by {name}");
            relation.position(name).ok_or_else(|| Misfit { key: "coalesce_by", message: message() })
        };
        let by = wants.by.iter().map(place).collect::<Result<_, _>>()?;
        Ok(Self { asks: bound.needs_oracle(), bound, by })
    }

    /// The same, once Postgres takes the questions that only it can answer.
    pub(super) async fn verified(
        client: &mut Client,
        relation: &Relation,
        kinds: &[Kind],
        wants: &Wants,
    ) -> Result<Result<Self, Misfit>, db::Error> {
        let refused = |refused: Refused| Misfit { key: "filter", message: refused.to_string() };
        let kind = |name: &str| kinds.get(relation.position(name)?);
        let written = match Answers::written(client, &wants.filter, kind).await? {
            Ok(filter) => Wants { filter, by: wants.by.clone() },
            Err(why) => return Ok(Err(refused(why))),
        };
        let fit = match Self::new(relation, kinds, &written) {
            Ok(fit) => fit,
            Err(misfit) => return Ok(Err(misfit)),
        };
        let verified = Answers::verify(client, &fit.bound, ASK_WITHIN).await?;
        Ok(verified.map(|()| fit).map_err(refused))
    }

    /// Whether Postgres is asked about rows.
    pub(super) fn asks(&self) -> bool {
        self.asks
    }

    /// The values of the columns that the change is put together by, as a JSON list, or their digest when that is
    /// long; nothing when the log does not carry them all.
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

    /// Whether the row after the change, or before it for a delete, passes.
    pub(super) fn test(&self, change: &RowChange, answers: &mut Answers) -> Truth {
        let cell = |at: usize| match change.cell_at(at) {
            None | Some(Cell::Unchanged) => Found::Absent,
            Some(Cell::Null) => Found::Null,
            Some(cell @ Cell::Text(_)) => cell.text().map_or(Found::Absent, Found::Text),
        };
        self.bound.test(&cell, answers)
    }
}
