//! Well-behaved clients beside hostile ones: latency of messages, and memory of the daemon.
//!
//! The daemon is this process, the hundred well-behaved clients are a child, and the hostile ones are another, of the
//! lowest priority: on other machines they would not take the daemon's processors. Each kind of hostile client is
//! measured alone, then all together. Windows without them (`quiet`) and with them (`attacked`) alternate under the
//! same load, and a figure is the median of its windows. What the hostile clients have done is a figure too: an attack
//! that does nothing would prove nothing.
use super::{
    at_least_one,
    attack::{self, Kind},
    client::Order,
    client_process::Clients,
    daemon::Fixture,
    figures::{Figures, median, number},
    process,
};
use anyhow::{Context, ensure};
use clap::{Args, ValueEnum};
use convoke::{
    app::Parts,
    auth::{MintRequest, Role, mint},
    clock::Clock,
    config::Config,
};
use serde::Serialize;
use std::{collections::BTreeMap, convert::Infallible, time::Duration};
use tokio::time::{interval, sleep};

/// Well-behaved clients.
const HONEST: usize = 100;
/// The bound of the daemon's memory that `SECURITY.md` states, beside `gateway.memory_bytes_max`.
const FIXED_BYTES: usize = 96 << 20;
const CONNECTION_BYTES: usize = 32 << 10;
/// How often a row of 200 kB is inserted into the table that the hostile clients filter with patterns.
const CHANGE_EVERY: Duration = Duration::from_millis(500);
/// How long the hostile clients run before the others are measured, and how long they are gone before the next window.
const WARM_UP: Duration = Duration::from_secs(3);
/// The share of a processor that Postgres must use for the pattern filters, beyond that of a window without them.
const PATTERNS_SHARE_MIN: f64 = 0.1;

const SCHEMA: &str = "create table if not exists public.bench_hostile \
    (id bigint generated always as identity primary key, body text)";
const HOSTILE: &str = "
    alter publication supabase_realtime add table public.bench_hostile;
    grant select on public.bench_hostile to anon;
    create policy bench_slow on realtime.messages for select to anon using (pg_sleep(0.2) is not null)";

#[derive(Args, Serialize)]
pub(super) struct HostileOptions {
    /// Duration of each window in seconds
    #[arg(long, default_value_t = 8.0)]
    seconds: f64,
    /// Windows without and with the hostile clients, of each kind
    #[arg(long, default_value_t = 3, value_parser = at_least_one)]
    windows: usize,
    /// Messages a second
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..))]
    rate: u32,
    /// Kinds of hostile clients [default: each kind, and all together]
    #[arg(long, value_delimiter = ',')]
    kinds: Vec<Kind>,
}

pub(super) async fn run(config: &Config, options: &HostileOptions) -> anyhow::Result<Figures> {
    let mut figures = Figures::default();
    let kinds = if options.kinds.is_empty() { Kind::value_variants() } else { &options.kinds };
    for kind in kinds {
        // A daemon for each kind: what one attack leaves behind is not part of the next.
        let fixture = Fixture {
            config: config.clone(),
            agents: Vec::new(),
            definitions: Vec::new(),
            schema: SCHEMA,
            finished: 0,
        };
        fixture
            .measure(&mut figures, async |parts, figures| measure(parts, options, *kind, figures).await)
            .await?;
        let connections = CONNECTION_BYTES * (HONEST + kind.connections());
        let bound = config.gateway.memory_bytes_max + FIXED_BYTES + connections;
        figures.add(format!("{}_memory_bound_mib", name(*kind)), mib(u64::try_from(bound)?));
    }
    Ok(figures)
}

