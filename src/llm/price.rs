//! Prices of models, and the cost of a question: whole numbers only, rounded up once.
use super::TokenCounts;
use chrono::NaiveDate;
use serde::{Deserialize, Serialize};

/// Tokens that a price is for.
const PER: u128 = 1_000_000;

/// The prices of a model, in microdollars for a million tokens. Cached and written tokens are parts of the prompt,
/// reasoning tokens are part of the answer.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Price {
    /// Of the prompt. A price that is left out counts as 0.
    #[serde(alias = "input_microdollars_per_million_tokens", skip_serializing_if = "Option::is_none")]
    pub input: Option<u64>,
    /// Of the answer. A price that is left out counts as 0.
    #[serde(alias = "output_microdollars_per_million_tokens", skip_serializing_if = "Option::is_none")]
    pub output: Option<u64>,
    /// Of prompt tokens that were read from a cache. Defaults to `input`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cached_input: Option<u64>,
    /// Of prompt tokens that were written to a cache. Defaults to `input`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cache_write: Option<u64>,
    /// Of reasoning tokens. Defaults to `output`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reasoning: Option<u64>,
    /// Microdollars of a request, in addition to its tokens.
    #[serde(skip_serializing_if = "is_zero")]
    pub request: u64,
    /// Prices of requests with large prompts.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub tiers: Vec<Tier>,
    /// The first day (UTC) of the price. `None` if it always held.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub from: Option<NaiveDate>,
    /// Whole prices that take the place of this one, each from its own day on.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub changes: Vec<Price>,
}

/// The prices of a request whose whole prompt is over a number of tokens.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tier {
    /// The tier holds for prompts with more tokens than this.
    pub over_tokens: u64,
    /// Of the prompt.
    pub input: u64,
    /// Of the answer.
    pub output: u64,
    /// Of prompt tokens that were read from a cache. Defaults to `input` of the tier.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cached_input: Option<u64>,
    /// Of prompt tokens that were written to a cache. Defaults to `input` of the tier.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cache_write: Option<u64>,
    /// Of reasoning tokens. Defaults to `output` of the tier.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reasoning: Option<u64>,
}

/// The rates that hold for one request.
#[derive(Clone, Copy)]
struct Rates {
    input: u64,
    cached: u64,
    written: u64,
    output: u64,
    reasoning: u64,
}

fn is_zero(amount: &u64) -> bool {
    *amount == 0
}

impl Price {
    /// The price that holds on a day (UTC): of this one and its changes, the latest that has begun. `None` before the
    /// first.
    #[must_use]
    pub fn on(&self, day: NaiveDate) -> Option<&Self> {
        let prices = std::iter::once(self).chain(&self.changes);
        prices.filter(|price| price.from.is_none_or(|from| from <= day)).max_by_key(|price| price.from)
    }

    /// The cost of a request in microdollars, rounded up once.
    #[must_use]
    pub fn of(&self, tokens: &TokenCounts) -> u64 {
        let TokenCounts { input, cached, written, output, reasoning } = tokens.in_bounds();
        let rates = self.rates(input);
        let parts = [
            (input - cached - written, rates.input),
            (cached, rates.cached),
            (written, rates.written),
            (output - reasoning, rates.output),
            (reasoning, rates.reasoning),
        ];
        self.total(&parts)
    }

    /// The most that a request may cost: at the dearest rate that can apply to it.
    #[must_use]
    pub fn most(&self, input_tokens_max: u64, output_tokens_max: u64) -> u64 {
        // A shorter prompt may be in a cheaper tier, and also in a dearer one.
        let possible = self.tiers.iter().filter(|tier| tier.over_tokens < input_tokens_max);
        let rates = possible.map(Rates::from).chain([self.base()]);
        let one = |rates: Rates| {
            let input = rates.input.max(rates.cached).max(rates.written);
            let output = rates.output.max(rates.reasoning);
            self.total(&[(input_tokens_max, input), (output_tokens_max, output)])
        };
        rates.map(one).max().unwrap_or(0)
    }

    fn total(&self, parts: &[(u64, u64)]) -> u64 {
        let cost = |(tokens, rate): &(u64, u64)| u128::from(*tokens) * u128::from(*rate);
        let sum = parts.iter().map(cost).fold(0, u128::saturating_add);
        u64::try_from(sum.div_ceil(PER)).unwrap_or(u64::MAX).saturating_add(self.request)
    }

    /// The rates of a request with this prompt: those of the highest tier that it reaches.
    fn rates(&self, input: u64) -> Rates {
        let reached = self.tiers.iter().filter(|tier| input > tier.over_tokens);
        reached.max_by_key(|tier| tier.over_tokens).map_or_else(|| self.base(), Rates::from)
    }

