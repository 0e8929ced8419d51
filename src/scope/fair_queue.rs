//! A fair queue for a small number of turns: connections of the database, threads of a kind of work.
//!
//! Fair among orgs, then among the connections of an org, then first come, first served: the next turn goes
//! to the org, and in it to the connection, with the least accumulated time. A newcomer starts with the least
//! accumulated time of the others, so that it gets no long preference and does not wait behind a backlog. One
//! connection holds at most half of the turns. An org or a policy with slow queries leaves at least one turn
//! to the others. Does no I/O. A turn ends when it is dropped.
use parking_lot::Mutex;
use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
    time::Duration,
};
use tokio::{sync::oneshot, time::Instant};

/// Most waiting requests; further ones are refused with [`QueueFull`].
const WAITING_MAX: usize = 20_000;
/// An org or a policy with a slower moving average may not hold every turn.
const SLOW: Duration = Duration::from_millis(100);
/// Most moving averages kept; at the limit, those without a running turn are evicted.
const AVERAGES_MAX: usize = 10_000;
/// Weight of the newest query in the exponential moving average.
const WEIGHT: f64 = 0.25;

/// The identity that requests a turn.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TurnOwner {
    /// The org of the token; empty if the token has none.
    pub org: Arc<str>,
    /// A number that is unique to the client connection, or to the requester.
    pub connection: u64,
    /// The policy that is evaluated, or another kind of work. Turns with the same value share one moving average of time.
    pub policy: Arc<str>,
}

/// A fair queue for a fixed number of concurrent turns. Clones share it.
#[derive(Clone, Debug)]
pub struct FairQueue(Arc<Mutex<State>>);

/// One turn; dropping it grants the turn to the next in the queue.
#[derive(Debug)]
pub struct Turn {
    /// `None` once the turn was given back.
    turns: Option<FairQueue>,
    owner: TurnOwner,
    began: Instant,
}

/// The queue is full.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QueueFull;

#[derive(Debug)]
struct State {
    size: usize,
    free: usize,
    waiting: usize,
    orgs: HashMap<Arc<str>, Org>,
    averages: HashMap<Key, Average>,
}

#[derive(Debug, Default)]
struct Org {
    used: Duration,
    running: usize,
    connections: HashMap<u64, Connection>,
}

#[derive(Debug, Default)]
struct Connection {
    used: Duration,
    running: usize,
    waiting: VecDeque<(TurnOwner, oneshot::Sender<Turn>)>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Key {
    Org(Arc<str>),
    Policy(Arc<str>),
}

#[derive(Debug, Default)]
struct Average {
    seconds: f64,
    running: usize,
}

impl TurnOwner {
    /// The daemon's own queries. No org can have this name, because names of orgs have no blanks.
    #[must_use]
    pub fn daemon(policy: &str) -> Self {
        Self { org: "the daemon".into(), connection: u64::MAX, policy: policy.into() }
    }
}

impl FairQueue {
    /// Creates `size` concurrent turns, at least one.
    #[must_use]
    pub fn new(size: usize) -> Self {
        let size = size.max(1);
        Self(Arc::new(Mutex::new(State {
            size,
            free: size,
            waiting: 0,
            orgs: HashMap::new(),
            averages: HashMap::new(),
        })))
    }

    /// Waits for a turn. Cancel safe: an abandoned request is skipped.
    ///
    /// # Errors
    /// [`QueueFull`] if 20,000 requests wait already.
    pub async fn turn(&self, owner: TurnOwner) -> Result<Turn, QueueFull> {
        let (granted, turn) = oneshot::channel();
        {
            let mut state = self.0.lock();
            if state.waiting >= WAITING_MAX {
                return Err(QueueFull);
            }
            state.enqueue(owner, granted);
            state.grant(self);
        }
        // The sender stays in `State` until the turn is granted, so this cannot fail before.
        turn.await.map_err(|_| QueueFull)
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        if let Some(turns) = self.turns.take() {
            let mut state = turns.0.lock();
            state.finish(&self.owner, self.began.elapsed());
            state.grant(&turns);
        }
    }
}

impl State {
    /// Appends the request to the queue of its connection.
    fn enqueue(&mut self, owner: TurnOwner, granted: oneshot::Sender<Turn>) {
        // A newcomer starts at the minimum of those present: at zero it would be served alone until it caught
        // up.
        let least = self.orgs.values().map(|org| org.used).min().unwrap_or_default();
        let org = self.orgs.entry(owner.org.clone()).or_insert_with(|| Org { used: least, ..Org::default() });
        let least = org.connections.values().map(|it| it.used).min().unwrap_or_default();
        let connection = org
            .connections
            .entry(owner.connection)
            .or_insert_with(|| Connection { used: least, ..Connection::default() });
        connection.waiting.push_back((owner, granted));
        self.waiting += 1;
    }

