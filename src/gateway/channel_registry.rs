//! The joined channels and their recent rejections: for operators, and to reach the members of a room.
//!
//! A channel is registered while it is joined. Rejections are kept for
//! diagnosis: the last few of each room with members, and the
//! last few of all other rooms together, which bounds their memory.
use super::Rejection;
use crate::{
    auth::Claims,
    clock::Clock,
    hub::{Room, SubscriberId, SubscriptionHandle},
    id::{ConnId, Topic},
};
use chrono::{DateTime, Utc};
use parking_lot::Mutex;
use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};
use tokio::sync::Notify;

/// Rejections kept for a room with members.
const REFUSALS_OF_A_ROOM: usize = 32;
/// Rejections kept for all rooms without members.
const REFUSALS_ELSEWHERE: usize = 1024;

/// All joined channels of a gateway. Clones share the same list.
#[derive(Clone)]
pub(super) struct Directory(Arc<Inner>);

struct Inner {
    clock: Clock,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    rooms: HashMap<Room, TopicEntry>,
    elsewhere: VecDeque<(Arc<str>, RejectionRecord)>,
}

#[derive(Default)]
struct TopicEntry {
    members: BTreeMap<SubscriberId, Arc<JoinedChannel>>,
    refusals: VecDeque<RejectionRecord>,
}

/// A rejection with its time and socket.
#[derive(Clone, Debug)]
pub(super) struct RejectionRecord {
    pub(super) at: DateTime<Utc>,
    pub(super) conn: Option<ConnId>,
    pub(super) refused: Rejection,
}

/// One joined channel of one socket.
pub(super) struct JoinedChannel {
    pub(super) conn: ConnId,
    pub(super) joined_at: DateTime<Utc>,
    pub(super) key: Arc<str>,
    claims: Mutex<Arc<Claims>>,
    handle: SubscriptionHandle,
    /// The channel received a broadcast over the limit of Supabase mode and must end.
    over_limit: AtomicBool,
    wake: Arc<Notify>,
}

/// A snapshot of a room for an operator.
pub(super) struct RoomSnapshot {
    pub(super) count: usize,
    pub(super) members: Vec<Arc<JoinedChannel>>,
    pub(super) refusals: Vec<RejectionRecord>,
}

impl Directory {
    pub(super) fn new(clock: Clock) -> Self {
        Self(Arc::new(Inner { clock, state: Mutex::default() }))
    }

    /// Registers a channel until the returned value is dropped.
    pub(super) fn enter(
        &self,
        room: Room,
        id: SubscriberId,
        conn: ConnId,
        (key, claims): (Arc<str>, Arc<Claims>),
        (handle, wake): (SubscriptionHandle, Arc<Notify>),
    ) -> Registration {
        let joined_at = self.0.clock.now();
        let (claims, over_limit) = (Mutex::new(claims), AtomicBool::new(false));
        let member = Arc::new(JoinedChannel { conn, joined_at, key, claims, handle, over_limit, wake });
        let mut state = self.0.state.lock();
        state.rooms.entry(room.clone()).or_default().members.insert(id, member.clone());
        Registration { directory: self.clone(), room, id, member }
    }

    /// Records a rejection of a socket or an HTTP request.
    pub(super) fn note(&self, room: Option<&Room>, topic: &str, conn: Option<ConnId>, refused: Rejection) {
        let record = RejectionRecord { at: self.0.clock.now(), conn, refused };
        let mut state = self.0.state.lock();
        if let Some(entry) = room.and_then(|room| state.rooms.get_mut(room)) {
            push_bounded(&mut entry.refusals, record, REFUSALS_OF_A_ROOM);
        } else {
            push_bounded(&mut state.elsewhere, (topic.into(), record), REFUSALS_ELSEWHERE);
        }
    }

    /// Marks every channel that receives broadcasts in the room, except one, to be ended.
    pub(super) fn mark_over_limit(&self, room: &Room, except: Option<SubscriberId>) {
        let state = self.0.state.lock();
        let Some(entry) = state.rooms.get(room) else { return };
        for (id, member) in &entry.members {
            if Some(*id) != except && member.handle.interests().broadcast {
                member.over_limit.store(true, Ordering::Release);
                member.wake.notify_one();
            }
        }
    }

    /// The topics after `after` that start with `prefix`, in order, with the numbers of members of the public and the
    /// private room; and the total of such topics.
    pub(super) fn topics(
        &self,
        prefix: &str,
        after: &str,
        limit: usize,
    ) -> (usize, Vec<(Topic, [usize; 2])>) {
        let mut topics: BTreeMap<Topic, [usize; 2]> = BTreeMap::new();
        for (room, entry) in &self.0.state.lock().rooms {
            if room.topic.as_str().starts_with(prefix) {
                let [public, private] = topics.entry(room.topic.clone()).or_default();
                *(if room.private { private } else { public }) = entry.members.len();
            }
        }
        let count = topics.len();
        let rest = topics.into_iter().skip_while(|(topic, _)| topic.as_str() <= after);
        (count, rest.take(limit).collect())
    }

    /// The first `limit` members of a room and its rejections, latest first; `None` if it has no members.
    pub(super) fn snapshot(&self, room: &Room, limit: usize) -> Option<RoomSnapshot> {
        let state = self.0.state.lock();
        let entry = state.rooms.get(room)?;
        let members = entry.members.values().take(limit).cloned().collect();
        let refusals = entry.refusals.iter().rev().cloned().collect();
        Some(RoomSnapshot { count: entry.members.len(), members, refusals })
    }

