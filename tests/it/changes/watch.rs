//! What the tests of row changes share: a whole daemon on a database of its own, and sockets that watch its tables.
//!
//! Everything that happened is awaited by a mark: a row of the table `mark`, which every socket watches beside what
//! its test is about. Changes come in the order of their commits, so whatever else was to come has come before it.
use crate::{
    daemon::{Running, config, fresh},
    realtime::{Got, Message, SECRET, Socket},
    support::TestDb,
};
use convoke::{clock::Clock, config::Config};
use serde_json::{Value, json};
use std::{
    sync::atomic::{AtomicI64, Ordering},
    time::Duration,
};
use tokio_postgres::Client;

pub const ANN: &str = "11111111-1111-4111-8111-111111111111";
pub const BEN: &str = "22222222-2222-4222-8222-222222222222";

/// The start of every refusal of parameters.
pub const UNABLE: &str = "Unable to subscribe to changes with given parameters. ";

/// As Supabase has it: the roles of tokens may read what is made in schema public.
const GROUND: &str = "
    create publication supabase_realtime with (publish_via_partition_root = true);
    alter default privileges in schema public grant select on tables to anon, authenticated, service_role;
    create table mark (id bigint primary key);
    alter publication supabase_realtime add table mark;";

/// A daemon whose database has tables that clients may watch.
pub struct WatchedDaemon {
    pub running: Running,
    pub sql: Client,
    pub db: TestDb,
    pub data: tempfile::TempDir,
    marks: AtomicI64,
}

impl WatchedDaemon {
    /// Runs `schema` and publishes `tables`, a list with commas or nothing.
    pub async fn new(schema: &str, tables: &str) -> Self {
        Self::with(schema, tables, |_| ()).await
    }

    pub async fn with(schema: &str, tables: &str, change: impl FnOnce(&mut Config)) -> Self {
        let (db, data) = fresh().await;
        ground(&db, schema, tables).await;
        let mut config = settings(&db, &data);
        change(&mut config);
        Self::on(db, data, config).await
    }

    /// On a database that is prepared already.
    pub async fn on(db: TestDb, data: tempfile::TempDir, config: Config) -> Self {
        let running = Running::start(config, Vec::new()).await;
        Self::around(running, db, data).await
    }

    pub async fn around(running: Running, db: TestDb, data: tempfile::TempDir) -> Self {
        let sql = db.client().await;
        Self { running, sql, db, data, marks: AtomicI64::new(0) }
    }

    pub async fn run(&self, sql: &str) {
        self.sql.batch_execute(sql).await.unwrap();
    }

    pub fn url(&self, claims: Value, vsn: &str, more: &str) -> String {
        let (addr, key) = (self.running.parts.addr, token(claims));
        format!("ws://{addr}/realtime/v1/websocket?apikey={key}&vsn={vsn}{more}")
    }

    pub async fn socket(&self, claims: Value) -> Socket {
        Socket::open(&self.url(claims, "2.0.0", ""), true).await
    }

    /// A socket of somebody of role `authenticated` that is subscribed to these items.
    pub async fn watch(&self, items: Value) -> Watch {
        self.watch_as(json!({}), items).await
    }

    pub async fn watch_as(&self, claims: Value, items: Value) -> Watch {
        Watch::start(self.socket(claims).await, "room", items, json!({})).await
    }

    /// What a subscription to these items is refused with.
    pub async fn refusal(&self, items: Value) -> String {
        self.refusal_as(json!({}), items).await
    }

    pub async fn refusal_as(&self, claims: Value, items: Value) -> String {
        let mut socket = self.socket(claims).await;
        socket.join("room", json!({"postgres_changes": items})).await.ok();
        refused(&mut socket).await
    }

    /// Everything that came of what is committed by now.
    pub async fn frames(&self, watch: &mut Watch) -> Vec<Got> {
        let mark = self.mark().await;
        watch.until_mark(mark).await
    }

    /// The same, where only changes may come.
    pub async fn seen(&self, watch: &mut Watch) -> Vec<Value> {
        self.frames(watch).await.into_iter().map(change).collect()
    }

    pub async fn mark(&self) -> i64 {
        let mark = self.marks.fetch_add(1, Ordering::Relaxed) + 1;
        self.sql.execute("insert into mark values ($1)", &[&mark]).await.unwrap();
        mark
    }
}

/// Prepares a database for the tests here.
pub async fn ground(db: &TestDb, schema: &str, tables: &str) {
    // The role of the shared server has the name of our schema, which would come first.
    let alter = format!("alter database {} set search_path = public", db.name);
    db.client().await.batch_execute(&alter).await.unwrap();
    let sql = db.client().await;
    sql.batch_execute(&format!("{GROUND}{schema}")).await.unwrap();
    if !tables.is_empty() {
        let publish = format!("alter publication supabase_realtime add table {tables}");
        sql.batch_execute(&publish).await.unwrap();
    }
}

