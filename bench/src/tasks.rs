//! Whole negotiations: throughput under a backlog, and the latency of single tasks.
use super::{
    client_process::Clients,
    collector,
    daemon::{Fixture, HostedAgent},
    definition,
    figures::{Figures, number},
};
use anyhow::{Context, ensure};
use clap::Args;
use convoke::{
    agent::{Agent, Finished, Job},
    app::Parts,
    config::Config,
    id::OrgId,
    task::{self, INVARIANTS, Request},
};
use futures_util::{StreamExt, TryStreamExt, stream};
use serde::Serialize;
use serde_json::{Value, json};
use std::{sync::Arc, time::Duration};
use tokio::time::Instant;
use tokio_postgres::Client;
use uuid::Uuid;

/// All tasks must be completed within this time.
const BACKLOG_WITHIN: Duration = Duration::from_secs(300);
/// A single task must be completed within this time.
const TASK_WITHIN: Duration = Duration::from_secs(10);
/// Tasks that one query asks about.
const CHUNK: usize = 500;
const COMPLETED: &str =
    "select not exists (select 1 from convoke.tasks where id = any($1) and state <> 'completed')";

/// The export of traces begins with what happens from then on.
const EXPORT_BEGUN: &str =
    "select from convoke.trace_export cross join convoke.task_defaults where traced_percent = 100";
const ALL_SENT: &str = "select from convoke.trace_export where seq >= (select max(seq) from convoke.events)";

#[derive(Args, Serialize)]
pub(super) struct TasksOptions {
    /// Tasks
    #[arg(long, default_value_t = 20_000, value_parser = clap::value_parser!(u32).range(1..))]
    tasks: u32,
    /// Concurrent requests
    #[arg(long, default_value_t = 400, value_parser = clap::value_parser!(u32).range(1..))]
    requesters: u32,
    /// Agents that offer for every task
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u32).range(1..))]
    bidders: u32,
    /// Tasks that each agent works on at once
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..))]
    slots: u32,
    /// Measure again with so many finished tasks in the tables
    #[arg(long, default_value_t = 0)]
    finished: u64,
    /// Send the traces of all tasks to a collector that runs beside
    #[arg(long)]
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    collector: bool,
}

#[derive(Args, Serialize)]
pub(super) struct AwardOptions {
    /// Tasks
    #[arg(long, default_value_t = 500)]
    tasks: u32,
    /// Agents that offer for every task
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u32).range(1..))]
    pub(super) bidders: u32,
    /// Remote agents that are killed while they work
    #[arg(long, default_value_t = 20)]
    pub(super) deaths: u32,
}

/// Does nothing, so that only the negotiation is measured.
struct IdleAgent;

#[async_trait::async_trait]
impl Agent for IdleAgent {
    async fn run(&self, _: Job) -> Result<Finished, task::Failure> {
        Ok(json!({ "ok": true }).into())
    }
}

/// Hosted agents that do nothing, each a little more expensive than the one before.
pub(super) fn idle_agents(bidders: u32, slots: u32) -> anyhow::Result<Vec<HostedAgent>> {
    let agent = |n| {
        let offer = format!("[offer]\ncost_microdollars = {}\n", 100 + n);
        Ok((definition(&format!("bidder-{n}"), slots, &offer)?, Arc::new(IdleAgent) as Arc<dyn Agent>))
    };
    (0..bidders).map(agent).collect()
}

pub(super) fn request() -> anyhow::Result<Request> {
    Ok(serde_json::from_value(json!({
        "kind": "bench.task", "requires": ["work"], "input": { "text": "a small input of a usual size" },
    }))?)
}

/// Measures throughput; with `finished`, once more on tables with finished tasks, and the share of the first that is.
pub(super) async fn run(config: &Config, options: &TasksOptions) -> anyhow::Result<Figures> {
    if options.collector {
        return with_collector(config, options).await;
    }
    measure(config, options).await
}

/// The same, while the daemon sends the traces of all tasks.
async fn with_collector(config: &Config, options: &TasksOptions) -> anyhow::Result<Figures> {
    let mut collector = Clients::spawn(&["collector".to_owned()], []).await?;
    let (told, _) = collector.ask(&collector::Order {}).await?;
    let endpoint = told.get("endpoint").and_then(Value::as_str).context("the collector has no address")?;
    let mut config = config.clone();
    config.telemetry.otlp.endpoint = endpoint.to_owned();
    config.telemetry.otlp.percent = 100;
    let measured = measure(&config, options).await;
    let received = collector.ask(&collector::Order {}).await;
    collector.stop().await?;
    let mut figures = measured?;
    let bytes = number(&received?.0, "bytes")?;
    ensure!(bytes > 0.0, "no trace has arrived");
    figures.add("collector_mib", bytes / f64::from(1 << 20));
    Ok(figures)
}

async fn measure(config: &Config, options: &TasksOptions) -> anyhow::Result<Figures> {
    let mut figures = Figures::default();
    let empty = throughput(config, options, 0, "", &mut figures).await?;
    if options.finished > 0 {
        let prefix = "with_finished_";
        let filled = throughput(config, options, options.finished, prefix, &mut figures).await?;
        figures.add("with_finished_share", filled / empty);
    }
    Ok(figures)
}

