//! Websocket frames (RFC 6455): encoded with their header once, and decoded from
//! pieces of any size.
//!
//! Pure. The [`Decoder`] keeps no raw bytes: it buffers at most 14 header bytes and unmasks
//! payload directly into its message. An idle socket therefore holds no memory, and a
//! header with a false size reserves at most 64 KiB. No extension is supported.
use super::Frame;
use bytes::{BufMut, Bytes, BytesMut};

/// The longest header of a server's frame.
pub const HEADER_BYTES_MAX: usize = 10;
const HEADER_READ_MAX: usize = 14;
const CONTROL_BYTES_MAX: usize = 125;
/// Bytes reserved at once, whatever size a header declares.
const RESERVED_MAX: usize = 64 << 10;

const CONTINUATION: u8 = 0;
const TEXT: u8 = 1;
const BINARY: u8 = 2;
const CLOSE: u8 = 8;
const PING: u8 = 9;
const PONG: u8 = 10;

/// Appends a frame of a server, header and payload.
pub fn put_frame(out: &mut BytesMut, frame: &Frame) {
    let (opcode, payload) = match frame {
        Frame::Text(bytes) => (TEXT, bytes),
        Frame::Binary(bytes) => (BINARY, bytes),
    };
    put(out, opcode, payload);
}

/// A pong with the payload of its ping.
#[must_use]
pub fn pong(payload: &[u8]) -> Bytes {
    control(PONG, payload)
}

/// A ping. The peer's pong proves that it has read everything written before.
#[must_use]
pub fn ping() -> Bytes {
    control(PING, b"")
}

/// A close frame; without a code if `code` is `None`.
#[must_use]
pub fn close(code: Option<u16>, reason: &str) -> Bytes {
    let mut payload = Vec::new();
    if let Some(code) = code {
        payload.extend_from_slice(&code.to_be_bytes());
        payload.extend_from_slice(reason.as_bytes());
    }
    control(CLOSE, &payload)
}

fn control(opcode: u8, payload: &[u8]) -> Bytes {
    let payload = payload.get(..CONTROL_BYTES_MAX).unwrap_or(payload);
    let mut out = BytesMut::with_capacity(2 + payload.len());
    put(&mut out, opcode, payload);
    out.freeze()
}

/// Appends the header of a server's text frame. The caller writes its payload of `size` bytes.
pub fn put_text_header(out: &mut BytesMut, size: usize) {
    put_header(out, TEXT, size);
}

fn put(out: &mut BytesMut, opcode: u8, payload: &[u8]) {
    put_header(out, opcode, payload.len());
    out.put_slice(payload);
}

fn put_header(out: &mut BytesMut, opcode: u8, size: usize) {
    out.put_u8(0x80 | opcode);
    match u16::try_from(size) {
        Ok(size) if size < 126 => out.put_u8(u8::try_from(size).unwrap_or_default()),
        Ok(size) => {
            out.put_u8(126);
            out.put_u16(size);
        }
        Err(_) => {
            out.put_u8(127);
            out.put_u64(size as u64);
        }
    }
}

/// A message or control frame from a client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Incoming {
    /// Text, checked to be UTF-8.
    Text(Bytes),
    /// Any bytes.
    Binary(Bytes),
    /// Must be answered by a pong with the same bytes.
    Ping(Bytes),
    /// Needs no answer.
    Pong,
    /// The client closes the connection, with this code.
    Close(Option<u16>),
}

/// Why the connection must be closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Violation {
    /// Close code 1002.
    #[error("not a websocket frame: {0}")]
    Protocol(&'static str),
    /// Close code 1007.
    #[error("text is not UTF-8")]
    NotText,
    /// Close code 1009.
    #[error("message is larger than {0} bytes")]
    TooBig(usize),
}

impl Violation {
    /// The close code for it.
    #[must_use]
    pub fn code(self) -> u16 {
        match self {
            Self::Protocol(_) => 1002,
            Self::NotText => 1007,
            Self::TooBig(_) => 1009,
        }
    }
}

/// Decodes the frames of one client. Must not be used after a [`Violation`].
#[derive(Debug)]
pub struct Decoder {
    message_bytes_max: usize,
    header: [u8; HEADER_READ_MAX],
    header_size: usize,
    /// The frame whose payload is incomplete.
    frame: Option<Head>,
    /// Whether the fragmented message is text; `None` if no message has started.
    text: Option<bool>,
    message: BytesMut,
    control: BytesMut,
}

#[derive(Clone, Copy, Debug)]
struct Head {
    last: bool,
    opcode: u8,
    mask: [u8; 4],
    size: usize,
    read: usize,
}

