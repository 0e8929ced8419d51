//! The messages of row changes: statements 30 to 49.
use crate::changes::watch::{Watch, WatchedDaemon, brief, briefs};
use serde_json::{Value, json};
use tokio_postgres::Client;

const ORDERS: &str = "
    create type mood as enum ('glad', 'sad');
    create domain price as numeric(10, 2) check (value >= 0);
    create table orders (id int primary key, gone text, total price, tags text[], mood mood, code char(4));
    alter table orders drop column gone;";

async fn now_ms(sql: &Client) -> i64 {
    let now = "select floor(extract(epoch from clock_timestamp()) * 1000)::bigint";
    sql.query_one(now, &[]).await.unwrap().get(0)
}

fn in_ms(timestamp: &str) -> i64 {
    chrono::DateTime::parse_from_rfc3339(timestamp).unwrap().timestamp_millis()
}

/// 30, 31, 32, 33, 34
#[tokio::test]
async fn each_kind_of_change_has_exactly_its_members() {
    let rig = WatchedDaemon::new(ORDERS, "orders").await;
    let mut watch = rig.watch(json!([{"table": "orders"}])).await;
    let from = now_ms(&rig.sql).await;
    rig.run(
        "insert into orders values (1, 1.5, '{a,NULL}', 'glad', 'ab');
             update orders set mood = 'sad'; delete from orders;",
    )
    .await;
    let until = now_ms(&rig.sql).await;
    let columns = json!([
        {"name": "id", "type": "int4"},
        {"name": "total", "type": "price"},
        {"name": "tags", "type": "_text"},
        {"name": "mood", "type": "mood"},
        {"name": "code", "type": "bpchar"},
    ]);
    let row = |mood: &str| json!({"id": 1, "total": 1.5, "tags": ["a", null], "mood": mood, "code": "ab  "});
    let mut last = from;
    let seen = rig.seen(&mut watch).await;
    let kinds = [
        ("INSERT", Some(row("glad")), None),
        ("UPDATE", Some(row("sad")), Some(json!({"id": 1}))),
        ("DELETE", None, Some(json!({"id": 1}))),
    ];
    assert_eq!(seen.len(), kinds.len(), "{seen:?}");
    for (message, (kind, record, old)) in seen.iter().zip(kinds) {
        let mut data = message["data"].as_object().unwrap().clone();
        let at = data.remove("commit_timestamp").unwrap().as_str().unwrap().to_owned();
        let form: String = at.chars().map(|c| if c.is_ascii_digit() { '0' } else { c }).collect();
        assert_eq!(form, "0000-00-00T00:00:00.000Z");
        assert!((last..=until).contains(&in_ms(&at)), "{at} is not in {last}..={until}");
        last = in_ms(&at);
        let mut expected =
            json!({"schema": "public", "table": "orders", "type": kind, "columns": columns, "errors": null});
        let members = expected.as_object_mut().unwrap();
        members.extend(record.map(|row| ("record".to_owned(), row)));
        members.extend(old.map(|row| ("old_record".to_owned(), row)));
        assert_eq!(Value::Object(data), expected);
    }
}

/// 35, 36
#[tokio::test]
async fn update_carries_the_old_primary_key() {
    let rig = WatchedDaemon::new(
        "create table t (a int, body text, b int, primary key (b, a));
         create table i (id int primary key, code text not null, body text);
         create unique index i_code on i (code); alter table i replica identity using index i_code;",
        "t, i",
    )
    .await;
    let mut watch = rig.watch(json!([{"schema": "public"}])).await;
    rig
        .run(
            "insert into t values (1, 'x', 2); update t set body = 'y'; update t set a = 3; delete from t;
             insert into i values (1, 'c', 'x'); update i set body = 'y'; update i set code = 'd', id = 2; delete from i;",
        )
        .await;
    let seen = rig.seen(&mut watch).await;
    let t = |a: i32, body: &str| json!({"a": a, "body": body, "b": 2});
    let i = |id: i32, code: &str, body: &str| json!({"id": id, "code": code, "body": body});
    let expected = [
        json!(["INSERT", t(1, "x")]),
        json!(["UPDATE", t(1, "y"), {"a": 1, "b": 2}]),
        json!(["UPDATE", t(3, "y"), {"a": 1, "b": 2}]),
        json!(["DELETE", {"a": 3, "b": 2}]),
        json!(["INSERT", i(1, "c", "x")]),
        json!(["UPDATE", i(1, "c", "y"), {"code": "c"}]),
        json!(["UPDATE", i(2, "d", "y"), {"code": "c"}]),
        json!(["DELETE", {"code": "d"}]),
    ];
    assert_eq!(briefs(&seen), expected);
}

