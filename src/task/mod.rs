//! The negotiation: a durable Contract Net with confirmation (`reference/negotiation.md`).
pub mod machine;
mod types;
pub use types::*;

/// Largest input of a task, in bytes of JSON.
pub const INPUT_BYTES_MAX: usize = 1 << 20;
