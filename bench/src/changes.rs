//! Row changes through the whole daemon, from a commit to clients that are subscribed to the table over websockets.
//!
//! The daemon is this process; the clients and the writer of the rows are a child. The parts run one after the other,
//! each with sockets of its own: latency beside LISTEN/NOTIFY, many sockets on one table without and with row security,
//! and many filters beside one.
use super::{
    client_process::Clients,
    daemon::Fixture,
    fanout::unlimited,
    figures::{Figures, number},
    process,
    watchers::{self, Order},
};
use anyhow::Context;
use clap::{Args, ValueEnum};
use convoke::{
    app::Parts,
    auth::{MintRequest, Role, mint},
    clock::Clock,
    config::Config,
};
use serde::Serialize;

/// Tables of the parts. The policy of `bench_secured` is of the kind that applications write: a row belongs to an org,
/// or to all.
const SCHEMA: &str = "
    drop table if exists bench_open, bench_secured;
    create table bench_open (id bigint primary key, n bigint, org text, payload text);
    create table bench_secured (id bigint primary key, n bigint, org text, payload text);";
const PUBLISH: &str = "
    grant select on bench_open, bench_secured to authenticated;
    alter table bench_secured enable row level security;
    create policy own on bench_secured for select to authenticated
        using (org = (auth.jwt() ->> 'org') or org = 'all');
    alter publication supabase_realtime add table bench_open, bench_secured";

#[derive(Args, Serialize)]
pub(super) struct ChangesOptions {
    /// Part to measure; can be repeated [default: all]
    #[arg(long, value_enum)]
    part: Vec<Part>,
    /// Sockets on one table
    #[arg(long, default_value_t = 500, value_parser = super::at_least_one)]
    subscribers: usize,
    /// Different tokens among the sockets, with row security
    #[arg(long, default_value_t = 20, value_parser = super::at_least_one)]
    groups: usize,
    /// Filters on one table, each of a channel of its own
    #[arg(long, default_value_t = 10_000, value_parser = super::at_least_one)]
    subscriptions: usize,
    /// Channels with filters of one socket
    #[arg(long, default_value_t = 100, value_parser = super::at_least_one)]
    channels: usize,
    /// Changes in flight when throughput is measured
    #[arg(long, default_value_t = 500, value_parser = super::at_least_one)]
    in_flight: usize,
    /// Rows of one transaction when throughput is measured
    #[arg(long, default_value_t = 50, value_parser = super::at_least_one)]
    rows: usize,
    /// Duration of each measurement in seconds
    #[arg(long, default_value_t = 5.0)]
    seconds: f64,
    /// Changes a second when latency is measured
    #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u32).range(1..))]
    rate: u32,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "snake_case")]
enum Part {
    /// One subscriber: commit to client, beside LISTEN/NOTIFY
    Latency,
    /// Every socket receives every change; no row security
    Open,
    /// Row security; each row is visible to all groups
    SecuredAll,
    /// Row security; each row is visible to one group
    SecuredOwn,
    /// Each channel filters by a number of its own; beside one channel with one filter
    Filtered,
}

/// Sockets on a table.
#[derive(Clone)]
struct Audience {
    table: &'static str,
    /// Tokens; socket `n` has the one at `n` modulo their number.
    keys: Vec<String>,
    sockets: usize,
    /// Channels of each socket.
    channels: usize,
    /// Each channel has a filter of its own.
    filtered: bool,
    /// Each row belongs to one group.
    own: bool,
}

pub(super) async fn run(config: &Config, options: &ChangesOptions) -> anyhow::Result<Figures> {
    let fixture = Fixture {
        config: unlimited(config),
        agents: Vec::new(),
        definitions: Vec::new(),
        schema: SCHEMA,
        finished: 0,
    };
    let mut figures = Figures::default();
    let parts = async |daemon: &Parts, figures: &mut Figures| {
        daemon.database.client().await?.batch_execute(PUBLISH).await?;
        let all = [Part::Latency, Part::Open, Part::SecuredAll, Part::SecuredOwn, Part::Filtered];
        for part in all.into_iter().filter(|part| options.part.is_empty() || options.part.contains(part)) {
            part.measure(daemon, options, figures).await?;
        }
        Ok(())
    };
    fixture.measure(&mut figures, parts).await?;
    Ok(figures)
}

