//! Scores and ranks of offers: pure, fixed-point, the same on every machine.
//!
//! Scores are millionths. Costs and times are compared within a round: the cheapest offer has cost score 1,000,000,
//! one at twice the cost half of it. The vector of every offer is stored with the award, so that it can be explained.
use crate::id::{AgentId, Incarnation};
use crate::task::{Award, Policy, Terms, Weights};
use serde::Serialize;

/// One in millionths.
pub(in crate::task) const ONE: i64 = 1_000_000;

/// Weight of a declared cost, time or confidence against measurements, in tasks.
const PRIOR_TASKS: f64 = 5.0;
/// Outcomes that every agent starts with, so that its first outcome has little weight.
const PRIOR: i64 = 5;
/// How many of these were good.
const PRIOR_GOOD: i64 = 4;

/// Measurements of an agent with one kind of task. The sums decay with each task.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Measured {
    /// Tasks completed.
    pub completed: i64,
    /// Attempts failed.
    pub failed: i64,
    /// Awards refused or not answered.
    pub refused: i64,
    /// Tasks completed after more than twice the offered time (and a second).
    pub late: i64,
    /// Weight of the sums below.
    pub weight: f64,
    /// Decayed sum of milliseconds from start to finish.
    pub latency_ms_sum: f64,
    /// Decayed sum of microdollars.
    pub cost_microdollars_sum: f64,
    /// Attempts that ended, by the confidence of their offer in tenths.
    pub ended_at: [i64; 10],
    /// Those of them that were completed.
    pub succeeded_at: [i64; 10],
}

impl Measured {
    /// Reputation by outcomes, in millionths: success (50 %), awards taken (20 %), punctuality (15 %) and calibration
    /// of its confidence (15 %).
    #[must_use]
    pub fn reputation(&self) -> i64 {
        let ended = self.completed.saturating_add(self.failed);
        let success = ratio(self.completed + PRIOR_GOOD, ended + PRIOR);
        let taken = ratio(ended + PRIOR, ended + self.refused + PRIOR);
        let in_time = ratio((self.completed - self.late).max(0) + PRIOR, self.completed + PRIOR);
        (success * 50 + taken * 20 + in_time * 15 + (ONE - self.calibration_error()) * 15) / 100
    }

    /// Mean distance between its confidence and its success over the tenths, in millionths.
    #[must_use]
    pub fn calibration_error(&self) -> i64 {
        let (mut wrong, mut all) = (0, PRIOR);
        for (tenth, (ended, good)) in (0_i64..).zip(self.ended_at.iter().zip(&self.succeeded_at)) {
            let promised = tenth * ONE / 10 + ONE / 20;
            wrong += (ratio(*good, *ended) - promised).abs() * *ended;
            all += ended;
        }
        wrong / all
    }

    /// Its measured success at this confidence, in millionths. Equals the confidence without measurements, and is
    /// blended with it while there are few.
    #[must_use]
    pub fn success_at(&self, confidence: f32) -> i64 {
        let promised = millionths(confidence);
        let tenth = usize::try_from((promised * 10 / ONE).clamp(0, 9)).unwrap_or(0);
        let of = |list: &[i64; 10]| list.get(tenth).copied().unwrap_or(0);
        let (ended, good) = (of(&self.ended_at), of(&self.succeeded_at));
        (good * ONE + promised * PRIOR) / (ended + PRIOR)
    }

    /// The sum of the measurements of two kinds of task.
    #[must_use]
    pub fn and(mut self, other: &Self) -> Self {
        self.completed += other.completed;
        self.failed += other.failed;
        self.refused += other.refused;
        self.late += other.late;
        self.weight += other.weight;
        self.latency_ms_sum += other.latency_ms_sum;
        self.cost_microdollars_sum += other.cost_microdollars_sum;
        self.ended_at.iter_mut().zip(other.ended_at).for_each(|(sum, more)| *sum += more);
        self.succeeded_at.iter_mut().zip(other.succeeded_at).for_each(|(sum, more)| *sum += more);
        self
    }
}

/// `part / all` in millionths; one if `all` is 0.
fn ratio(part: i64, all: i64) -> i64 {
    if all <= 0 { ONE } else { part.clamp(0, all) * ONE / all }
}

fn millionths(share: f32) -> i64 {
    (f64::from(share.clamp(0.0, 1.0)) * ONE as f64).round() as i64
}

/// An offer as it is ranked.
#[derive(Clone, Debug, PartialEq)]
pub struct Offer {
    /// The agent that offers.
    pub agent: AgentId,
    /// Its incarnation.
    pub incarnation: Incarnation,
    /// What it will cost.
    pub cost_microdollars: u64,
    /// How long it will take.
    pub eta_ms: u64,
    /// How sure it is, 0 to 1.
    pub confidence: f32,
    /// The share of the slots that is free, in millionths.
    pub free: i64,
    /// Measurements of the agent with this kind of task.
    pub measured: Measured,
    /// The agent's rank by the time since its last award; 0 waited longest.
    pub waited_rank: u64,
    /// The offer's rank by time; 0 came first.
    pub arrival: u64,
    /// Whether the requester chose it.
    pub chosen: bool,
}

