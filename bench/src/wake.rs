//! Latency from the commit of a row to the first line of an agent's handler, and to a LISTEN client.
use super::{daemon::Fixture, definition, figures::Figures};
use anyhow::Context;
use clap::Args;
use convoke::{
    agent::{Agent, Finished, Job},
    config::Config,
    task,
};
use parking_lot::Mutex;
use serde::Serialize;
use serde_json::Value;
use std::{sync::Arc, time::Duration};
use tokio::time::Instant;
use tokio_postgres::{AsyncMessage, Client, NoTls};

const SCHEMA: &str = "
    drop table if exists bench_rows;
    create table bench_rows (id bigint primary key, payload text not null)";
const WAKE: &str = r#"
[[wake]]
table = "public.bench_rows"
events = ["INSERT"]
request = { kind = "bench.wake", requires = ["work"], input = { id = "{{ new.id }}" } }
"#;
/// The row and the notification commit together, so both latencies begin at the same instant.
const INSERT: &str = "with made as (insert into bench_rows values ($1, 'a row of the benchmark') returning id) \
    select pg_notify('bench', id::text) from made";
/// How long the last handlers may take after the last commit.
const HANDLED_WITHIN: Duration = Duration::from_secs(30);

#[derive(Args, Serialize)]
pub(super) struct WakeOptions {
    /// Commits
    #[arg(long, default_value_t = 2000)]
    commits: u32,
    /// Commits a second
    #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u32).range(1..))]
    rate: u32,
}

/// When each row was first seen, by its id.
#[derive(Default)]
struct Arrivals(Mutex<Vec<Option<Instant>>>);

impl Arrivals {
    fn record(&self, id: usize) {
        let now = Instant::now();
        let mut arrivals = self.0.lock();
        if arrivals.len() <= id {
            arrivals.resize(id + 1, None);
        }
        if let Some(first @ None) = arrivals.get_mut(id) {
            *first = Some(now);
        }
    }

    /// Latencies of the rows that have arrived; commit `n` is of row `n`.
    fn since(&self, commits: &[Instant]) -> Vec<Duration> {
        let arrivals = self.0.lock();
        let pairs = commits.iter().zip(arrivals.iter());
        pairs.filter_map(|(commit, seen)| Some(seen.as_ref()?.saturating_duration_since(*commit))).collect()
    }
}

struct Handler(Arc<Arrivals>);

#[async_trait::async_trait]
impl Agent for Handler {
    async fn run(&self, job: Job) -> Result<Finished, task::Failure> {
        if let Some(id) = job.input().get("id").and_then(Value::as_u64).and_then(|id| id.try_into().ok()) {
            self.0.record(id);
        }
        Ok(Value::Null.into())
    }
}

pub(super) async fn run(config: &Config, options: &WakeOptions) -> anyhow::Result<Figures> {
    let handled = Arc::new(Arrivals::default());
    let agent = (definition("bench", 64, WAKE)?, Arc::new(Handler(handled.clone())) as Arc<dyn Agent>);
    let fixture = Fixture {
        config: config.clone(),
        agents: vec![agent],
        definitions: Vec::new(),
        schema: SCHEMA,
        finished: 0,
    };
    let mut figures = Figures::default();
    fixture
        .measure(&mut figures, async |daemon, figures| {
            measure(&daemon.database.url(), &handled, options, figures).await
        })
        .await?;
    Ok(figures)
}

async fn measure(
    url: &str,
    handled: &Arrivals,
    options: &WakeOptions,
    figures: &mut Figures,
) -> anyhow::Result<()> {
    let notified = Arc::new(Arrivals::default());
    // The notifications end with the client, at the end of this function.
    let _listener = listen(url, notified.clone()).await?;

    let (writer, connection) = tokio_postgres::connect(url, NoTls).await?;
    #[expect(clippy::disallowed_methods, reason = "ends with its client, at the end of the benchmark")]
    tokio::spawn(connection);
    let insert = writer.prepare(INSERT).await?;
    let mut tick = tokio::time::interval(Duration::from_secs(1) / options.rate);
    let (mut committed, mut commits) = (Vec::new(), Vec::new());
    for id in 0..options.commits {
        tick.tick().await;
        let started = Instant::now();
        writer.query(&insert, &[&i64::from(id)]).await?;
        committed.push(Instant::now());
        commits.push(started.elapsed());
    }
    let all = async {
        while handled.since(&committed).len() < committed.len() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    let all = tokio::time::timeout(HANDLED_WITHIN, all).await;
    all.with_context(|| format!("some commits woke no agent within {HANDLED_WITHIN:?}"))?;

    figures.add_percentiles("commit", commits);
    figures.add_percentiles("notify", notified.since(&committed));
    figures.add_percentiles("wake", handled.since(&committed));
    Ok(())
}

/// Records notifications of channel `bench` until the client is dropped.
async fn listen(url: &str, notified: Arc<Arrivals>) -> anyhow::Result<Client> {
    let (client, mut connection) = tokio_postgres::connect(url, NoTls).await?;
    #[expect(clippy::disallowed_methods, reason = "ends with its client, at the end of the benchmark")]
    tokio::spawn(async move {
        while let Some(Ok(message)) = std::future::poll_fn(|cx| connection.poll_message(cx)).await {
            if let AsyncMessage::Notification(notification) = message
                && let Ok(id) = notification.payload().parse()
            {
                notified.record(id);
            }
        }
    });
    client.batch_execute("listen bench").await?;
    Ok(client)
}
