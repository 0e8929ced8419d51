//! What the daemon delivers is what Postgres says: random tables, types, rows, filters, policies and rights, and each
//! subscriber hears of a change exactly when `select … where filter` with its role and claims finds the row.
//!
//! A few seconds in the suite; `PROPTEST_CASES=2000 cargo nextest run --locked -E 'test(differential)'` for more.
mod case;
mod kinds;

use super::watch::{Watch, WatchedDaemon};
use crate::support::from_environment;
use case::{Case, Item, Step, case};
use proptest::test_runner::{Config, RngSeed, TestCaseError, TestRunner};
use serde_json::{Map, Value, json};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};

const CASES: u32 = 24;

/// What every table here may lean on.
const SCHEMA: &str = "
    create type mood as enum ('sad', 'ok', 'a glad one');
    create domain word as text; create domain amount as numeric(10, 2);
    create table members (uid text, id int); insert into members values ('ann', 1), ('ann', 2), ('ben', 2), ('ben', 4);
    create function within(int) returns boolean language plpgsql stable as $$
        begin return $1 <= (auth.jwt() ->> 'level')::int; end $$;";

/// Role, claims, and whether row security limits it.
const VIEWERS: [(&str, &str, i32); 4] = [
    ("authenticated", "ann", 2),
    ("authenticated", "ben", 4),
    ("anon", "ann", 0),
    ("service_role", "root", 9),
];

fn claims((role, sub, level): (&str, &str, i32)) -> Value {
    json!({"role": role, "sub": sub, "level": level, "exp": 4_000_000_000_u64})
}

fn is_service(viewer: usize) -> bool {
    VIEWERS[viewer].0 == "service_role"
}

#[derive(Default)]
struct Counts {
    changes: AtomicU64,
    delivered: AtomicU64,
    refused: AtomicU64,
}

#[test]
fn subscriber_receives_exactly_the_rows_that_postgres_shows_it() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let rig = runtime.block_on(WatchedDaemon::new(SCHEMA, ""));
    let (next, counts) = (AtomicU32::new(0), Counts::default());
    let cases = from_environment("PROPTEST_CASES", CASES);
    // The suite asks the same every time; who says how many asks anew.
    let rng_seed = match std::env::var_os("PROPTEST_CASES") {
        Some(_) => RngSeed::Random,
        None => RngSeed::Fixed(7),
    };
    let config =
        Config { cases, rng_seed, failure_persistence: None, max_shrink_iters: 300, ..Config::default() };
    let outcome = TestRunner::new(config).run(&case(), |case| {
        let table = format!("d{}", next.fetch_add(1, Relaxed));
        runtime.block_on(check(&rig, &case, &table, &counts))
    });
    let count = |of: &AtomicU64| of.load(Relaxed);
    println!(
        "differential: {cases} cases, {} changes, {} deliveries, {} filters refused",
        count(&counts.changes),
        count(&counts.delivered),
        count(&counts.refused)
    );
    if let Err(error) = outcome {
        panic!("{error}");
    }
    assert!(count(&counts.changes) > 0 && count(&counts.delivered) > 0);
    runtime.block_on(rig.running.stop());
}

async fn check(rig: &WatchedDaemon, case: &Case, table: &str, counts: &Counts) -> Result<(), TestCaseError> {
    rig.run(&case.create(table)).await;
    let mut watches = Vec::new();
    for viewer in 0..VIEWERS.len() {
        watches.push(subscribe(rig, case, table, viewer, counts).await?);
    }
    let expected = perform(rig, case, table, &watches, counts).await;
    for ((watch, items), expected) in watches.iter_mut().zip(expected) {
        let mark = rig.mark().await;
        let mut told = Vec::new();
        for got in watch.until_mark(mark).await {
            if got.event != "postgres_changes" {
                return Err(TestCaseError::fail(format!("{got:?}")));
            }
            let message = super::watch::change(got);
            let which: Vec<_> = watch.which(&message).into_iter().map(|at| items[at]).collect();
            told.push(json!([which, super::watch::brief(&message)]));
        }
        counts.delivered.fetch_add(told.len() as u64, Relaxed);
        if told != expected {
            let list = |of: &[Value]| of.iter().map(|it| format!("  {it}\n")).collect::<String>();
            let text = format!(
                "{}\ntold\n{}but Postgres says\n{}",
                case.create(table),
                list(&told),
                list(&expected)
            );
            return Err(TestCaseError::fail(text));
        }
    }
    rig.run(&format!("drop table {table}")).await;
    Ok(())
}

/// Subscribes to the items that Postgres can decide for this viewer, and sees to it that another is refused.
async fn subscribe(
    rig: &WatchedDaemon,
    case: &Case,
    table: &str,
    viewer: usize,
    counts: &Counts,
) -> Result<(Watch, Vec<usize>), TestCaseError> {
    let (mut good, mut bad) = (Vec::new(), Vec::new());
    for (at, item) in case.items.iter().enumerate() {
        if item.is_odd(case) {
            continue;
        }
        let fine = may_name(case, item, viewer) && rig.sql.batch_execute(&item.probe(case)).await.is_ok();
        if fine { good.push(at) } else { bad.push(at) }
    }
    let mut socket = rig.socket(claims(VIEWERS[viewer])).await;
    let json_of = |at: usize| case.items[at].json(case, table);
    if let Some(at) = bad.first() {
        socket.join("bad", json!({"postgres_changes": [json_of(*at)]})).await.ok();
        let system = socket.next().await;
        if system.payload["status"] != "error" {
            let text = format!("{} was accepted: {}", json_of(*at), case.items[*at].probe(case));
            return Err(TestCaseError::fail(text));
        }
        counts.refused.fetch_add(1, Relaxed);
    }
    let mut all: Vec<_> = good.iter().map(|at| json_of(*at)).collect();
    all.push(json!({"event": "INSERT", "schema": "public", "table": "mark"}));
    let reply = socket.join("room", json!({ "postgres_changes": all })).await;
    reply.ok();
    let mut ids = super::watch::ids(&reply);
    ids.pop();
    let mut watch = Watch { socket, topic: "room".into(), ids };
    let system = watch.socket.next().await;
    if system.payload["status"] != "ok" {
        let text = format!("{}\n{}\n{all:?}", case.create(table), system.payload["message"]);
        return Err(TestCaseError::fail(text));
    }
    Ok((watch, good))
}

