//! What row checks count.
use super::types::Failure;
use crate::telemetry::Registry;
use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, histogram::Histogram},
};

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct Reason {
    reason: &'static str,
}

#[derive(Debug)]
pub(super) struct Metrics {
    /// Rows asked about, for one viewer each.
    pub(super) asked: Counter,
    /// Outcomes that were remembered.
    pub(super) remembered: Counter,
    /// Time of a call that had to ask.
    pub(super) seconds: Histogram,
    failures: Family<Reason, Counter>,
}

impl Metrics {
    pub(super) fn register(registry: &Registry) -> Self {
        let metrics = Self {
            asked: Counter::default(),
            remembered: Counter::default(),
            seconds: Histogram::new([0.001, 0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0]),
            failures: Family::default(),
        };
        registry.register(
            "row_checks",
            "Rows that Postgres was asked about, for one viewer each",
            metrics.asked.clone(),
        );
        registry.register(
            "row_checks_remembered",
            "Rows whose outcome for a viewer was remembered",
            metrics.remembered.clone(),
        );
        registry.register("row_check_seconds", "How long rows waited for Postgres", metrics.seconds.clone());
        registry.register(
            "row_check_failures",
            "Checks that failed and hid their rows from one viewer",
            metrics.failures.clone(),
        );
        metrics
    }

    pub(super) fn failed(&self, failure: Failure) {
        let reason = match failure {
            Failure::UnknownRole => "unknown_role",
            Failure::RoleRefused => "role_refused",
            Failure::Policy => "policy",
            Failure::Slow => "slow",
            Failure::Column => "column",
        };
        self.failures.get_or_create(&Reason { reason }).inc();
    }
}
