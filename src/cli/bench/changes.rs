//! Row changes through the whole daemon: from a commit to clients that watch the table over websockets.
//!
//! The daemon is this process, PostgreSQL another, and the clients with the writer a third, so that each
//! part's use of the machine is its own. Each part has its own table and sockets: latency beside
//! LISTEN/NOTIFY, many sockets on one table without and with row security, and many filters beside one.
use super::{
    daemon::Setting,
    fanout::{Clients, round, unlimited},
    watchers::Watch,
};
use crate::{
    app::Parts,
    auth::{MintRequest, Role, mint},
    cli::{Failure, settings::Settings},
    clock::Clock,
};
use anyhow::Context;
use clap::{Args, ValueEnum};
use serde_json::{Map, Value, json};

/// Tables of the parts. The policies of `bench_secured` are what applications write: a row is for an org, or for all.
const SCHEMA: &str = "
    create table bench_open (id bigint primary key, n bigint, org text, payload text);
    create table bench_secured (id bigint primary key, n bigint, org text, payload text);";
const PUBLISH: &str = "
    grant select on bench_open, bench_secured to authenticated;
    alter table bench_secured enable row level security;
    create policy own on bench_secured for select to authenticated
        using (org = (auth.jwt() ->> 'org') or org = 'all');
    alter publication supabase_realtime add table bench_open, bench_secured";

#[derive(Args)]
pub(crate) struct Options {
    /// What is measured; all unless said.
    #[arg(long, value_enum)]
    part: Vec<Part>,
    /// Sockets on one table.
    #[arg(long, default_value_t = 500, value_parser = super::at_least_one)]
    subscribers: usize,
    /// Kinds of claims among them, with row security.
    #[arg(long, default_value_t = 20, value_parser = super::at_least_one)]
    groups: usize,
    /// Filters on one table, each of a channel of its own.
    #[arg(long, default_value_t = 10_000, value_parser = super::at_least_one)]
    subscriptions: usize,
    /// Channels with filters of one socket.
    #[arg(long, default_value_t = 100, value_parser = super::at_least_one)]
    channels: usize,
    /// Changes on their way at once, at saturation.
    #[arg(long, default_value_t = 500, value_parser = super::at_least_one)]
    in_flight: usize,
    /// Rows of one transaction, at saturation.
    #[arg(long, default_value_t = 50, value_parser = super::at_least_one)]
    rows: usize,
    /// How long each part is measured.
    #[arg(long, default_value_t = 5.0)]
    seconds: f64,
    /// Changes a second when latency is measured.
    #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u32).range(1..))]
    rate: u32,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Part {
    /// One subscriber: commit to client, beside LISTEN/NOTIFY.
    Latency,
    /// All sockets hear every change; no row security.
    Open,
    /// With row security: each row is for all groups.
    SecuredAll,
    /// With row security: each row is for one group.
    SecuredOwn,
    /// Each channel hears the rows with its own number; beside one channel with one number.
    Filtered,
}

/// Sockets on a table.
struct Audience {
    table: &'static str,
    keys: Vec<String>,
    sockets: usize,
    channels: usize,
    filtered: bool,
    own: bool,
}

pub(super) async fn run(settings: &Settings, options: Options) -> Result<Value, Failure> {
    let setting = Setting { config: unlimited(settings)?, agents: Vec::new(), schema: SCHEMA, finished: 0 };
    let figures = setting.measure(async |daemon| {
        daemon.database.client().await?.batch_execute(PUBLISH).await?;
        let mut figures = Map::new();
        let all = [Part::Latency, Part::Open, Part::SecuredAll, Part::SecuredOwn, Part::Filtered];
        for part in all.into_iter().filter(|part| options.part.is_empty() || options.part.contains(part)) {
            part.measure(daemon, &options, &mut figures).await?;
        }
        Ok(figures.into())
    });
    figures.await
}

impl Part {
    async fn measure(
        self,
        daemon: &Parts,
        options: &Options,
        figures: &mut Map<String, Value>,
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
            Ok(Audience { table, keys, own, ..everyone.as_is() })
        };
        match self {
            Self::Latency => {
                let one = Audience { sockets: 1, ..everyone.as_is() };
                let mut clients = one.start(daemon, options).await?;
                paced(&mut clients, options, "latency", figures).await?;
                clients.stop().await
            }
            Self::Open => both(&everyone, daemon, options, "open", figures).await,
            Self::SecuredAll => both(&secured(false)?, daemon, options, "secured_all", figures).await,
            Self::SecuredOwn => both(&secured(true)?, daemon, options, "secured_own", figures).await,
            Self::Filtered => {
                let one = Audience { sockets: 1, filtered: true, ..everyone.as_is() };
                both(&one, daemon, options, "one_filter", figures).await?;
                let channels = options.channels.min(options.subscriptions);
                let sockets = options.subscriptions.div_ceil(channels);
                let many = Audience { sockets, channels, filtered: true, ..everyone.as_is() };
                figures.insert("filters".into(), json!(sockets * channels));
                both(&many, daemon, options, "filters", figures).await?;
                for figure in ["changes_per_second", "change_p50_ms"] {
                    let of = |name: &str| figures.get(&format!("{name}_{figure}")).and_then(Value::as_f64);
                    let ratio = of("filters").zip(of("one_filter")).map(|(many, one)| round(many / one));
                    figures.insert(format!("filters_to_one_{figure}_ratio"), json!(ratio));
                }
                Ok(())
            }
        }
    }
}

