//! Records what this program is built from, because a result without it cannot be compared.
//!
//! The commit is taken when the program is built and not when it runs: an executable that is older than the working
//! tree must name its own commit.
use std::{path::Path, process::Command};

/// Everything whose change makes another executable. Paths are relative to the repository.
const SOURCES: [&str; 6] = ["src", "migrations", "bench", "Cargo.toml", "Cargo.lock", "build.rs"];

fn main() {
    let commit = git(&["rev-parse", "HEAD"]);
    // Results are inside `bench`, and are not sources.
    let changes = [&["status", "--porcelain", "--"][..], &SOURCES, &[":!bench/results"]].concat();
    let is_dirty = git(&changes).is_none_or(|changes| !changes.is_empty());
    let of_cargo = |name: &str| std::env::var(name).unwrap_or_default();
    let rustc = run(Command::new(of_cargo("RUSTC")).arg("--version"));
    set("COMMIT", commit.as_deref().unwrap_or("unknown"));
    set("DIRTY", if is_dirty { "true" } else { "false" });
    set("RUSTC", rustc.as_deref().unwrap_or("unknown"));
    set("PROFILE", &of_cargo("PROFILE"));
    set("OPT_LEVEL", &of_cargo("OPT_LEVEL"));

    for source in SOURCES.into_iter().filter(|source| *source != "bench") {
        println!("cargo:rerun-if-changed=../{source}");
    }
    // Not the whole folder: a result that is appended must not build the program again.
    for source in ["src", "tests", "Cargo.toml", "build.rs"] {
        println!("cargo:rerun-if-changed={source}");
    }
    // A commit changes no source, but it appends to this log. Cargo would run this script each time for a missing file.
    let head = git(&["rev-parse", "--path-format=absolute", "--git-path", "logs/HEAD"]);
    if let Some(head) = head.filter(|head| Path::new(head).exists()) {
        println!("cargo:rerun-if-changed={head}");
    }
}

fn set(name: &str, value: &str) {
    println!("cargo:rustc-env=BENCH_{name}={value}");
}

/// The output of git in the repository; `None` without git or outside a repository.
fn git(arguments: &[&str]) -> Option<String> {
    run(Command::new("git").arg("-C").arg("..").args(arguments))
}

fn run(command: &mut Command) -> Option<String> {
    let output = command.output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    output.status.success().then(|| text.trim().to_owned())
}