    /// Grants every free turn, in the order of [`State::next`].
    fn grant(&mut self, turns: &FairQueue) {
        while self.free > 0 {
            let Some((org, connection)) = self.next() else { return };
            let waiting = self.orgs.get_mut(&org).and_then(|it| it.connections.get_mut(&connection));
            let Some((owner, granted)) = waiting.and_then(|it| it.waiting.pop_front()) else { return };
            self.waiting -= 1;
            if granted.is_closed() {
                self.remove_idle(&owner);
                continue;
            }
            self.start(&owner);
            let turn = Turn { turns: Some(turns.clone()), owner, began: Instant::now() };
            if let Err(mut turn) = granted.send(turn) {
                // `Turn::drop` would lock the mutex that this function's caller holds, so the turn is ended
                // here.
                turn.turns = None;
                self.finish(&turn.owner, Duration::ZERO);
            }
        }
    }

    /// The org and the connection to which the next turn goes.
    fn next(&self) -> Option<(Arc<str>, u64)> {
        let may = |connection: &Connection| {
            let (owner, granted) = connection.waiting.front()?;
            let held = connection.running >= (self.size / 2).max(1)
                || !self.leaves_one(&Key::Policy(owner.policy.clone()));
            // An abandoned request needs no turn: `grant` removes it, whatever its limits are.
            (!held || granted.is_closed()).then_some((connection.used, connection.running))
        };
        let orgs = self.orgs.iter().filter(|(name, _)| self.leaves_one(&Key::Org((*name).clone())));
        let first = orgs.filter_map(|(name, org)| {
            let connections = org.connections.iter().filter_map(|(id, it)| Some((may(it)?, *id)));
            // Ties go to the connection, and below to the org, with fewer running turns.
            let (_, connection) = connections.min()?;
            Some(((org.used, org.running), name, connection))
        });
        let (_, org, connection) = first.min_by_key(|(used, ..)| *used)?;
        Some((org.clone(), connection))
    }

    /// Whether a further turn of this slow org or policy leaves one turn to the others; always true for fast
    /// ones.
    fn leaves_one(&self, key: &Key) -> bool {
        let Some(average) = self.averages.get(key) else { return true };
        average.seconds < SLOW.as_secs_f64() || average.running < (self.size - 1).max(1)
    }

    fn start(&mut self, owner: &TurnOwner) {
        self.free -= 1;
        if let Some(org) = self.orgs.get_mut(&owner.org) {
            org.running += 1;
            if let Some(connection) = org.connections.get_mut(&owner.connection) {
                connection.running += 1;
            }
        }
        // Running entries stay: their `running` counts are needed when the turns end.
        if self.averages.len() >= AVERAGES_MAX {
            self.averages.retain(|_, average| average.running > 0);
        }
        for key in keys(owner) {
            self.averages.entry(key).or_default().running += 1;
        }
    }

    fn finish(&mut self, owner: &TurnOwner, took: Duration) {
        self.free += 1;
        if let Some(org) = self.orgs.get_mut(&owner.org) {
            (org.used, org.running) = (org.used + took, org.running.saturating_sub(1));
            if let Some(connection) = org.connections.get_mut(&owner.connection) {
                connection.used += took;
                connection.running = connection.running.saturating_sub(1);
            }
        }
        for key in keys(owner) {
            if let Some(average) = self.averages.get_mut(&key) {
                average.running = average.running.saturating_sub(1);
                average.seconds += (took.as_secs_f64() - average.seconds) * WEIGHT;
            }
        }
        self.remove_idle(owner);
    }

