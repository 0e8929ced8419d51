//! The rate limit (`per_minute`) and the concurrency limit (`concurrent`) of declared tools. Agents of an org share the
//! permits of a tool by its name. The permits are those of this daemon: a restart forgets them, and several daemons do not
//! share them.
use crate::id::OrgId;
use parking_lot::Mutex;
use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
    time::Duration,
};
use tokio::{
    sync::Notify,
    time::{Instant, sleep_until, timeout_at},
};

const MINUTE: Duration = Duration::from_secs(60);

/// The permits of all tools. Clones share them.
#[derive(Clone, Debug, Default)]
pub(crate) struct ToolLimits(Arc<Mutex<Tools>>);

/// The calls of each tool, by org and name.
type Tools = BTreeMap<(OrgId, String), Arc<Calls>>;

/// A first-in, first-out queue: tokio's lock is fair, and its holder is the call at the head.
type Queue = Arc<tokio::sync::Mutex<()>>;

/// The limits that a definition sets for a tool. Defaults to none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Allowed {
    pub(crate) per_minute: Option<u32>,
    pub(crate) concurrent: Option<u32>,
}

/// The calls of one tool.
#[derive(Debug, Default)]
struct Calls {
    /// A queue for each set of limits: a call at the head of one blocks no call with higher limits.
    queues: Mutex<BTreeMap<Allowed, Queue>>,
    state: Mutex<State>,
    freed: Notify,
}

#[derive(Debug, Default)]
struct State {
    under_way: u32,
    /// When the calls of the last minute began.
    begun: VecDeque<Instant>,
}

/// The permit of a call under way. Dropping it releases it.
#[derive(Debug)]
pub(crate) struct Permit(Arc<Calls>);

/// The permits of the calls of an answer, by their steps.
#[derive(Default)]
pub(crate) struct Permits {
    pub(crate) held: BTreeMap<i32, Permit>,
    /// The end of each call's wait for its permit.
    pub(crate) deadlines: BTreeMap<i32, Instant>,
}

impl Drop for Permit {
    fn drop(&mut self) {
        let mut state = self.0.state.lock();
        state.under_way = state.under_way.saturating_sub(1);
        drop(state);
        self.0.freed.notify_waiters();
    }
}

impl ToolLimits {
    /// Acquires a permit without waiting. `None` if a limit is reached or the queue is not empty. A call without limits
    /// always gets one, and counts towards the limits of others.
    pub(crate) fn try_acquire(&self, org: &OrgId, tool: &str, allowed: Allowed) -> Option<Permit> {
        let calls = self.calls(org, tool);
        let queue = calls.queue(allowed);
        let _head = queue.try_lock().ok()?;
        calls.take(Instant::now(), allowed).ok()?;
        Some(Permit(calls.clone()))
    }

    /// Acquires a permit over the limits, for a call that began before and has not ended. `is_retry`: it counts towards
    /// `per_minute` once more.
    pub(crate) fn acquire_over_limit(&self, org: &OrgId, tool: &str, is_retry: bool) -> Permit {
        let calls = self.calls(org, tool);
        let mut state = calls.state.lock();
        state.under_way += 1;
        if is_retry {
            state.begun.push_back(Instant::now());
        }
        drop(state);
        Permit(calls)
    }

    /// Waits in the queue for a permit. `None` if there is none before `until`. Cancel safe: dropping the future leaves the
    /// queue.
    pub(crate) async fn acquire(
        &self,
        org: &OrgId,
        tool: &str,
        allowed: Allowed,
        until: Instant,
    ) -> Option<Permit> {
        let calls = self.calls(org, tool);
        let queue = calls.queue(allowed);
        let _head = timeout_at(until, queue.lock()).await.ok()?;
        loop {
            let freed = calls.freed.notified();
            tokio::pin!(freed);
            // Registered before the look, so that a release between look and wait is not missed.
            freed.as_mut().enable();
            let now = Instant::now();
            let wake = match calls.take(now, allowed) {
                Ok(()) => return Some(Permit(calls.clone())),
                Err(wake) => wake.map_or(until, |wake| wake.min(until)),
            };
            if now >= until {
                return None;
            }
            tokio::select! {
                () = freed => {}
                () = sleep_until(wake) => {}
            }
        }
    }

    fn calls(&self, org: &OrgId, tool: &str) -> Arc<Calls> {
        self.0.lock().entry((org.clone(), tool.to_owned())).or_default().clone()
    }
}

impl Calls {
    /// The queue of calls with these limits. Evicts the queues that no call uses.
    fn queue(&self, allowed: Allowed) -> Queue {
        let mut queues = self.queues.lock();
        queues.retain(|_, queue| Arc::strong_count(queue) > 1);
        queues.entry(allowed).or_default().clone()
    }

