//! Tracing set-up, the Prometheus registry, and the export by OTLP.
//!
//! The module that counts a metric owns it and registers it here. Logs never contain a payload, a row value,
//! a prompt or a token.
pub(crate) mod genai;
mod otlp;
mod outage;
mod reason_counter;
mod redact;
mod series;
mod throttle;

pub use otlp::{Instruments, Otlp, OtlpConfig, scope};
pub use outage::Outage;
pub use reason_counter::ReasonCounter;
pub use redact::{HIDDEN, without_login};
pub use series::{SERIES, Samples, Series, Step};
pub use throttle::Throttle;

use parking_lot::Mutex;
use prometheus_client::{
    collector::Collector,
    metrics::{counter::Counter, gauge::Gauge},
    registry::{Metric, Registry as Prometheus},
};
use serde::{Deserialize, Serialize};
use std::{
    io::IsTerminal,
    sync::{Arc, OnceLock},
};
use tracing::Metadata;
use tracing_subscriber::{
    EnvFilter, filter::filter_fn, layer::SubscriberExt, reload, util::SubscriberInitExt,
};

/// Settings of the process log and of OpenTelemetry.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Config {
    /// Filter in the syntax of `RUST_LOG`, like `info` or `convoke=debug`.
    pub log: String,
    /// `text` for people, `json` for machines.
    pub format: Format,
    /// OpenTelemetry.
    pub otlp: OtlpConfig,
}

/// The form of a log line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Format {
    /// One line for each record, colored on a terminal.
    Text,
    /// One JSON object for each record.
    Json,
}

impl Default for Config {
    fn default() -> Self {
        Self { log: "info".into(), format: Format::Text, otlp: OtlpConfig::default() }
    }
}

/// `telemetry.log` is not a valid filter.
#[derive(Debug, thiserror::Error)]
#[error("telemetry.log = {log:?} is not a log filter: {reason}")]
pub struct BadFilter {
    log: String,
    reason: String,
}

/// Filters for libraries that log their internals at info. The configured filter comes after them and can
/// override them.
const QUIET: &str = "refinery_core=warn,tokio_postgres=warn,deadpool.postgres=error";

/// Whether records of this kind may be written, whatever the configured filter: the library of models logs whole answers
/// that it cannot read and texts of errors, the library of MCP messages with their payloads below the level error.
fn is_safe(metadata: &Metadata<'_>) -> bool {
    match metadata.target().split("::").next() {
        Some("async_openai") => false,
        Some("rmcp") => *metadata.level() == tracing::Level::ERROR,
        _ => true,
    }
}

/// Parses a filter, as [`init`] will use it.
///
/// # Errors
/// [`BadFilter`] with the reason.
pub fn check_filter(log: &str) -> Result<EnvFilter, BadFilter> {
    let bad =
        |e: tracing_subscriber::filter::ParseError| BadFilter { log: log.to_owned(), reason: e.to_string() };
    // Parsed alone first, so that an error is about the configured text only.
    EnvFilter::try_new(log).map_err(bad)?;
    EnvFilter::try_new(format!("{QUIET},{log}")).map_err(bad)
}

/// The filter of the process log, which is one for the whole process.
static FILTER: OnceLock<reload::Handle<EnvFilter, tracing_subscriber::Registry>> = OnceLock::new();

/// Starts logging to standard error. A second call in one process does nothing.
///
/// # Errors
/// [`BadFilter`] if `config.log` is not a valid filter.
pub fn init(config: &Config) -> Result<(), BadFilter> {
    let (filter, handle) = reload::Layer::new(check_filter(&config.log)?);
    let registry = tracing_subscriber::registry().with(filter).with(filter_fn(is_safe));
    let stderr = std::io::stderr;
    let started = match config.format {
        Format::Text => {
            let layer = tracing_subscriber::fmt::layer().with_target(false).with_writer(stderr);
            registry.with(layer.with_ansi(stderr().is_terminal())).try_init()
        }
        Format::Json => registry.with(tracing_subscriber::fmt::layer().json().with_writer(stderr)).try_init(),
    };
    if started.is_ok() {
        let _ = FILTER.set(handle);
    }
    Ok(())
}

/// Uses another filter from now on. Returns whether it does: not if the process log was not started by [`init`], or if
/// this is no filter.
pub fn set_filter(log: &str) -> bool {
    let filter = FILTER.get().zip(check_filter(log).ok());
    filter.is_some_and(|(handle, filter)| handle.reload(filter).is_ok())
}

/// The metrics of one daemon. Clones share the registry.
#[derive(Clone, Debug)]
pub struct Registry(Arc<Mutex<Prometheus>>);

impl Default for Registry {
    fn default() -> Self {
        Self(Arc::new(Mutex::new(Prometheus::with_prefix("convoke"))))
    }
}

impl Registry {
    /// Registers a metric. `name` is without the prefix `convoke_` and, for counters, without `_total`.
    pub fn register(&self, name: &str, help: &str, metric: impl Metric) {
        self.0.lock().register(name, help, metric);
    }

    /// Registers metrics that are read when they are scraped.
    pub fn register_collector(&self, collector: Box<dyn Collector>) {
        self.0.lock().register_collector(collector);
    }

    /// Registers a metric and returns it, as [`Registry::register`].
    #[must_use]
    pub fn add<M: Metric + Clone>(&self, name: &str, help: &str, metric: M) -> M {
        self.register(name, help, metric.clone());
        metric
    }

    /// Registers and returns a new counter.
    #[must_use]
    pub fn counter(&self, name: &str, help: &str) -> Counter {
        self.add(name, help, Counter::default())
    }

    /// Registers and returns a new gauge.
    #[must_use]
    pub fn gauge(&self, name: &str, help: &str) -> Gauge {
        self.add(name, help, Gauge::default())
    }

    /// Registers and returns a new counter with the label `reason`.
    #[must_use]
    pub fn reason_counter(&self, name: &str, help: &str) -> ReasonCounter {
        let counter = ReasonCounter::default();
        self.register(name, help, counter.family());
        counter
    }

    /// Encodes every metric as OpenMetrics text.
    ///
    /// # Errors
    /// If a metric cannot be encoded, which is a bug of that metric.
    pub fn encode(&self) -> Result<String, std::fmt::Error> {
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &self.0.lock())?;
        Ok(text)
    }
}
