//! A gateway on a free port without a database, and a websocket client that sees every frame.
pub mod client_process;
mod clients;

use crate::support::{PATIENCE, crypto};
use convoke::{
    access::{self, Access},
    api,
    app::{Edge, serve_http},
    auth::{Keys, MintRequest, Role, mint},
    clock::Clock,
    db::Database,
    gateway::{Config, Deps, Gateway, router},
    hub::{Hub, Room},
    id::Topic,
    presence::Tracker,
    remote::{Audience, Coordination, Identity},
    scope::{OnExit, Scope},
    telemetry::Registry,
};
use futures_util::{SinkExt, StreamExt};
use serde_json::{Value, json};
use std::{net::SocketAddr, time::Duration};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::mpsc,
    time::timeout,
};
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream, connect_async, tungstenite};
pub use tungstenite::Message;

pub const SECRET: &str = "the secret of the realtime tests, long enough";
/// A gateway with its hub and tracker.
pub struct Server {
    pub addr: SocketAddr,
    pub hub: Hub,
    pub tracker: Tracker,
    pub gateway: Gateway,
    pub registry: Registry,
    pub keys: Keys,
    /// Coordination messages from clients.
    pub coordination: mpsc::Receiver<Coordination>,
    scope: Scope,
    http: Scope,
}

/// Settings without delays.
pub fn quick() -> Config {
    Config { handshake_error_delay: Duration::ZERO, join_error_delay: Duration::ZERO, ..Config::default() }
}

impl Server {
    pub async fn start() -> Self {
        Self::with(quick()).await
    }

    pub async fn with(config: Config) -> Self {
        Self::on("127.0.0.1:0".parse().unwrap(), config).await
    }

    pub async fn on(addr: SocketAddr, config: Config) -> Self {
        Self::of(addr, config, &api::Config::default(), |_| Access::default()).await
    }

    /// A server whose private channels follow the policies of a database.
    pub async fn asking(database: &Database, config: access::Config) -> Self {
        let access = |registry: &Registry| Access::new(database, &config, registry).unwrap();
        Self::of("127.0.0.1:0".parse().unwrap(), quick(), &api::Config::default(), access).await
    }

    /// A server with these connection limits.
    pub async fn limited(server: &api::Config, config: Config) -> Self {
        Self::of("127.0.0.1:0".parse().unwrap(), config, server, |_| Access::default()).await
    }

    async fn of(
        addr: SocketAddr,
        config: Config,
        server: &api::Config,
        access: impl FnOnce(&Registry) -> Access,
    ) -> Self {
        let listener = TcpListener::bind(addr).await.unwrap();
        let addr = listener.local_addr().unwrap();
        let (scope, registry) = (Scope::default(), Registry::default());
        let hub = Hub::new(&registry);
        let tracker = Tracker::start(&scope, hub.clone(), &registry);
        let keys = Keys::from_secret(&SECRET.into()).unwrap();
        let (said, coordination) = mpsc::channel(100);
        let deps = Deps {
            keys: keys.clone(),
            access: access(&registry),
            hub: hub.clone(),
            tracker: tracker.clone(),
            clock: Clock::System,
            registry: registry.clone(),
            identity: Identity::new(tracker.clone(), Some(said), Audience::Everybody),
            changes: None,
            streaming: None,
        };
        let gateway = Gateway::new(&scope, config, deps);
        let app = router(&gateway);
        let http = scope.child();
        serve_http(&http, OnExit::Log, listener, app, Edge::new(server, &registry, gateway.memory()));
        Self { addr, hub, tracker, gateway, registry, keys, coordination, scope, http }
    }

    /// Stops everything in the daemon's order and frees the port.
    pub async fn stop(self) {
        self.http.stop();
        self.gateway.stop(PATIENCE).await.unwrap();
        self.http.drain(PATIENCE).await.unwrap();
        self.scope.drain(PATIENCE).await.unwrap();
    }

    pub fn token(&self, role: Role) -> String {
        mint(&self.keys, &MintRequest::new(role), Clock::System.now()).unwrap()
    }

    pub fn anon(&self) -> String {
        self.token(Role::Anon)
    }

