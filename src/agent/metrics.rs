//! The metrics of the agents.
use crate::telemetry::Registry;
use prometheus_client::{
    encoding::{EncodeLabelSet, EncodeLabelValue, LabelValueEncoder},
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram},
};

/// The metrics of one daemon's agents. Clones share them.
#[derive(Clone, Debug)]
pub struct Metrics {
    /// Row changes that passed a wake's filter.
    pub wakes: Counter,
    /// Row changes that made no task because a filter or template does not fit.
    pub wakes_unfit: Counter,
    /// Running actors.
    pub actors: Gauge,
    /// Running jobs.
    pub jobs: Gauge,
    /// Ended jobs, by kind and outcome.
    pub jobs_ended: Family<Ended, Counter>,
    /// Jobs that reported a failure.
    pub jobs_failed: Counter,
    /// Seconds from the award's arrival to the start.
    pub start_seconds: Histogram,
    /// Seconds from the start to the end of the work.
    pub run_seconds: Histogram,
    /// Model tokens.
    pub tokens: Counter,
    /// Money spent, in microdollars.
    pub microdollars: Counter,
    /// Messages to hosted agents.
    pub messages: Counter,
    /// Messages that were dropped because the mailbox was full.
    pub messages_dropped: Counter,
}

/// The labels of a job that ended.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Ended {
    /// `llm`, `command`, `http`, `rust`.
    pub kind: &'static str,
    /// How it ended.
    pub outcome: JobOutcome,
}

/// How a job ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum JobOutcome {
    /// Its result is stored.
    Finished,
    /// It asked a question.
    Waiting,
    /// It reported a failure.
    Failed,
    /// It took longer than its limit.
    Timeout,
    /// The task was canceled.
    Canceled,
    /// The daemon stopped.
    Released,
    /// The assignment ended before the job.
    Fenced,
    /// The agent's limit for an hour was used up at the award.
    Refused,
    /// The budget has no room for its next step.
    Unpaid,
    /// The award was over before it could be accepted, or the outcome could not be delivered.
    Lost,
    /// A trigger or a constraint of the database refused the result.
    RefusedByDatabase,
}

impl JobOutcome {
    /// The value of the label `outcome`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Finished => "finished",
            Self::Waiting => "waiting",
            Self::Failed => "failed",
            Self::Timeout => "timeout",
            Self::Canceled => "canceled",
            Self::Released => "released",
            Self::Fenced => "fenced",
            Self::Refused => "refused",
            Self::Unpaid => "unpaid",
            Self::Lost => "lost",
            Self::RefusedByDatabase => "refused_by_database",
        }
    }
}

impl EncodeLabelValue for JobOutcome {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> std::fmt::Result {
        self.as_str().encode(encoder)
    }
}

/// Upper bounds of the times of jobs, in seconds.
const SECONDS: [f64; 12] = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.1, 0.5, 1.0, 5.0, 30.0, 120.0, 600.0];

impl Default for Metrics {
    /// Metrics that no registry shows.
    fn default() -> Self {
        Self::registered(&Registry::default())
    }
}

impl Metrics {
    /// Metrics that are registered with `registry`.
    #[must_use]
    pub fn registered(registry: &Registry) -> Self {
        let (counter, gauge) = (|n, h| registry.counter(n, h), |n, h| registry.gauge(n, h));
        let seconds = |name, help| registry.add(name, help, Histogram::new(SECONDS));
        Self {
            wakes: counter("agent_wakes", "Row changes that passed a wake's filter"),
            wakes_unfit: counter(
                "agent_wakes_unfit",
                "Row changes that no task could be made of, because a filter or template does not fit",
            ),
            actors: gauge("agent_actors", "Agents that are awake"),
            jobs: gauge("agent_jobs", "Jobs under way"),
            jobs_ended: registry.add(
                "agent_jobs_ended",
                "Jobs that ended, by kind and how",
                Family::default(),
            ),
            jobs_failed: counter("agent_jobs_failed", "Jobs that reported a failure"),
            start_seconds: seconds(
                "agent_start_seconds",
                "Seconds from an award's arrival to the start of the work",
            ),
            run_seconds: seconds("agent_run_seconds", "Seconds of work"),
            tokens: counter("agent_tokens", "Model tokens used"),
            microdollars: counter("agent_microdollars", "Money spent, in microdollars"),
            messages: counter("agent_messages", "Messages that hosted agents got"),
            messages_dropped: counter(
                "agent_messages_dropped",
                "Messages for hosted agents that found the mailbox full",
            ),
        }
    }
}
