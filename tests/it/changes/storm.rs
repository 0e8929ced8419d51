//! What one client, or all at once, can make the daemon do: others hardly notice.
use super::watch::{Watch, WatchedDaemon, ids, subscribed};
use crate::{daemon::soon, realtime::Socket, support::from_environment};
use futures_util::future::join_all;
use serde_json::{Value, json};
use std::time::Duration;
use tokio::time::Instant;

/// How many come back at once.
const STORM: usize = 300;

/// Joins as supabase-js does, which joins again by itself when it is refused with a time; returns how often it had to.
async fn subscribe(mut socket: Socket, items: &Value) -> (Watch, u32) {
    let mut wanted = items.as_array().unwrap().clone();
    wanted.push(json!({"event": "INSERT", "schema": "public", "table": "mark"}));
    let mut refused = 0;
    loop {
        let reply = socket.join("room", json!({ "postgres_changes": wanted })).await;
        let response = &reply.payload["response"];
        if response["reason"] == "rate_limited" {
            let retry = response["retry_after_ms"].as_u64().unwrap();
            tokio::time::sleep(Duration::from_millis(retry)).await;
            refused += 1;
            continue;
        }
        reply.ok();
        let system = socket.next().await;
        assert_eq!((&*system.event, &system.payload), ("system", &subscribed("room")), "{system:?}");
        let ids = ids(&reply);
        return (Watch { socket, topic: "room".into(), ids }, refused);
    }
}

/// Joins are checked together where they are equal, and wait for each other where they are not.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_that_rejoin_at_once_are_all_subscribed() {
    let clients = from_environment("CONVOKE_STORM", STORM);
    let rig = WatchedDaemon::with(
        "create table t (id int primary key, at timestamptz, body text)",
        "t",
        |config| {
            config.gateway.limits.joins_total = u64::try_from(10 * clients).unwrap();
        },
    )
    .await;
    // Each tenth has a filter of its own, whose value Postgres must read.
    let items = |at: usize| match at % 10 {
        0 => {
            json!([{"schema": "public", "table": "t", "filter": format!("at=gt.2026-01-01 00:00:{:02}.{at:06}", at % 60)}])
        }
        1 => json!([{"schema": "public", "table": "t", "filter": format!("id=eq.{at}")}]),
        _ => json!([{"schema": "public", "table": "t"}]),
    };
    let sockets = join_all((0..clients).map(|at| rig.socket(json!({"sub": format!("u{at}")})))).await;
    let began = Instant::now();
    let joins = sockets
        .into_iter()
        .enumerate()
        .map(|(at, socket)| async move { subscribe(socket, &items(at)).await });
    let (mut all, refused): (Vec<Watch>, Vec<u32>) = join_all(joins).await.into_iter().unzip();
    let again = refused.iter().filter(|refused| **refused > 0).count();
    println!("{clients} clients were subscribed within {:?}, {again} of them joined again", began.elapsed());
    assert_eq!(all.len(), clients);
    assert!(clients > STORM || again == 0, "{again} of so few joined again");
    rig.run("insert into t values (1, now() + interval '100 years', '')").await;
    for at in [0, 1, 2] {
        assert_eq!(rig.seen(&mut all[at]).await.len(), 1, "client {at}");
    }
    rig.running.stop().await;
}

/// Patterns with a back reference, which are slow on a long text of an odd number of `a`.
fn slow_patterns(count: usize) -> Value {
    let item = |at| json!({"event": "INSERT", "schema": "public", "table": "t", "filter": format!(r"body=match.^(a+)(?:x{at})?\1$")});
    (0..count).map(item).collect()
}

