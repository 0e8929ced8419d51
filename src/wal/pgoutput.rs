//! The `pgoutput` messages of protocol 2, decoded (`docs/spec/postgres-changes.md §9.2`).
//!
//! Pure: no I/O, no state, no panic on any bytes. Values are slices of the
//! message. The transaction id that messages inside a stream block carry after
//! their tag is taken off by the [assembler](super::assembler) before.
use super::change::{Cell, Row};
use crate::id::Lsn;
use bytes::Bytes;
use chrono::{DateTime, Utc};

/// Bytes that are no `pgoutput` message.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// It ends in the middle.
    #[error("message {tag:?} wants {wanted} bytes more where it has {left}")]
    Short {
        /// The message's tag.
        tag: char,
        /// What its lengths promise.
        wanted: usize,
        /// What there is.
        left: usize,
    },
    /// A byte has no meaning in its place.
    #[error("message {tag:?} has the byte {byte:#04x} as its {place}")]
    Byte {
        /// The message's tag.
        tag: char,
        /// The place.
        place: &'static str,
        /// The byte.
        byte: u8,
    },
    /// A name has no end, or a time is invalid.
    #[error("message {tag:?} has no valid {place}")]
    Text {
        /// The message's tag.
        tag: char,
        /// The place.
        place: &'static str,
    },
    /// The tag belongs to no message of protocol 2 without two-phase commit.
    #[error("unknown message tag {0:#04x}")]
    Tag(u8),
    /// There is no byte at all.
    #[error("empty message")]
    Empty,
    /// A row's table was never described.
    #[error("a change of relation {0}, which was never described")]
    UnknownRelation(u32),
    /// A row has more or fewer cells than its table has columns.
    #[error("a row of {cells} cells for relation {oid} of {columns} columns")]
    Width {
        /// The table.
        oid: u32,
        /// What the row has.
        cells: usize,
        /// What the table has.
        columns: usize,
    },
    /// Messages come in an order that the protocol does not have.
    #[error("message {0:?} has no place here")]
    Order(char),
}

/// A table's description.
#[derive(Debug, PartialEq, Eq)]
pub struct RelationMessage {
    /// Its oid.
    pub oid: u32,
    /// Its schema; empty for `pg_catalog`.
    pub schema: String,
    /// Its name.
    pub name: String,
    /// `d`, `i`, `f` or `n`.
    pub replica_identity: char,
    /// Its columns: is part of the replica identity, name, type's oid, type modifier.
    pub columns: Vec<(bool, String, u32, i32)>,
}

/// How a transaction ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CommitMessage {
    /// Where its commit record begins.
    pub commit_lsn: Lsn,
    /// Where it ends.
    pub end_lsn: Lsn,
    /// When, by the server's clock.
    pub committed_at: DateTime<Utc>,
}

/// One message.
#[derive(Debug, PartialEq, Eq)]
pub enum PgOutputMessage {
    /// `B`: a whole transaction follows.
    Begin {
        /// Its id.
        xid: u32,
    },
    /// `C`: it is complete.
    Commit(CommitMessage),
    /// `O`: where the transaction came from first.
    Origin,
    /// `R`: describes a table for all that follows.
    Relation(RelationMessage),
    /// `Y`: names a type that is not built in.
    Type {
        /// Its oid.
        oid: u32,
        /// Its schema; empty for `pg_catalog`.
        schema: String,
        /// Its name; a domain's is that of its base type.
        name: String,
    },
    /// `I`: a new row.
    Insert {
        /// Its table.
        relation: u32,
        /// The row.
        new: Row,
    },
    /// `U`: a changed row.
    Update {
        /// Its table.
        relation: u32,
        /// The row before, and whether only its key counts.
        old: Option<(Row, bool)>,
        /// The row after.
        new: Row,
    },
    /// `D`: a deleted row.
    Delete {
        /// Its table.
        relation: u32,
        /// The row.
        old: Row,
        /// Whether only its key counts.
        key_only: bool,
    },
    /// `T`: emptied tables.
    Truncate {
        /// The tables.
        relations: Vec<u32>,
    },
    /// `M`: a logical message.
    Logical {
        /// Whether it belongs to its transaction.
        transactional: bool,
        /// Whom it is for.
        prefix: String,
        /// The text of the message.
        content: Bytes,
    },
    /// `S`: a part of a transaction that is still running follows.
    StreamStart {
        /// Its id.
        xid: u32,
    },
    /// `E`: the part ends.
    StreamStop,
    /// `c`: a streamed transaction is committed.
    StreamCommit {
        /// Its id.
        xid: u32,
        /// How.
        commit: CommitMessage,
    },
    /// `A`: a streamed transaction, or a savepoint's part of it, is rolled back.
    StreamAbort {
        /// The transaction's id.
        xid: u32,
        /// What is rolled back; all when it is the same.
        subxid: u32,
    },
}

