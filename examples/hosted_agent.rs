//! An agent in Rust: implement a trait, register it, run the daemon as a library.
//!
//! `cargo run --example hosted_agent` starts a daemon with a private PostgreSQL in a folder of its own,
//! requests one task, prints what came of it, and stops.
use anyhow::Context;
use convoke::{
    agent::{Agent, Definition, Finished, Job, Kind},
    app,
    config::Config,
    id::{AgentId, OrgId},
    task::{Failure, Usage},
};
use serde_json::json;
use std::{sync::Arc, time::Duration};
use tokio_util::sync::CancellationToken;

/// Counts the words of a text.
struct WordCounter;

#[async_trait::async_trait]
impl Agent for WordCounter {
    async fn run(&self, job: Job) -> Result<Finished, Failure> {
        // What it cannot do fails with a line for people, and whether another attempt could help.
        let Some(text) = job.input()["text"].as_str() else {
            let message = "the input has no member text".to_owned();
            return Err(Failure { message, retryable: false, outage: false, usage: Usage::default() });
        };
        // Evidence of work: everyone on the channels org:demo and agent:words sees it.
        job.progress(0.5, "counting");
        // Work that takes long should race job.stopped(), and leave job.checkpoint(…) for a successor.
        Ok(json!({ "words": text.split_whitespace().count() }).into())
    }
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let org = OrgId::try_from("demo")?;
    let definition =
        Definition::new(AgentId::try_from("words")?, org.clone(), Kind::Rust).capable(["text.count"]);

    let mut config = Config::default();
    config.server.listen = "127.0.0.1:0".parse()?;
    config.database.data_dir = std::env::temp_dir().join("convoke-hosted-agent");
    let daemon = app::Daemon::builder(config).agent(definition, Arc::new(WordCounter)).build().await?;
    let parts = daemon.parts().clone();
    println!("the daemon listens on http://{}", parts.addr);

    let stop = CancellationToken::new();
    let client = async {
        let request = json!({
            "kind": "text.count",
            "requires": ["text.count"],
            "input": { "text": "a row changes, agents wake, negotiate and do the work" },
        });
        let request = serde_json::from_value(request)?;
        let requested = parts.tasks.request(&org, "example", request).await?;
        let task = parts.tasks.wait(requested.task.id, Duration::from_secs(30)).await?;
        println!("{} did it: {}", task.agent_id.context("no agent took the task")?, json!(task.result));
        anyhow::Ok(())
    };
    let (served, asked) = tokio::join!(daemon.run(stop.clone()), async {
        let asked = client.await;
        stop.cancel();
        asked
    });
    served.and(asked)
}
