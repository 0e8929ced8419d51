//! A complete remote agent in Rust, on the client of the channels: it bids for tasks, works and reports.
//! `cargo run --example rust_agent -- http://127.0.0.1:7700 "$(convoke token --role agent --agent words --org demo)"`
//! Its id is the agent_id of its token. AGENT_COST: what it asks for a task, in microdollars.
#![expect(clippy::disallowed_methods, clippy::indexing_slicing, reason = "a small program")]
use anyhow::Context;
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use convoke::client::{Channel, Client, Error};
use serde_json::{Value, json};
use std::{collections::HashMap, time::Duration};
use tokio::task::AbortHandle;

/// What goes with every word about an assignment.
fn about(kind: &str, said: &Value, member: &str, value: Value) -> Value {
    let (task, assignment, epoch) = (&said["task_id"], &said["assignment_id"], &said["epoch"]);
    json!({ "type": kind, "task_id": task, "assignment_id": assignment, "epoch": epoch, member: value })
}

/// Counts the words of a text, as slowly as the input asks for, and keeps the lease meanwhile.
async fn work(channel: Channel, me: String, start: Value) -> Result<(), Error> {
    let say = |message: Value| channel.broadcast("coordination", message);
    let (input, number) = (&start["input"], |value: &Value| value.as_u64().unwrap_or(0));
    let steps = async {
        for step in 1..=4 {
            tokio::time::sleep(Duration::from_millis(number(&input["ms"]) / 4)).await;
            say(about("task_progress", &start, "progress", json!(f64::from(step) / 4.0))).await?;
        }
        let words = input["text"].as_str().unwrap_or_default().split_whitespace().count();
        say(about("task_result", &start, "result", json!({ "words": words, "by": me }))).await
    };
    let heart = async {
        loop {
            tokio::time::sleep(Duration::from_millis(number(&start["lease_ms"]) / 3)).await;
            say(about("heartbeat", &start, "activity", json!("counting"))).await?;
        }
    };
    tokio::select! { done = steps => done, failed = heart => failed }
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    let mut args = std::env::args().skip(1);
    let (url, token) = args.next().zip(args.next()).context("usage: rust_agent URL TOKEN")?;
    let claims = token.split('.').nth(1).context("the token is no JWT")?;
    let claims: Value = serde_json::from_slice(&URL_SAFE_NO_PAD.decode(claims)?)?;
    let me = claims["agent_id"].as_str().context("the token has no agent_id")?.to_owned();
    let cost: u64 = std::env::var("AGENT_COST").map_or(Ok(100), |cost| cost.parse())?;
    let client = Client::new(&url, &token)?;
    let channel = client.channel(&format!("agent:{me}")).build();
    let mut heard = channel.broadcasts("coordination");
    channel.subscribe().await?;
    // From here on it is eligible, for as long as its socket lives; the client comes back by itself.
    channel
        .track(json!({ "capabilities": ["text.count"], "slots": 2, "description": "Counts words" }))
        .await?;
    println!("SUBSCRIBED");
    let say = |message: Value| channel.broadcast("coordination", message);
    let mut jobs: HashMap<String, AbortHandle> = HashMap::new();
    while let Some(said) = heard.next().await {
        let Ok(Ok(said)) = said.map(|said| said.json::<Value>()) else { continue };
        println!("{said}");
        let id = said["assignment_id"].as_str().unwrap_or_default().to_owned();
        match said["type"].as_str().unwrap_or_default() {
            "task_request" => {
                let (task, offer) = (&said["task"], json!({ "cost": cost, "eta_ms": 50, "confidence": 0.9 }));
                let (id, round) = (&task["id"], &task["round"]);
                say(json!({ "type": "task_offer", "task_id": id, "round": round, "offer": offer })).await?;
            }
            "task_assignment" if said["agent_id"] == me.as_str() => {
                say(about("task_accept", &said, "agent_id", json!(me))).await?;
            }
            "task_start" => {
                jobs.insert(id, tokio::spawn(work(channel.clone(), me.clone(), said)).abort_handle());
            }
            "task_cancel" => drop(jobs.remove(&id).inspect(AbortHandle::abort)),
            _ => {}
        }
    }
    Ok(())
}
