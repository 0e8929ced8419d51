//! In-memory cache of agent eligibility and load.
//!
//! A copy of `convoke.agents` and `convoke.statistics`: eligible agents, free slots, measurements. It only saves
//! reads: the statement of the award checks the slot again, and a refresh from the rows corrects any difference.
use crate::task::rounds::score::{Measured, Offer, computed};
use crate::task::storage::rows::Unreadable;
use crate::task::{AgentId, Incarnation, OrgId, TaskId, Terms};
use std::collections::HashMap;
use tokio::time::Instant;

/// Millionths in one.
const ONE: i64 = 1_000_000;
/// Open offers that an agent with offers of its own may have beyond its free slots: enough to win another task when
/// one is lost, too few to offer on every task at once.
const OVERBID: usize = 2;

/// An agent that is present.
#[derive(Clone, Debug)]
pub(in crate::task) struct PresentAgent {
    pub(in crate::task) org: OrgId,
    pub(in crate::task) capabilities: Vec<String>,
    pub(in crate::task) slots: u32,
    pub(in crate::task) used: u32,
    /// Whether it gets no new task.
    pub(in crate::task) drained: bool,
    pub(in crate::task) incarnation: Incarnation,
    pub(in crate::task) terms: Terms,
    pub(in crate::task) measured: HashMap<String, Measured>,
    /// The number of the last award it got; lower waited longer.
    pub(in crate::task) last_award: u64,
}

impl PresentAgent {
    /// The slots that a new task may take; none of an agent that is drained.
    pub(in crate::task) fn free(&self) -> u32 {
        if self.drained { 0 } else { self.slots.saturating_sub(self.used) }
    }
    /// Whether it is asked for an offer: it makes offers of its own and has a free slot.
    pub(in crate::task) fn is_asked(&self) -> bool {
        !self.terms.computed && self.free() > 0
    }
    /// The share of its slots that is free, in millionths.
    pub(in crate::task) fn free_share(&self) -> i64 {
        i64::from(self.free()) * ONE / i64::from(self.slots.max(1))
    }
    /// Its measurements with this kind of task.
    pub(in crate::task) fn measured(&self, kind: &str) -> Measured {
        self.measured.get(kind).copied().unwrap_or_default()
    }
    pub(in crate::task) fn can(&self, org: &OrgId, requires: &[String]) -> bool {
        self.org == *org && requires.iter().all(|need| self.capabilities.contains(need))
    }
}

/// The agents that are present.
#[derive(Debug, Default)]
pub(in crate::task) struct Roster {
    pub(in crate::task) members: HashMap<AgentId, PresentAgent>,
    awards: u64,
    /// Agents whose slots became free while the rows are read: the rows may not show it yet.
    freed_meanwhile: Option<Vec<AgentId>>,
    /// Counts arrivals and departures of single agents.
    edits: u64,
    /// Open offers of agents with offers of their own, by task, and until when each counts.
    bids: HashMap<AgentId, HashMap<TaskId, Instant>>,
    /// Agents whose rows could not be read at the last refresh, each logged once.
    unreadable: HashMap<String, Unreadable>,
}

impl Roster {
    /// Must be called before the rows are read.
    pub(in crate::task) fn reading(&mut self) {
        self.freed_meanwhile = Some(Vec::new());
    }

    /// Replaces all agents by the rows. How long each has waited for an award is known here only.
    pub(in crate::task) fn replace(&mut self, mut members: HashMap<AgentId, PresentAgent>) {
        // Race with a release during the read: the slot counts as free although the rows may show it free too. One
        // free slot too many costs an award that fails and another poll; one too few leaves a task waiting.
        for id in self.freed_meanwhile.take().unwrap_or_default() {
            if let Some(member) = members.get_mut(&id) {
                member.used = member.used.saturating_sub(1);
            }
        }
        for (id, member) in &mut members {
            member.last_award = self.members.get(id).map_or(0, |known| known.last_award);
        }
        self.members = members;
    }

