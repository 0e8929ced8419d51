//! Errors of the client, by the caller's next decision.
use std::{fmt, sync::Arc, time::Duration};

/// Why a call failed. Never holds a key, a token or a payload.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The address is invalid. Correct it; nothing was sent.
    #[error("{url:?} is not the address of a realtime server: {why}")]
    Url {
        /// The address as given, without secrets.
        url: String,
        /// What is wrong with it.
        why: String,
    },
    /// The TCP or TLS connection or the websocket handshake failed.
    #[error("cannot connect to {address}: {why}")]
    Connect {
        /// Host and port.
        address: String,
        /// One line.
        why: String,
    },
    /// The server refused the handshake: check the key, the path and the limits.
    #[error("the server refused the connection with status {status}: {why}")]
    Handshake {
        /// The HTTP status.
        status: u16,
        /// The server's message.
        why: String,
    },
    /// The server refused the channel: check the token, the policies and the limit in the reason.
    #[error("channel {topic} was refused: {reason}")]
    Refused {
        /// The topic without `realtime:`.
        topic: Arc<str>,
        /// The server's message, like `Unauthorized: …`.
        reason: String,
    },
    /// The server received the message and refused it.
    #[error("the server refused it: {reason}")]
    Rejected {
        /// The server's message.
        reason: String,
    },
    /// No reply came in time. It is unknown whether the call had an effect.
    #[error("{what} was not answered within {after:?}")]
    TimedOut {
        /// The request.
        what: &'static str,
        /// The timeout.
        after: Duration,
    },
    /// The connection ended before the reply. It is unknown whether the call had an effect. The client reconnects.
    #[error("the connection was lost: {why}")]
    Lost {
        /// One line.
        why: String,
    },
    /// Another live handle of this client has this topic. Use that handle, or a `Manager`.
    #[error("{topic} is already a channel of this client")]
    TopicInUse {
        /// The topic without `realtime:`.
        topic: Arc<str>,
    },
    /// The channel is not subscribed.
    #[error("channel {topic} is closed: {reason}")]
    ChannelClosed {
        /// The topic without `realtime:`.
        topic: Arc<str>,
        /// The server's message, or the client's.
        reason: String,
    },
    /// The queue of messages for an unsubscribed channel is full. Wait until it is subscribed.
    #[error("{max} messages already wait until channel {topic} is subscribed")]
    Full {
        /// The topic without `realtime:`.
        topic: Arc<str>,
        /// The limit of the queue.
        max: usize,
    },
    /// All channels of the manager are in use. Drop leases, or raise the limit.
    #[error("all {max} channels are in use")]
    TooManyChannels {
        /// The manager's limit.
        max: usize,
    },
    /// The client was closed.
    #[error("the client is closed")]
    Closed,
    /// The payload cannot be sent.
    #[error("cannot be sent: {0}")]
    Payload(String),
    /// An HTTP broadcast did not succeed.
    #[error("HTTP broadcast failed{}: {why}", Status(*status))]
    Http {
        /// The HTTP status, if there was a response.
        status: Option<u16>,
        /// The server's message, or one line of the client's.
        why: String,
    },
    /// The token source failed.
    #[error("no token: {0}")]
    Token(String),
}

impl Error {
    /// Whether a retry may succeed without a change by the caller.
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

/// The first line of a foreign text, cut to 200 characters.
pub(super) fn one_line(text: &str) -> String {
    text.lines().next().unwrap_or_default().chars().take(200).collect()
}
