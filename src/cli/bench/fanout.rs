//! Channels: deliveries of one message to many sockets, and the memory of sockets that are still.
//!
//! The daemon's part is this process; the clients are a child, so that each part's use of
//! the machine is its own. No database is needed. Beside the daemon stands a bare server
//! with the same clients in the same minute: what the machine would allow.
use super::{bare, client::Order, process};
use crate::{
    app::Channels,
    cli::{Failure, settings::Settings},
    config::Config,
};
use anyhow::Context;
use serde::Serialize;
use serde_json::{Map, Value, json};
use std::{net::SocketAddr, process::Stdio, time::Duration};
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines},
    process::{Child, ChildStdin, ChildStdout, Command},
};

/// Longest wait for a line of the clients.
const PATIENCE: Duration = Duration::from_secs(120);
/// How long sockets stay still before their memory is looked at.
const STILL: Duration = Duration::from_secs(3);

/// Clients in a process of their own.
pub(super) struct Clients {
    child: Child,
    orders: ChildStdin,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Clients {
    async fn start(
        addr: SocketAddr,
        key: &str,
        sockets: usize,
        room: usize,
        bytes: usize,
    ) -> anyhow::Result<Self> {
        let mut arguments: Vec<String> = ["bench", "client", "--key", key].map(str::to_owned).into();
        arguments.extend(["--addr".into(), addr.to_string(), "--sockets".into(), sockets.to_string()]);
        arguments.extend(["--room".into(), room.to_string(), "--bytes".into(), bytes.to_string()]);
        Self::spawn(&arguments).await
    }

    /// Starts this program with these arguments and waits until all its sockets have joined.
    pub(super) async fn spawn(arguments: &[String]) -> anyhow::Result<Self> {
        let mut command = Command::new(std::env::current_exe().context("cannot find this program")?);
        command.args(arguments);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).kill_on_drop(true);
        let mut child = command.spawn().context("cannot start the clients")?;
        let orders = child.stdin.take().context("no input")?;
        let lines = BufReader::new(child.stdout.take().context("no output")?).lines();
        let mut clients = Self { child, orders, lines };
        clients.line("joined").await?;
        Ok(clients)
    }

    async fn line(&mut self, name: &str) -> anyhow::Result<Value> {
        let line = tokio::time::timeout(PATIENCE, self.lines.next_line()).await;
        let line = line.context("the clients say nothing")??.context("the clients ended")?;
        let mut value: Value = serde_json::from_str(&line)?;
        value.get_mut(name).map(Value::take).with_context(|| format!("expected {name}, got {line}"))
    }

    /// What the clients found, and the processor time of this process meanwhile.
    pub(super) async fn ask(&mut self, order: &impl Serialize) -> anyhow::Result<(Value, Duration)> {
        let line = format!("{}\n", serde_json::to_string(order)?);
        self.orders.write_all(line.as_bytes()).await?;
        self.line("begin").await?;
        let before = process::cpu()?;
        let found = self.line("end").await?;
        Ok((found, process::cpu()?.saturating_sub(before)))
    }

    pub(super) async fn stop(self) -> anyhow::Result<()> {
        let Self { mut child, orders, .. } = self;
        drop(orders);
        child.wait().await?;
        Ok(())
    }
}

pub(super) struct Fanout {
    pub(super) subscribers: usize,
    pub(super) in_flight: u64,
    pub(super) bytes: usize,
    pub(super) seconds: f64,
    pub(super) rate: u32,
}

pub(super) async fn fanout(settings: &Settings, wish: Fanout) -> Result<Value, Failure> {
    process::allow_sockets(wish.subscribers)?;
    let channels = Channels::start(&unlimited(settings)?).await?;
    let key = channels.anon_key()?;
    let mut figures = Map::new();
    figures.insert("subscribers".into(), json!(wish.subscribers));
    figures.insert("payload_bytes".into(), json!(wish.bytes));
    figures.insert("in_flight".into(), json!(wish.in_flight));
    figures.insert("messages_per_second".into(), json!(wish.rate));
    let Fanout { subscribers, bytes, .. } = wish;
    let mut clients = Clients::start(channels.addr, &key, subscribers, subscribers, bytes).await?;
    measure(&mut clients, "", &wish, &mut figures).await?;
    clients.stop().await?;
    channels.stop().await?;

    let bare = bare::start(bytes).await?;
    let mut clients = Clients::start(bare, &key, subscribers, subscribers, bytes).await?;
    measure(&mut clients, "bare_", &wish, &mut figures).await?;
    clients.stop().await?;
    Ok(figures.into())
}

async fn measure(
    clients: &mut Clients,
    name: &str,
    wish: &Fanout,
    figures: &mut Map<String, Value>,
) -> anyhow::Result<()> {
    let mut note = |figure: &str, value: f64| figures.insert(format!("{name}{figure}"), json!(round(value)));
    let &Fanout { in_flight, seconds, rate, .. } = wish;
    let (found, cpu) = clients.ask(&Order::Saturate { seconds, in_flight }).await?;
    let number = |member: &str| found.get(member).and_then(Value::as_f64).unwrap_or(f64::NAN);
    let millions = number("deliveries") / 1e6;
    note("deliveries_per_second", (number("deliveries") / number("seconds")).round());
    note("cpu_seconds_per_million", cpu.as_secs_f64() / millions);
    note("clients_cpu_seconds_per_million", number("cpu") / millions);
    let (found, cpu) = clients.ask(&Order::Paced { seconds, rate }).await?;
    let number = |member: &str| found.get(member).and_then(Value::as_f64).unwrap_or(f64::NAN);
    for figure in ["p50_ms", "p95_ms", "p99_ms"] {
        note(figure, number(figure));
    }
    note("paced_cpu_share", cpu.as_secs_f64() / number("seconds"));
    note("paced_clients_cpu_share", number("cpu") / number("seconds"));
    Ok(())
}

pub(super) async fn connections(settings: &Settings, count: usize) -> Result<Value, Failure> {
    process::allow_sockets(count)?;
    let channels = Channels::start(&unlimited(settings)?).await?;
    let key = channels.anon_key()?;
    let before = process::resident()?;
    let clients = Clients::start(channels.addr, &key, count, 10, 128).await?;
    tokio::time::sleep(STILL).await;
    let after = process::resident()?;
    clients.stop().await?;
    channels.stop().await?;
    let kib = |bytes: u64| bytes as f64 / 1024.0;
    Ok(json!({
        "connections": count,
        "kib_per_connection": round(kib(after.saturating_sub(before)) / count as f64),
        "resident_before_kib": kib(before),
        "resident_kib": kib(after),
    }))
}

/// Limits out of the way: what is measured is what the sockets cost.
pub(super) fn unlimited(settings: &Settings) -> Result<Config, Failure> {
    let mut config = settings.load()?.config;
    config.server.listen = SocketAddr::from(([127, 0, 0, 1], 0));
    config.gateway.limits = config.gateway.limits.unlimited();
    config.gateway.connections_max = usize::MAX;
    config.gateway.idle_timeout = Duration::from_secs(3600);
    Ok(config)
}

pub(super) fn round(value: f64) -> f64 {
    (value * 1000.0).round() / 1000.0
}
