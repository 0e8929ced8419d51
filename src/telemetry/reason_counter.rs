//! A counter with the label `reason`.
use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family},
};
use std::borrow::Cow;

/// Counts events by reason. Clones count together. The reasons must be few: each is a time series.
#[derive(Clone, Debug, Default)]
pub struct ReasonCounter(Family<Labels, Counter>);

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct Labels {
    reason: Cow<'static, str>,
}

impl ReasonCounter {
    /// Counts an event with this reason.
    pub fn inc(&self, reason: impl Into<Cow<'static, str>>) {
        self.0.get_or_create(&Labels { reason: reason.into() }).inc();
    }

    pub(super) fn family(&self) -> Family<Labels, Counter> {
        self.0.clone()
    }
}

#[cfg(test)]
mod tests {
    use crate::telemetry::Registry;

    #[test]
    fn each_reason_is_a_series() {
        let registry = Registry::default();
        let counter = registry.reason_counter("failures", "Failures");
        counter.inc("slow");
        counter.inc("slow");
        counter.inc(String::from("policy"));
        let text = registry.encode().unwrap();
        assert!(text.contains("convoke_failures_total{reason=\"slow\"} 2\n"), "{text}");
        assert!(text.contains("convoke_failures_total{reason=\"policy\"} 1\n"), "{text}");
    }
}
