//! Any frames and answers in any state of a channel: it never panics, and what it asks for keeps its order.
//!
//! Run: `fuzz/run.sh channel 600`.
#![no_main]
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| convoke::gateway::fuzz_channel(data));
