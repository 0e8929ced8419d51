//! Convoke beside Graphile Worker, a job queue without negotiation, and beside what PostgreSQL itself commits.
//!
//! One private PostgreSQL serves all of them, one after the other, so that they share its settings and its disk. The order
//! is turned round with each pair, because machines drift. Each of them has a database of its own.
use crate::{
    daemon::on_private_server,
    figures::median,
    pairs::{self, RunFigures},
};
use anyhow::{Context, bail, ensure};
use clap::Args;
use convoke::{
    config::Config,
    db::{Host, Target},
};
use secrecy::ExposeSecret;
use serde::Serialize;
use std::{collections::BTreeMap, fmt::Write as _, path::PathBuf, process::Stdio};
use tokio::process::Command;

/// The databases of Convoke and of the others.
const OWN: &str = "bench_own";
const PEER: &str = "bench_peer";
/// Ratios of the table: a name, and the figures above and below.
const RATIOS: [(&str, &str, &str); 6] = [
    ("life-cycles to Graphile Worker's jobs", "convoke_life_cycles_per_second", "graphile_jobs_per_second"),
    (
        "life-cycles to its jobs that were stored before",
        "convoke_life_cycles_per_second",
        "graphile_stored_jobs_per_second",
    ),
    ("wake p50 to the commit's p50", "convoke_wake_p50_ms", "convoke_commit_p50_ms"),
    ("wake p99 to the commit's p50", "convoke_wake_p99_ms", "convoke_commit_p50_ms"),
    ("Graphile Worker's wake p50 to its commit's", "graphile_wake_p50_ms", "graphile_commit_p50_ms"),
    ("life-cycles to commits of pgbench -N", "convoke_life_cycles_per_second", "pgbench_commits_per_second"),
];

#[derive(Args, Serialize)]
pub(super) struct PeersOptions {
    /// Runs of each
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..))]
    runs: u32,
    /// Tasks, and jobs of Graphile Worker
    #[arg(long, default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(1..))]
    tasks: u32,
    /// Agents that offer for every task
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u32).range(1..))]
    bidders: u32,
    /// Jobs that Graphile Worker works on at once, and clients of pgbench
    #[arg(long, default_value_t = 24, value_parser = clap::value_parser!(u32).range(1..))]
    workers: u32,
    /// Commits whose way to a handler is measured
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..))]
    commits: u32,
    /// Commits a second
    #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u32).range(1..))]
    rate: u32,
    /// Seconds of each run of pgbench
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..))]
    seconds: u32,
}

/// One of those that are compared.
#[derive(Clone, Copy)]
enum Run {
    ConvokeTasks,
    GraphileTasks,
    ConvokeWake,
    GraphileWake,
    Pgbench,
}

const RUNS: [Run; 5] =
    [Run::ConvokeTasks, Run::GraphileTasks, Run::ConvokeWake, Run::GraphileWake, Run::Pgbench];

/// Values of each figure, one for each run.
type Series = BTreeMap<String, Vec<f64>>;

/// Runs all of them in turn, and returns a table of medians and ratios.
///
/// # Errors
/// If the settings name a database, a program is missing, or a run fails.
pub(super) async fn run(config: &Config, options: &PeersOptions) -> anyhow::Result<String> {
    ensure!(
        config.database.url.is_none(),
        "peers starts a PostgreSQL of its own: unset database.url (CONVOKE_DATABASE__URL)"
    );
    ensure!(
        graphile().exists() && graphile().with_file_name("node_modules").exists(),
        "the packages of {} are not installed: make bench-peers installs them",
        graphile().display()
    );
    on_private_server(config, async |database| {
        let client = database.client().await?;
        for name in [OWN, PEER] {
            client.batch_execute(&format!("create database {name}")).await?;
        }
        drop(client);
        let target = database.target();
        finished(pgbench(target).args(["-i", "-q", "-s", "10"])).await?;
        let mut series = Series::new();
        for turn in 0..options.runs {
            let forwards = RUNS.into_iter();
            let order: Vec<Run> = if turn % 2 == 0 { forwards.collect() } else { forwards.rev().collect() };
            for run in order {
                eprintln!("run {} of {}: {}", turn + 1, options.runs, run.name());
                for (name, value) in run.figures(target, options).await? {
                    series.entry(name).or_default().push(value);
                }
            }
        }
        Ok(table(&series))
    })
    .await
}

