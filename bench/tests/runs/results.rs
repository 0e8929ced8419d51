//! A run appends one valid line, and two runs are compared.
use super::{bench, text};
use crate::support::database;
use serde_json::Value;
use std::{fs, path::Path};

/// The smallest run of `fanout`: real channels, a bare server and clients in processes of their own.
const TINY: [&str; 9] =
    ["fanout", "--subscribers", "5", "--seconds", "0.2", "--rate", "20", "--in-flight", "2"];

fn lines(folder: &Path) -> Vec<Value> {
    let file = fs::read_to_string(folder.join("results/fanout.jsonl")).unwrap();
    assert!(file.ends_with('\n'), "{file:?}");
    file.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn run_appends_one_line_with_commit_machine_arguments_and_figures() {
    let folder = tempfile::tempdir().unwrap();
    let args = [&TINY[..], &["--json", "--results", "results"]].concat();
    let output = bench(folder.path(), &args).output().unwrap();
    assert!(output.status.success(), "{}", text(&output.stderr));
    let printed: Value = serde_json::from_slice(&output.stdout).unwrap();
    let [line] = lines(folder.path()).try_into().unwrap();
    assert_eq!(line["command"], "fanout");
    let arguments = serde_json::json!({
        "subscribers": 5, "in_flight": 2, "bytes": 128, "seconds": 0.2, "rate": 20,
    });
    assert_eq!(line["arguments"], arguments);
    assert!(line["time"].as_str().unwrap().parse::<chrono::DateTime<chrono::Utc>>().is_ok(), "{line}");
    assert!(line["commit"].as_str().unwrap().len() >= 7 && line["dirty"].is_boolean(), "{line}");
    assert!(line["profile"]["rustc"].as_str().unwrap().starts_with("rustc "), "{line}");
    assert!(line["machine"]["cores"].as_u64().unwrap() > 0, "{line}");
    assert_eq!(line["machine"]["postgres"], Value::Null, "fanout has no database");
    for name in ["deliveries_per_second", "bare_deliveries_per_second", "p50_ms", "cpu_seconds_per_million"] {
        let figure = &line["figures"][name];
        assert!(figure["value"].as_f64().unwrap() > 0.0, "{name}: {line}");
        assert_eq!(figure["value"], printed[name], "{name}");
    }
    assert_eq!(line["figures"]["p50_ms"]["unit"], "ms");
    assert_eq!(line["figures"]["deliveries_per_second"]["unit"], "1/s");
}

#[test]
fn second_run_is_compared_with_the_first_and_a_run_without_results_is_not_recorded() {
    let folder = tempfile::tempdir().unwrap();
    let run = |args: &[&str]| {
        let mut command = bench(folder.path(), args);
        let output = command.env("CONVOKE_BENCH_RESULTS", "results").output().unwrap();
        (output.status.code(), text(&output.stdout), text(&output.stderr))
    };
    let (code, _, told) = run(&["compare", "fanout"]);
    assert_eq!((code, told.contains("no run of fanout is recorded")), (Some(1), true), "{told}");
    assert_eq!(run(&TINY).0, Some(0));
    let (code, told, _) = run(&["compare", "fanout"]);
    assert_eq!((code, told.starts_with("no earlier run of fanout")), (Some(0), true), "{told}");
    assert_eq!(run(&TINY).0, Some(0));
    assert_eq!(run(&[&TINY[..], &["--results", ""]].concat()).0, Some(0));
    let runs = lines(folder.path());
    assert_eq!(runs.len(), 2, "an empty folder records nothing");
    let (code, table, _) = run(&["compare", "fanout"]);
    assert_eq!(code, Some(0));
    let row = table.lines().find(|line| line.starts_with("deliveries_per_second")).unwrap();
    let numbers: Vec<f64> = row.split_whitespace().skip(1).map(|number| number.parse().unwrap()).collect();
    let values = runs.iter().map(|run| run["figures"]["deliveries_per_second"]["value"].as_f64().unwrap());
    let values: Vec<f64> = values.collect();
    assert_eq!(numbers[..2], values, "{table}");
    assert!((numbers[2] - values[1] / values[0]).abs() < 0.001, "{table}");
}

#[test]
fn pair_of_this_program_is_compared_and_not_recorded_by_default() {
    let folder = tempfile::tempdir().unwrap();
    let program = format!("'{}' --results results", env!("CARGO_BIN_EXE_convoke-bench"));
    let program_by_environment = format!("'{}'", env!("CARGO_BIN_EXE_convoke-bench"));
    let pairs = ["pairs", "--runs", "1", "--before", &program, "--after", &program_by_environment, "--"];
    let output = bench(folder.path(), &[&pairs[..], &TINY[..]].concat()).output().unwrap();
    assert!(output.status.success(), "{}", text(&output.stderr));
    let table = text(&output.stdout);
    let row = table.lines().find(|line| line.starts_with("deliveries_per_second")).unwrap();
    let numbers: Vec<f64> =
        row.split_whitespace().skip(1).take(3).map(|number| number.parse().unwrap()).collect();
    assert!(numbers.len() == 3 && (numbers[2] - numbers[1] / numbers[0]).abs() < 0.001, "{table}");
    let told = text(&output.stderr);
    assert_eq!(told.matches("recorded in").count(), 1, "the variable turns records off: {told}");
}

#[test]
fn wrong_arguments_and_settings_have_exit_codes_of_their_own() {
    let folder = tempfile::tempdir().unwrap();
    for args in [&["fly"][..], &["fanout", "--subscribers", "0"], &["pairs", "--before", "x"], &[]] {
        assert_eq!(bench(folder.path(), args).output().unwrap().status.code(), Some(64), "{args:?}");
    }
    let mut command = bench(folder.path(), &["fanout"]);
    let output = command.env("CONVOKE_SERVER__LISTEN", "nowhere").output().unwrap();
    assert_eq!(output.status.code(), Some(78), "{}", text(&output.stderr));
}

#[tokio::test(flavor = "multi_thread")]
async fn runs_with_a_scripted_model_are_measured() {
    let tiny = ["--steps", "3", "--answer-ms", "5", "--runs", "1", "--at-once", "2", "--answers", "1"];
    let printed = figures_of(&[&["think"], &tiny[..]].concat()).await;
    for name in ["run_ms", "beside_the_calls_percent", "under_way_resident_mib", "under_way_peak_mib"] {
        assert!(printed[name].as_f64().unwrap() > 0.0, "{name}: {printed}");
    }
}

/// The figures of a run on the database of the tests.
async fn figures_of(args: &[&str]) -> Value {
    let (db, folder) = (database().await, tempfile::tempdir().unwrap());
    let mut command = bench(folder.path(), &[args, &["--json", "--results", ""]].concat());
    command.env("CONVOKE_DATABASE__URL", &db.url);
    let output = tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap();
    assert!(output.status.success(), "{}", text(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn every_form_of_usage_is_counted_to_the_microdollar() {
    // Every form once or more: 18 forms in 4 runs of 20 questions.
    let figures = figures_of(&["think", "--accounting", "20"]).await;
    assert!(figures["questions"].as_f64().unwrap() >= 80.0, "{figures}");
    assert!(figures["microdollars"].as_f64().unwrap() > 0.0, "{figures}");
    assert_eq!(figures["error_microdollars"], 0.0, "{figures}");
}

#[tokio::test(flavor = "multi_thread")]
async fn tasks_are_measured_with_a_collector() {
    let figures =
        figures_of(&["tasks", "--collector", "--tasks", "300", "--requesters", "20", "--bidders", "2"]).await;
    assert!(figures["life_cycles_per_second"].as_f64().unwrap() > 0.0, "{figures}");
    assert!(figures["collector_mib"].as_f64().unwrap() > 0.0, "{figures}");
}
