//! Channels with a history: a returning client gets the messages it missed, or a gap notice.
mod clients;
mod gaps;
mod replay;
mod soak;

use crate::realtime::{Got, Socket};
use convoke::{
    app::Channels,
    auth::{Keys, MintRequest, Role, mint},
    clock::Clock,
    config::Config,
    hub::history::Rule,
};
use serde_json::{Value, json};
use std::{net::SocketAddr, path::Path, time::Duration};

const SECRET: &str = "the secret of the resume tests, long enough";

/// A server on which `chat:*` has a history.
pub struct HistoryServer {
    pub channels: Channels,
    config: Config,
}

impl HistoryServer {
    pub async fn start(dir: &Path) -> Self {
        Self::with(dir, |_| ()).await
    }

    pub async fn with(dir: &Path, change: impl FnOnce(&mut Config)) -> Self {
        let mut config = Config::default();
        config.auth.jwt_secret = Some(SECRET.into());
        config.database.data_dir = dir.to_owned();
        config.server.listen = SocketAddr::from(([127, 0, 0, 1], 0));
        config.gateway.join_error_delay = Duration::ZERO;
        let history = Duration::from_secs(600);
        config.channels = vec![Rule { topic: "chat:*".into(), history, resume: true }];
        change(&mut config);
        let channels = Channels::start(&config).await.unwrap();
        config.server.listen = channels.addr;
        Self { channels, config }
    }

    /// Restarts it on the same port, after an orderly stop.
    pub async fn restart(self) -> Self {
        self.restart_with(|_| ()).await
    }

    pub async fn restart_with(self, change: impl FnOnce(&mut Config)) -> Self {
        let Self { channels, mut config } = self;
        channels.stop().await.unwrap();
        change(&mut config);
        let channels = Channels::start(&config).await.unwrap();
        Self { channels, config }
    }

    pub fn http(&self, path: &str) -> String {
        format!("http://{}{path}", self.channels.addr)
    }

    pub fn metric(&self, name: &str) -> f64 {
        let text = self.channels.registry.encode().unwrap();
        let link = text.lines().find_map(|link| link.strip_prefix(&format!("convoke_{name} ")));
        link.unwrap_or_else(|| panic!("no {name}")).parse().unwrap()
    }

    /// A socket of this client, in no channel yet.
    pub async fn socket(&self, client_id: &str, vsn: &str) -> Socket {
        self.socket_of(client_id, vsn, &token(Role::Anon, None)).await
    }

    pub async fn socket_of(&self, client_id: &str, vsn: &str, key: &str) -> Socket {
        let addr = self.channels.addr;
        let url = format!("ws://{addr}/realtime/v1/websocket?apikey={key}&vsn={vsn}&client_id={client_id}");
        Socket::open(&url, vsn == "2.0.0").await
    }

    /// A socket in `chat:den`, with the notice about its position.
    pub async fn joined(&self, client_id: &str) -> (Socket, Value) {
        let mut socket = self.socket(client_id, "2.0.0").await;
        let notice = join(&mut socket, "chat:den", json!({})).await;
        (socket, notice)
    }

    /// A publisher without a `client_id` in `chat:den` that waits until its messages are kept.
    pub async fn publisher(&self) -> Publisher {
        let addr = self.channels.addr;
        let key = token(Role::Anon, None);
        let url = format!("ws://{addr}/realtime/v1/websocket?apikey={key}&vsn=2.0.0");
        let mut socket = Socket::open(&url, true).await;
        socket.join("chat:den", json!({"broadcast": {"ack": true}})).await.ok();
        Publisher(socket)
    }
}

pub fn token(role: Role, sub: Option<&str>) -> String {
    let keys = Keys::from_secret(&SECRET.into()).unwrap();
    let Some(sub) = sub else {
        return mint(&keys, &MintRequest::new(role), Clock::System.now()).unwrap();
    };
    let claims = json!({"role": "authenticated", "sub": sub, "exp": Clock::System.now().timestamp() + 3600});
    let key = jsonwebtoken::EncodingKey::from_secret(SECRET.as_bytes());
    jsonwebtoken::encode(&jsonwebtoken::Header::default(), &claims, &key).unwrap()
}

pub struct Publisher(pub Socket);

impl Publisher {
    /// Publishes `n`. When this returns, the message is kept.
    pub async fn publish(&mut self, n: u32) {
        self.publish_on("chat:den", n).await;
    }

    pub async fn publish_on(&mut self, topic: &str, n: u32) {
        self.0.ask(topic, "broadcast", message(n)).await.ok();
    }
}

pub fn message(n: u32) -> Value {
    json!({"type": "broadcast", "event": "m", "payload": {"n": n}})
}

/// Joins, and returns the system message with the position.
pub async fn join(socket: &mut Socket, topic: &str, config: Value) -> Value {
    socket.join(topic, config).await.ok();
    let system = socket.next().await;
    assert_eq!(
        (system.event.as_str(), &system.payload["extension"]),
        ("system", &json!("resume")),
        "{system:?}"
    );
    system.payload
}

/// The next broadcast: its number, and whether it was replayed.
pub async fn next_message(socket: &mut Socket) -> (u64, bool) {
    let got = socket.next().await;
    read(&got)
}

pub fn read(got: &Got) -> (u64, bool) {
    assert_eq!(got.event, "broadcast", "{got:?}");
    let meta = &got.payload["meta"];
    assert!(meta["id"].as_str().unwrap().parse::<u64>().unwrap() > 0);
    (got.payload["payload"]["n"].as_u64().unwrap(), meta["replayed"] == true)
}

/// Sends two heartbeats and awaits their replies: this proves receipt of everything before the first.
pub async fn prove(socket: &mut Socket) {
    assert_eq!(socket.so_far().await, []);
    assert_eq!(socket.so_far().await, []);
}
