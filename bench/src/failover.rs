//! Failover: how long after the death of a remote agent its task is awarded to another one.
//!
//! The victim is a child process with a websocket; it is killed with SIGKILL while it works.
use super::{
    client::orders,
    daemon::Fixture,
    figures::Figures,
    tasks::{AwardOptions, idle_agents},
};
use anyhow::{Context, bail};
use clap::Args;
use convoke::{
    app::Parts,
    auth::{MintRequest, Role, mint},
    client::{Client, Error},
    clock::Clock,
    config::Config,
    id::{AgentId, OrgId, TaskId},
    task::{AgentPresence, Request, TaskState},
};
use serde_json::{Value, json};
use std::{process::Stdio, time::Duration};
use tokio::time::Instant;

const PATIENCE: Duration = Duration::from_secs(20);
const VICTIM: &str = "victim";

/// The variable with the token that the victim connects with.
const TOKEN: &str = "CONVOKE_BENCH_TOKEN";

#[derive(Args)]
pub(crate) struct Options {
    #[arg(long)]
    url: String,
    #[arg(long, env = TOKEN, hide_env_values = true)]
    token: String,
}

/// A remote agent that offers for free, accepts every award, and never finishes. Ends with its input: the client
/// would reconnect without end after the benchmark was killed.
pub(super) async fn victim(options: Options) -> anyhow::Result<()> {
    let client = Client::new(&options.url, &options.token)?;
    let channel = client.channel(&format!("agent:{VICTIM}")).build();
    let mut heard = channel.broadcasts("coordination");
    channel.subscribe().await?;
    channel.track(json!({ "capabilities": ["work"] })).await?;
    let mut input = orders();
    loop {
        let message = tokio::select! {
            message = heard.next() => message,
            _ = input.recv() => None,
        };
        let Some(message) = message else { return Ok(()) };
        let Ok(Ok(message)) = message.map(|message| message.json::<Value>()) else { continue };
        let of = |name: &str| message.get(name).cloned().unwrap_or_default();
        let task = of("task");
        let answer = match of("type").as_str() {
            Some("task_request") => json!({
                "type": "task_offer", "task_id": task.get("id"), "round": task.get("round"),
                "offer": { "cost": 0, "eta_ms": 1, "confidence": 1 },
            }),
            Some("task_assignment") => json!({
                "type": "task_accept", "task_id": of("task_id"), "assignment_id": of("assignment_id"),
                "epoch": of("epoch"),
            }),
            _ => continue,
        };
        match channel.broadcast("coordination", answer).await {
            Ok(()) => {}
            Err(error @ Error::ChannelClosed { .. }) => return Err(error.into()),
            // The client reconnects by itself; the messages after that are answered.
            Err(_) => continue,
        }
    }
}

/// Kills the victim `deaths` times; the other bidders are hosted agents.
pub(super) async fn run(
    config: &Config,
    options: &AwardOptions,
    figures: &mut Figures,
) -> anyhow::Result<()> {
    let agents = idle_agents(options.bidders, 4)?;
    let fixture =
        Fixture { config: config.clone(), agents, definitions: Vec::new(), schema: "", finished: 0 };
    let deaths = async |daemon: &Parts, figures: &mut Figures| {
        let victim = Victim { url: format!("http://{}", daemon.addr), token: token(daemon)? };
        let mut times = Vec::new();
        for _ in 0..options.deaths {
            times.push(kill_winner(daemon, &victim).await?);
        }
        figures.add_percentiles("death_to_award", times);
        Ok(())
    };
    fixture.measure(figures, deaths).await
}

struct Victim {
    url: String,
    token: String,
}

fn token(daemon: &Parts) -> anyhow::Result<String> {
    let request = MintRequest {
        org: Some(OrgId::try_from("bench")?),
        agent_id: Some(AgentId::try_from(VICTIM)?),
        ttl: Duration::from_secs(3600),
        ..MintRequest::new(Role::Authenticated)
    };
    Ok(mint(&daemon.keys, &request, Clock::System.now())?)
}

/// Starts the victim, lets it win a task, kills it, and returns the time from then until another agent has the task.
async fn kill_winner(daemon: &Parts, victim: &Victim) -> anyhow::Result<Duration> {
    let tasks = &daemon.tasks;
    let me = AgentId::try_from(VICTIM)?;
    let mut process = tokio::process::Command::new(std::env::current_exe()?)
        .args(["victim", "--url", &victim.url])
        .env(TOKEN, &victim.token)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .context("cannot start the victim")?;
    let present = async {
        while !tasks.agent(&me).await.is_ok_and(|agent| agent.status == AgentPresence::Present) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(PATIENCE, present).await.context("the victim did not become present")?;
    let request: Request = serde_json::from_value(json!({
        "kind": "bench.task", "requires": ["work"],
        "policy": { "award": "cheapest", "bid_window": "10s", "quiet_gap": "10s" },
    }))?;
    let org = OrgId::try_from("bench")?;
    // The victim becomes eligible a moment after its row says `present`. Tasks that are requested before go to the
    // others, so request until the victim wins one.
    let task = loop {
        let task = tasks.request(&org, "bench", request.clone()).await?.task.id;
        let works = |state, agent: Option<&AgentId>| state == TaskState::Running && agent == Some(&me);
        until(daemon, task, |state, agent| state.is_final() || works(state, agent)).await?;
        if tasks.get(task).await?.agent_id.as_ref() == Some(&me) {
            break task;
        }
    };
    let killed = Instant::now();
    process.start_kill()?;
    until(daemon, task, |_, agent| agent.is_some_and(|agent| *agent != me)).await?;
    let took = killed.elapsed();
    process.wait().await?;
    tasks.wait(task, PATIENCE).await?;
    Ok(took)
}

/// Waits until state and agent of the task fulfil the condition.
async fn until(
    daemon: &Parts,
    task: TaskId,
    condition: impl Fn(TaskState, Option<&AgentId>) -> bool,
) -> anyhow::Result<()> {
    let tasks = &daemon.tasks;
    let mut changed = tasks.changed();
    let reached = async {
        loop {
            changed.borrow_and_update();
            let now = tasks.get(task).await?;
            if condition(now.state, now.agent_id.as_ref()) {
                return anyhow::Ok(());
            }
            changed.changed().await?;
        }
    };
    let Ok(reached) = tokio::time::timeout(PATIENCE, reached).await else {
        let now = tasks.get(task).await?;
        let (state, attempt) = (now.state.as_str(), now.attempt);
        bail!("the task is {state} after {PATIENCE:?}, with {:?}, attempt {attempt}", now.agent_id);
    };
    reached
}
