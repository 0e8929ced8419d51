//! The model of the runs of `think` that are under way, in a process of its own: some answers, then none.
//!
//! Takes orders as lines of JSON like [`super::client`]; each is answered with its address.
use super::client::orders;
use anyhow::Context;
use clap::Args;
use convoke::testing::{ModelServer, Reply, Script};
use serde::{Deserialize, Serialize};
use serde_json::json;

#[derive(Args)]
pub(crate) struct Options {
    /// Answers of each run before the one that never comes
    #[arg(long)]
    answers: u32,
}

/// Tell the address.
#[derive(Serialize, Deserialize)]
pub(super) struct Order {}

/// Runs on the calling thread.
pub(super) fn run(options: &Options) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(serve(options))
}

async fn serve(options: &Options) -> anyhow::Result<()> {
    super::process::allow_sockets(1_000)?;
    let answers = (0..options.answers).map(|n| Reply::call("look", json!({ "n": n })));
    let model = ModelServer::start(Script::by_turn(answers.chain([Reply::hang()]))).await?;
    println!("{}", json!({ "joined": 1 }));
    let mut lines = orders();
    while let Some(order) = lines.recv().await {
        let Order {} = serde_json::from_str(&order).context("invalid order")?;
        println!("{}", json!({ "begin": true }));
        println!("{}", json!({ "end": { "base_url": model.base_url() } }));
    }
    Ok(())
}
