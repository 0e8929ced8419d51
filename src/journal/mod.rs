//! Files that are only ever appended to, for what must outlive a killed daemon: a [`Log`] of
//! numbered records in segments, and a [`Table`] of small values by key.
//!
//! Both know nothing of what they keep. A record is written whole with a checksum; what a kill
//! cut off at the end is dropped when the files are opened again, and nobody was told of it
//! before it was written. Damage elsewhere, a machine that went down before its writes were
//! safe, and a time in which the disk took nothing are found out and told as [`Opened::whole`]
//! being false, never papered over. Old segments go by age and bytes. All calls block: callers
//! have a thread for them.
mod error;
mod log;
mod mark;
mod record;
mod segment;
mod table;

pub use error::Error;
pub use log::{Limits, Log, Opened, Place, Record};
pub use mark::Mark;
pub use segment::Reader;
pub use table::{KEY_BYTES, Key, Table};
