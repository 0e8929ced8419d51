//! Row changes of clients that come back: what they missed, judged by what they ask for and may see now.
use super::watch::{ANN, BEN, House, brief, change, settings, subscribed};
use crate::realtime::{Got, Socket};
use convoke::{config::Config, hub::history::Rule};
use serde_json::{Value, json};
use std::time::Duration;

const N: &str = "create table n (id bigint primary key, owner uuid, body text);";

pub fn resumable(config: &mut Config) {
    config.channels = vec![Rule { topic: "room*".into(), history: Duration::from_secs(600), resume: true }];
}

/// Joins `room`, and gives what it is told of its position.
pub async fn resume(house: &House, client: &str, claims: Value, items: Value) -> (Socket, Value) {
    let url = house.url(claims, "2.0.0", &format!("&client_id={client}"));
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

impl House {
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
    let house = House::with(N, "n", resumable).await;
    let items = || json!([{"table": "n"}]);
    let (mut socket, told) = resume(&house, "c", json!({}), items()).await;
    assert_eq!(
        (&told["status"], &told["meta"]["gap"]["reason"]),
        (&json!("ok"), &json!("unknown")),
        "it is new"
    );
    house.run("insert into n values (1)").await;
    let mut ids = Vec::new();
    assert_eq!(row(socket.next().await, &mut ids), (1, false));
    prove(&mut socket).await;
    house.run("insert into n values (2)").await;
    assert_eq!(row(socket.next().await, &mut ids), (2, false), "heard, and never proved");
    drop(socket);
    for id in 3..=50 {
        house.run(&format!("insert into n values ({id})")).await;
    }
    let house = house
        .again(async |sql| sql.batch_execute("insert into n select generate_series(51, 60)").await.unwrap())
        .await;
    house.run("insert into n values (61)").await;
    let (mut socket, told) = resume(&house, "c", json!({}), items()).await;
    assert_eq!((&told["status"], &told["meta"]["gap"]), (&json!("ok"), &Value::Null));
    house.run("insert into n values (62)").await;
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
    let (mut socket, told) = resume(&house, "c", json!({}), items()).await;
    assert_eq!(told["meta"]["gap"], Value::Null);
    prove(&mut socket).await;
}

#[tokio::test]
async fn what_was_missed_is_judged_by_the_filters_and_rights_of_the_one_who_comes_back() {
    let policy = "alter table n enable row level security; alter table n replica identity full;
                  create policy own on n using (owner = auth.uid());";
    let house = House::with(&format!("{N}{policy}"), "n", resumable).await;
    let claims = json!({"sub": ANN});
    let (mut socket, _) = resume(&house, "c", claims.clone(), json!([{"table": "n"}])).await;
    prove(&mut socket).await;
    drop(socket);
    let mut here = house.watch(json!([])).await;
    house
        .run(&format!(
            "insert into n values (1, '{ANN}', 'a'), (2, '{BEN}', 'a'), (3, '{ANN}', 'b');
             update n set body = 'c'; delete from n where id < 3"
        ))
        .await;
    // The daemon has it in its log.
    house.frames(&mut here).await;
    let items = json!([{"schema": "public", "table": "n", "filter": "body=in.(a,c)"}, {"event": "DELETE", "table": "n"}]);
    let (mut socket, told) = resume(&house, "c", claims, items).await;
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

/// Broadcasts and changes of one channel keep their positions apart from nobody else's.
#[tokio::test]
async fn another_client_and_another_topic_have_positions_of_their_own() {
    let house = House::with(N, "n", resumable).await;
    let items = || json!([{"table": "n"}]);
    let (mut one, _) = resume(&house, "one", json!({}), items()).await;
    let (mut two, _) = resume(&house, "two", json!({}), items()).await;
    prove(&mut one).await;
    prove(&mut two).await;
    drop(one);
    house.run("insert into n values (1)").await;
    assert_eq!(change(two.next().await)["data"]["record"]["id"], 1);
    prove(&mut two).await;
    drop(two);
    let (mut two, _) = resume(&house, "two", json!({}), items()).await;
    prove(&mut two).await;
    let (mut one, _) = resume(&house, "one", json!({}), items()).await;
    assert_eq!(change(one.next().await)["meta"]["replayed"], true);
    let (_, told) = resume(&house, "three", json!({}), items()).await;
    assert_eq!(told["meta"]["gap"]["reason"], "unknown");
}

/// Without a history of its topic, or without a name, a client begins where it comes.
#[tokio::test]
async fn who_does_not_ask_for_it_gets_nothing_old() {
    let house = House::with(N, "n", resumable).await;
    let mut socket = Socket::open(&house.url(json!({}), "2.0.0", "&client_id=c"), true).await;
    let items = json!({"postgres_changes": [{"table": "n"}]});
    socket.join("elsewhere", items.clone()).await.ok();
    assert_eq!(socket.next().await.payload, subscribed("elsewhere"));
    drop(socket);
    let mut here = house.watch(json!([])).await;
    house.run("insert into n values (1)").await;
    // The daemon has it in its log.
    house.frames(&mut here).await;
    let mut socket = Socket::open(&house.url(json!({}), "2.0.0", "&client_id=c"), true).await;
    socket.join("elsewhere", items).await.ok();
    assert_eq!(socket.next().await.payload, subscribed("elsewhere"));
    house.run("insert into n values (2)").await;
    let next = change(socket.next().await);
    assert_eq!((&next["data"]["record"]["id"], next.get("meta")), (&json!(2), None));
}
