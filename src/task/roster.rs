//! What the arbiter remembers of the agents between looks.
//!
//! A copy of `convoke.agents` and `convoke.statistics`: who is eligible, how many
//! slots are free, what was measured. It only saves reading: the award's statement
//! checks the slot again, and a refresh from the rows mends whatever drifted.
use super::score::{Measured, Offer, computed};
use super::{AgentId, Incarnation, OrgId, TaskId, Terms};
use std::collections::HashMap;
use tokio::time::Instant;

/// Millionths in one.
const ONE: i64 = 1_000_000;
/// Offers that an agent which speaks for itself may have under way beyond its free slots: enough to win
/// something else when one is lost, too few to promise everybody everything.
const OVERBID: usize = 2;

/// An agent that is present.
#[derive(Clone, Debug)]
pub(super) struct Member {
    pub(super) org: OrgId,
    pub(super) capabilities: Vec<String>,
    pub(super) slots: u32,
    pub(super) used: u32,
    pub(super) incarnation: Incarnation,
    pub(super) terms: Terms,
    pub(super) measured: HashMap<String, Measured>,
    /// The number of the last award it got; lower waited longer.
    pub(super) last_award: u64,
}

impl Member {
    pub(super) fn free(&self) -> u32 {
        self.slots.saturating_sub(self.used)
    }
    /// Whether it is to be asked for an offer: it speaks for itself and has a free slot.
    pub(super) fn is_asked(&self) -> bool {
        !self.terms.computed && self.free() > 0
    }
    /// Free slots of all slots, in millionths.
    pub(super) fn free_share(&self) -> i64 {
        i64::from(self.free()) * ONE / i64::from(self.slots.max(1))
    }
    /// What it did with this kind of task.
    pub(super) fn measured(&self, kind: &str) -> Measured {
        self.measured.get(kind).copied().unwrap_or_default()
    }
    pub(super) fn can(&self, org: &str, requires: &[String]) -> bool {
        self.org.as_str() == org && requires.iter().all(|need| self.capabilities.contains(need))
    }
}

/// All agents that are present.
#[derive(Debug, Default)]
pub(super) struct Roster {
    pub(super) members: HashMap<AgentId, Member>,
    awards: u64,
    /// Whose slots became free while the rows are being read: what was read may not know it.
    freed_meanwhile: Option<Vec<AgentId>>,
    /// How often single agents came and went.
    edits: u64,
    /// What agents that speak for themselves have offered on in rounds that are open, and until when that counts.
    bids: HashMap<AgentId, HashMap<TaskId, Instant>>,
}

impl Roster {
    /// The rows are about to be read.
    pub(super) fn reading(&mut self) {
        self.freed_meanwhile = Some(Vec::new());
    }

