//! The page ranks stored offers by the same formula (`web/dashboard/src/score.ts`). Its unit tests compare it with the
//! 200 rounds that are written here; this test compares the file with the formula.
use super::*;
use serde_json::{Value, json};
use std::{env, fmt::Write, fs};

const FILE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/web/dashboard/tests/unit/rounds.jsonl");
const ROUNDS: u64 = 200;
const AWARDS: [Award; 6] =
    [Award::Weighted, Award::Cheapest, Award::Fastest, Award::LeastLoaded, Award::First, Award::Calibrated];

/// Numbers that are the same on every machine.
struct Random(u64);

impl Random {
    fn below(&mut self, end: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % end
    }

    fn few(&mut self, end: u64) -> i64 {
        i64::try_from(self.below(end)).unwrap()
    }

    fn weight(&mut self) -> u16 {
        u16::try_from(self.below(101)).unwrap()
    }

    fn offer(&mut self, at: u64, range: u64) -> Offer {
        let mut measured = Measured {
            completed: self.few(20),
            failed: self.few(5),
            refused: self.few(3),
            late: self.few(3),
            ..Measured::default()
        };
        for (ended, succeeded) in measured.ended_at.iter_mut().zip(&mut measured.succeeded_at) {
            *ended = self.few(20);
            *succeeded = self.few(20).min(*ended);
        }
        Offer {
            // The order of the ids is not that of the arrival.
            agent: format!("a{}", (at * 7 + 3) % 11).try_into().unwrap(),
            incarnation: Incarnation(1),
            cost_microdollars: self.below(range),
            eta_ms: self.below(range),
            confidence: f32::from(u8::try_from(self.below(101)).unwrap()) / 100.0,
            free: self.few(5) * ONE / 4,
            measured,
            waited_rank: self.below(3),
            arrival: at,
            chosen: false,
        }
    }
}

/// `[agent, arrival, total, cost, speed, confidence, load, reputation, waited, success or null]`.
fn line((offer, score): &(Offer, Score)) -> Value {
    let Vector { cost, speed, confidence, load, reputation } = score.parts;
    json!([
        offer.agent,
        offer.arrival,
        score.total,
        cost,
        speed,
        confidence,
        load,
        reputation,
        score.waited,
        score.success
    ])
}

#[test]
fn page_is_tested_with_rounds_of_this_formula() {
    let mut random = Random(7);
    let mut text = String::new();
    for round in 0..ROUNDS {
        // Few different values make ties.
        let range = if round % 3 == 0 { 3 } else { 100_000 };
        let count = 1 + random.below(5);
        let offers: Vec<Offer> = (0..count).map(|at| random.offer(at, range)).collect();
        let weights = Weights {
            cost: random.weight(),
            speed: random.weight(),
            confidence: random.weight(),
            load: random.weight(),
            reputation: 1 + random.weight(),
        };
        let by = |award: Award, weights: Option<Weights>| {
            rank(&Policy { award, weights, ..Policy::default() }, offers.clone())
        };
        let award = AWARDS[usize::try_from(round).unwrap() % AWARDS.len()];
        let is_weighted = award == Award::Weighted;
        let ranked = by(award, is_weighted.then_some(weights));
        let others: serde_json::Map<String, Value> = AWARDS
            .into_iter()
            // A round of another policy has no measured success.
            .filter(|other| *other != award && *other != Award::Calibrated)
            .map(|other| {
                let totals =
                    by(other, None).iter().map(|(offer, score)| json!([offer.agent, score.total])).collect();
                (json!(other).as_str().unwrap().to_owned(), totals)
            })
            .collect();
        let written = json!({
            "award": award,
            "weights": is_weighted.then_some(weights),
            "offers": ranked.iter().map(line).collect::<Vec<_>>(),
            "others": others,
        });
        writeln!(text, "{written}").unwrap();
    }
    if env::var_os("CONVOKE_WRITE_ROUNDS").is_some() {
        fs::write(FILE, &text).unwrap();
    }
    let stored = fs::read_to_string(FILE).unwrap();
    assert!(stored == text, "{FILE} is of another formula: run this test with CONVOKE_WRITE_ROUNDS=1");
}
