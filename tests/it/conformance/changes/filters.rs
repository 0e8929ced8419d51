//! Filters: statements 62 to 81.
use crate::changes::watch::{UNABLE, Watch, WatchedDaemon, brief};
use serde_json::{Value, json};

fn item(filter: &str) -> Value {
    json!({"event": "*", "schema": "public", "table": "t", "filter": filter})
}

impl WatchedDaemon {
    async fn filtered(&self, filters: &[&str]) -> Watch {
        self.watch(json!(filters.iter().map(|filter| item(filter)).collect::<Vec<_>>())).await
    }

    /// For each message, the filters that it matched.
    async fn passed<'f>(&self, watch: &mut Watch, filters: &[&'f str]) -> Vec<Vec<&'f str>> {
        let seen = self.seen(watch).await;
        seen.iter().map(|it| watch.which(it).into_iter().map(|at| filters[at]).collect()).collect()
    }

    /// The error text of a refused filter, without its prefix.
    async fn bad(&self, filter: &str) -> String {
        let received = self.refusal(json!([item(filter)])).await;
        let parse = "Error parsing `filter` params: ";
        match (received.strip_prefix(parse), received.split_once("Exception: ERROR ")) {
            (Some(rest), _) => format!("parse: {rest}"),
            (_, Some((before, rest))) => {
                assert!(before.starts_with(&format!("{UNABLE}An exception happened so please check your connect parameters: [event: *, schema: public, table: t, filters: [")), "{received}");
                assert!(before.ends_with("], select: nil]. "), "{received}");
                rest.to_owned()
            }
            _ => panic!("{filter}: {received}"),
        }
    }
}

/// A table with a number, a text and a boolean.
const T: &str =
    "create table t (id int primary key, n int, s text, b bool); alter table t replica identity full;";

/// A filter, and whether it matches `(10, 'Anna', true)`, `(20, 'ben', false)` and `(null, null, null)`.
const OPERATORS: &[(&str, [bool; 3])] = &[
    ("n=eq.10", [true, false, false]),
    ("n=neq.10", [false, true, false]),
    ("n=lt.20", [true, false, false]),
    ("n=lte.20", [true, true, false]),
    ("n=gt.10", [false, true, false]),
    ("n=gte.10", [true, true, false]),
    ("n=in.(10,30)", [true, false, false]),
    ("s=like.%nn_", [true, false, false]),
    ("s=ilike.B%", [false, true, false]),
    ("b=is.true", [true, false, false]),
    ("s=is.null", [false, false, true]),
    ("s=match.^[a-z]", [false, true, false]),
    ("s=imatch.^A", [true, false, false]),
    ("n=isdistinct.10", [false, true, true]),
];

/// The same with `not.`: NULL stays no match.
fn negated() -> Vec<(String, [bool; 3])> {
    let turn = |(filter, passes): &(&str, [bool; 3])| {
        let (column, rest) = filter.split_once('=').unwrap();
        let knows_null = rest.starts_with("is");
        let [ann, ben, none] = *passes;
        (format!("{column}=not.{rest}"), [!ann, !ben, knows_null && !none])
    };
    OPERATORS.iter().map(turn).collect()
}

/// 62, 63, 75, 78
#[tokio::test]
async fn every_operator_and_its_negation_match_as_in_sql() {
    let rig = WatchedDaemon::new(T, "t").await;
    let negated = negated();
    let all: Vec<(&str, [bool; 3])> = OPERATORS
        .iter()
        .copied()
        .chain(negated.iter().map(|(filter, passes)| (filter.as_str(), *passes)))
        .collect();
    let filters: Vec<_> = all.iter().map(|(filter, _)| *filter).collect();
    let mut watch = rig.filtered(&filters).await;
    let passing = |row: usize| -> Vec<&str> {
        all.iter().filter(|(_, passes)| passes[row]).map(|(filter, _)| *filter).collect()
    };
    let (ann, ben, none) = ("10, 'Anna', true", "20, 'ben', false", "null, null, null");
    rig.run(&format!(
        "insert into t values (1, {ann}); insert into t values (2, {ben}); insert into t values (3, {none});
             update t set (n, s, b) = ({ben}) where id = 1; update t set (n, s, b) = ({none}) where id = 2;
             update t set (n, s, b) = ({ann}) where id = 3;
             delete from t where id = 1; delete from t where id = 2; delete from t where id = 3;"
    ))
    .await;
    let passed = rig.passed(&mut watch, &filters).await;
    let rows = [0, 1, 2, 1, 2, 0, 1, 2, 0];
    assert_eq!(passed, rows.map(passing));
}