/// Reads one message: its tag, and what comes after it.
///
/// # Errors
/// [`Malformed`] says what is wrong and where.
pub fn decode(tag: u8, body: Bytes) -> Result<PgOutputMessage, Malformed> {
    let mut r = Reader { tag: char::from(tag), body, at: 0 };
    Ok(match tag {
        b'B' => {
            r.skip(16)?;
            PgOutputMessage::Begin { xid: r.u32()? }
        }
        b'C' => PgOutputMessage::Commit(r.commit()?),
        b'O' => PgOutputMessage::Origin,
        b'R' => PgOutputMessage::Relation(r.relation()?),
        b'Y' => PgOutputMessage::Type { oid: r.u32()?, schema: r.string("schema")?, name: r.string("name")? },
        b'I' => {
            let relation = r.u32()?;
            r.expect_new()?;
            PgOutputMessage::Insert { relation, new: r.row()? }
        }
        b'U' => r.update()?,
        b'D' => {
            let relation = r.u32()?;
            let key_only = r.old_kind()?;
            PgOutputMessage::Delete { relation, old: r.row()?, key_only }
        }
        b'T' => r.truncate()?,
        b'M' => r.logical()?,
        b'S' => PgOutputMessage::StreamStart { xid: r.u32()? },
        b'E' => PgOutputMessage::StreamStop,
        b'c' => PgOutputMessage::StreamCommit { xid: r.u32()?, commit: r.commit()? },
        b'A' => PgOutputMessage::StreamAbort { xid: r.u32()?, subxid: r.u32()? },
        other => return Err(Malformed::Tag(other)),
    })
}

struct Reader {
    tag: char,
    body: Bytes,
    at: usize,
}

impl Reader {
    fn left(&self) -> usize {
        self.body.len().saturating_sub(self.at)
    }

    fn bytes<const N: usize>(&mut self) -> Result<[u8; N], Malformed> {
        let short = Malformed::Short { tag: self.tag, wanted: N, left: self.left() };
        let Some(head) = self.body.get(self.at..).and_then(|rest| rest.first_chunk::<N>()) else {
            return Err(short);
        };
        self.at += N;
        Ok(*head)
    }

    fn skip(&mut self, n: usize) -> Result<(), Malformed> {
        if n > self.left() {
            return Err(Malformed::Short { tag: self.tag, wanted: n, left: self.left() });
        }
        self.at += n;
        Ok(())
    }

    fn u8(&mut self) -> Result<u8, Malformed> {
        self.bytes::<1>().map(|[byte]| byte)
    }

    fn u16(&mut self) -> Result<usize, Malformed> {
        self.bytes().map(|b| usize::from(u16::from_be_bytes(b)))
    }

    fn u32(&mut self) -> Result<u32, Malformed> {
        self.bytes().map(u32::from_be_bytes)
    }

    fn lsn(&mut self) -> Result<Lsn, Malformed> {
        self.bytes().map(|b| Lsn(u64::from_be_bytes(b)))
    }

