//! Relations, rows and changes of the WAL, as the decoder cuts them from the wire.
//!
//! Cells are slices of the read buffer (no copy). A slice keeps its buffer of
//! up to 256 KiB alive, so what is kept for long should be copied out.
use super::value::Encoding;
use crate::id::Lsn;
use bytes::Bytes;
use chrono::{DateTime, Utc};
use std::sync::Arc;

/// One column's value in a row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Cell {
    /// SQL `NULL`.
    Null,
    /// A large value stored out of line that the update did not touch; the WAL does not carry it.
    Unchanged,
    /// The value in Postgres's text form (ISO dates, UTC, UTF-8).
    Text(Bytes),
}

impl Cell {
    /// The value's text, when there is one.
    #[must_use]
    pub fn text(&self) -> Option<&str> {
        match self {
            Self::Text(bytes) => std::str::from_utf8(bytes).ok(),
            Self::Null | Self::Unchanged => None,
        }
    }
}

/// The cells of a row in the order of its relation's columns.
pub type Row = Vec<Cell>;

/// A table as it was when a change to it was made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Relation {
    /// The table's oid in `pg_class`.
    pub oid: u32,
    /// Its schema, like `public`.
    pub schema: String,
    /// Its name without the schema.
    pub name: String,
    /// What old rows carry: `d` the primary key, `i` an index's columns, `f` everything, `n` nothing.
    pub replica_identity: char,
    /// The published columns by position; generated columns are not among them.
    pub columns: Vec<Column>,
}

impl Relation {
    /// Where the column `name` stands in a [`Row`].
    #[must_use]
    pub fn position(&self, name: &str) -> Option<usize> {
        self.columns.iter().position(|column| column.name == name)
    }
}

/// A column of a [`Relation`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Column {
    /// Its name.
    pub name: String,
    /// Its type's oid in `pg_type`.
    pub type_oid: u32,
    /// Its type modifier, -1 for none.
    pub type_modifier: i32,
    /// Whether it belongs to the replica identity; with identity `f` every column does.
    pub is_key: bool,
    /// The type's name as in `pg_type` (`int4`, `_text`); of a domain the name of its base type.
    pub type_name: String,
    pub(super) encoding: Encoding,
}

impl Column {
    /// A column; `type_name` decides how its values become JSON.
    #[must_use]
    pub fn new(name: String, type_oid: u32, type_modifier: i32, is_key: bool, type_name: String) -> Self {
        let encoding = Encoding::of(&type_name);
        Self { name, type_oid, type_modifier, is_key, type_name, encoding }
    }
}

/// What was done to a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Op {
    /// A new row.
    Insert,
    /// Another version of a row.
    Update,
    /// The end of a row.
    Delete,
}

impl Op {
    /// `INSERT`, `UPDATE` or `DELETE`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Insert => "INSERT",
            Self::Update => "UPDATE",
            Self::Delete => "DELETE",
        }
    }
}

/// One row's change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RowChange {
    /// The table.
    pub relation: Arc<Relation>,
    /// What was done.
    pub op: Op,
    /// The row after it; nothing for a delete.
    pub new: Option<Row>,
    /// The row before it as far as the replica identity carries it; nothing for an insert.
    pub old: Option<Row>,
    /// Whether only the key columns of `old` mean something (its other cells are fillers).
    pub old_is_key_only: bool,
}

impl RowChange {
    /// The cell of column `name` after the change, or before it for a delete.
    ///
    /// An unchanged out-of-line value is looked up in the old row; where that
    /// does not have it either the answer is [`Cell::Unchanged`].
    #[must_use]
    pub fn cell(&self, name: &str) -> Option<&Cell> {
        self.cell_at(self.relation.position(name)?)
    }

    /// As [`Self::cell`], by the column's place in the relation.
    #[must_use]
    pub fn cell_at(&self, at: usize) -> Option<&Cell> {
        match &self.new {
            Some(new) => self.completed(new, at),
            None => self.old_cell(at),
        }
    }

    /// The old row's cell at `at`, when the replica identity carries it.
    #[must_use]
    pub fn old_cell(&self, at: usize) -> Option<&Cell> {
        let known = !self.old_is_key_only || self.relation.columns.get(at)?.is_key;
        if known { self.old.as_ref()?.get(at) } else { None }
    }

    /// The cell at `at` of the row `new`, an unchanged one taken from the old row where that has it.
    #[must_use]
    pub fn completed<'a>(&'a self, new: &'a Row, at: usize) -> Option<&'a Cell> {
        match new.get(at)? {
            unchanged @ Cell::Unchanged => Some(self.old_cell(at).unwrap_or(unchanged)),
            cell => Some(cell),
        }
    }
}

/// One step of a transaction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// A row was changed.
    Row(RowChange),
    /// These tables were emptied by one `TRUNCATE`.
    Truncate(Vec<Arc<Relation>>),
    /// A transactional `pg_logical_emit_message`; others are not delivered.
    Message {
        /// Whom it is for.
        prefix: String,
        /// The text of the message.
        content: Bytes,
    },
}

/// A committed transaction, or a part of a big one.
///
/// The parts of one transaction come one after the other with nothing between
/// them. When an [`WalEvent::Standby`], [`WalEvent::Down`] or [`WalEvent::Leading`] comes before the last
/// part, the transaction comes again from its first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Batch {
    /// The transaction's id.
    pub xid: u32,
    /// Where its commit record begins: orders transactions and, with the index, identifies a change permanently.
    pub commit_lsn: Lsn,
    /// Where its commit record ends: what is confirmed.
    pub end_lsn: Lsn,
    /// When it was committed, by the server's clock.
    pub committed_at: DateTime<Utc>,
    /// The index in the transaction of the first change here.
    pub first_index: u32,
    /// The changes, at least one.
    pub changes: Vec<Change>,
    /// Whether the transaction ends here.
    pub last: bool,
}

/// Changes that will never come.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gap {
    /// The last position that was safe.
    pub from: Option<Lsn>,
    /// Where changes come from again. Confirm it once the gap is handled: until then every start reports it again.
    pub to: Lsn,
    /// What happened to the slot.
    pub reason: String,
}

/// The events that the consumer gets, in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WalEvent {
    /// This daemon holds the leader lock and streams; comes before the first batch after every (re)gain.
    /// Whole transactions that came before, in this process, do not come again.
    Leading {
        /// Everything committed after it follows.
        from: Lsn,
    },
    /// No changes come, because another daemon leads: this one takes over when that is gone.
    Standby,
    /// No changes come, because the WAL cannot be read. The worker retries by itself.
    Down {
        /// Why, for people.
        reason: String,
    },
    /// The publications that are not read from here on: they do not exist at the WAL position that is read, or do not
    /// agree with the others on the columns of a table.
    /// Comes when that changes. Changes of a publication that is back and were committed before are not handed over.
    Publications {
        /// Their names.
        missing: Vec<String>,
    },
    /// Changes, in commit order.
    Batch(Batch),
    /// Changes were lost: look at everything. Comes before the [`WalEvent::Leading`] that follows it.
    Gap(Gap),
}
