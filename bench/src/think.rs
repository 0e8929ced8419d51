//! Agents that think: what the loop costs beside the calls of the model, and the memory of many runs that are under way
//! at once.
//!
//! The model is an endpoint with a script (`convoke::testing`). Each of its answers calls a tool that reads one row in
//! the daemon's database, so that a step is a question and a call with their commits.
use super::{
    accounting,
    client_process::Clients,
    daemon::Fixture,
    figures::{Figures, median},
    process,
    scripted_model::Order,
};
use anyhow::{Context, ensure};
use clap::Args;
use convoke::{
    agent::Definition,
    app::Parts,
    config::Config,
    id::{OrgId, TaskId},
    llm::ProviderConfig,
    task::{Request, TaskState},
    testing::{ModelServer, Reply, Script},
};
use futures_util::{StreamExt, TryStreamExt, stream};
use serde::Serialize;
use serde_json::json;
use std::time::Duration;
use tokio::time::Instant;

/// All runs must be under way within this time, and no model answers later.
const UNDER_WAY_WITHIN: Duration = RUN_WITHIN;
/// A run must end within this time.
pub(super) const RUN_WITHIN: Duration = Duration::from_secs(600);
/// Requests of tasks that are sent at once.
const REQUESTS_AT_ONCE: usize = 32;
/// Name of the tool of the steps.
pub(super) const TOOL_NAME: &str = "look";
/// The tool of the steps. Its role is one that every server has, so that nothing is left behind.
const TOOL: &str = "[[tool]]\nname = \"look\"\nkind = \"sql\"\nrole = \"pg_read_all_settings\"\neffect = \"read\"\n\
    statement = \"select cast(:n as integer) as n\"\n\
    parameters = { type = \"object\", required = [\"n\"], properties = { n = { type = \"integer\" } } }\n";
/// Time from the first to the last row of the latest run of a task, in milliseconds.
const RUN_MS: &str = "select extract(epoch from ended_at - started_at)::float8 * 1000 as ms from convoke.runs
    where task_id = $1 order by run desc limit 1";
/// Calls that did not succeed.
const FAILED: &str =
    "select count(*) from convoke.steps where task_id = $1 and kind = 'tool' and state <> 'done'";
/// Runs that wait for their model after so many answers.
const UNDER_WAY: &str = "select count(*) from convoke.runs r join convoke.steps s on s.task_id = r.task_id
    and s.run = r.run and s.seq = r.head_seq where s.kind = 'model' and s.state = 'started' and r.ended_at is null
    and (select count(*) from convoke.steps d where d.task_id = r.task_id and d.run = r.run and d.kind = 'model'
        and d.state = 'done') = $1";

#[derive(Args, Serialize)]
pub(super) struct ThinkOptions {
    /// Questions to the model in one run
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=900))]
    steps: u32,
    /// Time of one answer of the model, in milliseconds
    #[arg(long, default_value_t = 200)]
    answer_ms: u64,
    /// Runs, one after the other; figures are their medians
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    runs: u32,
    /// Runs that are under way at once while memory is measured
    #[arg(long, default_value_t = 1_000, value_parser = clap::value_parser!(u32).range(1..=1_000))]
    at_once: u32,
    /// Answers that each of these has when it waits for the next one
    #[arg(long, default_value_t = 3)]
    answers: u32,
    /// Instead: check the money of so many questions with every form of usage, to the microdollar
    #[arg(long, value_name = "QUESTIONS", num_args = 0..=1, default_missing_value = "10000",
        value_parser = clap::value_parser!(u32).range(4..=1_000_000))]
    #[serde(skip_serializing_if = "Option::is_none")]
    accounting: Option<u32>,
}

pub(super) async fn run(config: &Config, options: &ThinkOptions) -> anyhow::Result<Figures> {
    if let Some(questions) = options.accounting {
        return accounting::run(config, usize::try_from(questions)?).await;
    }
    let delay = Duration::from_millis(options.answer_ms);
    let quick = ModelServer::start(steps(options.steps, delay)).await?;
    let waiting = waiting_model(options.answers).await?;
    let mut config = config.clone();
    for (name, base_url) in [("quick", &quick.base_url()), ("waiting", &waiting.base_url)] {
        config.llm.providers.insert(format!("bench-{name}"), provider(base_url, options.at_once)?);
    }
    let definitions = vec![
        thinker("quick", &quick.base_url(), 1, options.steps)?,
        thinker("waiting", &waiting.base_url, options.at_once, options.answers + 1)?,
    ];
    process::allow_sockets(usize::try_from(options.at_once)?)?;
    let fixture = Fixture { config, agents: Vec::new(), definitions, schema: "", finished: 0 };
    let mut figures = Figures::default();
    let measured = fixture.measure(&mut figures, async |daemon, figures| {
        measure_overhead(daemon, options, &quick, figures).await?;
        measure_memory(daemon, options, figures).await
    });
    let outcome = measured.await;
    waiting.clients.stop().await?;
    outcome?;
    Ok(figures)
}

/// A run of so many questions: each but the last calls the tool.
fn steps(questions: u32, delay: Duration) -> Script {
    let calls = (1..questions).map(|n| Reply::call(TOOL_NAME, json!({ "n": n })));
    Script::by_turn(calls.chain([Reply::finish(json!(1))]).map(|reply| reply.after(delay)))
}

/// The model of the runs that are under way, in a process of its own: its memory is not the daemon's.
struct WaitingModel {
    clients: Clients,
    base_url: String,
}