    fn base(&self) -> Rates {
        let (input, output) = (self.input.unwrap_or(0), self.output.unwrap_or(0));
        Rates {
            input,
            cached: self.cached_input.unwrap_or(input),
            written: self.cache_write.unwrap_or(input),
            output,
            reasoning: self.reasoning.unwrap_or(output),
        }
    }

    /// Returns the wrong keys of a price in the settings: key, problem, remedy.
    pub(super) fn check(&self) -> Vec<(String, String, &'static str)> {
        let mut wrong = Vec::new();
        for (key, price) in [("input", self.input), ("output", self.output)] {
            if price.is_none() {
                let remedy = "add it, in microdollars for a million tokens; 0 for a model that costs nothing";
                wrong.push((key.to_owned(), "is missing".to_owned(), remedy));
            }
        }
        for (at, tier) in self.tiers.iter().enumerate() {
            if self.tiers.iter().take(at).any(|other| other.over_tokens == tier.over_tokens) {
                let what = format!("{} is the bound of another tier, too", tier.over_tokens);
                wrong.push((format!("tiers.{at}.over_tokens"), what, "keep one of the two"));
            }
        }
        for (at, change) in self.changes.iter().enumerate() {
            wrong.extend(
                change
                    .check()
                    .into_iter()
                    .map(|(key, what, remedy)| (format!("changes.{at}.{key}"), what, remedy)),
            );
        }
        wrong.extend(self.check_days());
        wrong
    }

    /// Returns the wrong keys about the days of a price: key, problem, remedy.
    pub(crate) fn check_days(&self) -> Vec<(String, String, &'static str)> {
        let mut wrong = Vec::new();
        for (at, change) in self.changes.iter().enumerate() {
            let mut add =
                |key: &str, what: String, remedy| wrong.push((format!("changes.{at}.{key}"), what, remedy));
            let before = std::iter::once(self).chain(self.changes.iter().take(at));
            match change.from {
                None => {
                    add("from", "is missing".to_owned(), "add the first day of this price, like 2026-07-01")
                }
                Some(from) if before.clone().any(|other| other.from.is_some_and(|other| other >= from)) => {
                    let what = format!("{from} is not after the days of the prices before it");
                    add("from", what, "put the prices in the order of their days");
                }
                Some(_) => {}
            }
            if !change.changes.is_empty() {
                add("changes", "is in a change already".to_owned(), "put all changes into one list");
            }
        }
        wrong
    }
}

