//! Unmodified supabase-js, old and new, and the Python client hear row changes.
use crate::{
    daemon::{Running, config, fresh},
    realtime::{
        SECRET,
        client_process::{ClientProcess, NEW, OLD},
    },
    support::TestDb,
};
use convoke::{clock::Clock, hub::history::Rule};
use serde_json::{Value, json};
use std::{net::SocketAddr, time::Duration};
use tokio_postgres::Client;

const TABLES: &str = "
    create table orders (id bigint primary key, owner text, total numeric(20,4), note text, tags text[]);
    create table parts (id int primary key, order_id bigint, name text);
    alter table parts replica identity full;
    grant select on orders, parts to anon, authenticated;
    create policy r on realtime.messages for select to authenticated using (true);
    alter publication supabase_realtime add table orders, parts";
const SECURED: &str = "
    alter table orders enable row level security;
    create policy own on orders for select to authenticated using (owner = (auth.jwt() ->> 'sub'))";

/// A daemon that can be started again on its port.
struct RestartableDaemon {
    db: TestDb,
    data: tempfile::TempDir,
    running: Running,
    addr: SocketAddr,
    sql: Client,
}

impl RestartableDaemon {
    async fn new(more: &str) -> Self {
        let (db, data) = fresh().await;
        let sql = db.client().await;
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        let running = start(&db, &data, any).await;
        sql.batch_execute(&format!("{TABLES};{more}")).await.unwrap();
        let addr = running.parts.addr;
        Self { db, data, running, addr, sql }
    }

    async fn again(self, meanwhile: &str) -> Self {
        let Self { db, data, running, addr, sql } = self;
        running.stop().await;
        sql.batch_execute(meanwhile).await.unwrap();
        let running = start(&db, &data, addr).await;
        Self { db, data, running, addr, sql }
    }

    async fn run(&self, sql: &str) {
        self.sql.batch_execute(sql).await.unwrap();
    }

    /// The three clients, each with a `client_id`.
    async fn clients(&self, key: &str) -> [ClientProcess; 3] {
        let http = format!("http://{}", self.addr);
        let python = format!("ws://{}/realtime/v1", self.addr);
        let (new, old, python) = tokio::join!(
            ClientProcess::js_as(NEW, &http, key, None, Some("new")),
            ClientProcess::js_as(OLD, &http, key, None, Some("old")),
            ClientProcess::python_as(&python, key, Some("python"))
        );
        [new, old, python]
    }

    async fn stop(self) {
        self.running.stop().await;
        drop((self.sql, self.db, self.data));
    }
}

async fn start(db: &TestDb, data: &tempfile::TempDir, addr: SocketAddr) -> Running {
    let mut config = config(db, data.path());
    config.auth.jwt_secret = Some(SECRET.into());
    config.server.listen = addr;
    config.channels = vec![Rule { topic: "org:*".into(), history: Duration::from_secs(600), resume: true }];
    Running::start(config, Vec::new()).await
}

fn token(sub: &str) -> String {
    let claims = json!({"role": "authenticated", "sub": sub, "exp": Clock::System.now().timestamp() + 3600});
    let key = jsonwebtoken::EncodingKey::from_secret(SECRET.as_bytes());
    jsonwebtoken::encode(&jsonwebtoken::Header::default(), &claims, &key).unwrap()
}

/// Joins and waits until changes that are committed from now on are received.
async fn watch(client: &mut ClientProcess, topic: &str, config: Value, changes: Value) {
    client.send("join", json!({"topic": topic, "config": config, "changes": changes})).await;
    client.subscribed(topic).await;
    changes_subscribed(client).await;
}

async fn changes_subscribed(client: &mut ClientProcess) {
    let subscribed =
        |it: &Value| it["message"].as_str().is_some_and(|m| m.contains("Subscribed to PostgreSQL"));
    client.until("system", subscribed).await;
}

