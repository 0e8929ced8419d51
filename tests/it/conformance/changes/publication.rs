//! The tables that an item matches, and changes of the publication: statements 14 to 16, 20, 27, 28 and 118.
use crate::changes::watch::{UNABLE, Watch, WatchedDaemon, brief, briefs};
use serde_json::{Value, json};

fn tables(seen: &[Value]) -> Vec<(String, Vec<usize>)> {
    let name = |it: &Value| {
        format!("{}.{}", it["data"]["schema"].as_str().unwrap(), it["data"]["table"].as_str().unwrap())
    };
    seen.iter().map(|it| (name(it), Vec::new())).collect()
}

fn received(watch: &Watch, seen: &[Value]) -> Vec<(String, Vec<usize>)> {
    let which = seen.iter().map(|it| watch.which(it));
    tables(seen).into_iter().zip(which).map(|((name, _), which)| (name, which)).collect()
}

/// 14, 15, 16, 20: names are exact, and `*` is the only wildcard.
#[tokio::test]
async fn names_are_exact_and_omitted_ones_match_every_table() {
    let rig = WatchedDaemon::new(
        "create schema s2; grant usage on schema s2 to authenticated;
         alter default privileges in schema s2 grant select on tables to authenticated;
         create table a_b (id int primary key); create table axb (id int primary key);
         create table \"a%\" (id int primary key); create table \"Üñ \"\"odd\"\"\" (id int primary key);
         create table s2.a_b (id int primary key); create table s2.apart (id int primary key);
         create table unpublished (id int primary key);",
        "a_b, axb, \"a%\", \"Üñ \"\"odd\"\"\", s2.a_b, s2.apart",
    )
    .await;
    let mut watch = rig
        .watch(json!([
            {"schema": "public"},
            {"table": "a_b"},
            {"schema": "*"},
            {"schema": "*", "table": "a_b"},
            {"schema": "s2", "table": "*"},
            {"table": "a%"},
            {"table": "Üñ \"odd\"", "schema": "public"},
        ]))
        .await;
    rig
        .run(
            "insert into unpublished values (1); insert into a_b values (1); insert into axb values (1);
             insert into \"a%\" values (1); insert into \"Üñ \"\"odd\"\"\" values (1); insert into s2.a_b values (1);
             insert into s2.apart values (1)",
        )
        .await;
    let seen = rig.seen(&mut watch).await;
    let expected = [
        ("public.a_b", vec![0, 1, 2, 3]),
        ("public.axb", vec![0, 2]),
        ("public.a%", vec![0, 2, 5]),
        ("public.Üñ \"odd\"", vec![0, 2, 6]),
        ("s2.a_b", vec![2, 3, 4]),
        ("s2.apart", vec![2, 4]),
    ];
    assert_eq!(received(&watch, &seen), expected.map(|(name, which)| (name.to_owned(), which)));
    for pattern in ["a__", "a%b", "%", "A_B"] {
        let received = rig.refusal(json!([{"table": pattern}])).await;
        assert!(received.starts_with(&format!("{UNABLE}Please check")), "{pattern}: {received}");
    }
}

/// 27
#[tokio::test]
async fn table_published_later_reaches_wildcard_subscribers() {
    let rig = WatchedDaemon::new("create table early (id int primary key)", "early").await;
    let mut watch = rig.watch(json!([{"schema": "public"}, {"table": "early"}])).await;
    rig.run(
        "create table late (id int primary key, body text);
             alter publication supabase_realtime add table late",
    )
    .await;
    rig.run("insert into late values (1, 'x')").await;
    rig.run("insert into early values (2)").await;
    let seen = rig.seen(&mut watch).await;
    let expected = [("public.late".to_owned(), vec![0]), ("public.early".to_owned(), vec![0, 1])];
    assert_eq!(received(&watch, &seen), expected);
    assert_eq!(brief(&seen[0]), json!(["INSERT", {"id": 1, "body": "x"}]));
}

/// 28
#[tokio::test]
async fn changed_publication_does_not_affect_other_tables() {
    let rig = WatchedDaemon::new(
        "create table kept (id bigint primary key); create table other (id bigint primary key);",
        "kept, other",
    )
    .await;
    let mut watch = rig.watch(json!([{"table": "kept"}, {"schema": "public"}])).await;
    let (sql, rows) = (rig.db.client().await, 400_i64);
    let write = async {
        for id in 1..=rows {
            sql.execute("insert into kept values ($1)", &[&id]).await.unwrap();
        }
    };
    let change = async {
        for _ in 0..10 {
            rig.run("alter publication supabase_realtime drop table other").await;
            rig.run("alter publication supabase_realtime add table other").await;
        }
    };
    tokio::join!(write, change);
    let seen = rig.seen(&mut watch).await;
    let ids: Vec<_> = seen.iter().map(|it| it["data"]["record"]["id"].as_i64().unwrap()).collect();
    assert_eq!(ids, (1..=rows).collect::<Vec<_>>());
    assert!(seen.iter().all(|it| watch.which(it) == [0, 1]));
    // A table that is published again reaches wildcard subscribers again.
    rig.run("insert into other values (1)").await;
    let seen = rig.seen(&mut watch).await;
    assert_eq!(received(&watch, &seen), [("public.other".to_owned(), vec![1])]);
}

