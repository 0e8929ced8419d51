//! Any bytes as a stream of `pgoutput` messages: errors are fine, panics and hangs are not.
//!
//! The first byte says how little memory there is before transactions go to
//! disk; then come messages, each after its length in one byte, or in three
//! when the first is 255. Run: `fuzz/run.sh pgoutput 600`.
#![no_main]
use bytes::Bytes;
use convoke::{
    id::Lsn,
    wal::{Change, Metrics, assembler::Assembler},
};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Some((&memory, mut rest)) = data.split_first() else { return };
    let spill_dir = std::env::temp_dir().join(format!("convoke-fuzz-{}", std::process::id()));
    // Most runs never touch the disk, or they would be slow.
    let memory_bytes_max = if memory < 8 { usize::from(memory) * 16 } else { usize::MAX };
    let spilled_bytes = Metrics::default().spilled_bytes;
    let mut assembler = Assembler::new(Lsn(0), memory_bytes_max, spill_dir, "fuzz", spilled_bytes);
    while let Some(message) = next(&mut rest) {
        if assembler.push(message).is_err() {
            return;
        }
        loop {
            match assembler.pop() {
                Ok(Some(batch)) => batch.changes.iter().for_each(look_at),
                Ok(None) => break,
                Err(_) => return,
            }
        }
    }
});

fn next(rest: &mut &[u8]) -> Option<Bytes> {
    let (&first, tail) = rest.split_first()?;
    let (length, tail) = match (first, tail) {
        (255, [high, low, tail @ ..]) => (usize::from(u16::from_be_bytes([*high, *low])), tail),
        _ => (usize::from(first), tail),
    };
    let (message, tail) = tail.split_at_checked(length)?;
    *rest = tail;
    Some(Bytes::copy_from_slice(message))
}

fn look_at(change: &Change) {
    if let Change::Row(row) = change {
        let (mut new, mut old) = (Vec::new(), Vec::new());
        row.write_new_json(&mut new);
        row.write_old_json(&mut old);
        for json in [new, old] {
            // By its grammar: a column of JSON may hold numbers that are too big for a double.
            serde_json::from_slice::<serde::de::IgnoredAny>(&json).unwrap();
        }
        let _ = (row.new_json(), row.old_json());
    }
}