async fn change(client: &mut ClientProcess, at: u64, kind: &str) -> Value {
    let got = client.until("change", |it| it["at"] == at).await;
    assert_eq!((got["type"].as_str(), &got["errors"]), (Some(kind), &Value::Null), "{got}");
    got
}

#[tokio::test]
async fn every_client_receives_inserts_updates_and_deletes_of_two_tables_on_one_channel() {
    let rig = RestartableDaemon::new("").await;
    let mut clients = rig.clients(&token("ann")).await;
    let changes = json!([
        {"event": "INSERT", "schema": "public", "table": "orders", "filter": "total=gte.100,note=ilike.%fire%"},
        {"event": "UPDATE", "schema": "public", "table": "orders", "filter": "id=in.(1,2)"},
        {"event": "DELETE", "schema": "public", "table": "orders"},
        {"event": "*", "schema": "public", "table": "parts"},
    ]);
    for client in &mut clients {
        watch(client, "org:demo", json!({}), changes.clone()).await;
    }
    rig
        .run(
            "insert into orders values (3, 'x', 99.9, 'Fire', null), (1, 'x', 100, 'On FIRE', '{a,null,\"b,c\"}');
             update orders set total = 7 where id in (1, 3); delete from orders where id = 1;
             insert into parts values (5, 1, 'bolt'); update parts set name = 'nut' where id = 5;
             delete from parts where id = 5",
        )
        .await;
    for client in &mut clients {
        let made = change(client, 0, "INSERT").await;
        let record = &made["record"];
        assert_eq!((&record["id"], &record["note"]), (&json!(1), &json!("On FIRE")), "{made}");
        assert_eq!(record["tags"], json!(["a", null, "b,c"]));
        assert_eq!((&made["table"], &made["old"]), (&json!("orders"), &json!({})));
        let updated = change(client, 1, "UPDATE").await;
        assert_eq!((&updated["record"]["id"], &updated["old"]), (&json!(1), &json!({"id": 1})), "{updated}");
        let deleted = change(client, 2, "DELETE").await;
        assert_eq!((&deleted["old"], &deleted["record"]), (&json!({"id": 1}), &json!({})), "{deleted}");
        let part = |name| json!({"id": 5, "order_id": 1, "name": name});
        let made = change(client, 3, "INSERT").await;
        assert_eq!((&made["record"], &made["table"]), (&part("bolt"), &json!("parts")));
        let updated = change(client, 3, "UPDATE").await;
        assert_eq!((&updated["old"], &updated["record"]), (&part("bolt"), &part("nut")));
        assert_eq!(change(client, 3, "DELETE").await["old"], part("nut"));
    }
    rig.stop().await;
}

#[tokio::test]
async fn clients_that_select_columns_get_these_and_the_key() {
    let rig = RestartableDaemon::new("").await;
    let [mut new, _, mut python] = rig.clients(&token("ann")).await;
    let changes = json!([{"event": "*", "schema": "public", "table": "orders", "select": ["note"]}]);
    for client in [&mut new, &mut python] {
        watch(client, "org:demo", json!({}), changes.clone()).await;
    }
    rig.run("insert into orders values (1, 'x', 100, 'a note', '{a}')").await;
    for client in [&mut new, &mut python] {
        assert_eq!(change(client, 0, "INSERT").await["record"], json!({"id": 1, "note": "a note"}));
    }
    rig.stop().await;
}

