//! For each client and topic, the number up to which the client has certainly received messages.
//!
//! A position belongs to one client in one room. It moves only forward, when its holder proves
//! receipt. A new join of the same client takes it over, unless it is the late join of an older
//! connection. If the previous connection turns out to be alive as well, neither's progress is
//! certain, and the position is contested until a client has been notified. A late proof is no sign
//! of life: it may have been in transit for long. Bounded: an owner (a user, or the shared anonymous
//! bucket) may have a quarter of all positions, and the least recently used one is evicted first.
//! Pure.
use crate::{id::ConnId, journal::Key};
use std::collections::{BTreeSet, HashMap, HashSet};

/// One owner may have one part in this many of all positions.
const OWNER_PART: usize = 4;
const VALUE_BYTES: usize = 17;

/// The holder of a position: the later connection, and within one connection the later join.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Holder {
    conn: ConnId,
    join: u64,
}

impl Holder {
    /// A holder in an earlier process: smaller than every present one.
    const EARLIER_PROCESS: Self = Self { conn: ConnId(0), join: 0 };
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Position {
    number: u64,
    owner: u64,
    /// The time of the last use, in microseconds.
    touched: u64,
    holder: Holder,
    contested: bool,
}

/// A stored position.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct StoredPosition {
    pub(super) number: u64,
    pub(super) contested: bool,
}

#[derive(Debug, Default)]
pub(super) struct Positions {
    max: usize,
    by_key: HashMap<Key, Position>,
    by_owner: HashMap<u64, BTreeSet<(u64, Key)>>,
    changed: HashSet<Key>,
    joins: u64,
}

impl Positions {
    pub(super) fn new(max: usize) -> Self {
        Self { max, ..Self::default() }
    }

    pub(super) fn len(&self) -> usize {
        self.by_key.len()
    }

    /// The largest number of all positions, or 0.
    pub(super) fn last(&self) -> u64 {
        self.by_key.values().map(|position| position.number).max().unwrap_or_default()
    }

    /// Registers a join. Returns the stored position, if any, and the holder for the calls below.
    pub(super) fn begin(&mut self, key: Key, conn: ConnId, now: u64) -> (Option<StoredPosition>, Holder) {
        self.joins += 1;
        let holder = Holder { conn, join: self.joins };
        let Some(position) = self.by_key.get(&key).copied() else { return (None, holder) };
        // The maximum: a late join of an older connection does not take the position over.
        self.put(key, Position { holder: position.holder.max(holder), touched: now, ..position });
        (Some(StoredPosition { number: position.number, contested: position.contested }), holder)
    }

    /// Sets the position of `holder` to `number`, without proof. Returns false if a later holder has it.
    pub(super) fn set(&mut self, key: Key, owner: u64, holder: Holder, number: u64, now: u64) -> bool {
        if self.by_key.get(&key).is_some_and(|position| position.holder > holder) {
            return false;
        }
        self.put(key, Position { number, owner, touched: now, holder, contested: false });
        self.changed.insert(key);
        self.bound(owner, key);
        true
    }

    /// `holder` has received everything up to `number`. Returns false if it does not hold the position.
    pub(super) fn prove(&mut self, key: Key, holder: Holder, number: u64, now: u64) -> bool {
        let Some(position) = self.by_key.get(&key).copied() else { return false };
        if position.holder != holder {
            return false;
        }
        let number = number.max(position.number);
        if number > position.number {
            self.changed.insert(key);
        }
        self.put(key, Position { number, touched: now, ..position });
        true
    }

    /// Marks the position as contested: a former holder is alive beside the present one.
    pub(super) fn contest(&mut self, key: Key, holder: Holder) {
        let position = self.by_key.get_mut(&key).filter(|position| position.holder != holder);
        if let Some(position) = position.filter(|position| !position.contested) {
            position.contested = true;
            self.changed.insert(key);
        }
    }

    /// Clears the contested mark: the holder has received the notice.
    pub(super) fn settle(&mut self, key: Key, holder: Holder) {
        let position = self.by_key.get_mut(&key).filter(|position| position.holder == holder);
        if let Some(position) = position.filter(|position| position.contested) {
            position.contested = false;
            self.changed.insert(key);
        }
    }