    /// Takes a permit. The error is when to look again; `None` if that is the end of another call.
    fn take(&self, now: Instant, allowed: Allowed) -> Result<(), Option<Instant>> {
        let mut state = self.state.lock();
        while state.begun.front().is_some_and(|begun| *begun + MINUTE <= now) {
            state.begun.pop_front();
        }
        if allowed.concurrent.is_some_and(|most| state.under_way >= most) {
            return Err(None);
        }
        let most = allowed.per_minute.map_or(usize::MAX, |most| usize::try_from(most).unwrap_or(usize::MAX));
        if let Some(over) = state.begun.len().checked_sub(most) {
            // The one after whose minute there is room.
            return Err(state.begun.get(over).map(|begun| *begun + MINUTE));
        }
        state.under_way += 1;
        state.begun.push_back(now);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn org() -> OrgId {
        OrgId::try_from("acme").unwrap()
    }

    fn allowed(per_minute: Option<u32>, concurrent: Option<u32>) -> Allowed {
        Allowed { per_minute, concurrent }
    }

    #[tokio::test(start_paused = true)]
    async fn calls_at_once_are_limited_and_enter_in_their_order() {
        let (limits, one) = (ToolLimits::default(), allowed(None, Some(1)));
        let until = Instant::now() + Duration::from_secs(10);
        let first = limits.try_acquire(&org(), "look", one).unwrap();
        assert!(limits.try_acquire(&org(), "look", one).is_none());
        assert!(limits.try_acquire(&org(), "pay", one).is_some(), "another tool");
        assert!(limits.try_acquire(&"other".try_into().unwrap(), "look", one).is_some(), "another org");
        let order = Mutex::new(Vec::new());
        let enter = async |n: u32| {
            let permit = limits.acquire(&org(), "look", one, until).await.unwrap();
            order.lock().push(n);
            tokio::time::sleep(Duration::from_secs(1)).await;
            drop(permit);
        };
        let free = async {
            tokio::time::sleep(Duration::from_secs(1)).await;
            drop(first);
        };
        tokio::join!(enter(1), enter(2), enter(3), free);
        assert_eq!(*order.lock(), [1, 2, 3]);
    }

    #[tokio::test(start_paused = true)]
    async fn calls_of_a_minute_are_limited_and_one_that_cannot_begin_in_time_is_refused() {
        let (limits, two) = (ToolLimits::default(), allowed(Some(2), None));
        let began = Instant::now();
        let enter =
            async |seconds| limits.acquire(&org(), "look", two, began + Duration::from_secs(seconds)).await;
        assert!(enter(5).await.is_some() && enter(5).await.is_some());
        assert!(enter(5).await.is_none());
        assert_eq!(began.elapsed(), Duration::from_secs(5), "it waited as long as it might");
        assert!(enter(100).await.is_some());
        assert_eq!(began.elapsed(), MINUTE);
    }

    #[tokio::test(start_paused = true)]
    async fn dropped_wait_leaves_the_queue() {
        let (limits, one) = (ToolLimits::default(), allowed(None, Some(1)));
        let first = limits.try_acquire(&org(), "look", one).unwrap();
        let late = Instant::now() + Duration::from_secs(100);
        let org = org();
        let dropped = tokio::time::timeout(Duration::from_secs(1), limits.acquire(&org, "look", one, late));
        assert!(dropped.await.is_err());
        drop(first);
        assert!(limits.try_acquire(&org, "look", one).is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn calls_without_limits_count_and_waiting_ones_hold_up_only_their_equals() {
        let (limits, org) = (ToolLimits::default(), org());
        let (one, three) = (allowed(None, Some(1)), allowed(None, Some(3)));
        let unlimited = limits.try_acquire(&org, "look", Allowed::default()).unwrap();
        assert!(limits.try_acquire(&org, "look", one).is_none(), "one is under way");
        let late = Instant::now() + Duration::from_secs(100);
        let waits = limits.acquire(&org, "look", one, late);
        let others = async {
            tokio::task::yield_now().await;
            assert!(limits.try_acquire(&org, "look", Allowed::default()).is_some());
            let second = limits.try_acquire(&org, "look", three).expect("it has room");
            assert!(limits.try_acquire(&org, "look", one).is_none(), "another one of its limits waits");
            drop((unlimited, second));
        };
        assert!(tokio::join!(waits, others).0.is_some());

        // A call that a killed daemon began gets a permit over the limit.
        let kept =
            [limits.acquire_over_limit(&org, "look", false), limits.acquire_over_limit(&org, "look", false)];
        assert!(limits.try_acquire(&org, "look", one).is_none());
        assert!(limits.try_acquire(&org, "look", three).is_some());
        drop(kept);
        assert!(limits.try_acquire(&org, "look", one).is_some());
        let minute = allowed(Some(1), None);
        assert!(limits.try_acquire(&org, "pay", minute).is_some());
        drop(limits.acquire_over_limit(&org, "pay", true));
        tokio::time::sleep(MINUTE).await;
        assert!(limits.try_acquire(&org, "pay", minute).is_some(), "both began a minute ago");
        drop(limits.acquire_over_limit(&org, "pay", true));
        assert!(limits.try_acquire(&org, "pay", minute).is_none());
    }
}