    /// Removes the connection, and then the org, if neither waits for a turn nor holds one.
    fn remove_idle(&mut self, owner: &TurnOwner) {
        let Some(org) = self.orgs.get_mut(&owner.org) else { return };
        if org.connections.get(&owner.connection).is_some_and(|it| it.running == 0 && it.waiting.is_empty()) {
            org.connections.remove(&owner.connection);
        }
        if org.connections.is_empty() && org.running == 0 {
            self.orgs.remove(&owner.org);
        }
    }
}

fn keys(owner: &TurnOwner) -> [Key; 2] {
    [Key::Org(owner.org.clone()), Key::Policy(owner.policy.clone())]
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::FutureExt;

    fn owner(org: &str, connection: u64, policy: &str) -> TurnOwner {
        TurnOwner { org: org.into(), connection, policy: policy.into() }
    }

    type Waiting = std::pin::Pin<Box<dyn Future<Output = Result<Turn, QueueFull>>>>;

    fn waiting(turns: &FairQueue, owner: TurnOwner) -> Waiting {
        let turns = turns.clone();
        let mut waiting: Waiting = Box::pin(async move { turns.turn(owner).await });
        assert!(waiting.as_mut().now_or_never().is_none(), "there is no turn left");
        waiting
    }

    fn has(waiting: &mut Waiting) -> Option<Turn> {
        waiting.as_mut().now_or_never().map(Result::unwrap)
    }

    #[tokio::test(start_paused = true)]
    async fn connection_with_a_backlog_holds_at_most_half_of_the_turns() {
        let turns = FairQueue::new(4);
        let greedy = [
            turns.turn(owner("a", 1, "slow")).await.unwrap(),
            turns.turn(owner("a", 1, "slow")).await.unwrap(),
        ];
        let mut backlog: Vec<_> = (0..58).map(|_| waiting(&turns, owner("a", 1, "slow"))).collect();
        let others = [
            turns.turn(owner("a", 2, "fast")).await.unwrap(),
            turns.turn(owner("b", 3, "fast")).await.unwrap(),
        ];
        tokio::time::advance(Duration::from_secs(2)).await;
        let mut late = waiting(&turns, owner("a", 4, "fast"));
        drop(greedy);
        assert!(has(&mut late).is_some(), "before the backlog of another connection");
        drop((others, late));
        tokio::task::yield_now().await;
        let granted: Vec<_> = backlog.iter_mut().filter_map(has).collect();
        assert_eq!(granted.len(), 2);
    }

    #[tokio::test(start_paused = true)]
    async fn slow_policy_leaves_one_turn_to_the_others() {
        let turns = FairQueue::new(4);
        let slow = turns.turn(owner("a", 0, "slow")).await.unwrap();
        tokio::time::advance(Duration::from_secs(2)).await;
        drop(slow);
        let mut held = Vec::new();
        for connection in 1..=3 {
            held.push(turns.turn(owner(&format!("o{connection}"), connection, "slow")).await.unwrap());
        }
        let mut fourth = waiting(&turns, owner("o4", 4, "slow"));
        assert!(turns.turn(owner("o5", 5, "fast")).await.is_ok());
        held.pop();
        assert!(has(&mut fourth).is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn turns_are_shared_among_orgs_by_accumulated_time() {
        let turns = FairQueue::new(1);
        let mut turn = Some(turns.turn(owner("big", 1, "p")).await.unwrap());
        let orgs = (2..50).map(|id| ("big", id)).chain((60..62).map(|id| ("small", id)));
        let mut all: Vec<_> = orgs.map(|(org, id)| (org, waiting(&turns, owner(org, id, "p")))).collect();
        let mut order = Vec::new();
        for _ in 0..3 {
            tokio::time::advance(Duration::from_secs(1)).await;
            drop(turn.take());
            let (at, next) =
                all.iter_mut().enumerate().find_map(|(at, (_, it))| Some((at, has(it)?))).unwrap();
            order.push(all.remove(at).0);
            turn = Some(next);
        }
        assert_eq!(order.iter().filter(|org| **org == "small").count(), 2, "{order:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn abandoned_request_takes_no_turn() {
        let turns = FairQueue::new(1);
        let turn = turns.turn(owner("a", 1, "p")).await.unwrap();
        let (given_up, mut next) = (waiting(&turns, owner("a", 2, "p")), waiting(&turns, owner("a", 3, "p")));
        drop(given_up);
        drop(turn);
        assert!(has(&mut next).is_some());
        // The turn is granted, and the request is dropped before it receives the turn.
        let turn = turns.turn(owner("a", 1, "p")).await.unwrap();
        let granted = waiting(&turns, owner("a", 2, "p"));
        drop(turn);
        drop(granted);
        assert!(turns.turn(owner("a", 4, "p")).await.is_ok());
    }
}
