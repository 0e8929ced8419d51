//! What rows, tables and messages look like when they come out.
use super::rig::rig;
use convoke::wal::{self, Cell, Change, Op, RowChange};
use serde_json::{Value, json};

fn row(change: &Change) -> &RowChange {
    match change {
        Change::Row(row) => row,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn every_type_comes_as_json_of_its_kind() {
    let schema = "
        create type mood as enum ('sad', 'happy');
        create domain small as int4 check (value < 10);
        create type pair as (a int, b text);
        create table everything (
            id int8 primary key, i2 int2, i4 int4, n numeric, ns numeric(20,4), f4 float4, f8 float8, inf float8,
            b bool, t text, v varchar(20), c char(5), u uuid, d date, tm time, ts timestamp, tz timestamptz,
            iv interval, j json, jb jsonb, by bytea, ia int4[], ta text[], ja jsonb[], m mood, s small, p pair,
            mo money, ip inet, r int4range, nul text, ma mood[]);";
    let rig = rig(schema, &["everything"]).await;
    let mut consumer = rig.leader().await;
    rig.sql
        .batch_execute(
            r#"insert into everything values (
            9223372036854775807, -2, 4, 12345678901234567890.123, 1.5, 1.1, 1e-300, 'infinity',
            true, E'a "quoted"\nline ü', 'v', 'ab', '0B0E7C2A-0000-4000-8000-000000000000',
            '2024-02-29', '12:34:56.5', '2024-02-29 12:34:56.789', '2024-02-29 12:34:56.789012+02',
            '1 day 02:03:04', '{"b": 1, "a": [1.50]}', '{"b": 1, "a": null}', '\xdeadbeef00',
            '{{1,2},{3,NULL}}', '{"a,b","","NULL",NULL}', '{"{\"k\": [1]}"}', 'happy', 7, '(1,x)',
            12.34, '10.0.0.0/8', '[1,5)', null, '{sad}')"#,
        )
        .await
        .unwrap();
    let batch = consumer.transaction().await;
    let change = row(&batch.changes[0]);
    let expected = json!({
        "id": 9_223_372_036_854_775_807_i64, "i2": -2, "i4": 4, "n": "12345678901234567890.123", "ns": 1.5,
        "f4": 1.1, "f8": 1e-300, "inf": null, "b": true, "t": "a \"quoted\"\nline ü", "v": "v", "c": "ab   ",
        "u": "0b0e7c2a-0000-4000-8000-000000000000", "d": "2024-02-29", "tm": "12:34:56.5",
        "ts": "2024-02-29T12:34:56.789", "tz": "2024-02-29T10:34:56.789012+00:00", "iv": "1 day 02:03:04",
        "j": {"b": 1, "a": [1.5]}, "jb": {"b": 1, "a": null}, "by": "deadbeef00",
        "ia": [[1, 2], [3, null]], "ta": ["a,b", "", "NULL", null], "ja": [{"k": [1]}], "m": "happy", "s": 7,
        "p": "(1,x)", "mo": "$12.34", "ip": "10.0.0.0/8", "r": "[1,5)", "nul": null, "ma": ["sad"],
    });
    assert_eq!(Value::Object(change.new_json()), expected);
    let mut text = Vec::new();
    change.write_new_json(&mut text);
    let text = String::from_utf8(text).unwrap();
    assert!(text.contains(r#""n":12345678901234567890.123,"ns":1.5000,"#), "{text}");
    assert!(serde_json::from_str::<Value>(&text).is_ok());
    let names: Vec<_> = change.relation.columns.iter().map(|c| c.type_name.as_str()).collect();
    assert_eq!(names[..4], ["int8", "int2", "int4", "numeric"]);
    assert_eq!((names[24], names[25]), ("mood", "int4"));
    consumer.stop().await;
}

#[tokio::test]
async fn updates_and_deletes_carry_what_the_replica_identity_keeps() {
    let schema = "create table keyed (id int primary key, v text);
                  create table whole (id int primary key, v text);
                  alter table whole replica identity full;";
    let rig = rig(schema, &["keyed", "whole"]).await;
    let mut consumer = rig.leader().await;
    rig.sql
        .batch_execute(
            "begin; insert into keyed values (1, 'a'); update keyed set v = 'b'; update keyed set id = 2;
             delete from keyed; insert into whole values (1, 'a'); update whole set v = 'b'; delete from whole; commit",
        )
        .await
        .unwrap();
    let batch = consumer.transaction().await;
    let seen: Vec<_> = batch
        .changes
        .iter()
        .map(row)
        .map(|c| (c.op, Value::Object(c.old_json()), Value::Object(c.new_json())))
        .collect();
    let expected = [
        (Op::Insert, json!({}), json!({"id": 1, "v": "a"})),
        (Op::Update, json!({"id": 1}), json!({"id": 1, "v": "b"})),
        (Op::Update, json!({"id": 1}), json!({"id": 2, "v": "b"})),
        (Op::Delete, json!({"id": 2}), json!({})),
        (Op::Insert, json!({}), json!({"id": 1, "v": "a"})),
        (Op::Update, json!({"id": 1, "v": "a"}), json!({"id": 1, "v": "b"})),
        (Op::Delete, json!({"id": 1, "v": "b"}), json!({})),
    ];
    assert_eq!(seen, expected);
    let now: f64 = rig.sql.query_one("select extract(epoch from now())::float8", &[]).await.unwrap().get(0);
    assert!((batch.committed_at.timestamp() as f64 - now).abs() < 60.0);
    assert!(batch.commit_lsn < batch.end_lsn);
    consumer.stop().await;
}

#[tokio::test]
async fn unchanged_toast_value_is_marked_or_filled_from_the_old_row() {
    let schema = "create table keyed (id int primary key, n int, big text);
                  create table whole (id int primary key, n int, big text);
                  alter table keyed alter big set storage external;
                  alter table whole alter big set storage external;
                  alter table whole replica identity full;";
    let rig = rig(schema, &["keyed", "whole"]).await;
    let mut consumer = rig.leader().await;
    for table in ["keyed", "whole"] {
        let insert = format!("insert into {table} values (1, 1, repeat('x', 20000))");
        rig.sql.batch_execute(&insert).await.unwrap();
        let inserted = consumer.transaction().await;
        assert_eq!(row(&inserted.changes[0]).cell("big").unwrap().text().unwrap().len(), 20_000);
        rig.sql.batch_execute(&format!("update {table} set n = 2")).await.unwrap();
        let updated = consumer.transaction().await;
        let change = row(&updated.changes[0]);
        assert_eq!(change.new.as_ref().unwrap()[2], Cell::Unchanged);
        if table == "keyed" {
            assert_eq!(change.cell("big"), Some(&Cell::Unchanged));
            assert!(!change.new_json().contains_key("big"));
        } else {
            assert_eq!(change.new_json()["big"].as_str().unwrap().len(), 20_000);
        }
    }
    consumer.stop().await;
}

#[tokio::test]
async fn a_table_may_change_its_shape_in_mid_stream() {
    let rig = rig("create table items (id int primary key)", &["items"]).await;
    let mut consumer = rig.leader().await;
    rig.sql.batch_execute("insert into items values (1)").await.unwrap();
    let before = consumer.transaction().await;
    rig.sql
        .batch_execute(
            "begin; insert into items values (2); alter table items add note text default 'new';
             insert into items values (3, 'own'); commit",
        )
        .await
        .unwrap();
    let batch = consumer.transaction().await;
    let rows: Vec<_> = batch.changes.iter().map(|c| Value::Object(row(c).new_json())).collect();
    assert_eq!(rows, [json!({"id": 2}), json!({"id": 3, "note": "own"})]);
    assert_eq!(row(&before.changes[0]).relation.columns.len(), 1);
    consumer.stop().await;
}

#[tokio::test]
async fn logical_messages_come_in_their_place_in_the_transaction() {
    let rig = rig("create table items (id int primary key)", &["items"]).await;
    let mut consumer = rig.leader().await;
    rig.sql
        .batch_execute(
            "select pg_logical_emit_message(false, 'convoke', 'not ours');
             begin; insert into items values (1); select pg_logical_emit_message(true, 'convoke', 'wake');
             insert into items values (2); commit",
        )
        .await
        .unwrap();
    let batch = consumer.transaction().await;
    assert_eq!(batch.changes.len(), 3);
    let wake = Change::Message { prefix: "convoke".into(), content: "wake".into() };
    assert_eq!(batch.changes[1], wake);
    // Without any row it is a transaction too.
    rig.sql.batch_execute("select pg_logical_emit_message(true, 'convoke', 'wake')").await.unwrap();
    assert_eq!(consumer.transaction().await.changes, [wake]);
    consumer.stop().await;
}

#[tokio::test]
async fn a_truncate_names_all_its_tables() {
    let schema = "create table parents (id int primary key);
                  create table children (id int primary key, parent int references parents);";
    let rig = rig(schema, &["parents", "children"]).await;
    let mut consumer = rig.leader().await;
    rig.sql.batch_execute("truncate parents cascade").await.unwrap();
    let batch = consumer.transaction().await;
    let Change::Truncate(tables) = &batch.changes[0] else { panic!("{batch:?}") };
    let mut names: Vec<_> = tables.iter().map(|table| table.name.as_str()).collect();
    names.sort_unstable();
    assert_eq!(names, ["children", "parents"]);
    consumer.stop().await;
}

#[tokio::test]
async fn a_publication_is_made_to_name_exactly_the_tables_wanted() {
    let schema = r#"create table a (id int primary key); create table "B ""x" (id int primary key);
                    create table keyless (id int); create view seen as select 1;"#;
    let rig = rig(schema, &["a"]).await;
    let mut consumer = rig.leader().await;
    let table = |name: &str| ("public".to_owned(), name.to_owned());
    let publish = async |tables: &[wal::TableName]| wal::publish(&rig.sql, "convoke", tables).await;

    // A running stream follows.
    publish(&[table("a"), table("B \"x")]).await.unwrap();
    publish(&[table("B \"x")]).await.unwrap();
    rig.sql.batch_execute(r#"insert into a values (1); insert into "B ""x" values (2)"#).await.unwrap();
    assert_eq!(consumer.ids().await, [2]);

    let missing = publish(&[table("a"), table("gone")]).await.unwrap_err();
    assert_eq!(
        missing.to_string(),
        "table public.gone does not exist, so publication convoke cannot name it"
    );
    assert!(matches!(publish(&[table("seen")]).await, Err(wal::Error::MissingTable { .. })));
    let keyless = publish(&[table("keyless")]).await.unwrap_err();
    assert!(keyless.to_string().contains("replica identity full"), "{keyless}");

    publish(&[]).await.unwrap();
    wal::ensure_publication(&rig.sql, "supabase_realtime").await.unwrap();
    wal::ensure_publication(&rig.sql, "supabase_realtime").await.unwrap();
    let count = "select count(*) from pg_publication_tables";
    assert_eq!(rig.sql.query_one(count, &[]).await.unwrap().get::<_, i64>(0), 0);
    consumer.stop().await;
}
