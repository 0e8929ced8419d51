//! A part of the suites of clients and tasks on databases whose settings, encoding and rights are unfavorable
//! (`support/hostile.rs`): the first test of each file. `make test-hostile` runs these suites whole.
use std::{collections::BTreeMap, process::Command};

const CLIENTS: [&str; 4] = ["changes", "conformance", "realtime", "resume"];
const TASKS: [&str; 6] = ["agent", "api", "daemon", "messages", "remote", "task"];
/// Files whose first test runs for long.
const LONG: [&str; 4] = ["changes::storm", "conformance::memory", "resume::soak", "task::simulation"];

#[test]
fn first_tests_of_the_suites_of_clients_pass_on_a_hostile_database() {
    pass(&CLIENTS);
}

#[test]
fn first_tests_of_the_suites_of_tasks_pass_on_a_hostile_database() {
    pass(&TASKS);
}

#[test]
fn make_test_hostile_runs_the_same_suites() {
    let makefile = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/Makefile")).unwrap();
    let suites = [&CLIENTS[..], &TASKS[..]].concat().join("|");
    assert!(makefile.contains(&format!("test(/^({suites})::/)")), "{suites}");
}

fn pass(suites: &[&str]) {
    let tests = first_tests(suites);
    for suite in suites {
        assert!(tests.iter().any(|test| test.starts_with(&format!("{suite}::"))), "{suite} has no test");
    }
    let mut arguments = vec!["--exact", "--test-threads=2"];
    arguments.extend(tests.iter().map(String::as_str));
    let (passed, text) = run(&arguments);
    assert!(passed, "{text}");
    assert!(text.contains(&format!("{} passed; 0 failed; 0 ignored", tests.len())), "{text}");
}

/// The first test of each file of these suites.
fn first_tests(suites: &[&str]) -> Vec<String> {
    let (listed, text) = run(&["--list", "--format=terse"]);
    assert!(listed, "{text}");
    let mut first: BTreeMap<&str, &str> = BTreeMap::new();
    for test in text.lines().filter_map(|line| line.strip_suffix(": test")) {
        let (file, _) = test.rsplit_once("::").unwrap();
        let suite = file.split("::").next().unwrap();
        if suites.contains(&suite) && !LONG.iter().any(|long| file.starts_with(long)) {
            first.entry(file).or_insert(test);
        }
    }
    first.into_values().map(str::to_owned).collect()
}

/// Runs this program of tests again, because the kind of a test's database comes from the environment.
fn run(arguments: &[&str]) -> (bool, String) {
    let mut command = Command::new(std::env::current_exe().unwrap());
    let output = command.args(arguments).env("CONVOKE_TEST_DATABASE", "hostile").output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.success(), text(&output.stdout) + &text(&output.stderr))
}
