//! Whole negotiations: how many a second under backlog, and how long one takes alone.
use super::{Bench, definition, percentiles};
use crate::{
    agent::{Agent, Definition, Finished, Job},
    cli::{Failure, settings::Settings},
    task::{self, INVARIANTS, Request},
};
use anyhow::{Context, anyhow};
use futures_util::{StreamExt, stream};
use serde_json::{Map, Value, json};
use std::{sync::Arc, time::Duration};
use tokio::time::Instant;

/// Does nothing, so that what is measured is the negotiation.
struct Idle;

#[async_trait::async_trait]
impl Agent for Idle {
    async fn run(&self, _: Job) -> Result<Finished, task::Failure> {
        Ok(json!({ "ok": true }).into())
    }
}

fn agents(bidders: u32, slots: u32) -> anyhow::Result<Vec<(Definition, Arc<dyn Agent>)>> {
    let one = |n| {
        let offer = format!("[offer]\ncost_microdollars = {}\n", 100 + n);
        Ok((definition(&format!("bidder-{n}"), slots, &offer)?, Arc::new(Idle) as Arc<dyn Agent>))
    };
    (0..bidders).map(one).collect()
}

fn request() -> anyhow::Result<Request> {
    Ok(serde_json::from_value(json!({
        "kind": "bench.task", "requires": ["work"], "input": { "text": "a small input of a usual size" },
    }))?)
}

pub(super) async fn life_cycles(
    settings: &Settings,
    tasks: u32,
    requesters: u32,
    bidders: u32,
    slots: u32,
) -> Result<Value, Failure> {
    let bench = Bench::start(settings, agents(bidders, slots)?, "").await?;
    let org = "bench".try_into()?;
    let wish = request()?;
    let started = Instant::now();
    let parallel = usize::try_from(requesters.max(1))?;
    let asking = stream::iter(0..tasks).map(|_| bench.daemon.tasks.request(&org, "bench", wish.clone()));
    let refused =
        asking.buffer_unordered(parallel).filter(|made| std::future::ready(made.is_err())).count().await;
    if refused > 0 {
        return Err(anyhow!("{refused} requests were refused").into());
    }
    let requested = started.elapsed();
    let client = bench.daemon.database.client().await?;
    let left = "select exists (select 1 from convoke.tasks where state <> 'completed')";
    let finished = async {
        while client.query_one(left, &[]).await?.get::<_, bool>(0) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        anyhow::Ok(())
    };
    tokio::time::timeout(Duration::from_secs(300), finished).await.context("some tasks were not done")??;
    let took = started.elapsed();
    for (name, query) in INVARIANTS {
        if !client.query(*query, &[]).await?.is_empty() {
            return Err(anyhow!("{name}: broken").into());
        }
    }
    drop(client);
    bench.stop().await?;
    Ok(json!({
        "tasks": tasks,
        "bidders": bidders,
        "life_cycles_per_second": (f64::from(tasks) / took.as_secs_f64()).round(),
        "requests_per_second": (f64::from(tasks) / requested.as_secs_f64()).round(),
        "seconds": (took.as_secs_f64() * 100.0).round() / 100.0,
    }))
}

pub(super) async fn award(settings: &Settings, tasks: u32, bidders: u32) -> Result<Value, Failure> {
    let bench = Bench::start(settings, agents(bidders, 4)?, "").await?;
    let org = "bench".try_into()?;
    let mut whole = Vec::new();
    for _ in 0..tasks {
        let started = Instant::now();
        let made = bench.daemon.tasks.request(&org, "bench", request()?).await?;
        bench.daemon.tasks.wait(made.task.id, Duration::from_secs(10)).await?;
        whole.push(started.elapsed());
    }
    let client = bench.daemon.database.client().await?;
    let between = |from: &str, to: &str| {
        format!(
            "select (extract(epoch from b.at - a.at) * 1000000)::bigint from convoke.events a \
             join convoke.events b on b.task_id = a.task_id and b.type = '{to}' where a.type = '{from}'"
        )
    };
    let mut figures = Map::new();
    figures.insert("tasks".into(), json!(tasks));
    figures.insert("bidders".into(), json!(bidders));
    for (name, from, to) in [
        ("announce_to_award", "requested", "awarded"),
        ("award_to_start", "awarded", "started"),
        ("start_to_finish", "started", "finished"),
    ] {
        let rows = client.query(&between(from, to), &[]).await?;
        let times =
            rows.iter().map(|row| Duration::from_micros(u64::try_from(row.get::<_, i64>(0)).unwrap_or(0)));
        percentiles(&mut figures, name, times.collect());
    }
    percentiles(&mut figures, "request_to_completed", whole);
    drop(client);
    bench.stop().await?;
    Ok(figures.into())
}