    /// Remembers the agents whose rows could not be read, and logs those that are new. `all`: the list is complete.
    pub(in crate::task) fn note_unreadable(&mut self, unreadable: HashMap<String, Unreadable>, all: bool) {
        if all {
            self.unreadable.retain(|id, _| unreadable.contains_key(id));
        }
        for (id, why) in unreadable {
            if self.unreadable.get(&id) != Some(&why) {
                tracing::warn!(agent = id, %why, "agent row cannot be read, agent gets no tasks");
                self.unreadable.insert(id, why);
            }
        }
    }

    /// Rises whenever a single agent comes or goes; rows that were read before are stale then.
    pub(in crate::task) fn edits(&self) -> u64 {
        self.edits
    }

    /// Replaces one agent by its row; `None` removes it.
    pub(in crate::task) fn put(&mut self, id: &AgentId, member: Option<PresentAgent>) {
        self.edits += 1;
        let known = self.members.remove(id);
        if let Some(mut member) = member {
            member.last_award = known.map_or(0, |known| known.last_award);
            self.members.insert(id.clone(), member);
        }
    }

    /// Removes an agent whose incarnation has ended, unless a later one is present.
    pub(in crate::task) fn drop_life(&mut self, id: &AgentId, life: Incarnation) {
        self.edits += 1;
        if self.members.get(id).is_some_and(|member| member.incarnation <= life) {
            self.members.remove(id);
        }
    }

    /// How many open offers an agent has, and how many it may have. `None` if it is not present.
    pub(in crate::task) fn bids(&mut self, id: &AgentId, now: Instant) -> Option<(usize, usize)> {
        let free = usize::try_from(self.members.get(id)?.free()).unwrap_or(0);
        let open = self.bids.get_mut(id).map_or(0, |bids| {
            bids.retain(|_, until| *until > now);
            bids.len()
        });
        Some((open, free + OVERBID))
    }

    /// Whether it may offer on one more task.
    pub(in crate::task) fn may_bid(&mut self, id: &AgentId, now: Instant) -> bool {
        self.bids(id, now).is_some_and(|(open, most)| open < most)
    }

    /// Whether it has an open offer on this task.
    pub(in crate::task) fn has_bid(&self, id: &AgentId, task: TaskId) -> bool {
        self.bids.get(id).is_some_and(|bids| bids.contains_key(&task))
    }

    /// Records an open offer.
    pub(in crate::task) fn bid(&mut self, id: &AgentId, task: TaskId, until: Instant) {
        self.bids.entry(id.clone()).or_default().insert(task, until);
    }

    /// Removes its open offer on this task.
    pub(in crate::task) fn declined(&mut self, id: &AgentId, task: TaskId) {
        if let Some(bids) = self.bids.get_mut(id) {
            bids.remove(&task);
        }
    }

    /// Removes all open offers on a task whose round is over.
    pub(in crate::task) fn round_over(&mut self, task: TaskId) {
        self.bids.retain(|_, bids| {
            bids.remove(&task);
            !bids.is_empty()
        });
    }

    /// The agents with the org and the capabilities, ordered by id.
    pub(in crate::task) fn eligible(&self, org: &OrgId, requires: &[String]) -> Vec<AgentId> {
        let mut ids: Vec<AgentId> = self
            .members
            .iter()
            .filter(|(_, member)| member.can(org, requires))
            .map(|(id, _)| id.clone())
            .collect();
        ids.sort();
        ids
    }

    /// The computed offer of an agent that has a free slot and makes no offers of its own.
    pub(in crate::task) fn offer(&self, id: &AgentId, kind: &str) -> Option<Offer> {
        let member = self.members.get(id)?;
        if !member.terms.computed || member.free() == 0 {
            return None;
        }
        Some(member.computed(id, kind))
    }

    /// The computed offer of any agent that has a free slot.
    pub(in crate::task) fn fallback(&self, id: &AgentId, kind: &str) -> Option<Offer> {
        let member = self.members.get(id).filter(|member| member.free() > 0)?;
        Some(member.computed(id, kind))
    }

