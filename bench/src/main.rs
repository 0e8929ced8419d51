//! Benchmarks of the daemon, and the comparison of their results.
//!
//! The daemon runs in this process, on a private PostgreSQL with fsync on or on the database of the settings;
//! `fanout` and `connections` run the channels alone, without a database. Clients run in processes of their own, which
//! this program starts from its hidden commands, so that each part's processor time is its own. Most figures have a
//! baseline from the same run, because machines are noisy. Each run appends a line to the results (`record`).
mod accounting;
mod attack;
mod baseline_server;
mod changes;
mod client;
mod client_process;
mod collector;
mod daemon;
mod dashboard;
mod failover;
mod fanout;
mod figures;
mod frames;
mod history;
mod hostile;
mod machine;
mod pairs;
mod peers;
mod process;
mod record;
mod scripted_model;
mod tasks;
mod think;
mod viewers;
mod wake;
mod watchers;

use anyhow::{Context, anyhow};
use clap::{Parser, Subcommand};
use convoke::{
    agent::Definition,
    config::{self, Config, Problems},
};
use figures::Figures;
use record::Record;
use serde::Serialize;
use serde_json::Value;
use std::{ffi::OsString, path::PathBuf, process::ExitCode};

/// Measures the daemon of this working tree on this machine.
#[derive(Parser)]
#[command(name = "convoke-bench", version, max_term_width = 100)]
#[command(after_help = "The daemon's settings come from --config and from CONVOKE_ variables. \
    CONVOKE_DATABASE__URL measures on an existing database; by default a private PostgreSQL is started and removed.")]
struct Cli {
    /// Settings file [default: config/convoke.toml, else convoke.toml, if it exists]
    #[arg(long, global = true, value_name = "FILE", env = "CONVOKE_CONFIG")]
    config: Option<PathBuf>,
    /// Folder of recorded runs; an empty value records nothing [default: bench/results]
    // clap refuses an empty `PathBuf`.
    #[arg(long, global = true, value_name = "DIR", env = "CONVOKE_BENCH_RESULTS")]
    results: Option<OsString>,
    /// Print the figures as one JSON object
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    #[command(flatten)]
    Benchmark(Benchmark),
    /// Compare the last recorded run of a benchmark with the last comparable run before it
    Compare {
        /// The benchmark, like fanout
        benchmark: String,
    },
    /// Run two command lines in turn and compare the medians of their figures
    Pairs(pairs::PairsOptions),
    /// Run tasks and wakes, Graphile Worker and pgbench in turn on one server, and compare
    Peers(peers::PeersOptions),
    #[command(flatten)]
    Child(Child),
}

/// A benchmark with its arguments. Serialized, it is an object with one member: the name and the arguments.
#[derive(Subcommand, Serialize)]
#[serde(rename_all = "snake_case")]
enum Benchmark {
    /// Latency from a commit to the start of an agent's work, beside LISTEN/NOTIFY
    Wake(wake::WakeOptions),
    /// Throughput of whole tasks, from request to completed
    Tasks(tasks::TasksOptions),
    /// Latency of single tasks, and of the next award after a winner is killed
    Award(tasks::AwardOptions),
    /// Runs of agents that think: time beside the calls of the model, and memory of many runs at once
    Think(think::ThinkOptions),
    /// One message to many sockets: throughput, processor time and latency, beside a bare server
    Fanout(fanout::FanoutOptions),
    /// Row changes to many sockets: latency and throughput, with row security, with many filters
    Changes(changes::ChangesOptions),
    /// What open dashboards cost, and their reads with many finished tasks in the tables
    Dashboard(dashboard::DashboardOptions),
    /// Memory of sockets that have joined a channel and are idle
    Connections(fanout::ConnectionsOptions),
    /// Latency and memory with a hundred well-behaved clients beside hostile clients of each kind
    Hostile(hostile::HostileOptions),
}

/// Processes that benchmarks start from this executable.
#[derive(Subcommand)]
enum Child {
    /// The hostile clients of `hostile`
    #[command(hide = true)]
    Attack(attack::Options),
    /// The clients of `fanout`, `connections` and `hostile`
    #[command(hide = true)]
    Client(client::Options),
    /// The collector of `tasks --collector`
    #[command(hide = true)]
    Collector(collector::Options),
    /// The model of `think`
    #[command(hide = true)]
    ScriptedModel(scripted_model::Options),
    /// The agent that `award` kills
    #[command(hide = true)]
    Victim(failover::Options),
    /// The dashboards of `dashboard`
    #[command(hide = true)]
    Viewers(viewers::Options),
    /// The clients of `changes`
    #[command(hide = true)]
    Watchers(watchers::Options),
}

