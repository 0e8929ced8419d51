//! Wakes against the tables and rows of a real database.
use super::definition;
use crate::support::{TestDb, empty_database};
use bytes::Bytes;
use chrono::DateTime;
use convoke::{
    agent::{Commit, Env, Metrics, PositionedChange, Trial, TrialOutcome, Trials, WakeIndex},
    db::Database,
    id::Lsn,
    scope::Scope,
    task::Wake,
    wal::{Cell, Change, Column, Op, Relation, RowChange},
};
use serde_json::json;
use std::sync::Arc;

const TABLES: &str = "
    create type mood as enum ('sad', 'glad'); create domain level as int4;
    create table tickets (id int8 primary key, priority int4, feeling mood, depth level, body json, title text)";

fn wake(table: &str, filter: &str) -> String {
    format!("[[wake]]\ntable = \"{table}\"\nfilter = '{filter}'\nrequest = {{ kind = \"k\" }}\n")
}

fn index(wakes: &[String], metrics: &Metrics) -> WakeIndex {
    let text = format!("id = \"a\"\n[run]\nkind = \"remote\"\n{}", wakes.concat());
    WakeIndex::new([&definition(&text).compile(&Env::process()).unwrap()], metrics)
}

/// A database with the tables.
async fn with_tables() -> (TestDb, Scope, Database) {
    let db = empty_database().await;
    db.client().await.batch_execute(TABLES).await.unwrap();
    let scope = Scope::default();
    let database = db.open(&scope).await;
    (db, scope, database)
}

#[tokio::test]
async fn wakes_are_checked_against_the_tables_of_the_database() {
    let (_db, _scope, database) = with_tables().await;
    let wakes = [
        wake("public.tickets", "priority=gte.3,feeling=gt.sad,depth=gt.2,body=is.null,title=imatch.^fire"),
        wake("tickets", "urgency=eq.1"),
        wake("tickets", "priority=gte.high"),
        wake("tickets", "body=eq.1"),
        wake("tickets", "title=match.("),
        wake("orders", ""),
    ];
    let problems = index(&wakes, &Metrics::default()).check(&database).await.unwrap();
    let told: Vec<_> =
        problems.iter().map(|(_, problem)| format!("{}: {}", problem.key, problem.message)).collect();
    assert_eq!(
        told,
        [
            "wake.1.filter: public.tickets: invalid column for filter urgency",
            "wake.2.filter: public.tickets: \"high\" is not a value for column priority of type integer",
            "wake.3.filter: public.tickets: operator eq cannot compare values of type json",
            "wake.4.filter: public.tickets: invalid regular expression: parentheses () not balanced \
             (SQLSTATE 2201B)",
            "wake.5.table: there is no table public.orders in the database",
        ]
    );
}

/// The table as the log tells of it, with its columns as they are now.
async fn relation(database: &Database) -> Arc<Relation> {
    let sql = "select a.attname::text, a.atttypid, t.typname::text, a.attrelid from pg_attribute a
        join pg_type t on t.oid = a.atttypid where a.attrelid = 'tickets'::regclass and a.attnum > 0
        and not a.attisdropped order by a.attnum";
    let rows = database.client().await.unwrap().query(sql, &[]).await.unwrap();
    let column = |row: &tokio_postgres::Row| Column::new(row.get(0), row.get(1), -1, false, row.get(2));
    Arc::new(Relation {
        oid: rows[0].get(3),
        schema: "public".into(),
        name: "tickets".into(),
        replica_identity: 'd',
        columns: rows.iter().map(column).collect(),
    })
}

fn insert(relation: &Arc<Relation>, values: &[&'static str]) -> Change {
    let cell = |text: &&'static str| match *text {
        "NULL" => Cell::Null,
        text => Cell::Text(Bytes::from_static(text.as_bytes())),
    };
    let new = Some(values.iter().map(cell).collect());
    Change::Row(RowChange {
        relation: relation.clone(),
        op: Op::Insert,
        new,
        old: None,
        old_is_key_only: false,
    })
}

async fn woken(index: &WakeIndex, database: &Database, changes: &[Change]) -> Vec<Wake> {
    let commit = Commit { lsn: Lsn(0x10), committed_at: DateTime::from_timestamp(1_000, 0).unwrap() };
    let placed: Vec<_> =
        (0..).zip(changes).map(|(index, change)| PositionedChange { commit, index, change }).collect();
    index.find_wakes(database, &placed).await.unwrap()
}

fn places(wakes: &[Wake]) -> Vec<(&str, u32)> {
    wakes.iter().map(|wake| (wake.trigger.as_str(), wake.index)).collect()
}

