//! Tracing set-up and the Prometheus registry.
//!
//! Metrics are owned by the module that counts them; it registers them here.
//! Logs never carry a payload, a row value, a prompt or a token.
use parking_lot::Mutex;
use prometheus_client::{
    metrics::{counter::Counter, gauge::Gauge},
    registry::{Metric, Registry as Prometheus},
};
use serde::{Deserialize, Serialize};
use std::{io::IsTerminal, sync::Arc};
use tracing_subscriber::{EnvFilter, layer::SubscriberExt, util::SubscriberInitExt};

/// How the daemon logs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Config {
    /// What is logged, in the syntax of `RUST_LOG`, like `info` or `convoke=debug`.
    pub log: String,
    /// `text` for people, `json` for machines.
    pub format: Format,
}

/// The form of a log line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Format {
    /// One line a record, coloured on a terminal.
    Text,
    /// One JSON object a record.
    Json,
}

impl Default for Config {
    fn default() -> Self {
        Self { log: "info".into(), format: Format::Text }
    }
}

/// Why logging could not be set up.
#[derive(Debug, thiserror::Error)]
#[error("telemetry.log = {log:?} is not a log filter: {reason}")]
pub struct BadFilter {
    log: String,
    reason: String,
}

/// Libraries that call their own affairs news, unless the filter names them.
const QUIET: &str = "refinery_core=warn,tokio_postgres=warn,deadpool.postgres=error";

/// Whether `log` is a filter that [`init`] will take.
///
/// # Errors
/// [`BadFilter`] says what is wrong with it.
pub fn check_filter(log: &str) -> Result<EnvFilter, BadFilter> {
    let bad =
        |e: tracing_subscriber::filter::ParseError| BadFilter { log: log.to_owned(), reason: e.to_string() };
    EnvFilter::try_new(log).map_err(bad)?;
    EnvFilter::try_new(format!("{QUIET},{log}")).map_err(bad)
}

/// Sends log records to standard error; a second call in one process does nothing.
///
/// # Errors
/// [`BadFilter`] when `config.log` is no filter.
pub fn init(config: &Config) -> Result<(), BadFilter> {
    let filter = check_filter(&config.log)?;
    let registry = tracing_subscriber::registry().with(filter);
    let stderr = std::io::stderr;
    let _ = match config.format {
        Format::Text => {
            let layer = tracing_subscriber::fmt::layer().with_target(false).with_writer(stderr);
            registry.with(layer.with_ansi(stderr().is_terminal())).try_init()
        }
        Format::Json => registry.with(tracing_subscriber::fmt::layer().json().with_writer(stderr)).try_init(),
    };
    Ok(())
}

/// The metrics of one daemon. Clones name the same registry.
#[derive(Clone, Debug)]
pub struct Registry(Arc<Mutex<Prometheus>>);

impl Default for Registry {
    fn default() -> Self {
        Self(Arc::new(Mutex::new(Prometheus::with_prefix("convoke"))))
    }
}

impl Registry {
    /// Adds a metric; `name` is without the `convoke_` prefix and, for counters, without `_total`.
    pub fn register(&self, name: &str, help: &str, metric: impl Metric) {
        self.0.lock().register(name, help, metric);
    }

    /// A new counter under this name.
    #[must_use]
    pub fn counter(&self, name: &str, help: &str) -> Counter {
        let counter = Counter::default();
        self.register(name, help, counter.clone());
        counter
    }

    /// A new gauge under this name.
    #[must_use]
    pub fn gauge(&self, name: &str, help: &str) -> Gauge {
        let gauge = Gauge::default();
        self.register(name, help, gauge.clone());
        gauge
    }

    /// All metrics as OpenMetrics text.
    ///
    /// # Errors
    /// When a metric cannot be written, which is a bug of that metric.
    pub fn encode(&self) -> Result<String, std::fmt::Error> {
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &self.0.lock())?;
        Ok(text)
    }
}
