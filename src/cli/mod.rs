//! The command line.
//!
//! Parses arguments, loads the settings and calls the part that does the work. Commands about tasks and agents ask the
//! running daemon over HTTP; `up` and `demo` run a daemon in this process. Results go to standard output (`--json`: as
//! JSON), everything else to standard error. Exit codes: 0 done, 1 failed, 64 usage, 78 configuration.
mod agent;
mod check;
mod daemon;
mod dashboard;
mod definition_diff;
mod demo;
mod doctor;
mod exit;
mod input_file;
mod mcp;
mod migrate;
mod output;
mod prices;
mod reconcile;
mod secrets;
mod serve;
mod settings;
mod spend;
mod steps;
mod task;
mod task_id_prefix;
mod token;
mod up;
mod why;

use clap::{Parser, Subcommand};
use exit::Failure;
use settings::Settings;
use std::process::ExitCode;

/// The result of a command.
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
    /// List and accept the tools of MCP servers.
    #[command(subcommand)]
    Mcp(mcp::Command),
    /// Let the daemon read the agents' files again; print what changed, or every problem.
    Reload,
    /// Apply missing migrations to the database.
    Migrate,
    /// Check the database, the daemon and the invariants; list what to fix.
    Doctor {
        /// Also rebuild every task from the event log and compare (reads whole tables)
        #[arg(long)]
        replay: bool,
    },
    /// Show what agents and their models used: money, tokens, questions.
    Spend(spend::Args),
    /// Import prices of models from public catalogs.
    #[command(subcommand)]
    Prices(prices::Command),
    /// Print a link that signs you in to the dashboard, once and within ten minutes.
    Dashboard(dashboard::Args),
    /// Sign a token for a client, a service, an agent or a user.
    Token(token::Args),
}

/// Runs the command line of this process.
#[must_use]
pub fn main() -> ExitCode {
    // Before everything else: a keeper reads no settings, and its environment is that of its program.
    if std::env::args_os().nth(1).is_some_and(|first| first == crate::agent::KEEP) {
        return crate::agent::keep_call();
    }
    if let Err(error) = secrets::hide() {
        return Failure::from(error).report();
    }
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(e) => {
            let _ = e.print();
            // clap reports --help and --version as errors too; they are written to standard output.
            return if e.use_stderr() { ExitCode::from(exit::USAGE) } else { ExitCode::SUCCESS };
        }
    };
    match run(cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.report(),
    }
}

fn run(Cli { settings, command }: Cli) -> Outcome {
    crate::fault::check().map_err(Failure::Usage)?;
    // More than one TLS provider is linked, and rustls does not choose one by itself.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async {
        match command {
            Command::Up => up::run(&settings).await,
            Command::Demo(args) => demo::run(&settings, &args).await,
            Command::Check => check::run(&settings),
            Command::Task(command) => task::run(&settings, command).await,
            Command::Agent(command) => agent::run(&settings, command).await,
            Command::Mcp(command) => mcp::run(&settings, command).await,
            Command::Reload => agent::reload(&settings).await,
            Command::Migrate => migrate::run(&settings).await,
            Command::Doctor { replay } => doctor::run(&settings, replay).await,
            Command::Spend(args) => spend::run(&settings, args).await,
            Command::Prices(command) => prices::run(&settings, command),
            Command::Dashboard(args) => dashboard::run(&settings, args),
            Command::Token(args) => token::run(&settings, &args),
        }
    })
}