#[tokio::test]
async fn slow_patterns_of_one_client_delay_that_client_alone_and_end_with_it() {
    let rig = WatchedDaemon::new("create table t (id int primary key, body text)", "t").await;
    let mut hostile = rig.watch(slow_patterns(60)).await;
    let mut like = rig
        .watch(json!([{"event": "INSERT", "schema": "public", "table": "t", "filter": "body=like.a%"}]))
        .await;
    let mut matches = rig.watch(json!([{"event": "INSERT", "schema": "public", "table": "t", "filter": "body=match.^b"}, {"event": "INSERT", "schema": "public", "table": "t", "filter": "body=imatch.^A"}])).await;
    let mut plain = rig.watch(json!([{"event": "INSERT", "schema": "public", "table": "t"}])).await;
    let began = Instant::now();
    rig.run("insert into t select g, repeat('a', 200001) from generate_series(1, 2) g").await;
    for watch in [&mut plain, &mut like] {
        assert_eq!(rig.seen(watch).await.len(), 2);
    }
    let others = began.elapsed();
    assert_eq!(rig.seen(&mut matches).await.len(), 2);
    println!("others had it after {others:?}, those with patterns after {:?}", began.elapsed());
    assert!(others < Duration::from_secs(5), "{others:?}");
    let busy = "select count(*) from pg_stat_activity
                where application_name = 'convoke filters' and datname = current_database() and state = 'active'";
    soon("work on the patterns", async {
        while rig.sql.query_one(busy, &[]).await.unwrap().get::<_, i64>(0) == 0 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
    hostile.socket.message(crate::realtime::Message::Close(None)).await;
    drop(hostile);
    soon("the end of it", async {
        let mut idle = 0;
        while idle < 20 {
            let active: i64 = rig.sql.query_one(busy, &[]).await.unwrap().get(0);
            idle = if active == 0 { idle + 1 } else { 0 };
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    })
    .await;
    rig.running.stop().await;
}

/// A channel that is moved to where filters are waited for gets each change once, in order.
#[tokio::test]
async fn a_channel_that_is_moved_within_a_transaction_loses_and_doubles_nothing() {
    let rig = WatchedDaemon::new(
        "create table t (id int primary key, body text); create table u (id int primary key)",
        "t, u",
    )
    .await;
    let mut watch = rig
        .watch(json!([
            {"event": "INSERT", "schema": "public", "table": "u"},
            {"event": "INSERT", "schema": "public", "table": "t", "filter": "body=match.^x"},
        ]))
        .await;
    rig
        .run(
            "begin; insert into u select generate_series(1, 100); insert into t select g, 'x' from generate_series(1, 400) g;
             alter table u add column n int; insert into u select generate_series(101, 200); commit; insert into u values (201)",
        )
        .await;
    let ids = |seen: Vec<Value>, table: &str| -> Vec<i64> {
        let of_table = seen.into_iter().filter(|it| it["data"]["table"] == table);
        of_table.map(|it| it["data"]["record"]["id"].as_i64().unwrap()).collect()
    };
    let seen = rig.seen(&mut watch).await;
    assert_eq!(ids(seen.clone(), "u"), (1..=201).collect::<Vec<_>>());
    assert_eq!(ids(seen, "t"), (1..=400).collect::<Vec<_>>());
    rig.running.stop().await;
}

/// The database answers, and the WAL is not read for some seconds.
#[tokio::test]
async fn join_waits_for_a_wal_stream_that_is_down() {
    let rig = WatchedDaemon::new("create table t (id int primary key)", "t").await;
    let slot = rig.db.slot();
    soon("a slot of another consumer in the place of the daemon's", async {
        loop {
            let end = "select pg_terminate_backend(active_pid, 5000) from pg_replication_slots
                       where slot_name = $1 and active_pid is not null";
            rig.sql.execute(end, &[&slot]).await.unwrap();
            let drop = "select pg_drop_replication_slot($1)";
            let make = "select pg_create_logical_replication_slot($1, 'test_decoding')";
            // The daemon may be faster and take the slot again, or make its own.
            if rig.sql.execute(drop, &[&slot]).await.is_ok() && rig.sql.execute(make, &[&slot]).await.is_ok()
            {
                return;
            }
        }
    })
    .await;
    let url = format!("http://{}/health", rig.running.parts.addr);
    soon("the stream is down", async {
        loop {
            let health: Value = reqwest::get(&url).await.unwrap().json().await.unwrap();
            if health["parts"]["wal"]["state"] == "down" {
                return;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await;
    let began = Instant::now();
    let mended = async {
        // Longer than a join waits for a database that does not answer.
        tokio::time::sleep(Duration::from_secs(2)).await;
        rig.sql.execute("select pg_drop_replication_slot($1)", &[&slot]).await.unwrap();
    };
    let items = json!([{"schema": "public", "table": "t"}]);
    let (mut watch, ()) = tokio::join!(rig.watch(items), mended);
    assert!(began.elapsed() > Duration::from_secs(2));
    rig.run("insert into t values (1)").await;
    assert_eq!(rig.seen(&mut watch).await.len(), 1);
    rig.running.stop().await;
}

/// Values that Postgres must read are asked about together; one that it refuses fails alone.
#[tokio::test]
async fn bad_filter_value_among_many_joins_is_refused_alone() {
    let rig = WatchedDaemon::new("create table t (id int primary key, at timestamptz)", "t").await;
    let sockets = join_all((0..60).map(|at| rig.socket(json!({"sub": format!("u{at}")})))).await;
    let joins = sockets.into_iter().enumerate().map(|(at, mut socket)| async move {
        let value = if at % 20 == 7 { format!("never {at}") } else { format!("2026-01-01 00:00:{at}") };
        let items = json!([{"schema": "public", "table": "t", "filter": format!("at=gt.{value}")}]);
        socket.join("room", json!({ "postgres_changes": items })).await.ok();
        (at, socket.next().await.payload)
    });
    for (at, system) in join_all(joins).await {
        if at % 20 == 7 {
            let message = system["message"].as_str().unwrap();
            assert!(
                message.contains(&format!(
                    "invalid input syntax for type timestamp with time zone: \"never {at}\""
                )),
                "{system}"
            );
        } else {
            assert_eq!(system, subscribed("room"), "{at}");
        }
    }
    rig.running.stop().await;
}
