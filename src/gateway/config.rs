//! Limits and timers of the sockets.
use super::limits;
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// The limits of one connection and of all together.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Config {
    /// The delay of a refused handshake's response: throttles clients that retry without backoff.
    #[serde(with = "humantime_serde")]
    pub handshake_error_delay: Duration,
    /// The delay of a refused join's reply. Must be below the client's join timeout of 10 s.
    #[serde(with = "humantime_serde")]
    pub join_error_delay: Duration,
    /// A socket that sends nothing for this long is closed with 1000.
    #[serde(with = "humantime_serde")]
    pub idle_timeout: Duration,
    /// A larger websocket message closes the socket with 1009.
    pub message_bytes_max: usize,
    /// The largest broadcast payload or tracked object; its envelope may add 500 bytes.
    pub payload_bytes_max: usize,
    /// Sockets with at least one channel. Further ones are refused with 429.
    pub connections_max: usize,
    /// Channels of one socket.
    pub channels_max: usize,
    /// Whether public channels are refused.
    pub private_only: bool,
    /// Whether presence is enabled for channels that do not request it.
    pub presence_enabled: bool,
    /// Frames queued for a slow subscriber. One more closes the socket with 4008.
    pub outbox_frames_max: usize,
    /// Bytes queued for a slow subscriber. More close the socket with 4008.
    pub outbox_bytes_max: usize,
    /// Bytes that all clients hold together: messages queued in outboxes, histories and HTTP inboxes, messages buffered
    /// during a replay, presence, bodies, incomplete messages, frames that wait for a policy, and the index of
    /// histories, which may use an eighth of it. Above it the connection that holds the most is closed with 4008.
    pub memory_bytes_max: usize,
    /// The same limit for the connections of one org; those without an org count as one org.
    pub memory_bytes_per_org: usize,
    /// The same limit for one connection without its outbox. A presence call above it is refused.
    pub memory_bytes_per_connection: usize,
    /// A socket without a channel for this long is closed with 1000, also if it never joined one.
    #[serde(with = "humantime_serde")]
    pub no_channel_timeout: Duration,
    /// The rate limits.
    pub limits: limits::Config,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            handshake_error_delay: Duration::from_secs(2),
            join_error_delay: Duration::from_secs(5),
            idle_timeout: Duration::from_secs(60),
            message_bytes_max: 5_000_000,
            payload_bytes_max: 3_000_000,
            connections_max: 20_000,
            channels_max: 100,
            private_only: false,
            presence_enabled: false,
            outbox_frames_max: 4_096,
            outbox_bytes_max: 16 << 20,
            memory_bytes_max: 128 << 20,
            memory_bytes_per_org: 96 << 20,
            memory_bytes_per_connection: 16 << 20,
            no_channel_timeout: Duration::from_secs(600),
            limits: limits::Config::default(),
        }
    }
}