    /// The rejections on a topic outside of rooms with members, latest first.
    pub(super) fn elsewhere(&self, topic: &str) -> Vec<RejectionRecord> {
        let state = self.0.state.lock();
        let here = state.elsewhere.iter().rev().filter(|(of, _)| **of == *topic);
        here.take(REFUSALS_OF_A_ROOM).map(|(_, record)| record.clone()).collect()
    }
}

fn push_bounded<T>(list: &mut VecDeque<T>, item: T, max: usize) {
    if list.len() >= max {
        list.pop_front();
    }
    list.push_back(item);
}

impl JoinedChannel {
    pub(super) fn claims(&self) -> Arc<Claims> {
        self.claims.lock().clone()
    }
}

/// The registration of a channel. Dropping it removes the channel.
pub(super) struct Registration {
    directory: Directory,
    room: Room,
    id: SubscriberId,
    member: Arc<JoinedChannel>,
}

impl Registration {
    /// Replaces the claims after a new token.
    pub(super) fn renew(&self, claims: Arc<Claims>) {
        *self.member.claims.lock() = claims;
    }

    /// Whether the channel must end. Returns true once per mark.
    pub(super) fn take_over_limit(&self) -> bool {
        self.member.over_limit.swap(false, Ordering::AcqRel)
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        let mut state = self.directory.0.state.lock();
        let Some(entry) = state.rooms.get_mut(&self.room) else { return };
        entry.members.remove(&self.id);
        if entry.members.is_empty() {
            // The rejections of the room are kept in the common list.
            let gone = state.rooms.remove(&self.room);
            let topic: Arc<str> = self.room.topic.as_str().into();
            for record in gone.into_iter().flat_map(|entry| entry.refusals) {
                push_bounded(&mut state.elsewhere, (topic.clone(), record), REFUSALS_ELSEWHERE);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        hub::{Hub, Interests, Outbox, Subscription},
        telemetry::Registry,
        wire::Version,
    };

    fn subscribe(hub: &Hub, room: &Room) -> Subscription {
        let outbox = Arc::new(Outbox::new(10, 1000));
        hub.subscribe(room.clone(), Version::V2, outbox, Interests::all())
    }

    fn enter(directory: &Directory, subscription: &Subscription, conn: u64) -> Registration {
        let claims = Claims::of_role("anon");
        let room = subscription.room().clone();
        let handle = (subscription.handle(), Arc::new(Notify::new()));
        directory.enter(room, subscription.id(), ConnId(conn), ("k".into(), claims.into()), handle)
    }

    #[test]
    fn rejections_outlive_their_room_and_are_bounded() {
        let (hub, directory) = (Hub::new(&Registry::default()), Directory::new(Clock::System));
        let room = Room::public(Topic::new("den").unwrap());
        let subscription = subscribe(&hub, &room);
        let listed = enter(&directory, &subscription, 1);
        let refused = |text: &str| Rejection::push("broadcast", "rate_limited", text);
        for n in 0..100 {
            directory.note(Some(&room), "den", Some(ConnId(1)), refused(&n.to_string()));
            directory.note(None, "other", None, refused("x"));
        }
        let snapshot = directory.snapshot(&room, 10).unwrap();
        assert_eq!((snapshot.count, snapshot.refusals.len()), (1, REFUSALS_OF_A_ROOM));
        assert_eq!(snapshot.refusals[0].refused.text, "99");
        drop(listed);
        assert!(directory.snapshot(&room, 10).is_none());
        assert_eq!(directory.elsewhere("den").len(), REFUSALS_OF_A_ROOM);
        for _ in 0..2000 {
            directory.note(None, "other", None, refused("x"));
        }
        assert_eq!(directory.0.state.lock().elsewhere.len(), REFUSALS_ELSEWHERE);
        assert!(directory.elsewhere("den").is_empty());
    }

    #[test]
    fn only_receiving_channels_are_marked() {
        let (hub, directory) = (Hub::new(&Registry::default()), Directory::new(Clock::System));
        let room = Room::public(Topic::new("den").unwrap());
        let subscriptions = [(); 3].map(|()| subscribe(&hub, &room));
        let listed = [0, 1, 2].map(|n| enter(&directory, &subscriptions[n], n as u64));
        subscriptions[2].handle().set(Interests { broadcast: false, presence: true });
        directory.mark_over_limit(&room, Some(subscriptions[0].id()));
        assert_eq!([0, 1, 2].map(|n| listed[n].take_over_limit()), [false, true, false]);
        assert!(!listed[1].take_over_limit(), "once");
    }

    #[test]
    fn topics_are_listed_in_pages() {
        let (hub, directory) = (Hub::new(&Registry::default()), Directory::new(Clock::System));
        let rooms = ["a", "b", "c", "z"].map(|name| Room::public(Topic::new(name).unwrap()));
        let inside = rooms.map(|room| subscribe(&hub, &room));
        let _listed = inside.each_ref().map(|inside| enter(&directory, inside, 1));
        let names = |prefix: &str, after: &str, limit| {
            let (count, topics) = directory.topics(prefix, after, limit);
            assert!(topics.iter().all(|(_, members)| *members == [1, 0]));
            (count, topics.into_iter().map(|(topic, _)| topic.to_string()).collect::<String>())
        };
        assert_eq!(names("", "", 2), (4, "ab".to_owned()));
        assert_eq!(names("", "b", 9), (4, "cz".to_owned()));
        assert_eq!(names("c", "", 9), (1, "c".to_owned()));
    }
}
