//! Metrics of row checks.
use super::types::Failure;
use crate::telemetry::{ReasonCounter, Registry};
use prometheus_client::metrics::{counter::Counter, histogram::Histogram};

/// Upper bounds of the duration of a check, in seconds.
const SECONDS: [f64; 9] = [0.001, 0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0];

#[derive(Debug)]
pub(super) struct Metrics {
    /// Pairs of a row and a viewer that Postgres evaluated.
    pub(super) asked: Counter,
    /// Pairs of a row and a viewer whose outcome was cached.
    pub(super) remembered: Counter,
    /// Duration of a call that needed Postgres.
    pub(super) seconds: Histogram,
    failures: ReasonCounter,
}

impl Metrics {
    pub(super) fn register(registry: &Registry) -> Self {
        let help = "Checks that failed and hid their rows from one viewer";
        let seconds = Histogram::new(SECONDS);
        Self {
            asked: registry.counter("row_checks", "Rows that Postgres was asked about, for one viewer each"),
            remembered: registry
                .counter("row_checks_remembered", "Rows whose outcome for a viewer was remembered"),
            seconds: registry.add("row_check_seconds", "How long rows waited for Postgres", seconds),
            failures: registry.reason_counter("row_check_failures", help),
        }
    }

    pub(super) fn failed(&self, failure: Failure) {
        self.failures.inc(match failure {
            Failure::UnknownRole => "unknown_role",
            Failure::RoleRefused => "role_refused",
            Failure::Policy => "policy",
            Failure::Slow => "slow",
            Failure::Column => "column",
        });
    }
}
