//! From the commit of a row to the first line of the agent's handler, and to a LISTENer.
use super::{daemon::Setting, definition, percentiles};
use crate::{
    agent::{Agent, Finished, Job},
    cli::{Failure, settings::Settings},
    task,
};
use anyhow::Context;
use parking_lot::Mutex;
use serde_json::{Map, Value, json};
use std::{sync::Arc, time::Duration};
use tokio::time::Instant;

const SCHEMA: &str = "create table bench_rows (id bigint primary key, payload text not null)";
const WAKE: &str = r#"
[[wake]]
table = "public.bench_rows"
events = ["INSERT"]
request = { kind = "bench.wake", requires = ["work"], input = { id = "{{ new.id }}" } }
"#;

/// When each row was seen first, by its id.
#[derive(Default)]
struct Seen(Mutex<Vec<Option<Instant>>>);

impl Seen {
    fn note(&self, id: usize) {
        let now = Instant::now();
        let mut seen = self.0.lock();
        if seen.len() <= id {
            seen.resize(id + 1, None);
        }
        if let Some(place @ None) = seen.get_mut(id) {
            *place = Some(now);
        }
    }

    fn since(&self, commits: &[Instant]) -> Vec<Duration> {
        let seen = self.0.lock();
        let pairs = commits.iter().zip(seen.iter());
        pairs.filter_map(|(commit, seen)| Some(seen.as_ref()?.saturating_duration_since(*commit))).collect()
    }
}

struct Handler(Arc<Seen>);

#[async_trait::async_trait]
impl Agent for Handler {
    async fn run(&self, job: Job) -> Result<Finished, task::Failure> {
        if let Some(id) = job.input().get("id").and_then(Value::as_u64) {
            self.0.note(usize::try_from(id).unwrap_or(usize::MAX - 1));
        }
        Ok(Value::Null.into())
    }
}

pub(super) async fn run(settings: &Settings, commits: u32, rate: u32) -> Result<Value, Failure> {
    let handled = Arc::new(Seen::default());
    let agent = (definition("bench", 64, WAKE)?, Arc::new(Handler(handled.clone())) as Arc<dyn Agent>);
    let config = settings.load()?.config;
    let setting = Setting { config, agents: vec![agent], schema: SCHEMA, finished: 0 };
    setting.measure(async |daemon| woken(&daemon.database.url(), &handled, commits, rate).await).await
}

async fn woken(url: &str, handled: &Seen, commits: u32, rate: u32) -> Result<Value, Failure> {
    let notified = Arc::new(Seen::default());

    let (listener, mut connection) = tokio_postgres::connect(url, tokio_postgres::NoTls).await?;
    let heard = notified.clone();
    #[expect(clippy::disallowed_methods, reason = "ends with its connection, at the end of the measurement")]
    tokio::spawn(async move {
        while let Some(Ok(message)) = std::future::poll_fn(|cx| connection.poll_message(cx)).await {
            if let tokio_postgres::AsyncMessage::Notification(notification) = message
                && let Ok(id) = notification.payload().parse()
            {
                heard.note(id);
            }
        }
    });
    listener.batch_execute("listen bench").await?;

    let (writer, connection) = tokio_postgres::connect(url, tokio_postgres::NoTls).await?;
    #[expect(clippy::disallowed_methods, reason = "ends with its client, at the end of the measurement")]
    tokio::spawn(connection);
    let insert = writer
        .prepare(
            "with made as (insert into bench_rows values ($1, 'a row of the measurement') returning id) \
             select pg_notify('bench', id::text) from made",
        )
        .await?;
    let mut tick = tokio::time::interval(Duration::from_secs(1) / rate);
    let (mut committed, mut took) = (Vec::new(), Vec::new());
    for id in 0..commits {
        tick.tick().await;
        let asked = Instant::now();
        writer.query(&insert, &[&i64::from(id)]).await?;
        committed.push(Instant::now());
        took.push(asked.elapsed());
    }
    let all = async {
        while handled.since(&committed).len() < committed.len() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), all).await.context("some commits woke nobody")?;

    let mut figures = Map::new();
    figures.insert("commits".into(), json!(commits));
    figures.insert("commits_per_second".into(), json!(rate));
    percentiles(&mut figures, "commit", took);
    percentiles(&mut figures, "notify", notified.since(&committed));
    percentiles(&mut figures, "wake", handled.since(&committed));
    Ok(figures.into())
}
