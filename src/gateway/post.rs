//! Agents that are here by HTTP: each has a box that hears its room, and is here while it asks for what is in it.
//!
//! A box is a listener of the room `agent:<id>` with a place in the [`Attendance`], so that for everybody else
//! such an agent is like one with a socket. It is here while a poll is open and for its lease after its last
//! request; then its place is taken away at once. A box keeps what was said until the agent has confirmed it
//! with its next poll, bounded in messages and bytes: the oldest go first, and the agent is told how many.
use super::{Attendance, Attendant, Coordination, attendance::Attending};
use crate::{
    auth::Claims,
    hub::{Hub, Listener, Message, Room, SubscriberId},
    id::{AgentId, ConnId, OrgId, Topic},
    scope::{OnExit, Scope},
};
use bytes::Bytes;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, value::RawValue};
use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
    time::Duration,
};
use tokio::{
    sync::{Notify, mpsc},
    time::{Instant, sleep_until, timeout_at},
};
use tokio_util::sync::CancellationToken;

/// How long an agent is here after its last request, unless it says otherwise.
pub const LEASE: Duration = Duration::from_secs(10);
/// The shortest and the longest that it may say.
pub const LEASE_MIN: Duration = Duration::from_secs(1);
/// See [`LEASE_MIN`].
pub const LEASE_MAX: Duration = Duration::from_secs(60);
/// Agents that are here by HTTP at the same time.
const BOXES_MAX: usize = 10_000;
/// What a box keeps.
const MAIL_MAX: usize = 1_000;
const MAIL_BYTES_MAX: usize = 1 << 20;
/// What may wait to be put into a box.
const LISTEN_MAX: usize = 256;

/// The boxes of a daemon, and saying something to agents over HTTP. Clones are the same.
#[derive(Clone)]
pub struct Post(Arc<Office>);

struct Office {
    hub: Hub,
    attendance: Attendance,
    coordination: Option<mpsc::Sender<Coordination>>,
    scope: Scope,
    boxes: Mutex<HashMap<AgentId, Arc<PostBox>>>,
}

struct PostBox {
    channel: SubscriberId,
    state: Mutex<State>,
    changed: Notify,
    /// Cancelled when the agent leaves.
    gone: CancellationToken,
}

struct State {
    /// Gone when the box is.
    attending: Option<Attending>,
    org: String,
    lease: Duration,
    until: Instant,
    polls: usize,
    last_seq: u64,
    mail: VecDeque<Mail>,
    bytes: usize,
    dropped: u64,
}

/// One message in a box.
#[derive(Clone, Debug, Serialize)]
pub struct Mail {
    /// Its number in this box, from 1.
    pub seq: u64,
    /// `coordination`, `agent_message` or `agent_broadcast`.
    pub event: String,
    /// What was said.
    pub payload: Box<RawValue>,
}

/// What was in a box.
#[derive(Debug, Serialize)]
pub struct Collected {
    /// In the order it was said.
    pub messages: Vec<Mail>,
    /// What the next poll confirms with `after`.
    pub next: u64,
    /// How many were thrown away since the agent came, because the box was full.
    pub dropped: u64,
}

/// Why nothing was said.
#[derive(Debug, thiserror::Error)]
pub enum Unsaid {
    /// The sender may not say it there.
    #[error("{0}")]
    Forbidden(String),
    /// Too much waits to be said.
    #[error("too many messages wait; try again")]
    Full,
}

impl Post {
    pub(super) fn new(
        scope: &Scope,
        hub: Hub,
        attendance: Attendance,
        coordination: Option<mpsc::Sender<Coordination>>,
    ) -> Self {
        let (scope, boxes) = (scope.child(), Mutex::default());
        Self(Arc::new(Office { hub, attendance, coordination, scope, boxes }))
    }

    /// An agent is here, as `meta` says it is; if it was here already, it goes on with that. False when there
    /// are too many.
    #[must_use]
    pub fn enter(&self, agent: &AgentId, claims: Claims, meta: Map<String, Value>, lease: Duration) -> bool {
        let lease = lease.clamp(LEASE_MIN, LEASE_MAX);
        let mut boxes = self.0.boxes.lock();
        let org = super::coordination::org_of(&claims).to_owned();
        let (claims, meta) = (Arc::new(claims), Arc::new(meta));
        if let Some(known) = boxes.get(agent).filter(|known| !known.gone.is_cancelled()) {
            let mut state = known.state.lock();
            if let Some(part) = &state.attending {
                part.say(Attendant { channel: known.channel, claims, meta });
                (state.org, state.lease, state.until) = (org, lease, Instant::now() + lease);
                return true;
            }
        }
        if boxes.len() >= BOXES_MAX {
            return false;
        }
        let listener = self.0.hub.listen(Room::public(Topic::agent(agent)), LISTEN_MAX);
        let channel = listener.id();
        let attending = self.0.attendance.attend(agent.clone(), Attendant { channel, claims, meta });
        let state = State {
            attending: Some(attending),
            org,
            lease,
            until: Instant::now() + lease,
            polls: 0,
            last_seq: 0,
            mail: VecDeque::new(),
            bytes: 0,
            dropped: 0,
        };
        let (changed, gone) = (Notify::new(), self.0.scope.stopping().child_token());
        let made = Arc::new(PostBox { channel, state: Mutex::new(state), changed, gone });
        boxes.insert(agent.clone(), made.clone());
        drop(boxes);
        let (office, agent) = (self.0.clone(), agent.clone());
        self.0.scope.spawn("agent by http", OnExit::Log, |_| async move {
            made.serve(listener).await;
            office.forget(&agent, &made);
            Ok(())
        });
        true
    }