/// Returns tasks a second.
async fn throughput(
    config: &Config,
    options: &TasksOptions,
    finished: u64,
    prefix: &str,
    figures: &mut Figures,
) -> anyhow::Result<f64> {
    let agents = idle_agents(options.bidders, options.slots)?;
    let fixture = Fixture { config: config.clone(), agents, definitions: Vec::new(), schema: "", finished };
    let backlog = async |daemon: &Parts, figures: &mut Figures| {
        if options.collector {
            until(daemon, EXPORT_BEGUN).await.context("the export of traces did not begin")?;
        }
        let times = run_backlog(daemon, options).await?;
        if options.collector {
            let lag = until(daemon, ALL_SENT).await.context("not all traces were sent")?;
            figures.add(format!("{prefix}until_all_sent_seconds"), lag.as_secs_f64());
        }
        Ok(times)
    };
    let (requested, completed) = fixture.measure(figures, backlog).await?;
    let per_second = |time: Duration| f64::from(options.tasks) / time.as_secs_f64();
    let mut add = |name: &str, value: f64| figures.add(format!("{prefix}{name}"), value);
    add("life_cycles_per_second", per_second(completed).round());
    add("requests_per_second", per_second(requested).round());
    add("seconds", completed.as_secs_f64());
    Ok(per_second(completed))
}

/// Waits until a query has a row, and returns how long that took.
async fn until(daemon: &Parts, query: &str) -> anyhow::Result<Duration> {
    let (client, began) = (daemon.database.client().await?, Instant::now());
    let found = async {
        while client.query_opt(query, &[]).await?.is_none() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        anyhow::Ok(())
    };
    tokio::time::timeout(BACKLOG_WITHIN, found).await??;
    Ok(began.elapsed())
}

/// Returns how long it took until all tasks were requested, and until all were completed.
async fn run_backlog(daemon: &Parts, options: &TasksOptions) -> anyhow::Result<(Duration, Duration)> {
    let org = OrgId::try_from("bench")?;
    let template = request()?;
    let started = Instant::now();
    let requests =
        stream::iter(0..options.tasks).map(|_| daemon.tasks.request(&org, "bench", template.clone()));
    let requests = requests.buffer_unordered(usize::try_from(options.requesters)?);
    let made: Vec<_> = requests.try_collect().await.context("a request was refused")?;
    let requested = started.elapsed();
    let client = daemon.database.client().await?;
    let mut ids: Vec<Uuid> = made.into_iter().map(|made| made.task.id.as_uuid()).collect();
    // Ids are in the order of time: the oldest tasks are asked about first, and most answers are yes at once.
    ids.sort_unstable();
    let completed = tokio::time::timeout(BACKLOG_WITHIN, all_completed(&client, &ids)).await;
    completed.with_context(|| format!("not all tasks were completed within {BACKLOG_WITHIN:?}"))??;
    let took = started.elapsed();
    // The invariants read whole tables, after the clock has stopped.
    client.batch_execute("set enable_seqscan = on; set statement_timeout = 0").await?;
    for (name, query) in INVARIANTS {
        ensure!(client.query(*query, &[]).await?.is_empty(), "invariant {name} is broken");
    }
    Ok((requested, took))
}

async fn all_completed(client: &Client, ids: &[Uuid]) -> anyhow::Result<()> {
    let completed = client.prepare(COMPLETED).await?;
    for chunk in ids.chunks(CHUNK) {
        while !client.query_one(&completed, &[&chunk]).await?.try_get::<_, bool>(0)? {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
    Ok(())
}

/// Measures the steps of single tasks, one task after the other.
pub(super) async fn award(config: &Config, options: &AwardOptions) -> anyhow::Result<Figures> {
    let agents = idle_agents(options.bidders, 4)?;
    let fixture =
        Fixture { config: config.clone(), agents, definitions: Vec::new(), schema: "", finished: 0 };
    let mut figures = Figures::default();
    let single =
        async |daemon: &Parts, figures: &mut Figures| run_single_tasks(daemon, options.tasks, figures).await;
    fixture.measure(&mut figures, single).await?;
    Ok(figures)
}

async fn run_single_tasks(daemon: &Parts, tasks: u32, figures: &mut Figures) -> anyhow::Result<()> {
    let org = OrgId::try_from("bench")?;
    let mut whole = Vec::new();
    for _ in 0..tasks {
        let started = Instant::now();
        let made = daemon.tasks.request(&org, "bench", request()?).await?;
        daemon.tasks.wait(made.task.id, TASK_WITHIN).await?;
        whole.push(started.elapsed());
    }
    let client = daemon.database.client().await?;
    let between = |from: &str, to: &str| {
        format!(
            "select (extract(epoch from b.at - a.at) * 1000000)::bigint from convoke.events a \
             join convoke.events b on b.task_id = a.task_id and b.type = '{to}' where a.type = '{from}'"
        )
    };
    for (name, from, to) in [
        ("announce_to_award", "requested", "awarded"),
        ("award_to_start", "awarded", "started"),
        ("start_to_finish", "started", "finished"),
    ] {
        let rows = client.query(&between(from, to), &[]).await?;
        let mut times = Vec::with_capacity(rows.len());
        for row in &rows {
            times.push(Duration::from_micros(u64::try_from(row.try_get::<_, i64>(0)?).unwrap_or(0)));
        }
        figures.add_percentiles(name, times);
    }
    figures.add_percentiles("request_to_completed", whole);
    Ok(())
}