#[tokio::test]
async fn each_user_receives_the_rows_that_its_policy_shows() {
    let rig = RestartableDaemon::new(SECURED).await;
    let (ann, bob) = (token("ann"), token("bob"));
    let (mut anns, mut bobs) = tokio::join!(rig.clients(&ann), rig.clients(&bob));
    let changes = json!([{"event": "*", "schema": "public", "table": "orders"}]);
    for client in anns.iter_mut().chain(&mut bobs) {
        watch(client, "org:demo", json!({}), changes.clone()).await;
    }
    rig
        .run(
            "insert into orders values (1, 'ann', 1, null, null); insert into orders values (2, 'bob', 1, null, null);
             update orders set owner = 'bob' where id = 1; update orders set note = 'mine' where id = 2",
        )
        .await;
    for client in &mut anns {
        assert_eq!(change(client, 0, "INSERT").await["record"]["id"], 1);
    }
    for client in &mut bobs {
        // In this order, and nothing of the other's before.
        assert_eq!(change(client, 0, "INSERT").await["record"]["id"], 2);
        assert_eq!(change(client, 0, "UPDATE").await["record"]["id"], 1);
        assert_eq!(change(client, 0, "UPDATE").await["record"]["note"], "mine");
    }
    // What comes next for ann is her own again: nothing of bob's was between.
    rig.run("insert into orders values (3, 'ann', 1, null, null)").await;
    for client in &mut anns {
        assert_eq!(change(client, 0, "INSERT").await["record"]["id"], 3);
    }
    rig.stop().await;
}

#[tokio::test]
async fn clients_receive_database_messages_and_their_replay() {
    let trigger = "
        create function tell() returns trigger language plpgsql security definer as $$ begin
            perform realtime.broadcast_changes('org:demo', 'm', tg_op, tg_table_name, tg_table_schema, new, old);
            return null;
        end $$;
        create trigger tell after insert on parts for each row execute function tell()";
    let rig = RestartableDaemon::new(trigger).await;
    let mut clients = rig.clients(&token("ann")).await;
    let changes = json!([{"event": "INSERT", "schema": "public", "table": "parts"}]);
    for client in &mut clients {
        watch(client, "org:demo", json!({"private": true}), changes.clone()).await;
    }
    let begun = Clock::System.now().timestamp_millis() - 60_000;
    rig.run(
        "select realtime.send('{\"n\": 1}', 'ping', 'org:demo'); insert into parts values (1, 1, 'bolt')",
    )
    .await;
    for client in &mut clients {
        assert_eq!(client.broadcast("ping").await["n"], 1);
        let told = client.broadcast("m").await;
        assert_eq!(
            (&told["operation"], &told["record"]["name"]),
            (&json!("INSERT"), &json!("bolt")),
            "{told}"
        );
        assert_eq!(change(client, 0, "INSERT").await["record"]["name"], "bolt");
    }
    let [mut new, ..] = rig.clients(&token("ann")).await;
    let replay = json!({"private": true, "broadcast": {"replay": {"since": begun, "limit": 10}}});
    watch(&mut new, "org:demo", replay, changes).await;
    let again = new.until("broadcast", |it| it["name"] == "ping").await;
    assert_eq!((&again["payload"]["n"], &again["meta"]["replayed"]), (&json!(1), &json!(true)), "{again}");
    rig.stop().await;
}

#[tokio::test]
async fn clients_with_an_id_get_the_changes_that_were_made_while_the_daemon_was_away() {
    let rig = RestartableDaemon::new("").await;
    let mut clients = rig.clients(&token("ann")).await;
    let changes = json!([{"event": "INSERT", "schema": "public", "table": "parts"}]);
    for client in &mut clients {
        watch(client, "org:demo", json!({}), changes.clone()).await;
    }
    let rows = |ids: std::ops::RangeInclusive<u32>| {
        ids.map(|id| format!("insert into parts values ({id}, 1, 'part {id}');")).collect::<String>()
    };
    rig.run(&rows(1..=3)).await;
    for client in &mut clients {
        for id in 1..=3 {
            assert_eq!(change(client, 0, "INSERT").await["record"]["id"], id);
        }
    }
    let rig = rig.again(&rows(4..=20)).await;
    rig.run(&rows(21..=23)).await;
    for client in &mut clients {
        // What was not proved to have come may come twice; nothing is missing.
        for id in 4..=23 {
            client.until("change", |it| it["record"]["id"] == id).await;
        }
    }
    rig.stop().await;
}