async fn measure(
    parts: &Parts,
    options: &HostileOptions,
    kind: Kind,
    figures: &mut Figures,
) -> anyhow::Result<()> {
    let key = |role| mint(&parts.keys, &MintRequest::new(role), Clock::System.now());
    let keys = [(attack::ANON, key(Role::Anon)?), (attack::SERVICE, key(Role::ServiceRole)?)];
    let client = parts.database.client().await?;
    client.batch_execute(HOSTILE).await?;
    let backend: i32 = client.query_one("select pg_backend_pid()", &[]).await?.try_get(0)?;
    // `None` on a server of another machine.
    let server = u32::try_from(backend).ok().and_then(|backend| process::parent(backend).ok());
    let mut honest = Clients::start(parts.addr, &key(Role::Anon)?, HONEST, HONEST, 128).await?;
    let name = name(kind);
    figures.add(format!("{name}_resident_mib"), mib(process::resident()?));
    process::reset_peak()?;

    let mut windows = Windows::default();
    for _ in 0..options.windows {
        windows.add("quiet", measure_window(&client, &mut honest, None, server, options).await?);
        let arguments = ["attack", "--addr", &parts.addr.to_string(), "--kind", &name].map(str::to_owned);
        let mut hostile = Clients::spawn(&arguments, keys.clone()).await?;
        sleep(WARM_UP).await;
        let attacked = measure_window(&client, &mut honest, Some(&hostile), server, options).await?;
        windows.add("attacked", attacked);
        windows.add("hostile", work_done(&mut hostile).await?);
        hostile.stop().await?;
        sleep(WARM_UP).await;
    }
    honest.stop().await?;
    windows.report(&name, figures)?;
    if server.is_some() && matches!(kind, Kind::Filters | Kind::All) {
        let spent =
            |which: &str| figures.get(&format!("{name}_{which}_postgres_cpu_share")).unwrap_or_default();
        let more = spent("attacked") - spent("quiet");
        ensure!(more >= PATTERNS_SHARE_MIN, "the pattern filters use {more} of a processor: no attack");
    }
    figures.add(format!("{name}_resident_peak_mib"), mib(process::peak()?));
    Ok(())
}

/// What the hostile clients have done since their start.
async fn work_done(hostile: &mut Clients) -> anyhow::Result<BTreeMap<&'static str, f64>> {
    let (done, _) = hostile.ask(&"report").await?;
    let mib = |member: &str| Ok::<_, anyhow::Error>(number(&done, member)? / f64::from(1 << 20));
    let (attacks, sent, received) = (number(&done, "attacks")?, mib("sent_bytes")?, mib("received_bytes")?);
    ensure!(sent > 0.0, "the hostile clients have sent nothing");
    Ok(BTreeMap::from([("attacks", attacks), ("sent_mib", sent), ("received_mib", received)]))
}

/// The figures of one window, while rows are inserted.
async fn measure_window(
    client: &tokio_postgres::Client,
    honest: &mut Clients,
    hostile: Option<&Clients>,
    server: Option<u32>,
    options: &HostileOptions,
) -> anyhow::Result<BTreeMap<&'static str, f64>> {
    let cpu = |honest: &Clients| -> anyhow::Result<[(&'static str, Duration); 4]> {
        Ok([
            ("daemon_cpu_share", process::cpu()?),
            ("postgres_cpu_share", server.map(process::cpu_with_children).transpose()?.unwrap_or_default()),
            ("clients_cpu_share", honest.cpu()?),
            ("hostile_cpu_share", hostile.map(Clients::cpu).transpose()?.unwrap_or_default()),
        ])
    };
    let before = cpu(honest)?;
    let order = Order::Paced { seconds: options.seconds, rate: options.rate };
    let (found, _) = tokio::select! {
        answer = honest.ask(&order) => answer?,
        failed = insert_rows(client) => match failed? {},
    };
    let mut figures = BTreeMap::new();
    for name in ["p50_ms", "p99_ms"] {
        figures.insert(name, number(&found, name)?);
    }
    for ((name, before), (_, after)) in before.into_iter().zip(cpu(honest)?) {
        let spent = after.saturating_sub(before).as_secs_f64();
        figures.insert(name, spent / number(&found, "seconds")?);
    }
    Ok(figures)
}

/// Inserts large rows until it is dropped. Ends with an error only.
async fn insert_rows(client: &tokio_postgres::Client) -> anyhow::Result<Infallible> {
    let mut change = interval(CHANGE_EVERY);
    loop {
        change.tick().await;
        client.batch_execute("insert into public.bench_hostile (body) values (repeat('x', 200000))").await?;
    }
}

/// Figures of all windows by name.
#[derive(Default)]
struct Windows(BTreeMap<String, Vec<f64>>);

impl Windows {
    fn add(&mut self, which: &str, figures: BTreeMap<&str, f64>) {
        for (name, value) in figures {
            self.0.entry(format!("{which}_{name}")).or_default().push(value);
        }
    }

    fn report(&self, kind: &str, figures: &mut Figures) -> anyhow::Result<()> {
        for (name, values) in &self.0 {
            figures.add(format!("{kind}_{name}"), median(values).context("no window")?);
        }
        let p99 = |which: &str| figures.get(&format!("{kind}_{which}_p99_ms")).context("no p99");
        let ratio = p99("attacked")? / p99("quiet")?;
        figures.add(format!("{kind}_p99_ratio"), ratio);
        Ok(())
    }
}

fn name(kind: Kind) -> String {
    kind.to_possible_value().map(|kind| kind.get_name().to_owned()).unwrap_or_default()
}

fn mib(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}
