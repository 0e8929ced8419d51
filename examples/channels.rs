//! Channels without a database and without agents: broadcast and presence for any Supabase Realtime client.
//!
//! `cargo run --example channels` serves with the settings of `config/convoke.toml` and the environment, prints its
//! address and a key for clients as one line of JSON, and stops on Ctrl-C or SIGTERM.
use convoke::{
    app::Channels,
    config::{self, Options},
};
use serde_json::json;
use tokio::signal::unix::{SignalKind, signal};

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    // Before the address is printed: a signal that follows at once still stops in order.
    let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    let config = config::load(&Options::default())?.config;
    let channels = Channels::start(&config).await?;
    println!("{}", json!({ "addr": channels.addr, "anon_key": channels.anon_key()? }));
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
    }
    channels.stop().await
}
