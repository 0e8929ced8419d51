//! Any bytes as what a server says to a client in each of its states: nothing is believed that was not asked for.
//!
//! Run: `fuzz/run.sh client 600`.
#![no_main]
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| convoke::client::fuzz(data));
