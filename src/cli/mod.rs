//! The command line.
//!
//! Parses, loads the settings and calls the part that does the work. Commands
//! about tasks and agents ask the running daemon over HTTP; `up` and `demo` are
//! the daemon. Results go to standard output (`--json`: as JSON), everything else
//! to standard error. Exit codes: 0 done, 1 failed, 64 usage, 78 configuration.
mod agent;
mod bench;
mod check;
mod daemon;
mod demo;
mod doctor;
mod failure;
mod migrate;
mod screen;
mod serve;
mod settings;
mod task;
mod token;
mod up;
mod why;

use clap::{Parser, Subcommand};
use failure::Failure;
use settings::Settings;
use std::process::ExitCode;

/// What a command comes to.
type Outcome = Result<(), Failure>;

/// The daemon that coordinates AI agents: a row changes, agents wake, negotiate and do the work.
#[derive(Parser)]
#[command(name = "convoke", version, max_term_width = 100, propagate_version = true)]
#[command(after_help = "Exit codes: 0 done, 1 failed, 64 usage, 78 configuration.")]
struct Cli {
    #[command(flatten)]
    settings: Settings,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run the daemon until Ctrl-C.
    Up,
    /// Show agents that compete for the tickets of a support desk.
    Demo(demo::Args),
    /// List every problem of the settings and the agents' files.
    Check,
    /// Request, list, show, follow, explain and cancel tasks.
    #[command(subcommand)]
    Task(task::Command),
    /// List and show agents.
    #[command(subcommand)]
    Agent(agent::Command),
    /// Measure this machine.
    #[command(subcommand)]
    Bench(bench::Command),
    /// Bring the database to this program's version.
    Migrate,
    /// Look at the database, the daemon and the invariants; say what to mend.
    Doctor {
        /// Also make every row again from the events and compare (reads everything)
        #[arg(long)]
        replay: bool,
    },
    /// Make a key for a client, a service or an agent.
    Token(token::Args),
}

/// Runs the command line of this process.
#[must_use]
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(e) => {
            let _ = e.print();
            // Help and version are no mistakes.
            return if e.use_stderr() { ExitCode::from(failure::USAGE) } else { ExitCode::SUCCESS };
        }
    };
    match run(cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.report(),
    }
}

fn run(Cli { settings, command }: Cli) -> Outcome {
    // Two of our libraries bring a TLS of their own; this says which one is meant.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async {
        match command {
            Command::Up => up::run(&settings).await,
            Command::Demo(args) => demo::run(&settings, &args).await,
            Command::Check => check::run(&settings),
            Command::Task(command) => task::run(&settings, command).await,
            Command::Agent(command) => agent::run(&settings, command).await,
            Command::Bench(command) => bench::run(&settings, command).await,
            Command::Migrate => migrate::run(&settings).await,
            Command::Doctor { replay } => doctor::run(&settings, replay).await,
            Command::Token(args) => token::run(&settings, &args),
        }
    })
}
