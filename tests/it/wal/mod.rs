//! The write-ahead log, read from a real server.
mod changes;
mod encodings;
mod faults;
mod publications;
mod restored;
mod rig;
mod slots;
mod transactions;