    /// Takes what the rows say; how long each has waited is remembered here only. A slot that became free
    /// meanwhile is counted as free, even if the rows knew it: one too many costs an award that is not made
    /// and another look, one too few lets a task wait for nothing.
    pub(super) fn replace(&mut self, mut members: HashMap<AgentId, Member>) {
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

    /// Rises whenever a single agent comes or goes: rows that were read before are old then.
    pub(super) fn edits(&self) -> u64 {
        self.edits
    }

    /// Takes what the rows say of one agent: nothing when it is gone.
    pub(super) fn put(&mut self, id: &AgentId, member: Option<Member>) {
        self.edits += 1;
        let known = self.members.remove(id);
        if let Some(mut member) = member {
            member.last_award = known.map_or(0, |known| known.last_award);
            self.members.insert(id.clone(), member);
        }
    }

    /// This life of an agent is over.
    pub(super) fn drop_life(&mut self, id: &AgentId, life: Incarnation) {
        self.edits += 1;
        if self.members.get(id).is_some_and(|member| member.incarnation <= life) {
            self.members.remove(id);
        }
    }

    /// Offers that an agent has under way, and the most that it may have; nothing for one that is not here.
    pub(super) fn bids(&mut self, id: &AgentId, now: Instant) -> Option<(usize, usize)> {
        let free = usize::try_from(self.members.get(id)?.free()).unwrap_or(0);
        let open = self.bids.get_mut(id).map_or(0, |bids| {
            bids.retain(|_, until| *until > now);
            bids.len()
        });
        Some((open, free + OVERBID))
    }

    /// Whether it may offer on one more task.
    pub(super) fn may_bid(&mut self, id: &AgentId, now: Instant) -> bool {
        self.bids(id, now).is_some_and(|(open, most)| open < most)
    }

    /// Whether it has offered on this one already.
    pub(super) fn has_bid(&self, id: &AgentId, task: TaskId) -> bool {
        self.bids.get(id).is_some_and(|bids| bids.contains_key(&task))
    }

    /// It has offered.
    pub(super) fn bid(&mut self, id: &AgentId, task: TaskId, until: Instant) {
        self.bids.entry(id.clone()).or_default().insert(task, until);
    }

    /// It was asked and declined.
    pub(super) fn declined(&mut self, id: &AgentId, task: TaskId) {
        if let Some(bids) = self.bids.get_mut(id) {
            bids.remove(&task);
        }
    }

    /// The round of a task is over: what was offered in it is under way no more.
    pub(super) fn round_over(&mut self, task: TaskId) {
        self.bids.retain(|_, bids| {
            bids.remove(&task);
            !bids.is_empty()
        });
    }

    /// The agents that can do such a task, in the order of their ids.
    pub(super) fn eligible(&self, org: &str, requires: &[String]) -> Vec<AgentId> {
        let mut ids: Vec<AgentId> = self
            .members
            .iter()
            .filter(|(_, member)| member.can(org, requires))
            .map(|(id, _)| id.clone())
            .collect();
        ids.sort();
        ids
    }

    /// What the runtime offers for an agent, if it has a free slot and does not speak for itself.
    pub(super) fn offer(&self, id: &AgentId, kind: &str) -> Option<Offer> {
        let member = self.members.get(id)?;
        if !member.terms.computed || member.free() == 0 {
            return None;
        }
        Some(member.computed(id, kind))
    }

    /// What the runtime would offer for an agent that has a free slot, whoever speaks for it.
    pub(super) fn fallback(&self, id: &AgentId, kind: &str) -> Option<Offer> {
        let member = self.members.get(id).filter(|member| member.free() > 0)?;
        Some(member.computed(id, kind))
    }

    /// An award took a slot.
    pub(super) fn took(&mut self, id: &AgentId) {
        self.awards += 1;
        if let Some(member) = self.members.get_mut(id) {
            member.used = (member.used + 1).min(member.slots);
            member.last_award = self.awards;
        }
    }

    /// An assignment ended; its outcome goes into the measurements.
    pub(super) fn freed(&mut self, id: &AgentId) {
        if let Some(member) = self.members.get_mut(id) {
            member.used = member.used.saturating_sub(1);
        }
        if let Some(freed) = &mut self.freed_meanwhile {
            freed.push(id.clone());
        }
    }
}

impl Member {
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

    fn member(org: &str, capabilities: &[&str], slots: u32) -> Member {
        Member {
            org: org.try_into().unwrap(),
            capabilities: capabilities.iter().map(|c| (*c).to_owned()).collect(),
            slots,
            used: 0,
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
    fn an_agent_of_another_org_or_without_a_capability_is_not_eligible() {
        let mut roster = Roster::default();
        let named = |id: &str, m| (AgentId::try_from(id).unwrap(), m);
        roster.replace(HashMap::from([
            named("both", member("demo", &["a", "b"], 1)),
            named("half", member("demo", &["a"], 1)),
            named("other", member("else", &["a", "b"], 1)),
        ]));
        let ids: Vec<String> =
            roster.eligible("demo", &["b".into(), "a".into()]).iter().map(ToString::to_string).collect();
        assert_eq!(ids, ["both"]);
    }

    #[test]
    fn a_slot_that_becomes_free_while_the_rows_are_read_is_free() {
        let id = AgentId::try_from("one").unwrap();
        let busy = || HashMap::from([(id.clone(), Member { used: 1, ..member("demo", &[], 1) })]);
        let mut roster = Roster::default();
        roster.replace(busy());
        roster.reading();
        roster.freed(&id);
        roster.replace(busy());
        assert!(roster.offer(&id, "k").is_some());
        roster.replace(busy());
        assert!(roster.offer(&id, "k").is_none(), "only those of one reading are remembered");
    }

    #[test]
    fn a_full_agent_makes_no_offer_until_a_slot_is_free() {
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
