//! Who is on which channel, and what was refused there lately: for operators, and to reach a room's members.
//!
//! A channel is listed while it is joined; its place goes with it. Refusals are kept for
//! people who ask why nothing comes: the last few of each room that has members, and the
//! last few of all others together, so that nobody can fill the memory with them.
use super::Refused;
use crate::{
    auth::Claims,
    clock::Clock,
    hub::{Ear, Room, SubscriberId},
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

/// Refusals that are kept of a room with members.
const REFUSALS_OF_A_ROOM: usize = 32;
/// Refusals that are kept of all rooms without.
const REFUSALS_ELSEWHERE: usize = 1024;

/// All channels of a gateway. Clones are the same list.
#[derive(Clone)]
pub(super) struct Directory(Arc<Inner>);

struct Inner {
    clock: Clock,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    rooms: HashMap<Room, Place>,
    elsewhere: VecDeque<(Arc<str>, Noted)>,
}

#[derive(Default)]
struct Place {
    members: BTreeMap<SubscriberId, Arc<Member>>,
    refusals: VecDeque<Noted>,
}

/// A refusal, with when and to whom.
#[derive(Clone, Debug)]
pub(super) struct Noted {
    pub(super) at: DateTime<Utc>,
    pub(super) conn: Option<ConnId>,
    pub(super) refused: Refused,
}

/// One joined channel of one socket.
pub(super) struct Member {
    pub(super) conn: ConnId,
    pub(super) joined_at: DateTime<Utc>,
    pub(super) key: Arc<str>,
    claims: Mutex<Arc<Claims>>,
    ear: Ear,
    /// It heard something when too much was said, and must end for it.
    cut: AtomicBool,
    wake: Arc<Notify>,
}

/// What a room looks like to an operator.
pub(super) struct Look {
    pub(super) count: usize,
    pub(super) members: Vec<Arc<Member>>,
    pub(super) refusals: Vec<Noted>,
}

impl Directory {
    pub(super) fn new(clock: Clock) -> Self {
        Self(Arc::new(Inner { clock, state: Mutex::default() }))
    }

    /// Lists a channel until the value is dropped.
    pub(super) fn enter(
        &self,
        room: Room,
        id: SubscriberId,
        conn: ConnId,
        (key, claims): (Arc<str>, Arc<Claims>),
        (ear, wake): (Ear, Arc<Notify>),
    ) -> Listed {
        let joined_at = self.0.clock.now();
        let (claims, cut) = (Mutex::new(claims), AtomicBool::new(false));
        let member = Arc::new(Member { conn, joined_at, key, claims, ear, cut, wake });
        let mut state = self.0.state.lock();
        state.rooms.entry(room.clone()).or_default().members.insert(id, member.clone());
        Listed { directory: self.clone(), room, id, member }
    }

    /// Notes what was refused to a socket, or to somebody over HTTP.
    pub(super) fn note(&self, room: Option<&Room>, topic: &str, conn: Option<ConnId>, refused: Refused) {
        let noted = Noted { at: self.0.clock.now(), conn, refused };
        let mut state = self.0.state.lock();
        if let Some(place) = room.and_then(|room| state.rooms.get_mut(room)) {
            keep(&mut place.refusals, noted, REFUSALS_OF_A_ROOM);
        } else {
            keep(&mut state.elsewhere, (topic.into(), noted), REFUSALS_ELSEWHERE);
        }
    }

    /// Tells every channel that hears broadcasts in the room, but one, that it must end.
    pub(super) fn cut(&self, room: &Room, except: Option<SubscriberId>) {
        let state = self.0.state.lock();
        let Some(place) = state.rooms.get(room) else { return };
        for (id, member) in &place.members {
            if Some(*id) != except && member.ear.hears().broadcast {
                member.cut.store(true, Ordering::Release);
                member.wake.notify_one();
            }
        }
    }

    /// The topics after `after` that begin with `prefix`, in order, with the members of the public and the
    /// private room; and how many there are in all.
    pub(super) fn topics(
        &self,
        prefix: &str,
        after: &str,
        limit: usize,
    ) -> (usize, Vec<(Topic, [usize; 2])>) {
        let mut topics: BTreeMap<Topic, [usize; 2]> = BTreeMap::new();
        for (room, place) in &self.0.state.lock().rooms {
            if room.topic.as_str().starts_with(prefix) {
                let [public, private] = topics.entry(room.topic.clone()).or_default();
                *(if room.private { private } else { public }) = place.members.len();
            }
        }
        let count = topics.len();
        let rest = topics.into_iter().skip_while(|(topic, _)| topic.as_str() <= after);
        (count, rest.take(limit).collect())
    }

    /// The first `limit` members of a room, and its refusals, the last one first.
    pub(super) fn look(&self, room: &Room, limit: usize) -> Option<Look> {
        let state = self.0.state.lock();
        let place = state.rooms.get(room)?;
        let members = place.members.values().take(limit).cloned().collect();
        let refusals = place.refusals.iter().rev().cloned().collect();
        Some(Look { count: place.members.len(), members, refusals })
    }

    /// What was refused on a topic to those who were not in a room of it; the last one first.
    pub(super) fn elsewhere(&self, topic: &str) -> Vec<Noted> {
        let state = self.0.state.lock();
        let here = state.elsewhere.iter().rev().filter(|(of, _)| **of == *topic);
        here.take(REFUSALS_OF_A_ROOM).map(|(_, noted)| noted.clone()).collect()
    }
}

fn keep<T>(list: &mut VecDeque<T>, item: T, max: usize) {
    if list.len() >= max {
        list.pop_front();
    }
    list.push_back(item);
}

impl Member {
    pub(super) fn claims(&self) -> Arc<Claims> {
        self.claims.lock().clone()
    }
}

/// A channel's place in the list; dropping it takes it away.
pub(super) struct Listed {
    directory: Directory,
    room: Room,
    id: SubscriberId,
    member: Arc<Member>,
}

impl Listed {
    /// It speaks with another token now.
    pub(super) fn renew(&self, claims: Arc<Claims>) {
        *self.member.claims.lock() = claims;
    }

    /// Whether it must end, once.
    pub(super) fn is_cut(&self) -> bool {
        self.member.cut.swap(false, Ordering::AcqRel)
    }
}

impl Drop for Listed {
    fn drop(&mut self) {
        let mut state = self.directory.0.state.lock();
        let Some(place) = state.rooms.get_mut(&self.room) else { return };
        place.members.remove(&self.id);
        if place.members.is_empty() {
            // What was refused stays known for a while.
            let gone = state.rooms.remove(&self.room);
            let topic: Arc<str> = self.room.topic.as_str().into();
            for noted in gone.into_iter().flat_map(|place| place.refusals) {
                keep(&mut state.elsewhere, (topic.clone(), noted), REFUSALS_ELSEWHERE);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        hub::{Hears, Hub, Outbox, Subscription},
        telemetry::Registry,
        wire::Version,
    };

    fn subscribe(hub: &Hub, room: &Room) -> Subscription {
        let outbox = Arc::new(Outbox::new(10, 1000));
        hub.subscribe(room.clone(), Version::V2, outbox, Hears::all())
    }

    fn enter(directory: &Directory, subscription: &Subscription, conn: u64) -> Listed {
        let claims = Claims {
            role: "anon".into(),
            org: None,
            agent_id: None,
            exp: DateTime::UNIX_EPOCH,
            sub: None,
            raw: serde_json::Map::new(),
        };
        let room = subscription.room().clone();
        let ear = (subscription.ear(), Arc::new(Notify::new()));
        directory.enter(room, subscription.id(), ConnId(conn), ("k".into(), claims.into()), ear)
    }

    #[test]
    fn refusals_outlive_their_room_and_are_bounded() {
        let (hub, directory) = (Hub::new(&Registry::default()), Directory::new(Clock::System));
        let room = Room::public(Topic::new("den").unwrap());
        let subscription = subscribe(&hub, &room);
        let listed = enter(&directory, &subscription, 1);
        let refused = |text: &str| Refused::push("broadcast", "rate_limited", text);
        for n in 0..100 {
            directory.note(Some(&room), "den", Some(ConnId(1)), refused(&n.to_string()));
            directory.note(None, "other", None, refused("x"));
        }
        let look = directory.look(&room, 10).unwrap();
        assert_eq!((look.count, look.refusals.len()), (1, REFUSALS_OF_A_ROOM));
        assert_eq!(look.refusals[0].refused.text, "99");
        drop(listed);
        assert!(directory.look(&room, 10).is_none());
        assert_eq!(directory.elsewhere("den").len(), REFUSALS_OF_A_ROOM);
        for _ in 0..2000 {
            directory.note(None, "other", None, refused("x"));
        }
        assert_eq!(directory.0.state.lock().elsewhere.len(), REFUSALS_ELSEWHERE);
        assert!(directory.elsewhere("den").is_empty());
    }

    #[test]
    fn who_hears_is_cut_and_nobody_else() {
        let (hub, directory) = (Hub::new(&Registry::default()), Directory::new(Clock::System));
        let room = Room::public(Topic::new("den").unwrap());
        let subscriptions = [(); 3].map(|()| subscribe(&hub, &room));
        let listed = [0, 1, 2].map(|n| enter(&directory, &subscriptions[n], n as u64));
        subscriptions[2].ear().set(Hears { broadcast: false, presence: true });
        directory.cut(&room, Some(subscriptions[0].id()));
        assert_eq!([0, 1, 2].map(|n| listed[n].is_cut()), [false, true, false]);
        assert!(!listed[1].is_cut(), "once");
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
