//! Whole negotiations: how many a second under backlog, and how long one takes alone.
use super::{
    daemon::{Hosted, Setting},
    definition, percentiles,
};
use crate::{
    agent::{Agent, Finished, Job},
    app::Parts,
    cli::{Failure, settings::Settings},
    task::{self, INVARIANTS, Request},
};
use anyhow::{Context, anyhow};
use futures_util::{StreamExt, TryStreamExt, stream};
use serde_json::{Map, Value, json};
use std::{sync::Arc, time::Duration};
use tokio::time::Instant;
use uuid::Uuid;

/// Does nothing, so that what is measured is the negotiation.
pub(super) struct Idle;

#[async_trait::async_trait]
impl Agent for Idle {
    async fn run(&self, _: Job) -> Result<Finished, task::Failure> {
        Ok(json!({ "ok": true }).into())
    }
}

fn agents(bidders: u32, slots: u32) -> anyhow::Result<Vec<Hosted>> {
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

/// What is asked for.
pub(super) struct Backlog {
    pub(super) tasks: u32,
    pub(super) requesters: u32,
    pub(super) bidders: u32,
    pub(super) slots: u32,
}

/// Life-cycles a second; with `finished`, once more on tables with so many finished tasks, and what share of the
/// first that is.
pub(super) async fn life_cycles(
    settings: &Settings,
    wish: &Backlog,
    finished: u64,
) -> Result<Value, Failure> {
    let mut figures = Map::new();
    figures.insert("tasks".into(), json!(wish.tasks));
    figures.insert("bidders".into(), json!(wish.bidders));
    let alone = measure(settings, wish, 0, "", &mut figures).await?;
    if finished > 0 {
        figures.insert("finished".into(), json!(finished));
        let beside = measure(settings, wish, finished, "with_finished_", &mut figures).await?;
        figures.insert("with_finished_share".into(), json!((beside / alone * 1000.0).round() / 1000.0));
    }
    Ok(figures.into())
}

async fn measure(
    settings: &Settings,
    wish: &Backlog,
    finished: u64,
    name: &str,
    figures: &mut Map<String, Value>,
) -> Result<f64, Failure> {
    let &Backlog { tasks, requesters, bidders, slots } = wish;
    let setting =
        Setting { config: settings.load()?.config, agents: agents(bidders, slots)?, schema: "", finished };
    let (requested, took) = setting.measure(async |daemon| backlog(daemon, tasks, requesters).await).await?;
    let per_second = f64::from(tasks) / took.as_secs_f64();
    let mut note = |figure: &str, value: f64| figures.insert(format!("{name}{figure}"), json!(value));
    note("life_cycles_per_second", per_second.round());
    note("requests_per_second", (f64::from(tasks) / requested.as_secs_f64()).round());
    note("seconds", (took.as_secs_f64() * 100.0).round() / 100.0);
    Ok(per_second)
}

/// How long it took to request so many tasks, and until all were done.
async fn backlog(daemon: &Parts, tasks: u32, requesters: u32) -> Result<(Duration, Duration), Failure> {
    let org = "bench".try_into()?;
    let wish = request()?;
    let started = Instant::now();
    let parallel = usize::try_from(requesters.max(1))?;
    let asking = stream::iter(0..tasks).map(|_| daemon.tasks.request(&org, "bench", wish.clone()));
    let made: Vec<_> =
        asking.buffer_unordered(parallel).try_collect().await.context("a request was refused")?;
    let requested = started.elapsed();
    let client = daemon.database.client().await?;
    let mut ids: Vec<Uuid> = made.into_iter().map(|made| made.task.id.as_uuid()).collect();
    ids.sort_unstable();
    let finished = async {
        for some in ids.chunks(500) {
            let done =
                "select not exists (select 1 from convoke.tasks where id = any($1) and state <> 'completed')";
            let done = client.prepare_cached(done).await?;
            while !client.query_one(&done, &[&some]).await?.get::<_, bool>(0) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        }
        anyhow::Ok(())
    };
    tokio::time::timeout(Duration::from_secs(300), finished).await.context("some tasks were not done")??;
    let took = started.elapsed();
    // These read everything.
    client.batch_execute("set enable_seqscan = on; set statement_timeout = 0").await?;
    for (name, query) in INVARIANTS {
        if !client.query(*query, &[]).await?.is_empty() {
            return Err(anyhow!("{name}: broken").into());
        }
    }
    Ok((requested, took))
}

pub(super) async fn award(settings: &Settings, tasks: u32, bidders: u32) -> Result<Value, Failure> {
    let setting =
        Setting { config: settings.load()?.config, agents: agents(bidders, 4)?, schema: "", finished: 0 };
    let mut figures = Map::new();
    figures.insert("tasks".into(), json!(tasks));
    figures.insert("bidders".into(), json!(bidders));
    setting.measure(async |daemon| alone(daemon, tasks, &mut figures).await).await?;
    Ok(figures.into())
}

/// One task after the other.
async fn alone(daemon: &Parts, tasks: u32, figures: &mut Map<String, Value>) -> Result<(), Failure> {
    let org = "bench".try_into()?;
    let mut whole = Vec::new();
    for _ in 0..tasks {
        let started = Instant::now();
        let made = daemon.tasks.request(&org, "bench", request()?).await?;
        daemon.tasks.wait(made.task.id, Duration::from_secs(10)).await?;
        whole.push(started.elapsed());
    }
    let client = daemon.database.client().await?;
    let between = |from: &str, to: &str| {
        format!(
            "select (extract(epoch from b.at - a.at) * 1000000)::bigint from convoke.events a \
             join convoke.events b on b.task_id = a.task_id and b.type = '{to}' where a.type = '{from}'"
        )
    };
    for (name, from, to) in [
        ("announce_to_award", "requested", "awarded"),
        ("award_to_start", "awarded", "started"),
        ("start_to_finish", "started", "finished"),
    ] {
        let rows = client.query(&between(from, to), &[]).await?;
        let times =
            rows.iter().map(|row| Duration::from_micros(u64::try_from(row.get::<_, i64>(0)).unwrap_or(0)));
        percentiles(figures, name, times.collect());
    }
    percentiles(figures, "request_to_completed", whole);
    Ok(())
}
