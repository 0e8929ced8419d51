//! How much clients may say over time, and what is done about more.
//!
//! Our own way slows down: what is too much is refused with a reason and the time after
//! which to try again, waits, or is put together with what comes next. The original's way
//! counts averages and closes channels and sockets. Owns the buckets and the averages,
//! decides, and does nothing: who asks tells the client.
mod bucket;
mod config;
mod meter;

pub use config::{Config, Mode, Supabase};

use bucket::Bucket;
use meter::Meter;
use std::time::Duration;
use tokio::time::Instant;

/// How long a join may wait for its turn; well under the clients' timeout of 10 s.
const JOIN_PATIENCE: Duration = Duration::from_secs(5);

/// What all sockets together have used.
#[derive(Debug)]
pub(super) struct Rates {
    config: Config,
    since: Instant,
    messages: Bucket,
    http: Bucket,
    bytes: Bucket,
    joins: Bucket,
    presence: Bucket,
    /// Of the original's way: attempts to join.
    joined: Meter,
    /// What was said and heard.
    events: Meter,
    /// Presence that was said and heard.
    present: Meter,
    /// Requests over HTTP.
    requested: Meter,
}

/// What one socket has used.
#[derive(Debug, Default)]
pub(super) struct OfSocket {
    messages: Bucket,
    bytes: Bucket,
    joins: Bucket,
    presence: Bucket,
    frames: Bucket,
}

/// What one channel of a socket has used.
#[derive(Debug, Default)]
pub(super) struct OfChannel {
    messages: Bucket,
    presence: Bucket,
}

/// Over the limit; try again after this time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct TooMuch(pub(super) Duration);

impl TooMuch {
    /// In whole milliseconds, at least one.
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

    /// Whether what is too much ends channels and sockets, as in the original.
    pub(super) fn cuts_off(&self) -> bool {
        self.config.mode == Mode::Supabase
    }

    /// How many presence calls a channel has in how long, before it ends.
    pub(super) fn presence_calls(&self) -> Option<(u32, Duration)> {
        let limits = &self.config.supabase;
        self.cuts_off().then_some((limits.presence_calls, limits.presence_window))
    }

    fn nanos(&self, now: Instant) -> u64 {
        u64::try_from(now.duration_since(self.since).as_nanos()).unwrap_or(u64::MAX)
    }

    /// A broadcast of `size` bytes comes in.
    pub(super) fn broadcast(
        &self,
        socket: &OfSocket,
        channel: &OfChannel,
        now: Instant,
        size: usize,
    ) -> Result<(), TooMuch> {
        if self.cuts_off() {
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

    /// Of the original's way: this many heard a broadcast. Whether they must be cut off for it.
    pub(super) fn heard(&self, now: Instant, receivers: usize) -> bool {
        self.cuts_off()
            && self.events.count(now, receivers as u64) >= u64::from(self.config.supabase.events_per_second)
    }

    /// A client said something that nobody knows.
    pub(super) fn unknown_event(&self, now: Instant) {
        if self.cuts_off() {
            self.events.count(now, 1);
        }
    }

    /// Whether new sockets are refused, because there are too many joins already.
    pub(super) fn refuses_sockets(&self, now: Instant) -> bool {
        self.cuts_off() && self.joined.count(now, 0) >= u64::from(self.config.supabase.joins_per_second)
    }

    /// Of the original's way: somebody tries to join. Whether the socket must be closed for it.
    pub(super) fn joins_too_fast(&self, now: Instant) -> bool {
        self.cuts_off() && self.joined.count(now, 1) >= u64::from(self.config.supabase.joins_per_second)
    }

    /// How long a join waits for its turn.
    pub(super) fn join(&self, socket: &OfSocket, now: Instant) -> Result<Duration, TooMuch> {
        if self.cuts_off() {
            return Ok(Duration::ZERO);
        }
        let (config, nanos) = (&self.config, self.nanos(now));
        let own = config.rate(config.joins_per_connection);
        let own = socket.joins.reserve(own, nanos, 1, JOIN_PATIENCE).map_err(TooMuch)?;
        let all = config.rate(config.joins_total);
        let all = self.joins.reserve(all, nanos, 1, JOIN_PATIENCE).map_err(TooMuch)?;
        Ok(own.max(all))
    }

    /// A new token comes for a channel: it costs what a join costs, and cannot wait.
    pub(super) fn token(&self, socket: &OfSocket, now: Instant) -> Result<(), TooMuch> {
        if self.cuts_off() {
            return Ok(());
        }
        let config = &self.config;
        let own = (&socket.joins, config.rate(config.joins_per_connection), 1);
        let all = (&self.joins, config.rate(config.joins_total), 1);
        Bucket::take_all(self.nanos(now), [own, all]).map_err(TooMuch)
    }

    /// A presence call of `size` bytes comes in: however seldom, it costs what a broadcast of so many bytes costs.
    pub(super) fn presence_bytes(&self, socket: &OfSocket, now: Instant, size: usize) -> Result<(), TooMuch> {
        if self.cuts_off() {
            return Ok(());
        }
        let config = &self.config;
        let own = (&socket.bytes, config.rate(config.bytes_per_connection), size as u64);
        let all = (&self.bytes, config.rate(config.bytes_total), size as u64);
        Bucket::take_all(self.nanos(now), [own, all]).map_err(TooMuch)
    }

    /// A presence call is to be told: now, or after this time.
    pub(super) fn presence(
        &self,
        socket: &OfSocket,
        channel: &OfChannel,
        now: Instant,
    ) -> Result<(), TooMuch> {
        if self.cuts_off() {
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

    /// Of the original's way: presence was said or heard. Whether the channel must end for it.
    pub(super) fn presence_too_fast(&self, now: Instant, events: u64) -> bool {
        self.cuts_off()
            && self.present.count(now, events) > u64::from(self.config.supabase.presence_per_second)
    }

    /// So many messages came from a socket: how long it is not read.
    pub(super) fn frames(&self, socket: &OfSocket, now: Instant, frames: u64) -> Duration {
        if self.cuts_off() {
            return Duration::ZERO;
        }
        let rate = self.config.rate(self.config.frames_per_connection);
        socket.frames.spend(rate, self.nanos(now), frames)
    }

    /// A request comes over HTTP: how many came a second lately, and how many may.
    pub(super) fn http_request(&self, now: Instant) -> (u64, u64) {
        let limit = u64::from(self.config.supabase.events_per_second);
        (self.requested.count(now, 1), if self.cuts_off() { limit } else { self.config.messages_http })
    }

    /// Messages come over HTTP, in a batch or one alone.
    ///
    /// # Errors
    /// When there are too many now, or [`HttpTooMuch::Batch`] when so many can never come at once.
    pub(super) fn http(
        &self,
        now: Instant,
        messages: u64,
        size: usize,
        batch: bool,
    ) -> Result<(), HttpTooMuch> {
        if self.cuts_off() {
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
    /// For a while, which our own way knows.
    Now(Option<TooMuch>),
    /// In one request.
    Batch,
}

#[cfg(test)]
mod tests;
