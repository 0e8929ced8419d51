//! The location of each room's kept messages in the journal. Pure.
use crate::{
    hub::Room,
    journal::{RecordLocation, SegmentReader},
};
use std::collections::{HashMap, VecDeque};

/// Approximate memory of a room without its messages: its name twice, and table entries.
const ROOM_BYTES: usize = 256;
/// Rooms without messages that keep their own `lost` number. Beyond it they share `floor`.
const ROOMS_MAX: usize = 100_000;

/// One kept message.
#[derive(Clone, Copy, Debug)]
pub(super) struct IndexEntry {
    pub(super) number: u64,
    pub(super) location: RecordLocation,
}

#[derive(Debug, Default)]
struct Kept {
    entries: VecDeque<IndexEntry>,
    /// The number of the latest message that was removed or never written.
    lost: u64,
}

/// The result of a lookup in one room.
#[derive(Debug)]
pub(super) enum Part {
    /// These messages; no message is missing before them.
    Messages(Vec<(IndexEntry, SegmentReader)>),
    /// Messages up to this number may be missing.
    Missing(u64),
}

#[derive(Debug, Default)]
pub(super) struct Index {
    rooms: HashMap<Room, Kept>,
    /// The number of messages of all rooms.
    entries: usize,
    readers: HashMap<u32, SegmentReader>,
    /// The `lost` number of every room that has no entry.
    floor: u64,
}

impl Index {
    /// Marks everything up to `number` as possibly missing, in every room.
    pub(super) fn lose_all(&mut self, number: u64) {
        self.floor = self.floor.max(number);
        for kept in self.rooms.values_mut() {
            kept.lost = kept.lost.max(number);
        }
    }

    /// Marks a message as published and not kept.
    pub(super) fn lose(&mut self, room: &Room, number: u64) {
        let kept = self.room(room);
        kept.lost = kept.lost.max(number);
    }

    pub(super) fn add(&mut self, room: &Room, entry: IndexEntry) {
        self.room(room).entries.push_back(entry);
        self.entries += 1;
    }

    /// Approximate bytes in memory.
    pub(super) fn bytes(&self) -> usize {
        self.entries * size_of::<IndexEntry>() + self.rooms.len() * ROOM_BYTES
    }

    /// Removes messages until the index takes at most `bytes`: repeatedly, the room with the most messages loses its
    /// older half. Then rooms without messages are removed.
    pub(super) fn shrink(&mut self, bytes: usize) {
        while self.bytes() > bytes {
            let largest = self.rooms.values_mut().max_by_key(|kept| kept.entries.len());
            let Some(largest) = largest.filter(|kept| kept.entries.len() > 1) else { break };
            let expired = largest.entries.len() / 2;
            let last = largest.entries.get(expired - 1).map_or(0, |entry| entry.number);
            self.entries -= largest.drop_while(|entry| entry.number <= last);
            // A deque keeps its capacity when elements are removed.
            largest.entries.shrink_to_fit();
        }
        if self.bytes() > bytes {
            self.remove_empty_rooms();
        }
    }

    pub(super) fn add_reader(&mut self, segment: u32, reader: impl FnOnce() -> Option<SegmentReader>) {
        if let std::collections::hash_map::Entry::Vacant(vacant) = self.readers.entry(segment) {
            reader().map(|reader| vacant.insert(reader));
        }
    }

    /// Removes a room's messages up to `number` because of their age.
    pub(super) fn expire(&mut self, room: &Room, number: u64) {
        if let Some(kept) = self.rooms.get_mut(room) {
            self.entries -= kept.drop_while(|entry| entry.number <= number);
        }
    }

    /// Removes the messages of deleted segments, those before `segment`.
    pub(super) fn trim(&mut self, segment: u32) {
        self.readers.retain(|ordinal, _| *ordinal >= segment);
        for kept in self.rooms.values_mut() {
            self.entries -= kept.drop_while(|entry| entry.location.segment < segment);
        }
        // Rooms without messages are dropped. The shared floor may report a gap that a room does not have, never
        // hide one that it has.
        if self.rooms.len() > ROOMS_MAX {
            self.remove_empty_rooms();
        }
    }

