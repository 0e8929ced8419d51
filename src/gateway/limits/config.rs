//! The settings of the rate limits.
use super::bucket::Rate;
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// The rate limits, and what happens above them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Config {
    /// What happens above a limit.
    pub mode: Mode,
    /// The capacity of each limit: after idle time, the tokens of this long can be used at once.
    #[serde(with = "humantime_serde")]
    pub burst: Duration,
    /// Broadcasts per second on one channel of a socket.
    pub messages_per_channel: u64,
    /// Broadcasts per second on all channels of a socket.
    pub messages_per_connection: u64,
    /// Broadcasts per second of all sockets and HTTP.
    pub messages_total: u64,
    /// Broadcasts per second over HTTP.
    pub messages_http: u64,
    /// Bytes per second of a socket's broadcasts and presence calls.
    pub bytes_per_connection: u64,
    /// Bytes per second of broadcasts and presence calls of all sockets and HTTP.
    pub bytes_total: u64,
    /// Joins and new tokens per second of a socket.
    pub joins_per_connection: u64,
    /// Joins and new tokens per second of all sockets.
    pub joins_total: u64,
    /// Published presence calls per second of one channel of a socket.
    pub presence_per_channel: u64,
    /// Published presence calls per second of a socket.
    pub presence_per_connection: u64,
    /// Published presence calls per second of all sockets.
    pub presence_total: u64,
    /// Messages of any kind per second of a socket. A faster socket is read at this rate.
    pub frames_per_connection: u64,
    /// The limits of `mode = "supabase"`, which ignores those above.
    pub supabase: Supabase,
}

/// What happens above a limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    /// The request is refused with `rate_limited`, waits, or is coalesced; channel and socket stay.
    #[default]
    SlowDown,
    /// As in Supabase Realtime: channels and sockets are closed.
    Supabase,
}

/// The limits of Supabase Realtime (`docs/spec/realtime-protocol.md` §4.6, §6.4, §8.1). Averages cover at most a
/// minute.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Supabase {
    /// Joins per second of all sockets.
    pub joins_per_second: u32,
    /// Published and delivered broadcasts per second, of all sockets and HTTP.
    pub events_per_second: u32,
    /// Presence changes, and delivered states and differences per second, of all sockets.
    pub presence_per_second: u32,
    /// Presence calls of one channel within the window.
    pub presence_calls: u32,
    /// The window, which starts with the first call.
    #[serde(with = "humantime_serde")]
    pub presence_window: Duration,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            mode: Mode::SlowDown,
            burst: Duration::from_secs(5),
            messages_per_channel: 5_000,
            messages_per_connection: 10_000,
            messages_total: 100_000,
            messages_http: 10_000,
            bytes_per_connection: 20_000_000,
            bytes_total: 200_000_000,
            joins_per_connection: 100,
            joins_total: 1_000,
            presence_per_channel: 10,
            presence_per_connection: 200,
            presence_total: 5_000,
            frames_per_connection: 20_000,
            supabase: Supabase::default(),
        }
    }
}

impl Default for Supabase {
    fn default() -> Self {
        Self {
            joins_per_second: 100,
            events_per_second: 100,
            presence_per_second: 1_000,
            presence_calls: 5,
            presence_window: Duration::from_secs(30),
        }
    }
}

impl Config {
    /// The same settings with limits out of reach, for benchmarks.
    #[must_use]
    pub fn unlimited(self) -> Self {
        const MANY: u64 = u32::MAX as u64;
        Self {
            messages_per_channel: MANY,
            messages_per_connection: MANY,
            messages_total: MANY,
            messages_http: MANY,
            bytes_per_connection: u64::MAX,
            bytes_total: u64::MAX,
            joins_per_connection: MANY,
            joins_total: MANY,
            presence_per_channel: MANY,
            presence_per_connection: MANY,
            presence_total: MANY,
            frames_per_connection: MANY,
            ..self
        }
    }

    /// The settings that are 0, which would let nothing through or have no meaning.
    #[must_use]
    pub fn zeros(&self) -> Vec<&'static str> {
        let all = [
            ("gateway.limits.messages_per_channel", self.messages_per_channel),
            ("gateway.limits.messages_per_connection", self.messages_per_connection),
            ("gateway.limits.messages_total", self.messages_total),
            ("gateway.limits.messages_http", self.messages_http),
            ("gateway.limits.bytes_per_connection", self.bytes_per_connection),
            ("gateway.limits.bytes_total", self.bytes_total),
            ("gateway.limits.joins_per_connection", self.joins_per_connection),
            ("gateway.limits.joins_total", self.joins_total),
            ("gateway.limits.presence_per_channel", self.presence_per_channel),
            ("gateway.limits.presence_per_connection", self.presence_per_connection),
            ("gateway.limits.presence_total", self.presence_total),
            ("gateway.limits.frames_per_connection", self.frames_per_connection),
            ("gateway.limits.burst", u64::try_from(self.burst.as_millis()).unwrap_or(u64::MAX)),
        ];
        all.into_iter().filter(|(_, value)| *value == 0).map(|(key, _)| key).collect()
    }

    pub(super) fn rate(&self, per_second: u64) -> Rate {
        Rate { per_second, burst: self.burst }
    }
}
