//! OpenTelemetry by OTLP: sends spans and metrics to a collector, as protobuf over HTTP.
//!
//! The spans are made from rows, with ids that come from the ids of the rows, so no tracer and no batch processor of the
//! SDK is used: the caller hands over whole batches, and hears whether they arrived. Nothing is repeated here: the
//! exporters would wait in the thread. The HTTP client is the caller's, so
//! that the daemon has one set-up of TLS.
use super::genai;
use opentelemetry::{
    InstrumentationScope, KeyValue,
    metrics::{Counter, Histogram, Meter, MeterProvider},
};
use opentelemetry_http::{Bytes, HttpClient, HttpError, Request, Response};
use opentelemetry_otlp::{
    MetricExporter, Protocol, RetryPolicy, SpanExporter, WithExportConfig, WithHttpConfig,
};
use opentelemetry_sdk::{
    Resource,
    error::OTelSdkResult,
    metrics::{
        InstrumentKind, ManualReader, Pipeline, SdkMeterProvider, Temporality, data::ResourceMetrics,
        exporter::PushMetricExporter, reader::MetricReader,
    },
    trace::{SpanData, SpanExporter as _},
};
use serde::{Deserialize, Serialize};
use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Weak},
    time::Duration,
};

/// Time limit of one request to the collector.
const TIMEOUT: Duration = Duration::from_secs(10);
/// Most bytes of an answer of the collector.
const ANSWER_BYTES_MAX: usize = 1 << 20;

/// The collector, and what it gets.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct OtlpConfig {
    /// Address of the collector, like `http://127.0.0.1:4318`. Nothing is sent if it is empty.
    pub endpoint: String,
    /// Headers of each request, with the names of the variables that have their values.
    pub headers_env: BTreeMap<String, String>,
    /// The share of tasks without a trace that begin one, in percent. Tasks that were requested in a trace are sent
    /// whenever that trace is recorded.
    pub percent: u8,
    /// Whether arguments and results of tools and answers of models are sent.
    pub content: bool,
    /// How often metrics are sent.
    #[serde(with = "humantime_serde")]
    pub interval: Duration,
}

impl Default for OtlpConfig {
    fn default() -> Self {
        Self {
            endpoint: String::new(),
            headers_env: BTreeMap::new(),
            percent: 100,
            content: false,
            interval: Duration::from_secs(60),
        }
    }
}

impl OtlpConfig {
    /// Whether anything is sent.
    #[must_use]
    pub fn is_on(&self) -> bool {
        !self.endpoint.is_empty()
    }

    /// Returns the wrong settings: dotted key, problem and remedy.
    pub(crate) fn check(&self) -> Vec<(&'static str, String, &'static str)> {
        let mut wrong = Vec::new();
        let url = reqwest::Url::parse(&self.endpoint).ok();
        if self.is_on() && !url.is_some_and(|url| matches!(url.scheme(), "http" | "https") && url.has_host())
        {
            let what = format!("{:?} is no http or https address", self.endpoint);
            wrong.push(("telemetry.otlp.endpoint", what, "use one like \"http://127.0.0.1:4318\""));
        }
        if self.percent > 100 {
            wrong.push(("telemetry.otlp.percent", format!("{} is over 100", self.percent), "use 0 to 100"));
        }
        if !(Duration::from_secs(1)..=Duration::from_secs(3_600)).contains(&self.interval) {
            let what = format!("{} is not 1s to 1h", humantime::format_duration(self.interval));
            wrong.push(("telemetry.otlp.interval", what, "use one like \"60s\""));
        }
        wrong
    }
}

/// Sends batches of spans, and the metrics.
pub struct Otlp {
    spans: SpanExporter,
    metrics: MetricExporter,
    reader: Arc<ManualReader>,
    /// Dropping it ends the reader.
    _provider: SdkMeterProvider,
    /// The instruments.
    pub instruments: Instruments,
}

/// The metrics of generative AI.
pub struct Instruments {
    /// Durations of questions to models.
    pub inference: Histogram<f64>,
    /// Durations of calls of tools.
    pub execute_tool: Histogram<f64>,
    /// Durations of attempts.
    pub invoke_agent: Histogram<f64>,
    /// Tokens: input, output, read from caches, written to caches, reasoning.
    pub tokens: [Counter<u64>; 5],
}

impl Instruments {
    fn new(meter: &Meter) -> Self {
        let seconds = |name: &'static str, bounds: &[f64]| {
            meter.f64_histogram(name).with_unit("s").with_boundaries(bounds.to_vec()).build()
        };
        Self {
            inference: seconds(genai::INFERENCE_DURATION, &genai::DURATION_BOUNDS),
            execute_tool: seconds(genai::EXECUTE_TOOL_DURATION, &genai::DURATION_BOUNDS),
            invoke_agent: seconds(genai::INVOKE_AGENT_DURATION, &genai::INVOKE_AGENT_BOUNDS),
            tokens: genai::INFERENCE_USAGE.map(|name| meter.u64_counter(name).with_unit("{token}").build()),
        }
    }
}

impl std::fmt::Debug for Otlp {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Otlp").finish_non_exhaustive()
    }
}

/// The scope of all spans and metrics of this program.
#[must_use]
pub fn scope() -> InstrumentationScope {
    InstrumentationScope::builder("convoke")
        .with_version(env!("CARGO_PKG_VERSION"))
        .with_schema_url(genai::SCHEMA)
        .build()
}

