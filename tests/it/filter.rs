//! Filters against a real database: kinds of columns and probes give the same rows as `where`.
use crate::support::{TestDb, empty_database};
use convoke::{
    db::Database,
    filter::{Answers, Bound, ColumnValue, Filter, Kinds, Truth, Unbindable},
    scope::Scope,
};
use std::{collections::HashMap, time::Duration};
use tokio_postgres::Client;

const SECOND: Duration = Duration::from_secs(1);
const TABLES: &str = r#"
    create schema extensions; create extension citext schema extensions;
    create schema "odd ""schema";
    create type "odd ""schema".mood as enum ('sad', 'ok', 'glad');
    create domain level as int4; create domain deep as level;
    create collation blind (provider = icu, locale = 'und-u-ks-level2', deterministic = false);
    create type pair as (a int4, b text);
    create table things (
        id int8 primary key, title text, plain text collate "C", blind text collate blind, nick extensions.citext,
        feeling "odd ""schema".mood, depth deep, at timestamptz, span int4range, money money, body jsonb,
        raw json, tags text[], duo pair, code char(5), bytes bytea, short varchar(10));
    insert into things values
        (1, 'Äpfel', 'b', 'Maria', 'Bob', 'sad', 3, '2026-01-01 10:00:00+00', '[1,5)', '12.34', '{"a":1}', '{}',
            '{a}', '(1,x)', 'ab', '\xdead', 'Printer'),
        (2, 'apple', 'B', 'maria', 'BOB', 'glad', 10, '2026-01-01 12:00:00+02', '[2,9)', '-1', '{"a": 1.0}', '{}',
            '{b}', '(2,x)', 'AB', '\x00', 'fire'),
        (3, 'Zebra', 'a"b\c', 'Jose', 'carl', 'ok', -1, 'infinity', 'empty', '1000', '[]', 'null',
            '{}', '(3,x)', '', '\xbeef', ''),
        (4, null, null, null, null, null, null, null, null, null, null, null, null, null, null, null, null)
"#;