    /// Deletes the position if `holder` has it.
    pub(super) fn forget(&mut self, key: Key, holder: Holder) {
        if self.by_key.get(&key).is_some_and(|position| position.holder == holder) {
            self.remove(key);
        }
    }

    /// Removes positions not used since `before`.
    pub(super) fn expire(&mut self, before: u64) {
        let old = |set: &BTreeSet<(u64, Key)>| -> Vec<Key> {
            set.iter().take_while(|(touched, _)| *touched < before).map(|(_, key)| *key).collect()
        };
        let old: Vec<Key> = self.by_owner.values().flat_map(old).collect();
        old.into_iter().for_each(|key| self.remove(key));
    }

    /// The changed positions since the last call, encoded. An empty value is a deleted position.
    pub(super) fn take_changed(&mut self) -> Vec<(Key, Vec<u8>)> {
        let changed = std::mem::take(&mut self.changed);
        changed.into_iter().map(|key| (key, self.by_key.get(&key).map_or_else(Vec::new, encode))).collect()
    }

    /// Returns keys to the changed set because their write failed.
    pub(super) fn unwritten(&mut self, keys: impl Iterator<Item = Key>) {
        self.changed.extend(keys);
    }

    /// All positions, encoded.
    pub(super) fn all(&self) -> Vec<(Key, Vec<u8>)> {
        self.by_key.iter().map(|(key, position)| (*key, encode(position))).collect()
    }

    /// Loads a stored value. A value of an unknown form deletes the position.
    pub(super) fn load(&mut self, key: Key, value: &[u8], now: u64) {
        let number = |at: usize| {
            let bytes = value.get(at..at + 8).and_then(|b| b.try_into().ok());
            bytes.map(u64::from_le_bytes)
        };
        match (number(0), number(8), value.get(16)) {
            (Some(owner), Some(number), Some(flags)) => {
                let contested = *flags != 0;
                self.put(
                    key,
                    Position { number, owner, touched: now, holder: Holder::EARLIER_PROCESS, contested },
                );
            }
            _ => self.remove(key),
        }
        self.changed.remove(&key);
    }

    fn put(&mut self, key: Key, position: Position) {
        if let Some(old) = self.by_key.insert(key, position) {
            self.unlist(key, old);
        }
        self.by_owner.entry(position.owner).or_default().insert((position.touched, key));
    }

    fn remove(&mut self, key: Key) {
        if let Some(old) = self.by_key.remove(&key) {
            self.unlist(key, old);
            self.changed.insert(key);
        }
    }

    fn unlist(&mut self, key: Key, old: Position) {
        if let Some(set) = self.by_owner.get_mut(&old.owner) {
            set.remove(&(old.touched, key));
            if set.is_empty() {
                self.by_owner.remove(&old.owner);
            }
        }
    }

    /// Evicts one position to stay within the limits, never `key`: of `owner` if it exceeds its quota, else of the
    /// owner with the most.
    fn bound(&mut self, owner: u64, key: Key) {
        let own = self.by_owner.get(&owner).map_or(0, BTreeSet::len);
        let crowded = if own > (self.max / OWNER_PART).max(1) {
            Some(owner)
        } else if self.len() > self.max {
            self.by_owner.iter().max_by_key(|(_, set)| set.len()).map(|(owner, _)| *owner)
        } else {
            None
        };
        let set = crowded.and_then(|owner| self.by_owner.get(&owner));
        let oldest = set.and_then(|set| set.iter().map(|(_, key)| *key).find(|other| *other != key));
        oldest.into_iter().for_each(|key| self.remove(key));
    }
}

