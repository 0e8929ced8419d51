//! Which tables an item means, and publications that change: statements 14 to 16, 20, 27, 28 and 118.
use crate::changes::watch::{House, UNABLE, Watch, brief, briefs};
use serde_json::{Value, json};

fn tables(seen: &[Value]) -> Vec<(String, Vec<usize>)> {
    let name = |it: &Value| {
        format!("{}.{}", it["data"]["schema"].as_str().unwrap(), it["data"]["table"].as_str().unwrap())
    };
    seen.iter().map(|it| (name(it), Vec::new())).collect()
}

fn heard(watch: &Watch, seen: &[Value]) -> Vec<(String, Vec<usize>)> {
    let which = seen.iter().map(|it| watch.which(it));
    tables(seen).into_iter().zip(which).map(|((name, _), which)| (name, which)).collect()
}

/// 14, 15, 16, 20: names are exact, and `*` is the only wildcard.
#[tokio::test]
async fn names_are_exact_and_what_is_not_named_is_every_table() {
    let house = House::new(
        "create schema s2; grant usage on schema s2 to authenticated;
         alter default privileges in schema s2 grant select on tables to authenticated;
         create table a_b (id int primary key); create table axb (id int primary key);
         create table \"a%\" (id int primary key); create table \"Üñ \"\"odd\"\"\" (id int primary key);
         create table s2.a_b (id int primary key); create table s2.apart (id int primary key);
         create table unpublished (id int primary key);",
        "a_b, axb, \"a%\", \"Üñ \"\"odd\"\"\", s2.a_b, s2.apart",
    )
    .await;
    let mut watch = house
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
    house
        .run(
            "insert into unpublished values (1); insert into a_b values (1); insert into axb values (1);
             insert into \"a%\" values (1); insert into \"Üñ \"\"odd\"\"\" values (1); insert into s2.a_b values (1);
             insert into s2.apart values (1)",
        )
        .await;
    let seen = house.seen(&mut watch).await;
    let expected = [
        ("public.a_b", vec![0, 1, 2, 3]),
        ("public.axb", vec![0, 2]),
        ("public.a%", vec![0, 2, 5]),
        ("public.Üñ \"odd\"", vec![0, 2, 6]),
        ("s2.a_b", vec![2, 3, 4]),
        ("s2.apart", vec![2, 4]),
    ];
    assert_eq!(heard(&watch, &seen), expected.map(|(name, which)| (name.to_owned(), which)));
    for pattern in ["a__", "a%b", "%", "A_B"] {
        let told = house.refusal(json!([{"table": pattern}])).await;
        assert!(told.starts_with(&format!("{UNABLE}Please check")), "{pattern}: {told}");
    }
}

/// 27
#[tokio::test]
async fn a_table_that_is_published_later_reaches_those_who_watch_all_of_them() {
    let house = House::new("create table early (id int primary key)", "early").await;
    let mut watch = house.watch(json!([{"schema": "public"}, {"table": "early"}])).await;
    house
        .run(
            "create table late (id int primary key, body text);
             alter publication supabase_realtime add table late",
        )
        .await;
    house.run("insert into late values (1, 'x')").await;
    house.run("insert into early values (2)").await;
    let seen = house.seen(&mut watch).await;
    let expected = [("public.late".to_owned(), vec![0]), ("public.early".to_owned(), vec![0, 1])];
    assert_eq!(heard(&watch, &seen), expected);
    assert_eq!(brief(&seen[0]), json!(["INSERT", {"id": 1, "body": "x"}]));
}

