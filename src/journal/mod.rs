//! Append-only files for data that must survive a kill of the daemon: a [`Log`] of numbered records
//! in segments, and a [`KeyValueLog`] of small values by key.
//!
//! Neither interprets its payloads. Each record is written with a checksum. A record that a kill cut
//! off at the end is dropped when the files are opened again; callers acknowledge a record only after
//! it is written. Damage elsewhere, a crash of the machine before a sync, and writes that failed make
//! [`Opened::whole`] false. Old segments are deleted by age and bytes. All calls block: callers use a
//! thread that may block.
//! have a thread for them.
mod error;
mod key_value_log;
mod log;
mod record;
mod segment;
mod shutdown_marker;

pub use error::Error;
pub use key_value_log::{KEY_BYTES, Key, KeyValueLog};
pub use log::{Log, LogLimits, Opened, Record, RecordLocation};
pub use segment::SegmentReader;
pub use shutdown_marker::ShutdownMarker;