fn encode(position: &Position) -> Vec<u8> {
    let mut value = Vec::with_capacity(VALUE_BYTES);
    value.extend_from_slice(&position.owner.to_le_bytes());
    value.extend_from_slice(&position.number.to_le_bytes());
    value.push(position.contested.into());
    value
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(n: u8) -> Key {
        [n; 16]
    }

    #[test]
    fn position_only_moves_forward_and_survives_a_reload() {
        let mut positions = Positions::new(10);
        let (none, holder) = positions.begin(key(1), ConnId(1), 1);
        assert_eq!(none, None);
        assert!(positions.set(key(1), 7, holder, 100, 1));
        assert!(positions.prove(key(1), holder, 150, 2));
        assert!(positions.prove(key(1), holder, 120, 3), "an older proof proves nothing new");
        let mut again = Positions::new(10);
        for (key, value) in positions.take_changed() {
            again.load(key, &value, 5);
        }
        assert!(positions.take_changed().is_empty() && again.take_changed().is_empty());
        assert_eq!(
            again.begin(key(1), ConnId(9), 9).0,
            Some(StoredPosition { number: 150, contested: false })
        );
        assert_eq!(again.last(), 150);
    }

    #[test]
    fn two_live_connections_with_one_client_id_are_contested() {
        let mut positions = Positions::new(10);
        let (_, first) = positions.begin(key(1), ConnId(1), 1);
        positions.set(key(1), 7, first, 100, 1);
        let (found, second) = positions.begin(key(1), ConnId(2), 2);
        assert_eq!(found, Some(StoredPosition { number: 100, contested: false }));
        assert!(!positions.prove(key(1), first, 200, 3), "the first no longer holds the position");
        assert!(positions.prove(key(1), second, 110, 4));
        assert_eq!(
            positions.begin(key(1), ConnId(4), 4).0,
            Some(StoredPosition { number: 110, contested: false }),
            "it may be late"
        );
        positions.contest(key(1), first);
        positions.contest(key(9), first);
        assert_eq!(
            positions.begin(key(1), ConnId(5), 5).0,
            Some(StoredPosition { number: 110, contested: true })
        );
        positions.forget(key(1), second);
        assert_eq!(positions.len(), 1, "only the holder can leave, and none is there that was never held");
        let (_, third) = positions.begin(key(1), ConnId(6), 6);
        positions.settle(key(1), third);
        assert_eq!(
            positions.begin(key(1), ConnId(7), 7).0,
            Some(StoredPosition { number: 110, contested: false })
        );
    }

    #[test]
    fn late_join_of_an_older_connection_does_not_take_over() {
        let mut positions = Positions::new(10);
        let (_, later) = positions.begin(key(1), ConnId(2), 1);
        assert!(positions.set(key(1), 7, later, 100, 1));
        let (found, older) = positions.begin(key(1), ConnId(1), 2);
        assert_eq!(found, Some(StoredPosition { number: 100, contested: false }));
        assert!(!positions.prove(key(1), older, 200, 3) && !positions.set(key(1), 7, older, 200, 3));
        assert!(positions.prove(key(1), later, 110, 4), "it is where its client is");
        let (_, again) = positions.begin(key(1), ConnId(2), 5);
        assert!(positions.prove(key(1), again, 120, 6) && !positions.prove(key(1), later, 130, 6));
    }

    #[test]
    fn owner_over_its_quota_evicts_only_its_own_positions() {
        let mut positions = Positions::new(8);
        for (n, owner) in [(1, 1), (2, 1), (3, 2)] {
            let (_, holder) = positions.begin(key(n), ConnId(n.into()), n.into());
            positions.set(key(n), owner, holder, 1, n.into());
        }
        for n in 10..100 {
            let (_, holder) = positions.begin(key(n), ConnId(n.into()), n.into());
            positions.set(key(n), 3, holder, 1, n.into());
        }
        assert_eq!(positions.len(), 5, "a quarter of eight, and the others");
        for kept in [1, 2, 3, 98, 99] {
            assert!(positions.begin(key(kept), ConnId(200), 200).0.is_some(), "{kept}");
        }
        positions.expire(200);
        assert_eq!(positions.len(), 5);
        positions.expire(201);
        assert_eq!((positions.len(), positions.take_changed().iter().all(|(_, v)| v.is_empty())), (0, true));
    }
}