impl Audience {
    fn as_is(&self) -> Self {
        let Self { table, ref keys, sockets, channels, filtered, own } = *self;
        Self { table, keys: keys.clone(), sockets, channels, filtered, own }
    }

    async fn start(&self, daemon: &Parts, options: &Options) -> anyhow::Result<Clients> {
        let client = daemon.database.client().await?;
        client.batch_execute(&format!("truncate {}", self.table)).await?;
        let mut arguments: Vec<String> = ["bench", "watchers", "--addr"].map(str::to_owned).into();
        arguments.push(daemon.addr.to_string());
        let numbers = [("--sockets", self.sockets), ("--channels", self.channels), ("--rows", options.rows)];
        arguments.extend(numbers.into_iter().flat_map(|(name, number)| [name.into(), number.to_string()]));
        let texts = [
            ("--database", daemon.database.url()),
            ("--table", self.table.to_owned()),
            ("--keys", self.keys.join(",")),
        ];
        arguments.extend(texts.into_iter().flat_map(|(name, text)| [name.to_owned(), text]));
        arguments.extend(self.filtered.then(|| "--filtered".into()));
        arguments.extend(self.own.then(|| "--own".into()));
        Clients::spawn(&arguments).await
    }
}

/// As much as goes, then latency at the usual rate.
async fn both(
    audience: &Audience,
    daemon: &Parts,
    options: &Options,
    name: &str,
    figures: &mut Map<String, Value>,
) -> anyhow::Result<()> {
    crate::cli::bench::process::allow_sockets(audience.sockets)?;
    let mut clients = audience.start(daemon, options).await?;
    let order = Watch::Saturate { seconds: options.seconds, in_flight: options.in_flight };
    let (found, cpu) = clients.ask(&order).await?;
    let number = |member: &str| found.get(member).and_then(Value::as_f64).unwrap_or(f64::NAN);
    let mut note = |figure: &str, value: f64| figures.insert(format!("{name}_{figure}"), json!(round(value)));
    note("changes_per_second", (number("changes") / number("seconds")).round());
    note("deliveries_per_second", (number("deliveries") / number("seconds")).round());
    note("daemon_cpu_share", cpu.as_secs_f64() / number("seconds"));
    note("clients_cpu_share", number("cpu") / number("seconds"));
    paced(&mut clients, options, name, figures).await?;
    clients.stop().await
}

async fn paced(
    clients: &mut Clients,
    options: &Options,
    name: &str,
    figures: &mut Map<String, Value>,
) -> anyhow::Result<()> {
    let order = Watch::Paced { seconds: options.seconds, rate: options.rate };
    let (found, cpu) = clients.ask(&order).await?;
    let seconds = found.get("seconds").and_then(Value::as_f64).unwrap_or(f64::NAN);
    for (figure, value) in found.as_object().context("no figures")? {
        if figure.ends_with("_ms") {
            figures.insert(format!("{name}_{figure}"), value.clone());
        }
    }
    let share = |spent: f64| json!(round(spent / seconds));
    figures.insert(format!("{name}_paced_daemon_cpu_share"), share(cpu.as_secs_f64()));
    let spent = found.get("cpu").and_then(Value::as_f64).unwrap_or(f64::NAN);
    figures.insert(format!("{name}_paced_clients_cpu_share"), share(spent));
    Ok(())
}

/// Tokens of so many orgs, `g0` and on.
fn keys(daemon: &Parts, groups: usize) -> anyhow::Result<Vec<String>> {
    let key = |group: usize| {
        let mut wish = MintRequest::new(Role::Authenticated);
        wish.org = Some(format!("g{group}").as_str().try_into().context("an org")?);
        mint(&daemon.keys, &wish, Clock::System.now()).context("cannot sign a token")
    };
    (0..groups).map(key).collect()
}