    /// Takes a slot for an award.
    pub(in crate::task) fn took(&mut self, id: &AgentId) {
        self.awards += 1;
        if let Some(member) = self.members.get_mut(id) {
            member.used = (member.used + 1).min(member.slots);
            member.last_award = self.awards;
        }
    }

    /// Gives back the slot of an assignment that ended.
    pub(in crate::task) fn freed(&mut self, id: &AgentId) {
        if let Some(member) = self.members.get_mut(id) {
            member.used = member.used.saturating_sub(1);
        }
        if let Some(freed) = &mut self.freed_meanwhile {
            freed.push(id.clone());
        }
    }
}

impl PresentAgent {
    fn computed(&self, id: &AgentId, kind: &str) -> Offer {
        let measured = self.measured(kind);
        let (cost_microdollars, eta_ms, confidence) = computed(&self.terms, &measured, self.slots, self.used);
        Offer {
            agent: id.clone(),
            incarnation: self.incarnation,
            cost_microdollars,
            eta_ms,
            confidence,
            free: self.free_share(),
            measured,
            waited_rank: self.last_award,
            arrival: 0,
            chosen: false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn member(org: &str, capabilities: &[&str], slots: u32) -> PresentAgent {
        PresentAgent {
            org: org.try_into().unwrap(),
            capabilities: capabilities.iter().map(|c| (*c).to_owned()).collect(),
            slots,
            used: 0,
            drained: false,
            incarnation: Incarnation(1),
            terms: Terms {
                computed: true,
                thinks: None,
                cost_microdollars: 1,
                confidence: 0.5,
                eta: Duration::from_millis(1),
            },
            measured: HashMap::new(),
            last_award: 0,
        }
    }

    #[test]
    fn agent_of_another_org_or_without_a_capability_is_not_eligible() {
        let mut roster = Roster::default();
        let named = |id: &str, m| (AgentId::try_from(id).unwrap(), m);
        roster.replace(HashMap::from([
            named("both", member("demo", &["a", "b"], 1)),
            named("half", member("demo", &["a"], 1)),
            named("other", member("else", &["a", "b"], 1)),
        ]));
        let ids: Vec<String> = roster
            .eligible(&"demo".try_into().unwrap(), &["b".into(), "a".into()])
            .iter()
            .map(ToString::to_string)
            .collect();
        assert_eq!(ids, ["both"]);
    }

    #[test]
    fn slot_released_during_a_refresh_stays_free() {
        let id = AgentId::try_from("one").unwrap();
        let busy = || HashMap::from([(id.clone(), PresentAgent { used: 1, ..member("demo", &[], 1) })]);
        let mut roster = Roster::default();
        roster.replace(busy());
        roster.reading();
        roster.freed(&id);
        roster.replace(busy());
        assert!(roster.offer(&id, "k").is_some());
        roster.replace(busy());
        assert!(roster.offer(&id, "k").is_none(), "only releases during one refresh count");
    }

    #[test]
    fn drained_agent_is_eligible_and_makes_no_offer() {
        let mut roster = Roster::default();
        let id = AgentId::try_from("one").unwrap();
        let drained = PresentAgent { drained: true, ..member("demo", &["a"], 2) };
        roster.replace(HashMap::from([(id.clone(), drained)]));
        assert_eq!(roster.eligible(&"demo".try_into().unwrap(), &["a".into()]), std::slice::from_ref(&id));
        assert!(roster.offer(&id, "k").is_none() && roster.fallback(&id, "k").is_none());
    }

    #[test]
    fn agent_without_a_free_slot_makes_no_offer() {
        let mut roster = Roster::default();
        let id = AgentId::try_from("one").unwrap();
        roster.replace(HashMap::from([(id.clone(), member("demo", &[], 1))]));
        assert!(roster.offer(&id, "k").is_some());
        roster.took(&id);
        assert!(roster.offer(&id, "k").is_none());
        roster.freed(&id);
        assert_eq!(roster.offer(&id, "k").unwrap().waited_rank, 1);
    }
}
