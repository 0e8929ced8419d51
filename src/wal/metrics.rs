//! What the module counts.
use crate::telemetry::Registry;
use prometheus_client::metrics::{counter::Counter, gauge::Gauge};

/// The counters of one stream. Clones count together.
#[derive(Clone, Debug, Default)]
pub struct Metrics {
    /// How far the slot's confirmed position is behind the server.
    pub lag_bytes: Gauge,
    /// How much log the server keeps because of the slot.
    pub retained_bytes: Gauge,
    /// Transactions handed over whole.
    pub transactions: Counter,
    /// Changes handed over.
    pub changes: Counter,
    /// Connections lost while streaming.
    pub reconnects: Counter,
    /// Bytes of big transactions written to disk.
    pub spilled_bytes: Counter,
    /// Times that changes were lost.
    pub gaps: Counter,
    /// Values of row changes that are not valid text.
    pub undecodable: Counter,
    /// 1 while this daemon streams.
    pub leading: Gauge,
}

impl Metrics {
    /// New counters, shown by `registry` as `convoke_wal_…`.
    #[must_use]
    pub fn register(registry: &Registry) -> Self {
        let (counter, gauge) = (|n, h| registry.counter(n, h), |n, h| registry.gauge(n, h));
        Self {
            lag_bytes: gauge("wal_lag_bytes", "Log that the slot has not confirmed yet"),
            retained_bytes: gauge("wal_retained_bytes", "Log that the server keeps because of the slot"),
            leading: gauge("wal_leading", "1 while this daemon streams the WAL"),
            transactions: counter("wal_transactions", "Transactions handed over"),
            changes: counter("wal_changes", "Changes handed over"),
            reconnects: counter("wal_reconnects", "Replication connections lost while streaming"),
            spilled_bytes: counter("wal_spilled_bytes", "Bytes of big transactions written to disk"),
            undecodable: counter("wal_undecodable", "Values of row changes that are not valid UTF-8"),
            gaps: counter("wal_gaps", "Times that the slot was lost and changes with it"),
        }
    }
}
