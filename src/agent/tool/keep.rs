//! The keeper of one call: a small process that outlives the daemon, runs the program of a tool, and records its end.
//!
//! It is told what to run by one line on its standard input, and holds the lock of the call as its standard output. The
//! end of its input is the death of the daemon: then the program may go on, or is killed at once, as the tool says. The
//! outcome is written to a file of another name first and renamed, so that it is there as a whole or not at all.
use super::{
    keeper::{Order, STOP},
    run_program::{Ended, Stop},
};
use std::{
    fs::{self, OpenOptions},
    io::{self, Write},
    os::{fd::AsFd, unix::fs::OpenOptionsExt},
    path::Path,
    process::ExitCode,
};
use tokio::{
    io::{AsyncBufReadExt, BufReader, Lines},
    net::unix::pipe,
};

/// Runs this process as a keeper. An order that is not complete, because the daemon died while it wrote, starts
/// nothing.
#[must_use]
pub(crate) fn keep_call() -> ExitCode {
    let Ok(runtime) = tokio::runtime::Builder::new_current_thread().enable_all().build() else {
        return ExitCode::FAILURE;
    };
    if runtime.block_on(kept()).is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

async fn kept() -> io::Result<()> {
    let stdin = io::stdin().as_fd().try_clone_to_owned()?;
    let mut lines = BufReader::new(pipe::Receiver::from_owned_fd(stdin)?).lines();
    let line = lines.next_line().await?.unwrap_or_default();
    let order: Order = serde_json::from_str(&line).map_err(io::Error::other)?;
    let command = order.program.command();
    let ended = order.program.run(command, stopped(&mut lines, order.finish)).await;
    write(&order.outcome, &ended)
}

/// Resolves when the program must stop.
async fn stopped(lines: &mut Lines<BufReader<pipe::Receiver>>, finish: bool) -> Stop {
    loop {
        match lines.next_line().await {
            Ok(Some(line)) if line == STOP => return Stop::Ask,
            Ok(Some(_)) => {}
            Ok(None) | Err(_) if finish => std::future::pending().await,
            Ok(None) | Err(_) => return Stop::Kill,
        }
    }
}

fn write(outcome: &Path, ended: &Ended) -> io::Result<()> {
    let whole = outcome.with_extension("new");
    let mut options = OpenOptions::new();
    let mut file = options.create(true).truncate(true).write(true).mode(0o600).open(&whole)?;
    file.write_all(&serde_json::to_vec(ended).map_err(io::Error::other)?)?;
    file.sync_all()?;
    fs::rename(&whole, outcome)
}