impl Part {
    async fn measure(
        self,
        daemon: &Parts,
        options: &ChangesOptions,
        figures: &mut Figures,
    ) -> anyhow::Result<()> {
        let everyone = Audience {
            table: "bench_open",
            keys: keys(daemon, 1)?,
            sockets: options.subscribers,
            channels: 1,
            filtered: false,
            own: false,
        };
        let secured = |own| -> anyhow::Result<Audience> {
            let (table, keys) = ("bench_secured", keys(daemon, options.groups)?);
            Ok(Audience { table, keys, own, ..everyone.clone() })
        };
        match self {
            Self::Latency => {
                let one = Audience { sockets: 1, ..everyone.clone() };
                let mut clients = one.start(daemon, options).await?;
                paced(&mut clients, options, "latency", figures).await?;
                clients.stop().await
            }
            Self::Open => both(&everyone, daemon, options, "open", figures).await,
            Self::SecuredAll => both(&secured(false)?, daemon, options, "secured_all", figures).await,
            Self::SecuredOwn => both(&secured(true)?, daemon, options, "secured_own", figures).await,
            Self::Filtered => {
                let one = Audience { sockets: 1, filtered: true, ..everyone.clone() };
                both(&one, daemon, options, "one_filter", figures).await?;
                let channels = options.channels.min(options.subscriptions);
                let sockets = options.subscriptions.div_ceil(channels);
                let many = Audience { sockets, channels, filtered: true, ..everyone.clone() };
                figures.add("filters", (sockets * channels) as f64);
                both(&many, daemon, options, "filters", figures).await?;
                for name in ["changes_per_second", "change_p50_ms"] {
                    let of = |audience: &str| figures.get(&format!("{audience}_{name}"));
                    if let Some((many, one)) = of("filters").zip(of("one_filter")) {
                        figures.add(format!("filters_to_one_{name}_ratio"), many / one);
                    }
                }
                Ok(())
            }
        }
    }
}

impl Audience {
    async fn start(&self, daemon: &Parts, options: &ChangesOptions) -> anyhow::Result<Clients> {
        let client = daemon.database.client().await?;
        client.batch_execute(&format!("truncate {}", self.table)).await?;
        let mut arguments: Vec<String> = ["watchers", "--addr"].map(str::to_owned).into();
        arguments.push(daemon.addr.to_string());
        let numbers = [("--sockets", self.sockets), ("--channels", self.channels), ("--rows", options.rows)];
        arguments.extend(numbers.into_iter().flat_map(|(name, number)| [name.into(), number.to_string()]));
        arguments.extend(["--table".to_owned(), self.table.to_owned()]);
        arguments.extend(self.filtered.then(|| "--filtered".into()));
        arguments.extend(self.own.then(|| "--own".into()));
        let secrets = [(watchers::DATABASE, daemon.database.url()), (watchers::KEYS, self.keys.join(","))];
        Clients::spawn(&arguments, secrets).await
    }
}

/// Throughput, then latency at a steady rate.
async fn both(
    audience: &Audience,
    daemon: &Parts,
    options: &ChangesOptions,
    prefix: &str,
    figures: &mut Figures,
) -> anyhow::Result<()> {
    process::allow_sockets(audience.sockets)?;
    let mut clients = audience.start(daemon, options).await?;
    let order = Order::Saturate { seconds: options.seconds, in_flight: options.in_flight };
    let (found, cpu) = clients.ask(&order).await?;
    let took = number(&found, "seconds")?;
    let mut add = |name: &str, value: f64| figures.add(format!("{prefix}_{name}"), value);
    add("changes_per_second", (number(&found, "changes")? / took).round());
    add("deliveries_per_second", (number(&found, "deliveries")? / took).round());
    add("daemon_cpu_share", cpu.as_secs_f64() / took);
    add("clients_cpu_share", number(&found, "cpu")? / took);
    paced(&mut clients, options, prefix, figures).await?;
    clients.stop().await
}

async fn paced(
    clients: &mut Clients,
    options: &ChangesOptions,
    prefix: &str,
    figures: &mut Figures,
) -> anyhow::Result<()> {
    let order = Order::Paced { seconds: options.seconds, rate: options.rate };
    let (found, cpu) = clients.ask(&order).await?;
    for (name, value) in found.as_object().context("the clients sent no figures")? {
        if let Some(value) = value.as_f64().filter(|_| name.ends_with("_ms")) {
            figures.add(format!("{prefix}_{name}"), value);
        }
    }
    let took = number(&found, "seconds")?;
    figures.add(format!("{prefix}_paced_daemon_cpu_share"), cpu.as_secs_f64() / took);
    figures.add(format!("{prefix}_paced_clients_cpu_share"), number(&found, "cpu")? / took);
    Ok(())
}

/// Signs a token for each of the orgs `g0`, `g1` and so on.
fn keys(daemon: &Parts, groups: usize) -> anyhow::Result<Vec<String>> {
    let key = |group: usize| {
        let mut request = MintRequest::new(Role::Authenticated);
        request.org = Some(format!("g{group}").as_str().try_into().context("invalid org")?);
        mint(&daemon.keys, &request, Clock::System.now()).context("cannot sign a token")
    };
    (0..groups).map(key).collect()
}