impl Decoder {
    /// A decoder for messages of at most `message_bytes_max` bytes, all fragments together.
    #[must_use]
    pub fn new(message_bytes_max: usize) -> Self {
        Self {
            message_bytes_max,
            header: [0; HEADER_READ_MAX],
            header_size: 0,
            frame: None,
            text: None,
            message: BytesMut::new(),
            control: BytesMut::new(),
        }
    }

    /// Bytes that the incomplete message takes.
    #[must_use]
    pub fn held(&self) -> usize {
        self.message.capacity()
    }

    /// Bytes that the incomplete message will have at the end of its present frame.
    #[must_use]
    pub fn expected(&self) -> usize {
        let missing = self.frame.filter(|head| head.opcode < CLOSE).map_or(0, |head| head.size - head.read);
        self.message.len() + missing
    }

    /// Consumes bytes from the front of `bytes`. Returns the next message, or `None` if more bytes are needed.
    ///
    /// # Errors
    /// The [`Violation`] for which the connection must be closed.
    pub fn next(&mut self, bytes: &mut &[u8]) -> Result<Option<Incoming>, Violation> {
        loop {
            let head = match self.frame {
                Some(head) => head,
                None => match self.head(bytes)? {
                    Some(head) => head,
                    None => return Ok(None),
                },
            };
            let (part, rest) = bytes.split_at((head.size - head.read).min(bytes.len()));
            *bytes = rest;
            // Control frames may come between the fragments of a message, so they have a buffer of their own.
            let into = if head.opcode >= CLOSE {
                &mut self.control
            } else {
                grow(&mut self.message, part.len(), head.size - head.read);
                &mut self.message
            };
            let from = into.len();
            into.extend_from_slice(part);
            unmask(into.get_mut(from..).unwrap_or_default(), head.mask, head.read);
            let read = head.read + part.len();
            if read < head.size {
                self.frame = Some(Head { read, ..head });
                return Ok(None);
            }
            self.frame = None;
            if let Some(incoming) = self.complete(head)? {
                return Ok(Some(incoming));
            }
        }
    }

    /// Reads and checks a header; `None` if it is incomplete.
    fn head(&mut self, bytes: &mut &[u8]) -> Result<Option<Head>, Violation> {
        loop {
            let wanted = match (self.header_size, self.header) {
                (0 | 1, _) => 2,
                (_, [_, size, ..]) if size & 0x7f == 126 => 8,
                (_, [_, size, ..]) if size & 0x7f == 127 => 14,
                _ => 6,
            };
            if self.header_size == wanted {
                break;
            }
            let Some((byte, rest)) = bytes.split_first() else { return Ok(None) };
            *bytes = rest;
            if let Some(place) = self.header.get_mut(self.header_size) {
                *place = *byte;
            }
            self.header_size += 1;
            if self.header_size == 2 {
                self.check_start()?;
            }
        }
        self.header_size = 0;
        let [first, second, a, b, c, d, e, f, g, h, i, j, k, l] = self.header;
        let (size, mask) = match second & 0x7f {
            126 => (u64::from(u16::from_be_bytes([a, b])), [c, d, e, f]),
            127 => (u64::from_be_bytes([a, b, c, d, e, f, g, h]), [i, j, k, l]),
            size => (u64::from(size), [a, b, c, d]),
        };
        if size >> 63 != 0 {
            return Err(Violation::Protocol("payload size over 63 bits"));
        }
        let opcode = first & 0x0f;
        let too_big = Violation::TooBig(self.message_bytes_max);
        let size = usize::try_from(size).map_err(|_| too_big)?;
        // The limit is checked before anything is reserved, and covers all fragments of the message.
        if opcode < CLOSE {
            if size > self.message_bytes_max.saturating_sub(self.message.len()) {
                return Err(too_big);
            }
            self.message.reserve(size.min(RESERVED_MAX));
        }
        Ok(Some(Head { last: first & 0x80 != 0, opcode, mask, size, read: 0 }))
    }

    /// Checks the first two bytes of a header before the rest has arrived.
    fn check_start(&mut self) -> Result<(), Violation> {
        let [first, second, ..] = self.header;
        let violation = |why| Err(Violation::Protocol(why));
        if first & 0x70 != 0 {
            return violation("reserved bit set");
        }
        if second & 0x80 == 0 {
            return violation("not masked");
        }
        match first & 0x0f {
            CONTINUATION if self.text.is_none() => return violation("continuation without a message"),
            TEXT | BINARY if self.text.is_some() => return violation("new message inside a fragmented one"),
            CLOSE | PING | PONG if first & 0x80 == 0 => return violation("fragmented control frame"),
            CLOSE | PING | PONG if second & 0x7f > 125 => {
                return violation("control frame longer than 125 bytes");
            }
            CONTINUATION | CLOSE | PING | PONG => {}
            opcode @ (TEXT | BINARY) => self.text = Some(opcode == TEXT),
            _ => return violation("unknown opcode"),
        }
        Ok(())
    }

