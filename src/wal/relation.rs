//! The tables that the stream has described so far.
//!
//! Postgres describes a table before its first row and again after it changed;
//! descriptions are valid in commit order, so they are learnt when their
//! transaction is handed over, not when they arrive.
use super::{
    change::{Change, Column, Op, Relation, Row, RowChange},
    pgoutput::{Malformed, Message, RelationMessage},
};
use std::{collections::HashMap, sync::Arc};
use tokio_postgres::types::Type;

/// Relations and type names by oid, as of the last transaction handed over.
#[derive(Debug, Default)]
pub(super) struct Relations {
    relations: HashMap<u32, Arc<Relation>>,
    types: HashMap<u32, String>,
}

impl Relations {
    /// Makes a change of a message, or learns from it and makes none.
    pub(super) fn change(&mut self, message: Message) -> Result<Option<Change>, Malformed> {
        let row = |change| Ok(Some(Change::Row(change)));
        match message {
            Message::Insert { relation, new } => {
                let relation = self.of_row(relation, &new)?;
                row(RowChange { relation, op: Op::Insert, new: Some(new), old: None, old_is_key_only: false })
            }
            Message::Update { relation, old, new } => {
                let relation = self.of_row(relation, &new)?;
                let (old, old_is_key_only) = old.map_or((None, false), |(row, key)| (Some(row), key));
                if let Some(old) = &old {
                    width(&relation, old)?;
                }
                row(RowChange { relation, op: Op::Update, new: Some(new), old, old_is_key_only })
            }
            Message::Delete { relation, old, key_only } => {
                let relation = self.of_row(relation, &old)?;
                row(RowChange {
                    relation,
                    op: Op::Delete,
                    new: None,
                    old: Some(old),
                    old_is_key_only: key_only,
                })
            }
            Message::Truncate { relations } => {
                let relations: Result<_, _> = relations.into_iter().map(|oid| self.get(oid)).collect();
                Ok(Some(Change::Truncate(relations?)))
            }
            Message::Logical { transactional: true, prefix, content } => {
                Ok(Some(Change::Message { prefix, content }))
            }
            Message::Relation(message) => {
                self.learn(message);
                Ok(None)
            }
            Message::Type { oid, schema: _, name } => {
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
        let relation = Relation {
            oid: message.oid,
            schema,
            name: message.name,
            replica_identity: message.replica_identity,
            columns,
        };
        // The same description comes again on every connection; who holds the old one may compare pointers.
        if self.relations.get(&relation.oid).is_none_or(|known| **known != relation) {
            self.relations.insert(relation.oid, Arc::new(relation));
        }
    }
}

fn width(relation: &Relation, row: &Row) -> Result<(), Malformed> {
    let (cells, columns) = (row.len(), relation.columns.len());
    if cells == columns { Ok(()) } else { Err(Malformed::Width { oid: relation.oid, cells, columns }) }
}
