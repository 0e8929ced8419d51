//! Values of every type: statements 50 to 61.
use crate::{
    changes::watch::{Watch, WatchedDaemon, token},
    realtime::client_process::{ClientProcess, NEW, OLD},
    support::is_hostile,
};
use serde_json::{Value, json, value::RawValue};
use std::collections::BTreeMap;

const TYPES: &str = "
    create type mood as enum ('sad', 'quite \"glad\"');
    create type pair as (a int, b text, c numeric[]);
    create type outer_pair as (p pair, \"Odd name\" timestamptz);
    create domain price as numeric(20, 4);
    create domain name_of as text;
    create domain numbers as int[];
    create domain pair_of as pair;";

/// Type, value in SQL, and its form on the wire.
type Case = (&'static str, &'static str, &'static str);

/// Text with a character that has four bytes in UTF-8.
const TEXT: Case =
    ("text", "E'\"q\" \\\\ \\n\\t\\x01 ü\u{1F600}'", "\"\\\"q\\\" \\\\ \\n\\t\\u0001 ü\u{1F600}\"");
/// The same with the characters of LATIN1 only.
const LATIN1_TEXT: Case =
    ("text", "E'\"q\" \\\\ \\n\\t\\x01 ü\u{ff}'", "\"\\\"q\\\" \\\\ \\n\\t\\u0001 ü\u{ff}\"");

/// Cases whose form on the wire is exact.
const EXACT: &[Case] = &[
    ("int2", "'-32768'", "-32768"),
    ("int4", "'2147483647'", "2147483647"),
    ("int8", "'9007199254740993'", "9007199254740993"),
    ("int8", "'-9223372036854775808'", "-9223372036854775808"),
    ("numeric(20,4)", "'1.5'", "1.5000"),
    ("price", "'1.5'", "1.5000"),
    ("numeric", "'0.0000000001'", "0.0000000001"),
    (
        "numeric",
        "'123456789012345678901234567890.12345678901234567890'",
        "123456789012345678901234567890.12345678901234567890",
    ),
    ("numeric", "'NaN'", "null"),
    ("float8", "'NaN'", "null"),
    ("float8", "'Infinity'", "null"),
    ("float4", "'-Infinity'", "null"),
    ("float8", "'1.1'", "1.1"),
    ("float4", "'1.1'", "1.1"),
    ("float8", "'-0'", "0"),
    ("bool", "true", "true"),
    ("bool", "false", "false"),
    TEXT,
    ("text", "''", "\"\""),
    ("text", "'null'", "\"null\""),
    ("varchar(5)", "'abc'", "\"abc\""),
    ("char(5)", "'ab'", "\"ab   \""),
    ("name", "'n'", "\"n\""),
    ("\"char\"", "'c'", "\"c\""),
    ("uuid", "'A0EEBC99-9C0B-4EF8-BB6D-6BB9BD380A11'", "\"a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11\""),
    ("date", "'2024-02-29'", "\"2024-02-29\""),
    ("time", "'12:34:56.5'", "\"12:34:56.5\""),
    ("timetz", "'12:34:56+02'", "\"12:34:56+02\""),
    ("interval", "'26:03:04'", "\"26:03:04\""),
    ("interval", "'1 day 02:03:04'", "\"1 day 02:03:04\""),
    ("timestamp", "'2024-02-29 12:34:56.789012'", "\"2024-02-29T12:34:56.789012\""),
    ("timestamp", "'2024-02-29 12:34:56.500'", "\"2024-02-29T12:34:56.5\""),
    ("timestamp", "'infinity'", "\"infinity\""),
    ("timestamptz", "'2024-02-29 12:34:56.789012+02'", "\"2024-02-29T10:34:56.789012+00:00\""),
    ("timestamptz", "'-infinity'", "\"-infinity\""),
    ("bytea", "'\\xDEADBEEF00'", "\"deadbeef00\""),
    ("bytea", "''", "\"\""),
    ("bytea[]", "array['\\xdead'::bytea, null]", "[\"\\\\xdead\",null]"),
    ("int[]", "'{1,NULL,3}'", "[1,null,3]"),
    ("int[]", "'{}'", "[]"),
    ("int[]", "'{{1,2},{3,4}}'", "[[1,2],[3,4]]"),
    ("text[]", "array['a,b', '\"q\"', 'NULL', null, '']", "[\"a,b\",\"\\\"q\\\"\",\"NULL\",null,\"\"]"),
    ("text[]", "'{{a},{b}}'", "[[\"a\"],[\"b\"]]"),
    ("numeric(10,2)[]", "'{1.5,NaN}'", "[1.50,null]"),
    ("bool[]", "'{t,f,NULL}'", "[true,false,null]"),
    ("timestamptz[]", "array['2024-02-29 12:34:56+02'::timestamptz]", "[\"2024-02-29T10:34:56+00:00\"]"),
    ("uuid[]", "'{A0EEBC99-9C0B-4EF8-BB6D-6BB9BD380A11}'", "[\"a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11\"]"),
    ("mood", "'quite \"glad\"'", "\"quite \\\"glad\\\"\""),
    ("mood[]", "array['sad', null]::mood[]", "[\"sad\",null]"),
    ("numbers", "'{1,2}'", "[1,2]"),
    ("name_of", "'x'", "\"x\""),
    ("money", "'12.34'", "\"$12.34\""),
    ("oid", "'26'", "\"26\""),
    ("regclass", "'pg_class'", "\"pg_class\""),
    ("inet", "'10.0.0.0/8'", "\"10.0.0.0/8\""),
    ("cidr", "'10.0.0.0/8'", "\"10.0.0.0/8\""),
    ("macaddr", "'08:00:2b:01:02:03'", "\"08:00:2b:01:02:03\""),
    ("bit(4)", "B'1010'", "\"1010\""),
    ("varbit", "B'10'", "\"10\""),
    ("int4range", "'[1,5)'", "\"[1,5)\""),
    ("int4multirange", "'{[1,3),[5,7)}'", "\"{[1,3),[5,7)}\""),
    ("tsvector", "'a b'", "\"'a' 'b'\""),
    ("xml", "'<a>1</a>'", "\"<a>1</a>\""),
    ("point", "'(1,2)'", "\"(1,2)\""),
    ("box", "'((1,1),(0,0))'", "\"(1,1),(0,0)\""),
];

/// Cases whose JSON may have any spelling.
const SAME: &[Case] = &[
    ("float8", "'1e308'", "1e308"),
    ("float8", "'1e-300'", "1e-300"),
    ("jsonb", "'{\"b\": [1, {\"c\": null}], \"a\": 1.50}'", "{\"a\":1.5,\"b\":[1,{\"c\":null}]}"),
    ("json", "'{\"b\":1,  \"a\":[true,\"x\"]}'", "{\"a\":[true,\"x\"],\"b\":1}"),
    ("json", "'1e3'", "1000.0"),
    ("jsonb", "'null'", "null"),
    ("jsonb", "'\"12\"'", "\"12\""),
    ("jsonb[]", "array['{\"a\":1}'::jsonb, null, '[2]']", "[{\"a\":1},null,[2]]"),
    ("pair", "row(1, 'x,\"y\" (z)', '{1.50,NULL}')", "{\"a\":1,\"b\":\"x,\\\"y\\\" (z)\",\"c\":[1.5,null]}"),
    ("pair", "row(null, '', null)", "{\"a\":null,\"b\":\"\",\"c\":null}"),
    ("pair[]", "array[row(1, 'x', null)::pair]", "[{\"a\":1,\"b\":\"x\",\"c\":null}]"),
    ("pair_of", "row(2, 'x', '{}')", "{\"a\":2,\"b\":\"x\",\"c\":[]}"),
    (
        "outer_pair",
        "row(row(1, 'a', null)::pair, '2024-02-29 12:34:56+02')",
        "{\"p\":{\"a\":1,\"b\":\"a\",\"c\":null},\"Odd name\":\"2024-02-29T10:34:56+00:00\"}",
    ),
];

fn all() -> Vec<Case> {
    let fitting = |case: Case| if case == TEXT && is_hostile() { LATIN1_TEXT } else { case };
    EXACT.iter().chain(SAME).copied().map(fitting).collect()
}

/// A table with a column `c0`, `c1` … for each type, and a statement that inserts the values.
fn table() -> (String, String) {
    let columns: Vec<_> = all().iter().enumerate().map(|(at, (kind, ..))| format!("c{at} {kind}")).collect();
    let values: Vec<_> = all().iter().map(|(kind, value, _)| format!("{value}::{kind}")).collect();
    let create = format!("{TYPES}create table v (id int primary key, {});", columns.join(", "));
    (create, format!("insert into v values (1, {})", values.join(", ")))
}

fn record(raw: &str) -> BTreeMap<String, Box<RawValue>> {
    let frame: Vec<Box<RawValue>> = serde_json::from_str(raw).unwrap();
    let mut at = frame[4].clone();
    for member in ["data", "record"] {
        let mut members: BTreeMap<String, Box<RawValue>> = serde_json::from_str(at.get()).unwrap();
        at = members.remove(member).unwrap();
    }
    serde_json::from_str(at.get()).unwrap()
}

/// 50 to 60: the output does not depend on the settings of the writer's session.
#[tokio::test]
async fn every_type_is_encoded_as_documented_and_null_is_null() {
    let (create, fill) = table();
    let rig = WatchedDaemon::new(&create, "v").await;
    let mut watch = rig.watch(json!([{"table": "v"}])).await;
    rig.run(
        "set datestyle = 'SQL, DMY'; set timezone = 'Asia/Tokyo'; set intervalstyle = sql_standard;
             set extra_float_digits = -3; set bytea_output = escape",
    )
    .await;
    rig.run(&fill).await;
    rig.run("insert into v (id) values (2)").await;
    let raw = watch.raw().await;
    let filled = record(&raw);
    let mut wrong = Vec::new();
    for (at, (kind, value, expected)) in all().iter().enumerate() {
        let found = filled[&format!("c{at}")].get();
        let same = if at < EXACT.len() {
            found == *expected
        } else {
            let read = |text: &str| serde_json::from_str::<Value>(text).unwrap();
            let (found, expected) = (read(found), read(expected));
            found == expected || found.as_f64().is_some_and(|found| Some(found) == expected.as_f64())
        };
        if !same {
            wrong.push(format!("{kind} {value}: {found} and not {expected}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    let empty = record(&watch.raw().await);
    assert_eq!(empty.len(), all().len() + 1);
    for (name, value) in empty.iter().filter(|(name, _)| *name != "id") {
        assert_eq!(value.get(), "null", "{name}");
    }
}

/// The names of types are those of `pg_type`, also for user-defined types.
#[tokio::test]
async fn each_column_carries_the_name_of_its_type() {
    let (create, _) = table();
    let rig = WatchedDaemon::new(&create, "v").await;
    let mut watch = rig.watch(json!([{"table": "v"}])).await;
    rig.run("insert into v (id) values (1)").await;
    let message = watch.next().await;
    let sql = "select attname::text, typname::text from pg_attribute join pg_type t on t.oid = atttypid
               where attrelid = 'v'::regclass and attnum > 0 order by attnum";
    let rows = rig.sql.query(sql, &[]).await.unwrap();
    let expected: Vec<_> = rows
        .iter()
        .map(|row| json!({"name": row.get::<_, &str>(0), "type": row.get::<_, &str>(1)}))
        .collect();
    assert_eq!(message["data"]["columns"], json!(expected));
}

/// The value that realtime-js delivers, where it differs from the wire.
fn in_javascript(at: usize) -> Value {
    let (kind, value, wire) = all()[at];
    match (kind, value) {
        // A double has no more digits.
        ("int8", "'9007199254740993'") => json!(9_007_199_254_740_992_i64),
        ("int8", _) => json!(-9_223_372_036_854_775_808_i64),
        // realtime-js turns the texts of these types into numbers and parses those of json.
        ("oid", _) => json!(26),
        ("jsonb", "'\"12\"'") => json!(12),
        _ => serde_json::from_str(wire).unwrap(),
    }
}

/// 11, 61
#[tokio::test]
async fn realtime_js_delivers_every_type_to_the_callback() {
    let (create, fill) = table();
    let rig = WatchedDaemon::new(&(create + "create table other (id int primary key);"), "v, other").await;
    let http = format!("http://{}", rig.running.parts.addr);
    for package in [NEW, OLD] {
        let mut client = ClientProcess::js(package, &http, &token(json!({})), None).await;
        let items = json!([{"event": "INSERT", "schema": "public", "table": "v"}, {"event": "*", "schema": "public", "table": "other"}]);
        client.send("watch", json!({"topic": "room", "items": items})).await;
        client.subscribed("room").await;
        rig.run("delete from v; delete from other").await;
        rig.run(&fill).await;
        let change = client.until("change", |it| it["change"]["table"] == "v").await;
        let change = &change["change"];
        assert_eq!(
            (&change["eventType"], &change["old"], &change["errors"]),
            (&json!("INSERT"), &json!({}), &Value::Null)
        );
        for at in 0..all().len() {
            let (found, expected) = (&change["new"][format!("c{at}")], in_javascript(at));
            let same = *found == expected || found.as_f64().is_some() && found.as_f64() == expected.as_f64();
            assert!(same, "{package}: {:?}: {found} and not {expected}", all()[at]);
        }
        rig.run("insert into other values (1)").await;
        let inserted = |it: &Value| it["change"]["table"] == "other" && it["change"]["eventType"] == "INSERT";
        assert_eq!(client.until("change", inserted).await["change"]["new"], json!({"id": 1}));
    }
}

/// A wide table costs a subscriber of one column no more than that column.
#[tokio::test]
async fn one_column_of_many_can_be_selected() {
    let (create, fill) = table();
    let rig = WatchedDaemon::new(&create, "v").await;
    let item = json!([{"schema": "public", "table": "v", "select": ["c2"]}]);
    let mut watch = Watch::start(rig.socket(json!({})).await, "room", item, json!({})).await;
    rig.run(&fill).await;
    let message = watch.next().await;
    assert_eq!(message["data"]["record"], json!({"id": 1, "c2": 9_007_199_254_740_993_i64}));
}

/// The WAL of PostgreSQL 17 and older has no stored generated columns: they are absent, not null, and the rest of
/// the row is complete.
#[tokio::test]
async fn generated_column_is_absent_if_the_wal_has_none() {
    let table = "create table boxes (id int primary key, w int, area int generated always as (w * w) stored, note text);
        alter table boxes replica identity full;";
    let rig = WatchedDaemon::new(table, "boxes").await;
    let mut watch = rig.watch(json!([{"event": "*", "table": "boxes"}])).await;
    rig.run("insert into boxes (id, w, note) values (1, 3, 'a'); update boxes set w = 4; delete from boxes")
        .await;
    let mut carried = false;
    for (kind, w) in [("INSERT", 3), ("UPDATE", 4), ("DELETE", 4)] {
        let data = watch.next().await["data"].clone();
        let row = &data[if kind == "DELETE" { "old_record" } else { "record" }];
        assert_eq!(
            (&data["type"], &row["w"], &row["note"]),
            (&json!(kind), &json!(w), &json!("a")),
            "{data}"
        );
        let named = data["columns"].as_array().unwrap().iter().any(|column| column["name"] == "area");
        carried = row.get("area").is_some();
        match row.get("area") {
            Some(area) => assert_eq!((area, named), (&json!(w * w), true), "{data}"),
            None => assert!(!named, "{data}"),
        }
    }
    let received = rig.refusal(json!([{"schema": "public", "table": "boxes", "filter": "area=eq.9"}])).await;
    assert!(carried || received.contains("invalid column for filter area"), "{received}");
}
