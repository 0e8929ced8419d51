//! Metrics of row changes.
use super::log::Log;
use crate::{clock::Clock, telemetry::Registry};
use prometheus_client::metrics::{counter::Counter, gauge::Gauge, histogram::Histogram};

#[derive(Debug)]
pub(super) struct Metrics {
    pub(super) clock: Clock,
    pub(super) delivered: Counter,
    pub(super) replayed: Counter,
    pub(super) resumed: Counter,
    pub(super) gaps: Counter,
    pub(super) failures: Counter,
    pub(super) refused: Counter,
    pub(super) channels: Gauge,
    pub(super) lag: Gauge,
    /// From the commit, by the database's clock, to the outboxes of all subscribers.
    pub(super) seconds: Histogram,
}

impl Metrics {
    pub(super) fn register(registry: &Registry, clock: Clock) -> Self {
        let counter = |name, help| registry.counter(name, help);
        let gauge = |name, help| registry.gauge(name, help);
        let seconds =
            Histogram::new([0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 5.0, 30.0]);
        registry.register("changes_seconds", "From commit to outboxes", seconds.clone());
        Self {
            clock,
            delivered: counter("changes_delivered", "Row changes put out to channels"),
            replayed: counter(
                "changes_replayed",
                "Parts of transactions read again for clients that came back",
            ),
            resumed: counter("changes_resumed", "Channels whose row changes went on from a known position"),
            gaps: counter("changes_gaps", "Channels told that row changes may be missing"),
            failures: counter("changes_failures", "Row changes not shown because a policy or filter failed"),
            refused: counter("changes_refused", "Subscriptions refused for what they ask for"),
            channels: gauge("changes_channels", "Channels that hear row changes"),
            lag: gauge("changes_lag_microseconds", "How far the delivery is behind the change log"),
            seconds,
        }
    }

    pub(super) fn look(&self, log: &Log) {
        let lag = log.head().saturating_sub(log.delivered());
        self.lag.set(i64::try_from(lag).unwrap_or(i64::MAX));
    }
}
