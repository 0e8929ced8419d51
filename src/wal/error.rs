//! Why the WAL cannot be read, by what the worker does about it.
use super::pgoutput::Malformed;
use std::{io, path::PathBuf, time::Duration};
use tokio_postgres::error::SqlState;

/// What went wrong with the stream, the slot or a publication.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No connection to the server.
    #[error("cannot reach PostgreSQL at {at}")]
    Unreachable {
        /// Address or socket file.
        at: String,
        /// Why.
        source: io::Error,
    },
    /// The connection broke.
    #[error("the replication connection to PostgreSQL broke")]
    Broken(#[from] io::Error),
    /// The server ended the connection.
    #[error("PostgreSQL closed the replication connection")]
    Closed,
    /// The server says nothing although it was asked.
    #[error("PostgreSQL has said nothing on the replication connection for {0:?}")]
    Silent(Duration),
    /// Encryption was asked for and cannot be had.
    #[error("no encrypted connection to PostgreSQL: {0}")]
    Tls(String),
    /// The server asks for an authentication method that this client does not support.
    #[error("cannot log in to PostgreSQL for replication: {0}")]
    Login(String),
    /// The server refused a command.
    #[error("PostgreSQL refused: {message} (SQLSTATE {})", code.code())]
    Server {
        /// Its class of error.
        code: SqlState,
        /// Its words, with the hint where there is one.
        message: String,
    },
    /// The server sent something that is not the protocol.
    #[error("PostgreSQL sent a malformed message")]
    Malformed(#[from] Malformed),
    /// The server sent a message that has no place here.
    #[error("PostgreSQL sent an unexpected message: {0}")]
    Unexpected(String),
    /// The slot's name cannot be used.
    #[error("wal.slot = {0:?} is no slot name: use 1 to 63 of a-z, 0-9 and _")]
    BadSlotName(String),
    /// The slot belongs to another consumer or database.
    #[error("replication slot {slot} belongs to {owner}: choose another wal.slot")]
    ForeignSlot {
        /// Its name.
        slot: String,
        /// Its database or plugin.
        owner: String,
    },
    /// A publication that should be read does not exist.
    #[error("publication {0} does not exist: it must be created before the slot")]
    MissingPublication(String),
    /// A table that should be published does not exist.
    #[error("table {schema}.{table} does not exist, so publication {publication} cannot name it")]
    MissingTable {
        /// The table's schema.
        schema: String,
        /// Its name.
        table: String,
        /// Where it should appear.
        publication: String,
    },
    /// Publishing the table would make Postgres refuse its updates and deletes.
    #[error(
        "table {schema}.{table} has no replica identity, so its updates cannot be published: \
         add a primary key, or: alter table {schema}.{table} replica identity full"
    )]
    NoReplicaIdentity {
        /// The schema of the table, or of the partition that has none.
        schema: String,
        /// Its name.
        table: String,
    },
    /// PostgreSQL streams no table whose columns differ between two publications of one stream.
    #[error(
        "publication {beside} has a column list for table {schema}.{table}, and PostgreSQL streams a table with the \
         same columns in all publications or not at all: alter publication {} drop table {}; \
         alter publication {} add table {}",
        super::publication::quoted(beside),
        super::publication::sql_name(schema, table),
        super::publication::quoted(beside),
        super::publication::sql_name(schema, table)
    )]
    OtherColumns {
        /// The table's schema.
        schema: String,
        /// Its name.
        table: String,
        /// The publication that lists columns.
        beside: String,
    },
    /// PostgreSQL streams a change of a partition once, under one name for all publications of the stream.
    #[error(
        "{beside} has {other} and the wake names {schema}.{table}, and PostgreSQL streams the changes of a partition \
         under one name: {remedy}"
    )]
    OtherPart {
        /// The table's schema.
        schema: String,
        /// Its name.
        table: String,
        /// The publication, or the wake, that has another name.
        beside: String,
        /// The table of the same partition tree that it has.
        other: String,
        /// The statement or the change that resolves it.
        remedy: String,
    },
    /// Only its owner can publish a table.
    #[error(
        "table {schema}.{table} belongs to role {owner}, so role {role} cannot publish it: \
         grant {} to {}",
        super::publication::quoted(owner),
        super::publication::quoted(role)
    )]
    NotOwner {
        /// The table's schema.
        schema: String,
        /// Its name.
        table: String,
        /// Its owner.
        owner: String,
        /// The role that the daemon connects as.
        role: String,
    },
    /// The database refused to publish the table.
    #[error("table {schema}.{table} cannot be published")]
    NotPublished {
        /// The table's schema.
        schema: String,
        /// Its name.
        table: String,
        /// What the server said.
        source: tokio_postgres::Error,
    },
    /// The stream must begin again in another way, at once; not a failure.
    #[error("the stream begins again")]
    Renew,
    /// A big transaction could not be parked on disk.
    #[error("cannot spill a transaction to {}", path.display())]
    Spill {
        /// The file or folder.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A query on an ordinary connection failed.
    #[error("a query for the write-ahead log failed")]
    Query(#[from] tokio_postgres::Error),
    /// No ordinary connection to be had.
    #[error("no connection for the write-ahead log's position: {0}")]
    Database(String),
    /// The consumer is gone or the daemon stops; not a failure.
    #[error("the consumer of changes is gone")]
    Stopped,
}

/// How the worker waits before it tries again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Class {
    /// It will pass: soon, then later and later.
    Passing,
    /// Somebody must change a setting: slowly, without a storm of log lines.
    Setting,
}

