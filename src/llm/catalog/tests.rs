use super::*;

fn read(text: &str) -> CatalogPrices {
    read_catalog(text, &Wanted::default()).unwrap()
}

fn price(text: &str) -> Price {
    toml::from_str(text).unwrap()
}

fn told(found: &CatalogPrices) -> Vec<String> {
    let one = |problem: &CatalogProblem| {
        format!("{}: {}: {}", problem.line.unwrap_or_default(), problem.key, problem.message)
    };
    found.problems.iter().map(one).collect()
}

#[test]
fn litellm_has_dollars_for_a_token_and_tiers_in_the_names_of_its_members() {
    let found = read(
        r#"{
        "sample_spec": { "input_cost_per_token": 0, "output_cost_per_token": 0, "mode": "one of: chat, …" },
        "claude": { "litellm_provider": "anthropic", "mode": "chat", "input_cost_per_token": 3e-06,
            "output_cost_per_token": 1.5e-05, "cache_read_input_token_cost": 3e-07,
            "cache_creation_input_token_cost": 3.75e-06, "cache_creation_input_token_cost_above_1hr": 6e-06,
            "input_cost_per_token_above_200k_tokens": 6e-06, "output_cost_per_token_above_200k_tokens": 2.25e-05,
            "input_cost_per_token_above_200k_tokens_priority": 9e-06, "input_cost_per_request": "0.0005" },
        "dashscope/qwen": { "litellm_provider": "dashscope", "tiered_pricing": [
            { "range": [0, 256000.0], "input_cost_per_token": 4e-07, "output_cost_per_token": 1.2e-06 },
            { "range": [256000.0, 1000000.0], "input_cost_per_token": 1.0000000001e-06,
              "output_cost_per_token": 3.6e-06 }] },
        "text-embedding": { "mode": "embedding", "input_cost_per_token": 2e-08 },
        "whisper": { "mode": "chat", "input_cost_per_second": 0.0001 }
        }"#,
    );
    assert_eq!(told(&found), Vec::<String>::new());
    assert_eq!(found.unpriced, 1);
    let claude = price(
        "input = 3_000_000\noutput = 15_000_000\ncached_input = 300_000\ncache_write = 3_750_000\nrequest = 500\n\
         tiers = [{ over_tokens = 200_000, input = 6_000_000, output = 22_500_000, cached_input = 300_000, \
         cache_write = 3_750_000 }]",
    );
    assert_eq!(found.prices["claude"], claude);
    // The name without its provider is the one at the endpoint. Fractions of a microdollar are rounded up.
    let qwen = price(
        "input = 400_000\noutput = 1_200_000\n\
         tiers = [{ over_tokens = 256_000, input = 1_000_001, output = 3_600_000 }]",
    );
    assert_eq!(found.prices["qwen"], qwen);
    assert_eq!(found.prices.len(), 2);
}

#[test]
fn models_dev_and_agentgateway_have_dollars_for_a_million_tokens() {
    let models_dev = read(
        r#"{ "openai": { "id": "openai", "models": {
            "gpt": { "cost": { "input": 1.25, "output": 10, "cache_read": 0.125, "reasoning": 12,
                "tiers": [{ "input": 2.5, "output": 15, "tier": { "type": "context", "size": 272000 } }],
                "context_over_200k": { "input": 9, "output": 9 } } },
            "old": { "cost": { "input": 2, "output": 4, "context_over_200k": { "input": 4, "output": 8 } } },
            "free": { "id": "free" } } } }"#,
    );
    let agentgateway = read(
        r#"{ "providers": { "openai": { "models": {
            "gpt": { "rates": { "input": "1.25", "output": "10", "cacheRead": "0.125", "reasoning": "12" },
                "tiers": [{ "contextOver": 272000, "rates": { "input": "2.5", "output": "15" } }] },
            "old": { "rates": { "input": "2", "output": "4" },
                "tiers": [{ "contextOver": 200000, "rates": { "input": "4", "output": "8" } }] },
            "free": { "limits": {} } } } } }"#,
    );
    let gpt = price(
        "input = 1_250_000\noutput = 10_000_000\ncached_input = 125_000\nreasoning = 12_000_000\n\
         tiers = [{ over_tokens = 272_000, input = 2_500_000, output = 15_000_000, cached_input = 125_000, \
         reasoning = 12_000_000 }]",
    );
    assert_eq!(models_dev.prices["gpt"], gpt);
    assert_eq!(models_dev.prices["old"].tiers[0].over_tokens, 200_000);
    assert_eq!(models_dev, agentgateway);
    assert_eq!(models_dev.unpriced, 1);
}