/// Filters, and the equivalent SQL condition.
const SAME: [(&str, &str); 40] = [
    ("title=gt.apple", "title > 'apple'"),
    ("title=lte.apple", "title <= 'apple'"),
    ("title=ilike.ä%", "title ilike 'ä%'"),
    ("title=match.^[a-z]", "title ~ '^[a-z]'"),
    ("title=not.imatch.^[a-z]", "not title ~* '^[a-z]'"),
    ("title=in.(apple,Zebra)", "title in ('apple', 'Zebra')"),
    ("plain=gt.B", "plain > 'B'"),
    ("plain=eq.\"a\\\"b\\\\c\"", r#"plain = 'a"b\c'"#),
    ("blind=eq.MARIA", "blind = 'MARIA'"),
    ("blind=not.in.(MARIA)", "not blind in ('MARIA')"),
    ("blind=in.(MARIA,null)", "blind in ('MARIA', null)"),
    ("blind=isdistinct.MARIA", "blind is distinct from 'MARIA'"),
    ("nick=eq.bob", "nick operator(extensions.=) 'bob'::extensions.citext"),
    ("nick=neq.bob", "nick operator(extensions.<>) 'bob'::extensions.citext"),
    ("nick=isdistinct.bob", "nick is null or nick operator(extensions.<>) 'bob'::extensions.citext"),
    ("nick=like.b%", "nick operator(extensions.~~) 'b%'::extensions.citext"),
    ("nick=in.(BOB,Carl)", "nick::text ilike 'bob' or nick::text ilike 'carl'"),
    ("feeling=gt.sad", "feeling > 'sad'"),
    ("feeling=in.(ok,glad)", "feeling in ('ok', 'glad')"),
    ("depth=gt.2.5", "depth > 2.5"),
    ("depth=isdistinct.3", "depth is distinct from 3"),
    ("at=eq.2026-01-01T11:00:00+01:00", "at = '2026-01-01T11:00:00+01:00'"),
    ("at=gt.2026-01-01", "at > '2026-01-01 00:00:00+00'"),
    ("span=gt.\"[1,6)\"", "span > '[1,6)'"),
    ("span=eq.\"[1,4]\"", "span = '[1,4]'"),
    ("money=gt.5", "money > '5'"),
    ("body=eq.\"{\\\"a\\\":1}\"", r#"body = '{"a":1}'"#),
    ("body=is.null", "body is null"),
    ("raw=not.is.null", "raw is not null"),
    ("tags=is.null", "tags is null"),
    ("code=eq.ab", "code = 'ab'"),
    ("code=lt.ab", "code < 'ab'"),
    ("code=ilike.AB%", "code ilike 'AB%'"),
    ("bytes=lt.\\xbeef", r"bytes < '\xbeef'"),
    ("short=ilike.P%", "short ilike 'P%'"),
    ("short=gte.fire", "short >= 'fire'"),
    ("or=(title.gt.apple,depth.eq.10)", "title > 'apple' or depth = 10"),
    ("not.and=(title.gt.apple,depth.eq.3)", "not (title > 'apple' and depth = 3)"),
    ("title=in.()", "false"),
    ("title=not.in.()", "true"),
];

/// A database with the table, and a pool configured like the daemon's.
struct Things {
    client: Client,
    table: Table,
    database: Database,
    _scope: Scope,
    _db: TestDb,
}

impl Things {
    async fn new() -> Self {
        let db = empty_database().await;
        let client = db.client().await;
        client.batch_execute(TABLES).await.unwrap();
        let table = Table::read(&client).await;
        let scope = Scope::default();
        let database: Database = db.open(&scope).await;
        Self { client, table, database, _scope: scope, _db: db }
    }

    async fn lent(&self) -> deadpool_postgres::Client {
        self.database.client().await.unwrap()
    }
}

struct Table {
    kinds: Kinds,
    oid: u32,
    columns: Vec<(String, u32)>,
    rows: Vec<Vec<Option<String>>>,
}

impl Table {
    async fn read(client: &Client) -> Self {
        client.batch_execute("set timezone = 'UTC'").await.unwrap();
        let oid: u32 = client.query_one("select 'things'::regclass::oid", &[]).await.unwrap().get(0);
        let columns = "select attname::text, atttypid from pg_attribute where attrelid = $1 and attnum > 0 order by attnum";
        let columns: Vec<(String, u32)> = client
            .query(columns, &[&oid])
            .await
            .unwrap()
            .iter()
            .map(|row| (row.get(0), row.get(1)))
            .collect();
        let texts: Vec<String> = columns.iter().map(|(name, _)| format!("{name}::text")).collect();
        let rows = client.query(&format!("select {} from things order by id", texts.join(",")), &[]).await;
        let rows = rows.unwrap().iter().map(|row| (0..row.len()).map(|at| row.get(at)).collect()).collect();
        Self { kinds: Kinds::read(client, &[oid]).await.unwrap(), oid, columns, rows }
    }

    fn bind(&self, filter: &str) -> Result<Bound, Unbindable> {
        let places: HashMap<&str, usize> =
            self.columns.iter().enumerate().map(|(at, (name, _))| (name.as_str(), at)).collect();
        Bound::new(&Filter::parse(filter).unwrap(), |name| {
            let at = *places.get(name)?;
            Some((at, self.kinds.of(self.oid, name, self.columns[at].1)?))
        })
    }

    fn test(&self, bound: &Bound, row: usize, answers: &mut Answers) -> Truth {
        let cell = |at: usize| match &self.rows[row][at] {
            None => ColumnValue::Null,
            Some(text) => ColumnValue::Text(text),
        };
        bound.test(&cell, answers)
    }
}

#[tokio::test]
async fn filter_matches_the_rows_of_the_equivalent_where() {
    let things = Things::new().await;
    let (Things { client, table, .. }, mut lent) = (&things, things.lent().await);
    let mut answers = Answers::default();
    let bounds: Vec<Bound> = SAME
        .iter()
        .map(|(filter, _)| table.bind(filter).unwrap_or_else(|e| panic!("{filter}: {e}")))
        .collect();
    for ((filter, _), bound) in SAME.iter().zip(&bounds) {
        let verified = Answers::verify(&mut lent, bound, SECOND).await.unwrap();
        verified.unwrap_or_else(|e| panic!("{filter}: {e}"));
        for row in 0..4 {
            let _ = table.test(bound, row, &mut answers);
        }
    }
    let mut fetches = 0;
    while answers.has_open() {
        answers.fetch(&mut lent, SECOND).await.unwrap();
        fetches += 1;
        for (bound, row) in bounds.iter().flat_map(|bound| (0..4).map(move |row| (bound, row))) {
            let _ = table.test(bound, row, &mut answers);
        }
    }
    assert!(fetches <= 3, "{fetches}: what can be asked together is");
    for ((filter, sql), bound) in SAME.iter().zip(&bounds) {
        let said =
            client.query(&format!("select ({sql}) is true from things order by id"), &[]).await.unwrap();
        let said: Vec<bool> = said.iter().map(|row| row.get(0)).collect();
        let ours: Vec<bool> = (0..4).map(|row| table.test(bound, row, &mut answers) == Truth::True).collect();
        assert_eq!(ours, said, "{filter} against {sql}");
    }
}

#[tokio::test]
async fn invalid_filters_are_refused_before_any_row() {
    let things = Things::new().await;
    let (table, mut lent) = (&things.table, things.lent().await);
    for (filter, sqlstate) in [
        ("title=match.(", "2201B"),
        ("money=gt.much", "22P02"),
        ("span=eq.nothing", "22P02"),
        ("bytes=ilike.x", "42883"),
        ("blind=match.x", "0A000"),
        ("body=eq.{", "22P02"),
    ] {
        let bound = table.bind(filter).unwrap();
        let refused = Answers::verify(&mut lent, &bound, SECOND).await.unwrap().expect_err(filter);
        assert_eq!(refused.sqlstate, sqlstate, "{filter}: {refused}");
    }
    for (filter, why) in [
        ("tags=eq.{a}", "operator eq cannot compare values of type text[]"),
        ("duo=in.(1)", "operator in cannot compare values of type pair"),
        ("depth=eq.x", "\"x\" is not a value for column depth of type integer"),
        ("feeling=eq.angry", "\"angry\" is not a value for column feeling of type \"odd \"\"schema\".mood"),
        ("depth=like.3", "operator like requires a text-compatible column type, got integer"),
    ] {
        assert_eq!(table.bind(filter).expect_err(filter).to_string(), why);
    }
}

#[tokio::test]
async fn failing_probe_does_not_affect_the_others() {
    let things = Things::new().await;
    let (Things { client, table, .. }, mut lent) = (&things, things.lent().await);
    // Values that were valid for the type when the WAL was written, and no longer are.
    let bound = table.bind("span=gt.\"[1,6)\"").unwrap();
    let values = ["[1,5)", "broken", "[2,9)"];
    let mut answers = Answers::default();
    let ask = |answers: &mut Answers| values.map(|value| bound.test(&|_| ColumnValue::Text(value), answers));
    ask(&mut answers);
    answers.fetch(&mut lent, SECOND).await.unwrap();
    assert_eq!(ask(&mut answers), [Truth::False, Truth::Unknown, Truth::True]);
    assert!(!answers.has_open(), "refused probes are not fetched again");
    // A lost connection leaves the probes open.
    let bound = table.bind("title=gt.b").unwrap();
    let _ = bound.test(&|_| ColumnValue::Text("c"), &mut answers);
    let cut = "select pg_terminate_backend(pid) from pg_stat_activity where datname = current_database() \
               and pid <> pg_backend_pid()";
    client.execute(cut, &[]).await.unwrap();
    assert!(answers.fetch(&mut lent, SECOND).await.unwrap_err().is_transient());
    assert!(answers.has_open());
    drop(lent);
    // The pool may hold another cut connection that it has not noticed yet.
    while answers.has_open() {
        let _ = answers.fetch(&mut things.lent().await, SECOND).await;
    }
    assert_eq!(bound.test(&|_| ColumnValue::Text("c"), &mut answers), Truth::True);
}
