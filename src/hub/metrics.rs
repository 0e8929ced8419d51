//! What the hub counts.
use crate::telemetry::Registry;
use prometheus_client::metrics::counter::Counter;

pub(super) struct Metrics {
    pub(super) published: Counter,
    pub(super) delivered: Counter,
    pub(super) bytes: Counter,
    /// Those of `delivered` that were about presence.
    pub(super) presence: Counter,
    pub(super) slow: Counter,
    pub(super) local_dropped: Counter,
}

impl Metrics {
    pub(super) fn register(registry: &Registry) -> Self {
        let counter = |name: &str, help: &str| {
            let counter = Counter::default();
            registry.register(name, help, counter.clone());
            counter
        };
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