/// 37, 38; 41: a large value that an update did not change is present too, also for filters
#[tokio::test]
async fn full_replica_identity_carries_the_whole_old_row() {
    let rig = WatchedDaemon::new(
        "create table t (id int primary key, n int, body text); alter table t replica identity full;
         alter table t alter body set storage external;",
        "t",
    )
    .await;
    let mut watch = rig
        .watch(json!([{"table": "t"}, {"schema": "public", "table": "t", "filter": "body=like.long%"}]))
        .await;
    rig.run("insert into t values (1, 1, 'long' || repeat('x', 5000)); update t set n = 2; delete from t")
        .await;
    let seen = rig.seen(&mut watch).await;
    let row = |n: i32| json!({"id": 1, "n": n, "body": format!("long{}", "x".repeat(5000))});
    let expected = [json!(["INSERT", row(1)]), json!(["UPDATE", row(2), row(1)]), json!(["DELETE", row(2)])];
    assert_eq!(briefs(&seen), expected);
    assert!(
        seen.iter().all(|it| watch.which(it) == [0, 1]),
        "{:?}",
        seen.iter().map(|it| watch.which(it)).collect::<Vec<_>>()
    );
}

/// 40
#[tokio::test]
async fn unchanged_toast_value_is_absent_and_never_null() {
    let rig = WatchedDaemon::new(
        "create table t (id int primary key, n int, body text, other text); alter table t alter body set storage external;",
        "t",
    )
    .await;
    let by_body = |filter: &str| json!({"schema": "public", "table": "t", "filter": filter});
    let mut watch = rig
        .watch(
            json!([{"table": "t"}, by_body("body=neq.y"), by_body("body=not.eq.y"), by_body("body=is.null")]),
        )
        .await;
    rig.run("insert into t values (1, 1, repeat('x', 5000), 'o'); update t set n = 2").await;
    let seen = rig.seen(&mut watch).await;
    assert_eq!(watch.which(&seen[0]), [0, 1, 2]);
    let update = &seen[1]["data"];
    match update["record"].get("body") {
        None => assert_eq!(watch.which(&seen[1]), [0], "what is not known passes no filter"),
        Some(body) => assert_eq!(body, &json!("x".repeat(5000)), "filled in"),
    }
    assert_eq!((&update["record"]["n"], &update["record"]["other"]), (&json!(2), &json!("o")));
    let names: Vec<_> = update["columns"].as_array().unwrap().iter().map(|column| &column["name"]).collect();
    assert_eq!(names, ["id", "n", "body", "other"]);
}

/// 42, 43
#[tokio::test]
async fn truncate_and_rollback_are_not_published() {
    let rig = WatchedDaemon::new("create table t (id int primary key)", "t").await;
    let mut watch = rig.watch(json!([{"table": "t"}])).await;
    rig.run(
        "begin; insert into t values (1); rollback;
             begin; insert into t values (2); savepoint s; insert into t values (3); rollback to s;
             insert into t values (4); commit;
             truncate t; insert into t values (5)",
    )
    .await;
    let ids: Vec<_> = rig.seen(&mut watch).await.iter().map(brief).collect();
    assert_eq!(ids, [2, 4, 5].map(|id| json!(["INSERT", {"id": id}])));
}