/// 64, 65, 66, 67, 68, 69, 71, and groups
#[tokio::test]
async fn filters_are_parsed_as_clients_write_them() {
    let rig = WatchedDaemon::new("create table t (id int primary key, name text)", "t").await;
    // Each filter, and the names of the rows that match.
    let cases: &[(&str, &[&str])] = &[
        ("id=gt.0,id=lt.3", &["a,b", r#"she said "hi""#]),
        (r#"name=eq."a,b""#, &["a,b"]),
        (r#"name=eq."she said \"hi\"""#, &[r#"she said "hi""#]),
        (r#"name=eq."C:\\tmp""#, &[r"C:\tmp"]),
        (r#"name=eq."ab"cd"#, &[r#""ab"cd"#]),
        (r#"name=eq."x"#, &[r#""x"#]),
        (r#"name=eq.5" tall,id=gt.0"#, &[r#"5" tall"#]),
        (r#"name=in.("a,b",c, d )"#, &["a,b", "c"]),
        (r#"name=in.("a,b","C:\\tmp"," x ")"#, &["a,b", r"C:\tmp", " x "]),
        ("name=in.()", &[]),
        (" name=eq.c ", &["c"]),
        ("name=eq.(1,2)", &["(1,2)"]),
        (r#"name=eq." x ""#, &[" x "]),
        ("name=eq.", &[""]),
        ("name=eq.a.b=c", &["a.b=c"]),
        ("name=eq.null", &["null"]),
        ("name=like.C:\\\\%", &[r"C:\tmp"]),
        ("or=(name.eq.c,name.eq.null)", &["c", "null"]),
        ("id=gt.3,or=(name.eq.\"a,b\",and(id.lt.6,name.not.eq.c))", &[r#""ab"cd"#, r#""x"#]),
        ("not.or=(id.lt.11,name.is.null)", &["a.b=c", "null"]),
    ];
    let always = ["name=not.in.()", " ", ""];
    let names: Vec<&str> = vec![
        "a,b",
        r#"she said "hi""#,
        r"C:\tmp",
        r#""ab"cd"#,
        r#""x"#,
        r#"5" tall"#,
        "c",
        "(1,2)",
        " x ",
        "",
        "a.b=c",
        "null",
    ];
    let filters: Vec<_> = cases.iter().map(|(filter, _)| *filter).chain(always).collect();
    let mut watch = rig.filtered(&filters).await;
    for (id, name) in (1..).zip(&names) {
        rig.sql.execute("insert into t values ($1, $2)", &[&id, name]).await.unwrap();
    }
    rig.run("insert into t values (100, null)").await;
    let passed = rig.passed(&mut watch, &filters).await;
    for (name, passed) in names.iter().zip(&passed) {
        let of = |(filter, names): &(&'static str, &[&str])| names.contains(name).then_some(*filter);
        let expected: Vec<_> = cases.iter().filter_map(of).chain(always).collect();
        assert_eq!(*passed, expected, "{name:?}");
    }
    assert_eq!(passed[names.len()], always, "NULL");
}

/// 70, 71, 72, 73, 74, 76, 77, 81
#[tokio::test]
async fn invalid_filter_is_refused_with_supabase_error_text() {
    let rig = WatchedDaemon::new(
        "create table t (id int primary key, n int, small int2, b bool, s text, v varchar(9), c char(3), nm name, u uuid,
                         at timestamptz, doc json, xml xml, p point, tags text[], secret text, num numeric(4,1));
         create type pair as (a int); alter table t add pair pair;
         revoke select on t from authenticated;
         grant select (id, n, small, b, s, v, c, nm, u, at, doc, xml, p, tags, num, pair) on t to authenticated;",
        "t",
    )
    .await;
    let many =
        |count: u32| format!("n=in.({})", (0..count).map(|n| n.to_string()).collect::<Vec<_>>().join(","));
    let parentheses = "parse: `in` filter value must be wrapped by parentheses";
    let empty = "parse: filter must not contain empty segments (check for extra commas)";
    let keyword =
        "P0001 (raise_exception) invalid value for is filter: must be null, true, false, or unknown";
    let cases = [
        ("n=in.(1,2", parentheses),
        ("n=in.1,2", parentheses),
        ("id=gt.0,", empty),
        (",id=gt.0", empty),
        ("id=gt.0,,id=lt.5", empty),
        ("wrong", r#"parse: ["wrong"]"#),
        ("s=wrong", r#"parse: ["wrong"]"#),
        ("s=foo.hey", r#"parse: ["foo", "hey"]"#),
        ("s=EQ.hey", r#"parse: ["EQ", "hey"]"#),
        ("s=not.not.eq.1", r#"parse: ["not", "eq.1"]"#),
        ("id=eq.hey", "22P02 (invalid_text_representation) invalid input syntax for type integer: \"hey\""),
        ("id=eq.", "22P02 (invalid_text_representation) invalid input syntax for type integer: \"\""),
        ("id=in.(1,x)", "22P02 (invalid_text_representation) invalid input syntax for type integer: \"x\""),
        (
            "small=eq.40000",
            "22003 (numeric_value_out_of_range) value \"40000\" is out of range for type smallint",
        ),
        ("u=eq.1", "22P02 (invalid_text_representation) invalid input syntax for type uuid: \"1\""),
        (
            "at=gt.yesterday or so",
            "22007 (invalid_datetime_format) invalid input syntax for type timestamp with time zone: \"yesterday or so\"",
        ),
        ("n=in.(1,,2)", "22P02 (invalid_text_representation) malformed array literal: \"{1,,2}\""),
        ("s=is.NULL", keyword),
        ("s=is.nothing", keyword),
        ("n=is.true", "P0001 (raise_exception) is true filter requires a boolean column, got integer"),
        ("s=is.unknown", "P0001 (raise_exception) is unknown filter requires a boolean column, got text"),
        ("zz=eq.1", "P0001 (raise_exception) invalid column for filter zz"),
        ("secret=eq.1", "P0001 (raise_exception) invalid column for filter secret"),
        ("secret=is.null", "P0001 (raise_exception) invalid column for filter secret"),
        ("N=eq.1", "P0001 (raise_exception) invalid column for filter N"),
        (
            "n=like.1%",
            "P0001 (raise_exception) operator like requires a text-compatible column type, got integer",
        ),
        (
            "u=imatch.1",
            "P0001 (raise_exception) operator imatch requires a text-compatible column type, got uuid",
        ),
    ];
    for (filter, expected) in cases {
        assert_eq!(rig.bad(filter).await.lines().next().unwrap(), expected, "{filter}");
    }
    assert!(
        rig.bad(&many(101))
            .await
            .starts_with("P0001 (raise_exception) too many values for `in` filter. Maximum 100")
    );
    let received = rig.bad("s=match.(").await;
    assert!(received.starts_with("P0001 (raise_exception) invalid regular expression for match filter: invalid regular expression: parentheses () not balanced"), "{received}");
    for filter in ["doc=eq.{}", "xml=eq.<a/>", "pair=eq.(1)", "p=eq.(1,2)", "doc=not.eq.1"] {
        let received = rig.bad(filter).await;
        assert!(received.starts_with("P0001 (raise_exception) "), "{filter}: {received}");
    }
    // Valid filters, including some that Supabase Realtime refuses.
    let fine = [
        &many(100),
        "v=like.a%",
        "c=ilike.A%",
        "nm=match.^a",
        "v=imatch.b",
        "num=eq.12345.67",
        "s=is.null",
        "tags=is.null",
    ];
    rig.watch(json!(fine.map(item))).await;
}

/// 77: a filter that only Postgres can evaluate, or that nothing can, does not affect other subscribers.
#[tokio::test]
async fn arrays_and_documents_are_compared_by_postgres_or_refused() {
    let rig = WatchedDaemon::new(
        "create table t (id int primary key, tags text[], doc jsonb, span int4range); alter table t replica identity full;",
        "t",
    )
    .await;
    let filters = ["tags=eq.\"{a,b}\"", "tags=is.null", r#"doc=eq."{\"b\":1,\"a\":2}""#, "span=eq.\"[1,4]\""];
    let mut passing = Vec::new();
    for filter in filters {
        let mut socket = rig.socket(json!({})).await;
        socket.join("room", json!({"postgres_changes": [item(filter)]})).await.ok();
        let system = socket.next().await;
        if system.payload["status"] == "ok" {
            passing.push(filter);
        }
    }
    // Supabase Realtime compares documents and ranges by value.
    assert!(passing.contains(&filters[2]) && passing.contains(&filters[3]), "{passing:?}");
    let mut watch = rig.filtered(&passing).await;
    let mut plain = rig.watch(json!([{"table": "t"}])).await;
    rig
        .run(
            "insert into t values (1, '{a,b}', '{\"a\":2,\"b\":1.0}', '[1,5)'); insert into t values (2, '{a}', '{}', '[1,4)');
             insert into t values (3, null, null, null)",
        )
        .await;
    let passed = rig.passed(&mut watch, &passing).await;
    let all_but_null: Vec<_> = passing.iter().filter(|filter| **filter != filters[1]).copied().collect();
    assert_eq!(passed[0], all_but_null);
    assert_eq!(passed.len(), 1 + usize::from(passing.contains(&filters[1])), "{passed:?}");
    assert_eq!(rig.seen(&mut plain).await.len(), 3);
}

/// 77: also a filter that fails only for a certain row.
#[tokio::test]
async fn filter_that_fails_on_a_row_affects_no_other_subscriber() {
    let rig = WatchedDaemon::new("create table t (id int primary key, s text)", "t").await;
    let mut socket = rig.socket(json!({})).await;
    let lone = r"s=like.a\";
    socket.join("room", json!({"postgres_changes": [item(lone), item("s=eq.ab")]})).await.ok();
    let accepted = socket.next().await.payload["status"] == "ok";
    let mut other = rig.filtered(&["s=like.a%", "s=match.^a", ""]).await;
    rig.run("insert into t values (1, 'ab')").await;
    rig.run("insert into t values (2, 'a'), (3, 'xx')").await;
    let seen = rig.seen(&mut other).await;
    assert_eq!(
        seen.iter().map(|it| other.which(it)).collect::<Vec<_>>(),
        [vec![0, 1, 2], vec![0, 1, 2], vec![2]]
    );
    if accepted {
        let frames = socket.so_far().await;
        let told: Vec<_> = frames.iter().filter(|got| got.event == "postgres_changes").collect();
        assert_eq!(told.len(), 1, "rows that the filter can judge are delivered: {frames:?}");
    }
}

/// 79, 80
#[tokio::test]
async fn deletes_are_tested_by_the_known_part_of_the_old_row() {
    let rig = WatchedDaemon::new("create table t (id int primary key, n int)", "t").await;
    let mut only_id = item("n=eq.5");
    only_id["select"] = json!(["id"]);
    let mut watch = rig
        .watch(json!([item("id=eq.1"), item("n=eq.5"), item("n=not.eq.7"), item("n=is.null"), only_id]))
        .await;
    rig.run("insert into t values (1, 5); delete from t").await;
    let seen = rig.seen(&mut watch).await;
    let told: Vec<_> = seen.iter().map(|it| (watch.which(it), brief(it))).collect();
    let insert = |row: Value| json!(["INSERT", row]);
    assert_eq!(
        told,
        [
            (vec![0, 1, 2], insert(json!({"id": 1, "n": 5}))),
            (vec![4], insert(json!({"id": 1}))),
            (vec![0], json!(["DELETE", {"id": 1}])),
        ]
    );
}

/// 10,000 filters with distinct values cost one index look-up.
#[tokio::test]
async fn subscribers_of_distinct_values_get_only_their_rows() {
    let rig = WatchedDaemon::new("create table t (id int primary key, n int)", "t").await;
    let filters: Vec<String> = (0..300).map(|n| format!("n=eq.{n}")).collect();
    let filters: Vec<&str> = filters.iter().map(String::as_str).collect();
    let mut watch = rig.filtered(&filters).await;
    rig.run("insert into t select n, n from generate_series(0, 400) n").await;
    let passed = rig.passed(&mut watch, &filters).await;
    assert_eq!(passed, filters.iter().map(|filter| vec![*filter]).collect::<Vec<_>>());
}

/// A filter's value may be spelled differently from the WAL's spelling.
#[tokio::test]
async fn value_of_any_type_matches_in_any_spelling() {
    let types = [
        ("inet", "10.0.0.1", "10.0.0.1/32"),
        ("inet", "10.0.0.1", "10.0.0.1"),
        ("inet", "::1", "::0001"),
        ("cidr", "10.0.0.0/8", "10/8"),
        ("macaddr", "08:00:2b:01:02:03", "0800.2b01.0203"),
        ("varbit", "101", "B101"),
        ("interval", "24:00:00", "1 day"),
        ("money", "1.50", "$1.5"),
    ];
    let columns: String = (0..types.len()).map(|at| format!(", c{at} {}", types[at].0)).collect();
    let rig = WatchedDaemon::new(&format!("create table t (id int primary key{columns});"), "t").await;
    let mut items = Vec::new();
    for (at, (_, _, written)) in types.iter().enumerate() {
        for filter in [format!("c{at}=eq.{written}"), format!("c{at}=in.({written})")] {
            items.push(json!({"event": "INSERT", "schema": "public", "table": "t", "filter": filter}));
        }
    }
    let mut watch = rig.watch(json!(items)).await;
    let values: String = types.iter().map(|(_, value, _)| format!(", '{value}'")).collect();
    rig.run(&format!("insert into t values (1{values})")).await;
    let seen = rig.seen(&mut watch).await;
    assert_eq!(watch.which(&seen[0]), (0..items.len()).collect::<Vec<_>>());
}
