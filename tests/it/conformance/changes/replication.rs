//! The log behind it: statement 117, and what of 112 to 118 is not in `tests/it/wal/` and `tests/it/changes/faults.rs`.
use crate::changes::watch::{House, brief, change};
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
async fn a_table_that_gets_another_shape_is_told_with_it_from_then_on() {
    let house = House::new("create table t (id int primary key, a int)", "t").await;
    let mut watch = house
        .watch(json!([{"table": "t"}, {"schema": "public", "table": "t", "filter": "a=eq.1"}, {"schema": "public", "table": "t", "select": ["a"]}]))
        .await;
    // Each is heard before the next: who may see a column is asked of the table as it is.
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
        house.run(transaction).await;
        frames.extend(house.frames(&mut watch).await);
    }
    // What wanted the column that is gone may be told so.
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

/// A table that is dropped and made again under its name is another, and watched all the same.
#[tokio::test]
async fn a_table_that_is_made_again_is_watched_again() {
    let house = House::new("create table t (id int primary key, a int)", "t").await;
    let mut watch = house.watch(json!([{"table": "t"}])).await;
    house.run("insert into t values (1, 1)").await;
    let mut frames = house.frames(&mut watch).await;
    house.run("drop table t; create table t (id text primary key)").await;
    house.run("alter publication supabase_realtime add table t").await;
    house.run("insert into t values ('again')").await;
    frames.extend(house.frames(&mut watch).await);
    let records: Vec<_> = frames
        .iter()
        .filter(|got| got.event == "postgres_changes")
        .map(|got| got.payload["data"]["record"].clone())
        .collect();
    assert_eq!(records, [json!({"id": 1, "a": 1}), json!({"id": "again"})]);
}
