//! Which offer wins: pure, fixed-point, the same on every machine.
//!
//! Scores are millionths. Costs and times are compared within a round: the
//! cheapest offer has cost score 1,000,000, one twice as dear half of it. The
//! vector of every offer is stored with the award, so that it can be explained.
use super::{Award, Terms};
use crate::id::{AgentId, Incarnation};
use serde::Serialize;

/// One in millionths.
const ONE: i64 = 1_000_000;

/// Weights of the `weighted` policy, in millionths; together one.
const WEIGHTS: Vector = Vector { cost: 250_000, speed: 250_000, confidence: 400_000, load: 100_000 };

/// Tasks that a declared cost, time or confidence counts as much as, against measurements.
const PRIOR_TASKS: f64 = 5.0;

/// What an agent did with one kind of task; the sums fade with each task.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Measured {
    /// Tasks completed.
    pub completed: i64,
    /// Attempts failed.
    pub failed: i64,
    /// Awards refused or not answered.
    pub refused: i64,
    /// Weight of the sums below.
    pub weight: f64,
    /// Faded sum of milliseconds from start to finish.
    pub latency_ms_sum: f64,
    /// Faded sum of microdollars.
    pub cost_microdollars_sum: f64,
}

/// An offer as it is ranked.
#[derive(Clone, Debug, PartialEq)]
pub struct Offer {
    /// Who offers.
    pub agent: AgentId,
    /// In which life.
    pub incarnation: Incarnation,
    /// What it will cost.
    pub cost_microdollars: u64,
    /// How long it will take.
    pub eta_ms: u64,
    /// How sure it is, 0 to 1.
    pub confidence: f32,
    /// Free slots of all slots, in millionths.
    pub free: i64,
    /// Where it stands among the agents by how long it has waited for an award; 0 waited longest.
    pub waited_rank: u64,
    /// Where it stands among the offers by time; 0 came first.
    pub arrival: u64,
}

/// How an offer ranks, in millionths.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Score {
    /// What the policy compares; the highest wins.
    pub total: i64,
    /// The parts.
    #[serde(flatten)]
    pub parts: Vector,
}

/// The parts of a score, in millionths.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Vector {
    /// The cheapest offer has one.
    pub cost: i64,
    /// The fastest offer has one.
    pub speed: i64,
    /// Confidence.
    pub confidence: i64,
    /// Free slots of all slots.
    pub load: i64,
}

/// Cost, time and confidence that the runtime offers for an agent: what its file declares,
/// drawn towards what was measured the more there is of it; a busy agent is slower.
#[must_use]
pub fn computed(terms: &Terms, measured: &Measured, slots: u32, used: u32) -> (u64, u64, f32) {
    let blend = |declared: f64, sum: f64| (declared * PRIOR_TASKS + sum) / (PRIOR_TASKS + measured.weight);
    let cost = blend(terms.cost_microdollars as f64, measured.cost_microdollars_sum);
    let alone = blend(terms.eta.as_millis() as f64, measured.latency_ms_sum);
    let eta = alone * (1.0 + f64::from(used) / f64::from(slots.max(1)));
    let tasks = (measured.completed + measured.failed) as f64;
    let confidence = (f64::from(terms.confidence) * PRIOR_TASKS
        + measured.completed as f64 * f64::from(terms.confidence))
        / (PRIOR_TASKS + tasks);
    (cost.round() as u64, eta.round() as u64, confidence.clamp(0.0, 1.0) as f32)
}

