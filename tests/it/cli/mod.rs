//! The program as a person starts it: what it prints and how it exits.
mod check;
mod daemon;
mod demo;
mod doctor;
mod prices;
mod readme;
mod reconcile;
mod secrets;

use std::{
    path::Path,
    process::{Command, Output},
};

/// Runs the program in `folder` without the settings of this process.
pub fn convoke(folder: &Path, args: &[&str]) -> Output {
    convoke_in(folder, args, &[])
}

/// Like [`convoke`], with environment variables.
pub fn convoke_in(folder: &Path, args: &[&str], environment: &[(&str, &str)]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_convoke"));
    let ours = std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("CONVOKE_"));
    for (name, _) in ours {
        command.env_remove(name);
    }
    command.args(args).envs(environment.iter().copied()).current_dir(folder).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

#[test]
fn wrong_command_line_exits_64_with_the_reason() {
    let folder = tempfile::tempdir().unwrap();
    let cases: [(&[&str], &str); 5] = [
        (&["fly"], "unrecognized subcommand 'fly'"),
        (&["task", "show", "not-an-id"], "invalid value 'not-an-id'"),
        (&["token", "--role", "agent"], "--agent <ID>"),
        (&["token", "--ttl", "soon"], "invalid value 'soon'"),
        (&[], "Usage: convoke"),
    ];
    for (args, told) in cases {
        let output = convoke(folder.path(), args);
        assert_eq!(output.status.code(), Some(64), "{args:?}");
        assert!(text(&output.stderr).contains(told), "{args:?}: {}", text(&output.stderr));
    }
}

#[test]
fn help_and_version_exit_0() {
    let folder = tempfile::tempdir().unwrap();
    for args in [&["--help"][..], &["task", "--help"], &["--version"]] {
        let output = convoke(folder.path(), args);
        assert_eq!(output.status.code(), Some(0), "{args:?}");
        assert!(text(&output.stdout).contains("convoke"), "{args:?}");
    }
}

#[test]
fn every_command_has_a_help_line() {
    let folder = tempfile::tempdir().unwrap();
    for group in [&["--help"][..], &["task", "--help"], &["agent", "--help"]] {
        let help = text(&convoke(folder.path(), group).stdout);
        let commands = help.split("Commands:\n").nth(1).unwrap().split("\n\n").next().unwrap();
        for line in commands.lines() {
            assert!(line.trim().split_once(' ').is_some_and(|(_, told)| told.trim().len() > 10), "{line}");
        }
    }
}

#[test]
fn check_lists_the_problems_of_settings_and_agents_and_exits_78() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::create_dir(folder.path().join("agents")).unwrap();
    std::fs::write(folder.path().join("convoke.toml"), "[server]\nlistn = 1\n").unwrap();
    std::fs::write(folder.path().join("agents/a.toml"), "id = 'a'\n[run]\nkind = 'lm'\n").unwrap();
    let output = convoke(folder.path(), &["check"]);
    assert_eq!(output.status.code(), Some(78));
    insta::assert_snapshot!(text(&output.stdout), @r#"
    convoke.toml:2: server.listn: unknown key; did you mean `listen`?
    agents/a.toml:3: run.kind: unknown value "lm"; did you mean "llm"?
    "#);
    let output = convoke(folder.path(), &["check", "--json"]);
    assert_eq!(output.status.code(), Some(78));
    let told: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((&told["ok"], &told["problems"][1]["line"]), (&false.into(), &3.into()));
}

#[test]
fn bad_settings_fail_every_command_with_78() {
    let folder = tempfile::tempdir().unwrap();
    for command in [&["task", "list"][..], &["token"], &["up"], &["doctor"], &["migrate"]] {
        let args = [command, &["--listen", "nowhere"]].concat();
        let output = convoke(folder.path(), &args);
        assert_eq!(output.status.code(), Some(78), "{args:?}: {}", text(&output.stderr));
        let told = "--listen: server.listen: not an address with a port";
        assert!(text(&output.stderr).starts_with(told), "{}", text(&output.stderr));
    }
}

#[test]
fn check_without_settings_and_agents_is_ok() {
    let folder = tempfile::tempdir().unwrap();
    let output = convoke(folder.path(), &["check"]);
    assert_eq!(output.status.code(), Some(0));
    assert_eq!(text(&output.stdout), "ok: settings from defaults, 0 agents from agents\n");
}

#[test]
fn missing_daemon_is_reported_in_one_line() {
    let folder = tempfile::tempdir().unwrap();
    let output = convoke(folder.path(), &["task", "list"]);
    assert_eq!(output.status.code(), Some(1));
    let told = text(&output.stderr);
    assert!(told.contains("no daemon has run in .convoke yet") && told.contains("convoke up"), "{told}");
    assert!(!folder.path().join(".convoke").exists(), "the command creates nothing");

    assert_eq!(convoke(folder.path(), &["token"]).status.code(), Some(0));
    let output = convoke(folder.path(), &["task", "list", "--listen", "127.0.0.1:1"]);
    assert_eq!(output.status.code(), Some(1));
    let told = text(&output.stderr);
    assert!(told.contains("no daemon answers at http://127.0.0.1:1"), "{told}");
    assert_eq!(told.lines().count(), 1, "{told}");
}

#[test]
fn token_has_the_requested_role_and_form() {
    let folder = tempfile::tempdir().unwrap();
    let args = ["token", "--role", "agent", "--agent", "far", "--org", "demo", "--ttl", "1h", "--json"];
    let output = convoke(folder.path(), &args);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    let made: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(made["role"], "authenticated");
    assert_eq!(made["token"].as_str().unwrap().split('.').count(), 3);
}