impl Otlp {
    /// Connects nothing yet. `header` gives the value of a variable; `instance` tells this daemon from others.
    ///
    /// # Errors
    /// One line: a variable that is not set, or an address that cannot be used.
    pub fn new(
        config: &OtlpConfig,
        client: reqwest::Client,
        header: impl Fn(&str) -> Option<String>,
        instance: &str,
    ) -> Result<Self, String> {
        let headers = headers(config, header)?;
        let base = config.endpoint.trim_end_matches('/');
        let resource = resource(instance);
        let mut spans = SpanExporter::builder()
            .with_http()
            .with_http_client(Client(client.clone()))
            .with_protocol(Protocol::HttpBinary)
            .with_timeout(TIMEOUT)
            .with_retry_policy(RetryPolicy::disabled())
            .with_headers(headers.clone())
            .with_endpoint(format!("{base}/v1/traces"))
            .build()
            .map_err(|e| e.to_string())?;
        spans.set_resource(&resource);
        let metrics = MetricExporter::builder()
            .with_http()
            .with_http_client(Client(client))
            .with_protocol(Protocol::HttpBinary)
            .with_timeout(TIMEOUT)
            .with_retry_policy(RetryPolicy::disabled())
            .with_headers(headers)
            .with_endpoint(format!("{base}/v1/metrics"))
            .build()
            .map_err(|e| e.to_string())?;
        let reader = Arc::new(ManualReader::default());
        let provider = SdkMeterProvider::builder()
            .with_resource(resource)
            .with_reader(SharedReader(reader.clone()))
            .build();
        let instruments = Instruments::new(&provider.meter_with_scope(scope()));
        Ok(Self { spans, metrics, reader, _provider: provider, instruments })
    }

    /// Sends spans.
    ///
    /// # Errors
    /// One line: the collector does not answer, or refuses them.
    pub async fn send_spans(&self, spans: Vec<SpanData>) -> Result<(), String> {
        self.spans.export(spans).await.map_err(|e| e.to_string())
    }

    /// Sends the present values of all metrics.
    ///
    /// # Errors
    /// As [`Self::send_spans`].
    pub async fn send_metrics(&self) -> Result<(), String> {
        let mut collected = ResourceMetrics::default();
        self.reader.collect(&mut collected).map_err(|e| e.to_string())?;
        self.metrics.export(&collected).await.map_err(|e| e.to_string())
    }
}

/// The headers of each request.
fn headers(
    config: &OtlpConfig,
    value: impl Fn(&str) -> Option<String>,
) -> Result<HashMap<String, String>, String> {
    let header = |(name, variable): (&String, &String)| {
        let value = value(variable).ok_or_else(|| format!("{variable} is not set in the environment"))?;
        Ok((name.clone(), value))
    };
    config.headers_env.iter().map(header).collect()
}

fn resource(instance: &str) -> Resource {
    let of = |name: &'static str, value: &str| KeyValue::new(name, value.to_owned());
    Resource::builder_empty()
        .with_attributes([
            of("service.name", "convoke"),
            of("service.version", env!("CARGO_PKG_VERSION")),
            of("service.instance.id", instance),
        ])
        .build()
}

/// Our own HTTP client for the exporters.
#[derive(Debug)]
struct Client(reqwest::Client);

#[async_trait::async_trait]
impl HttpClient for Client {
    async fn send_bytes(&self, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        let request = reqwest::Request::try_from(request)?;
        let mut response = tokio::time::timeout(TIMEOUT, self.0.execute(request)).await??;
        let mut answer = Response::builder().status(response.status());
        if let Some(headers) = answer.headers_mut() {
            headers.clone_from(response.headers());
        }
        let mut body = Vec::new();
        while let Some(chunk) = tokio::time::timeout(TIMEOUT, response.chunk()).await?? {
            if body.len() + chunk.len() > ANSWER_BYTES_MAX {
                return Err("the answer of the collector is too large".into());
            }
            body.extend_from_slice(&chunk);
        }
        Ok(answer.body(body.into())?)
    }
}

/// The reader of the metrics, which the provider and [`Otlp`] share.
#[derive(Debug)]
struct SharedReader(Arc<ManualReader>);

impl MetricReader for SharedReader {
    fn register_pipeline(&self, pipeline: Weak<Pipeline>) {
        self.0.register_pipeline(pipeline);
    }

    fn collect(&self, collected: &mut ResourceMetrics) -> OTelSdkResult {
        self.0.collect(collected)
    }

    fn force_flush(&self) -> OTelSdkResult {
        self.0.force_flush()
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.0.shutdown_with_timeout(timeout)
    }

    fn temporality(&self, kind: InstrumentKind) -> Temporality {
        self.0.temporality(kind)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wrong_settings_are_named() {
        assert_eq!(OtlpConfig::default().check(), []);
        assert!(!OtlpConfig::default().is_on());
        let wrong = OtlpConfig {
            endpoint: "127.0.0.1:4318".into(),
            percent: 101,
            interval: Duration::ZERO,
            ..OtlpConfig::default()
        };
        let found: Vec<_> = wrong.check().into_iter().map(|(key, ..)| key).collect();
        assert_eq!(found, ["telemetry.otlp.endpoint", "telemetry.otlp.percent", "telemetry.otlp.interval"]);
    }

    #[test]
    fn header_without_its_variable_is_refused() {
        let headers_env = BTreeMap::from([("authorization".to_owned(), "OTLP_TOKEN".to_owned())]);
        let config = OtlpConfig { endpoint: "http://x".into(), headers_env, ..OtlpConfig::default() };
        assert_eq!(headers(&config, |_| None).unwrap_err(), "OTLP_TOKEN is not set in the environment");
        let found = headers(&config, |name| Some(format!("value of {name}"))).unwrap();
        assert_eq!(found["authorization"], "value of OTLP_TOKEN");
    }
}