#[tokio::test]
async fn filter_that_only_postgres_can_evaluate_matches_like_where() {
    let (_db, _scope, database) = with_tables().await;
    let tickets = relation(&database).await;
    let wakes = [
        wake("tickets", "title=ilike.%FIRE%"),
        wake("tickets", "or=(title.match.^P,feeling.gt.sad)"),
        wake("tickets", "priority=gt.1"),
    ];
    let index = index(&wakes, &Metrics::default());
    let rows = [
        insert(&tickets, &["1", "1", "sad", "1", "{}", "Printer on fire"]),
        insert(&tickets, &["2", "2", "glad", "1", "{}", "water"]),
        insert(&tickets, &["3", "1", "sad", "1", "{}", "water"]),
        insert(&tickets, &["4", "2", "NULL", "1", "{}", "NULL"]),
    ];
    let woken = woken(&index, &database, &rows).await;
    assert_eq!(places(&woken), [("a#0", 0), ("a#1", 0), ("a#1", 1), ("a#2", 1), ("a#2", 3)]);
    assert!(woken.iter().all(|wake| wake.request.is_ok()));
}

#[tokio::test]
async fn filter_that_fails_in_the_database_is_reported_and_affects_no_other() {
    let (db, _scope, database) = with_tables().await;
    let client = db.client().await;
    client.batch_execute("alter table tickets add span int4range").await.unwrap();
    let tickets = relation(&database).await;
    let metrics = Metrics::default();
    let index = index(&[wake("tickets", "span=gt.\"[1,6)\""), wake("tickets", "title=ilike.x")], &metrics);
    // Not a value that the log can have; the type may have been made anew since the row was written.
    let rows = [
        insert(&tickets, &["1", "1", "sad", "1", "{}", "X", "broken"]),
        insert(&tickets, &["2", "1", "sad", "1", "{}", "y", "[2,9)"]),
    ];
    let woken = woken(&index, &database, &rows).await;
    assert_eq!(places(&woken), [("a#0", 0), ("a#1", 0), ("a#0", 1)]);
    let why = woken[0].request.as_ref().unwrap_err();
    assert_eq!(why, "filter: the database takes the question about this row for an error");
    assert!(woken[1].request.is_ok() && woken[2].request.is_ok());
    assert_eq!(metrics.wakes_unfit.get(), 1);
}

/// A type whose equal values have one text: the values of the filter are normalised, and an invalid one is reported.
#[tokio::test]
async fn value_is_compared_in_the_form_of_the_wal() {
    let (db, _scope, database) = with_tables().await;
    db.client().await.batch_execute("alter table tickets add host inet").await.unwrap();
    let tickets = relation(&database).await;
    let metrics = Metrics::default();
    let wakes = ["host=eq.::0001", "host=in.(10.0.0.1/32,10.0.0.2)", "host=neq.10.0.0.1", "host=eq.banana"];
    let index = index(&wakes.map(|filter| wake("tickets", filter)), &metrics);
    let rows = [
        insert(&tickets, &["1", "1", "sad", "1", "{}", "x", "::1"]),
        insert(&tickets, &["2", "1", "sad", "1", "{}", "x", "10.0.0.1"]),
    ];
    assert_eq!(places(&woken(&index, &database, &rows).await), [("a#0", 0), ("a#2", 0), ("a#1", 1)]);
    assert_eq!(metrics.wakes_unfit.get(), 2, "once for each row");
}

#[tokio::test]
async fn each_version_of_a_table_is_bound_on_its_own() {
    let (db, _scope, database) = with_tables().await;
    let before = relation(&database).await;
    let alter = "alter table tickets rename priority to urgency";
    db.client().await.batch_execute(alter).await.unwrap();
    let after = relation(&database).await;
    let metrics = Metrics::default();
    let index = index(&[wake("tickets", "priority=gt.1")], &metrics);
    let row = |relation| insert(relation, &["1", "2", "sad", "1", "{}", "x"]);
    let rows = [row(&before), row(&after), row(&before)];
    assert_eq!(places(&woken(&index, &database, &rows).await), [("a#0", 0), ("a#0", 2)]);
    assert_eq!(metrics.wakes_unfit.get(), 1);
}

/// What a trial says of a row, by a wake.
async fn tried(trials: &Trials, index: &WakeIndex, at: usize, row: serde_json::Value) -> Trial {
    let tried = serde_json::from_value(row).unwrap();
    let (org, trigger) = ("default".parse().unwrap(), format!("a#{at}"));
    let now = DateTime::from_timestamp(1_000, 0).unwrap();
    trials.try_row(index, (&org, &trigger), tried, now).await.unwrap()
}