    /// The message or control frame that a complete frame ends, if any.
    fn complete(&mut self, head: Head) -> Result<Option<Incoming>, Violation> {
        match head.opcode {
            PING => return Ok(Some(Incoming::Ping(std::mem::take(&mut self.control).freeze()))),
            PONG => {
                self.control = BytesMut::new();
                return Ok(Some(Incoming::Pong));
            }
            CLOSE => {
                return decode_close(&std::mem::take(&mut self.control))
                    .map(|code| Some(Incoming::Close(code)));
            }
            _ if !head.last => return Ok(None),
            _ => {}
        }
        let message = std::mem::take(&mut self.message).freeze();
        match self.text.take() {
            Some(true) if std::str::from_utf8(&message).is_err() => Err(Violation::NotText),
            Some(true) => Ok(Some(Incoming::Text(message))),
            _ => Ok(Some(Incoming::Binary(message))),
        }
    }
}

/// Makes room for `more` bytes of the `missing` ones of a frame: twice what is there, and never more than the frame has.
fn grow(message: &mut BytesMut, more: usize, missing: usize) {
    let needed = message.len() + more;
    if needed > message.capacity() {
        // `BytesMut::reserve` would double beyond the end of the frame, and the message keeps that memory.
        let capacity = needed.max(2 * message.len()).min(message.len() + missing);
        let mut larger = BytesMut::with_capacity(capacity);
        larger.extend_from_slice(message);
        *message = larger;
    }
}

/// Unmasks eight bytes at a time: for a large message this loop dominates.
// The mask is rotated to where the previous piece of the same frame ended.
fn unmask(bytes: &mut [u8], mask: [u8; 4], read: usize) {
    let mut mask = mask;
    mask.rotate_left(read % 4);
    let [a, b, c, d] = mask;
    let wide = u64::from_ne_bytes([a, b, c, d, a, b, c, d]);
    let (eights, rest) = bytes.as_chunks_mut::<8>();
    for eight in eights {
        *eight = (u64::from_ne_bytes(*eight) ^ wide).to_ne_bytes();
    }
    rest.iter_mut().zip(mask.iter().cycle()).for_each(|(byte, mask)| *byte ^= mask);
}

