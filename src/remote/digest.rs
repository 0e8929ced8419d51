//! Numbered digests of what changed in an org, for dashboards: the public room `convoke:<org>`.
//!
//! The daemon alone publishes there, and a token of the org, or the service, may subscribe. A room whose org has changed
//! gets `digest` {`n`, `at`, `tasks`, `more`, `agents`, `gap`}: at once after a pause, and four times a second at most.
//! `n` rises by one with each digest of a room, and an idle room gets one every ten seconds: a subscriber finds the loss
//! of any. `gap` says that the daemon has lost changes itself. Collects only for rooms with subscribers. Without the
//! database the changes are kept for the next digest. A digest is a hint: the rows are the truth.
use super::publisher::CoordinationPublisher;
use crate::{
    hub::Room,
    id::{AgentId, OrgId, TaskId, Topic},
    task::{Notice, Tasks},
    telemetry::Outage,
};
use parking_lot::Mutex;
use serde_json::{Value, json};
use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::Duration,
};
use tokio::{sync::Notify, time::Instant};
use tokio_util::sync::CancellationToken;

/// Between two digests with changes of a room.
const INTERVAL: Duration = Duration::from_millis(250);
/// A change waits for so long: an award or an accept is several, a moment apart.
const SETTLE: Duration = Duration::from_millis(20);
/// An idle room gets a digest after this time.
const IDLE: Duration = Duration::from_secs(10);
/// A subscriber gets a first digest after this time, when it is in the room: the number from which it counts.
const FIRST_AFTER: Duration = Duration::from_millis(500);
/// A room without subscribers is forgotten after this time: a subscriber enters it a moment after its right is checked.
const FORGOTTEN_AFTER: Duration = Duration::from_secs(60);
/// Most tasks of one digest, of at most about 500 bytes each; `more` says that further ones changed.
const TASKS_MAX: usize = 60;
/// The topics of these rooms begin so.
const PREFIX: &str = "convoke:";

/// The rooms of digests. Clones share them.
#[derive(Clone, Debug, Default)]
pub(super) struct Digests {
    rooms: Arc<Mutex<HashMap<OrgId, Digest>>>,
    /// A room has its first change since its last digest.
    changed: Arc<Notify>,
}

#[derive(Debug)]
struct Digest {
    n: u64,
    changes: Changes,
    /// When the changes are due. `None` without any.
    due_at: Option<Instant>,
    /// When the last digest was begun or sent, or the room was entered.
    active_at: Instant,
    entered_at: Instant,
    /// When a subscriber that entered gets its first digest.
    first_at: Option<Instant>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Changes {
    tasks: HashSet<TaskId>,
    more: bool,
    agents: bool,
    gap: bool,
}

impl Digest {
    /// When the next digest of the room is due.
    fn next_at(&self) -> Instant {
        [self.due_at, self.first_at].into_iter().flatten().fold(self.active_at + IDLE, Instant::min)
    }
}

impl Changes {
    fn task(&mut self, id: TaskId) {
        if self.tasks.len() < TASKS_MAX || self.tasks.contains(&id) {
            self.tasks.insert(id);
        } else {
            self.more = true;
        }
    }

    fn add(&mut self, other: Self) {
        other.tasks.into_iter().for_each(|id| self.task(id));
        self.more |= other.more;
        self.agents |= other.agents;
        self.gap |= other.gap;
    }
}

/// Whether the room is one of digests, in which no client publishes.
pub fn is_digest_room(room: &Room) -> bool {
    !room.private && room.topic.as_str().starts_with(PREFIX)
}

/// The org of a room of digests. `None` for any other room, and for one that names no org.
pub(super) fn org_of(room: &Room) -> Option<OrgId> {
    is_digest_room(room).then(|| room.topic.as_str().strip_prefix(PREFIX)?.parse().ok()).flatten()
}

fn room(org: &OrgId) -> Option<Room> {
    Topic::new(&format!("{PREFIX}{org}")).map(Room::public)
}

impl Digests {
    /// A subscriber is about to enter the room of an org.
    pub(super) fn enter(&self, org: OrgId) {
        let now = Instant::now();
        let new = || Digest {
            n: 0,
            changes: Changes::default(),
            due_at: None,
            active_at: now,
            entered_at: now,
            first_at: None,
        };
        let mut rooms = self.rooms.lock();
        let digest = rooms.entry(org).or_insert_with(new);
        digest.entered_at = now;
        // An earlier time stays, so that many who enter do not put it off; the last of them get another digest.
        if digest.first_at.is_none_or(|at| at <= now) {
            digest.first_at = Some(now + FIRST_AFTER);
        }
    }

