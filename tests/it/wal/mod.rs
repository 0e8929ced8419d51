//! The write-ahead log, read from a real server.
mod changes;
mod faults;
mod rig;
mod slots;
mod transactions;
