//! Agents that think: whole runs against a scripted model, real services and a real database.
mod approvals;
mod classes;
mod compaction;
mod costs;
mod crash;
mod failover;
mod fetch;
mod fork;
mod guards;
mod keeper;
pub mod kills;
mod limits;
mod mcp;
mod mcp_attacks;
mod mcp_http;
mod memory;
mod mistakes;
mod money;
mod otlp;
mod parts;
mod research;
mod rules;
mod runs;
mod sql_read;
mod streams;
mod threads;
mod traces;

use crate::{
    agent::definition,
    daemon::{Running, config, fresh, soon},
    support::TestDb,
};
use axum::{
    Router,
    body::Bytes,
    extract::{Path, State},
    http::{HeaderMap, StatusCode},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use convoke::{
    agent::Definition,
    id::{OrgId, TaskId},
    task::{Request, Task},
};
use futures_util::StreamExt;
use parking_lot::Mutex;
use serde_json::{Value, json};
use std::{
    collections::{BTreeMap, HashSet},
    sync::Arc,
};
use tokio::sync::Notify;

/// What the model answers to one question.
#[derive(Clone)]
pub enum Say {
    /// Calls these tools.
    Calls(Vec<(&'static str, Value)>),
    /// A text.
    Text(String),
    /// This body of the endpoint.
    Raw(Value),
    /// No answer.
    Hang,
    /// This status.
    Status(u16),
    /// Status 429, and after how many seconds to try again.
    Limited(u32),
    /// A stream of these texts, and how it ends.
    Stream(Vec<String>, StreamEnd),
    /// One after the other, if the same question is asked again; the last one is repeated.
    InTurn(Vec<Say>),
}

/// How a stream ends after its texts.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum StreamEnd {
    /// The body ends.
    Body,
    /// The connection breaks.
    Reset,
    /// Nothing more comes.
    Hang,
}

/// The events of a streamed answer that calls a tool, in three parts, without an end.
pub fn streamed_call(name: &str, args: &Value) -> Vec<String> {
    let args = args.to_string();
    let (first, second) = args.split_at(args.len() / 2);
    let part = |call: Value| {
        let delta = json!({ "role": "assistant", "tool_calls": [call] });
        format!("data: {}\n\n", json!({ "model": "m-1", "choices": [{ "index": 0, "delta": delta }] }))
    };
    vec![
        part(json!({ "index": 0, "id": "call_0", "function": { "name": name, "arguments": "" } })),
        part(json!({ "index": 0, "function": { "arguments": first } })),
        part(json!({ "index": 0, "function": { "arguments": second } })),
    ]
}

/// The events that end a streamed answer.
pub fn stream_end() -> Vec<String> {
    let usage = json!({ "prompt_tokens": 100, "completion_tokens": 10 });
    let finish = json!({ "choices": [{ "index": 0, "delta": {}, "finish_reason": "tool_calls" }] });
    let usage = json!({ "choices": [], "usage": usage });
    vec![format!("data: {finish}\n\n"), format!("data: {usage}\n\n"), "data: [DONE]\n\n".to_owned()]
}

pub fn call(name: &'static str, args: Value) -> Say {
    Say::Calls(vec![(name, args)])
}

pub fn finish(result: Value) -> Say {
    call("finish", json!({ "result": result }))
}

/// What was asked, `model` or a service, and the header `traceparent` of the request.
type Trace = (String, Option<String>);

/// A model endpoint whose answer depends only on the question, so that a question that is asked again gets the same
/// answer: the script's entry is the number of notes and answers of the model before it. And services that count.
#[derive(Clone)]
pub struct World {
    pub address: String,
    script: Arc<Mutex<Vec<Say>>>,
    /// Bodies of the questions, by the entry of the script.
    asked: Arc<Mutex<BTreeMap<usize, Vec<Bytes>>>>,
    /// Calls of each service, and the keys of those.
    calls: Arc<Mutex<BTreeMap<String, Vec<String>>>>,
    /// The status of each service's answers, if it is not 200.
    pub status: Arc<Mutex<BTreeMap<String, u16>>>,
    /// How many of the next answers of a service are 502.
    pub fails: Arc<Mutex<BTreeMap<String, u32>>>,
    /// Of each request.
    traces: Arc<Mutex<Vec<Trace>>>,
    /// The header `x-request-id` of the model's answers.
    pub request_id: Arc<Mutex<Option<String>>>,
    /// A question that hangs was dropped by the daemon.
    pub dropped: Arc<Notify>,
}

impl World {
    pub async fn start(script: Vec<Say>) -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let world = Self {
            address: format!("http://{}", listener.local_addr().unwrap()),
            script: Arc::new(Mutex::new(script)),
            asked: Arc::default(),
            calls: Arc::default(),
            status: Arc::default(),
            fails: Arc::default(),
            traces: Arc::default(),
            request_id: Arc::default(),
            dropped: Arc::default(),
        };
        let router = Router::new()
            .route("/v1/chat/completions", post(model))
            .route("/service/{name}", post(service))
            .route("/happened/{name}", post(happened))
            .route("/page", get(async || ([("content-type", "text/html")], "<p>news of <b>today</b>")))
            .with_state(world.clone());
        #[expect(clippy::disallowed_methods, reason = "it ends with the test's runtime")]
        tokio::spawn(async move { axum::serve(listener, router).await });
        world
    }

    /// The same with another script.
    pub fn says(self, script: Vec<Say>) -> Self {
        *self.script.lock() = script;
        self
    }

    /// The bodies of the questions of each entry.
    pub fn asked(&self) -> BTreeMap<usize, Vec<Bytes>> {
        self.asked.lock().clone()
    }

    /// The question of an entry as JSON.
    pub fn question(&self, entry: usize) -> Value {
        serde_json::from_slice(&self.asked()[&entry][0]).unwrap()
    }

    pub fn questions(&self) -> usize {
        self.asked.lock().values().map(Vec::len).sum()
    }

    /// The header `traceparent` of each request so far.
    pub fn traces(&self) -> Vec<(String, Option<String>)> {
        self.traces.lock().clone()
    }

    fn keep_trace(&self, what: &str, headers: &HeaderMap) {
        let trace = headers.get("traceparent").map(|value| value.to_str().unwrap().to_owned());
        self.traces.lock().push((what.to_owned(), trace));
    }

    pub fn calls(&self, service: &str) -> usize {
        self.calls.lock().get(service).map_or(0, Vec::len)
    }

    pub fn keys(&self, service: &str) -> HashSet<String> {
        self.calls.lock().get(service).cloned().unwrap_or_default().into_iter().collect()
    }
}

/// Tells that the daemon has closed the connection: axum drops the handler then.
struct Dropped(Arc<Notify>);

impl Drop for Dropped {
    fn drop(&mut self) {
        self.0.notify_one();
    }
}

async fn model(State(world): State<World>, headers: HeaderMap, body: Bytes) -> Response {
    world.keep_trace("model", &headers);
    let question: Value = serde_json::from_slice(&body).unwrap();
    let messages = question["messages"].as_array().unwrap();
    let said = |message: &&Value| message["role"] == "assistant";
    let entry = messages.iter().filter(said).count();
    let again = {
        let mut asked = world.asked.lock();
        let bodies = asked.entry(entry).or_default();
        bodies.push(body);
        bodies.len() - 1
    };
    let say = {
        let script = world.script.lock();
        script.get(entry).unwrap_or_else(|| script.last().unwrap()).clone()
    };
    let say = match say {
        Say::InTurn(says) => says[again.min(says.len() - 1)].clone(),
        say => say,
    };
    let message = match say {
        Say::InTurn(_) => unreachable!(),
        Say::Stream(texts, end) => return stream(texts, end, &world),
        Say::Hang => {
            let _dropped = Dropped(world.dropped.clone());
            std::future::pending::<()>().await;
            unreachable!()
        }
        Say::Raw(body) => return axum::Json(body).into_response(),
        Say::Status(status) => return StatusCode::from_u16(status).unwrap().into_response(),
        Say::Limited(seconds) => {
            let headers = [("retry-after", seconds.to_string())];
            return (StatusCode::TOO_MANY_REQUESTS, headers, "slow down").into_response();
        }
        Say::Text(text) => json!({ "role": "assistant", "content": text }),
        Say::Calls(calls) => {
            let one = |(place, (name, args)): (usize, &(&str, Value))| {
                json!({ "index": place, "id": "call_0", "type": "function",
                    "function": { "name": name, "arguments": args.to_string() } })
            };
            let calls: Vec<Value> = calls.iter().enumerate().map(one).collect();
            json!({ "role": "assistant", "content": null, "reasoning_content": "hm", "tool_calls": calls })
        }
    };
    let usage = json!({ "prompt_tokens": 100, "completion_tokens": 10, "total_tokens": 110 });
    let answer = json!({ "model": "m-1", "usage": usage,
        "choices": [{ "index": 0, "finish_reason": "stop", "message": message }] });
    let mut response = axum::Json(answer).into_response();
    if let Some(id) = &*world.request_id.lock() {
        response.headers_mut().insert("x-request-id", id.parse().unwrap());
    }
    response
}

fn stream(texts: Vec<String>, end: StreamEnd, world: &World) -> Response {
    let dropped = (end == StreamEnd::Hang).then(|| Dropped(world.dropped.clone()));
    let last = futures_util::stream::once(async move {
        let _dropped = dropped;
        match end {
            StreamEnd::Body => Ok(Bytes::new()),
            StreamEnd::Reset => Err(std::io::Error::other("reset")),
            StreamEnd::Hang => std::future::pending().await,
        }
    });
    let texts = futures_util::stream::iter(texts.into_iter().map(|text| Ok(Bytes::from(text))));
    let body = axum::body::Body::from_stream(texts.chain(last));
    ([("content-type", "text/event-stream")], body).into_response()
}

async fn service(State(world): State<World>, Path(name): Path<String>, headers: HeaderMap) -> Response {
    world.keep_trace(&name, &headers);
    let key = headers["idempotency-key"].to_str().unwrap().to_owned();
    world.calls.lock().entry(name.clone()).or_default().push(key);
    let fails = world.fails.lock().get_mut(&name).is_some_and(|left| {
        let was = *left;
        *left = was.saturating_sub(1);
        was > 0
    });
    let status = if fails { 502 } else { world.status.lock().get(&name).copied().unwrap_or(200) };
    (StatusCode::from_u16(status).unwrap(), format!("answer of {name}")).into_response()
}

/// Whether the service was called with the key in the body.
async fn happened(State(world): State<World>, Path(name): Path<String>, body: Bytes) -> Response {
    let asked: Value = serde_json::from_slice(&body).unwrap();
    let happened = world.keys(&name).contains(asked["key"].as_str().unwrap());
    let status = world.status.lock().get("happened").copied().unwrap_or(200);
    let answer = json!({ "happened": happened, "result": format!("as it was for {name}") });
    (StatusCode::from_u16(status).unwrap(), answer.to_string()).into_response()
}

/// The role of the tool `note_down`, and tables, which must be there before the daemon publishes them. Roles belong to
/// the whole server, so several tests create it, also at once.
pub const ROLE: &str = "do $$ begin
        create role think_writer nologin;
    exception when duplicate_object or unique_violation then null;
    end $$;
    create table public.traced (id bigint generated always as identity primary key, trace text);
    create table public.notes (id bigint generated always as identity, words text not null, at timestamptz default now());
    grant select, insert on public.notes to think_writer";

/// An agent with a tool of every class of effects.
pub fn thinker(world: &World, more: &str) -> Definition {
    definition(&text(world, more))
}

pub fn text(world: &World, more: &str) -> String {
    let service = |name: &str, effect: &str| {
        format!(
            "[[tool]]\nname = \"{name}\"\nkind = \"http\"\nurl = \"{}/service/{name}\"\neffect = \"{effect}\"\n\
             timeout = \"2s\"\nparameters = {{ type = \"object\" }}\n",
            world.address
        )
    };
    format!(
        "id = \"thinker\"\norg = \"demo\"\ncapabilities = [\"think\"]\n\
         [run]\nkind = \"llm\"\nmodel = \"m\"\nbase_url = \"{}/v1\"\ninstructions = \"Be brief.\"\n\
         tools = [\"look\", \"pay\", \"send\", \"note_down\", \"ask\"]\n{more}\n{}{}{}\
         [[tool]]\nname = \"note_down\"\nkind = \"sql\"\nrole = \"think_writer\"\n\
         statement = \"insert into notes (words) values (:words) returning id, words\"\n\
         parameters = {{ type = \"object\", required = [\"words\"], properties = {{ words = {{ type = \"string\" }} }} }}\n",
        world.address,
        service("look", "read"),
        service("pay", "keyed"),
        service("send", "once"),
    )
}

/// A daemon with one thinking agent.
pub struct Thinking {
    pub running: Running,
    pub world: World,
    pub db: TestDb,
    _folder: tempfile::TempDir,
}

impl Thinking {
    pub async fn start(script: Vec<Say>, more: &str) -> Self {
        let world = World::start(script).await;
        let definition = thinker(&world, more);
        Self::with(world, vec![definition]).await
    }

    pub async fn with(world: World, definitions: Vec<Definition>) -> Self {
        Self::with_settings(world, definitions, |_| {}).await
    }

    /// With changed settings of the daemon.
    pub async fn with_settings(
        world: World,
        definitions: Vec<Definition>,
        change: impl FnOnce(&mut convoke::config::Config),
    ) -> Self {
        let (db, folder) = fresh().await;
        db.client().await.batch_execute(ROLE).await.unwrap();
        let mut settings = config(&db, folder.path());
        change(&mut settings);
        let running = Running::start_with(settings, definitions).await;
        Self { running, world, db, _folder: folder }
    }

    pub async fn request(&self, more: Value) -> TaskId {
        let mut request = json!({ "kind": "think.it", "requires": ["think"], "input": { "q": 1 }, "policy": { "attempts_max": 1 } });
        request.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let request: Request = serde_json::from_value(request).unwrap();
        let org = OrgId::try_from("demo").unwrap();
        self.running.parts.tasks.request(&org, "test", request).await.unwrap().task.id
    }

    /// The task when it is in this state.
    pub async fn in_state(&self, id: TaskId, state: &str) -> Task {
        let tasks = &self.running.parts.tasks;
        soon(state, async {
            loop {
                let mut changed = tasks.changed();
                let task = tasks.get(id).await.unwrap();
                if task.state.as_str() == state {
                    return task;
                }
                assert!(!task.state.is_final(), "not {state}: {task:?}");
                let _ = tokio::time::timeout(std::time::Duration::from_millis(200), changed.changed()).await;
            }
        })
        .await
    }

    /// The steps of the latest run, with contents.
    pub async fn steps(&self, id: TaskId) -> Vec<Value> {
        let runs = self.running.parts.tasks.steps(id, true).await.unwrap();
        runs.last().unwrap()["steps"].as_array().unwrap().clone()
    }

    pub async fn stop(self) {
        self.running.stop().await;
    }
}
