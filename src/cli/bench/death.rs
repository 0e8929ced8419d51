//! The visible death of an agent: how long until what it held is given to another.
//!
//! The victim is a process of its own with a socket; it is killed with SIGKILL while it works.
use super::{daemon::Setting, definition, percentiles, tasks::Idle};
use crate::{
    app::Parts,
    auth::{MintRequest, Role, mint},
    cli::{Failure, settings::Settings},
    client::{Client, Error},
    clock::Clock,
    id::{AgentId, OrgId, TaskId},
    task::{Request, TaskState},
};
use anyhow::{Context, bail};
use clap::Args;
use serde_json::{Map, Value, json};
use std::{process::Stdio, sync::Arc, time::Duration};
use tokio::time::Instant;

const PATIENCE: Duration = Duration::from_secs(20);
const VICTIM: &str = "victim";

#[derive(Args)]
pub(crate) struct Options {
    #[arg(long)]
    url: String,
    #[arg(long)]
    token: String,
}

/// An agent that costs nothing, takes what it gets, and never ends.
pub(super) async fn victim(options: Options) -> anyhow::Result<()> {
    let client = Client::new(&options.url, &options.token)?;
    let channel = client.channel(&format!("agent:{VICTIM}")).build();
    let mut heard = channel.broadcasts("coordination");
    channel.subscribe().await?;
    channel.track(json!({ "capabilities": ["work"] })).await?;
    while let Some(said) = heard.next().await {
        let Ok(Ok(said)) = said.map(|said| said.json::<Value>()) else { continue };
        let of = |name: &str| said.get(name).cloned().unwrap_or_default();
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
            Err(_) => continue,
        }
    }
    Ok(())
}

/// Kills the victim so often; the others are hosted.
pub(super) async fn deaths(settings: &Settings, deaths: u32, bidders: u32) -> Result<Value, Failure> {
    let others = (0..bidders).map(|n| {
        let offer = format!("[offer]\ncost_microdollars = {}\n", 100 + n);
        anyhow::Ok((definition(&format!("bidder-{n}"), 4, &offer)?, Arc::new(Idle) as _))
    });
    let agents = others.collect::<Result<_, _>>()?;
    let setting = Setting { config: settings.load()?.config, agents, schema: "", finished: 0 };
    let times = setting.measure(async |daemon| {
        let victim = Victim { url: format!("http://{}", daemon.addr), token: token(daemon)? };
        let mut times = Vec::new();
        for _ in 0..deaths {
            times.push(one(daemon, &victim).await?);
        }
        Ok(times)
    });
    let times = times.await?;
    let mut figures = Map::new();
    figures.insert("deaths".into(), json!(deaths));
    percentiles(&mut figures, "death_to_award", times);
    Ok(figures.into())
}

struct Victim {
    url: String,
    token: String,
}

fn token(daemon: &Parts) -> anyhow::Result<String> {
    let wish = MintRequest {
        role: Role::Authenticated,
        org: Some(OrgId::try_from("bench")?),
        agent_id: Some(AgentId::try_from(VICTIM)?),
        ttl: Duration::from_secs(3600),
    };
    Ok(mint(&daemon.keys, &wish, Clock::System.now())?)
}

/// One life: it comes, wins, works and is killed; from then until another has the task.
async fn one(daemon: &Parts, victim: &Victim) -> anyhow::Result<Duration> {
    let tasks = &daemon.tasks;
    let me = AgentId::try_from(VICTIM)?;
    let mut process = tokio::process::Command::new(std::env::current_exe()?)
        .args(["bench", "victim", "--url", &victim.url, "--token", &victim.token])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .context("cannot start the victim")?;
    let present = async {
        while !tasks.agent(&me).await.is_ok_and(|agent| agent.status == "present") {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(PATIENCE, present).await.context("the victim did not come")?;
    let wish: Request = serde_json::from_value(json!({
        "kind": "bench.task", "requires": ["work"],
        "policy": { "award": "cheapest", "bid_window": "10s", "quiet_gap": "10s" },
    }))?;
    let org = OrgId::try_from("bench")?;
    // It is eligible a moment after its row says that it is here; until then the others get what is asked for.
    let task = loop {
        let task = tasks.request(&org, "bench", wish.clone()).await?.task.id;
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

/// Waits for a commit after which the task is so.
async fn until(
    daemon: &Parts,
    task: TaskId,
    so: impl Fn(TaskState, Option<&AgentId>) -> bool,
) -> anyhow::Result<()> {
    let tasks = &daemon.tasks;
    let mut changed = tasks.changed();
    let reached = async {
        loop {
            changed.borrow_and_update();
            let now = tasks.get(task).await?;
            if so(now.state, now.agent_id.as_ref()) {
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