    /// The agent is here no more; false when it was not.
    #[must_use]
    pub fn leave(&self, agent: &AgentId) -> bool {
        let known = self.0.boxes.lock().get(agent).cloned();
        known.is_some_and(|known| {
            known.close();
            true
        })
    }

    /// The agent has shown that it lives.
    pub fn touch(&self, agent: &AgentId) {
        if let Some(known) = self.0.boxes.lock().get(agent) {
            let mut state = known.state.lock();
            state.until = Instant::now() + state.lease;
        }
    }

    /// What is in an agent's box beyond `after`, as soon as there is something, or when `until` has come.
    /// Confirms everything up to `after`. The agent is here meanwhile. Nothing when it is not here.
    pub async fn collect(&self, agent: &AgentId, after: u64, until: Instant) -> Option<Collected> {
        let known = self.0.boxes.lock().get(agent).filter(|known| !known.gone.is_cancelled()).cloned()?;
        let poll = Poll::begin(&known, after);
        loop {
            let changed = known.changed.notified();
            let collected = known.look();
            if !collected.messages.is_empty() || known.gone.is_cancelled() {
                return Some(collected);
            }
            let waited = tokio::select! {
                () = known.gone.cancelled() => return Some(known.look()),
                waited = timeout_at(until, changed) => waited,
            };
            if waited.is_err() {
                drop(poll);
                return Some(known.look());
            }
        }
    }

    /// The agents of an org that are here by HTTP, with their channels.
    #[must_use]
    pub fn of_org(&self, org: &OrgId) -> Vec<(AgentId, SubscriberId)> {
        let boxes = self.0.boxes.lock();
        let of = boxes.iter().filter(|(_, one)| one.state.lock().org == org.as_str());
        of.map(|(agent, one)| (agent.clone(), one.channel)).collect()
    }

    /// Says a message in a room as a client with a socket would: [`Coordination::MESSAGE`] or
    /// [`Coordination::BROADCAST`].
    ///
    /// # Errors
    /// [`Unsaid`].
    pub fn say(&self, claims: Claims, event: &'static str, room: Room, payload: Bytes) -> Result<(), Unsaid> {
        let message = Message::user(event, crate::wire::Encoding::Json, payload.clone(), None);
        let (conn, channel) = (ConnId(0), SubscriberId(0));
        let said = Coordination { conn, channel, event, claims: Arc::new(claims), room, payload };
        said.check_sender(&self.0.attendance).map_err(Unsaid::Forbidden)?;
        let room = said.room.clone();
        if let Some(queue) = &self.0.coordination {
            queue.try_send(said).map_err(|_| Unsaid::Full)?;
        }
        self.0.hub.publish(&room, message, None);
        Ok(())
    }
}

impl Office {
    fn forget(&self, agent: &AgentId, gone: &Arc<PostBox>) {
        let mut boxes = self.boxes.lock();
        if boxes.get(agent).is_some_and(|known| Arc::ptr_eq(known, gone)) {
            boxes.remove(agent);
        }
    }
}

/// An open poll: the agent is here while it lives.
struct Poll<'a>(&'a PostBox);

impl<'a> Poll<'a> {
    fn begin(of: &'a PostBox, after: u64) -> Self {
        let mut state = of.state.lock();
        state.polls += 1;
        while state.mail.front().is_some_and(|mail| mail.seq <= after) {
            let bytes = state.mail.pop_front().map_or(0, |mail| mail.payload.get().len());
            state.bytes = state.bytes.saturating_sub(bytes);
        }
        drop(state);
        Self(of)
    }
}

impl Drop for Poll<'_> {
    fn drop(&mut self) {
        let mut state = self.0.state.lock();
        state.polls = state.polls.saturating_sub(1);
        state.until = Instant::now() + state.lease;
    }
}

