//! Errors of the database, one variant for each reaction of a caller or an operator.
//!
//! A text tells what failed, where, and what to do. It contains no password and no value of a row.
//! PostgreSQL's own text is the source.
use crate::files;
use std::{error::Error as StdError, io, path::PathBuf, time::Duration};
use tokio_postgres::error::{DbError, SqlState};

/// Why a database operation failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// `database.url` is invalid.
    #[error("database.url {0}")]
    BadUrl(String),
    /// No answer, or none in time. Transient.
    #[error("database at {address} does not answer")]
    Unreachable {
        /// Host and port, or the socket's path.
        address: String,
        /// How the attempt ended.
        source: io::Error,
    },
    /// The server refuses the password, or needs one and none was given.
    #[error(
        "database at {address} refuses the password of user {user}: correct the password in database.url"
    )]
    WrongPassword {
        /// Host and port, or the socket's path.
        address: String,
        /// The role of the attempt.
        user: String,
        /// The server's error.
        source: tokio_postgres::Error,
    },
    /// `pg_hba.conf` or the role's settings do not permit the connection.
    #[error("database at {address} does not let user {user} in: allow it in pg_hba.conf")]
    Refused {
        /// Host and port, or the socket's path.
        address: String,
        /// The role of the attempt.
        user: String,
        /// The server's error.
        source: tokio_postgres::Error,
    },
    /// The server has no database with this name.
    #[error("there is no database {name} at {address}: create database \"{name}\"")]
    UnknownDatabase {
        /// Host and port, or the socket's path.
        address: String,
        /// The name in `database.url`.
        name: String,
    },
    /// The server has no free connection, or none for this role.
    #[error(
        "database at {address} has no connection left: raise max_connections or lower database.pool_size_max"
    )]
    TooManyConnections {
        /// Host and port, or the socket's path.
        address: String,
        /// The server's error.
        source: tokio_postgres::Error,
    },
    /// The address belongs to a connection pooler that shares sessions among clients.
    #[error(
        "what answers at {address} is a connection pooler that {lacks}: give database.url the address of PostgreSQL \
         itself (advisory locks, prepared statements and replication need sessions that last)"
    )]
    Pooler {
        /// Host and port, or the socket's path.
        address: String,
        /// What the pooler does not support.
        lacks: &'static str,
    },
    /// The database is read-only for now.
    #[error(
        "database {database} is read-only: end what made it so (a standby that is not promoted, or \
         default_transaction_read_only = on: alter database \"{database}\" reset default_transaction_read_only)"
    )]
    ReadOnly {
        /// The database's name.
        database: String,
    },
    /// TLS is required and could not be negotiated.
    #[error("no TLS with the database at {address}: check sslmode and the server's certificate")]
    Tls {
        /// Host and port.
        address: String,
        /// How the handshake ended.
        source: tokio_postgres::Error,
    },
    /// Every pooled connection stayed in use.
    #[error("no database connection became free within {0:?}: raise database.pool_size_max")]
    Busy(Duration),
    /// The pool is closed, because the daemon stops.
    #[error("the database pool is closed")]
    Closed,
    /// A statement failed.
    #[error("database statement failed")]
    Query(#[from] tokio_postgres::Error),
    /// A row has a value that this version cannot decode.
    #[error(transparent)]
    Unreadable(#[from] super::Unreadable),
    /// The connection was lost during a commit, which may have succeeded: read before retrying.
    #[error("the connection was lost during a commit, which may have happened")]
    CommitUnknown(#[source] tokio_postgres::Error),
    /// The role lacks a privilege.
    #[error("role {role} {lacks}: {remedy}")]
    NoRight {
        /// The role that the daemon connects as.
        role: String,
        /// The missing privilege, like `may not create a schema in database convoke`.
        lacks: String,
        /// The statement that grants it.
        remedy: String,
    },
    /// A migration failed; those before it are applied.
    #[error("migration {name} failed")]
    Migration {
        /// Version and name, or `history`.
        name: String,
        /// The server's error.
        source: Box<dyn StdError + Send + Sync>,
    },
    /// The database was migrated by a version of the program that this one does not know.
    #[error("the database does not fit this version of convoke: {0}")]
    OtherSchema(String),
    /// This machine has no PostgreSQL server binaries for the private PostgreSQL.
    #[error(
        "no PostgreSQL server binaries found ({looked}): install them (Debian and Ubuntu: apt install postgresql; \
         Fedora: dnf install postgresql-server; macOS: brew install postgresql) or give database.url"
    )]
    NoBinaries {
        /// Where they were searched.
        looked: String,
    },
    /// The data belongs to another major version of PostgreSQL than those of this machine.
    #[error(
        "{path} holds data of PostgreSQL {cluster}, and this machine has only {found}: \
         install PostgreSQL {cluster}, or move the data with pg_upgrade, or use another database.data_dir"
    )]
    OtherVersion {
        /// The data folder.
        path: PathBuf,
        /// Major version of the data.
        cluster: u32,
        /// The versions found, like `16, 17`.
        found: String,
    },
    /// Another live daemon uses the same data folder.
    #[error(
        "{path} is in use by another convoke with process id {pid}: stop it or use another database.data_dir"
    )]
    DataDirInUse {
        /// The data folder.
        path: PathBuf,
        /// The other process.
        pid: u32,
    },
    /// The operating system denies access.
    #[error(
        "no permission on {path}: make it accessible to the user of convoke or use another database.data_dir"
    )]
    NoPermission {
        /// The file or folder.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
    /// The data belongs to another OS user.
    #[error("{path} belongs to user {owner}, and the server would run as {wanted}: {remedy}")]
    ForeignOwner {
        /// The folder.
        path: PathBuf,
        /// Numeric id of its owner.
        owner: u32,
        /// Name or numeric id of the required user.
        wanted: String,
        /// The remedy.
        remedy: String,
    },
    /// Another file operation failed.
    #[error("cannot {doing} {path}")]
    File {
        /// A verb, like `create`.
        doing: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
    /// `initdb` failed; the end of its output.
    #[error("initdb failed: {0}")]
    Initdb(String),
    /// The private server did not start, or not in time.
    #[error("the private PostgreSQL {what}; the end of {log}:\n{tail}")]
    Start {
        /// The failure, like `ended with exit status: 1`.
        what: String,
        /// The log file.
        log: PathBuf,
        /// Its last lines.
        tail: String,
    },
    /// The machine or its state does not permit a private server; the text tells why and what to do.
    #[error("{0}")]
    Unfit(String),
}

impl Error {
    /// The SQLSTATE, if the error came from the server.
    #[must_use]
    pub fn sqlstate(&self) -> Option<&SqlState> {
        let mut next: Option<&(dyn StdError + 'static)> = Some(self);
        while let Some(error) = next {
            if let Some(db) = error.downcast_ref::<DbError>() {
                return Some(db.code());
            }
            next = error.source();
        }
        None
    }

    /// Whether the same call may succeed later without a change.
    #[must_use]
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Unreachable { .. }
            | Self::TooManyConnections { .. }
            | Self::Busy(_)
            | Self::ReadOnly { .. } => true,
            Self::Query(e) | Self::CommitUnknown(e) => is_transient(e) || is_read_only(e),
            _ => false,
        }
    }

    /// Converts an error about a file that must be the daemon's own.
    pub(super) fn of_files(error: files::Error) -> Self {
        match error {
            files::Error::Io { doing, path, source } => Self::file(doing, path, source),
            untrusted @ files::Error::Untrusted { .. } => Self::Unfit(untrusted.to_string()),
        }
    }

    /// Converts an error of a file operation; permission problems get their own variant.
    pub(super) fn file(doing: &'static str, path: impl Into<PathBuf>, source: io::Error) -> Self {
        let path = path.into();
        match source.kind() {
            io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
                Self::NoPermission { path, source }
            }
            _ => Self::File { doing, path, source },
        }
    }
}