impl Error {
    /// The server's error code, when it gave one.
    #[must_use]
    pub fn sqlstate(&self) -> Option<&SqlState> {
        match self {
            Self::Server { code, .. } => Some(code),
            Self::Query(e) | Self::NotPublished { source: e, .. } => e.code(),
            _ => None,
        }
    }

    /// Whether the server ended only the stream, for something that the next one may leave out.
    pub(super) fn leaves_the_session(&self) -> bool {
        let passable = [
            SqlState::UNDEFINED_OBJECT,
            SqlState::FEATURE_NOT_SUPPORTED,
            SqlState::CHARACTER_NOT_IN_REPERTOIRE,
            SqlState::UNTRANSLATABLE_CHARACTER,
        ];
        matches!(self, Self::Server { code, .. } if passable.contains(code))
    }

    pub(super) fn database(error: crate::db::Error) -> Self {
        Self::Database(error.to_string())
    }

    pub(super) fn class(&self) -> Class {
        match self {
            Self::BadSlotName(_)
            | Self::ForeignSlot { .. }
            | Self::MissingPublication(_)
            | Self::MissingTable { .. }
            | Self::NoReplicaIdentity { .. }
            | Self::OtherColumns { .. }
            | Self::OtherPart { .. }
            | Self::NotOwner { .. }
            | Self::Tls(_)
            | Self::Login(_)
            | Self::Spill { .. }
            | Self::Malformed(_) => Class::Setting,
            other => other.sqlstate().map_or(Class::Passing, class_of),
        }
    }
}

fn class_of(code: &SqlState) -> Class {
    let text = code.code();
    // 08 connection, 53 resources, 57 operator, 55006 in use: all pass without a change of settings.
    let passes = ["08", "40", "53", "57", "58", "XX"].iter().any(|prefix| text.starts_with(prefix));
    if passes || *code == SqlState::OBJECT_IN_USE { Class::Passing } else { Class::Setting }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wrong_password_waits_for_people_and_a_shutdown_for_time() {
        let server = |code: &str| Error::Server { code: SqlState::from_code(code), message: String::new() };
        for code in ["57P01", "57P03", "08006", "53300", "55006"] {
            assert_eq!(server(code).class(), Class::Passing, "{code}");
        }
        for code in ["28P01", "28000", "42501", "42704", "55000"] {
            assert_eq!(server(code).class(), Class::Setting, "{code}");
        }
    }
}
