//! The metrics of the hub.
use crate::telemetry::Registry;
use prometheus_client::metrics::counter::Counter;

pub(super) struct Metrics {
    pub(super) published: Counter,
    pub(super) delivered: Counter,
    pub(super) bytes: Counter,
    /// The part of `delivered` that is presence differences.
    pub(super) presence: Counter,
    pub(super) slow: Counter,
    pub(super) local_dropped: Counter,
}

impl Metrics {
    pub(super) fn register(registry: &Registry) -> Self {
        let counter = |name, help| registry.counter(name, help);
        Self {
            published: counter("hub_messages", "Messages published to rooms"),
            delivered: counter("hub_deliveries", "Messages put into outboxes"),
            bytes: counter("hub_delivered_bytes", "Bytes put into outboxes"),
            presence: counter("hub_presence_deliveries", "Differences of presence put into outboxes"),
            slow: counter("hub_slow_disconnects", "Connections closed because they did not read"),
            local_dropped: counter(
                "hub_listener_drops",
                "Messages that a full listener in the daemon missed",
            ),
        }
    }
}