impl Run {
    fn name(self) -> &'static str {
        match self {
            Self::ConvokeTasks => "convoke-bench tasks",
            Self::GraphileTasks => "Graphile Worker, jobs",
            Self::ConvokeWake => "convoke-bench wake",
            Self::GraphileWake => "Graphile Worker, wake",
            Self::Pgbench => "pgbench -N",
        }
    }

    async fn figures(self, target: &Target, options: &PeersOptions) -> anyhow::Result<RunFigures> {
        let PeersOptions { tasks, bidders, workers, commits, rate, seconds, .. } = options;
        let (of, arguments) = match self {
            Self::ConvokeTasks => ("convoke", format!("tasks --tasks {tasks} --bidders {bidders} --json")),
            Self::ConvokeWake => ("convoke", format!("wake --commits {commits} --rate {rate} --json")),
            Self::GraphileTasks => ("graphile", format!("tasks {tasks} {workers}")),
            Self::GraphileWake => ("graphile", format!("wake {commits} {rate}")),
            Self::Pgbench => ("pgbench", format!("-N -n -j 2 -c {workers} -T {seconds}")),
        };
        let mut command = match self {
            Self::ConvokeTasks | Self::ConvokeWake => {
                let mut own = Command::new(std::env::current_exe()?);
                own.env("CONVOKE_DATABASE__URL", target.with_database(OWN).url());
                own
            }
            Self::GraphileTasks | Self::GraphileWake => {
                let mut node = Command::new("node");
                place(&mut node, target).arg(graphile());
                node
            }
            Self::Pgbench => pgbench(target),
        };
        command.args(arguments.split(' '));
        let found = match self {
            Self::Pgbench => BTreeMap::from([("commits_per_second".into(), commits_of(&mut command).await?)]),
            _ => pairs::figures_of(command, self.name()).await?,
        };
        Ok(found.into_iter().map(|(name, value)| (format!("{of}_{name}"), value)).collect())
    }
}

fn graphile() -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/peers/graphile.mjs"))
}

fn pgbench(target: &Target) -> Command {
    let mut pgbench = Command::new("pgbench");
    place(&mut pgbench, target);
    pgbench
}

/// Says where the database of the others is.
fn place<'a>(command: &'a mut Command, target: &Target) -> &'a mut Command {
    let host = match &target.host {
        Host::Tcp(host) => host.into(),
        Host::Unix(folder) => folder.as_os_str().to_owned(),
    };
    let password = target.password.as_ref().map_or("", |password| password.expose_secret());
    command
        .env("PGHOST", host)
        .env("PGPORT", target.port.to_string())
        .env("PGUSER", &target.user)
        .env("PGPASSWORD", password)
        .env("PGDATABASE", PEER)
}

/// Runs a command to its end, and returns what it prints.
async fn finished(command: &mut Command) -> anyhow::Result<String> {
    let program = command.as_std().get_program().to_string_lossy().into_owned();
    command.stdin(Stdio::null()).kill_on_drop(true);
    let output = command.output().await.with_context(|| format!("cannot start {program}"))?;
    if !output.status.success() {
        bail!("{program}: {}: {}", output.status, String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

async fn commits_of(command: &mut Command) -> anyhow::Result<f64> {
    let text = finished(command).await?;
    transactions_per_second(&text).with_context(|| format!("pgbench printed no tps: {text}"))
}

/// The number of a line like `tps = 1234.5 (without initial connection time)`.
fn transactions_per_second(text: &str) -> Option<f64> {
    let after = text.lines().find_map(|line| line.strip_prefix("tps = "))?;
    after.split_whitespace().next()?.parse().ok()
}

fn table(series: &Series) -> String {
    let mut table = format!("{:48} {:>12}  runs\n", "medians", "");
    for (name, values) in series {
        let median = median(values).unwrap_or(f64::NAN);
        let _ = writeln!(table, "{name:48} {median:>12}  {values:?}");
    }
    let _ = writeln!(table, "\n{:48} {:>12}  of the runs", "ratios", "of medians");
    for (name, above, below) in RATIOS {
        let (Some(above), Some(below)) = (series.get(above), series.get(below)) else { continue };
        let ratio = |above: f64, below: f64| format!("{:.3}", above / below);
        let medians = median(above).zip(median(below)).map_or_else(|| "-".into(), |(a, b)| ratio(a, b));
        let each: Vec<String> = above.iter().zip(below).map(|(above, below)| ratio(*above, *below)).collect();
        let _ = writeln!(table, "{name:48} {medians:>12}  {}", each.join(" "));
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commits_are_read_from_the_output_of_pgbench() {
        let text = "number of clients: 24\nlatency average = 9.7 ms\ntps = 2461.98 (without initial connection time)\n";
        assert_eq!(transactions_per_second(text), Some(2461.98));
        assert_eq!(transactions_per_second("pgbench: error"), None);
    }

    #[test]
    fn table_has_medians_and_the_ratio_of_each_run() {
        let series = Series::from([
            ("convoke_life_cycles_per_second".to_owned(), vec![900.0, 1200.0, 1000.0]),
            ("graphile_jobs_per_second".to_owned(), vec![500.0, 400.0, 500.0]),
        ]);
        let table = table(&series);
        let row = table.lines().find(|line| line.starts_with("life-cycles to Graphile")).unwrap();
        let numbers: Vec<&str> = row.split_whitespace().rev().take(4).collect();
        assert_eq!(numbers, ["2.000", "3.000", "1.800", "2.000"], "{table}");
        assert!(table.contains("1000  [900.0, 1200.0, 1000.0]"), "{table}");
    }
}
