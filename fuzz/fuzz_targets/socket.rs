//! Any bytes as what a client sends on a websocket, in any pieces: the pieces do not matter, and a message
//! is never larger than the limit.
//!
//! The first byte is the size of the pieces. Run: `fuzz/run.sh socket 600`.
#![no_main]
use convoke::wire::socket::{Decoder, Incoming, Violation};
use libfuzzer_sys::fuzz_target;

const BYTES_MAX: usize = 200;

fn read(data: &[u8], piece: usize) -> (Vec<Incoming>, Option<Violation>) {
    let (mut decoder, mut got) = (Decoder::new(BYTES_MAX), Vec::new());
    for mut piece in data.chunks(piece) {
        loop {
            match decoder.next(&mut piece) {
                Ok(Some(incoming)) => got.push(incoming),
                Ok(None) => break assert!(piece.is_empty()),
                Err(violation) => return (got, Some(violation)),
            }
        }
    }
    (got, None)
}

fuzz_target!(|data: &[u8]| {
    let Some((&piece, rest)) = data.split_first() else { return };
    let (whole, in_pieces) = (read(rest, rest.len().max(1)), read(rest, usize::from(piece).max(1)));
    assert_eq!(whole, in_pieces);
    for incoming in whole.0 {
        match incoming {
            Incoming::Text(bytes) => assert!(bytes.len() <= BYTES_MAX && std::str::from_utf8(&bytes).is_ok()),
            Incoming::Binary(bytes) => assert!(bytes.len() <= BYTES_MAX),
            Incoming::Ping(bytes) => assert!(bytes.len() <= 125),
            Incoming::Pong | Incoming::Close(_) => {}
        }
    }
});