impl PostBox {
    /// Puts what is said into the box until the agent is gone.
    async fn serve(&self, mut listener: Listener) {
        loop {
            let until = {
                let state = self.state.lock();
                if state.polls > 0 { Instant::now() + state.lease } else { state.until }
            };
            tokio::select! {
                biased;
                () = self.gone.cancelled() => break,
                said = listener.recv() => match said {
                    Some((_, message)) => self.put(&message),
                    None => break,
                },
                () = sleep_until(until) => {
                    let state = self.state.lock();
                    if state.polls == 0 && state.until <= Instant::now() {
                        break;
                    }
                }
            }
        }
        self.close();
    }

    fn close(&self) {
        self.state.lock().attending = None;
        self.gone.cancel();
    }

    fn put(&self, message: &Message) {
        #[derive(Deserialize)]
        struct Envelope {
            event: String,
            payload: Box<RawValue>,
        }
        let Some(object) = message.object() else { return };
        let Ok(Envelope { event, payload }) = serde_json::from_slice(&object) else { return };
        if !Coordination::EVENTS.contains(&event.as_str()) {
            return;
        }
        let bytes = payload.get().len();
        let mut state = self.state.lock();
        state.last_seq += 1;
        let seq = state.last_seq;
        state.bytes += bytes;
        state.mail.push_back(Mail { seq, event, payload });
        while state.mail.len() > MAIL_MAX || state.bytes > MAIL_BYTES_MAX {
            let Some(oldest) = state.mail.pop_front() else { break };
            state.bytes = state.bytes.saturating_sub(oldest.payload.get().len());
            state.dropped += 1;
        }
        drop(state);
        self.changed.notify_waiters();
    }

    fn look(&self) -> Collected {
        let state = self.state.lock();
        let messages: Vec<Mail> = state.mail.iter().cloned().collect();
        Collected { next: state.last_seq, dropped: state.dropped, messages }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::Registry;

    fn claims() -> Claims {
        Claims {
            role: "authenticated".into(),
            org: "demo".parse().ok(),
            agent_id: "x".parse().ok(),
            exp: chrono::DateTime::UNIX_EPOCH,
            sub: None,
            raw: Map::new(),
        }
    }

    fn office() -> (Scope, Hub, Attendance, Post, AgentId) {
        let (scope, hub, list) = (Scope::default(), Hub::new(&Registry::default()), Attendance::default());
        let post = Post::new(&scope, hub.clone(), list.clone(), None);
        (scope, hub, list, post, "x".parse().unwrap())
    }

    fn say(hub: &Hub, n: usize, size: usize) {
        let payload = serde_json::json!({ "n": n, "text": "x".repeat(size) });
        hub.publish(
            &Room::public(Topic::new("agent:x").unwrap()),
            Message::broadcast("coordination", &payload),
            None,
        );
    }

    #[tokio::test(start_paused = true)]
    async fn an_agent_is_here_while_it_polls_and_for_its_lease_after() {
        let (_scope, _hub, list, post, x) = office();
        assert!(post.collect(&x, 0, Instant::now()).await.is_none(), "nobody is here");
        assert!(post.enter(&x, claims(), Map::new(), Duration::from_secs(2)));
        let empty = post.collect(&x, 0, Instant::now() + Duration::from_secs(30)).await.unwrap();
        assert!(empty.messages.is_empty() && list.latest(&x).is_some(), "a poll longer than the lease");
        tokio::time::sleep(Duration::from_millis(1500)).await;
        post.touch(&x);
        tokio::time::sleep(Duration::from_millis(1500)).await;
        assert!(list.latest(&x).is_some(), "a sign of life counts");
        tokio::time::sleep(Duration::from_secs(2)).await;
        assert!(list.latest(&x).is_none());
        assert!(post.collect(&x, 0, Instant::now()).await.is_none());
        assert!(post.enter(&x, claims(), Map::new(), LEASE) && post.leave(&x));
        assert!(list.latest(&x).is_none(), "at once");
    }

    #[tokio::test(start_paused = true)]
    async fn mail_stays_until_it_is_confirmed_and_a_full_box_drops_the_oldest() {
        let (_scope, hub, _list, post, x) = office();
        assert!(post.enter(&x, claims(), Map::new(), LEASE));
        let soon = || Instant::now() + Duration::from_secs(5);
        let (got, ()) = tokio::join!(post.collect(&x, 0, soon()), async { say(&hub, 1, 0) });
        assert_eq!(got.unwrap().messages.len(), 1);
        say(&hub, 2, 0);
        tokio::task::yield_now().await;
        let again = post.collect(&x, 0, soon()).await.unwrap();
        assert_eq!(again.messages.iter().map(|mail| mail.seq).collect::<Vec<_>>(), [1, 2], "not confirmed");
        let rest = post.collect(&x, 1, soon()).await.unwrap();
        assert_eq!((rest.messages.len(), rest.next), (1, 2));
        for n in 0..8 {
            say(&hub, n, MAIL_BYTES_MAX / 4);
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        let full = post.collect(&x, 2, soon()).await.unwrap();
        assert_eq!((full.messages.len(), full.dropped, full.next), (3, 6, 10));
    }
}