/// 118: the publication limits what leaves the database. What it leaves out cannot be subscribed to.
#[tokio::test]
async fn row_filters_and_column_lists_of_the_publication_apply_to_every_subscriber() {
    let rig = WatchedDaemon::new(
        "create table rows (id int primary key, n int, replica text); alter table rows replica identity full;
         create table cols (id int primary key, open text, secret text);
         alter publication supabase_realtime add table rows where (n > 10), cols (id, open);",
        "",
    )
    .await;
    let mut watch = rig
        .watch_as(
            json!({"role": "service_role"}),
            json!([{"table": "rows"}, {"schema": "public", "table": "cols"}]),
        )
        .await;
    rig
        .run(
            "insert into rows values (1, 5), (2, 15); update rows set n = 20 where id = 1; update rows set n = 21 where id = 2;
             update rows set n = 1 where id = 1; delete from rows;
             insert into cols values (1, 'a', 'hidden'); update cols set secret = 'still'; delete from cols;",
        )
        .await;
    let seen = rig.seen(&mut watch).await;
    let row = |id: i32, n: i32| json!({"id": id, "n": n, "replica": null});
    let expected = [
        json!(["INSERT", row(2, 15)]),
        json!(["INSERT", row(1, 20)]),
        json!(["UPDATE", row(2, 21), row(2, 15)]),
        json!(["DELETE", row(1, 20)]),
        json!(["DELETE", row(2, 21)]),
        json!(["INSERT", {"id": 1, "open": "a"}]),
        json!(["UPDATE", {"id": 1, "open": "a"}, {"id": 1}]),
        json!(["DELETE", {"id": 1}]),
    ];
    assert_eq!(briefs(&seen), expected);
    let columns = json!([{"name": "id", "type": "int4"}, {"name": "open", "type": "text"}]);
    assert!(seen[5..].iter().all(|it| it["data"]["columns"] == columns), "{seen:?}");
    let item = |more: Value| {
        let mut item = json!({"schema": "public", "table": "cols"});
        item.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        json!([item])
    };
    let claims = json!({"role": "service_role"});
    let received = rig.refusal_as(claims.clone(), item(json!({"filter": "secret=eq.hidden"}))).await;
    assert!(received.contains("invalid column for filter secret"), "{received}");
    let received = rig.refusal_as(claims, item(json!({"select": ["secret"]}))).await;
    assert!(received.contains("invalid column for select secret"), "{received}");
}

const PARTS: &str = "
    create table parts (id int primary key, body text) partition by range (id);
    create table low partition of parts for values from (0) to (100);
    create table high partition of parts for values from (100) to (200);";
const MOVES: &str = "insert into parts values (1, 'a'); update parts set id = 150; delete from parts;";

/// 118: with `publish_via_partition_root` a change belongs to the root, whichever partition holds the row.
#[tokio::test]
async fn partitioned_table_published_by_its_root_is_one_table() {
    let rig = WatchedDaemon::new(PARTS, "parts").await;
    let mut watch = rig
        .watch(json!([{"table": "parts"}, {"table": "parts", "schema": "public", "filter": "id=gt.100"}]))
        .await;
    rig.run(MOVES).await;
    let seen = rig.seen(&mut watch).await;
    assert!(seen.iter().all(|it| it["data"]["table"] == "parts"), "{seen:?}");
    // A row that moves to another partition is an insert there.
    assert_eq!(
        briefs(&seen),
        [
            json!(["INSERT", {"id": 1, "body": "a"}]),
            json!(["DELETE", {"id": 1}]),
            json!(["INSERT", {"id": 150, "body": "a"}]),
            json!(["DELETE", {"id": 150}]),
        ]
    );
    let which: Vec<_> = seen.iter().map(|it| watch.which(it)).collect();
    assert_eq!(which, [vec![0], vec![0], vec![0, 1], vec![0, 1]]);
    let received = rig.refusal(json!([{"table": "low"}])).await;
    assert!(received.starts_with(&format!("{UNABLE}Please check")), "a leaf is not published: {received}");
}

/// 118
#[tokio::test]
async fn partition_published_by_itself_is_a_table() {
    let schema =
        format!("{PARTS}alter publication supabase_realtime set (publish_via_partition_root = false);");
    let rig = WatchedDaemon::new(&schema, "parts").await;
    let mut watch = rig.watch(json!([{"schema": "public"}, {"table": "high"}])).await;
    rig.run(MOVES).await;
    let seen = rig.seen(&mut watch).await;
    let expected = [("low", vec![0]), ("low", vec![0]), ("high", vec![0, 1]), ("high", vec![0, 1])];
    assert_eq!(received(&watch, &seen), expected.map(|(name, which)| (format!("public.{name}"), which)));
    let received = rig.refusal(json!([{"table": "parts"}])).await;
    assert!(received.starts_with(&format!("{UNABLE}Please check")), "the root is not published: {received}");
}
