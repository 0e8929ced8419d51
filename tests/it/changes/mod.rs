//! Row changes for clients: who sees which row.
mod clients;
mod differential;
mod faults;
mod hostile;
mod hostile_policies;
mod listener;
mod restored;
mod resume;
mod rights;
mod rows;
mod sight;
mod storm;
pub mod watch;
