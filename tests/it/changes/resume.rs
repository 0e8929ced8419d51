//! Row changes of clients that come back: what they missed, judged by what they ask for and may see now.
use super::watch::{ANN, BEN, WatchedDaemon, brief, change, settings, subscribed};
use crate::realtime::{Got, Socket};
use convoke::{config::Config, hub::history::Rule};
use serde_json::{Value, json};
use std::time::Duration;

const N: &str = "create table n (id bigint primary key, owner uuid, body text);";

pub fn resumable(config: &mut Config) {
    config.channels = vec![Rule { topic: "room*".into(), history: Duration::from_secs(600), resume: true }];
}

/// Joins `room` and returns the message about its position.
pub async fn resume(rig: &WatchedDaemon, client: &str, claims: Value, items: Value) -> (Socket, Value) {
    let url = rig.url(claims, "2.0.0", &format!("&client_id={client}"));
    let mut socket = Socket::open(&url, true).await;
    socket.join("room", json!({ "postgres_changes": items })).await.ok();
    // The room has a history, too, whose own message may come at any time.
    let (mut told, mut others) = (None, 0);
    while told.is_none() || others < 2 {
        let system = socket.next().await;
        assert_eq!(system.event, "system", "{system:?}");
        match system.payload["extension"].as_str().unwrap() {
            "resume" if system.payload["meta"]["of"] == "postgres_changes" => told = Some(system.payload),
            "resume" => others += 1,
            _ => {
                assert_eq!(system.payload, subscribed("room"));
                others += 1;
            }
        }
    }
    (socket, told.unwrap())
}

/// Two heartbeats, each answered: what came before the first is proved.
pub async fn prove(socket: &mut Socket) {
    assert_eq!(socket.so_far().await, []);
    assert_eq!(socket.so_far().await, []);
}

/// A change's row, and whether it was replayed; every one has its own id then.
fn row(got: Got, ids: &mut Vec<String>) -> (i64, bool) {
    let message = change(got);
    let replayed = message["meta"]["replayed"] == true;
    if replayed {
        ids.push(message["meta"]["id"].as_str().unwrap().to_owned());
    }
    (message["data"]["record"]["id"].as_i64().unwrap(), replayed)
}

impl WatchedDaemon {
    /// Stops and starts the daemon, with the same settings and folder.
    pub async fn again(self, between: impl AsyncFnOnce(&tokio_postgres::Client)) -> Self {
        let Self { running, sql, db, data, .. } = self;
        running.stop().await;
        between(&sql).await;
        let mut config = settings(&db, &data);
        resumable(&mut config);
        Self::on(db, data, config).await
    }
}

#[tokio::test]
async fn missed_changes_come_in_order_before_live_ones_also_over_a_restart() {
    let rig = WatchedDaemon::with(N, "n", resumable).await;
    let items = || json!([{"table": "n"}]);
    let (mut socket, told) = resume(&rig, "c", json!({}), items()).await;
    assert_eq!(
        (&told["status"], &told["meta"]["gap"]["reason"]),
        (&json!("ok"), &json!("unknown")),
        "it is new"
    );
    rig.run("insert into n values (1)").await;
    let mut ids = Vec::new();
    assert_eq!(row(socket.next().await, &mut ids), (1, false));
    prove(&mut socket).await;
    rig.run("insert into n values (2)").await;
    assert_eq!(row(socket.next().await, &mut ids), (2, false), "heard, and never proved");
    drop(socket);
    for id in 3..=50 {
        rig.run(&format!("insert into n values ({id})")).await;
    }
    let rig = rig
        .again(async |sql| sql.batch_execute("insert into n select generate_series(51, 60)").await.unwrap())
        .await;
    rig.run("insert into n values (61)").await;
    let (mut socket, told) = resume(&rig, "c", json!({}), items()).await;
    assert_eq!((&told["status"], &told["meta"]["gap"]), (&json!("ok"), &Value::Null));
    rig.run("insert into n values (62)").await;
    let mut last = false;
    for id in 2..=62 {
        let (found, replayed) = row(socket.next().await, &mut ids);
        assert_eq!(found, id);
        assert!(!replayed || !last, "replayed behind live");
        last = !replayed;
        assert!(replayed || id > 60, "{id}");
    }
    let mut distinct = ids.clone();
    distinct.dedup();
    assert_eq!(ids, distinct);
    prove(&mut socket).await;
    drop(socket);
    let (mut socket, told) = resume(&rig, "c", json!({}), items()).await;
    assert_eq!(told["meta"]["gap"], Value::Null);
    prove(&mut socket).await;
}