#[tokio::test]
async fn trial_says_what_the_same_row_does_in_the_wal() {
    let (_db, _scope, database) = with_tables().await;
    let tickets = relation(&database).await;
    let filters = [
        "",
        "priority=gte.3",
        "priority=in.(1,2),feeling=gt.sad",
        "or=(title.match.^P,depth.gt.2)",
        "title=ilike.%FIRE%,priority=lt.10",
        "not.and=(priority.eq.1,title.is.null)",
        "body=is.null",
        "title=isdistinct.water",
    ];
    let index = index(&filters.map(|filter| wake("tickets", filter)), &Metrics::default());
    let trials = Trials::new(&database).unwrap();
    // The same row as JSON of a person, and as the WAL has it.
    let rows = [
        (
            json!({ "id": 1, "priority": 1, "feeling": "sad", "depth": 3, "title": "Printer on fire" }),
            ["1", "1", "sad", "3", "NULL", "Printer on fire"],
        ),
        (
            json!({ "id": "2", "priority": " 12 ", "feeling": "glad", "body": {}, "title": "water" }),
            ["2", "12", "glad", "NULL", "{}", "water"],
        ),
        (json!({ "id": 3 }), ["3", "NULL", "NULL", "NULL", "NULL", "NULL"]),
        (
            json!({ "id": 4, "priority": 2, "feeling": "glad", "depth": 2, "body": [], "title": "" }),
            ["4", "2", "glad", "2", "[]", ""],
        ),
    ];
    for (row, stored) in rows {
        let woken = woken(&index, &database, &[insert(&tickets, &stored)]).await;
        for (at, filter) in filters.iter().enumerate() {
            let trial = tried(&trials, &index, at, json!({ "row": row })).await;
            let wakes = places(&woken).contains(&(format!("a#{at}").as_str(), 0));
            assert_eq!(trial.outcome == TrialOutcome::Wakes, wakes, "{filter}: {row} {trial:?}");
            // All hold exactly if the row wakes: the one that excludes it is named.
            assert_eq!(trial.conditions.iter().all(|it| it.holds == Some(true)), wakes, "{trial:?}");
            let texts: Vec<_> = trial.conditions.iter().map(|it| it.condition.as_str()).collect();
            assert_eq!(texts.join(","), *filter);
        }
    }
}

#[tokio::test]
async fn trial_of_a_deleted_row_sees_what_the_wal_carries() {
    let (db, _scope, database) = with_tables().await;
    let wakes = [
        "[[wake]]\ntable = \"tickets\"\nevents = [\"DELETE\"]\nfilter = \"id=gt.1,priority=gt.1\"\nrequest = { kind = \"k\" }\n".to_owned(),
        "[[wake]]\ntable = \"tickets\"\nevents = [\"TRUNCATE\", \"UPDATE\"]\nrequest = { kind = \"k\", input = { was = \"{{ old.title }}\" } }\n".to_owned(),
    ];
    let index = index(&wakes, &Metrics::default());
    let trials = Trials::new(&database).unwrap();
    let row = json!({ "row": { "id": 2, "priority": 2 } });
    let trial = tried(&trials, &index, 0, row.clone()).await;
    assert_eq!((trial.event.as_str(), trial.outcome), ("DELETE", TrialOutcome::Excluded));
    let told: Vec<_> = trial.conditions.iter().map(|it| (it.holds, it.values.len())).collect();
    assert_eq!(told, [(Some(true), 1), (None, 0)], "the key alone is in the WAL");
    for (identity, outcome) in [
        ("full", TrialOutcome::Wakes),
        ("using index tickets_both", TrialOutcome::Wakes),
        ("nothing", TrialOutcome::Excluded),
    ] {
        let client = db.client().await;
        client.batch_execute("alter table tickets alter priority set not null; create unique index if not exists tickets_both on tickets (id, priority)").await.unwrap();
        client.batch_execute(&format!("alter table tickets replica identity {identity}")).await.unwrap();
        assert_eq!(tried(&trials, &index, 0, row.clone()).await.outcome, outcome, "{identity}");
    }
    let inserted =
        tried(&trials, &index, 0, json!({ "event": "INSERT", "row": { "id": 2, "priority": 2 } })).await;
    assert_eq!((inserted.listens, inserted.outcome), (false, TrialOutcome::Excluded));
    assert!(inserted.conditions.iter().all(|it| it.holds == Some(true)), "the event alone excludes it");
    let unfit = tried(&trials, &index, 1, json!({ "row": { "id": 2 } })).await;
    assert_eq!((unfit.event.as_str(), unfit.outcome), ("UPDATE", TrialOutcome::Unfit));
    assert_eq!(unfit.problem.as_deref(), Some("input.was: there is no old.title"));
}
