//! `convoke bench`: measures a daemon in this process on a private PostgreSQL with fsync on,
//! and the channels alone without one.
//!
//! Every figure is a median or a percentile with its baseline from the same run, since
//! machines are noisy. The cluster lives in a folder of its own and is removed afterwards.
mod bare;
mod changes;
mod client;
mod daemon;
mod death;
mod fanout;
mod frames;
mod history;
mod process;
mod tasks;
mod wake;
mod watchers;

use super::{Outcome, settings::Settings};
use crate::{agent::Definition, config::Config};
use anyhow::{Context, anyhow};
use clap::Subcommand;
use serde_json::Value;
use std::time::Duration;

#[derive(Subcommand)]
pub(super) enum Command {
    /// Commit to an agent's handler, beside LISTEN/NOTIFY.
    Wake {
        /// Commits that are measured.
        #[arg(long, default_value_t = 2000)]
        commits: u32,
        /// Commits a second.
        #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u32).range(1..))]
        rate: u32,
    },
    /// Whole life-cycles a second, request to completed.
    Tasks {
        /// Tasks that are done.
        #[arg(long, default_value_t = 20_000)]
        tasks: u32,
        /// Requests that are under way at once.
        #[arg(long, default_value_t = 400)]
        requesters: u32,
        /// Agents that bid on every task.
        #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u32).range(1..))]
        bidders: u32,
        /// Tasks at once of each agent.
        #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..))]
        slots: u32,
        /// Measures again with so many finished tasks in the tables; needs a private PostgreSQL.
        #[arg(long, default_value_t = 0)]
        finished: u64,
    },
    /// Announcement to award of one task at a time, and the death of a winner to the next award.
    Award {
        /// Tasks that are measured.
        #[arg(long, default_value_t = 500)]
        tasks: u32,
        /// Agents that bid on every task.
        #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u32).range(1..))]
        bidders: u32,
        /// Winners with a socket that are killed while they work.
        #[arg(long, default_value_t = 20)]
        deaths: u32,
    },
    /// One message to many sockets: deliveries a second, what they cost, and how late they are.
    Fanout {
        /// Sockets on the topic.
        #[arg(long, default_value_t = 1000, value_parser = at_least_one)]
        subscribers: usize,
        /// Messages on their way at once, at saturation.
        #[arg(long, default_value_t = 32, value_parser = clap::value_parser!(u64).range(1..))]
        in_flight: u64,
        /// Size of the JSON payload.
        #[arg(long, default_value_t = 128)]
        bytes: usize,
        /// How long each part is measured.
        #[arg(long, default_value_t = 5.0)]
        seconds: f64,
        /// Messages a second when latency is measured.
        #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..))]
        rate: u32,
    },
    /// Row changes to many sockets: how late they are, how many go, with row security, with many filters.
    Changes(changes::Options),
    /// Memory of sockets that have joined and say nothing.
    Connections {
        /// Sockets.
        #[arg(long, default_value_t = 5000, value_parser = at_least_one)]
        count: usize,
    },
    /// Channels alone, until they are told to stop; tests kill them.
    #[command(hide = true)]
    Channels,
    /// The clients of `fanout` and `connections`, which start it themselves.
    #[command(hide = true)]
    Client(client::Options),
    /// The agent that `award` kills, and starts itself.
    #[command(hide = true)]
    Victim(death::Options),
    /// The clients of `changes`, which starts it itself.
    #[command(hide = true)]
    Watchers(watchers::Options),
}

fn at_least_one(text: &str) -> Result<usize, String> {
    let number: usize = text.parse().map_err(|e| format!("{e}"))?;
    if number == 0 { Err("must be at least 1".into()) } else { Ok(number) }
}

pub(super) async fn run(settings: &Settings, command: Command) -> Outcome {
    let figures = match command {
        Command::Wake { commits, rate } => wake::run(settings, commits, rate).await?,
        Command::Tasks { tasks, requesters, bidders, slots, finished } => {
            let wish = tasks::Backlog { tasks, requesters, bidders, slots };
            tasks::life_cycles(settings, &wish, finished).await?
        }
        Command::Award { tasks, bidders, deaths } => {
            let (mut figures, deaths) = (
                tasks::award(settings, tasks, bidders).await?,
                death::deaths(settings, deaths, bidders).await?,
            );
            if let (Some(all), Value::Object(more)) = (figures.as_object_mut(), deaths) {
                all.extend(more);
            }
            figures
        }
        Command::Fanout { subscribers, in_flight, bytes, seconds, rate } => {
            let wish = fanout::Fanout { subscribers, in_flight, bytes, seconds, rate };
            fanout::fanout(settings, wish).await?
        }
        Command::Changes(options) => changes::run(settings, options).await?,
        Command::Connections { count } => fanout::connections(settings, count).await?,
        Command::Channels => {
            channels(&settings.load()?.config).await?;
            return Ok(());
        }
        Command::Victim(options) => return Ok(death::victim(options).await?),
        Command::Client(options) => {
            let clients = std::thread::spawn(|| client::run(options)).join();
            return Ok(clients.map_err(|_| anyhow!("the clients panicked"))??);
        }
        Command::Watchers(options) => {
            let clients = std::thread::spawn(|| watchers::run(options)).join();
            return Ok(clients.map_err(|_| anyhow!("the clients panicked"))??);
        }
    };
    if settings.json {
        println!("{figures}");
    } else if let Some(members) = figures.as_object() {
        for (name, value) in members {
            println!("{name:28} {value}");
        }
    }
    Ok(())
}

/// Serves channels, says where on the standard output, and ends in order on SIGTERM.
async fn channels(config: &Config) -> anyhow::Result<()> {
    let mut terminate = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
    let channels = crate::app::Channels::start(config).await?;
    println!("{}", serde_json::json!({ "addr": channels.addr, "anon_key": channels.anon_key()? }));
    terminate.recv().await;
    channels.stop().await
}

/// A Rust agent of org `bench`.
fn definition(id: &str, slots: u32, more: &str) -> anyhow::Result<Definition> {
    let text = format!(
        "id = \"{id}\"\norg = \"bench\"\ncapabilities = [\"work\"]\nslots = {slots}\n\
         [run]\nkind = \"rust\"\nname = \"{id}\"\n{more}"
    );
    toml::from_str(&text).context("the bench's own definition")
}

/// The value below which so many percent are; in milliseconds with three digits.
fn percentile(sorted: &[Duration], percent: usize) -> Value {
    let at = (sorted.len().saturating_sub(1) * percent).div_ceil(100);
    let ms = sorted.get(at).map_or(f64::NAN, |time| time.as_secs_f64() * 1000.0);
    serde_json::json!((ms * 1000.0).round() / 1000.0)
}

/// p50, p95 and p99 as members `<name>_p50_ms` and so on.
fn percentiles(figures: &mut serde_json::Map<String, Value>, name: &str, mut times: Vec<Duration>) {
    times.sort();
    for percent in [50, 95, 99] {
        figures.insert(format!("{name}_p{percent}_ms"), percentile(&times, percent));
    }
}