    fn time(&mut self) -> Result<DateTime<Utc>, Malformed> {
        let micros = self.bytes().map(i64::from_be_bytes)?;
        let time = micros.checked_add(POSTGRES_EPOCH_MICROS).and_then(DateTime::from_timestamp_micros);
        time.ok_or(Malformed::Text { tag: self.tag, place: "time" })
    }

    fn slice(&mut self, n: usize) -> Result<Bytes, Malformed> {
        let from = self.at;
        self.skip(n)?;
        Ok(self.body.slice(from..self.at))
    }

    fn string(&mut self, place: &'static str) -> Result<String, Malformed> {
        let text = Malformed::Text { tag: self.tag, place };
        let rest = self.body.get(self.at..).unwrap_or_default();
        let Some(end) = rest.iter().position(|&byte| byte == 0) else { return Err(text) };
        // A database without an encoding can have any bytes in its names; one such name must not end the stream.
        let string = String::from_utf8_lossy(rest.get(..end).unwrap_or_default()).into_owned();
        self.at += end + 1;
        Ok(string)
    }

    fn byte_error(&self, place: &'static str, byte: u8) -> Malformed {
        Malformed::Byte { tag: self.tag, place, byte }
    }

    fn expect_new(&mut self) -> Result<(), Malformed> {
        match self.u8()? {
            b'N' => Ok(()),
            byte => Err(self.byte_error("kind of row", byte)),
        }
    }

    /// Whether the old row that follows is only a key.
    fn old_kind(&mut self) -> Result<bool, Malformed> {
        match self.u8()? {
            b'K' => Ok(true),
            b'O' => Ok(false),
            byte => Err(self.byte_error("kind of row", byte)),
        }
    }

    fn row(&mut self) -> Result<Row, Malformed> {
        let cells = self.u16()?;
        // Each cell takes a byte at least, so a lying count cannot make us allocate.
        if cells > self.left() {
            return Err(Malformed::Short { tag: self.tag, wanted: cells, left: self.left() });
        }
        let mut row = Vec::with_capacity(cells);
        for _ in 0..cells {
            row.push(match self.u8()? {
                b'n' => Cell::Null,
                b'u' => Cell::Unchanged,
                b't' => {
                    let length = self.u32()? as usize;
                    Cell::Text(self.slice(length)?)
                }
                byte => return Err(self.byte_error("kind of cell", byte)),
            });
        }
        Ok(row)
    }

    fn commit(&mut self) -> Result<CommitMessage, Malformed> {
        self.skip(1)?;
        Ok(CommitMessage { commit_lsn: self.lsn()?, end_lsn: self.lsn()?, committed_at: self.time()? })
    }

    fn relation(&mut self) -> Result<RelationMessage, Malformed> {
        let oid = self.u32()?;
        let schema = self.string("schema")?;
        let name = self.string("name")?;
        let replica_identity = char::from(self.u8()?);
        let count = self.u16()?;
        let mut columns = Vec::with_capacity(count.min(self.left() / COLUMN_BYTES_MIN));
        for _ in 0..count {
            let is_key = self.u8()? & 1 == 1;
            let name = self.string("column name")?;
            let type_oid = self.u32()?;
            columns.push((is_key, name, type_oid, self.bytes().map(i32::from_be_bytes)?));
        }
        Ok(RelationMessage { oid, schema, name, replica_identity, columns })
    }

    fn update(&mut self) -> Result<PgOutputMessage, Malformed> {
        let relation = self.u32()?;
        let kind = self.u8()?;
        let old = match kind {
            b'N' => None,
            b'K' | b'O' => Some((self.row()?, kind == b'K')),
            byte => return Err(self.byte_error("kind of row", byte)),
        };
        if old.is_some() {
            self.expect_new()?;
        }
        Ok(PgOutputMessage::Update { relation, old, new: self.row()? })
    }

