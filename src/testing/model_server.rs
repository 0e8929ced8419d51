//! An endpoint of chat completions that gives the answers of a script.
use super::{
    Reply, Script, StreamEnd,
    reply::{Kind, Message},
};
use crate::scope::{OnExit, Scope};
use axum::{
    Router,
    body::{Body, Bytes},
    extract::{DefaultBodyLimit, State},
    http::{HeaderMap, StatusCode},
    response::{IntoResponse, Response},
    routing::post,
    serve::ListenerExt,
};
use futures_util::{StreamExt, stream};
use parking_lot::Mutex;
use serde_json::{Value, json};
use std::{
    future::IntoFuture,
    io,
    net::{Ipv4Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};
use tokio::{net::TcpListener, sync::watch, time::Instant};

/// Largest request that is read.
const REQUEST_BYTES_MAX: usize = 64 << 20;

/// A scripted model behind an endpoint like OpenAI's, on loopback. It serves until it is dropped.
#[derive(Debug)]
pub struct ModelServer {
    addr: SocketAddr,
    endpoint: Arc<Endpoint>,
    scope: Scope,
}

/// A request as the endpoint received it.
#[derive(Clone, Debug)]
pub struct ModelRequest {
    /// Its headers.
    pub headers: HeaderMap,
    /// Its body.
    pub body: Bytes,
    /// Its body as JSON; null if it is none.
    pub json: Value,
    /// How many messages of the model it has.
    pub turn: usize,
    /// The time from the request to the first byte of the answer. `None` while it is not answered.
    pub answered_after: Option<Duration>,
}

#[derive(Debug)]
struct Endpoint {
    script: Mutex<Script>,
    requests: Mutex<Vec<ModelRequest>>,
    /// Requests for which the script had no reply.
    unexpected: Mutex<Vec<String>>,
    /// How many requests have come.
    asked: watch::Sender<usize>,
    /// How many connections were closed while the client waited.
    closed: watch::Sender<usize>,
}

impl ModelServer {
    /// Starts an endpoint with this script on a free port of 127.0.0.1.
    ///
    /// # Errors
    /// A mistake of the script (`InvalidInput`), or a failure to listen.
    pub async fn start(script: impl Into<Script>) -> io::Result<Self> {
        let script = checked(script)?;
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let addr = listener.local_addr()?;
        let endpoint = Arc::new(Endpoint {
            script: Mutex::new(script),
            requests: Mutex::default(),
            unexpected: Mutex::default(),
            asked: watch::Sender::new(0),
            closed: watch::Sender::new(0),
        });
        let routes = Router::new()
            .route("/v1/chat/completions", post(complete))
            .layer(DefaultBodyLimit::max(REQUEST_BYTES_MAX))
            .with_state(endpoint.clone());
        let scope = Scope::default();
        scope.spawn("scripted model", OnExit::Log, |stop| async move {
            // Events of a stream are small, and must not wait for one another.
            let listener = listener.tap_io(|socket| {
                let _ = socket.set_nodelay(true);
            });
            stop.run_until_cancelled(axum::serve(listener, routes).into_future()).await;
            Ok(())
        });
        Ok(Self { addr, endpoint, scope })
    }

    /// The URL for `run.base_url`, like `http://127.0.0.1:4321/v1`.
    #[must_use]
    pub fn base_url(&self) -> String {
        format!("http://{}/v1", self.addr)
    }

    /// Replaces the script. What was not used of the old one is forgotten.
    ///
    /// # Errors
    /// A mistake of the script (`InvalidInput`); the old one stays.
    pub fn follow(&self, script: impl Into<Script>) -> io::Result<()> {
        *self.endpoint.script.lock() = checked(script)?;
        Ok(())
    }

    /// Appends a reply to the script.
    ///
    /// # Errors
    /// A mistake of the reply (`InvalidInput`).
    pub fn push(&self, reply: Reply) -> io::Result<()> {
        self.endpoint.script.lock().push(reply).map_err(invalid)
    }

    /// Copies of the requests so far, in the order of their arrival.
    #[must_use]
    pub fn requests(&self) -> Vec<ModelRequest> {
        self.endpoint.requests.lock().clone()
    }

    /// Waits until so many requests have come in all. Set a limit of time around it.
    pub async fn asked(&self, requests: usize) {
        reached(&self.endpoint.asked, requests).await;
    }

    /// Waits until the client has closed so many connections in all while it waited for an answer, or for more of a
    /// stream that hangs. Set a limit of time around it.
    pub async fn closed(&self, connections: usize) {
        reached(&self.endpoint.closed, connections).await;
    }

    /// What did not go by the script: replies that no request has taken, and requests without a reply.
    #[must_use]
    pub fn deviations(&self) -> Vec<String> {
        let mut found = self.endpoint.unexpected.lock().clone();
        found.extend(self.endpoint.script.lock().unused());
        found
    }

    /// Asserts that every reply was used, and that the script had a reply for every request.
    ///
    /// # Panics
    /// Otherwise, with what did not go by the script.
    #[track_caller]
    pub fn assert_complete(&self) {
        let deviations = self.deviations();
        assert!(deviations.is_empty(), "the model's script was not followed:\n{}", deviations.join("\n"));
    }
}

impl Drop for ModelServer {
    fn drop(&mut self) {
        self.scope.stop();
    }
}

fn checked(script: impl Into<Script>) -> io::Result<Script> {
    let script = script.into();
    match script.mistake() {
        None => Ok(script),
        Some(mistake) => Err(invalid(mistake)),
    }
}

fn invalid(mistake: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, mistake)
}

