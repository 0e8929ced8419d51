//! Exports the traces of tasks that have ended: rows become spans, and spans go to a collector.
//!
//! The daemon that arbitrates follows the event log from the place that the row of `convoke.trace_export` names. A place is
//! recorded only after its tasks have arrived, so a collector that is away for an hour, and a daemon that is killed, lose
//! nothing: the same spans are sent again, with the same ids. Nothing here can delay or fail a task.
mod spans;

use crate::{
    config::Config,
    id::TaskId,
    llm::Clients,
    scope::{OnExit, Scope},
    task::{Error, Tasks, Traced},
    telemetry::{Otlp, Outage, Registry},
};
use anyhow::{Context, anyhow};
use chrono::{DateTime, TimeDelta, Utc};
use prometheus_client::metrics::{counter::Counter, gauge::Gauge};
use std::{collections::BTreeMap, time::Duration};
use tokio::time::{Instant, sleep};

/// Pause between two looks at the event log, so that one request takes many tasks.
const EVERY: Duration = Duration::from_secs(1);
/// Pause after a part of the export, as often as its reading took: the export reads a twentieth of the time at most, so that
/// it costs a busy database little. What it has not read waits in the event log.
const PAUSES: u32 = 19;
/// Longest pause after a part.
const PART_PAUSE_MAX: Duration = Duration::from_secs(5);
/// Longest pause after a failure; it doubles.
const PAUSE_MAX: Duration = Duration::from_secs(30);
/// Tasks that ended are read again for 5 seconds; their ends are remembered for longer.
const REMEMBERED: TimeDelta = TimeDelta::seconds(60);

/// Starts the export, if there is a collector.
///
/// # Errors
/// If a header has no value, or the address cannot be used.
pub(super) fn start(
    scope: &Scope,
    tasks: &Tasks,
    clients: &Clients,
    config: &Config,
    metrics: &Registry,
) -> anyhow::Result<()> {
    let otlp = &config.telemetry.otlp;
    if !otlp.is_on() {
        return Ok(());
    }
    let client =
        clients.for_url(&otlp.endpoint).map_err(|e| anyhow!(e)).context("telemetry.otlp.endpoint")?;
    let variable = |name: &str| std::env::var(name).ok();
    let instance = uuid::Uuid::new_v4().to_string();
    let sender = Otlp::new(otlp, client, variable, &instance);
    let export = Export {
        tasks: tasks.clone(),
        otlp: sender.map_err(|e| anyhow!(e)).context("telemetry.otlp")?,
        content: otlp.content,
        interval: otlp.interval,
        spans: metrics.counter("otlp_spans", "Spans that the collector has taken"),
        failures: metrics.counter("otlp_failures", "Batches of spans or metrics that did not arrive"),
        waiting: metrics.gauge("otlp_waiting_events", "Events of tasks that the export has not read yet"),
        reached: None,
        sent: BTreeMap::new(),
    };
    scope.spawn("trace export", OnExit::Log, |stop| async move {
        tokio::select! {
            () = stop.cancelled() => {}
            () = export.run() => {}
        }
        Ok(())
    });
    Ok(())
}

struct Export {
    tasks: Tasks,
    otlp: Otlp,
    content: bool,
    interval: Duration,
    spans: Counter,
    failures: Counter,
    waiting: Gauge,
    /// How far the event log was read. `None` until the row is read, and while another node exports.
    reached: Option<i64>,
    /// Ends that were sent.
    sent: BTreeMap<TaskId, DateTime<Utc>>,
}

impl Export {
    async fn run(mut self) {
        let mut outage = Outage::of("export of traces");
        let (mut pause, mut metrics_at) = (EVERY, Instant::now() + self.interval);
        loop {
            sleep(pause).await;
            // Where another node arbitrates, it exports.
            let sent = if self.tasks.arbitrates() {
                self.send_traces().await
            } else {
                self.reached = None;
                self.waiting.set(0);
                Ok(())
            };
            let sent = match sent {
                Ok(()) if Instant::now() >= metrics_at => {
                    metrics_at = Instant::now() + self.interval;
                    self.otlp.send_metrics().await
                }
                sent => sent,
            };
            match sent {
                Ok(()) => {
                    outage.succeeded();
                    pause = EVERY;
                }
                Err(error) => {
                    self.failures.inc();
                    outage.failed(&error);
                    pause = (pause * 2).min(PAUSE_MAX);
                }
            }
        }
    }

    /// Sends the tasks that have ended, until there are no more.
    async fn send_traces(&mut self) -> Result<(), String> {
        let text = |error: Error| error.to_string();
        let mut after = match self.reached {
            Some(reached) => reached,
            None => self.tasks.trace_export().await.map_err(text)?,
        };
        loop {
            self.reached = Some(after);
            let began = Instant::now();
            let Traced { mut tasks, reached, waiting } = self.tasks.traced(after).await.map_err(text)?;
            self.waiting.set(waiting);
            tasks.retain(|task| self.sent.get(&task.id) != Some(&task.ended));
            self.tasks.complete_traced(&mut tasks, self.content).await.map_err(text)?;
            let batch: Vec<_> = tasks.iter().flat_map(spans::of_task).collect();
            let reading = began.elapsed();
            let count = u64::try_from(batch.len()).unwrap_or(u64::MAX);
            if !batch.is_empty() {
                self.otlp.send_spans(batch).await?;
            }
            self.spans.inc_by(count);
            for task in &tasks {
                spans::measure(task, &self.otlp.instruments);
            }
            self.sent.extend(tasks.iter().map(|task| (task.id, task.ended)));
            let is_last = reached <= after;
            if !is_last {
                self.tasks.trace_exported(reached).await.map_err(text)?;
            }
            after = reached;
            if is_last {
                self.forget();
                return Ok(());
            }
            sleep((reading * PAUSES).min(PART_PAUSE_MAX)).await;
        }
    }

    /// Forgets ends that are not read again.
    fn forget(&mut self) {
        if let Some(newest) = self.sent.values().max().copied() {
            self.sent.retain(|_, ended| newest - *ended < REMEMBERED);
        }
    }
}
