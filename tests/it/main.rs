//! The one integration binary: real PostgreSQL, real clients, the real daemon.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, unreachable_pub)]
#![allow(clippy::disallowed_methods, reason = "Row::get; architecture.rs watches over the others")]
mod agent;
mod api;
mod architecture;
mod changes;
mod chaos;
mod cli;
mod client;
mod config;
mod conformance;
mod daemon;
mod db;
mod filter;
mod hostile;
mod keys;
mod messages;
mod realtime;
mod remote;
mod resume;
mod support;
mod task;
mod testing;
mod think;
mod wal;
