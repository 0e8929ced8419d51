//! Failures to evaluate the policies of a room, and their texts for clients: Supabase Realtime's own
//! (`docs/spec/realtime-protocol.md` §3.4, §3.8).
use crate::{db, id::Topic};
use tokio_postgres::error::SqlState;

/// Why the policies of a room could not be evaluated. No variant carries text of the database.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
pub enum Error {
    /// A policy raised an error, or the daemon may not act as the role of the token.
    #[error("the policies of realtime.messages cannot be asked for this token")]
    Policy,
    /// The statement ran into its timeout.
    #[error("the policies of realtime.messages took too long")]
    Canceled,
    /// `realtime.messages` has no partition for today.
    #[error("realtime.messages has no partition for today")]
    MissingPartition,
    /// The queue is full, or no connection became free in time.
    #[error("all connections for policies stayed busy: raise access.connections_max")]
    Busy,
    /// The server refuses further connections.
    #[error("the database has no connection left")]
    TooManyConnections,
    /// The database does not answer, or is read-only for now.
    #[error("the database does not answer")]
    Unreachable,
}

impl Error {
    /// Classifies the failure of a statement.
    pub(super) fn of(error: &tokio_postgres::Error) -> Self {
        match error.code() {
            None => Self::Unreachable,
            Some(code) if *code == SqlState::QUERY_CANCELED => Self::Canceled,
            Some(code) if *code == SqlState::CHECK_VIOLATION => Self::MissingPartition,
            Some(code) if *code == SqlState::TOO_MANY_CONNECTIONS => Self::TooManyConnections,
            // A full disk, a restart, a read-only database: temporary, and no statement about rights.
            Some(_) if db::is_transient(error) || db::is_read_only(error) => Self::Unreachable,
            Some(_) => Self::Policy,
        }
    }

    /// Classifies the failure to get a connection.
    pub(super) fn of_connecting(error: &db::Error) -> Self {
        match error {
            db::Error::Busy(_) => Self::Busy,
            db::Error::TooManyConnections { .. } => Self::TooManyConnections,
            _ => Self::Unreachable,
        }
    }

    /// The `reason` text of a refused join.
    #[must_use]
    pub fn join_text(self, topic: &Topic) -> String {
        match self {
            Self::Policy => unauthorized(topic),
            Self::Canceled => "QueryCanceled: canceling statement due to statement timeout".to_owned(),
            Self::MissingPartition => {
                "MissingPartition: Realtime was unable to find the expected messages partition".to_owned()
            }
            Self::Busy => "IncreaseConnectionPool: Please increase your connection pool size".to_owned(),
            Self::TooManyConnections => {
                let why = "Database can't accept more connections, Realtime won't connect";
                format!("DatabaseLackOfConnections: {why}")
            }
            Self::Unreachable => format!("UnableToConnectToProject: {UNREACHABLE}"),
        }
    }

    /// The text of the `system` message that closes a joined channel.
    #[must_use]
    pub fn system_text(self, topic: &Topic) -> String {
        match self {
            Self::Policy => no_right_to_read(topic),
            Self::Canceled => "Query was cancelled, please try again".to_owned(),
            Self::MissingPartition | Self::Busy | Self::TooManyConnections | Self::Unreachable => {
                UNREACHABLE.to_owned()
            }
        }
    }
}

const UNREACHABLE: &str = "Realtime was unable to connect to the project database";

/// The `reason` text of a join without the right to read.
#[must_use]
pub fn unauthorized(topic: &Topic) -> String {
    format!("Unauthorized: {}", no_right_to_read(topic))
}

/// The text for a channel whose new token lacks the right to read.
#[must_use]
pub fn no_right_to_read(topic: &Topic) -> String {
    format!("You do not have permissions to read from this Channel topic: {topic}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn client_messages_have_no_database_details() {
        let topic = Topic::new("den:7").unwrap();
        let denied = "Unauthorized: You do not have permissions to read from this Channel topic: den:7";
        assert_eq!(Error::Policy.join_text(&topic), denied);
        assert_eq!(Error::Canceled.system_text(&topic), "Query was cancelled, please try again");
        for error in [Error::Busy, Error::Unreachable, Error::MissingPartition, Error::TooManyConnections] {
            assert!(error.join_text(&topic).contains(": "), "{error:?}");
            assert_eq!(error.system_text(&topic), UNREACHABLE);
        }
    }
}
