//! Row changes for clients: who sees which row.
mod clients;
mod differential;
mod faults;
mod listener;
mod resume;
mod rows;
mod sight;
pub mod watch;