/// 44
#[tokio::test]
async fn changes_keep_the_order_of_statements_and_commits() {
    let rig =
        WatchedDaemon::new("create table a (n int primary key); create table b (n int primary key);", "a, b")
            .await;
    let mut watch = rig.watch(json!([{"table": "a"}, {"table": "b"}])).await;
    let (first, second) = (rig.db.client().await, rig.db.client().await);
    first.batch_execute("begin; insert into a values (10)").await.unwrap();
    second.batch_execute("begin; insert into b values (1); insert into a values (2); commit").await.unwrap();
    rig.run("insert into a values (3)").await;
    first
        .batch_execute(
            "insert into b values (11); insert into a values (12); update b set n = 13 where n = 11; commit",
        )
        .await
        .unwrap();
    let seen = rig.seen(&mut watch).await;
    let received: Vec<_> = seen
        .iter()
        .map(|it| (it["data"]["table"].as_str().unwrap(), it["data"]["record"]["n"].as_i64().unwrap()))
        .collect();
    assert_eq!(received, [("b", 1), ("a", 2), ("a", 3), ("a", 10), ("b", 11), ("a", 12), ("b", 13)]);
    let at = |n: usize| seen[n]["data"]["commit_timestamp"].as_str().unwrap();
    assert!(at(0) == at(1) && at(3) == at(6) && at(2) <= at(3));

    // Concurrent writers of one row: the last message equals the row's final value.
    rig.run(
        "insert into a values (0); create table c (id int primary key, n int); insert into c values (1, 0)",
    )
    .await;
    rig.run("alter publication supabase_realtime add table c").await;
    let mut watch = rig.watch(json!([{"table": "c"}])).await;
    let writers: Vec<_> = futures_util::future::join_all((0..4).map(|_| rig.db.client())).await;
    futures_util::future::join_all(writers.iter().map(async |sql| {
        for _ in 0..50 {
            sql.batch_execute("update c set n = n + 1").await.unwrap();
        }
    }))
    .await;
    let seen = rig.seen(&mut watch).await;
    let received: Vec<_> = seen.iter().map(|it| it["data"]["record"]["n"].as_i64().unwrap()).collect();
    assert_eq!(received, (1..=200).collect::<Vec<_>>());
}

/// 45, 46, 47
#[tokio::test]
async fn items_with_the_same_columns_share_a_message() {
    let rig = WatchedDaemon::new("create table t (z int, id int primary key, a text, b text)", "t").await;
    let item = |select: Value| json!({"schema": "public", "table": "t", "select": select});
    let mut watch = rig
        .watch(json!([item(json!(["b", "a", "b"])), {"table": "t"}, item(json!(["a", 7, "b"])), item(json!([])), item(json!(["a"]))]))
        .await;
    rig.run("insert into t values (1, 2, 'x', 'y'); update t set b = 'z'; delete from t").await;
    let seen = rig.seen(&mut watch).await;
    let received: Vec<_> = seen.iter().map(|it| (watch.which(it), brief(it))).collect();
    let groups = |kind: &str, rows: [Value; 3]| {
        let [all, a, ab] = rows;
        let mut received = Vec::new();
        for (which, row) in [(vec![1, 3], all), (vec![4], a), (vec![0, 2], ab)] {
            let brief = match kind {
                "INSERT" => json!([kind, row]),
                "UPDATE" => json!([kind, row, {"id": 2}]),
                _ => json!([kind, {"id": 2}]),
            };
            received.push((which, brief));
        }
        received
    };
    let rows = |b: &str| {
        [
            json!({"z": 1, "id": 2, "a": "x", "b": b}),
            json!({"id": 2, "a": "x"}),
            json!({"id": 2, "a": "x", "b": b}),
        ]
    };
    let expected =
        [groups("INSERT", rows("y")), groups("UPDATE", rows("z")), groups("DELETE", rows("z"))].concat();
    assert_eq!(received, expected);
    let columns = |it: &Value| {
        let names =
            it["data"]["columns"].as_array().unwrap().iter().map(|c| c["name"].as_str().unwrap().to_owned());
        names.collect::<Vec<_>>()
    };
    assert_eq!(columns(&seen[0]), ["z", "id", "a", "b"]);
    assert_eq!(columns(&seen[1]), ["id", "a"]);
    assert_eq!(columns(&seen[2]), ["id", "a", "b"]);
}

