//! Tasks from row changes and clocks: wakes, coalesced bursts and schedules.
pub(in crate::task) mod coalesce;
pub(in crate::task) mod schedules;
pub(in crate::task) mod task_triggers;
pub(in crate::task) mod wake;