impl From<&Tier> for Rates {
    fn from(tier: &Tier) -> Self {
        let Tier { input, output, .. } = *tier;
        Self {
            input,
            cached: tier.cached_input.unwrap_or(input),
            written: tier.cache_write.unwrap_or(input),
            output,
            reasoning: tier.reasoning.unwrap_or(output),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn price(text: &str) -> Price {
        toml::from_str(text).unwrap()
    }

    fn tokens(input: u64, cached: u64, written: u64, output: u64, reasoning: u64) -> TokenCounts {
        TokenCounts { input, cached, written, output, reasoning }
    }

    /// The example of the contract.
    const EXAMPLE: &str = r"
        input = 5_000_000
        cached_input = 500_000
        cache_write = 6_250_000
        output = 30_000_000
        [[tiers]]
        over_tokens = 272_000
        input = 10_000_000
        cached_input = 1_000_000
        cache_write = 12_500_000
        output = 45_000_000
    ";

    #[test]
    fn cached_written_and_reasoning_tokens_have_rates_of_their_own() {
        let example = price(EXAMPLE);
        // OpenAI's example: 2,600 tokens are 2,000 read, 400 written and 200 others.
        assert_eq!(example.of(&tokens(2_600, 2_000, 400, 100, 0)), 1_000 + 2_500 + 1_000 + 3_000);
        assert_eq!(example.of(&tokens(0, 0, 0, 10, 4)), 300, "reasoning costs what the answer costs");
        let reasoning = Price { reasoning: Some(60_000_000), ..example };
        assert_eq!(reasoning.of(&tokens(0, 0, 0, 10, 4)), 180 + 240);
    }

    #[test]
    fn tier_is_chosen_by_the_whole_prompt_and_holds_for_the_whole_request() {
        let example = price(EXAMPLE);
        assert_eq!(example.of(&tokens(272_000, 272_000, 0, 0, 0)), 136_000);
        // Almost all of it is cached, and the tier holds nevertheless.
        assert_eq!(example.of(&tokens(272_001, 272_000, 0, 10, 0)), 272_000 + 10 + 450);
        assert_eq!(example.most(272_000, 0), 1_700_000, "the dearest rate is that of cache writes");
        assert_eq!(example.most(272_001, 0), 3_400_013, "rounded up");
    }

    #[test]
    fn cost_is_rounded_up_once_and_never_overflows() {
        let old = price(
            "input_microdollars_per_million_tokens = 150_000\noutput_microdollars_per_million_tokens = 600_000",
        );
        assert_eq!(old.of(&tokens(1_000_000, 0, 0, 0, 0)), 150_000);
        assert_eq!(old.of(&tokens(1, 0, 0, 0, 0)), 1);
        assert_eq!(old.of(&TokenCounts::default()), 0);
        assert_eq!(old.of(&tokens(1_000, 0, 0, 500, 0)), 450);
        assert_eq!(old.of(&tokens(1, 1, 0, 1, 1)), 1, "0.15 and 0.6 are rounded up together");
        let dear = Price { input: Some(u64::MAX), output: Some(u64::MAX), request: u64::MAX, ..old };
        assert_eq!(dear.of(&tokens(u64::MAX, u64::MAX, u64::MAX, u64::MAX, u64::MAX)), u64::MAX);
        assert_eq!(dear.most(u64::MAX, u64::MAX), u64::MAX);
        assert_eq!(price("input = 0\noutput = 0\nrequest = 7").of(&TokenCounts::default()), 7);
    }

    #[test]
    fn price_that_is_negative_or_a_fraction_is_refused() {
        for odd in
            ["input = -1", "input = 0.5", "output = \"3\"", "request = -7", "tiers = [{ over_tokens = -1 }]"]
        {
            assert!(toml::from_str::<Price>(odd).is_err(), "{odd}");
        }
        assert!(toml::from_str::<Price>("tiers = [{ over_tokens = 5, input = 1 }]").is_err(), "no output");
        assert!(toml::from_str::<Price>("input = 9223372036854775807").is_ok());
        let keys = |text: &str| price(text).check().into_iter().map(|(key, ..)| key).collect::<Vec<_>>();
        assert_eq!(keys("output = 1"), ["input"]);
        let twice = "tiers = [{ over_tokens = 5, input = 1, output = 1 }, { over_tokens = 5, input = 2, output = 2 }]";
        assert_eq!(keys(&format!("input = 1\noutput = 1\n{twice}")), ["tiers.1.over_tokens"]);
    }

    #[test]
    fn price_of_a_day_is_the_latest_that_has_begun() {
        let changing = price(
            "input = 1\noutput = 1\nfrom = \"2026-01-01\"\n\
             [[changes]]\nfrom = \"2026-07-01\"\ninput = 2\noutput = 2\n\
             [[changes]]\nfrom = \"2026-08-01\"\ninput = 3\noutput = 3\n",
        );
        let input = |day: &str| changing.on(day.parse().unwrap()).and_then(|price| price.input);
        assert_eq!(changing.check(), Vec::new());
        for (day, expected) in [
            ("2025-12-31", None),
            ("2026-01-01", Some(1)),
            ("2026-06-30", Some(1)),
            ("2026-07-01", Some(2)),
            ("2026-07-31", Some(2)),
            ("2026-08-01", Some(3)),
            ("2999-01-01", Some(3)),
        ] {
            assert_eq!(input(day), expected, "{day}");
        }
        let always = price("input = 7\noutput = 7");
        assert_eq!(always.on("1970-01-01".parse().unwrap()), Some(&always));
    }

    #[test]
    fn wrong_days_of_prices_are_named() {
        let wrong = price(
            "input = 1\noutput = 1\nfrom = \"2026-07-01\"\n\
             [[changes]]\ninput = 2\noutput = 2\n\
             [[changes]]\nfrom = \"2026-07-01\"\ninput = 2\n\
             [[changes]]\nfrom = \"2026-08-01\"\ninput = 2\noutput = 2\nchanges = [{ input = 1, output = 1 }]\n",
        );
        let keys: Vec<String> = wrong.check().into_iter().map(|(key, ..)| key).collect();
        let nested = "changes.2.changes.0.from";
        assert_eq!(
            keys,
            ["changes.1.output", nested, "changes.0.from", "changes.1.from", "changes.2.changes"]
        );
        for odd in ["from = \"soon\"", "from = 2026", "from = \"2026-02-30\""] {
            assert!(toml::from_str::<Price>(odd).is_err(), "{odd}");
        }
    }

    proptest! {
        #[test]
        fn no_request_costs_more_than_the_most(
            rates in proptest::array::uniform5(0..100_000_000_u64), over in 0..2_000_u64, factor in 0..5_u64,
            counts in proptest::array::uniform5(0..3_000_u64), spare in 0..500_u64,
        ) {
            let [input, cached, written, output, reasoning] = rates;
            let tier = Tier { over_tokens: over, input: input * factor, output: output * factor,
                cached_input: None, cache_write: Some(written), reasoning: None };
            let price = Price { input: Some(input), output: Some(output), cached_input: Some(cached),
                cache_write: Some(written), reasoning: Some(reasoning), request: 3, tiers: vec![tier],
                ..Price::default() };
            let [input, cached, written, output, reasoning] = counts;
            let cost = price.of(&tokens(input, cached, written, output, reasoning));
            prop_assert!(cost <= price.most(input + spare, output + spare));
        }
    }
}