    /// The number of the last digest of the room; `None` if nobody has entered it.
    pub(super) fn last(&self, org: &OrgId) -> Option<u64> {
        self.rooms.lock().get(org).map(|digest| digest.n)
    }

    /// Collects what a commit changed. `org_of` finds the org of an agent.
    pub(super) fn note(&self, notice: &Notice, org_of: impl Fn(&AgentId) -> Option<OrgId>) {
        let mut rooms = self.rooms.lock();
        if rooms.is_empty() {
            return;
        }
        let (org, task) = match notice {
            Notice::Updated(task) | Notice::Announced { task, .. } | Notice::Offered { task, .. } => {
                (Some(task.org.clone()), task.id)
            }
            Notice::Assigned(assigned) => (org_of(&assigned.agent_id), assigned.key.task_id),
            Notice::Progressed { agent_id, task } => (org_of(agent_id), *task),
            Notice::Nudge { .. } | Notice::Cancel { .. } => return,
        };
        if let Some(digest) = org.and_then(|org| rooms.get_mut(&org)) {
            digest.changes.task(task);
            self.schedule(digest);
        }
    }

    /// An agent of the org came, went or changed.
    pub(super) fn agents(&self, org: &OrgId) {
        if let Some(digest) = self.rooms.lock().get_mut(org) {
            digest.changes.agents = true;
            self.schedule(digest);
        }
    }

    /// Changes of unknown orgs were lost.
    fn lost(&self) {
        for digest in self.rooms.lock().values_mut() {
            digest.changes.gap = true;
            self.schedule(digest);
        }
    }

    /// Decides when the changes of a room are due, if they were none before.
    fn schedule(&self, digest: &mut Digest) {
        if digest.due_at.is_none() {
            digest.due_at = Some((Instant::now() + SETTLE).max(digest.active_at + INTERVAL));
            self.changed.notify_one();
        }
    }

    /// When the next digest of any room is due. `None` without rooms.
    fn next_at(&self) -> Option<Instant> {
        let rooms = self.rooms.lock();
        rooms.values().map(Digest::next_at).min()
    }

    /// Takes the changes of all rooms that are due, and forgets rooms that were left.
    fn due(&self, now: Instant, is_watched: impl Fn(&OrgId) -> bool) -> Vec<(OrgId, Changes)> {
        let mut rooms = self.rooms.lock();
        rooms
            .retain(|org, digest| is_watched(org) || now.duration_since(digest.entered_at) < FORGOTTEN_AFTER);
        let due = rooms.iter_mut().filter(|(_, digest)| digest.next_at() <= now);
        due.map(|(org, digest)| {
            digest.due_at = None;
            // Also here, not only when it is sent: a change that comes while the lines are read waits for the next turn.
            digest.active_at = now;
            if digest.first_at.is_some_and(|at| at <= now) {
                // One that entered meanwhile may not be in the room yet, and gets its own.
                let later = digest.entered_at + FIRST_AFTER;
                digest.first_at = Some(later).filter(|later| *later > now);
            }
            (org.clone(), std::mem::take(&mut digest.changes))
        })
        .collect()
    }

    /// Keeps changes for a later digest.
    fn put_back(&self, due: Vec<(OrgId, Changes)>) {
        let now = Instant::now();
        let mut rooms = self.rooms.lock();
        for (org, changes) in due {
            if let Some(digest) = rooms.get_mut(&org) {
                digest.changes.add(changes);
                // Also without changes: a subscriber that entered has not been told.
                digest.due_at = Some(now);
            }
        }
    }

