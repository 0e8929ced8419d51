//! Channels: deliveries of one message to many sockets, and the memory of idle sockets.
//!
//! The channels run in this process without a database; the clients are a child process. `fanout` measures a bare
//! server with the same clients too (figures `bare_…`): what the machine would allow.
use super::{
    baseline_server,
    client::Order,
    client_process::Clients,
    figures::{Figures, number},
    process,
};
use clap::Args;
use convoke::{app::Channels, config::Config};
use serde::Serialize;
use std::{net::SocketAddr, time::Duration};

/// How long sockets are idle before their memory is read.
const IDLE: Duration = Duration::from_secs(3);

#[derive(Args, Serialize)]
pub(super) struct FanoutOptions {
    /// Sockets on the topic
    #[arg(long, default_value_t = 1000, value_parser = super::at_least_one)]
    subscribers: usize,
    /// Messages in flight when throughput is measured
    #[arg(long, default_value_t = 32, value_parser = clap::value_parser!(u64).range(1..))]
    in_flight: u64,
    /// Size of the JSON payload in bytes
    #[arg(long, default_value_t = 128)]
    bytes: usize,
    /// Duration of each part in seconds
    #[arg(long, default_value_t = 5.0)]
    seconds: f64,
    /// Messages a second when latency is measured
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..))]
    rate: u32,
}

#[derive(Args, Serialize)]
pub(super) struct ConnectionsOptions {
    /// Sockets
    #[arg(long, default_value_t = 5000, value_parser = super::at_least_one)]
    count: usize,
}

pub(super) async fn run(config: &Config, options: &FanoutOptions) -> anyhow::Result<Figures> {
    let &FanoutOptions { subscribers, bytes, .. } = options;
    process::allow_sockets(subscribers)?;
    let channels = Channels::start(&unlimited(config)).await?;
    let key = channels.anon_key()?;
    let mut figures = Figures::default();
    let mut clients = Clients::start(channels.addr, &key, subscribers, subscribers, bytes).await?;
    measure(&mut clients, "", options, &mut figures).await?;
    clients.stop().await?;
    channels.stop().await?;

    let bare = baseline_server::start(bytes).await?;
    let mut clients = Clients::start(bare, &key, subscribers, subscribers, bytes).await?;
    measure(&mut clients, "bare_", options, &mut figures).await?;
    clients.stop().await?;
    Ok(figures)
}

async fn measure(
    clients: &mut Clients,
    prefix: &str,
    options: &FanoutOptions,
    figures: &mut Figures,
) -> anyhow::Result<()> {
    let mut add = |name: &str, value: f64| figures.add(format!("{prefix}{name}"), value);
    let &FanoutOptions { in_flight, seconds, rate, .. } = options;
    let (found, cpu) = clients.ask(&Order::Saturate { seconds, in_flight }).await?;
    let (deliveries, took) = (number(&found, "deliveries")?, number(&found, "seconds")?);
    add("deliveries_per_second", (deliveries / took).round());
    add("cpu_seconds_per_million", cpu.as_secs_f64() / deliveries * 1e6);
    add("clients_cpu_seconds_per_million", number(&found, "cpu")? / deliveries * 1e6);
    let (found, cpu) = clients.ask(&Order::Paced { seconds, rate }).await?;
    for name in ["p50_ms", "p95_ms", "p99_ms"] {
        add(name, number(&found, name)?);
    }
    let took = number(&found, "seconds")?;
    add("paced_cpu_share", cpu.as_secs_f64() / took);
    add("paced_clients_cpu_share", number(&found, "cpu")? / took);
    Ok(())
}

pub(super) async fn connections(config: &Config, options: &ConnectionsOptions) -> anyhow::Result<Figures> {
    let &ConnectionsOptions { count } = options;
    process::allow_sockets(count)?;
    let channels = Channels::start(&unlimited(config)).await?;
    let key = channels.anon_key()?;
    let before = process::resident()?;
    let clients = Clients::start(channels.addr, &key, count, 10, 128).await?;
    tokio::time::sleep(IDLE).await;
    let after = process::resident()?;
    clients.stop().await?;
    channels.stop().await?;
    let kib = |bytes: u64| bytes as f64 / 1024.0;
    let mut figures = Figures::default();
    figures.add("kib_per_connection", kib(after.saturating_sub(before)) / count as f64);
    figures.add("resident_before_kib", kib(before));
    figures.add("resident_kib", kib(after));
    Ok(figures)
}

/// The settings without limits on clients, on a free loopback port: the benchmarks' clients exceed them.
pub(super) fn unlimited(config: &Config) -> Config {
    let mut config = config.clone();
    config.server.listen = SocketAddr::from(([127, 0, 0, 1], 0));
    config.gateway.limits = config.gateway.limits.unlimited();
    config.gateway.connections_max = usize::MAX;
    config.server.connections_max = 1_000_000;
    config.server.connections_per_address_max = Some(1_000_000);
    config.gateway.idle_timeout = Duration::from_secs(3600);
    config
}
