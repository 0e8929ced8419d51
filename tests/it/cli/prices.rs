//! `convoke prices import` prints settings that the daemon accepts, and says what it could not read.
use super::{convoke, text};
use serde_json::Value;
use std::fs;

const CATALOG: &str = r#"{
  "gpt-5.4": { "litellm_provider": "openai", "mode": "chat", "input_cost_per_token": 2.5e-06,
    "output_cost_per_token": 1.5e-05, "cache_read_input_token_cost": 2.5e-07,
    "input_cost_per_token_above_272k_tokens": 5e-06, "output_cost_per_token_above_272k_tokens": 2.25e-05 },
  "broken \"one\"": { "litellm_provider": "openai", "mode": "chat", "input_cost_per_token": "cheap",
    "output_cost_per_token": 0 },
  "azure/gpt-5.4": { "litellm_provider": "azure", "mode": "chat", "input_cost_per_token": 3e-06,
    "output_cost_per_token": 1.5e-05 }
}
"#;

#[test]
fn imported_prices_are_settings_and_what_cannot_be_read_is_told() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("catalog.json"), CATALOG).unwrap();
    let import = |args: &[&str]| {
        let output = convoke(folder.path(), &[&["prices", "import", "catalog.json"], args].concat());
        (output.status.code(), text(&output.stdout), text(&output.stderr))
    };
    let (code, printed, told) = import(&["--provider", "openai"]);
    assert_eq!(code, Some(1), "{told}");
    let problem = "catalog.json:5: broken \"one\".input_cost_per_token: \"cheap\" is no amount of dollars\n";
    assert!(told.starts_with(problem), "{told}");
    insta::assert_snapshot!(printed, @r#"
    [llm.prices."gpt-5.4"]
    input = 2500000
    output = 15000000
    cached_input = 250000

    [[llm.prices."gpt-5.4".tiers]]
    over_tokens = 272000
    input = 5000000
    output = 22500000
    cached_input = 250000
    "#);
    let settings = format!("[llm.orgs.demo]\nmicrodollars_per_day = 7\n{printed}");
    fs::write(folder.path().join("convoke.toml"), settings).unwrap();
    let output = convoke(folder.path(), &["check"]);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stdout));

    let (code, printed, told) = import(&["--provider", "openai", "--model", "gpt-5.4"]);
    assert_eq!((code, printed.contains("2500000")), (Some(0), true), "{told}");
    let (code, printed, told) = import(&["--model", "gpt-5.4,gpt-9", "--json"]);
    assert_eq!((code, told.as_str()), (Some(1), ""), "{printed}");
    let found: Value = serde_json::from_str(&printed).unwrap();
    let keys: Vec<&str> =
        found["problems"].as_array().unwrap().iter().map(|it| it["key"].as_str().unwrap()).collect();
    assert_eq!(keys, ["gpt-9", "gpt-5.4"], "one is missing, and one has two prices: {printed}");
    assert_eq!(found["prices"], serde_json::json!({}));
}

#[test]
fn file_that_is_no_catalog_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("list.json"), "[\n1]").unwrap();
    fs::write(folder.path().join("bytes.json"), [0xff, 0xfe]).unwrap();
    for (file, told) in [
        ("list.json", "list.json:1: the file: it is no JSON object"),
        ("bytes.json", "cannot read bytes.json"),
        ("nowhere.json", "cannot read nowhere.json"),
    ] {
        let output = convoke(folder.path(), &["prices", "import", file]);
        let said = text(&output.stderr);
        assert!(output.status.code() == Some(1) && said.contains(told), "{file}: {said}");
    }
}