/// `EX_USAGE`: the command line is wrong.
const USAGE: u8 = 64;
/// `EX_CONFIG`: the settings are wrong.
const CONFIG: u8 = 78;

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            let _ = error.print();
            return if error.use_stderr() { ExitCode::from(USAGE) } else { ExitCode::SUCCESS };
        }
    };
    // More than one TLS provider is linked, and rustls does not choose one by itself.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    let outcome = runtime.context("cannot start the runtime").and_then(|runtime| runtime.block_on(run(cli)));
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if error.is::<Problems>() => {
            eprintln!("{error}");
            ExitCode::from(CONFIG)
        }
        Err(error) => {
            eprintln!("convoke-bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn run(Cli { config, results, json, command }: Cli) -> anyhow::Result<()> {
    match command {
        Command::Benchmark(benchmark) => {
            let config =
                config::load(&config::Options { file: config, ..config::Options::default() })?.config;
            let figures = benchmark.run(&config).await?;
            print(&figures, json)?;
            let (name, arguments) = benchmark.name_and_arguments()?;
            if let Some(folder) = record::folder(results) {
                let file = Record::new(&name, arguments, &figures).append(&folder)?;
                eprintln!("recorded in {}", file.display());
            }
            Ok(())
        }
        Command::Compare { benchmark } => {
            let folder = record::folder(results).context("compare needs the folder of recorded runs")?;
            let (runs, bad_lines) = record::read(&folder, &benchmark)?;
            if bad_lines > 0 {
                eprintln!("{bad_lines} lines in {} are not runs", folder.display());
            }
            let table = record::compare(&benchmark, &runs);
            print!("{}", table.with_context(|| format!("cannot compare runs in {}", folder.display()))?);
            Ok(())
        }
        Command::Pairs(options) => {
            print!("{}", pairs::run(options).await?);
            Ok(())
        }
        Command::Peers(options) => {
            let config =
                config::load(&config::Options { file: config, ..config::Options::default() })?.config;
            print!("{}", peers::run(&config, &options).await?);
            Ok(())
        }
        Command::Child(child) => child.run().await,
    }
}

impl Benchmark {
    async fn run(&self, config: &Config) -> anyhow::Result<Figures> {
        match self {
            Self::Wake(options) => wake::run(config, options).await,
            Self::Tasks(options) => tasks::run(config, options).await,
            Self::Award(options) => {
                let mut figures = tasks::award(config, options).await?;
                failover::run(config, options, &mut figures).await?;
                Ok(figures)
            }
            Self::Think(options) => think::run(config, options).await,
            Self::Fanout(options) => fanout::run(config, options).await,
            Self::Changes(options) => changes::run(config, options).await,
            Self::Dashboard(options) => dashboard::run(config, options).await,
            Self::Connections(options) => fanout::connections(config, options).await,
            Self::Hostile(options) => hostile::run(config, options).await,
        }
    }

    fn name_and_arguments(&self) -> anyhow::Result<(String, Value)> {
        let Value::Object(members) = serde_json::to_value(self)? else {
            return Err(anyhow!("a benchmark is no object"));
        };
        members.into_iter().next().context("a benchmark has no name")
    }
}

impl Child {
    /// The clients have threads of their own, with an event loop that is not shared.
    async fn run(self) -> anyhow::Result<()> {
        let thread = match self {
            Self::Victim(options) => return failover::victim(options).await,
            Self::Collector(options) => std::thread::spawn(move || collector::run(&options)),
            Self::ScriptedModel(options) => std::thread::spawn(move || scripted_model::run(&options)),
            Self::Client(options) => std::thread::spawn(|| client::run(options)),
            Self::Attack(options) => std::thread::spawn(|| attack::run(options)),
            Self::Viewers(options) => std::thread::spawn(|| viewers::run(options)),
            Self::Watchers(options) => std::thread::spawn(|| watchers::run(options)),
        };
        thread.join().map_err(|_| anyhow!("the clients panicked"))?
    }
}

fn print(figures: &Figures, json: bool) -> anyhow::Result<()> {
    if json {
        println!("{}", serde_json::to_string(figures.values())?);
        return Ok(());
    }
    for (name, value) in figures.values() {
        println!("{name:44} {value}");
    }
    Ok(())
}

fn at_least_one(text: &str) -> Result<usize, String> {
    let number: usize = text.parse().map_err(|error| format!("{error}"))?;
    if number == 0 { Err("must be at least 1".into()) } else { Ok(number) }
}

/// A Rust agent of org `bench`; `more` is added to its file.
fn definition(id: &str, slots: u32, more: &str) -> anyhow::Result<Definition> {
    let text = format!(
        "id = \"{id}\"\norg = \"bench\"\ncapabilities = [\"work\"]\nslots = {slots}\n\
         [run]\nkind = \"rust\"\nname = \"{id}\"\n{more}"
    );
    toml::from_str(&text).context("the benchmark's own agent definition")
}
