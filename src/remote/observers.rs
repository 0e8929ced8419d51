//! Channels that entered a room of agents before the org of an agent was known, and are judged again when it is.
//!
//! A token of an agent may enter `agent:<id>` before the id belongs to anybody, and a client of an org may choose a
//! presence key that later is the id of an agent. Once that agent belongs to an org, a channel without the right to the
//! room or to the key receives nothing more, at once, and its owner is woken to end it. `ConnectedAgents` calls
//! [`Observers::judge`] after each change of an org, and judges a channel when it enters, so none slips in between.
use super::connected_agents::ConnectedAgents;
use crate::{
    auth::{Claims, Principal},
    hub::{Interests, SubscriptionHandle},
    id::{AgentId, OrgId},
};
use parking_lot::Mutex;
use std::{
    collections::HashMap,
    fmt,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};
use tokio::sync::Notify;

/// The channels by the agent on whose org their right depends.
#[derive(Default)]
pub(super) struct Observers(Mutex<HashMap<AgentId, Vec<Arc<Observer>>>>);

/// What a channel has that depends on the org of an agent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Held {
    /// It hears the room of the agent.
    Room,
    /// It is present in the room of this org under the id of the agent.
    Key(OrgId),
}

struct Observer {
    held: Held,
    claims: Mutex<Arc<Claims>>,
    handle: SubscriptionHandle,
    wake: Arc<Notify>,
    must_end: AtomicBool,
}

/// The channel and what wakes its owner.
pub(super) struct Watched {
    pub(super) claims: Arc<Claims>,
    pub(super) handle: SubscriptionHandle,
    pub(super) wake: Arc<Notify>,
}

/// A watched channel; dropping it ends the watch.
pub struct ObserverGuard {
    connected: ConnectedAgents,
    agent: AgentId,
    observer: Arc<Observer>,
}

/// Whether a bearer may use the id of an agent of this org as its own.
pub(super) fn is_own(claims: &Claims, agent: &str, owner: &OrgId) -> bool {
    let same_org = claims.org.clone().unwrap_or_default() == *owner;
    let own = claims.agent_id.as_ref().is_some_and(|own| own.as_str() == agent);
    claims.is_service() || (same_org && own && claims.may_act())
}

impl Observers {
    /// Ends the channels that have no right to what they hold, now that the agent is of this org.
    pub(super) fn judge(&self, agent: &AgentId, owner: &OrgId) {
        if let Some(observers) = self.0.lock().get(agent) {
            observers.iter().for_each(|observer| observer.judge(agent, owner));
        }
    }

    /// The agents whose rooms are heard, at most `max` of those that `is_wanted`.
    pub(super) fn heard(&self, max: usize, is_wanted: impl Fn(&AgentId) -> bool) -> Vec<AgentId> {
        let observers = self.0.lock();
        let heard = observers.iter().filter(|(_, of)| of.iter().any(|observer| observer.held == Held::Room));
        heard.map(|(agent, _)| agent).filter(|agent| is_wanted(agent)).take(max).cloned().collect()
    }

    fn remove(&self, agent: &AgentId, gone: &Arc<Observer>) {
        let mut all = self.0.lock();
        let Some(observers) = all.get_mut(agent) else { return };
        observers.retain(|observer| !Arc::ptr_eq(observer, gone));
        if observers.is_empty() {
            all.remove(agent);
        }
    }
}

impl fmt::Debug for Observers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Observers").field(&self.0.lock().len()).finish()
    }
}

impl Observer {
    fn judge(&self, agent: &AgentId, owner: &OrgId) {
        let claims = self.claims.lock().clone();
        let is_lost = match &self.held {
            Held::Room => !Principal::of(claims).sees(owner),
            Held::Key(org) => org == owner && !is_own(&claims, agent.as_str(), owner),
        };
        if is_lost {
            // Muted here, because the owner ends the channel only when its task runs.
            self.handle.set(Interests { broadcast: false, presence: false });
            self.must_end.store(true, Ordering::Release);
            self.wake.notify_one();
        }
    }
}

impl ObserverGuard {
    /// Watches a channel until the guard is dropped, and judges it now.
    pub(super) fn new(connected: &ConnectedAgents, agent: AgentId, held: Held, watched: Watched) -> Self {
        let Watched { claims, handle, wake } = watched;
        let (claims, must_end) = (Mutex::new(claims), AtomicBool::new(false));
        let observer = Arc::new(Observer { held, claims, handle, wake, must_end });
        connected.observers().0.lock().entry(agent.clone()).or_default().push(observer.clone());
        let guard = Self { connected: connected.clone(), agent, observer };
        guard.judge();
        guard
    }

    /// Whether the channel must end. It receives nothing more.
    #[must_use]
    pub fn must_end(&self) -> bool {
        self.observer.must_end.load(Ordering::Acquire)
    }

