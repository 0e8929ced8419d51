//! Spans and metrics of tasks that have ended. Pure.
use crate::{
    id::TraceContext,
    task::{TracedAttempt, TracedStep, TracedTask, TracedWork},
    telemetry::{Instruments, genai, scope},
};
use chrono::{DateTime, Utc};
use opentelemetry::{
    Array, KeyValue, StringValue, Value,
    trace::{Event, SpanContext, SpanKind, Status, TraceFlags, TraceState},
};
use opentelemetry_sdk::trace::{SpanData, SpanEvents, SpanLinks};
use std::time::SystemTime;

/// The spans of a task: itself, its attempts and their steps.
pub(super) fn of_task(task: &TracedTask) -> Vec<SpanData> {
    let mut attributes = vec![
        of("convoke.task_id", task.id.to_string()),
        of("convoke.org", task.org.clone()),
        of("convoke.kind", task.kind.clone()),
        of("convoke.state", task.state.clone()),
    ];
    attributes.extend(task.trigger.clone().map(|trigger| of("convoke.trigger", trigger)));
    let whole = Span {
        own: task.trace.task(task.id),
        parent: task.trace,
        is_remote: true,
        kind: SpanKind::Internal,
        name: format!("task {}", task.kind),
        began: task.began,
        ended: task.ended,
        error: (task.state == "failed").then(|| task.reason.clone().unwrap_or_else(|| task.state.clone())),
        attributes,
    };
    let mut whole = whole.data();
    whole.events = events(task);
    let attempts = task.attempts.iter().map(|attempt| attempt_span(task, attempt).data());
    let steps = task.steps.iter().map(|step| step_span(task, step).data());
    std::iter::once(whole).chain(attempts).chain(steps).collect()
}

/// Counts a task in the metrics.
pub(super) fn measure(task: &TracedTask, instruments: &Instruments) {
    for attempt in &task.attempts {
        let of_agent = [of(genai::AGENT_NAME, attempt.agent.clone())];
        instruments.invoke_agent.record(seconds(attempt.began, attempt.ended), &of_agent);
    }
    for step in &task.steps {
        let took = seconds(step.began, step.ended);
        match &step.what {
            TracedWork::Call { name, .. } => {
                instruments.execute_tool.record(took, &[of(genai::TOOL_NAME, name.clone())]);
            }
            TracedWork::Question { provider, model, tokens, .. } => {
                let mut labels = vec![
                    of(genai::OPERATION_NAME, genai::CHAT.to_owned()),
                    of(genai::PROVIDER_NAME, provider.clone()),
                    of(genai::REQUEST_MODEL, model.clone()),
                ];
                instruments.inference.record(took, &labels);
                // 0 for a question without usage, as the conventions demand; its kind of tokens is not known.
                let modality = if tokens.is_some() { "text" } else { "unknown" };
                labels.push(of(genai::TOKEN_MODALITY, modality.to_owned()));
                let parts = tokens.unwrap_or_default();
                let counts = [parts.input, parts.output, parts.cached, parts.written, parts.reasoning];
                for (counter, count) in instruments.tokens.iter().zip(counts) {
                    counter.add(count, &labels);
                }
            }
        }
    }
}

/// A span that is about to become data.
struct Span {
    own: TraceContext,
    parent: TraceContext,
    /// Whether the span before it is that of another program.
    is_remote: bool,
    kind: SpanKind,
    name: String,
    began: DateTime<Utc>,
    ended: DateTime<Utc>,
    /// `None` if it ended well.
    error: Option<String>,
    attributes: Vec<KeyValue>,
}

impl Span {
    fn data(self) -> SpanData {
        let Self { own, parent, is_remote, kind, name, began, ended, error, mut attributes } = self;
        // A trace that begins with the task has no span before it.
        let has_parent = own.span_id() != parent.span_id();
        attributes.extend(error.clone().map(|error| of(genai::ERROR_TYPE, error)));
        let (trace, span) = (own.trace_id().into(), own.span_id().into());
        SpanData {
            span_context: SpanContext::new(trace, span, TraceFlags::SAMPLED, false, TraceState::default()),
            parent_span_id: if has_parent { parent.span_id() } else { 0 }.into(),
            parent_span_is_remote: has_parent && is_remote,
            span_kind: kind,
            name: name.into(),
            start_time: began.into(),
            // Two clocks may have written them.
            end_time: ended.max(began).into(),
            attributes,
            dropped_attributes_count: 0,
            events: SpanEvents::default(),
            links: SpanLinks::default(),
            status: error.map_or(Status::Unset, Status::error),
            instrumentation_scope: scope(),
        }
    }
}

fn events(task: &TracedTask) -> SpanEvents {
    let event = |event: &crate::task::TracedEvent| {
        let agent = event.agent.clone().map(|agent| of(genai::AGENT_NAME, agent));
        Event::new(event.kind.clone(), SystemTime::from(event.at), agent.into_iter().collect(), 0)
    };
    let mut events = SpanEvents::default();
    events.events = task.events.iter().map(event).collect();
    events
}