/// Whether a failed statement may succeed on a retry: the server rolled it back because of another
/// transaction, is restarting, or the connection was lost.
#[must_use]
pub fn is_transient(error: &tokio_postgres::Error) -> bool {
    let Some(code) = error.code() else {
        return error.is_closed() || error.source().is_some_and(|e| e.is::<io::Error>());
    };
    // SQLSTATE classes: connection exceptions (08), rollbacks by serialization failure or deadlock (40), lack
    // of resources such as a full disk (53), operator intervention (57), I/O errors of the server (58).
    let class = code.code().get(..2).unwrap_or_default();
    let canceled = *code == SqlState::QUERY_CANCELED;
    // The session exceeded its idle or transaction timeout and was closed.
    let ended = *code == SqlState::IDLE_IN_TRANSACTION_SESSION_TIMEOUT || code.code() == "25P04";
    let waits = ended || *code == SqlState::LOCK_NOT_AVAILABLE;
    let passes = matches!(class, "08" | "40" | "53" | "57" | "58");
    waits || (passes && !canceled && *code != SqlState::DATABASE_DROPPED)
}

/// Whether a write failed because the database is read-only for now. Do not use it for a session that the
/// daemon itself made read-only: there, the write is the fault.
#[must_use]
pub fn is_read_only(error: &tokio_postgres::Error) -> bool {
    error.code() == Some(&SqlState::READ_ONLY_SQL_TRANSACTION)
}
