//! The WAL behind row changes: statement 117, and the parts of 112 to 118 not in `tests/it/wal/` and `tests/it/changes/faults.rs`.
use crate::changes::watch::{WatchedDaemon, brief, change};
use serde_json::{Value, json};

fn columns(message: &Value) -> Vec<&str> {
    message["data"]["columns"]
        .as_array()
        .unwrap()
        .iter()
        .map(|column| column["name"].as_str().unwrap())
        .collect()
}

/// 117
#[tokio::test]
async fn altered_table_is_published_with_its_new_columns() {
    let rig = WatchedDaemon::new("create table t (id int primary key, a int)", "t").await;
    let mut watch = rig
        .watch(json!([{"table": "t"}, {"schema": "public", "table": "t", "filter": "a=eq.1"}, {"schema": "public", "table": "t", "select": ["a"]}]))
        .await;
    // Each change is received before the next: column rights are read from the present table.
    let mut frames = Vec::new();
    for transaction in [
        "insert into t values (1, 1)",
        "alter table t add column b text default 'x'",
        "insert into t values (2, 1)",
        "insert into t values (3, 1); alter table t add c int; insert into t values (4, 1, 'y', 7)",
        "alter table t rename b to \"B b\"; alter table t alter a type numeric(5, 2)",
        "insert into t values (5, 1, 'z', 8)",
        "alter table t drop a",
        "insert into t values (6, 'w', 9)",
    ] {
        rig.run(transaction).await;
        frames.extend(rig.frames(&mut watch).await);
    }
    // Subscribers of the dropped column may get an error.
    let seen: Vec<_> = frames.into_iter().filter(|got| got.event != "system").map(change).collect();
    let whole: Vec<_> = seen.iter().filter(|it| watch.which(it).contains(&0)).collect();
    let records: Vec<_> = whole.iter().map(|it| brief(it)[1].clone()).collect();
    assert_eq!(
        records,
        [
            json!({"id": 1, "a": 1}),
            json!({"id": 2, "a": 1, "b": "x"}),
            json!({"id": 3, "a": 1, "b": "x"}),
            json!({"id": 4, "a": 1, "b": "y", "c": 7}),
            json!({"id": 5, "a": 1.0, "B b": "z", "c": 8}),
            json!({"id": 6, "B b": "w", "c": 9}),
        ]
    );
    assert_eq!((columns(whole[0]), columns(whole[1])), (vec!["id", "a"], vec!["id", "a", "b"]));
    assert_eq!(columns(whole[5]), ["id", "B b", "c"]);
    assert_eq!(whole[4]["data"]["columns"][1], json!({"name": "a", "type": "numeric"}));
    let filtered: Vec<_> = seen.iter().filter(|it| watch.which(it).contains(&1)).collect();
    assert_eq!(filtered.len(), 5, "by the column while there is one");
}

/// A table that is dropped and created again under its name is a new table; its subscribers receive it too.
#[tokio::test]
async fn recreated_table_is_watched_again() {
    let rig = WatchedDaemon::new("create table t (id int primary key, a int)", "t").await;
    let mut watch = rig.watch(json!([{"table": "t"}])).await;
    rig.run("insert into t values (1, 1)").await;
    let mut frames = rig.frames(&mut watch).await;
    rig.run("drop table t; create table t (id text primary key)").await;
    rig.run("alter publication supabase_realtime add table t").await;
    rig.run("insert into t values ('again')").await;
    frames.extend(rig.frames(&mut watch).await);
    let records: Vec<_> = frames
        .iter()
        .filter(|got| got.event == "postgres_changes")
        .map(|got| got.payload["data"]["record"].clone())
        .collect();
    assert_eq!(records, [json!({"id": 1, "a": 1}), json!({"id": "again"})]);
}