    fn truncate(&mut self) -> Result<PgOutputMessage, Malformed> {
        let count = self.u32()? as usize;
        self.skip(1)?;
        let mut relations = Vec::with_capacity(count.min(self.left() / 4));
        for _ in 0..count {
            relations.push(self.u32()?);
        }
        Ok(PgOutputMessage::Truncate { relations })
    }

    fn logical(&mut self) -> Result<PgOutputMessage, Malformed> {
        let transactional = self.u8()? & 1 == 1;
        self.skip(8)?;
        let prefix = self.string("prefix")?;
        let length = self.u32()? as usize;
        Ok(PgOutputMessage::Logical { transactional, prefix, content: self.slice(length)? })
    }
}

/// 2000-01-01 in microseconds since 1970-01-01.
pub(super) const POSTGRES_EPOCH_MICROS: i64 = 946_684_800_000_000;

/// A column without a name in a relation message.
const COLUMN_BYTES_MIN: usize = 10;

#[cfg(test)]
mod tests {
    use super::*;

    fn hex(text: &str) -> (u8, Bytes) {
        let text: String = text.split_whitespace().collect();
        let bytes: Vec<u8> =
            (0..text.len()).step_by(2).map(|i| u8::from_str_radix(&text[i..i + 2], 16).unwrap()).collect();
        (bytes[0], Bytes::copy_from_slice(&bytes[1..]))
    }

    fn message(text: &str) -> Result<PgOutputMessage, Malformed> {
        let (tag, body) = hex(text);
        decode(tag, body)
    }

    #[test]
    fn recorded_messages_are_read() {
        let Ok(PgOutputMessage::Commit(commit)) =
            message("43 00 00000000017543b8 00000000017543e8 000303f36e0c958d")
        else {
            panic!("no commit")
        };
        assert_eq!((commit.commit_lsn, commit.end_lsn), (Lsn(0x0175_43b8), Lsn(0x0175_43e8)));
        assert_eq!(commit.committed_at.format("%Y-%m").to_string(), "2026-11");
        assert_eq!(
            message("42 00000000017543b8 000303f36e0c958d 00000524"),
            Ok(PgOutputMessage::Begin { xid: 0x524 })
        );
        let mut old = vec![Cell::Null; 6];
        old[0] = Cell::Text(Bytes::from_static(b"8"));
        assert_eq!(
            message("44 0000419e 4b 0006 74 00000001 38 6e 6e 6e 6e 6e"),
            Ok(PgOutputMessage::Delete { relation: 0x419e, old, key_only: true })
        );
        assert_eq!(
            message("54 00000001 02 000041a6"),
            Ok(PgOutputMessage::Truncate { relations: vec![0x41a6] })
        );
        assert_eq!(
            message("4d 01 0000000001754a50 706678 00 00000005 68656c6c6f"),
            Ok(PgOutputMessage::Logical {
                transactional: true,
                prefix: "pfx".into(),
                content: Bytes::from_static(b"hello")
            })
        );
        assert_eq!(message("53 00000545 01"), Ok(PgOutputMessage::StreamStart { xid: 0x545 }));
        assert_eq!(
            message("41 00000545 00000546"),
            Ok(PgOutputMessage::StreamAbort { xid: 0x545, subxid: 0x546 })
        );
    }

    #[test]
    fn every_cut_of_a_message_is_an_error_and_no_panic() {
        for text in [
            "43 00 00000000017543b8 00000000017543e8 000303f36e0c958d",
            "44 0000419e 4b 0006 74 00000001 38 6e 6e 6e 6e 6e",
            "4d 01 0000000001754a50 706678 00 00000005 68656c6c6f",
            "52 0000419e 7000 7400 64 0001 01 6900 00000017 ffffffff",
            "55 0000419e 4b 0001 6e 4e 0001 75",
        ] {
            let (tag, body) = hex(text);
            assert!(decode(tag, body.clone()).is_ok(), "{text}");
            for cut in 0..body.len() {
                assert!(decode(tag, body.slice(..cut)).is_err(), "{text} cut to {cut}");
            }
        }
    }
}
