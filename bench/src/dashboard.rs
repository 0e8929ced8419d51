//! What dashboards cost: the reads of the page with many finished tasks in the tables, and a paced load of whole tasks
//! without dashboards, with dashboards that follow it, and without them again: what drifts meanwhile cancels out.
use super::{
    client_process::Clients,
    daemon::Fixture,
    figures::{Figures, number},
    process, tasks,
    viewers::{self, Http},
};
use anyhow::{Context, ensure};
use clap::Args;
use convoke::{
    app::Parts,
    auth::{MintRequest, Role, mint},
    clock::Clock,
    config::Config,
    id::OrgId,
    task::Request,
};
use futures_util::{StreamExt, TryStreamExt, stream};
use serde::Serialize;
use serde_json::Value;
use std::time::Duration;
use tokio::time::Instant;

/// Requests are sent in bursts of so many a second.
const BURSTS: u32 = 50;
/// Requests under way at most.
const IN_FLIGHT: usize = 400;
/// All tasks must be completed within this time after the load.
const REST_WITHIN: Duration = Duration::from_secs(120);
/// Readings of each kind.
const READINGS: usize = 30;
/// An overview is answered again for a second; a reading after this time is made.
const OVERVIEW_AFTER: Duration = Duration::from_millis(1100);
const TOKEN_TTL: Duration = Duration::from_secs(3600);
/// The reads of the page, by the names of their figures.
const READS: [(&str, &str); 6] = [
    ("list", "/v1/tasks?view=line&limit=100"),
    ("list_running", "/v1/tasks?view=line&limit=100&state=running,awarded"),
    ("list_failed", "/v1/tasks?view=line&limit=100&state=failed"),
    ("list_rare_kind", "/v1/tasks?view=line&limit=100&kind=bench.rare"),
    ("events", "/v1/events?limit=100"),
    ("events_of_an_agent", "/v1/events?limit=20&agent_id=bidder-1"),
];

#[derive(Args, Serialize)]
pub(super) struct DashboardOptions {
    /// Finished tasks in the tables
    #[arg(long, default_value_t = 1_000_000)]
    finished: u64,
    /// Open dashboards
    #[arg(long, default_value_t = 10, value_parser = super::at_least_one)]
    dashboards: usize,
    /// Tasks that are requested in a second
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..))]
    rate: u32,
    /// Time of each of the three loads
    #[arg(long, default_value_t = 60, value_parser = clap::value_parser!(u32).range(1..))]
    seconds: u32,
    /// Agents that offer for every task
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..))]
    bidders: u32,
}

pub(super) async fn run(config: &Config, options: &DashboardOptions) -> anyhow::Result<Figures> {
    let mut figures = Figures::default();
    let agents = tasks::idle_agents(options.bidders, 512)?;
    let fixture = Fixture {
        config: config.clone(),
        agents,
        definitions: Vec::new(),
        schema: "",
        finished: options.finished,
    };
    fixture.measure(&mut figures, async |daemon, figures| measure(daemon, options, figures).await).await?;
    Ok(figures)
}

async fn measure(daemon: &Parts, options: &DashboardOptions, figures: &mut Figures) -> anyhow::Result<()> {
    let ttl = TOKEN_TTL;
    let org = Some(OrgId::try_from("bench")?);
    let request = MintRequest { org, ttl, ..MintRequest::new(Role::Authenticated) };
    let token = mint(&daemon.keys, &request, Clock::System.now())?;
    measure_reads(daemon, &token, figures).await?;
    let alone = load(daemon, options).await?;
    let arguments: Vec<String> = vec![
        "viewers".into(),
        "--addr".into(),
        daemon.addr.to_string(),
        "--org".into(),
        "bench".into(),
        "--dashboards".into(),
        options.dashboards.to_string(),
    ];
    let mut viewers = Clients::spawn(&arguments, [(viewers::TOKEN, token.clone())]).await?;
    let order = viewers::Order { seconds: f64::from(options.seconds) };
    let (watched, seen) = tokio::try_join!(load(daemon, options), viewers.ask(&order))?;
    viewers.stop().await?;
    let (seen, _) = seen;
    let again = load(daemon, options).await?;
    for (name, of) in [("alone", &alone), ("watched", &watched), ("alone_again", &again)] {
        figures.add(format!("{name}_life_cycles_per_second"), of.per_second);
        figures.add(format!("{name}_cpu_share"), of.cpu_share());
    }
    let mean = |of: fn(&Load) -> f64| f64::midpoint(of(&alone), of(&again));
    figures.add("watched_to_alone_cpu_ratio", watched.cpu_seconds / mean(|load| load.cpu_seconds));
    figures.add("watched_to_alone_life_cycles_ratio", watched.per_second / mean(|load| load.per_second));
    for name in ["shown_p50_ms", "shown_p99_ms"] {
        figures.add(format!("request_to_{name}"), number(&seen, name)?);
    }
    let each = |name: &str| {
        Ok::<_, anyhow::Error>(number(&seen, name)? / number(&seen, "seconds")? / as_f64(options.dashboards))
    };
    figures.add("dashboard_digests_per_second", each("digests")?);
    figures.add("dashboard_reads_per_second", each("reads")?);
    figures.add("dashboard_received_kib_per_second", each("bytes")? / 1024.0);
    Ok(())
}

