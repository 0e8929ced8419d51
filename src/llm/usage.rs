//! What an answer reports of its tokens and its cost.
//!
//! Endpoints report in many forms: a count may be missing, null, a fraction or a text, and parts may be larger than
//! their whole. A count that cannot be read is missing, and nothing here fails.
use super::dollars::scaled;
use crate::json::count;
use serde_json::Value;

/// The power of ten from dollars to microdollars.
const MICRO: i32 = 6;

/// Tokens of a request and its answer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TokenCounts {
    /// Of the whole prompt.
    pub input: u64,
    /// Of the prompt: read from a cache.
    pub cached: u64,
    /// Of the prompt: written to a cache.
    pub written: u64,
    /// Of the whole answer.
    pub output: u64,
    /// Of the answer: reasoning.
    pub reasoning: u64,
}

impl TokenCounts {
    /// The same with parts that are not larger than their whole.
    #[must_use]
    pub fn in_bounds(self) -> Self {
        let cached = self.cached.min(self.input);
        Self {
            cached,
            written: self.written.min(self.input - cached),
            reasoning: self.reasoning.min(self.output),
            ..self
        }
    }

    /// Of prompt and answer.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.input.saturating_add(self.output)
    }
}

/// The parts of the counts of an answer, and its cost, as far as the endpoint reports them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct UsageDetails {
    /// Tokens of the prompt that were read from a cache.
    pub cached: u64,
    /// Tokens of the prompt that were written to a cache.
    pub written: u64,
    /// Tokens of the answer that are reasoning.
    pub reasoning: u64,
    /// The cost that the endpoint names. `None` if it names none.
    pub microdollars: Option<u64>,
}

/// The usage of a completion.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Reported {
    /// Tokens of the prompt.
    pub(super) input: Option<u64>,
    /// Tokens of the answer: at least the difference of total and prompt, as some endpoints leave reasoning out.
    pub(super) output: Option<u64>,
    pub(super) details: UsageDetails,
}

impl Reported {
    /// Reads the member `usage` of a completion.
    pub(super) fn read(usage: &Value) -> Self {
        let used = |name: &str| usage.get(name).and_then(count);
        let part = |whole: &str, name: &str| usage.get(whole)?.get(name).and_then(count);
        let (input, output, total) = (used("prompt_tokens"), used("completion_tokens"), used("total_tokens"));
        let rest = total.zip(input).map(|(total, input)| total.saturating_sub(input));
        let prompt = |name| part("prompt_tokens_details", name);
        let cached = prompt("cached_tokens").or_else(|| used("prompt_cache_hit_tokens"));
        let reasoning = part("completion_tokens_details", "reasoning_tokens");
        let details = UsageDetails {
            cached: cached.unwrap_or(0),
            written: prompt("cache_write_tokens").unwrap_or(0),
            reasoning: reasoning.unwrap_or(0),
            microdollars: cost(usage),
        };
        Self { input, output: output.map(|output| output.max(rest.unwrap_or(0))), details }
    }
}

/// All counts of an answer. `None` if one of the two wholes is missing.
pub(super) fn counts(input: Option<u64>, output: Option<u64>, details: UsageDetails) -> Option<TokenCounts> {
    let UsageDetails { cached, written, reasoning, .. } = details;
    let (input, output) = input.zip(output)?;
    Some(TokenCounts { input, cached, written, output, reasoning }.in_bounds())
}

/// The cost that the endpoint names, in microdollars. With a key of one's own at the model's maker (`is_byok`) it is
/// only the fee of the endpoint, so it does not count.
fn cost(usage: &Value) -> Option<u64> {
    let own_key = usage.get("is_byok").and_then(Value::as_bool).unwrap_or(false);
    match usage.get("cost").filter(|_| !own_key)? {
        Value::Number(dollars) => scaled(&dollars.to_string(), MICRO),
        Value::String(dollars) => scaled(dollars.trim(), MICRO),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::json::COUNT_MAX;
    use serde_json::json;

    #[test]
    fn parts_of_the_counts_are_told_apart() {
        let openai = json!({ "prompt_tokens": 2_600, "completion_tokens": 300, "total_tokens": 2_900,
            "prompt_tokens_details": { "cached_tokens": 2_000, "cache_write_tokens": 400, "audio_tokens": 0 },
            "completion_tokens_details": { "reasoning_tokens": 128 } });
        let reported = Reported::read(&openai);
        let all = counts(reported.input, reported.output, reported.details);
        let expected = TokenCounts { input: 2_600, cached: 2_000, written: 400, output: 300, reasoning: 128 };
        assert_eq!((all, reported.details.microdollars), (Some(expected), None));
        let deepseek = json!({ "prompt_tokens": 10, "completion_tokens": 2, "prompt_cache_hit_tokens": 8 });
        assert_eq!(Reported::read(&deepseek).details.cached, 8);
    }

    #[test]
    fn odd_counts_are_missing_or_within_their_whole() {
        let read = |usage: Value| {
            let Reported { input, output, details } = Reported::read(&usage);
            counts(input, output, details)
        };
        let odd = [json!(null), json!("x"), json!([1]), json!({}), json!(true), json!(-3)];
        for value in odd {
            assert_eq!(read(value.clone()), None, "{value}");
            let part = json!({ "prompt_tokens": 5, "completion_tokens": 3, "prompt_tokens_details": value,
                "completion_tokens_details": { "reasoning_tokens": value }, "cost": value });
            let plain = TokenCounts { input: 5, output: 3, ..TokenCounts::default() };
            assert_eq!(read(part), Some(plain), "{value}");
            assert_eq!(read(json!({ "prompt_tokens": value, "completion_tokens": 3 })), None, "{value}");
        }
        let huge = json!({ "prompt_tokens": 5, "completion_tokens": 3.2, "total_tokens": 20,
            "prompt_tokens_details": { "cached_tokens": 4, "cache_write_tokens": 9 },
            "completion_tokens_details": { "reasoning_tokens": 1e300 } });
        let expected = TokenCounts { input: 5, cached: 4, written: 1, output: 15, reasoning: 15 };
        assert_eq!(read(huge), Some(expected));
    }

    #[test]
    fn cost_of_the_endpoint_is_exact_and_rounded_up() {
        let cost = |value: Value| Reported::read(&json!({ "cost": value })).details.microdollars;
        let costs = [
            (json!(0.000_14), 140),
            (json!(1.4e-5), 14),
            (json!(0.000_000_1), 1),
            (json!(1e-300), 1),
            (json!(3), 3_000_000),
            (json!("0.5"), 500_000),
            (json!("1.25E2"), 125_000_000),
            (json!(0), 0),
            (json!("0e99"), 0),
            (json!(1e300), COUNT_MAX),
            (json!(1e15), COUNT_MAX),
        ];
        for (dollars, expected) in costs {
            assert_eq!(cost(dollars.clone()), Some(expected), "{dollars}");
        }
        for odd in [
            json!(-1),
            json!("-0.5"),
            json!(""),
            json!("."),
            json!("1e"),
            json!("NaN"),
            json!(null),
            json!([1]),
        ] {
            assert_eq!(cost(odd.clone()), None, "{odd}");
        }
        assert_eq!(cost(json!("9".repeat(31))), None);
        let own_key = json!({ "cost": 0.01, "is_byok": true });
        assert_eq!(Reported::read(&own_key).details.microdollars, None);
    }
}