/// The score of an offer, in millionths.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Score {
    /// The total that the policy compares; the highest wins. A chosen offer has 2,000,000.
    pub total: i64,
    /// The parts.
    #[serde(flatten)]
    pub parts: Vector,
    /// Measured success at the offered confidence; only where the policy compares it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub success: Option<i64>,
    /// The agent's rank by waiting time, which breaks ties; the lowest waited longest.
    pub waited: u64,
}

/// The parts of a score, in millionths.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Vector {
    /// 1,000,000 for the cheapest offer.
    pub cost: i64,
    /// 1,000,000 for the fastest offer.
    pub speed: i64,
    /// Confidence.
    pub confidence: i64,
    /// Free slots of all slots.
    pub load: i64,
    /// Reputation of the agent with this kind of task.
    pub reputation: i64,
}

/// Cost in microdollars, time in milliseconds and confidence of a computed offer: the declared terms, blended with
/// the measurements by their weight. A busy agent is slower.
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

/// Ranks offers with their scores, the winner first.
/// Ties go to the agent that has waited longest for an award, then by agent id.
#[must_use]
pub fn rank(policy: &Policy, offers: Vec<Offer>) -> Vec<(Offer, Score)> {
    let cheapest = offers.iter().map(|offer| offer.cost_microdollars).min().unwrap_or(0);
    let fastest = offers.iter().map(|offer| offer.eta_ms).min().unwrap_or(0);
    let award = if policy.award == Award::Requester { policy.fallback } else { policy.award };
    let mut ranked: Vec<(Offer, Score)> = offers
        .into_iter()
        .map(|offer| {
            let parts = Vector {
                cost: share(cheapest, offer.cost_microdollars),
                speed: share(fastest, offer.eta_ms),
                confidence: millionths(offer.confidence),
                load: offer.free.clamp(0, ONE),
                reputation: offer.measured.reputation(),
            };
            let success = (award == Award::Calibrated).then(|| offer.measured.success_at(offer.confidence));
            let total = match award {
                _ if offer.chosen => 2 * ONE,
                Award::First => ONE - i64::try_from(offer.arrival).unwrap_or(ONE).min(ONE),
                Award::Cheapest => parts.cost,
                Award::Fastest => parts.speed,
                Award::LeastLoaded => parts.load,
                Award::Weighted => policy.weights.unwrap_or_default().of(&parts),
                Award::Calibrated => parts.confidence * success.unwrap_or(0) / ONE,
                // Only the named agent offers; a chosen offer is matched above.
                Award::Direct | Award::Requester => ONE,
            };
            let score = Score { total, parts, success, waited: offer.waited_rank };
            (offer, score)
        })
        .collect();
    ranked.sort_by(|(a, x), (b, y)| {
        y.total.cmp(&x.total).then(a.waited_rank.cmp(&b.waited_rank)).then_with(|| a.agent.cmp(&b.agent))
    });
    ranked
}

/// What decided between a winner and an offer that lost, as the policy compared them: a part of the score, `arrival`,
/// `choice`, or `waiting` for equal totals.
#[must_use]
pub fn decisive(policy: &Policy, winner: &Score, loser: &Score) -> &'static str {
    let award = if policy.award == Award::Requester { policy.fallback } else { policy.award };
    match award {
        _ if winner.total > ONE => "choice",
        _ if winner.total == loser.total => "waiting",
        Award::First => "arrival",
        Award::Cheapest => "cost",
        Award::Fastest => "speed",
        Award::LeastLoaded => "load",
        Award::Calibrated => "confidence",
        Award::Weighted | Award::Direct | Award::Requester => {
            let leads = policy.weights.unwrap_or_default().of_each(&winner.parts);
            let others = policy.weights.unwrap_or_default().of_each(&loser.parts);
            let leads = leads.into_iter().zip(others).map(|((part, won), (_, lost))| (won - lost, part));
            leads.max_by_key(|(lead, _)| *lead).map_or("waiting", |(_, part)| part)
        }
    }
}