/// 28
#[tokio::test]
async fn a_publication_that_loses_and_gains_tables_costs_the_others_nothing() {
    let house = House::new(
        "create table kept (id bigint primary key); create table other (id bigint primary key);",
        "kept, other",
    )
    .await;
    let mut watch = house.watch(json!([{"table": "kept"}, {"schema": "public"}])).await;
    let (sql, rows) = (house.db.client().await, 400_i64);
    let write = async {
        for id in 1..=rows {
            sql.execute("insert into kept values ($1)", &[&id]).await.unwrap();
        }
    };
    let change = async {
        for _ in 0..10 {
            house.run("alter publication supabase_realtime drop table other").await;
            house.run("alter publication supabase_realtime add table other").await;
        }
    };
    tokio::join!(write, change);
    let seen = house.seen(&mut watch).await;
    let ids: Vec<_> = seen.iter().map(|it| it["data"]["record"]["id"].as_i64().unwrap()).collect();
    assert_eq!(ids, (1..=rows).collect::<Vec<_>>());
    assert!(seen.iter().all(|it| watch.which(it) == [0, 1]));
    // A table that comes back is watched again by who watches all.
    house.run("insert into other values (1)").await;
    let seen = house.seen(&mut watch).await;
    assert_eq!(heard(&watch, &seen), [("public.other".to_owned(), vec![1])]);
}

/// 118: the publication decides what leaves the database; what it leaves out cannot even be named.
#[tokio::test]
async fn row_filters_and_column_lists_of_the_publication_hold_for_everybody() {
    let house = House::new(
        "create table rows (id int primary key, n int, replica text); alter table rows replica identity full;
         create table cols (id int primary key, open text, secret text);
         alter publication supabase_realtime add table rows where (n > 10), cols (id, open);",
        "",
    )
    .await;
    let mut watch = house
        .watch_as(
            json!({"role": "service_role"}),
            json!([{"table": "rows"}, {"schema": "public", "table": "cols"}]),
        )
        .await;
    house
        .run(
            "insert into rows values (1, 5), (2, 15); update rows set n = 20 where id = 1; update rows set n = 21 where id = 2;
             update rows set n = 1 where id = 1; delete from rows;
             insert into cols values (1, 'a', 'hidden'); update cols set secret = 'still'; delete from cols;",
        )
        .await;
    let seen = house.seen(&mut watch).await;
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
    let told = house.refusal_as(claims.clone(), item(json!({"filter": "secret=eq.hidden"}))).await;
    assert!(told.contains("invalid column for filter secret"), "{told}");
    let told = house.refusal_as(claims, item(json!({"select": ["secret"]}))).await;
    assert!(told.contains("invalid column for select secret"), "{told}");
}

const PARTS: &str = "
    create table parts (id int primary key, body text) partition by range (id);
    create table low partition of parts for values from (0) to (100);
    create table high partition of parts for values from (100) to (200);";
const MOVES: &str = "insert into parts values (1, 'a'); update parts set id = 150; delete from parts;";

/// 118: with `publish_via_partition_root` a change is one of the root, whichever leaf it is in.
#[tokio::test]
async fn a_partitioned_table_is_one_table_where_it_is_published_by_its_root() {
    let house = House::new(PARTS, "parts").await;
    let mut watch = house
        .watch(json!([{"table": "parts"}, {"table": "parts", "schema": "public", "filter": "id=gt.100"}]))
        .await;
    house.run(MOVES).await;
    let seen = house.seen(&mut watch).await;
    assert!(seen.iter().all(|it| it["data"]["table"] == "parts"), "{seen:?}");
    // A row that moves to another leaf is written as a new one there.
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
    let told = house.refusal(json!([{"table": "low"}])).await;
    assert!(told.starts_with(&format!("{UNABLE}Please check")), "a leaf is not published: {told}");
}

/// 118
#[tokio::test]
async fn without_the_root_each_leaf_is_a_table_of_its_own() {
    let schema =
        format!("{PARTS}alter publication supabase_realtime set (publish_via_partition_root = false);");
    let house = House::new(&schema, "parts").await;
    let mut watch = house.watch(json!([{"schema": "public"}, {"table": "high"}])).await;
    house.run(MOVES).await;
    let seen = house.seen(&mut watch).await;
    let expected = [("low", vec![0]), ("low", vec![0]), ("high", vec![0, 1]), ("high", vec![0, 1])];
    assert_eq!(heard(&watch, &seen), expected.map(|(name, which)| (format!("public.{name}"), which)));
    let told = house.refusal(json!([{"table": "parts"}])).await;
    assert!(told.starts_with(&format!("{UNABLE}Please check")), "the root is not published: {told}");
}
