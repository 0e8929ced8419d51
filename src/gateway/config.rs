//! Limits and timers of the sockets.
use super::limits;
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// What one connection and all of them together may do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Config {
    /// How long a refused handshake waits for its answer: a brake on clients that retry at once.
    #[serde(with = "humantime_serde")]
    pub handshake_error_delay: Duration,
    /// How long a refused join waits for its answer; under the client's join timeout of 10 s.
    #[serde(with = "humantime_serde")]
    pub join_error_delay: Duration,
    /// A socket from which nothing comes for so long is closed with 1000.
    #[serde(with = "humantime_serde")]
    pub idle_timeout: Duration,
    /// A larger websocket message closes the socket with 1009.
    pub message_bytes_max: usize,
    /// A larger broadcast payload or tracked object is refused; 500 bytes for its envelope are allowed on top.
    pub payload_bytes_max: usize,
    /// Sockets with at least one channel; more are refused with 429.
    pub connections_max: usize,
    /// Channels of one socket.
    pub channels_max: usize,
    /// Whether public channels are refused.
    pub private_only: bool,
    /// Whether presence is on for channels that do not ask for it.
    pub presence_enabled: bool,
    /// Frames that may wait for a slow reader; one more closes the socket with 4008.
    pub outbox_frames_max: usize,
    /// Bytes that may wait for a slow reader; more close the socket with 4008.
    pub outbox_bytes_max: usize,
    /// A socket that wanted a channel and has had none for so long is closed with 1000.
    #[serde(with = "humantime_serde")]
    pub no_channel_timeout: Duration,
    /// How much may come in over time.
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
            no_channel_timeout: Duration::from_secs(600),
            limits: limits::Config::default(),
        }
    }
}
