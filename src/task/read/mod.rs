//! The reading side: lists, explanations, the replay of the event log, and the invariants that hold in every commit.
pub(in crate::task) mod activity;
pub(in crate::task) mod agent_lines;
pub(in crate::task) mod explain;
pub(in crate::task) mod feed;
pub(in crate::task) mod invariants;
pub(in crate::task) mod lines;
pub(in crate::task) mod query;
pub(in crate::task) mod replay;
pub(in crate::task) mod task_reader;
pub(in crate::task) mod traces;
pub(in crate::task) mod waits_for;
