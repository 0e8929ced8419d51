//! The part of the websocket protocol that benchmarks need: the handshake, broadcasts, and cutting a stream into frames.

/// Prefix of the benchmarks' topics.
pub(super) const TOPIC: &str = "bench";
const EVENT: &str = "tick";

/// The request that opens a websocket with serializer 2.0.0.
pub(super) fn handshake(key: &str) -> String {
    format!(
        "GET /socket/websocket?apikey={key}&vsn=2.0.0 HTTP/1.1\r\nhost: bench\r\nconnection: Upgrade\r\n\
         upgrade: websocket\r\nsec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    )
}

/// A frame from a client, masked with a key of zeros, which leaves the payload unchanged.
pub(super) fn masked(opcode: u8, payload: &[u8]) -> Vec<u8> {
    let mut out = masked_header(opcode, payload.len());
    out.extend_from_slice(payload);
    out
}

/// What comes before a payload of `size` bytes.
pub(super) fn masked_header(opcode: u8, size: usize) -> Vec<u8> {
    let mut out = header(opcode, size, 0x80);
    out.extend_from_slice(&[0; 4]);
    out
}

/// A frame from a server.
pub(super) fn unmasked(opcode: u8, payload: &[u8]) -> Vec<u8> {
    let mut out = header(opcode, payload.len(), 0);
    out.extend_from_slice(payload);
    out
}

fn header(opcode: u8, size: usize, mask: u8) -> Vec<u8> {
    let mut out = vec![0x80 | opcode];
    match u16::try_from(size) {
        Ok(size) if size < 126 => out.push(mask | u8::try_from(size).unwrap_or_default()),
        Ok(size) => {
            out.push(mask | 126);
            out.extend_from_slice(&size.to_be_bytes());
        }
        Err(_) => {
            out.push(mask | 127);
            out.extend_from_slice(&u64::try_from(size).unwrap_or_default().to_be_bytes());
        }
    }
    out
}

/// A broadcast from a client (kind 3 of serializer 2.0.0) with a JSON payload of `bytes` bytes that holds `number`.
pub(super) fn push(bytes: usize, number: u64) -> Vec<u8> {
    let topic = topic();
    let mut out = vec![3, 1, 1, size_of(&topic), size_of(EVENT), 0, 1, b'1', b'2'];
    out.extend_from_slice(topic.as_bytes());
    out.extend_from_slice(EVENT.as_bytes());
    let rest = bytes.saturating_sub(25);
    out.extend_from_slice(format!(r#"{{"n":"{number:010}","p":"{:x<rest$}"}}"#, "").as_bytes());
    masked(2, &out)
}

/// A broadcast to a subscriber (kind 4).
pub(super) fn relayed(payload: &[u8]) -> Vec<u8> {
    let topic = topic();
    let mut out = vec![4, size_of(&topic), size_of(EVENT), 0, 1];
    out.extend_from_slice(topic.as_bytes());
    out.extend_from_slice(EVENT.as_bytes());
    out.extend_from_slice(payload);
    out
}

fn topic() -> String {
    format!("realtime:{TOPIC}-0")
}

fn size_of(text: &str) -> u8 {
    u8::try_from(text.len()).unwrap_or_default()
}

/// Cuts a stream into frames by their headers, masked or not.
#[derive(Default)]
pub(super) struct Frames {
    rest: Vec<u8>,
}

impl Frames {
    /// Calls `each` with every complete frame, including its header. Keeps the rest for the next call.
    pub(super) fn feed(&mut self, bytes: &[u8], mut each: impl FnMut(&[u8])) {
        if self.rest.is_empty() {
            let used = cut(bytes, &mut each);
            self.rest.extend_from_slice(bytes.get(used..).unwrap_or_default());
        } else {
            self.rest.extend_from_slice(bytes);
            let used = cut(&self.rest, &mut each);
            self.rest.drain(..used);
        }
        if self.rest.is_empty() {
            // Frees the buffer: thousands of idle readers would otherwise keep one each.
            self.rest = Vec::new();
        }
    }
}

fn cut(bytes: &[u8], each: &mut impl FnMut(&[u8])) -> usize {
    let mut at = 0;
    while let Some(rest) = bytes.get(at..)
        && let Some(frame) = size(rest).and_then(|size| rest.get(..size))
    {
        each(frame);
        at += frame.len();
    }
    at
}

/// The size of the frame at the start; `None` if its header is not complete yet.
fn size(bytes: &[u8]) -> Option<usize> {
    let (header, payload) = sizes(bytes)?;
    Some(header + payload)
}

/// The payload of a frame that is not masked. Empty if there is no whole header.
pub(super) fn payload(frame: &[u8]) -> &[u8] {
    sizes(frame).and_then(|(header, _)| frame.get(header..)).unwrap_or_default()
}

/// The bytes of the header, with its mask, and of the payload behind it.
fn sizes(bytes: &[u8]) -> Option<(usize, usize)> {
    let second = *bytes.get(1)?;
    let mask = if second & 0x80 == 0 { 0 } else { 4 };
    let (header, payload) = match second & 0x7f {
        126 => (4, u16::from_be_bytes(bytes.get(2..4)?.try_into().ok()?).into()),
        127 => (10, usize::try_from(u64::from_be_bytes(bytes.get(2..10)?.try_into().ok()?)).ok()?),
        size => (2, size.into()),
    };
    Some((header + mask, payload))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_are_cut_at_any_read_boundary() {
        let stream = [masked(1, b"x"), unmasked(2, &[7; 300]), push(128, 42), unmasked(2, &[])].concat();
        for size in 1..stream.len() {
            let (mut frames, mut sizes) = (Frames::default(), Vec::new());
            stream.chunks(size).for_each(|part| frames.feed(part, |frame| sizes.push(frame.len())));
            assert_eq!(sizes, [7, 304, 8 + 9 + 16 + 4 + 128, 2], "in parts of {size}");
        }
    }

    #[test]
    fn payload_begins_behind_a_header_of_any_length_and_bytes() {
        // A length can have the byte of a bracket: 91 is 0x5b.
        for length in [0, 5, 91, 125, 126, 347, 0x5b00, 0x5b5b, 0x1_005b] {
            let text = vec![b'['; length];
            assert_eq!(payload(&unmasked(1, &text)), text, "{length}");
        }
        assert_eq!(payload(&[0x81]), b"");
    }

    #[test]
    fn payload_is_json_of_the_given_size() {
        let frame = push(128, 7);
        let payload = &frame[frame.len() - 128..];
        let value: serde_json::Value = serde_json::from_slice(payload).unwrap();
        assert_eq!(value["n"], "0000000007");
    }
}
