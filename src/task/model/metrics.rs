//! Metrics of the task store.
use crate::telemetry::{ReasonCounter, Registry};
use prometheus_client::metrics::counter::Counter;

/// Metrics of the task store.
#[derive(Clone, Debug, Default)]
pub struct Metrics {
    pub(in crate::task) requested: Counter,
    pub(in crate::task) awarded: Counter,
    pub(in crate::task) ended: Counter,
    pub(in crate::task) notices_dropped: Counter,
    pub(in crate::task) unreadable: Counter,
    pub(in crate::task) panics: Counter,
    /// Failed tasks. The reasons are those of `docs/spec/negotiation.md` §3.
    pub(in crate::task) failed: ReasonCounter,
    pub(in crate::task) commands_failed: Counter,
    pub(in crate::task) results_refused: Counter,
    pub(in crate::task) wakes_refused: Counter,
}

impl Metrics {
    /// The metrics, registered.
    #[must_use]
    pub fn register(registry: &Registry) -> Self {
        let counter = |name, help| registry.counter(name, help);
        Self {
            requested: counter("tasks_requested", "Tasks requested on this node"),
            awarded: counter("tasks_awarded", "Awards made on this node"),
            ended: counter("task_assignments_ended", "Assignments that ended, in any way"),
            notices_dropped: counter(
                "task_notices_dropped",
                "Hints not delivered because their queue was full",
            ),
            unreadable: counter("tasks_unreadable", "Tasks that ended because their rows cannot be read"),
            panics: counter(
                "task_panics",
                "Panics in the task store, each of which ended or refused one task",
            ),
            failed: registry.reason_counter("tasks_failed", "Tasks given up on this node, by reason"),
            commands_failed: counter(
                "task_commands_failed",
                "Commands that failed because of an internal error",
            ),
            results_refused: counter(
                "task_results_refused",
                "Results that a trigger or constraint of the database refused",
            ),
            wakes_refused: counter(
                "task_wakes_refused",
                "Row changes whose request could not be made, as a task or as part of one",
            ),
        }
    }
}
