//! Offers that each agent has won and lost since the start of the daemon, and what decided against it.
//!
//! In memory only: the rows of offers have no index by agent, and the event log keeps every round. Counted after the
//! commit of an award, so what was rolled back is not counted.
use crate::id::AgentId;
use parking_lot::Mutex;
use serde::Serialize;
use std::collections::{BTreeMap, HashMap};

/// Most agents that are counted; offers of further ones are not.
const AGENTS_MAX: usize = 10_000;

/// The offers of one agent.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct OffersTally {
    /// Offers that were awarded.
    pub won: u64,
    /// Offers that lost, by what decided: a part of the score, `arrival`, `choice` or `waiting`.
    pub lost: BTreeMap<&'static str, u64>,
}

/// Whether an offer won; otherwise what decided against it.
pub(in crate::task) type Decided = Result<(), &'static str>;

/// The offers of all agents.
#[derive(Debug, Default)]
pub(in crate::task) struct Tallies(Mutex<HashMap<AgentId, OffersTally>>);

impl Tallies {
    pub(in crate::task) fn count(&self, decided: Vec<(AgentId, Decided)>) {
        if decided.is_empty() {
            return;
        }
        let mut tallies = self.0.lock();
        for (agent, outcome) in decided {
            if tallies.len() >= AGENTS_MAX && !tallies.contains_key(&agent) {
                continue;
            }
            let tally = tallies.entry(agent).or_default();
            match outcome {
                Ok(()) => tally.won += 1,
                Err(part) => *tally.lost.entry(part).or_default() += 1,
            }
        }
    }

    pub(in crate::task) fn of(&self, agent: &AgentId) -> OffersTally {
        self.0.lock().get(agent).cloned().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn offers_are_counted_by_what_decided() {
        let tallies = Tallies::default();
        let (a, b): (AgentId, AgentId) = ("a".parse().unwrap(), "b".parse().unwrap());
        tallies.count(vec![(a.clone(), Ok(())), (b.clone(), Err("cost"))]);
        tallies.count(vec![(b.clone(), Err("cost")), (b.clone(), Err("speed")), (b.clone(), Ok(()))]);
        assert_eq!(tallies.of(&a), OffersTally { won: 1, lost: BTreeMap::new() });
        assert_eq!(tallies.of(&b), OffersTally { won: 1, lost: [("cost", 2), ("speed", 1)].into() });
        let many = (0..AGENTS_MAX + 5).map(|n| (format!("x{n}").parse().unwrap(), Ok(())));
        tallies.count(many.collect());
        assert_eq!(tallies.0.lock().len(), AGENTS_MAX);
    }
}