fn may_name(case: &Case, item: &Item, viewer: usize) -> bool {
    is_service(viewer) || item.columns(case).iter().all(|at| !case.is_hidden(*at))
}

/// Carries the steps out and gives for each viewer what it must be told.
async fn perform(
    rig: &WatchedDaemon,
    case: &Case,
    table: &str,
    watches: &[(Watch, Vec<usize>)],
    counts: &Counts,
) -> Vec<Vec<Value>> {
    let mut expected = vec![Vec::new(); watches.len()];
    rig.run("set timezone = 'UTC'; begin").await;
    for Step { id, row, commits } in &case.steps {
        if *commits {
            rig.run("commit; begin").await;
        }
        let old = look(rig, case, table, *id, watches).await;
        let statement = match (&old.image, row) {
            (None, None) => continue,
            (None, Some(row)) => case.insert(table, *id, row),
            (Some(_), Some(row)) => case.update(table, *id, row),
            (Some(_), None) => format!("delete from {table} where id = {id}"),
        };
        rig.run(&statement).await;
        let new = look(rig, case, table, *id, watches).await;
        counts.changes.fetch_add(1, Relaxed);
        for (viewer, expected) in expected.iter_mut().enumerate() {
            expected.extend(expected_messages(case, viewer, &old, &new, &watches[viewer].1));
        }
    }
    rig.run("commit").await;
    expected
}

/// A row as it is in the open transaction.
struct Look {
    image: Option<Map<String, Value>>,
    /// For each item, whether its filter holds.
    passes: Vec<bool>,
    /// For each viewer, whether it sees the row.
    seen: Vec<bool>,
}

async fn look(
    rig: &WatchedDaemon,
    case: &Case,
    table: &str,
    id: i32,
    watches: &[(Watch, Vec<usize>)],
) -> Look {
    let decided: Vec<bool> =
        (0..case.items.len()).map(|at| watches.iter().any(|(_, items)| items.contains(&at))).collect();
    let filters = case.items.iter().zip(&decided);
    let filters: Vec<_> =
        filters.map(|(item, decided)| if *decided { item.sql(case) } else { "false".into() }).collect();
    let sql = format!(
        "select {}, array[{}]::bool[] from {table} where id = {id}",
        case.image(),
        filters.join(", ")
    );
    let row = rig.sql.query_opt(&sql, &[]).await.unwrap();
    let mut seen = Vec::new();
    for viewer in VIEWERS {
        let as_viewer = format!(
            "set local role {}; select set_config('request.jwt.claims', '{}', true)",
            viewer.0,
            claims(viewer)
        );
        rig.run(&as_viewer).await;
        let found = rig.sql.query_opt(&format!("select 1 from {table} where id = {id}"), &[]).await.unwrap();
        rig.run("reset role").await;
        seen.push(found.is_some());
    }
    let image = row.as_ref().map(|row| row.get::<_, Value>(0).as_object().unwrap().clone());
    let passes = row.map_or_else(|| vec![false; case.items.len()], |row| row.get(1));
    Look { image, passes, seen }
}

/// The messages about one change for one viewer: those who want everything first, then by what they want.
fn expected_messages(case: &Case, viewer: usize, old: &Look, new: &Look, items: &[usize]) -> Vec<Value> {
    let limited = case.secured && !is_service(viewer);
    let (kind, tested) = match (&old.image, &new.image) {
        (None, _) => ("INSERT", new),
        (Some(_), Some(_)) => ("UPDATE", new),
        (Some(_), None) => ("DELETE", old),
    };
    if !tested.seen[viewer] {
        return Vec::new();
    }
    let mut groups: Vec<(Vec<String>, Vec<usize>)> = Vec::new();
    for at in items.iter().copied().filter(|at| tested.passes[*at]) {
        let item = &case.items[at];
        if item.event() != "*" && item.event() != kind {
            continue;
        }
        let wants = item.selected(case);
        match groups.iter_mut().find(|(of, _)| *of == wants) {
            Some((_, which)) => which.push(at),
            None => groups.push((wants, vec![at])),
        }
    }
    groups.sort_by_key(|(wants, _)| wants.join(","));
    let cut = |image: &Map<String, Value>, wants: &[String], only_key: bool| {
        let keeps = |name: &str| {
            name == "id"
                || !only_key
                    && (wants.is_empty() || wants.iter().any(|it| it == name))
                    && (is_service(viewer) || !case.hides(name))
        };
        image
            .iter()
            .filter(|(name, _)| keeps(name))
            .map(|(name, value)| (name.clone(), value.clone()))
            .collect::<Map<_, _>>()
    };
    let message = |(wants, which): (Vec<String>, Vec<usize>)| {
        let mut brief = vec![json!(kind)];
        brief.extend(new.image.as_ref().map(|image| json!(cut(image, &wants, false))));
        let only_key = limited && (kind == "DELETE" || !old.seen[viewer]);
        brief.extend(old.image.as_ref().map(|image| json!(cut(image, &wants, only_key))));
        json!([which, brief])
    };
    groups.into_iter().map(message).collect()
}