pub fn settings(db: &TestDb, data: &tempfile::TempDir) -> Config {
    let mut config = config(db, data.path());
    config.auth.jwt_secret = Some(SECRET.into());
    config.gateway.join_error_delay = Duration::ZERO;
    config.gateway.handshake_error_delay = Duration::ZERO;
    config
}

/// A token with these claims, of role `authenticated` if they name none.
pub fn token(mut claims: Value) -> String {
    let members = claims.as_object_mut().unwrap();
    members.entry("role").or_insert(json!("authenticated"));
    members.entry("exp").or_insert(json!(Clock::System.now().timestamp() + 3600));
    let key = jsonwebtoken::EncodingKey::from_secret(SECRET.as_bytes());
    jsonwebtoken::encode(&jsonwebtoken::Header::default(), &claims, &key).unwrap()
}

/// A channel that is subscribed.
pub struct Watch {
    pub socket: Socket,
    pub topic: String,
    /// The ids of the items, without that of the marks.
    pub ids: Vec<u64>,
}

impl Watch {
    /// Joins with these items, and one for the marks.
    pub async fn start(mut socket: Socket, topic: &str, items: Value, mut config: Value) -> Self {
        let mut items = items.as_array().unwrap().clone();
        items.push(json!({"event": "INSERT", "schema": "public", "table": "mark"}));
        config["postgres_changes"] = json!(items);
        let reply = socket.join(topic, config).await;
        assert_eq!(reply.event, "phx_reply", "{reply:?}");
        reply.ok();
        let mut ids = ids(&reply);
        assert_eq!(ids.len(), items.len(), "{reply:?}");
        ids.pop();
        let system = socket.next().await;
        assert_eq!((&*system.event, &system.payload), ("system", &subscribed(topic)), "{system:?}");
        Self { socket, topic: topic.to_owned(), ids }
    }

    /// Every frame before that mark.
    pub async fn until_mark(&mut self, mark: i64) -> Vec<Got> {
        let mut frames = Vec::new();
        loop {
            let got = self.socket.next().await;
            let data = &got.payload["data"];
            if data["table"] == "mark" {
                if data["record"]["id"] == mark && got.topic == format!("realtime:{}", self.topic) {
                    return frames;
                }
            } else {
                frames.push(got);
            }
        }
    }

    /// The next change.
    pub async fn next(&mut self) -> Value {
        change(self.socket.next().await)
    }

    /// The next change as it is written, whatever reads it.
    pub async fn raw(&mut self) -> String {
        match self.socket.any().await {
            Message::Text(text) => text.to_string(),
            other => panic!("not text: {other:?}"),
        }
    }

    /// Which of the items a message is for, by their places.
    pub fn which(&self, message: &Value) -> Vec<usize> {
        let ids: Vec<_> = message["ids"].as_array().unwrap().iter().map(|id| id.as_u64().unwrap()).collect();
        let of = |(at, id)| ids.contains(id).then_some(at);
        self.ids.iter().enumerate().filter_map(of).collect()
    }
}

/// What a subscription is confirmed with.
pub fn subscribed(topic: &str) -> Value {
    json!({"extension": "postgres_changes", "status": "ok", "message": "Subscribed to PostgreSQL", "channel": topic})
}

/// The ids that the reply to a join gives.
pub fn ids(reply: &Got) -> Vec<u64> {
    let items = reply.payload["response"]["postgres_changes"].as_array();
    items.unwrap_or_else(|| panic!("{reply:?}")).iter().map(|item| item["id"].as_u64().unwrap()).collect()
}

/// The message of the next frame, which says that a subscription is refused.
pub async fn refused(socket: &mut Socket) -> String {
    let system = socket.next().await;
    assert_eq!(system.event, "system", "{system:?}");
    let payload = &system.payload;
    assert_eq!((&payload["extension"], &payload["status"]), (&json!("postgres_changes"), &json!("error")));
    payload["message"].as_str().unwrap().to_owned()
}

/// The payload of a frame that must be a change, with the members that every one has.
pub fn change(got: Got) -> Value {
    assert_eq!(got.event, "postgres_changes", "{got:?}");
    assert_eq!((&got.join_ref, &got.reference), (&Value::Null, &Value::Null), "{got:?}");
    let payload = got.payload;
    let keys: Vec<_> = payload.as_object().unwrap().keys().filter(|key| *key != "meta").collect();
    assert_eq!(keys, ["data", "ids"], "{payload}");
    let ids = payload["ids"].as_array().unwrap();
    assert!(!ids.is_empty() && ids.iter().all(|id| id.as_u64().is_some_and(|id| id > 0)), "{payload}");
    payload
}

/// The operation and the delivered rows, in a form that is short to compare: the record and the old one, where there
/// is one.
pub fn brief(message: &Value) -> Value {
    let data = &message["data"];
    assert_eq!(data["errors"], Value::Null, "{message}");
    let mut brief = json!([data["type"]]);
    for member in ["record", "old_record"] {
        brief.as_array_mut().unwrap().extend(data.get(member).cloned());
    }
    brief
}

pub fn briefs(messages: &[Value]) -> Vec<Value> {
    messages.iter().map(brief).collect()
}
