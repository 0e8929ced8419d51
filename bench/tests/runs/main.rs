//! The benchmarks as a person starts them: what they print, record and leave behind.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, unreachable_pub)]
#![allow(clippy::disallowed_methods, reason = "Row::get")]
mod leftovers;
mod results;
#[path = "../../../tests/it/support/mod.rs"]
mod support;

use std::{path::Path, process::Command};

/// The benchmarks' executable in `folder`, without settings of this process.
fn bench(folder: &Path, args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_convoke-bench"));
    let ours = std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("CONVOKE_"));
    for (name, _) in ours {
        command.env_remove(name);
    }
    command.args(args).current_dir(folder);
    command
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}