impl Weights {
    /// Each part by its weight.
    fn of_each(&self, parts: &Vector) -> [(&'static str, i64); 5] {
        [
            ("cost", i64::from(self.cost) * parts.cost),
            ("speed", i64::from(self.speed) * parts.speed),
            ("confidence", i64::from(self.confidence) * parts.confidence),
            ("load", i64::from(self.load) * parts.load),
            ("reputation", i64::from(self.reputation) * parts.reputation),
        ]
    }

    /// The weighted mean of the parts, in millionths.
    fn of(&self, parts: &Vector) -> i64 {
        let sum: i64 = [self.cost, self.speed, self.confidence, self.load, self.reputation]
            .into_iter()
            .map(i64::from)
            .sum();
        self.of_each(parts).iter().map(|(_, weighted)| weighted).sum::<i64>() / sum.max(1)
    }
}

/// `best / this` in millionths, each plus 1, so that 0 divides.
fn share(best: u64, this: u64) -> i64 {
    let (best, this) = (u128::from(best) + 1, u128::from(this) + 1);
    i64::try_from(best * ONE as u128 / this).unwrap_or(ONE).min(ONE)
}

#[cfg(test)]
mod page;

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
            measured: Measured::default(),
            waited_rank: 0,
            arrival: 0,
            chosen: false,
        }
    }

    fn by(award: Award) -> Policy {
        Policy { award, ..Policy::default() }
    }

    fn winner(award: Award, offers: &[Offer]) -> String {
        rank(&by(award), offers.to_vec())[0].0.agent.to_string()
    }

    #[test]
    fn each_policy_has_its_winner() {
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
    fn tie_goes_to_the_longest_wait_then_to_the_lower_id() {
        let mut offers = [offer("a", 1, 1, 0.5), offer("b", 1, 1, 0.5)];
        assert_eq!(winner(Award::Weighted, &offers), "a");
        offers[0].waited_rank = 1;
        assert_eq!(winner(Award::Weighted, &offers), "b");
    }

    #[test]
    fn measurements_outweigh_declared_terms_as_they_grow() {
        let terms = Terms {
            computed: true,
            thinks: None,
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

    #[test]
    fn calibrated_policy_weighs_confidence_by_measured_success() {
        let (mut boaster, mut honest) = (offer("boaster", 1, 1, 0.95), offer("honest", 1, 1, 0.65));
        assert_eq!(winner(Award::Calibrated, &[boaster.clone(), honest.clone()]), "boaster");
        boaster.measured.ended_at[9] = 20;
        boaster.measured.succeeded_at[9] = 4;
        honest.measured.ended_at[6] = 20;
        honest.measured.succeeded_at[6] = 13;
        assert_eq!(boaster.measured.success_at(0.95), (4 * ONE + 950_000 * 5) / 25);
        assert_eq!(winner(Award::Calibrated, &[boaster.clone(), honest.clone()]), "honest");
        assert!(boaster.measured.calibration_error() > 5 * honest.measured.calibration_error());
    }

    #[test]
    fn worse_outcomes_lower_the_reputation() {
        let none = Measured::default().reputation();
        let good = Measured { completed: 20, ..Measured::default() };
        assert!(good.reputation() > none);
        for worse in [
            Measured { failed: 5, ..good },
            Measured { refused: 5, ..good },
            Measured { late: 5, ..good },
            Measured { ended_at: [20; 10], ..good },
        ] {
            assert!(worse.reputation() < good.reputation(), "{worse:?}");
            assert!((0..=ONE).contains(&worse.reputation()), "{worse:?}");
        }
        let mut offers = [offer("a", 1, 1, 0.5), offer("b", 1, 1, 0.5)];
        offers[1].measured = good;
        assert_eq!(winner(Award::Weighted, &offers), "b", "all else is equal");
    }

    #[test]
    fn weights_of_the_policy_decide() {
        let offers = vec![offer("cheap", 1, 1_000, 0.1), offer("sure", 1_000, 1, 0.9)];
        let with = |weights| {
            let policy = Policy { weights: Some(weights), ..by(Award::Weighted) };
            rank(&policy, offers.clone())[0].0.agent.to_string()
        };
        let none = Weights { cost: 0, speed: 0, confidence: 0, load: 0, reputation: 0 };
        assert_eq!(with(Weights { cost: 3, ..none }), "cheap");
        assert_eq!(with(Weights { cost: 3, confidence: 7, ..none }), "sure");
    }

    #[test]
    fn chosen_offer_wins_and_the_fallback_ranks_the_rest() {
        let mut offers = vec![offer("a", 10, 1, 0.5), offer("b", 5, 1, 0.5), offer("c", 1, 1, 0.5)];
        let policy = Policy { fallback: Award::Cheapest, ..by(Award::Requester) };
        let order = |offers: &[Offer]| -> Vec<String> {
            rank(&policy, offers.to_vec()).into_iter().map(|(offer, _)| offer.agent.to_string()).collect()
        };
        assert_eq!(order(&offers), ["c", "b", "a"]);
        offers[0].chosen = true;
        assert_eq!(order(&offers), ["a", "c", "b"]);
    }

    proptest! {
        #[test]
        fn order_of_the_input_does_not_matter(costs in prop::collection::vec((0u64..50, 0u64..50), 1..12)) {
            let offers: Vec<_> = costs.iter().enumerate()
                .map(|(at, (cost, eta))| offer(&format!("a{at:02}"), *cost, *eta, 0.5)).collect();
            let mut turned = offers.clone();
            turned.reverse();
            prop_assert_eq!(rank(&by(Award::Weighted), offers), rank(&by(Award::Weighted), turned));
        }
    }
}