    /// Removes rooms without messages. Their `lost` numbers raise the shared `floor`.
    fn remove_empty_rooms(&mut self) {
        let Self { rooms, floor, .. } = self;
        rooms.retain(|_, kept| {
            if kept.entries.is_empty() {
                *floor = kept.lost.max(*floor);
            }
            !kept.entries.is_empty()
        });
    }

    /// The number up to which messages of a room may be missing.
    pub(super) fn lost(&self, room: &Room) -> u64 {
        self.rooms.get(room).map_or(self.floor, |kept| kept.lost)
    }

    /// At most `max` messages and about `bytes_max` bytes (at least one message) of a room with
    /// `after < number <= upto`.
    pub(super) fn part(&self, room: &Room, after: u64, upto: u64, max: usize, bytes_max: usize) -> Part {
        if self.lost(room) > after {
            return Part::Missing(self.lost(room));
        }
        let Some(kept) = self.rooms.get(room) else { return Part::Messages(Vec::new()) };
        let from = kept.entries.partition_point(|entry| entry.number <= after);
        let mut found = Vec::new();
        let mut bytes = 0;
        for entry in kept.entries.range(from..).take_while(|entry| entry.number <= upto).take(max) {
            bytes += entry.location.size as usize;
            if bytes > bytes_max && !found.is_empty() {
                break;
            }
            match self.readers.get(&entry.location.segment) {
                Some(reader) => found.push((*entry, reader.clone())),
                None => return Part::Missing(entry.number),
            }
        }
        Part::Messages(found)
    }

    fn room(&mut self, room: &Room) -> &mut Kept {
        let lost = self.floor;
        if !self.rooms.contains_key(room) {
            self.rooms.insert(room.clone(), Kept { lost, ..Kept::default() });
        }
        self.rooms.entry(room.clone()).or_default()
    }
}

impl Kept {
    /// Returns the number of removed messages.
    fn drop_while(&mut self, expired: impl Fn(&IndexEntry) -> bool) -> usize {
        let before = self.entries.len();
        while let Some(entry) = self.entries.front().filter(|entry| expired(entry)) {
            self.lost = self.lost.max(entry.number);
            self.entries.pop_front();
        }
        before - self.entries.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::Topic;

    fn room(name: &str) -> Room {
        Room::public(Topic::new(name).unwrap())
    }

    #[test]
    fn the_room_with_the_most_messages_loses_its_oldest_when_the_index_is_too_large() {
        let mut index = Index::default();
        let location = RecordLocation { segment: 0, offset: 0, size: 1 };
        for number in 1..=1000 {
            index.add(&room("much"), IndexEntry { number, location });
        }
        for number in 1001..=1010 {
            index.add(&room("little"), IndexEntry { number, location });
        }
        let limit = index.bytes() / 3;
        index.shrink(limit);
        assert!(index.bytes() <= limit);
        assert_eq!(index.lost(&room("little")), 0, "nothing of the small room is gone");
        assert_eq!(index.lost(&room("much")), 750, "its older part, told as missing");
        let left: usize = index.rooms.values().map(|kept| kept.entries.len()).sum();
        assert_eq!(left, index.entries);
        index.trim(1);
        assert_eq!((index.entries, index.lost(&room("little"))), (0, 1010));
    }

    #[test]
    fn rooms_without_messages_are_forgotten_when_they_alone_are_too_many() {
        let mut index = Index::default();
        for number in 0..100 {
            index.lose(&room(&format!("r{number}")), number);
        }
        index.shrink(10 * ROOM_BYTES);
        assert_eq!((index.rooms.len(), index.lost(&room("r3"))), (0, 99), "they share what may be missing");
    }
}