#[test]
fn what_cannot_be_read_is_told_with_line_and_key_and_fails_alone() {
    let found = read(
        r#"{
  "good": { "input_cost_per_token": 1e-06, "output_cost_per_token": 2e-06 },
  "negative": { "input_cost_per_token": -1, "output_cost_per_token": 2e-06 },
  "text": {
    "input_cost_per_token": 1e-06,
    "output_cost_per_token": "two cents"
  },
  "half": { "input_cost_per_token": 1e-06 },
  "huge": { "input_cost_per_token": 1e300, "output_cost_per_token": 0 },
  "list": [],
  "tiers": { "input_cost_per_token": 0, "output_cost_per_token": 0, "tiered_pricing": [{ "range": "all" }] },
  "twice": { "input_cost_per_token": 0, "output_cost_per_token": 0, "input_cost_per_token_above_1k_tokens": 1,
    "input_cost_per_token_above_1000_tokens": 2 }
}"#,
    );
    assert_eq!(found.prices.keys().collect::<Vec<_>>(), ["good"]);
    assert_eq!(
        told(&found),
        [
            "3: negative.input_cost_per_token: -1 is no amount of dollars",
            "6: text.output_cost_per_token: \"two cents\" is no amount of dollars",
            "8: half: has no price of answers",
            "9: huge.input_cost_per_token: 1e300 is no amount of dollars",
            "10: list: is no object",
            "11: tiers.tiered_pricing.0.range: has no first number",
            "12: twice.tiers.1.over_tokens: 1000 is the bound of another tier, too",
        ]
    );
    let dev = read(
        r#"{ "a": { "models": { "x": { "cost": { "input": 1, "output": 1,
            "tiers": [{ "tier": { "type": "time", "size": 1 } }] } },
            "y": { "cost": { "input": 1, "output": 1, "tiers": [{ "tier": { "size": "big" } }] } },
            "z": { "cost": { "input": 1, "output": 1, "tiers": { "a": 1 } } } } },
          "b": 7 }"#,
    );
    assert_eq!(
        told(&dev),
        [
            "2: a.x.cost.tiers.0.tier: only a tier by the size of the context is understood",
            "3: a.y.cost.tiers.0.tier.size: is no number of tokens",
            "4: a.z.cost.tiers: is no list",
            "5: b: is no object",
        ]
    );
    for odd in ["", "[]", "7", "{\"a\": 1", "{\"a\": \"\u{1}\"}"] {
        assert!(read_catalog(odd, &Wanted::default()).is_err(), "{odd:?}");
    }
}

#[test]
fn model_of_several_providers_needs_a_choice_unless_the_prices_are_the_same() {
    let text = r#"{
        "a": { "models": { "m": { "cost": { "input": 1, "output": 1 } }, "n": { "cost": { "input": 5, "output": 5 } } } },
        "b": { "models": { "m": { "cost": { "input": 2, "output": 1 } }, "n": { "cost": { "input": 5, "output": 5 } } } }
    }"#;
    let found = read(text);
    assert_eq!(found.prices.keys().collect::<Vec<_>>(), ["n"]);
    assert_eq!(
        told(&found),
        ["3: m: \"a\" (line 2) and \"b\" have other prices: choose one with --provider"]
    );
    let of = |provider: &str, models: &[&str]| {
        let models = models.iter().map(|model| (*model).to_owned()).collect();
        read_catalog(text, &Wanted { provider: Some(provider.into()), models }).unwrap()
    };
    assert_eq!((of("b", &["m"]).prices["m"].input, of("b", &["m"]).prices.len()), (Some(2_000_000), 1));
    assert_eq!(told(&of("b", &["gpt"])), ["0: gpt: the catalog has no such model with a price"]);
    assert_eq!(of("c", &[]), CatalogPrices::default());
}

proptest::proptest! {
    #[test]
    fn no_file_makes_it_panic(text in "[\\[\\]{}\",:a-z0-9.e\\- \n]{0,60}") {
        let _ = read_catalog(&text, &Wanted::default());
        let entry = format!("{{\"m\": {{\"input_cost_per_token\": 1, \"output_cost_per_token\": {text}}}}}");
        let _ = read_catalog(&entry, &Wanted::default());
    }
}
