//! The encoding of a record: size, checksum, number, payload. Pure.
use bytes::{BufMut, BytesMut};

/// Size of the body and its CRC-32, both little-endian, before the body. The body starts with the number.
pub(super) const HEADER_BYTES: usize = 8;
pub(super) const NUMBER_BYTES: usize = 8;
/// The largest body. A larger size in a header is treated as damage.
pub(super) const BODY_BYTES_MAX: usize = 64 << 20;

/// Appends a record; `payload` appends its own bytes.
pub(super) fn put(out: &mut BytesMut, number: u64, payload: impl FnOnce(&mut BytesMut)) {
    let start = out.len();
    out.put_bytes(0, HEADER_BYTES);
    out.put_u64_le(number);
    payload(out);
    let (header, body) = out.split_at_mut(start).1.split_at_mut(HEADER_BYTES);
    let (size, sum) = header.split_at_mut(4);
    // The caller refuses bodies over BODY_BYTES_MAX, so the conversion cannot fail.
    size.copy_from_slice(&u32::try_from(body.len()).unwrap_or(u32::MAX).to_le_bytes());
    sum.copy_from_slice(&crc32fast::hash(body).to_le_bytes());
}

/// The first record of some bytes.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Parsed<'a> {
    /// A whole record of `size` bytes.
    Record { number: u64, payload: &'a [u8], size: usize },
    /// The start of a record that continues beyond the bytes.
    Cut,
    /// Bytes that are not a valid record.
    Damaged,
}

/// Reads the first record of `bytes`; `None` if `bytes` is empty.
pub(super) fn first(bytes: &[u8]) -> Option<Parsed<'_>> {
    if bytes.is_empty() {
        return None;
    }
    let Some((header, rest)) = bytes.split_at_checked(HEADER_BYTES) else { return Some(Parsed::Cut) };
    let word = |at: usize| {
        let bytes = header.get(at..at + 4).and_then(|b| b.try_into().ok()).unwrap_or_default();
        u32::from_le_bytes(bytes)
    };
    let size = word(0) as usize;
    if !(NUMBER_BYTES..=BODY_BYTES_MAX).contains(&size) {
        return Some(Parsed::Damaged);
    }
    let Some(body) = rest.get(..size) else { return Some(Parsed::Cut) };
    if crc32fast::hash(body) != word(4) {
        return Some(Parsed::Damaged);
    }
    let (number, payload) = body.split_at(NUMBER_BYTES);
    let number = u64::from_le_bytes(number.try_into().unwrap_or_default());
    Some(Parsed::Record { number, payload, size: HEADER_BYTES + size })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn every_prefix_of_a_record_parses_as_cut() {
        let mut out = BytesMut::new();
        put(&mut out, 7, |out| out.put_slice(b"hello"));
        assert_eq!(first(&out), Some(Parsed::Record { number: 7, payload: b"hello", size: out.len() }));
        for end in 1..out.len() {
            assert_eq!(first(&out[..end]), Some(Parsed::Cut), "cut at {end}");
        }
    }

    proptest! {
        #[test]
        fn changed_byte_never_parses_as_a_record(at in 0usize..21, to: u8) {
            let mut out = BytesMut::new();
            put(&mut out, 7, |out| out.put_slice(b"hello"));
            prop_assume!(out[at] != to);
            out[at] = to;
            let found = first(&out);
            let is_record = matches!(found, Some(Parsed::Record { .. }));
            prop_assert!(!is_record);
        }

        #[test]
        fn parsing_arbitrary_bytes_never_panics(bytes: Vec<u8>) {
            let _ = first(&bytes);
        }
    }
}
