//! What can go wrong with the database, made for the caller's next decision.
//!
//! Each variant is one thing that somebody can do something about, and its text
//! names what, where and what to do. No text holds a password or a row's value;
//! what PostgreSQL itself said is the source.
use std::{error::Error as StdError, io, path::PathBuf, time::Duration};
use tokio_postgres::error::{DbError, SqlState};

/// Why the database could not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// `database.url` cannot be understood.
    #[error("database.url {0}")]
    BadUrl(String),
    /// Nobody answers there, or not in time; it may later.
    #[error("database at {address} does not answer")]
    Unreachable {
        /// Host and port, or the socket's path.
        address: String,
        /// What the attempt ended with.
        source: io::Error,
    },
    /// The server refuses the user's password, or wants one and none was given.
    #[error(
        "database at {address} refuses the password of user {user}: correct the password in database.url"
    )]
    WrongPassword {
        /// Host and port, or the socket's path.
        address: String,
        /// The role that was tried.
        user: String,
        /// What the server said.
        source: tokio_postgres::Error,
    },
    /// The server's `pg_hba.conf` or the role's settings do not let the user in.
    #[error("database at {address} does not let user {user} in: allow it in pg_hba.conf")]
    Refused {
        /// Host and port, or the socket's path.
        address: String,
        /// The role that was tried.
        user: String,
        /// What the server said.
        source: tokio_postgres::Error,
    },
    /// The server has no database of that name.
    #[error("there is no database {name} at {address}: create database \"{name}\"")]
    UnknownDatabase {
        /// Host and port, or the socket's path.
        address: String,
        /// The name in `database.url`.
        name: String,
    },
    /// The server has no connection left, or none for this role.
    #[error(
        "database at {address} has no connection left: raise max_connections or lower database.pool_size_max"
    )]
    TooManyConnections {
        /// Host and port, or the socket's path.
        address: String,
        /// What the server said.
        source: tokio_postgres::Error,
    },
    /// TLS was demanded and could not be agreed upon.
    #[error("no TLS with the database at {address}: check sslmode and the server's certificate")]
    Tls {
        /// Host and port.
        address: String,
        /// What the handshake ended with.
        source: tokio_postgres::Error,
    },
    /// All pooled connections stayed busy.
    #[error("no database connection became free within {0:?}: raise database.pool_size_max")]
    Busy(Duration),
    /// The pool is closed, because the daemon stops.
    #[error("the database pool is closed")]
    Closed,
    /// A statement failed.
    #[error("database statement failed")]
    Query(#[from] tokio_postgres::Error),
    /// The connection was lost during a commit: it may have happened or not; read before trying again.
    #[error("the connection was lost during a commit, which may have happened")]
    CommitUnknown(#[source] tokio_postgres::Error),
    /// The role lacks a right.
    #[error("role {role} {lacks}: {remedy}")]
    NoRight {
        /// The role that the daemon connects as.
        role: String,
        /// What it may not do, like `may not create a schema in database convoke`.
        lacks: String,
        /// The statement that mends it.
        remedy: String,
    },
    /// A migration failed; those before it are in place.
    #[error("migration {name} failed")]
    Migration {
        /// Version and name, or `history`.
        name: String,
        /// What the server said.
        source: Box<dyn StdError + Send + Sync>,
    },
    /// The database was migrated by another version of the program.
    #[error("the database does not fit this version of convoke: {0}")]
    OtherSchema(String),
    /// This machine has no PostgreSQL server binaries for the private PostgreSQL.
    #[error(
        "no PostgreSQL server binaries found ({looked}): install them (Debian and Ubuntu: apt install postgresql; \
         Fedora: dnf install postgresql-server; macOS: brew install postgresql) or give database.url"
    )]
    NoBinaries {
        /// Where they were looked for.
        looked: String,
    },
    /// The data was made by another major version of PostgreSQL than the machine has.
    #[error(
        "{path} holds data of PostgreSQL {cluster}, and this machine has only {found}: \
         install PostgreSQL {cluster}, or move the data with pg_upgrade, or use another database.data_dir"
    )]
    OtherVersion {
        /// The data folder.
        path: PathBuf,
        /// Major version of the data.
        cluster: u32,
        /// What was found, like `16, 17`.
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
    /// The operating system does not let this user in there.
    #[error(
        "no permission on {path}: make it accessible to the user of convoke or use another database.data_dir"
    )]
    NoPermission {
        /// The file or folder.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The data belongs to another user of the machine.
    #[error("{path} belongs to user {owner}, and the server would run as {wanted}: {remedy}")]
    ForeignOwner {
        /// The folder.
        path: PathBuf,
        /// Numeric id of its owner.
        owner: u32,
        /// Name or numeric id of the user that is needed.
        wanted: String,
        /// What to do.
        remedy: String,
    },
    /// Another operation on the file system failed.
    #[error("cannot {doing} {path}")]
    File {
        /// A verb, like `create`.
        doing: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The private server's data could not be made.
    #[error("initdb failed: {0}")]
    Initdb(String),
    /// The private server could not be started, or not within its time; the last lines of its log.
    #[error("the private PostgreSQL {what}; the end of {log}:\n{tail}")]
    Start {
        /// What happened, like `ended with exit status: 1`.
        what: String,
        /// The log file.
        log: PathBuf,
        /// Its last lines.
        tail: String,
    },
    /// The machine or its state is not fit for a private server; says what and what to do.
    #[error("{0}")]
    Unfit(String),
}

impl Error {
    /// The SQLSTATE, where the server gave one.
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

    /// Whether the same call may succeed later without anybody doing anything.
    #[must_use]
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Unreachable { .. } | Self::TooManyConnections { .. } | Self::Busy(_) => true,
            Self::Query(e) | Self::CommitUnknown(e) => is_transient(e),
            _ => false,
        }
    }

    /// Says what failed on the file system, with permission problems kept apart.
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

/// Whether a failed statement may succeed when it is simply tried again: the
/// server rolled it back for another's sake, restarts, or the connection is gone.
#[must_use]
pub fn is_transient(error: &tokio_postgres::Error) -> bool {
    let Some(code) = error.code() else {
        return error.is_closed() || error.source().is_some_and(|e| e.is::<io::Error>());
    };
    // Connection exceptions, rollbacks (serialization, deadlock), lack of resources, operator intervention.
    let class = code.code().get(..2).unwrap_or_default();
    let cancelled = *code == SqlState::QUERY_CANCELED;
    let lock = *code == SqlState::LOCK_NOT_AVAILABLE;
    lock || (matches!(class, "08" | "40" | "53" | "57") && !cancelled && *code != SqlState::DATABASE_DROPPED)
}
