//! The payload of a journal record: room, sender, message. Pure.
use crate::{
    hub::{Message, Room},
    id::Topic,
};
use bytes::{Buf, BufMut, Bytes, BytesMut};

const PUBLIC: u8 = 0;
const PRIVATE: u8 = 1;
/// Marks a hole: messages before its number may be missing.
const HOLE: u8 = 2;

pub(super) fn message(room: &Room, client: Option<[u8; 16]>, message: &Message) -> Bytes {
    let mut out = BytesMut::with_capacity(64 + room.topic.as_str().len() + message.size());
    out.put_u8(if room.private { PRIVATE } else { PUBLIC });
    let topic = room.topic.as_str().as_bytes();
    out.put_u32_le(u32::try_from(topic.len()).unwrap_or(u32::MAX));
    out.put_slice(topic);
    out.put_slice(&client.unwrap_or_default());
    message.put(&mut out);
    out.freeze()
}

pub(super) fn hole() -> Bytes {
    Bytes::from_static(&[HOLE])
}

/// The room of a message; `None` for a hole.
pub(super) fn room(payload: &[u8]) -> Option<Room> {
    split(payload).map(|(room, _)| room)
}

/// The sender's client id (zeros for none) and the message; `None` for a hole.
pub(super) fn decode(payload: &Bytes) -> Option<([u8; 16], Message)> {
    let (_, rest) = split(payload)?;
    let (client, message) = rest.split_first_chunk()?;
    Some((*client, Message::get(payload.slice_ref(message))?))
}

fn split(mut payload: &[u8]) -> Option<(Room, &[u8])> {
    let private = match payload.try_get_u8().ok()? {
        PUBLIC => false,
        PRIVATE => true,
        _ => return None,
    };
    let size = payload.try_get_u32_le().ok()? as usize;
    let (topic, rest) = payload.split_at_checked(size)?;
    let topic = Topic::new(std::str::from_utf8(topic).ok()?)?;
    Some((Room { topic, private }, rest))
}