    /// A token with exactly these claims.
    pub fn sign(&self, claims: &Value) -> String {
        let key = jsonwebtoken::EncodingKey::from_secret(SECRET.as_bytes());
        jsonwebtoken::encode(&jsonwebtoken::Header::default(), claims, &key).unwrap()
    }

    /// An anon token that expires in `seconds`.
    pub fn ending_in(&self, seconds: i64) -> String {
        self.sign(&json!({"role": "anon", "exp": Clock::System.now().timestamp() + seconds}))
    }

    pub fn url(&self, vsn: &str) -> String {
        format!("ws://{}/realtime/v1/websocket?apikey={}&vsn={vsn}", self.addr, self.anon())
    }

    pub fn http(&self, path: &str) -> String {
        format!("http://{}{path}", self.addr)
    }

    pub async fn v1(&self) -> Socket {
        Socket::open(&self.url("1.0.0"), false).await
    }

    pub async fn v2(&self) -> Socket {
        Socket::open(&self.url("2.0.0"), true).await
    }

    /// A 2.0.0 socket in a public channel.
    pub async fn joined(&self, topic: &str, config: Value) -> Socket {
        let mut socket = self.v2().await;
        socket.join(topic, config).await.ok();
        socket
    }
}

pub fn room(topic: &str) -> Room {
    Room::public(Topic::new(topic).unwrap())
}

/// The status and body of a plain GET with these headers.
pub async fn get(url: &str, headers: &[(&str, &str)]) -> (u16, reqwest::header::HeaderMap, String) {
    let mut request = http().get(url);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let response = request.send().await.unwrap();
    (response.status().as_u16(), response.headers().clone(), response.text().await.unwrap())
}

pub fn http() -> reqwest::Client {
    static ONCE: std::sync::Once = std::sync::Once::new();
    ONCE.call_once(|| {
        crypto();
    });
    reqwest::Client::new()
}

/// The headers of a websocket upgrade, for a plain HTTP request.
pub const UPGRADE: [(&str, &str); 4] = [
    ("connection", "upgrade"),
    ("upgrade", "websocket"),
    ("sec-websocket-version", "13"),
    ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ=="),
];

/// A received frame of either serializer. `join_ref` is null on 1.0.0.
#[derive(Clone, Debug, PartialEq)]
pub struct Got {
    pub join_ref: Value,
    pub reference: Value,
    pub topic: String,
    pub event: String,
    pub payload: Value,
}

impl Got {
    fn read(text: &str, v2: bool) -> Self {
        let value: Value = serde_json::from_str(text).unwrap();
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        let got = if v2 {
            assert_eq!(value.as_array().map(Vec::len), Some(5), "five elements: {value}");
            let [join_ref, reference] = [value[0].clone(), value[1].clone()];
            Self {
                join_ref,
                reference,
                topic: text(&value[2]),
                event: text(&value[3]),
                payload: value[4].clone(),
            }
        } else {
            let keys: Vec<_> = value.as_object().unwrap().keys().map(String::as_str).collect();
            assert_eq!(keys, ["event", "payload", "ref", "topic"], "exactly these: {value}");
            Self {
                join_ref: Value::Null,
                reference: value["ref"].clone(),
                topic: text(&value["topic"]),
                event: text(&value["event"]),
                payload: value["payload"].clone(),
            }
        };
        assert!(got.payload.is_object(), "a payload is never anything else: {got:?}");
        got
    }

    /// Refs, event and payload, which most tests compare.
    pub fn short(&self) -> Value {
        json!([self.join_ref, self.reference, self.event, self.payload])
    }

    #[track_caller]
    pub fn ok(&self) {
        assert_eq!(self.payload["status"], "ok", "{self:?}");
    }

    pub fn reason(&self) -> &str {
        assert_eq!(self.payload["status"], "error", "{self:?}");
        self.payload["response"]["reason"].as_str().unwrap()
    }
}

/// A raw websocket client of the protocol.
pub struct Socket {
    ws: WebSocketStream<MaybeTlsStream<TcpStream>>,
    v2: bool,
    pub refs: u32,
    /// The timeout for a frame.
    pub patience: Duration,
}