fn decode_close(payload: &[u8]) -> Result<Option<u16>, Violation> {
    let Some((code, reason)) = payload.split_first_chunk() else {
        let empty = payload.is_empty();
        return if empty { Ok(None) } else { Err(Violation::Protocol("close code of one byte")) };
    };
    let code = u16::from_be_bytes(*code);
    if !matches!(code, 1000..=1003 | 1007..=1014 | 3000..=4999) {
        return Err(Violation::Protocol("reserved close code"));
    }
    if std::str::from_utf8(reason).is_err() {
        return Err(Violation::NotText);
    }
    Ok(Some(code))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A client's frame. `first` is the byte with the final bit and the opcode.
    fn frame(first: u8, mask: [u8; 4], payload: &[u8]) -> Vec<u8> {
        let mut out = BytesMut::new();
        put(&mut out, first & 0x0f, payload);
        let header = out.len() - payload.len();
        out[0] = first;
        out[1] |= 0x80;
        let masked = payload.iter().enumerate().map(|(at, byte)| byte ^ mask[at % 4]);
        [&out[..header], &mask].concat().into_iter().chain(masked).collect()
    }

    fn read(decoder: &mut Decoder, mut bytes: &[u8]) -> Result<Vec<Incoming>, Violation> {
        let mut got = Vec::new();
        while let Some(incoming) = decoder.next(&mut bytes)? {
            got.push(incoming);
        }
        assert!(bytes.is_empty());
        Ok(got)
    }

    fn once(bytes: &[u8]) -> Result<Vec<Incoming>, Violation> {
        read(&mut Decoder::new(1000), bytes)
    }

    const MASK: [u8; 4] = [1, 2, 3, 4];

    #[test]
    fn control_frames_may_interleave_with_fragments() {
        let bytes = [
            frame(TEXT, MASK, "h\u{e9}".as_bytes().get(..2).unwrap()),
            frame(0x89, MASK, b"hi"),
            frame(CONTINUATION, MASK, b""),
            frame(0x80, MASK, b"\xa9!"),
            frame(0x88, MASK, b"\x03\xe8bye"),
        ];
        let got = once(&bytes.concat()).unwrap();
        let text = Incoming::Text(Bytes::from_static("h\u{e9}!".as_bytes()));
        assert_eq!(got, [Incoming::Ping(Bytes::from_static(b"hi")), text, Incoming::Close(Some(1000))]);
    }

    #[test]
    fn invalid_frames_are_protocol_violations() {
        let protocol =
            |bytes: &[u8]| assert!(matches!(once(bytes), Err(Violation::Protocol(_))), "{bytes:?}");
        protocol(&[0x81, 2, b'{', b'}']);
        for first in [0xc1, 0xa1, 0x91, 0x83, 0x8b, 0x80, 0x09, 0x08] {
            protocol(&frame(first, MASK, b"x"));
        }
        protocol(&frame(0x89, MASK, &[0; 126]));
        protocol(&[frame(TEXT, MASK, b"a"), frame(0x81, MASK, b"b")].concat());
        protocol(&[0x82, 0xff, 0x80, 0, 0, 0, 0, 0, 0, 0, 1, 2, 3, 4]);
        for code in [0_u16, 999, 1004, 1005, 1006, 1015, 2999, 5000] {
            protocol(&frame(0x88, MASK, &code.to_be_bytes()));
        }
        protocol(&frame(0x88, MASK, b"x"));
        assert_eq!(once(&frame(0x81, MASK, b"\xff")), Err(Violation::NotText));
        assert_eq!(once(&frame(0x88, MASK, b"\x03\xe8\xff")), Err(Violation::NotText));
    }

    #[test]
    fn size_limit_covers_all_fragments_and_a_false_size_reserves_little() {
        assert!(once(&frame(0x82, MASK, &[0; 1000])).is_ok());
        assert_eq!(once(&frame(0x82, MASK, &[0; 1001])), Err(Violation::TooBig(1000)));
        let parts = [frame(BINARY, MASK, &[0; 600]), frame(0x80, MASK, &[0; 401])].concat();
        assert_eq!(once(&parts), Err(Violation::TooBig(1000)));
        let mut decoder = Decoder::new(usize::MAX);
        let mut huge = &[0x82, 0xff, 0, 0, 1, 0, 0, 0, 0, 0, 1, 2, 3, 4][..];
        assert_eq!(decoder.next(&mut huge), Ok(None));
        assert!(decoder.message.capacity() <= 2 * RESERVED_MAX);
    }

    #[test]
    fn message_takes_at_most_twice_what_arrived_and_never_more_than_its_frame() {
        let (payload, mut decoder) = (vec![7; 1_000_000], Decoder::new(usize::MAX));
        let bytes = frame(0x82, MASK, &payload);
        let mut read = 0;
        for mut part in bytes.chunks(16 << 10) {
            read += part.len();
            if let Some(message) = decoder.next(&mut part).unwrap() {
                assert_eq!(message, Incoming::Binary(payload.clone().into()));
            } else {
                assert!(decoder.held() <= (2 * read).max(RESERVED_MAX), "{} of {read}", decoder.held());
                assert!(decoder.held() <= payload.len());
                assert_eq!(decoder.expected(), payload.len());
            }
        }
        assert_eq!((decoder.held(), decoder.expected()), (0, 0));
    }

    #[test]
    fn server_frame_has_the_shortest_header() {
        for (size, header) in [(0, 2), (125, 2), (126, 4), (65_535, 4), (65_536, 10)] {
            let mut out = BytesMut::new();
            put_frame(&mut out, &Frame::Binary(vec![7; size].into()));
            assert_eq!(out.len(), header + size);
            assert_eq!(out[0], 0x82);
        }
        assert_eq!(&close(Some(1000), "x")[..], b"\x88\x03\x03\xe8x");
        assert_eq!(&close(None, "x")[..], b"\x88\x00");
    }

    proptest! {
        #[test]
        fn decoding_does_not_depend_on_the_pieces(payload in proptest::collection::vec(any::<u8>(), 0..300), mask: [u8; 4], piece in 1..40_usize) {
            let bytes = [frame(BINARY, mask, &payload), frame(0x80, mask, &payload), frame(0x8a, mask, b"p")].concat();
            let mut decoder = Decoder::new(1000);
            let mut got = Vec::new();
            for piece in bytes.chunks(piece) {
                got.extend(read(&mut decoder, piece).unwrap());
            }
            prop_assert_eq!(got, [Incoming::Binary([&payload[..], &payload].concat().into()), Incoming::Pong]);
        }

        #[test]
        fn decoding_arbitrary_bytes_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..200), piece in 1..20_usize) {
            let mut decoder = Decoder::new(100);
            for mut piece in bytes.chunks(piece) {
                while let Ok(Some(_)) = decoder.next(&mut piece) {}
            }
        }
    }
}
