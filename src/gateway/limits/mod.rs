//! Rate limits of clients.
//!
//! Convoke's own mode throttles: a request over a limit is refused with the time
//! after which to retry, or waits, or is coalesced with the next. Supabase mode
//! counts averages and closes channels and sockets. This module owns the buckets and the averages and
//! only decides; callers refuse and notify.
mod bucket;
mod config;
mod meter;

pub use config::{Config, Mode, Supabase};

use bucket::Bucket;
use meter::Meter;
use std::time::Duration;
use tokio::time::Instant;

/// The longest wait of a throttled join; well below the clients' timeout of 10 s.
const JOIN_PATIENCE: Duration = Duration::from_secs(5);

/// The usage of all sockets together.
#[derive(Debug)]
pub(super) struct Rates {
    config: Config,
    since: Instant,
    messages: Bucket,
    http: Bucket,
    bytes: Bucket,
    joins: Bucket,
    presence: Bucket,
    /// Supabase mode: attempts to join.
    joined: Meter,
    /// Supabase mode: published and delivered broadcasts.
    events: Meter,
    /// Supabase mode: published and delivered presence.
    present: Meter,
    /// HTTP requests.
    requested: Meter,
}

/// The usage of one socket.
#[derive(Debug, Default)]
pub(super) struct OfSocket {
    messages: Bucket,
    bytes: Bucket,
    joins: Bucket,
    presence: Bucket,
    frames: Bucket,
}

/// The usage of one channel of a socket.
#[derive(Debug, Default)]
pub(super) struct OfChannel {
    messages: Bucket,
    presence: Bucket,
}

/// A limit is exceeded; retry after this time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct TooMuch(pub(super) Duration);

impl TooMuch {
    /// The time in milliseconds, rounded up so that it is never too short.
    pub(super) fn millis(self) -> u64 {
        u64::try_from(self.0.as_millis()).unwrap_or(u64::MAX).saturating_add(1)
    }
}

impl Rates {
    pub(super) fn new(config: Config, now: Instant) -> Self {
        Self {
            config,
            since: now,
            messages: Bucket::default(),
            http: Bucket::default(),
            bytes: Bucket::default(),
            joins: Bucket::default(),
            presence: Bucket::default(),
            joined: Meter::new(now),
            events: Meter::new(now),
            present: Meter::new(now),
            requested: Meter::new(now),
        }
    }

    /// Whether exceeding a limit ends channels and sockets, as in Supabase Realtime.
    pub(super) fn is_supabase_mode(&self) -> bool {
        self.config.mode == Mode::Supabase
    }

    /// Supabase mode: the presence calls of a channel within a time, before it ends.
    pub(super) fn presence_calls(&self) -> Option<(u32, Duration)> {
        let limits = &self.config.supabase;
        self.is_supabase_mode().then_some((limits.presence_calls, limits.presence_window))
    }

    fn nanos(&self, now: Instant) -> u64 {
        u64::try_from(now.duration_since(self.since).as_nanos()).unwrap_or(u64::MAX)
    }

    /// Charges a broadcast of `size` bytes.
    pub(super) fn broadcast(
        &self,
        socket: &OfSocket,
        channel: &OfChannel,
        now: Instant,
        size: usize,
    ) -> Result<(), TooMuch> {
        if self.is_supabase_mode() {
            self.events.count(now, 1);
            return Ok(());
        }
        let (config, nanos) = (&self.config, self.nanos(now));
        let from = [
            (&channel.messages, config.rate(config.messages_per_channel), 1),
            (&socket.messages, config.rate(config.messages_per_connection), 1),
            (&socket.bytes, config.rate(config.bytes_per_connection), size as u64),
            (&self.messages, config.rate(config.messages_total), 1),
            (&self.bytes, config.rate(config.bytes_total), size as u64),
        ];
        Bucket::take_all(nanos, from).map_err(TooMuch)
    }

    /// Supabase mode: counts the deliveries of a broadcast. Returns whether the receiving channels must end.
    pub(super) fn count_deliveries(&self, now: Instant, receivers: usize) -> bool {
        self.is_supabase_mode()
            && self.events.count(now, receivers as u64) >= u64::from(self.config.supabase.events_per_second)
    }

    /// Counts a push with an unknown event.
    pub(super) fn unknown_event(&self, now: Instant) {
        if self.is_supabase_mode() {
            self.events.count(now, 1);
        }
    }

    /// Whether new sockets are refused because of too many joins.
    pub(super) fn refuses_sockets(&self, now: Instant) -> bool {
        self.is_supabase_mode()
            && self.joined.count(now, 0) >= u64::from(self.config.supabase.joins_per_second)
    }

    /// Supabase mode: counts an attempt to join. Returns whether the socket must be closed.
    pub(super) fn joins_too_fast(&self, now: Instant) -> bool {
        self.is_supabase_mode()
            && self.joined.count(now, 1) >= u64::from(self.config.supabase.joins_per_second)
    }

