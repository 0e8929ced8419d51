//! What can go wrong, by what the caller can do about it.
use std::{fmt, sync::Arc, time::Duration};

/// Why something did not work. Never holds a key, a token or a payload.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Mend the address; nothing was tried.
    #[error("{url:?} is not the address of a realtime server: {why}")]
    Url {
        /// As it was given.
        url: String,
        /// What is wrong with it.
        why: String,
    },
    /// No connection came about, or no websocket on it.
    #[error("cannot connect to {address}: {why}")]
    Connect {
        /// Host and port.
        address: String,
        /// One line.
        why: String,
    },
    /// The server is there but does not let this client in: see to the key, the path or the limits.
    #[error("the server refused the connection with status {status}: {why}")]
    Handshake {
        /// Of HTTP.
        status: u16,
        /// The server's words.
        why: String,
    },
    /// The server refused the channel: see to the token, the policies or the limits it names.
    #[error("channel {topic} was refused: {reason}")]
    Refused {
        /// Without `realtime:`.
        topic: Arc<str>,
        /// The server's words, like `Unauthorized: …`.
        reason: String,
    },
    /// The server took the message and refused it.
    #[error("the server refused it: {reason}")]
    Rejected {
        /// The server's words.
        reason: String,
    },
    /// No answer came in time; whether it had an effect is not known.
    #[error("{what} was not answered within {after:?}")]
    TimedOut {
        /// What was asked.
        what: &'static str,
        /// How long was waited.
        after: Duration,
    },
    /// The connection ended before the answer; whether it had an effect is not known. It is being made again.
    #[error("the connection was lost: {why}")]
    Lost {
        /// One line.
        why: String,
    },
    /// Another live handle of this client has this topic: use that, or a `Manager`.
    #[error("{topic} is already a channel of this client")]
    TopicInUse {
        /// Without `realtime:`.
        topic: Arc<str>,
    },
    /// The channel is not subscribed, or no longer.
    #[error("channel {topic} is closed: {reason}")]
    ChannelClosed {
        /// Without `realtime:`.
        topic: Arc<str>,
        /// The server's words, or ours.
        reason: String,
    },
    /// Wait until the channel is subscribed: too much waits for it already.
    #[error("{max} messages already wait until channel {topic} is subscribed")]
    Full {
        /// Without `realtime:`.
        topic: Arc<str>,
        /// How many may wait.
        max: usize,
    },
    /// Let channels go, or raise the manager's limit.
    #[error("all {max} channels are in use")]
    TooManyChannels {
        /// The manager's limit.
        max: usize,
    },
    /// The client was closed.
    #[error("the client is closed")]
    Closed,
    /// What was to be sent cannot be.
    #[error("cannot be sent: {0}")]
    Payload(String),
    /// An HTTP broadcast did not succeed.
    #[error("HTTP broadcast failed{}: {why}", Status(*status))]
    Http {
        /// Of the answer, if there was one.
        status: Option<u16>,
        /// The server's words, or one line of ours.
        why: String,
    },
    /// The function that gives tokens failed.
    #[error("no token: {0}")]
    Token(String),
}

impl Error {
    /// Whether the same may work later without anybody's doing.
    #[must_use]
    pub fn is_temporary(&self) -> bool {
        match self {
            Self::Connect { .. } | Self::TimedOut { .. } | Self::Lost { .. } | Self::Full { .. } => true,
            Self::TooManyChannels { .. } | Self::Token(_) => true,
            Self::Handshake { status, .. } => *status == 429 || *status >= 500,
            Self::Http { status, .. } => status.is_none_or(|status| status == 429 || status >= 500),
            _ => false,
        }
    }
}

struct Status(Option<u16>);

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.map_or(Ok(()), |status| write!(f, " with status {status}"))
    }
}

/// The first line of a text from outside, not longer than people read.
pub(super) fn one_line(text: &str) -> String {
    text.lines().next().unwrap_or_default().chars().take(200).collect()
}