async fn waiting_model(answers: u32) -> anyhow::Result<WaitingModel> {
    let arguments: Vec<String> = vec!["scripted-model".into(), "--answers".into(), answers.to_string()];
    let mut clients = Clients::spawn(&arguments, []).await?;
    let (answer, _) = clients.ask(&Order {}).await?;
    let base_url = answer.get("base_url").and_then(|url| url.as_str()).context("the model has no address")?;
    Ok(WaitingModel { base_url: base_url.to_owned(), clients })
}

pub(super) fn provider(base_url: &str, concurrent: u32) -> anyhow::Result<ProviderConfig> {
    Ok(toml::from_str(&format!("base_url = \"{base_url}\"\nconcurrent = {concurrent}"))?)
}

pub(super) fn thinker(id: &str, base_url: &str, slots: u32, questions: u32) -> anyhow::Result<Definition> {
    let wait = UNDER_WAY_WITHIN.as_secs();
    let text = format!(
        "id = \"{id}\"\norg = \"bench\"\ncapabilities = [\"{id}\"]\nslots = {slots}\n\
         [run]\nkind = \"llm\"\nmodel = \"m\"\nbase_url = \"{base_url}\"\ninstructions = \"Read, then finish.\"\n\
         tools = [\"look\"]\nstream = {{ first_byte = \"{wait}s\" }}\n\
         [limits]\ntimeout = \"{wait}s\"\nsteps_max = {}\ncalls_max = {}\n{TOOL}",
        // From 80 % of its step limit on, a run gets a note to finish.
        questions.saturating_mul(2).clamp(10, 1_000),
        questions.saturating_mul(2).clamp(10, 10_000),
    );
    toml::from_str(&text).context("the benchmark's own agent definition")
}

pub(super) async fn request(daemon: &Parts, capability: &str) -> anyhow::Result<TaskId> {
    let request: Request = serde_json::from_value(json!({
        "kind": "bench.think", "requires": [capability], "input": { "text": "a small input of a usual size" },
        "policy": { "attempts_max": 1 },
    }))?;
    Ok(daemon.tasks.request(&OrgId::try_from("bench")?, "bench", request).await?.task.id)
}

/// Single runs, one after the other: what they take beside the time that the model held its answers.
async fn measure_overhead(
    daemon: &Parts,
    options: &ThinkOptions,
    model: &ModelServer,
    figures: &mut Figures,
) -> anyhow::Result<()> {
    let client = daemon.database.client().await?;
    let (mut whole, mut beside, mut percent, mut asked) = (Vec::new(), Vec::new(), Vec::new(), 0);
    for _ in 0..options.runs {
        let id = request(daemon, "quick").await?;
        let task = daemon.tasks.wait(id, UNDER_WAY_WITHIN).await?;
        ensure!(task.state == TaskState::Completed, "the run did not complete: {:?}", task.error);
        let failed: i64 = client.query_one(FAILED, &[&id.as_uuid()]).await?.try_get(0)?;
        ensure!(
            failed == 0,
            "{failed} calls of the tool failed: may the daemon's role read as pg_read_all_settings?"
        );
        let took: f64 = client.query_one(RUN_MS, &[&id.as_uuid()]).await?.try_get("ms")?;
        let requests = model.requests();
        let held = requests.iter().skip(asked).filter_map(|request| request.answered_after);
        let held: f64 = held.map(|held| held.as_secs_f64() * 1000.0).sum();
        let questions = u32::try_from(requests.len() - asked)?;
        ensure!(questions == options.steps, "{questions} questions instead of {}", options.steps);
        asked = requests.len();
        whole.push(took);
        beside.push((took - held) / f64::from(questions));
        percent.push((took - held) / held * 100.0);
    }
    for (name, values) in
        [("run_ms", whole), ("beside_the_call_of_a_step_ms", beside), ("beside_the_calls_percent", percent)]
    {
        figures.add(name, median(&values).unwrap_or(f64::NAN));
    }
    Ok(())
}

/// Resident memory of this process, which is the daemon's and the benchmark's, before and with the runs under way.
async fn measure_memory(daemon: &Parts, options: &ThinkOptions, figures: &mut Figures) -> anyhow::Result<()> {
    let before = process::resident()?;
    process::reset_peak()?;
    let began = Instant::now();
    let requests = stream::iter(0..options.at_once).map(|_| request(daemon, "waiting"));
    let made: Vec<TaskId> = requests.buffer_unordered(REQUESTS_AT_ONCE).try_collect().await?;
    let client = daemon.database.client().await?;
    let answers = i64::from(options.answers);
    let under_way = async {
        loop {
            let row = client.query_one(UNDER_WAY, &[&answers]).await?;
            if row.try_get::<_, i64>(0)? == i64::from(options.at_once) {
                return anyhow::Ok(());
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    let reached = tokio::time::timeout(UNDER_WAY_WITHIN, under_way).await;
    reached.with_context(|| format!("not all runs were under way within {UNDER_WAY_WITHIN:?}"))??;
    let took = began.elapsed();
    let kib = |bytes: u64| anyhow::Ok(f64::from(u32::try_from(bytes >> 10)?));
    let (before, with, peak) = (kib(before)?, kib(process::resident()?)?, kib(process::peak()?)?);
    for id in made {
        daemon.tasks.cancel(id, "measured").await?;
    }
    figures.add("before_resident_mib", before / 1024.0);
    figures.add("under_way_resident_mib", with / 1024.0);
    figures.add("under_way_peak_mib", peak / 1024.0);
    figures.add("run_kib", (with - before) / f64::from(options.at_once));
    figures.add("until_all_under_way_seconds", took.as_secs_f64());
    Ok(())
}
