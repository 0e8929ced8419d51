//! Encodes a change for clients: the `data` of a message (`docs/spec/postgres-changes.md` §2). Pure.
use super::{
    catalog::{CatalogColumn, Described},
    item::Item,
    registry::SubscribedTable,
};
use crate::{
    access::rows::{OldRow, Rights},
    wal::{Cell, Op, RowChange, write_cell, write_string},
};
use chrono::{DateTime, Utc};
use std::{fmt::Write, io::Write as _};

/// Most bytes of JSON of a value in a row that is too large; longer values are omitted.
const KEPT_BYTES_MAX: usize = 64;

/// Why a change of a table cannot be shown to a role at all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Unrepresentable {
    NoKey,
    KeyNotSelectable,
}

impl Unrepresentable {
    pub(super) fn text(self) -> &'static str {
        match self {
            Self::NoKey => "Error 400: Bad Request, no primary key",
            Self::KeyNotSelectable => "Error 401: Unauthorized",
        }
    }
}

/// Why a role sees no row of a table; `None` if it may see rows.
pub(super) fn refused(op: Op, rights: &Rights) -> Option<Unrepresentable> {
    match (op, &rights.primary_key) {
        (Op::Delete, _) => None,
        (_, None) => Some(Unrepresentable::NoKey),
        _ => (!rights.selects_key()).then_some(Unrepresentable::KeyNotSelectable),
    }
}

/// The inputs of the encoding.
pub(super) struct Shown<'a> {
    pub(super) table: &'a SubscribedTable,
    pub(super) row: &'a RowChange,
    pub(super) committed_at: DateTime<Utc>,
    pub(super) rights: &'a Rights,
    pub(super) old: OldRow,
    /// Sorted; `None` for all columns.
    pub(super) select: Option<&'a [String]>,
}

/// The `data` of a change that cannot be shown.
pub(super) fn refusal(row: &RowChange, why: Unrepresentable) -> Vec<u8> {
    let mut out = head(row, None);
    out.extend_from_slice(b"\"columns\":[],\"record\":{},");
    if row.op == Op::Update {
        out.extend_from_slice(b"\"old_record\":{},");
    }
    errors(&mut out, &[why.text().to_owned()]);
    out
}