async fn reached(count: &watch::Sender<usize>, least: usize) {
    // The sender is not dropped while the caller has it, so the wait ends only when the count is reached.
    let _ = count.subscribe().wait_for(|count| *count >= least).await;
}

/// Counts a connection that is closed while the client waits: axum drops the handler or the stream then.
struct Waiting(Option<Arc<Endpoint>>);

impl Waiting {
    fn has_ended(mut self) {
        self.0 = None;
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        if let Some(endpoint) = self.0.take() {
            endpoint.closed.send_modify(|count| *count += 1);
        }
    }
}

async fn complete(State(endpoint): State<Arc<Endpoint>>, headers: HeaderMap, body: Bytes) -> Response {
    let began = Instant::now();
    let waiting = Waiting(Some(endpoint.clone()));
    let (place, reply, asked) = endpoint.record(headers, body);
    let Some(reply) = reply else {
        waiting.has_ended();
        let error =
            json!({ "error": { "message": format!("the script has no reply to request {}", place + 1) } });
        return (StatusCode::BAD_REQUEST, axum::Json(error)).into_response();
    };
    tokio::time::sleep(reply.delay).await;
    let kind = match reply.kind {
        Kind::Message(message) => Message::kind(message, &asked),
        kind => kind,
    };
    let response = match kind {
        Kind::Body(body) => axum::Json(body).into_response(),
        Kind::Status { code, headers, body } => with_status(code, headers, body),
        Kind::Events { events, pause, end } => {
            endpoint.answered(place, began);
            return with_events(events, pause, end, waiting);
        }
        Kind::Hang => std::future::pending().await,
        // Replies in turn are resolved by the script, and a message has become a body or events.
        Kind::InTurn(_) | Kind::Message(_) => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
    };
    waiting.has_ended();
    endpoint.answered(place, began);
    response
}

fn with_status(code: u16, headers: Vec<(String, String)>, body: String) -> Response {
    let mut response = Response::builder().status(code);
    for (name, value) in headers {
        response = response.header(name, value);
    }
    // Status and headers were checked with the script.
    response.body(Body::from(body)).unwrap_or_else(|_| StatusCode::INTERNAL_SERVER_ERROR.into_response())
}

fn with_events(events: Vec<String>, pause: Duration, end: StreamEnd, waiting: Waiting) -> Response {
    let events = stream::iter(events.into_iter().enumerate()).then(move |(place, event)| async move {
        if place > 0 {
            tokio::time::sleep(pause).await;
        }
        io::Result::Ok(Bytes::from(event))
    });
    // Only the client can end a stream that hangs.
    let hanging = if end == StreamEnd::Hang {
        Some(waiting)
    } else {
        waiting.has_ended();
        None
    };
    let last = stream::once(async move {
        let _hanging = hanging;
        match end {
            StreamEnd::Body => Ok(Bytes::new()),
            StreamEnd::Reset => Err(io::Error::other("the script breaks the connection")),
            StreamEnd::Hang => std::future::pending().await,
        }
    });
    ([("content-type", "text/event-stream")], Body::from_stream(events.chain(last))).into_response()
}

impl Endpoint {
    /// Records a request and takes its reply. Returns its place, the reply and the name of the model.
    fn record(&self, headers: HeaderMap, body: Bytes) -> (usize, Option<Reply>, String) {
        let json: Value = serde_json::from_slice(&body).unwrap_or_default();
        let messages = json.get("messages").and_then(Value::as_array);
        let by_model = |message: &&Value| message.get("role").and_then(Value::as_str) == Some("assistant");
        let turn = messages.map_or(0, |messages| messages.iter().filter(by_model).count());
        let model = json.get("model").and_then(Value::as_str).unwrap_or_default().to_owned();
        // One lock for both, so that replies in order are taken in the order of the requests.
        let mut requests = self.requests.lock();
        let place = requests.len();
        let reply = if json.is_object() { self.script.lock().take(turn, &json) } else { None };
        if reply.is_none() {
            let what = format!("request {} of model {model:?}, turn {turn}, had no reply", place + 1);
            self.unexpected.lock().push(what);
        }
        requests.push(ModelRequest { headers, body, json, turn, answered_after: None });
        drop(requests);
        self.asked.send_modify(|count| *count += 1);
        (place, reply, model)
    }

    fn answered(&self, place: usize, began: Instant) {
        if let Some(request) = self.requests.lock().get_mut(place) {
            request.answered_after = Some(began.elapsed());
        }
    }
}
