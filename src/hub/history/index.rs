//! Where the kept messages of each room are in the log. Pure.
use crate::{
    hub::Room,
    journal::{Place, Reader},
};
use std::collections::{HashMap, VecDeque};

/// Rooms without messages that are remembered for what they lost; beyond it they share one number.
const ROOMS_MAX: usize = 100_000;

/// One kept message.
#[derive(Clone, Copy, Debug)]
pub(super) struct Entry {
    pub(super) number: u64,
    pub(super) place: Place,
}

#[derive(Debug, Default)]
struct Kept {
    entries: VecDeque<Entry>,
    /// Of the latest message that is not there any more, or never was.
    lost: u64,
}

/// What can be read of a room.
#[derive(Debug)]
pub(super) enum Part {
    /// These, and nothing is missing before them.
    Messages(Vec<(Entry, Reader)>),
    /// Messages up to this number may be missing.
    Missing(u64),
}

#[derive(Debug, Default)]
pub(super) struct Index {
    rooms: HashMap<Room, Kept>,
    readers: HashMap<u32, Reader>,
    /// What rooms may have lost of which nothing else is known.
    floor: u64,
}

impl Index {
    /// Everything up to `number` may be missing in every room.
    pub(super) fn lose_all(&mut self, number: u64) {
        self.floor = self.floor.max(number);
        for kept in self.rooms.values_mut() {
            kept.lost = kept.lost.max(number);
        }
    }

    /// This message was said and is not kept.
    pub(super) fn lose(&mut self, room: &Room, number: u64) {
        let kept = self.room(room);
        kept.lost = kept.lost.max(number);
    }

    pub(super) fn add(&mut self, room: &Room, entry: Entry) {
        self.room(room).entries.push_back(entry);
    }

    pub(super) fn add_reader(&mut self, segment: u32, reader: impl FnOnce() -> Option<Reader>) {
        if let std::collections::hash_map::Entry::Vacant(vacant) = self.readers.entry(segment) {
            reader().map(|reader| vacant.insert(reader));
        }
    }

    /// Forgets messages of a room up to `number`: they are too old.
    pub(super) fn expire(&mut self, room: &Room, number: u64) {
        if let Some(kept) = self.rooms.get_mut(room) {
            kept.drop_while(|entry| entry.number <= number);
        }
    }

    /// Forgets everything in segments before `segment`, which are gone.
    pub(super) fn trim(&mut self, segment: u32) {
        self.readers.retain(|ordinal, _| *ordinal >= segment);
        for kept in self.rooms.values_mut() {
            kept.drop_while(|entry| entry.place.segment < segment);
        }
        if self.rooms.len() > ROOMS_MAX {
            let Self { rooms, floor, .. } = self;
            rooms.retain(|_, kept| {
                if kept.entries.is_empty() {
                    *floor = kept.lost.max(*floor);
                }
                !kept.entries.is_empty()
            });
        }
    }

    /// How far back a room cannot be known.
    pub(super) fn lost(&self, room: &Room) -> u64 {
        self.rooms.get(room).map_or(self.floor, |kept| kept.lost)
    }

    /// At most `max` messages of a room with `after < number <= upto`.
    pub(super) fn part(&self, room: &Room, after: u64, upto: u64, max: usize, bytes_max: usize) -> Part {
        if self.lost(room) > after {
            return Part::Missing(self.lost(room));
        }
        let Some(kept) = self.rooms.get(room) else { return Part::Messages(Vec::new()) };
        let from = kept.entries.partition_point(|entry| entry.number <= after);
        let mut found = Vec::new();
        let mut bytes = 0;
        for entry in kept.entries.range(from..).take_while(|entry| entry.number <= upto).take(max) {
            bytes += entry.place.size as usize;
            if bytes > bytes_max && !found.is_empty() {
                break;
            }
            match self.readers.get(&entry.place.segment) {
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
    fn drop_while(&mut self, gone: impl Fn(&Entry) -> bool) {
        while let Some(entry) = self.entries.front().filter(|entry| gone(entry)) {
            self.lost = self.lost.max(entry.number);
            self.entries.pop_front();
        }
    }
}
