//! Any bytes as a streamed chat completion: every split gives the same result, and what is taken is a completion.
//!
//! The first byte chooses the split. Run: `fuzz/run.sh completion 600`.
#![no_main]
use convoke::llm::StreamDecoder;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Some((&size, bytes)) = data.split_first() else { return };
    let fed = |pieces: &mut dyn Iterator<Item = &[u8]>| {
        let mut decoder = StreamDecoder::default();
        for piece in pieces {
            decoder.feed(piece)?;
        }
        decoder.end()
    };
    let whole = fed(&mut std::iter::once(bytes));
    assert_eq!(fed(&mut bytes.chunks(usize::from(size).max(1))), whole);
    let Ok(completion) = whole else { return };
    assert!(completion["choices"][0]["message"].is_object());
});
