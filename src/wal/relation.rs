//! The tables that the stream has described so far.
//!
//! Postgres describes a table before its first row and again after it changed;
//! descriptions are valid in commit order, so they are learnt when their
//! transaction is handed over, not when they arrive.
use super::{
    change::{Cell, Change, Column, Op, Relation, Row, RowChange},
    pgoutput::{Malformed, PgOutputMessage, RelationMessage},
};
use bytes::Bytes;
use std::{collections::HashMap, sync::Arc};
use tokio_postgres::types::Type;

/// Tables whose rows are those of a view, as (schema, table, view): a view cannot be published, and its readers know
/// only its name. `src/changes/sql/published.sql` has the same list.
const SHOWN_AS: [(&str, &str, &str); 1] = [("convoke", "offer_rows", "offers")];

/// A byte that no UTF-8 text has.
const NOT_UTF8: Bytes = Bytes::from_static(b"\xff");

/// Relations and type names by oid, as of the last transaction handed over.
#[derive(Debug, Default)]
pub(super) struct Relations {
    /// Texts beyond ASCII are in an encoding that is not ours.
    pub(super) only_ascii: bool,
    relations: HashMap<u32, Arc<Relation>>,
    types: HashMap<u32, String>,
}

impl Relations {
    /// Makes a change of a message, or learns from it and makes none.
    pub(super) fn change(&mut self, message: PgOutputMessage) -> Result<Option<Change>, Malformed> {
        let row = |change| Ok(Some(Change::Row(change)));
        match message {
            PgOutputMessage::Insert { relation, new } => {
                let relation = self.of_row(relation, &new)?;
                let new = Some(self.readable(new));
                row(RowChange { relation, op: Op::Insert, new, old: None, old_is_key_only: false })
            }
            PgOutputMessage::Update { relation, old, new } => {
                let relation = self.of_row(relation, &new)?;
                let (old, old_is_key_only) = old.map_or((None, false), |(row, key)| (Some(row), key));
                if let Some(old) = &old {
                    width(&relation, old)?;
                }
                let (new, old) = (Some(self.readable(new)), old.map(|old| self.readable(old)));
                row(RowChange { relation, op: Op::Update, new, old, old_is_key_only })
            }
            PgOutputMessage::Delete { relation, old, key_only } => {
                let relation = self.of_row(relation, &old)?;
                row(RowChange {
                    relation,
                    op: Op::Delete,
                    new: None,
                    old: Some(self.readable(old)),
                    old_is_key_only: key_only,
                })
            }
            PgOutputMessage::Truncate { relations } => {
                let relations: Result<_, _> = relations.into_iter().map(|oid| self.get(oid)).collect();
                Ok(Some(Change::Truncate(relations?)))
            }
            PgOutputMessage::Logical { transactional: true, prefix, content } => {
                Ok(Some(Change::Message { prefix, content }))
            }
            PgOutputMessage::Relation(message) => {
                self.learn(message);
                Ok(None)
            }
            PgOutputMessage::Type { oid, schema: _, name } => {
                self.types.insert(oid, name);
                Ok(None)
            }
            _ => Ok(None),
        }
    }

    fn get(&self, oid: u32) -> Result<Arc<Relation>, Malformed> {
        self.relations.get(&oid).cloned().ok_or(Malformed::UnknownRelation(oid))
    }

    fn of_row(&self, oid: u32, row: &Row) -> Result<Arc<Relation>, Malformed> {
        let relation = self.get(oid)?;
        width(&relation, row)?;
        Ok(relation)
    }

    /// A text in another encoding could be taken for one of ours, so it is made one that is certainly none.
    fn readable(&self, mut row: Row) -> Row {
        for cell in row.iter_mut().filter(|_| self.only_ascii) {
            if matches!(cell, Cell::Text(text) if !text.is_ascii()) {
                *cell = Cell::Text(NOT_UTF8);
            }
        }
        row
    }

    fn learn(&mut self, message: RelationMessage) {
        let column = |(is_key, name, type_oid, type_modifier)| {
            let type_name = match Type::from_oid(type_oid) {
                Some(builtin) => builtin.name().to_owned(),
                None => self.types.get(&type_oid).cloned().unwrap_or_else(|| type_oid.to_string()),
            };
            Column::new(name, type_oid, type_modifier, is_key, type_name)
        };
        let columns = message.columns.into_iter().map(column).collect();
        let schema = if message.schema.is_empty() { "pg_catalog".to_owned() } else { message.schema };
        let view = SHOWN_AS.iter().find(|(of, table, _)| *of == schema && *table == message.name);
        let relation = Relation {
            oid: message.oid,
            name: view.map_or(message.name, |(_, _, view)| (*view).to_owned()),
            schema,
            replica_identity: message.replica_identity,
            columns,
        };
        // The same description comes again on every connection; holders of the old one may compare pointers.
        if self.relations.get(&relation.oid).is_none_or(|known| **known != relation) {
            self.relations.insert(relation.oid, Arc::new(relation));
        }
    }
}

fn width(relation: &Relation, row: &Row) -> Result<(), Malformed> {
    let (cells, columns) = (row.len(), relation.columns.len());
    if cells == columns { Ok(()) } else { Err(Malformed::Width { oid: relation.oid, cells, columns }) }
}
