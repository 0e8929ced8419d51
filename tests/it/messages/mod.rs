//! Messages of the database: sent with SQL, received on channels, replayed; on a whole daemon. Statements 92 to
//! 107 of `docs/spec/postgres-changes.md` §10, and 72 of the channels' list.
mod foreign;
mod partition_maintenance;
mod replay;
mod sending;

use crate::{
    daemon::{Running, config, fresh},
    realtime::{Got, SECRET, Socket},
    support::TestDb,
};
use convoke::{auth::Role, clock::Clock};
use serde_json::{Value, json};
use std::time::Duration;
use tokio_postgres::Client;

/// A daemon on a database whose policies allow every right on private channels.
pub struct MessagesDaemon {
    pub running: Running,
    pub sql: Client,
    pub db: TestDb,
    pub data: tempfile::TempDir,
}

pub const OPEN: &str = "
    create policy r on realtime.messages for select to authenticated using (true);
    create policy w on realtime.messages for insert to authenticated with check (true);";

impl MessagesDaemon {
    pub async fn new() -> Self {
        let (db, data) = fresh().await;
        let sql = db.client().await;
        sql.batch_execute(OPEN).await.unwrap();
        Self::on(db, data).await
    }

    pub async fn on(db: TestDb, data: tempfile::TempDir) -> Self {
        let sql = db.client().await;
        let running = Running::start(Self::config(&db, &data), Vec::new()).await;
        Self { running, sql, db, data }
    }

    pub fn config(db: &TestDb, data: &tempfile::TempDir) -> convoke::config::Config {
        let mut config = config(db, data.path());
        config.auth.jwt_secret = Some(SECRET.into());
        config.gateway.join_error_delay = Duration::ZERO;
        config.gateway.handshake_error_delay = Duration::ZERO;
        config.gateway.payload_bytes_max = 10_000;
        config
    }

    pub async fn socket(&self, v2: bool) -> Socket {
        let (addr, vsn) = (self.running.parts.addr, if v2 { "2.0.0" } else { "1.0.0" });
        let key = token(Role::Authenticated);
        Socket::open(&format!("ws://{addr}/socket/websocket?apikey={key}&vsn={vsn}"), v2).await
    }

    /// A socket, and the reply to its join.
    pub async fn join(&self, v2: bool, topic: &str, config: Value) -> (Socket, Got) {
        let mut socket = self.socket(v2).await;
        let got = socket.join(topic, config).await;
        (socket, got)
    }

    pub async fn joined(&self, v2: bool, topic: &str, config: Value) -> Socket {
        let (socket, got) = self.join(v2, topic, config).await;
        got.ok();
        socket
    }

    pub async fn metrics(&self) -> String {
        let url = format!("http://{}/metrics", self.running.parts.addr);
        crate::realtime::http().get(url).send().await.unwrap().text().await.unwrap()
    }

    pub async fn send(&self, payload: Value, event: &str, topic: &str, private: bool) {
        let sql = "select realtime.send($1, $2, $3, $4)";
        self.sql.execute(sql, &[&payload, &event, &topic, &private]).await.unwrap();
    }
}

pub fn token(role: Role) -> String {
    let claims = json!({"role": role.as_str(), "exp": Clock::System.now().timestamp() + 3600});
    let key = jsonwebtoken::EncodingKey::from_secret(SECRET.as_bytes());
    jsonwebtoken::encode(&jsonwebtoken::Header::default(), &claims, &key).unwrap()
}

pub fn private() -> Value {
    json!({"private": true})
}

/// A message as 2.0.0 has it: its metadata, event and payload.
pub async fn next_broadcast(socket: &mut Socket) -> (Value, String, Vec<u8>) {
    let frame = socket.binary().await;
    assert_eq!(frame[0], 4, "a user broadcast");
    let (topic, event, meta) = (frame[1] as usize, frame[2] as usize, frame[3] as usize);
    let parts = &frame[5..];
    let event_text = String::from_utf8(parts[topic..topic + event].to_vec()).unwrap();
    let rest = &parts[topic + event..];
    (serde_json::from_slice(&rest[..meta]).unwrap(), event_text, rest[meta..].to_vec())
}

pub async fn next_json(socket: &mut Socket) -> (Value, String, Value) {
    let (meta, event, payload) = next_broadcast(socket).await;
    (meta, event, serde_json::from_slice(&payload).unwrap())
}