/// Times each read of the page from the request to the whole answer.
async fn measure_reads(daemon: &Parts, token: &str, figures: &mut Figures) -> anyhow::Result<()> {
    let mut http = Http::open(daemon.addr, token).await?;
    for (name, path) in READS {
        // The first one plans the statement.
        let body: Value = serde_json::from_slice(&http.get(path).await?)?;
        ensure!(body.is_object(), "{path} answers no object");
        let mut times = Vec::new();
        for _ in 0..READINGS {
            let since = Instant::now();
            http.get(path).await?;
            times.push(since.elapsed());
        }
        figures.add_percentiles(name, times);
    }
    let mut times = Vec::new();
    for _ in 0..5 {
        tokio::time::sleep(OVERVIEW_AFTER).await;
        let since = Instant::now();
        http.get("/v1/overview").await?;
        times.push(since.elapsed());
    }
    figures.add_percentiles("overview", times);
    Ok(())
}

/// What a load of whole tasks cost.
struct Load {
    /// Tasks completed in a second, until the last one.
    per_second: f64,
    /// Processor time of this process, which is the daemon and its requesters, until the last one.
    cpu_seconds: f64,
    seconds: f64,
}

impl Load {
    fn cpu_share(&self) -> f64 {
        self.cpu_seconds / self.seconds
    }
}

/// Requests `rate` tasks a second for the time of the load, and waits until all are completed.
async fn load(daemon: &Parts, options: &DashboardOptions) -> anyhow::Result<Load> {
    let org = OrgId::try_from("bench")?;
    let template: Request = tasks::request()?;
    let before = completed(daemon).await?;
    let (since, cpu) = (Instant::now(), process::cpu()?);
    let bursts = options.seconds * BURSTS;
    let mut ticks = tokio::time::interval(Duration::from_secs(1) / BURSTS);
    let mut asked = 0_u32;
    for burst in 1..=bursts {
        ticks.tick().await;
        // By the whole, so that a rate that is no multiple of the bursts is met.
        let until = u32::try_from(u64::from(options.rate) * u64::from(burst) / u64::from(BURSTS))?;
        let requests =
            stream::iter(asked..until).map(|_| daemon.tasks.request(&org, "bench", template.clone()));
        let made: Vec<_> =
            requests.buffer_unordered(IN_FLIGHT).try_collect().await.context("a request was refused")?;
        ensure!(made.len() == usize::try_from(until - asked)?, "a request has no answer");
        asked = until;
    }
    let all = async {
        while completed(daemon).await? < before + i64::from(asked) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        anyhow::Ok(())
    };
    tokio::time::timeout(REST_WITHIN, all).await.context("not all tasks were completed")??;
    let (seconds, cpu_seconds) = (since.elapsed().as_secs_f64(), (process::cpu()? - cpu).as_secs_f64());
    Ok(Load { per_second: f64::from(asked) / seconds, cpu_seconds, seconds })
}

/// How many tasks the agents have completed: their statistics count them, so no table is scanned.
async fn completed(daemon: &Parts) -> anyhow::Result<i64> {
    let client = daemon.database.client().await?;
    let counted = "select coalesce(sum(completed), 0)::bigint from convoke.statistics";
    Ok(client.query_one(counted, &[]).await?.try_get(0)?)
}

fn as_f64(count: usize) -> f64 {
    u32::try_from(count).map_or(f64::NAN, f64::from)
}
