//! Commands to tasks: requests, accepts, endings, waits, answers and budgets, committed in groups.
pub(in crate::task) mod after_commit;
pub(in crate::task) mod batch;
pub(in crate::task) mod budgets;
pub(in crate::task) mod bulk;
pub(in crate::task) mod command;
pub(in crate::task) mod command_executor;
pub(in crate::task) mod decide;
pub(in crate::task) mod dependencies;
pub(in crate::task) mod dependents;
pub(in crate::task) mod effect;
pub(in crate::task) mod group_commit;
pub(in crate::task) mod leases;
pub(in crate::task) mod questions;
pub(in crate::task) mod request;
pub(in crate::task) mod starts;
pub(in crate::task) mod task_commands;
pub(in crate::task) mod transition;
