//! Upkeep: registrations of agents, rows that cannot be read, and the removal of old tasks.
pub(in crate::task) mod catch_panic;
pub(in crate::task) mod definitions;
pub(in crate::task) mod one_by_one;
pub(in crate::task) mod register;
pub(in crate::task) mod retention;
pub(in crate::task) mod unreadable;