impl Socket {
    pub async fn open(url: &str, v2: bool) -> Self {
        let (ws, _) = connect_async(url).await.unwrap();
        Self { ws, v2, refs: 0, patience: PATIENCE }
    }

    pub fn next_ref(&mut self) -> String {
        self.refs += 1;
        self.refs.to_string()
    }

    pub async fn message(&mut self, message: impl Into<Message>) {
        self.ws.send(message.into()).await.unwrap();
    }

    /// As [`Socket::message`], for a socket that the server may have closed.
    pub async fn try_message(&mut self, message: Message) -> Result<(), tungstenite::Error> {
        self.ws.send(message).await
    }

    pub async fn send(
        &mut self,
        join_ref: Value,
        reference: Value,
        topic: &str,
        event: &str,
        payload: Value,
    ) {
        let frame = if self.v2 {
            json!([join_ref, reference, topic, event, payload])
        } else {
            json!({"topic": topic, "event": event, "payload": payload, "ref": reference, "join_ref": join_ref})
        };
        self.message(frame.to_string()).await;
    }

    /// Joins and returns the reply.
    pub async fn join(&mut self, topic: &str, config: Value) -> Got {
        self.join_with(topic, json!({ "config": config })).await
    }

    pub async fn join_with(&mut self, topic: &str, payload: Value) -> Got {
        let own = self.next_ref();
        self.send(json!(own), json!(own), &format!("realtime:{topic}"), "phx_join", payload).await;
        self.next().await
    }

    /// Pushes without a join_ref, which is allowed, and returns the ref.
    pub async fn push(&mut self, topic: &str, event: &str, payload: Value) -> String {
        let own = self.next_ref();
        self.send(Value::Null, json!(own), &format!("realtime:{topic}"), event, payload).await;
        own
    }

    /// Pushes and returns the next frame, which must be the reply.
    pub async fn ask(&mut self, topic: &str, event: &str, payload: Value) -> Got {
        let own = self.push(topic, event, payload).await;
        let got = self.next().await;
        assert_eq!((got.event.as_str(), &got.reference), ("phx_reply", &json!(own)), "{got:?}");
        got
    }

    pub async fn track(&mut self, topic: &str, payload: Value) {
        self.push(topic, "presence", json!({"type": "presence", "event": "track", "payload": payload})).await;
    }

    pub async fn any(&mut self) -> Message {
        loop {
            let next = timeout(self.patience, self.ws.next()).await.expect("no frame came");
            // The websocket library answers pings.
            match next.expect("the socket ended").unwrap() {
                Message::Ping(_) => {}
                message => return message,
            }
        }
    }

    /// The next text frame.
    pub async fn next(&mut self) -> Got {
        match self.any().await {
            Message::Text(text) => Got::read(&text, self.v2),
            other => panic!("not text: {other:?}"),
        }
    }

    /// The next frame with this event. Skips other frames.
    pub async fn until(&mut self, event: &str) -> Got {
        loop {
            let got = self.next().await;
            if got.event == event {
                return got;
            }
        }
    }

    pub async fn binary(&mut self) -> Vec<u8> {
        match self.any().await {
            Message::Binary(bytes) => bytes.to_vec(),
            other => panic!("not binary: {other:?}"),
        }
    }

    /// A barrier: sends a heartbeat and returns all frames received before its reply.
    pub async fn so_far(&mut self) -> Vec<Got> {
        let own = self.next_ref();
        self.send(Value::Null, json!(own), "phoenix", "heartbeat", json!({})).await;
        let mut frames = Vec::new();
        loop {
            let got = self.next().await;
            if got.topic == "phoenix" {
                let reply = json!([null, own, "phx_reply", {"status": "ok", "response": {}}]);
                assert_eq!(got.short(), reply);
                return frames;
            }
            frames.push(got);
        }
    }

    /// The close code that the server sends. Skips earlier frames.
    pub async fn close_code(&mut self) -> Option<u16> {
        loop {
            if let Message::Close(frame) = self.any().await {
                return frame.map(|frame| frame.code.into());
            }
        }
    }
}