    /// Reserves a join. Returns how long it must wait.
    pub(super) fn join(&self, socket: &OfSocket, now: Instant) -> Result<Duration, TooMuch> {
        if self.is_supabase_mode() {
            return Ok(Duration::ZERO);
        }
        let config = &self.config;
        let own = (&socket.joins, config.rate(config.joins_per_connection), 1);
        let all = (&self.joins, config.rate(config.joins_total), 1);
        Bucket::reserve_all(self.nanos(now), [own, all], JOIN_PATIENCE).map_err(TooMuch)
    }

    /// Charges a new token of a channel as a join. A token cannot wait.
    pub(super) fn token(&self, socket: &OfSocket, now: Instant) -> Result<(), TooMuch> {
        if self.is_supabase_mode() {
            return Ok(());
        }
        let config = &self.config;
        let own = (&socket.joins, config.rate(config.joins_per_connection), 1);
        let all = (&self.joins, config.rate(config.joins_total), 1);
        Bucket::take_all(self.nanos(now), [own, all]).map_err(TooMuch)
    }

    /// Charges the bytes of a presence call like a broadcast, regardless of the presence rate.
    pub(super) fn presence_bytes(&self, socket: &OfSocket, now: Instant, size: usize) -> Result<(), TooMuch> {
        if self.is_supabase_mode() {
            return Ok(());
        }
        let config = &self.config;
        let own = (&socket.bytes, config.rate(config.bytes_per_connection), size as u64);
        let all = (&self.bytes, config.rate(config.bytes_total), size as u64);
        Bucket::take_all(self.nanos(now), [own, all]).map_err(TooMuch)
    }

    /// Charges a presence call that is to be published; the error is how long to delay it.
    pub(super) fn presence(
        &self,
        socket: &OfSocket,
        channel: &OfChannel,
        now: Instant,
    ) -> Result<(), TooMuch> {
        if self.is_supabase_mode() {
            return Ok(());
        }
        let config = &self.config;
        let from = [
            (&channel.presence, config.rate(config.presence_per_channel), 1),
            (&socket.presence, config.rate(config.presence_per_connection), 1),
            (&self.presence, config.rate(config.presence_total), 1),
        ];
        Bucket::take_all(self.nanos(now), from).map_err(TooMuch)
    }

    /// Supabase mode: counts presence events. Returns whether the channel must end.
    pub(super) fn presence_too_fast(&self, now: Instant, events: u64) -> bool {
        self.is_supabase_mode()
            && self.present.count(now, events) > u64::from(self.config.supabase.presence_per_second)
    }

    /// Charges messages of a socket. Returns how long it must not be read.
    pub(super) fn frames(&self, socket: &OfSocket, now: Instant, frames: u64) -> Duration {
        if self.is_supabase_mode() {
            return Duration::ZERO;
        }
        let rate = self.config.rate(self.config.frames_per_connection);
        socket.frames.spend(rate, self.nanos(now), frames)
    }

    /// Counts an HTTP request. Returns the recent requests per second and their limit.
    pub(super) fn http_request(&self, now: Instant) -> (u64, u64) {
        let limit = u64::from(self.config.supabase.events_per_second);
        (
            self.requested.count(now, 1),
            if self.is_supabase_mode() { limit } else { self.config.messages_http },
        )
    }

    /// Charges messages of an HTTP request.
    ///
    /// # Errors
    /// [`HttpTooMuch::Now`] if there are too many now, or [`HttpTooMuch::Batch`] if so many can never pass at once.
    pub(super) fn http(
        &self,
        now: Instant,
        messages: u64,
        size: usize,
        batch: bool,
    ) -> Result<(), HttpTooMuch> {
        if self.is_supabase_mode() {
            let (rate, limit) =
                (self.events.count(now, 0), u64::from(self.config.supabase.events_per_second));
            if rate > limit || (rate == limit && !batch) {
                return Err(HttpTooMuch::Now(None));
            }
            if rate + messages > limit {
                return Err(HttpTooMuch::Batch);
            }
            self.events.count(now, messages);
            return Ok(());
        }
        let rate = self.config.rate(self.config.messages_http);
        if batch && messages > rate.capacity() {
            return Err(HttpTooMuch::Batch);
        }
        let config = &self.config;
        let from = [
            (&self.http, rate, messages),
            (&self.messages, config.rate(config.messages_total), messages),
            (&self.bytes, config.rate(config.bytes_total), size as u64),
        ];
        Bucket::take_all(self.nanos(now), from).map_err(|wait| HttpTooMuch::Now(Some(TooMuch(wait))))
    }
}

/// Why messages over HTTP are refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum HttpTooMuch {
    /// For some time, which only Convoke's own mode knows.
    Now(Option<TooMuch>),
    /// The request has too many messages.
    Batch,
}

#[cfg(test)]
mod tests;