impl Shown<'_> {
    /// Encodes the change. If the result exceeds `bytes_max`, it has only the short values.
    pub(super) fn data(&self, bytes_max: usize) -> Vec<u8> {
        let data = self.written(false);
        if data.len() <= bytes_max { data } else { self.written(true) }
    }

    /// Encodes the change; with `short`, only its short values.
    fn written(&self, short: bool) -> Vec<u8> {
        let mut out = head(self.row, Some(self.committed_at));
        out.extend_from_slice(b"\"columns\":[");
        let begin = out.len();
        for (_, name, type_name) in self.columns() {
            if out.len() > begin {
                out.push(b',');
            }
            out.extend_from_slice(b"{\"name\":");
            write_string(name, &mut out);
            out.extend_from_slice(b",\"type\":");
            write_string(type_name, &mut out);
            out.push(b'}');
        }
        out.extend_from_slice(b"],");
        let mut told = Vec::new();
        if short {
            told.push("Error 413: Payload Too Large".to_owned());
        }
        if let Some(new) = &self.row.new {
            out.extend_from_slice(b"\"record\":");
            self.object(&mut out, (short, &mut told), |at| self.row.completed(new, at));
            out.push(b',');
        }
        if self.row.op != Op::Insert {
            out.extend_from_slice(b"\"old_record\":");
            self.object(&mut out, (short, &mut told), |at| self.old(at));
            out.push(b',');
        }
        errors(&mut out, &told);
        out
    }

    /// The visible columns: index in the row, name and type. Columns that are not in the WAL are not included.
    fn columns(&self) -> impl Iterator<Item = (usize, &str, &str)> {
        let columns = self.table.relation.columns.iter().enumerate();
        columns.filter(|(at, _)| self.shows(*at)).map(|(at, column)| {
            let type_name = self.described(at).map_or(&column.type_name, |it| &it.type_name);
            (at, column.name.as_str(), type_name.as_str())
        })
    }

    fn described(&self, at: usize) -> Option<&CatalogColumn> {
        let described: &Described = self.table.described.as_ref()?;
        described.columns.get(self.table.columns.get(at).copied().flatten()?)
    }

    fn is_key(&self, at: usize) -> bool {
        self.rights.primary_key.as_ref().is_some_and(|key| key.contains(&at))
    }

    fn shows(&self, at: usize) -> bool {
        let selectable = self.rights.selectable.get(at).copied().unwrap_or_default();
        let name = self.table.relation.columns.get(at).map(|column| &column.name);
        let selected =
            self.select.is_none_or(|select| name.is_some_and(|name| select.binary_search(name).is_ok()));
        selectable && (selected || self.is_key(at))
    }

    /// The old value; `None` if the WAL does not have it or the role may not see it.
    fn old(&self, at: usize) -> Option<&Cell> {
        if self.old == OldRow::Key && !self.is_key(at) {
            return None;
        }
        match (&self.row.old, &self.row.new) {
            (Some(_), _) => self.row.old_cell(at),
            // Postgres omits the old row of an update that leaves the key unchanged.
            (None, Some(new)) if self.table.relation.columns.get(at)?.is_key => new.get(at),
            _ => None,
        }
    }

    /// Appends a row; with `short`, only its short values. Adds an error to `told` for each value that is not UTF-8.
    fn object<'c>(
        &self,
        out: &mut Vec<u8>,
        (short, told): (bool, &mut Vec<String>),
        cell: impl Fn(usize) -> Option<&'c Cell>,
    ) {
        out.push(b'{');
        let begin = out.len();
        for (at, column) in self.table.relation.columns.iter().enumerate() {
            let Some(cell) = cell(at).filter(|cell| **cell != Cell::Unchanged && self.shows(at)) else {
                continue;
            };
            let before = out.len();
            if before > begin {
                out.push(b',');
            }
            write_string(&column.name, out);
            out.push(b':');
            let value = out.len();
            match (self.described(at).and_then(|it| it.shape.as_ref()), cell.text()) {
                (Some(shape), Some(text)) => shape.write(text, out),
                (_, None) if matches!(cell, Cell::Text(_)) => {
                    write_cell(column, cell, out);
                    let error =
                        format!("Error 422: Unprocessable Entity, column {} is not UTF-8", column.name);
                    if !told.contains(&error) {
                        told.push(error);
                    }
                }
                _ => write_cell(column, cell, out),
            }
            if short && !self.is_key(at) && (out.len() - value > KEPT_BYTES_MAX || *cell == Cell::Null) {
                out.truncate(before);
            }
        }
        out.push(b'}');
    }
}

fn head(row: &RowChange, committed_at: Option<DateTime<Utc>>) -> Vec<u8> {
    let mut out = Vec::with_capacity(512);
    out.extend_from_slice(b"{\"schema\":");
    write_string(&row.relation.schema, &mut out);
    out.extend_from_slice(b",\"table\":");
    write_string(&row.relation.name, &mut out);
    // Writing to memory cannot fail.
    let _ = write!(out, ",\"type\":\"{}\",\"commit_timestamp\":", row.op.as_str());
    match committed_at {
        Some(at) => {
            let _ = write!(out, "\"{}\",", at.format("%Y-%m-%dT%H:%M:%S%.3fZ"));
        }
        None => out.extend_from_slice(b"null,"),
    }
    out
}

fn errors(out: &mut Vec<u8>, errors: &[String]) {
    out.extend_from_slice(b"\"errors\":");
    if errors.is_empty() {
        return out.extend_from_slice(b"null}");
    }
    for (at, error) in errors.iter().enumerate() {
        out.push(if at == 0 { b'[' } else { b',' });
        write_string(error, out);
    }
    out.extend_from_slice(b"]}");
}

/// Groups the matched items of a channel by their selected columns, one message each; all columns first.
pub(super) fn by_select<'i>(items: &'i [Item], matched: &[usize]) -> Vec<(Option<&'i [String]>, Vec<u64>)> {
    let mut groups: Vec<(Option<&[String]>, Vec<u64>)> = Vec::new();
    for item in matched.iter().filter_map(|at| items.get(*at)) {
        let select = item.select.as_deref();
        match groups.iter_mut().find(|(known, _)| *known == select) {
            Some((_, ids)) => ids.push(item.id),
            None => groups.push((select, vec![item.id])),
        }
    }
    groups.sort_by_key(|(select, _)| select.map(|columns| columns.join(",")));
    groups
}

/// `[1,2]`.
pub(super) fn ids(ids: &[u64]) -> String {
    let mut out = String::from("[");
    for (at, id) in ids.iter().enumerate() {
        let comma = if at > 0 { "," } else { "" };
        let _ = write!(out, "{comma}{id}");
    }
    out.push(']');
    out
}
