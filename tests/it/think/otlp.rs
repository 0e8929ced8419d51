//! The export of traces and metrics to a collector that speaks OTLP.
use super::{
    Say, Thinking, World, call, finish, thinker,
    traces::{TRACE, woken, woken_by},
};
use crate::{agent::definition, daemon::soon};
use axum::{Router, body::Bytes, extract::State, http::StatusCode, routing::post};
use convoke::{
    agent::Definition,
    id::{TaskId, TraceContext},
};
use opentelemetry_proto::tonic::{
    collector::{metrics::v1::ExportMetricsServiceRequest, trace::v1::ExportTraceServiceRequest},
    common::v1::{KeyValue, any_value::Value as Any},
    metrics::v1::metric::Data,
    trace::v1::Span,
};
use parking_lot::Mutex;
use prost::Message;
use serde_json::json;
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

/// A collector that keeps what it gets.
#[derive(Clone, Default)]
struct Collector {
    address: String,
    spans: Arc<Mutex<Vec<Span>>>,
    metrics: Arc<Mutex<BTreeMap<String, Data>>>,
    /// How many of the next requests are answered with 503.
    fails: Arc<Mutex<u32>>,
    /// Everything that was received, as it came.
    raw: Arc<Mutex<Vec<u8>>>,
}

impl Collector {
    async fn start(fails: u32) -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        let collector = Self { address, fails: Arc::new(Mutex::new(fails)), ..Self::default() };
        let router = Router::new()
            .route("/v1/traces", post(traces))
            .route("/v1/metrics", post(metrics))
            .with_state(collector.clone());
        #[expect(clippy::disallowed_methods, reason = "it ends with the test's runtime")]
        tokio::spawn(async move { axum::serve(listener, router).await });
        collector
    }

    /// The spans of a trace, each once.
    fn of(&self, trace: u128) -> BTreeMap<u64, Span> {
        let spans = self.spans.lock();
        let of = spans.iter().filter(|span| span.trace_id == trace.to_be_bytes());
        of.map(|span| (number(&span.span_id), span.clone())).collect()
    }

    /// The spans of a trace, once that of its task is among them.
    async fn trace_of(&self, trace: TraceContext, task: TaskId) -> BTreeMap<u64, Span> {
        let own = trace.task(task).span_id();
        soon("the trace", async {
            loop {
                let spans = self.of(trace.trace_id());
                if spans.contains_key(&own) {
                    return spans;
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        })
        .await
    }
}

fn number(id: &[u8]) -> u64 {
    id.try_into().map_or(0, u64::from_be_bytes)
}

fn refuses(collector: &Collector) -> bool {
    let mut fails = collector.fails.lock();
    let was = *fails;
    *fails = was.saturating_sub(1);
    was > 0
}

async fn traces(State(collector): State<Collector>, body: Bytes) -> StatusCode {
    if refuses(&collector) {
        return StatusCode::SERVICE_UNAVAILABLE;
    }
    collector.raw.lock().extend_from_slice(&body);
    let request = ExportTraceServiceRequest::decode(body).unwrap();
    let scopes = request.resource_spans.into_iter().flat_map(|resource| resource.scope_spans);
    collector.spans.lock().extend(scopes.flat_map(|scope| scope.spans));
    StatusCode::OK
}

async fn metrics(State(collector): State<Collector>, body: Bytes) -> StatusCode {
    let request = ExportMetricsServiceRequest::decode(body).unwrap();
    let scopes = request.resource_metrics.into_iter().flat_map(|resource| resource.scope_metrics);
    for metric in scopes.flat_map(|scope| scope.metrics) {
        collector.metrics.lock().insert(metric.name, metric.data.unwrap());
    }
    StatusCode::OK
}

fn text(attributes: &[KeyValue], key: &str) -> Option<String> {
    let found = attributes.iter().find(|attribute| attribute.key == key)?;
    match found.value.as_ref()?.value.as_ref()? {
        Any::StringValue(text) => Some(text.clone()),
        Any::IntValue(number) => Some(number.to_string()),
        other => Some(format!("{other:?}")),
    }
}

async fn thinking(script: Vec<Say>, collector: &Collector, more: &str) -> Thinking {
    let world = World::start(script).await;
    let agent = thinker(&world, "");
    exporting(world, agent, collector, more).await
}

async fn exporting(world: World, agent: Definition, collector: &Collector, more: &str) -> Thinking {
    let otlp = format!("endpoint = \"{}\"\ninterval = \"1s\"\n{more}", collector.address);
    let thinking = Thinking::with_settings(world, vec![agent], |settings| {
        settings.telemetry.otlp = toml::from_str(&otlp).unwrap();
    })
    .await;
    // The export begins with what happens from now on.
    let client = thinking.db.client().await;
    soon("the beginning of the export", async {
        let begun = "select from convoke.trace_export, convoke.task_defaults where traced_percent = $1";
        let percent: i16 = if more.contains("percent = 0") { 0 } else { 100 };
        while client.query(begun, &[&percent]).await.unwrap().is_empty() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await;
    thinking
}

/// A task that is requested by SQL.
async fn requested(thinking: &Thinking, trace: Option<&str>) -> TaskId {
    let request = "select convoke.request_task('think.it', '{\"q\": \"topsecret\"}', '{think}', 'demo', traceparent => $1)";
    let client = thinking.db.client().await;
    let id: uuid::Uuid = client.query_one(request, &[&trace]).await.unwrap().get(0);
    TaskId::from(id)
}

#[tokio::test]
async fn trace_of_an_sql_request_is_one_tree_through_award_steps_and_tools_to_the_result() {
    let collector = Collector::start(0).await;
    let args = json!({ "what": "topsecret" });
    let script = vec![Say::Calls(vec![("look", args.clone()), ("pay", args)]), finish(json!("topsecret"))];
    let thinking = thinking(script, &collector, "percent = 0").await;
    let id = requested(&thinking, Some(TRACE)).await;
    thinking.in_state(id, "completed").await;
    let trace: TraceContext = TRACE.parse().unwrap();
    let spans = collector.trace_of(trace, id).await;

    // One tree: everything hangs below the task, and the task below the span of the request.
    let task = trace.task(id).span_id();
    assert_eq!(
        (spans[&task].name.as_str(), number(&spans[&task].parent_span_id)),
        ("task think.it", trace.span_id())
    );
    let attempts: Vec<u64> =
        spans.iter().filter(|(_, span)| number(&span.parent_span_id) == task).map(|(id, _)| *id).collect();
    assert_eq!(attempts.len(), 1);
    assert_eq!(spans[&attempts[0]].name, "invoke_agent thinker");
    let steps = |seq| &spans[&trace.step(id, 1, seq).span_id()];
    let names: Vec<&str> = (2..=6).map(|seq| steps(seq).name.as_str()).collect();
    assert_eq!(names, ["chat m", "execute_tool look", "execute_tool pay", "chat m", "execute_tool finish"]);
    assert!((2..=6).all(|seq| number(&steps(seq).parent_span_id) == attempts[0]));
    assert_eq!(spans.len(), 7);
    assert!(spans.values().all(|span| span.start_time_unix_nano <= span.end_time_unix_nano));

    // What happened to the task, and what the endpoint and the tools were told.
    let events: BTreeSet<&str> = spans[&task].events.iter().map(|event| event.name.as_str()).collect();
    assert!(
        ["requested", "awarded", "started", "finished"].iter().all(|name| events.contains(name)),
        "{events:?}"
    );
    for (_, told) in thinking.world.traces() {
        let told: TraceContext = told.unwrap().parse().unwrap();
        assert!(spans.contains_key(&told.span_id()) && told.trace_id() == trace.trace_id());
    }
    let chat = &steps(2).attributes;
    for (key, value) in [
        ("gen_ai.operation.name", "chat"),
        ("gen_ai.provider.name", "127.0.0.1"),
        ("gen_ai.request.model", "m"),
        ("gen_ai.response.model", "m-1"),
        ("gen_ai.usage.input_tokens", "100"),
        ("gen_ai.usage.output_tokens", "10"),
        ("convoke.seq", "2"),
    ] {
        assert_eq!(text(chat, key).as_deref(), Some(value), "{key}");
    }
    assert_eq!(text(&steps(4).attributes, "gen_ai.tool.name").as_deref(), Some("pay"));
    assert_eq!(text(&steps(4).attributes, "convoke.effect").as_deref(), Some("keyed"));
    assert_eq!(text(&spans[&task].attributes, "convoke.task_id"), Some(id.to_string()));
    // No input, argument, result or answer of a tool leaves.
    let sent = String::from_utf8_lossy(&collector.raw.lock()).into_owned();
    assert!(!sent.contains("topsecret") && !sent.contains("answer of"), "{sent}");
    thinking.stop().await;
}

/// The names from the root of the tree down to this span, and the span that the root hangs below.
fn path(spans: &BTreeMap<u64, Span>, id: u64) -> (u64, Vec<&str>) {
    let (mut id, mut names) = (id, Vec::new());
    while let Some(span) = spans.get(&id) {
        names.push(span.name.as_str());
        id = number(&span.parent_span_id);
        assert!(names.len() <= spans.len(), "a circle");
    }
    names.reverse();
    (id, names)
}

#[tokio::test]
async fn trace_of_an_insert_is_one_tree_through_wake_award_steps_and_tools_to_the_result() {
    let collector = Collector::start(0).await;
    let calls =
        vec![("look", json!({})), ("trace", json!({})), ("note_down", json!({ "words": "topsecret" }))];
    let world = World::start(vec![Say::Calls(calls), finish(json!("topsecret"))]).await;
    let agent = definition(&woken(&world));
    let thinking = exporting(world, agent, &collector, "percent = 100").await;
    // A program inserts a row, within a span of its own, and the row has its context.
    let id = woken_by(&thinking, Some(TRACE)).await;
    let ended = thinking.in_state(id, "completed").await;
    assert_eq!(ended.result, Some(json!("topsecret")));
    let trace: TraceContext = TRACE.parse().unwrap();
    let spans = collector.trace_of(trace, id).await;
    let names = |seq| path(&spans, trace.step(id, 1, seq).span_id());
    for (seq, step) in [
        (2, "chat m"),
        (3, "execute_tool look"),
        (4, "execute_tool trace"),
        (5, "execute_tool note_down"),
        (6, "chat m"),
        (7, "execute_tool finish"),
    ] {
        let expected = vec!["task think.it", "invoke_agent thinker", step];
        assert_eq!(names(seq), (trace.span_id(), expected), "below the span of the insert");
    }
    assert_eq!(spans.len(), 8, "the task, its award and its steps, and nothing beside the tree");

    let whole = &spans[&trace.task(id).span_id()];
    for (key, value) in [("convoke.trigger", "wake:thinker#0"), ("convoke.state", "completed")] {
        assert_eq!(text(&whole.attributes, key).as_deref(), Some(value), "{key}");
    }
    let events: Vec<&str> = whole.events.iter().map(|event| event.name.as_str()).collect();
    let places = ["requested", "awarded", "started", "finished"]
        .map(|name| events.iter().position(|event| *event == name).unwrap_or_else(|| panic!("{events:?}")));
    assert!(places.is_sorted(), "{events:?}");
    // The wake is recorded once, with the task whose span this is.
    let client = thinking.db.client().await;
    let woken = "select trigger from convoke.wakes where task_id = $1";
    let row = client.query_one(woken, &[&id.as_uuid()]).await.unwrap();
    assert_eq!(row.get::<_, &str>(0), "thinker#0");
    // The model, the service and the command were told spans of the same tree.
    let told = thinking.world.traces().into_iter().map(|(_, told)| told.unwrap());
    let command = thinking.steps(id).await[3]["result"].as_str().unwrap().trim().to_owned();
    for told in told.chain([command]) {
        let told: TraceContext = told.parse().unwrap();
        assert!(told.trace_id() == trace.trace_id() && spans.contains_key(&told.span_id()), "{told}");
    }
    let sent = String::from_utf8_lossy(&collector.raw.lock()).into_owned();
    assert!(!sent.contains("topsecret"), "{sent}");

    // A row without a trace begins one, and the task of its wake is the root.
    let id = woken_by(&thinking, None).await;
    thinking.in_state(id, "completed").await;
    let own = TraceContext::of_task(id);
    let spans = collector.trace_of(own, id).await;
    let expected = vec!["task think.it", "invoke_agent thinker", "execute_tool finish"];
    assert_eq!(path(&spans, own.step(id, 1, 7).span_id()), (0, expected));
    assert_eq!(text(&spans[&own.span_id()].attributes, "convoke.trigger").as_deref(), Some("wake:thinker#0"));
    thinking.stop().await;
}

#[tokio::test]
async fn traces_begin_with_tasks_that_have_none_and_those_that_nobody_records_are_not_sent() {
    let collector = Collector::start(0).await;
    let script = vec![call("look", json!({ "what": "an argument" })), finish(json!(1))];
    let thinking = thinking(script, &collector, "content = true").await;
    let unrecorded = requested(&thinking, Some(&TRACE.replace("-01", "-00"))).await;
    thinking.in_state(unrecorded, "completed").await;
    let id = requested(&thinking, None).await;
    thinking.in_state(id, "completed").await;
    let own = TraceContext::of_task(id);
    let spans = collector.trace_of(own, id).await;
    assert_eq!((spans.len(), number(&spans[&own.span_id()].parent_span_id)), (6, 0), "it begins the trace");
    let look = &spans[&own.step(id, 1, 3).span_id()].attributes;
    assert_eq!(text(look, "gen_ai.tool.call.arguments").as_deref(), Some("{\"what\":\"an argument\"}"));
    assert_eq!(text(look, "gen_ai.tool.call.result").as_deref(), Some("answer of look"));
    assert!(collector.of(TRACE.parse::<TraceContext>().unwrap().trace_id()).is_empty());
    thinking.stop().await;
}

#[tokio::test]
async fn collector_that_is_away_delays_nothing_but_its_own_spans() {
    let collector = Collector::start(2).await;
    let thinking = thinking(vec![finish(json!(1))], &collector, "").await;
    let mut ids = Vec::new();
    for _ in 0..3 {
        let id = requested(&thinking, None).await;
        thinking.in_state(id, "completed").await;
        ids.push(id);
    }
    for id in ids {
        let spans = collector.trace_of(TraceContext::of_task(id), id).await;
        assert_eq!(spans.len(), 4, "the task, its attempt, a question and its call");
    }
    let url = format!("http://{}/metrics", thinking.running.parts.addr);
    let registry = reqwest::get(url).await.unwrap().text().await.unwrap();
    let failures = registry.lines().find_map(|line| line.strip_prefix("convoke_otlp_failures_total "));
    assert!(failures.unwrap().parse::<u32>().unwrap() >= 2, "{failures:?}");
    thinking.stop().await;
}

#[tokio::test]
async fn metrics_have_the_durations_and_the_tokens() {
    let collector = Collector::start(0).await;
    let thinking = thinking(vec![call("look", json!({})), finish(json!(1))], &collector, "").await;
    let id = requested(&thinking, None).await;
    thinking.in_state(id, "completed").await;
    let sum = |name: &str| match collector.metrics.lock().get(name) {
        Some(Data::Sum(sum)) => format!("{:?}", sum.data_points.first().unwrap().value.as_ref().unwrap()),
        _ => String::new(),
    };
    let count = |name: &str| match collector.metrics.lock().get(name) {
        Some(Data::Histogram(histogram)) => histogram.data_points.iter().map(|point| point.count).sum(),
        _ => 0,
    };
    soon("the metrics", async {
        while sum("gen_ai.client.inference.usage.input_tokens") != "AsInt(200)"
            || sum("gen_ai.client.inference.usage.output_tokens") != "AsInt(20)"
            || count("gen_ai.client.inference.duration") != 2
            || count("gen_ai.execute_tool.duration") != 2
            || count("gen_ai.invoke_agent.duration") != 1
        {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    })
    .await;
    thinking.stop().await;
}