#[tokio::test]
async fn replayed_changes_are_checked_with_present_filters_and_rights() {
    let policy = "alter table n enable row level security; alter table n replica identity full;
                  create policy own on n using (owner = auth.uid());";
    let rig = WatchedDaemon::with(&format!("{N}{policy}"), "n", resumable).await;
    let claims = json!({"sub": ANN});
    let (mut socket, _) = resume(&rig, "c", claims.clone(), json!([{"table": "n"}])).await;
    prove(&mut socket).await;
    drop(socket);
    let mut here = rig.watch(json!([])).await;
    rig.run(&format!(
        "insert into n values (1, '{ANN}', 'a'), (2, '{BEN}', 'a'), (3, '{ANN}', 'b');
             update n set body = 'c'; delete from n where id < 3"
    ))
    .await;
    // The daemon has it in its log.
    rig.frames(&mut here).await;
    let items = json!([{"schema": "public", "table": "n", "filter": "body=in.(a,c)"}, {"event": "DELETE", "table": "n"}]);
    let (mut socket, told) = resume(&rig, "c", claims, items).await;
    assert_eq!(told["meta"]["gap"], Value::Null);
    let record = |id: i32, body: &str| json!({"id": id, "owner": ANN, "body": body});
    let expected = [
        json!(["INSERT", record(1, "a")]),
        json!(["UPDATE", record(1, "c"), record(1, "a")]),
        json!(["UPDATE", record(3, "c"), record(3, "b")]),
        json!(["DELETE", {"id": 1}]),
    ];
    for expected in expected {
        let message = change(socket.next().await);
        assert_eq!((brief(&message), &message["meta"]["replayed"]), (expected, &json!(true)));
    }
    prove(&mut socket).await;
}

/// Broadcasts and changes of one channel keep separate positions.
#[tokio::test]
async fn another_client_and_another_topic_have_positions_of_their_own() {
    let rig = WatchedDaemon::with(N, "n", resumable).await;
    let items = || json!([{"table": "n"}]);
    let (mut one, _) = resume(&rig, "one", json!({}), items()).await;
    let (mut two, _) = resume(&rig, "two", json!({}), items()).await;
    prove(&mut one).await;
    prove(&mut two).await;
    drop(one);
    rig.run("insert into n values (1)").await;
    assert_eq!(change(two.next().await)["data"]["record"]["id"], 1);
    prove(&mut two).await;
    drop(two);
    let (mut two, _) = resume(&rig, "two", json!({}), items()).await;
    prove(&mut two).await;
    let (mut one, _) = resume(&rig, "one", json!({}), items()).await;
    assert_eq!(change(one.next().await)["meta"]["replayed"], true);
    let (_, told) = resume(&rig, "three", json!({}), items()).await;
    assert_eq!(told["meta"]["gap"]["reason"], "unknown");
}

/// Without a history of its topic, or without a name, a client begins where it comes.
#[tokio::test]
async fn client_that_does_not_ask_for_resume_gets_no_replay() {
    let rig = WatchedDaemon::with(N, "n", resumable).await;
    let mut socket = Socket::open(&rig.url(json!({}), "2.0.0", "&client_id=c"), true).await;
    let items = json!({"postgres_changes": [{"table": "n"}]});
    socket.join("elsewhere", items.clone()).await.ok();
    assert_eq!(socket.next().await.payload, subscribed("elsewhere"));
    drop(socket);
    let mut here = rig.watch(json!([])).await;
    rig.run("insert into n values (1)").await;
    // The daemon has it in its log.
    rig.frames(&mut here).await;
    let mut socket = Socket::open(&rig.url(json!({}), "2.0.0", "&client_id=c"), true).await;
    socket.join("elsewhere", items).await.ok();
    assert_eq!(socket.next().await.payload, subscribed("elsewhere"));
    rig.run("insert into n values (2)").await;
    let next = change(socket.next().await);
    assert_eq!((&next["data"]["record"]["id"], next.get("meta")), (&json!(2), None));
}
