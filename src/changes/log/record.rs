//! Encodes and decodes a part of a transaction. Pure.
//!
//! A record contains the descriptions of its tables, so that each can be decoded alone. Integers are little-endian.
//! Texts and rows have a length prefix.
use crate::{
    id::Lsn,
    wal::{Batch, Cell, Change, Column, Op, Relation, Row, RowChange},
};
use bytes::{Buf, BufMut, Bytes, BytesMut};
use chrono::{DateTime, Utc};
use std::{collections::HashMap, sync::Arc};

/// First byte of a record: the version of the layout.
const LAYOUT: u8 = 1;
const NULL: u8 = 0;
const UNCHANGED: u8 = 1;
const TEXT: u8 = 2;
/// Length of an absent row.
const NO_ROW: u16 = u16::MAX;

/// The row changes of a part of a transaction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::changes) struct Part {
    pub(in crate::changes) commit_lsn: Lsn,
    pub(in crate::changes) committed_at: DateTime<Utc>,
    /// Changes with their index in the transaction.
    pub(in crate::changes) rows: Vec<(u32, RowChange)>,
}

/// Encodes the rows of `batch` after the index `after` that are `wanted`; `None` if there are none.
pub(super) fn encode(batch: &Batch, after: Option<u32>, wanted: impl Fn(&Relation) -> bool) -> Option<Bytes> {
    let mut relations: Vec<&Arc<Relation>> = Vec::new();
    let mut rows = BytesMut::new();
    let mut count = 0_u32;
    for (index, change) in (batch.first_index..).zip(&batch.changes) {
        let Change::Row(row) = change else { continue };
        if after.is_some_and(|after| index <= after) || !wanted(&row.relation) {
            continue;
        }
        let known = relations.iter().position(|known| Arc::ptr_eq(known, &row.relation));
        let relation = known.unwrap_or_else(|| {
            relations.push(&row.relation);
            relations.len() - 1
        });
        rows.put_u32_le(index);
        rows.put_u16_le(u16::try_from(relation).unwrap_or(u16::MAX));
        rows.put_u8(match row.op {
            Op::Insert => 0,
            Op::Update => 1,
            Op::Delete => 2,
        });
        rows.put_u8(row.old_is_key_only.into());
        put_row(&mut rows, row.new.as_ref());
        put_row(&mut rows, row.old.as_ref());
        count += 1;
    }
    if count == 0 {
        return None;
    }
    let mut out = BytesMut::with_capacity(rows.len() + 64 + relations.len() * 512);
    out.put_u8(LAYOUT);
    out.put_u64_le(batch.commit_lsn.0);
    out.put_i64_le(batch.committed_at.timestamp_micros());
    out.put_u16_le(u16::try_from(relations.len()).unwrap_or(u16::MAX));
    relations.into_iter().for_each(|relation| put_relation(&mut out, relation));
    out.put_u32_le(count);
    out.put_slice(&rows);
    Some(out.freeze())
}

fn put_text(out: &mut BytesMut, text: &str) {
    out.put_u16_le(u16::try_from(text.len()).unwrap_or(u16::MAX));
    // The length fits: identifiers of Postgres have at most 63 bytes.
    out.put_slice(text.as_bytes());
}

fn put_relation(out: &mut BytesMut, relation: &Relation) {
    out.put_u32_le(relation.oid);
    put_text(out, &relation.schema);
    put_text(out, &relation.name);
    out.put_u8(u8::try_from(relation.replica_identity).unwrap_or(b'd'));
    out.put_u16_le(u16::try_from(relation.columns.len()).unwrap_or(u16::MAX));
    for column in &relation.columns {
        put_text(out, &column.name);
        out.put_u32_le(column.type_oid);
        out.put_i32_le(column.type_modifier);
        out.put_u8(column.is_key.into());
        put_text(out, &column.type_name);
    }
}

fn put_row(out: &mut BytesMut, row: Option<&Row>) {
    let Some(row) = row else { return out.put_u16_le(NO_ROW) };
    out.put_u16_le(u16::try_from(row.len()).unwrap_or(NO_ROW - 1));
    for cell in row {
        match cell {
            Cell::Null => out.put_u8(NULL),
            Cell::Unchanged => out.put_u8(UNCHANGED),
            Cell::Text(text) => {
                out.put_u8(TEXT);
                out.put_u32_le(u32::try_from(text.len()).unwrap_or(u32::MAX));
                out.put_slice(text);
            }
        }
    }
}

/// Decodes records. Equal descriptions of a table share one [`Arc`].
#[derive(Debug, Default)]
pub(super) struct Reading {
    relations: HashMap<u32, Arc<Relation>>,
}

impl Reading {
    /// Decodes the part in a record; cells are slices of it. `None` if the record is malformed.
    pub(super) fn part(&mut self, mut record: Bytes) -> Option<Part> {
        let from = &mut record;
        if from.try_get_u8().ok()? != LAYOUT {
            return None;
        }
        let commit_lsn = Lsn(from.try_get_u64_le().ok()?);
        let committed_at = DateTime::from_timestamp_micros(from.try_get_i64_le().ok()?)?;
        let relations = from.try_get_u16_le().ok()?;
        let relations: Option<Vec<_>> = (0..relations).map(|_| self.relation(from)).collect();
        let relations = relations?;
        let count = from.try_get_u32_le().ok()?;
        let mut rows = Vec::new();
        for _ in 0..count {
            let index = from.try_get_u32_le().ok()?;
            let relation = relations.get(usize::from(from.try_get_u16_le().ok()?))?.clone();
            let op = match from.try_get_u8().ok()? {
                0 => Op::Insert,
                1 => Op::Update,
                2 => Op::Delete,
                _ => return None,
            };
            let old_is_key_only = from.try_get_u8().ok()? != 0;
            let (new, old) = (row(from)?, row(from)?);
            rows.push((index, RowChange { relation, op, new, old, old_is_key_only }));
        }
        Some(Part { commit_lsn, committed_at, rows })
    }