    /// Replaces the claims after a new token.
    pub fn renew(&self, claims: Arc<Claims>) {
        *self.observer.claims.lock() = claims;
        self.judge();
    }

    fn judge(&self) {
        // Read after the channel is in the list: who changes the org later finds it there.
        if let Some(owner) = self.connected.org_of(&self.agent) {
            self.observer.judge(&self.agent, &owner);
        }
    }
}

impl Drop for ObserverGuard {
    fn drop(&mut self) {
        self.connected.observers().remove(&self.agent, &self.observer);
    }
}

impl fmt::Debug for ObserverGuard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ObserverGuard").field("agent", &self.agent).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        hub::{Hub, Listener, Message, Room},
        id::Topic,
        telemetry::Registry,
    };
    use futures_util::FutureExt;
    use serde_json::json;

    struct Rig {
        hub: Hub,
        connected: ConnectedAgents,
        agent: AgentId,
    }

    impl Rig {
        fn new() -> Self {
            let hub = Hub::new(&Registry::default());
            Self { hub, connected: ConnectedAgents::default(), agent: "late".parse().unwrap() }
        }

        fn room(&self) -> Room {
            Room::public(Topic::agent(&self.agent))
        }

        fn enter(&self, claims: Claims, held: Held) -> (Listener, ObserverGuard, Arc<Notify>) {
            let listener = self.hub.listen(self.room(), 8);
            let wake = Arc::new(Notify::new());
            let watched = Watched { claims: claims.into(), handle: listener.handle(), wake: wake.clone() };
            let guard = ObserverGuard::new(&self.connected, self.agent.clone(), held, watched);
            (listener, guard, wake)
        }

        fn register(&self, org: &str) {
            self.connected.set_orgs([(self.agent.clone(), org.parse().unwrap())]);
        }

        /// Whether a message of the room reaches this listener.
        fn hears(&self, listener: &mut Listener) -> bool {
            self.hub.publish(&self.room(), Message::broadcast("coordination", &json!({})), None);
            listener.recv().now_or_never().is_some()
        }
    }

    #[tokio::test]
    async fn channel_of_another_org_is_muted_at_once_when_the_agent_is_known() {
        let rig = Rig::new();
        let thief = Claims::in_org("authenticated", "else", Some("late"));
        let (mut heard, guard, wake) = rig.enter(thief.clone(), Held::Room);
        let mut others: Vec<_> = [
            Claims::in_org("authenticated", "demo", Some("late")),
            Claims::in_org("authenticated", "demo", None),
            Claims::in_org("service_role", "else", None),
        ]
        .into_iter()
        .map(|claims| rig.enter(claims, Held::Room))
        .collect();
        assert!(!guard.must_end() && rig.hears(&mut heard));
        for (listener, ..) in &mut others {
            listener.recv().await.unwrap();
        }
        rig.register("demo");
        assert!(guard.must_end() && !rig.hears(&mut heard));
        wake.notified().await;
        for (listener, guard, _) in &mut others {
            assert!(!guard.must_end() && listener.recv().now_or_never().is_some());
        }
        // One that enters now is judged when it enters, and one whose agent moves when it moves.
        let (mut late, guard, _) = rig.enter(thief, Held::Room);
        assert!(guard.must_end() && !rig.hears(&mut late));
        rig.register("third");
        assert!(others[0].1.must_end() && others[1].1.must_end() && !others[2].1.must_end());
    }

    #[tokio::test]
    async fn channel_is_judged_by_its_new_token_and_forgotten_when_it_leaves() {
        let rig = Rig::new();
        rig.register("demo");
        let (_heard, guard, _) = rig.enter(Claims::in_org("authenticated", "demo", None), Held::Room);
        assert!(!guard.must_end());
        guard.renew(Claims::in_org("authenticated", "else", None).into());
        assert!(guard.must_end());
        assert!(rig.connected.observers().heard(9, |_| true) == [rig.agent.clone()]);
        assert!(rig.connected.observers().heard(9, |_| false).is_empty());
        drop(guard);
        assert!(rig.connected.observers().0.lock().is_empty());
    }

    #[tokio::test]
    async fn presence_key_is_lost_to_an_agent_of_the_room_and_to_no_other() {
        let rig = Rig::new();
        let key = || Held::Key("demo".parse().unwrap());
        let (_user, user, _) = rig.enter(Claims::in_org("authenticated", "demo", None), key());
        let (_own, own, _) = rig.enter(Claims::in_org("authenticated", "demo", Some("late")), key());
        rig.register("else");
        assert!(!user.must_end() && !own.must_end(), "an agent of another org has other rooms");
        rig.register("demo");
        assert!(user.must_end() && !own.must_end());
        assert!(rig.connected.observers().heard(9, |_| true).is_empty(), "it hears no room of the agent");
    }
}
