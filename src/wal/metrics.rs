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
    /// 1 while this daemon streams.
    pub leading: Gauge,
}

impl Metrics {
    /// New counters, shown by `registry` as `convoke_wal_…`.
    #[must_use]
    pub fn register(registry: &Registry) -> Self {
        let new = Self::default();
        let add = |name, help, gauge: &Gauge| registry.register(name, help, gauge.clone());
        add("wal_lag_bytes", "Log that the slot has not confirmed yet", &new.lag_bytes);
        add("wal_retained_bytes", "Log that the server keeps because of the slot", &new.retained_bytes);
        add("wal_leading", "1 while this daemon streams the log", &new.leading);
        let add = |name, help, counter: &Counter| registry.register(name, help, counter.clone());
        add("wal_transactions", "Transactions handed over", &new.transactions);
        add("wal_changes", "Changes handed over", &new.changes);
        add("wal_reconnects", "Replication connections lost while streaming", &new.reconnects);
        add("wal_spilled_bytes", "Bytes of big transactions written to disk", &new.spilled_bytes);
        add("wal_gaps", "Times that the slot was lost and changes with it", &new.gaps);
        new
    }
}