    /// The number of the digest that is sent now.
    fn next(&self, org: &OrgId, now: Instant) -> Option<u64> {
        let mut rooms = self.rooms.lock();
        let digest = rooms.get_mut(org)?;
        (digest.n, digest.active_at) = (digest.n + 1, now);
        Some(digest.n)
    }
}

/// Publishes digests until `stop` is cancelled.
pub(super) async fn run(
    digests: &Digests,
    tasks: &Tasks,
    publisher: &CoordinationPublisher,
    stop: CancellationToken,
) {
    let mut outage = Outage::of("digests of dashboards");
    let mut dropped = tasks.notices_dropped();
    // After an error of the database nothing is tried before this time.
    let mut not_before = Instant::now();
    loop {
        // Lost notices have no notification: they are looked for at least once in an interval.
        let latest = Instant::now() + INTERVAL;
        let next = digests.next_at().map_or(latest, |at| at.min(latest)).max(not_before);
        tokio::select! {
            biased;
            () = stop.cancelled() => return,
            () = tokio::time::sleep_until(next) => {}
            () = digests.changed.notified() => continue,
        }
        let now_dropped = tasks.notices_dropped();
        if std::mem::replace(&mut dropped, now_dropped) != now_dropped {
            digests.lost();
        }
        let watched = |org: &OrgId| room(org).is_some_and(|room| publisher.hub.watchers(&room) > 0);
        let due = digests.due(Instant::now(), watched);
        if due.is_empty() {
            continue;
        }
        let ids: Vec<TaskId> = due.iter().flat_map(|(_, changes)| changes.tasks.iter().copied()).collect();
        let lines = if ids.is_empty() { Ok(HashMap::new()) } else { tasks.digest_lines(&ids).await };
        match lines {
            Ok(lines) => {
                outage.succeeded();
                due.iter().for_each(|(org, changes)| publish(digests, publisher, org, changes, &lines));
            }
            Err(error) => {
                outage.failed(&error);
                digests.put_back(due);
                not_before = Instant::now() + INTERVAL;
            }
        }
    }
}

fn publish(
    digests: &Digests,
    publisher: &CoordinationPublisher,
    org: &OrgId,
    changes: &Changes,
    lines: &HashMap<TaskId, (String, Value)>,
) {
    let (Some(room), Some(n)) = (room(org), digests.next(org, Instant::now())) else { return };
    // By the org of the row: a task belongs to the digest of no other org.
    let own = |id: &TaskId| lines.get(id).filter(|(of, _)| of == org.as_str()).map(|(_, line)| line);
    let Changes { tasks, more, agents, gap } = changes;
    let tasks: Vec<&Value> = tasks.iter().filter_map(own).collect();
    let payload = json!({
        "n": n, "at": publisher.clock.now(), "tasks": tasks, "more": more, "agents": agents, "gap": gap,
    });
    publisher.digest(&room, &payload);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn org(name: &str) -> OrgId {
        name.parse().unwrap()
    }

    #[tokio::test(start_paused = true)]
    async fn changes_are_collected_for_rooms_that_were_entered_and_kept_until_they_are_sent() {
        let digests = Digests::default();
        digests.agents(&org("demo"));
        digests.enter(org("demo"));
        let watched = |_: &OrgId| true;
        assert_eq!(digests.due(Instant::now(), watched), [], "the room was entered after the change");
        digests.agents(&org("demo"));
        digests.agents(&org("other"));
        tokio::time::advance(INTERVAL).await;
        let changes = Changes { agents: true, ..Changes::default() };
        let due = digests.due(Instant::now(), watched);
        assert_eq!(due, [(org("demo"), changes.clone())]);
        digests.put_back(due);
        digests.lost();
        let both = Changes { gap: true, ..changes };
        assert_eq!(digests.due(Instant::now(), watched), [(org("demo"), both)]);
        assert_eq!(digests.next(&org("demo"), Instant::now()), Some(1));
        assert_eq!(digests.next(&org("demo"), Instant::now()), Some(2));
        tokio::time::advance(IDLE).await;
        assert_eq!(digests.due(Instant::now(), watched), [(org("demo"), Changes::default())], "idle");
    }

    #[tokio::test(start_paused = true)]
    async fn change_after_a_pause_is_sent_at_once_and_others_after_an_interval() {
        let digests = Digests::default();
        let sent = || {
            let due = digests.due(Instant::now(), |_| true);
            due.iter().for_each(|(org, _)| _ = digests.next(org, Instant::now()));
            due.len()
        };
        digests.enter(org("demo"));
        digests.rooms.lock().get_mut(&org("demo")).unwrap().first_at = None;
        tokio::time::advance(INTERVAL).await;
        digests.agents(&org("demo"));
        digests.changed.notified().await;
        assert_eq!(sent(), 0, "an award is several changes");
        tokio::time::advance(SETTLE).await;
        assert_eq!((sent(), sent()), (1, 0));
        for _ in 0..3 {
            digests.agents(&org("demo"));
            tokio::time::advance(INTERVAL / 2).await;
            assert_eq!(sent(), 0, "four times a second at most");
            digests.agents(&org("demo"));
            tokio::time::advance(INTERVAL / 2).await;
            assert_eq!((sent(), sent()), (1, 0));
        }
        assert_eq!(digests.next_at(), Some(Instant::now() + IDLE));
        // A change that comes while the lines of a digest are read.
        tokio::time::advance(INTERVAL).await;
        digests.agents(&org("demo"));
        tokio::time::advance(SETTLE).await;
        assert_eq!(digests.due(Instant::now(), |_| true).len(), 1);
        digests.agents(&org("demo"));
        digests.next(&org("demo"), Instant::now());
        tokio::time::advance(INTERVAL - Duration::from_millis(1)).await;
        assert_eq!(sent(), 0, "also behind a digest that is being made");
        tokio::time::advance(Duration::from_millis(1)).await;
        assert_eq!(sent(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn every_subscriber_gets_a_digest_soon_after_it_entered() {
        let digests = Digests::default();
        let sent = || digests.due(Instant::now(), |_| true).len();
        digests.enter(org("demo"));
        assert_eq!(sent(), 0, "it is not in the room yet");
        tokio::time::advance(FIRST_AFTER / 2).await;
        digests.enter(org("demo"));
        tokio::time::advance(FIRST_AFTER / 2).await;
        assert_eq!((sent(), sent()), (1, 0), "for the first");
        tokio::time::advance(FIRST_AFTER / 2).await;
        assert_eq!((sent(), sent()), (1, 0), "for the second");
    }

    #[tokio::test(start_paused = true)]
    async fn room_that_was_left_is_forgotten() {
        let digests = Digests::default();
        digests.enter(org("demo"));
        digests.due(Instant::now(), |_| false);
        assert_eq!(digests.next(&org("demo"), Instant::now()), Some(1), "it may be entered still");
        tokio::time::advance(FORGOTTEN_AFTER).await;
        digests.due(Instant::now(), |_| false);
        assert_eq!(digests.next(&org("demo"), Instant::now()), None);
    }

    #[test]
    fn digest_has_a_limit_and_says_that_there_is_more() {
        let mut changes = Changes::default();
        let ids: Vec<TaskId> = (0..=TASKS_MAX).map(|_| TaskId::generate()).collect();
        ids.iter().take(TASKS_MAX).for_each(|id| changes.task(*id));
        changes.task(ids[0]);
        assert!(!changes.more);
        changes.task(ids[TASKS_MAX]);
        assert_eq!((changes.tasks.len(), changes.more), (TASKS_MAX, true));
    }

    #[test]
    fn only_public_rooms_of_an_org_have_digests() {
        let named = |topic: &str, private| Room { topic: Topic::new(topic).unwrap(), private };
        assert_eq!(org_of(&named("convoke:demo", false)), Some(org("demo")));
        assert_eq!(org_of(&named("convoke:demo", true)), None);
        assert_eq!(org_of(&named("org:demo", false)), None);
        let nameless = named("convoke:", false);
        assert!(is_digest_room(&nameless) && org_of(&nameless).is_none());
    }
}
