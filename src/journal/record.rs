//! A record as bytes: size, checksum, number, payload. Pure.
use bytes::{BufMut, BytesMut};

/// Size of the body and checksum over it, before the body; the body begins with the number.
pub(super) const HEADER_BYTES: usize = 8;
pub(super) const NUMBER_BYTES: usize = 8;
/// No record is larger; a size beyond it is damage.
pub(super) const BODY_BYTES_MAX: usize = 64 << 20;

/// Appends a record; `payload` writes itself.
pub(super) fn put(out: &mut BytesMut, number: u64, payload: impl FnOnce(&mut BytesMut)) {
    let start = out.len();
    out.put_bytes(0, HEADER_BYTES);
    out.put_u64_le(number);
    payload(out);
    let (header, body) = out.split_at_mut(start).1.split_at_mut(HEADER_BYTES);
    let (size, sum) = header.split_at_mut(4);
    // Larger than BODY_BYTES_MAX is refused by the caller, so it always fits.
    size.copy_from_slice(&u32::try_from(body.len()).unwrap_or(u32::MAX).to_le_bytes());
    sum.copy_from_slice(&crc32fast::hash(body).to_le_bytes());
}

/// What stands at the beginning of some bytes.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Found<'a> {
    /// A whole record of `size` bytes.
    Record { number: u64, payload: &'a [u8], size: usize },
    /// The beginning of a record that goes beyond the bytes.
    Cut,
    /// No record.
    Damaged,
}

/// Reads the first record of `bytes`; nothing when there are no bytes.
pub(super) fn first(bytes: &[u8]) -> Option<Found<'_>> {
    if bytes.is_empty() {
        return None;
    }
    let Some((header, rest)) = bytes.split_at_checked(HEADER_BYTES) else { return Some(Found::Cut) };
    let word = |at: usize| {
        let bytes = header.get(at..at + 4).and_then(|b| b.try_into().ok()).unwrap_or_default();
        u32::from_le_bytes(bytes)
    };
    let size = word(0) as usize;
    if !(NUMBER_BYTES..=BODY_BYTES_MAX).contains(&size) {
        return Some(Found::Damaged);
    }
    let Some(body) = rest.get(..size) else { return Some(Found::Cut) };
    if crc32fast::hash(body) != word(4) {
        return Some(Found::Damaged);
    }
    let (number, payload) = body.split_at(NUMBER_BYTES);
    let number = u64::from_le_bytes(number.try_into().unwrap_or_default());
    Some(Found::Record { number, payload, size: HEADER_BYTES + size })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn every_cut_of_a_record_is_seen_as_one() {
        let mut out = BytesMut::new();
        put(&mut out, 7, |out| out.put_slice(b"hello"));
        assert_eq!(first(&out), Some(Found::Record { number: 7, payload: b"hello", size: out.len() }));
        for end in 1..out.len() {
            assert_eq!(first(&out[..end]), Some(Found::Cut), "cut at {end}");
        }
    }

    proptest! {
        #[test]
        fn a_changed_byte_is_never_a_record(at in 0usize..21, to: u8) {
            let mut out = BytesMut::new();
            put(&mut out, 7, |out| out.put_slice(b"hello"));
            prop_assume!(out[at] != to);
            out[at] = to;
            let found = first(&out);
            let is_record = matches!(found, Some(Found::Record { .. }));
            prop_assert!(!is_record);
        }

        #[test]
        fn reading_anything_never_panics(bytes: Vec<u8>) {
            let _ = first(&bytes);
        }
    }
}