/// 48, W20: once for each subscription and table, not for every change
#[tokio::test]
async fn table_without_a_primary_key_is_reported_once() {
    let rig = WatchedDaemon::new(
        "create table t (n int); alter table t replica identity full; create table other (id int primary key);",
        "t, other",
    )
    .await;
    let mut watch = rig.watch(json!([{"table": "t"}, {"table": "other"}])).await;
    rig.run("insert into t values (1); insert into other values (1); insert into t values (2); update t set n = 3; delete from t").await;
    let seen = rig.seen(&mut watch).await;
    let error = json!({
        "schema": "public", "table": "t", "type": "INSERT", "commit_timestamp": null, "columns": [], "record": {},
        "errors": ["Error 400: Bad Request, no primary key"],
    });
    assert_eq!(seen[0]["data"], error);
    assert_eq!(brief(&seen[1]), json!(["INSERT", {"id": 1}]));
    let rest: Vec<_> = seen[2..].iter().map(brief).collect();
    assert_eq!(
        rest,
        [json!(["DELETE", {"n": 3}]), json!(["DELETE", {"n": 3}])],
        "deletes carry their full record"
    );
}

/// 49
#[tokio::test]
async fn oversized_row_carries_its_key_and_small_values() {
    let rig = WatchedDaemon::new(
        "create table t (id text primary key, n int, body text, small text, edge text, nothing text);
         alter table t replica identity full;",
        "t",
    )
    .await;
    let mut watch =
        rig.watch(json!([{"table": "t"}, {"schema": "public", "table": "t", "filter": "n=gt.5"}])).await;
    rig
        .run(
            "insert into t values (repeat('k', 100), 1, repeat('x', 1100000), repeat('s', 62), repeat('e', 63), null);
             update t set n = 9; delete from t; insert into t values ('small', 9, repeat('x', 1000000), '', '', null)",
        )
        .await;
    let seen = rig.seen(&mut watch).await;
    assert_eq!(
        seen.iter().map(|it| watch.which(it)).collect::<Vec<_>>(),
        [vec![0], vec![0, 1], vec![0, 1], vec![0, 1]]
    );
    for (message, n) in seen[..3].iter().zip([1, 9, 9]) {
        let data = &message["data"];
        assert_eq!(data["errors"], json!(["Error 413: Payload Too Large"]));
        assert!(data["commit_timestamp"].is_string() && data["columns"].as_array().unwrap().len() == 6);
        let kept = |n: i32| json!({"id": "k".repeat(100), "n": n, "small": "s".repeat(62)});
        if data["type"] != "DELETE" {
            assert_eq!(data["record"], kept(n));
        }
        match data["type"].as_str().unwrap() {
            "INSERT" => assert!(data.get("old_record").is_none()),
            "UPDATE" => assert_eq!(data["old_record"], kept(1)),
            _ => assert_eq!(data["old_record"], kept(9)),
        }
    }
    assert_eq!(brief(&seen[3])[1]["body"].as_str().unwrap().len(), 1_000_000);
}

/// Serializer 1.0.0 has the same payload in its own envelope.
#[tokio::test]
async fn change_has_the_same_payload_in_both_serializers() {
    let rig = WatchedDaemon::new("create table t (id int primary key)", "t").await;
    let mut new = rig.watch(json!([{"table": "t"}])).await;
    let old = crate::realtime::Socket::open(&rig.url(json!({}), "1.0.0", ""), false).await;
    let mut old = Watch::start(old, "room", json!([{"table": "t"}]), json!({})).await;
    rig.run("insert into t values (1)").await;
    assert_eq!(new.next().await, old.next().await);
}
