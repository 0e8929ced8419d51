//! What the agents count.
use crate::telemetry::Registry;
use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram},
};

/// The counters of one daemon's agents. Clones count together.
#[derive(Clone, Debug)]
pub struct Metrics {
    /// Row changes that passed a wake's filter.
    pub wakes: Counter,
    /// Row changes that no task could be made of: a filter or template that does not fit.
    pub wakes_unfit: Counter,
    /// Actors that are alive.
    pub actors: Gauge,
    /// Jobs under way.
    pub jobs: Gauge,
    /// Jobs that ended, by how.
    pub jobs_ended: Family<Ended, Counter>,
    /// Seconds from the award's arrival to the start.
    pub start_seconds: Histogram,
    /// Seconds of work.
    pub run_seconds: Histogram,
    /// Model tokens.
    pub tokens: Counter,
    /// Money spent, in microdollars.
    pub microdollars: Counter,
    /// Messages from other agents and people that hosted agents got.
    pub messages: Counter,
    /// Those that found the mailbox full.
    pub messages_dropped: Counter,
}

/// How a job ended.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Ended {
    /// `llm`, `command`, `http`, `rust`.
    pub kind: &'static str,
    /// `finished`, `failed`, `timeout`, `canceled`, `released`, `fenced`, `refused`, `unpaid`, `lost`.
    pub outcome: &'static str,
}

impl Default for Metrics {
    fn default() -> Self {
        let seconds =
            || Histogram::new([0.001, 0.0025, 0.005, 0.01, 0.025, 0.1, 0.5, 1.0, 5.0, 30.0, 120.0, 600.0]);
        Self {
            wakes: Counter::default(),
            wakes_unfit: Counter::default(),
            actors: Gauge::default(),
            jobs: Gauge::default(),
            jobs_ended: Family::default(),
            start_seconds: seconds(),
            run_seconds: seconds(),
            tokens: Counter::default(),
            microdollars: Counter::default(),
            messages: Counter::default(),
            messages_dropped: Counter::default(),
        }
    }
}

impl Metrics {
    /// Counters that `registry` shows.
    #[must_use]
    pub fn registered(registry: &Registry) -> Self {
        let metrics = Self::default();
        registry.register("agent_wakes", "Row changes that passed a wake's filter", metrics.wakes.clone());
        let help = "Row changes that no task could be made of, because a filter or template does not fit";
        registry.register("agent_wakes_unfit", help, metrics.wakes_unfit.clone());
        registry.register("agent_actors", "Agents that are awake", metrics.actors.clone());
        registry.register("agent_jobs", "Jobs under way", metrics.jobs.clone());
        registry.register("agent_jobs_ended", "Jobs that ended, by kind and how", metrics.jobs_ended.clone());
        let help = "Seconds from an award's arrival to the start of the work";
        registry.register("agent_start_seconds", help, metrics.start_seconds.clone());
        registry.register("agent_run_seconds", "Seconds of work", metrics.run_seconds.clone());
        registry.register("agent_tokens", "Model tokens used", metrics.tokens.clone());
        registry.register("agent_microdollars", "Money spent, in microdollars", metrics.microdollars.clone());
        registry.register("agent_messages", "Messages that hosted agents got", metrics.messages.clone());
        let help = "Messages for hosted agents that found the mailbox full";
        registry.register("agent_messages_dropped", help, metrics.messages_dropped.clone());
        metrics
    }
}