    fn relation(&mut self, from: &mut Bytes) -> Option<Arc<Relation>> {
        let oid = from.try_get_u32_le().ok()?;
        let (schema, name) = (text(from)?, text(from)?);
        let replica_identity = char::from(from.try_get_u8().ok()?);
        let count = from.try_get_u16_le().ok()?;
        let columns = (0..count).map(|_| {
            let name = text(from)?;
            let type_oid = from.try_get_u32_le().ok()?;
            let type_modifier = from.try_get_i32_le().ok()?;
            let is_key = from.try_get_u8().ok()? != 0;
            Some(Column::new(name, type_oid, type_modifier, is_key, text(from)?))
        });
        let columns = columns.collect::<Option<_>>()?;
        let relation = Relation { oid, schema, name, replica_identity, columns };
        let known = self.relations.get(&oid).filter(|known| ***known == relation).cloned();
        Some(known.unwrap_or_else(|| {
            let relation = Arc::new(relation);
            self.relations.insert(oid, relation.clone());
            relation
        }))
    }
}

fn text(from: &mut Bytes) -> Option<String> {
    let size = usize::from(from.try_get_u16_le().ok()?);
    let bytes = (from.len() >= size).then(|| from.split_to(size))?;
    String::from_utf8(bytes.to_vec()).ok()
}

/// `None` if it is malformed; `Some(None)` if there is no row.
#[expect(clippy::option_option, reason = "malformed and absent are different outcomes")]
fn row(from: &mut Bytes) -> Option<Option<Row>> {
    let count = from.try_get_u16_le().ok()?;
    if count == NO_ROW {
        return Some(None);
    }
    let cells = (0..count).map(|_| match from.try_get_u8().ok()? {
        NULL => Some(Cell::Null),
        UNCHANGED => Some(Cell::Unchanged),
        TEXT => {
            let size = usize::try_from(from.try_get_u32_le().ok()?).ok()?;
            (from.len() >= size).then(|| Cell::Text(from.split_to(size)))
        }
        _ => None,
    });
    cells.collect::<Option<Row>>().map(Some)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn relation(oid: u32) -> Arc<Relation> {
        let column = |name: &str, key| Column::new(name.into(), 23, -1, key, "int4".into());
        let columns = vec![column("id", true), column("größe", false)];
        Arc::new(Relation { oid, schema: "public".into(), name: "t".into(), replica_identity: 'd', columns })
    }

    fn cell() -> impl Strategy<Value = Cell> {
        prop_oneof![
            Just(Cell::Null),
            Just(Cell::Unchanged),
            ".{0,20}".prop_map(|text: String| Cell::Text(Bytes::from(text))),
        ]
    }

    fn change() -> impl Strategy<Value = Change> {
        let row = || prop::collection::vec(cell(), 2);
        (0u8..3, row(), row(), 1u32..3, any::<bool>()).prop_map(|(op, new, old, oid, key)| {
            let (op, new, old) = match op {
                0 => (Op::Insert, Some(new), None),
                1 => (Op::Update, Some(new), key.then_some(old)),
                _ => (Op::Delete, None, Some(old)),
            };
            Change::Row(RowChange { relation: relation(oid), op, new, old, old_is_key_only: key })
        })
    }

    proptest! {
        #[test]
        fn decoded_record_equals_its_batch(changes in prop::collection::vec(change(), 1..20)) {
            let committed_at = DateTime::from_timestamp_micros(1_700_000_000_123_456).unwrap();
            let batch = Batch {
                xid: 7,
                commit_lsn: Lsn(42),
                end_lsn: Lsn(50),
                committed_at,
                first_index: 3,
                changes: changes.clone(),
                last: true,
            };
            let record = encode(&batch, None, |_| true).unwrap();
            let mut reading = Reading::default();
            let part = reading.part(record.clone()).unwrap();
            prop_assert_eq!((part.commit_lsn, part.committed_at), (Lsn(42), committed_at));
            let rows: Vec<_> = (3..).zip(changes).map(|(index, change)| match change {
                Change::Row(row) => (index, row),
                _ => unreachable!(),
            }).collect();
            prop_assert_eq!(&part.rows, &rows);
            let again = reading.part(record.clone()).unwrap();
            prop_assert!(Arc::ptr_eq(&again.rows[0].1.relation, &part.rows[0].1.relation));
            let after = encode(&batch, Some(3), |_| true).map(|record| reading.part(record).unwrap().rows.len());
            prop_assert_eq!(after.unwrap_or(0), rows.len() - 1);
            prop_assert!(encode(&batch, None, |_| false).is_none());
            for end in 0..record.len() {
                prop_assert!(Reading::default().part(record.slice(..end)).is_none(), "cut at {}", end);
            }
        }

        #[test]
        fn decoder_never_panics(bytes: Vec<u8>) {
            let _ = Reading::default().part(Bytes::from(bytes));
        }
    }
}