fn attempt_span(task: &TracedTask, attempt: &TracedAttempt) -> Span {
    let ended_well = matches!(attempt.state.as_str(), "finished" | "waiting" | "released");
    Span {
        own: task.trace.assignment(attempt.id),
        parent: task.trace.task(task.id),
        is_remote: false,
        kind: SpanKind::Internal,
        name: format!("{} {}", genai::INVOKE_AGENT, attempt.agent),
        began: attempt.began,
        ended: attempt.ended,
        error: (!ended_well).then(|| attempt.state.clone()),
        attributes: vec![
            of(genai::OPERATION_NAME, genai::INVOKE_AGENT.to_owned()),
            of(genai::AGENT_NAME, attempt.agent.clone()),
            of("convoke.task_id", task.id.to_string()),
            of("convoke.assignment_state", attempt.state.clone()),
        ],
    }
}

fn step_span(task: &TracedTask, step: &TracedStep) -> Span {
    let (kind, name, mut attributes) = match &step.what {
        TracedWork::Question { model, .. } => {
            (SpanKind::Client, format!("{} {model}", genai::CHAT), question_attributes(&step.what))
        }
        TracedWork::Call { name, .. } => {
            (SpanKind::Internal, format!("{} {name}", genai::EXECUTE_TOOL), call_attributes(&step.what))
        }
    };
    attributes.extend([
        of(genai::CONVERSATION_ID, format!("{}/{}", task.id, step.run)),
        of("convoke.task_id", task.id.to_string()),
        KeyValue::new("convoke.run", i64::from(step.run)),
        KeyValue::new("convoke.seq", i64::from(step.seq)),
    ]);
    Span {
        own: task.trace.step(task.id, step.run, step.seq),
        parent: task.trace.assignment(step.assignment),
        is_remote: false,
        kind,
        name,
        began: step.began,
        ended: step.ended,
        error: (step.state != "done").then(|| step.state.clone()),
        attributes,
    }
}

fn question_attributes(what: &TracedWork) -> Vec<KeyValue> {
    let TracedWork::Question { provider, model, said, finish, tokens, microdollars, answer } = what else {
        return Vec::new();
    };
    let mut attributes = vec![
        of(genai::OPERATION_NAME, genai::CHAT.to_owned()),
        of(genai::PROVIDER_NAME, provider.clone()),
        of(genai::REQUEST_MODEL, model.clone()),
        number("convoke.microdollars", *microdollars),
    ];
    attributes.extend(said.clone().map(|said| of(genai::RESPONSE_MODEL, said)));
    attributes.extend(finish.clone().map(|finish| {
        KeyValue::new(
            genai::RESPONSE_FINISH_REASONS,
            Value::Array(Array::String(vec![StringValue::from(finish)])),
        )
    }));
    if let Some(tokens) = tokens {
        attributes.extend([
            number(genai::USAGE_INPUT, tokens.input),
            number(genai::USAGE_OUTPUT, tokens.output),
            number(genai::USAGE_CACHE_READ, tokens.cached),
            number(genai::USAGE_CACHE_WRITE, tokens.written),
            number(genai::USAGE_REASONING, tokens.reasoning),
        ]);
    }
    attributes.extend(answer.as_ref().map(|answer| of(genai::OUTPUT_MESSAGES, format!("[{answer}]"))));
    attributes
}

fn call_attributes(what: &TracedWork) -> Vec<KeyValue> {
    let TracedWork::Call { name, wire_id, effect, microdollars, args, result } = what else {
        return Vec::new();
    };
    let mut attributes = vec![
        of(genai::OPERATION_NAME, genai::EXECUTE_TOOL.to_owned()),
        of(genai::TOOL_NAME, name.clone()),
        of(genai::TOOL_TYPE, "function".to_owned()),
        of("convoke.effect", effect.clone()),
    ];
    attributes.extend((*microdollars > 0).then(|| number("convoke.microdollars", *microdollars)));
    attributes.extend(wire_id.clone().map(|id| of(genai::TOOL_CALL_ID, id)));
    attributes.extend(args.as_ref().map(|args| of(genai::TOOL_CALL_ARGUMENTS, args.to_string())));
    attributes.extend(result.clone().map(|result| of(genai::TOOL_CALL_RESULT, result)));
    attributes
}

fn of(name: &'static str, value: String) -> KeyValue {
    KeyValue::new(name, value)
}

fn number(name: &'static str, value: u64) -> KeyValue {
    KeyValue::new(name, i64::try_from(value).unwrap_or(i64::MAX))
}

fn seconds(began: DateTime<Utc>, ended: DateTime<Utc>) -> f64 {
    (ended - began).to_std().unwrap_or_default().as_secs_f64()
}