/// The offers with their scores, the winner first.
/// Ties go to the agent that has waited longest for an award, then by agent id.
#[must_use]
pub fn rank(policy: Award, offers: Vec<Offer>) -> Vec<(Offer, Score)> {
    let cheapest = offers.iter().map(|offer| offer.cost_microdollars).min().unwrap_or(0);
    let fastest = offers.iter().map(|offer| offer.eta_ms).min().unwrap_or(0);
    let mut ranked: Vec<(Offer, Score)> = offers
        .into_iter()
        .map(|offer| {
            let parts = Vector {
                cost: share(cheapest, offer.cost_microdollars),
                speed: share(fastest, offer.eta_ms),
                confidence: (f64::from(offer.confidence.clamp(0.0, 1.0)) * ONE as f64).round() as i64,
                load: offer.free.clamp(0, ONE),
            };
            let total = match policy {
                Award::First => ONE - i64::try_from(offer.arrival).unwrap_or(ONE).min(ONE),
                Award::Cheapest => parts.cost,
                Award::Fastest => parts.speed,
                Award::LeastLoaded => parts.load,
                Award::Weighted => {
                    (parts.cost * WEIGHTS.cost
                        + parts.speed * WEIGHTS.speed
                        + parts.confidence * WEIGHTS.confidence
                        + parts.load * WEIGHTS.load)
                        / ONE
                }
            };
            (offer, Score { total, parts })
        })
        .collect();
    ranked.sort_by(|(a, x), (b, y)| {
        y.total.cmp(&x.total).then(a.waited_rank.cmp(&b.waited_rank)).then_with(|| a.agent.cmp(&b.agent))
    });
    ranked
}

/// `best / this` in millionths, where zero is as good as one.
fn share(best: u64, this: u64) -> i64 {
    let (best, this) = (u128::from(best) + 1, u128::from(this) + 1);
    i64::try_from(best * ONE as u128 / this).unwrap_or(ONE).min(ONE)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::time::Duration;

    fn offer(agent: &str, cost: u64, eta_ms: u64, confidence: f32) -> Offer {
        Offer {
            agent: agent.try_into().unwrap(),
            incarnation: Incarnation(1),
            cost_microdollars: cost,
            eta_ms,
            confidence,
            free: ONE,
            waited_rank: 0,
            arrival: 0,
        }
    }

    fn winner(policy: Award, offers: &[Offer]) -> String {
        rank(policy, offers.to_vec())[0].0.agent.to_string()
    }

    #[test]
    fn each_policy_prefers_what_its_name_says() {
        let mut offers =
            [offer("dear", 900, 10, 0.9), offer("cheap", 1, 900, 0.2), offer("free", 500, 500, 0.5)];
        offers[0].free = 100_000;
        offers[1].free = 200_000;
        offers[0].arrival = 1;
        offers[1].arrival = 2;
        assert_eq!(winner(Award::Cheapest, &offers), "cheap");
        assert_eq!(winner(Award::Fastest, &offers), "dear");
        assert_eq!(winner(Award::LeastLoaded, &offers), "free");
        assert_eq!(winner(Award::First, &offers), "free");
        assert_eq!(winner(Award::Weighted, &offers), "dear");
    }

    #[test]
    fn a_tie_goes_to_the_one_that_waited_longest_and_then_by_name() {
        let mut offers = [offer("a", 1, 1, 0.5), offer("b", 1, 1, 0.5)];
        assert_eq!(winner(Award::Weighted, &offers), "a");
        offers[0].waited_rank = 1;
        assert_eq!(winner(Award::Weighted, &offers), "b");
    }

    #[test]
    fn measurements_outweigh_the_declaration_as_they_grow() {
        let terms = Terms {
            computed: true,
            cost_microdollars: 100,
            confidence: 0.9,
            eta: Duration::from_millis(100),
        };
        let none = computed(&terms, &Measured::default(), 4, 0);
        assert_eq!(none, (100, 100, 0.9));
        let failing = Measured { failed: 20, ..Measured::default() };
        assert!(computed(&terms, &failing, 4, 0).2 < 0.2);
        let slow =
            Measured { completed: 50, weight: 50.0, latency_ms_sum: 50.0 * 2_000.0, ..Measured::default() };
        assert!(computed(&terms, &slow, 4, 0).1 > 1_500);
        assert_eq!(computed(&terms, &Measured::default(), 4, 4).1, 200);
    }

    proptest! {
        #[test]
        fn the_order_of_arrival_in_memory_does_not_decide(costs in prop::collection::vec((0u64..50, 0u64..50), 1..12)) {
            let offers: Vec<_> = costs.iter().enumerate()
                .map(|(at, (cost, eta))| offer(&format!("a{at:02}"), *cost, *eta, 0.5)).collect();
            let mut turned = offers.clone();
            turned.reverse();
            prop_assert_eq!(rank(Award::Weighted, offers), rank(Award::Weighted, turned));
        }
    }
}
