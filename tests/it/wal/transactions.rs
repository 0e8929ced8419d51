//! Whole transactions, in commit order, however big they are.
use super::rig::{Rig, rig, rig_on};
use crate::support::{PATIENCE, database_on_its_own_server};
use convoke::wal::{Batch, Cell, Change, WalEvent};
use rand::{RngExt, SeedableRng, rngs::StdRng};
use std::time::Duration;
use tokio_util::sync::CancellationToken;

const ITEMS: &str = "create table items (id int8 primary key, body text)";

async fn items() -> Rig {
    rig(ITEMS, &["items"]).await
}

#[tokio::test]
async fn a_rolled_back_transaction_is_never_seen() {
    let rig = items().await;
    let mut consumer = rig.leader().await;
    rig.sql
        .batch_execute(
            "begin; insert into items values (1); rollback;
             begin; insert into items values (2); savepoint s; insert into items values (3);
             rollback to s; insert into items values (4); commit",
        )
        .await
        .unwrap();
    assert_eq!(consumer.ids().await, [2, 4]);
    consumer.stop().await;
}

#[tokio::test]
async fn transactions_come_in_the_order_of_their_commits() {
    let rig = items().await;
    let mut consumer = rig.leader().await;
    let other = rig.db.client().await;
    rig.sql.batch_execute("begin; insert into items values (1)").await.unwrap();
    other.batch_execute("begin; insert into items values (2); commit").await.unwrap();
    rig.sql.batch_execute("insert into items values (3); commit").await.unwrap();
    let (first, second) = (consumer.transaction().await, consumer.transaction().await);
    assert_eq!((super::rig::ids(&first), super::rig::ids(&second)), (vec![2], vec![1, 3]));
    assert!(first.end_lsn <= second.commit_lsn);
    consumer.stop().await;
}

#[tokio::test]
async fn huge_transaction_delays_no_other_and_omits_rolled_back_parts() {
    const ROWS: i64 = 200_000;
    let rig = rig_on(database_on_its_own_server().await, ITEMS, &["items"]).await;
    let mut config = rig.config.clone();
    config.transaction_memory_max = 1 << 20;
    let mut consumer = rig.start_with(config).await;
    consumer.leading().await;

    // Streamed in blocks while it runs, because it is more than the server decodes in memory.
    let huge = rig.db.client().await;
    huge.batch_execute("begin; savepoint a").await.unwrap();
    let fill = "insert into items select i, repeat('x', 300) from generate_series($1::int8, $2::int8) i";
    huge.execute(fill, &[&1_000_001_i64, &(1_000_000 + ROWS)]).await.unwrap();
    huge.batch_execute("rollback to a; savepoint b").await.unwrap();
    huge.execute(fill, &[&1_i64, &(ROWS / 2)]).await.unwrap();
    huge.batch_execute("release b").await.unwrap();
    huge.execute(fill, &[&(ROWS / 2 + 1), &ROWS]).await.unwrap();

    // It is on its way, and small ones pass it.
    for small in [2_000_001_i64, 2_000_002] {
        rig.sql.execute("insert into items values ($1, '')", &[&small]).await.unwrap();
        assert_eq!(consumer.ids().await, [small]);
    }
    assert!(consumer.metrics.spilled_bytes.get() > 0, "nothing was spilled");
    assert_eq!(rig.spill_files(), 1);

    huge.batch_execute("commit").await.unwrap();
    rig.sql.execute("insert into items values (3000000, '')", &[]).await.unwrap();
    let ids = consumer.ids().await;
    assert_eq!(i64::try_from(ids.len()).unwrap(), ROWS);
    assert!(ids.iter().copied().eq(1..=ROWS), "rows are missing, doubled or in another order");
    assert_eq!(consumer.ids().await, [3_000_000]);
    assert_eq!(rig.spill_files(), 0);
    consumer.stop().await;
}

#[tokio::test]
async fn a_change_arrives_about_when_its_commit_returns() {
    let rig = items().await;
    let mut consumer = rig.leader().await;
    let mut late = Vec::new();
    for id in 0..200_i64 {
        rig.sql.execute("insert into items values ($1, '')", &[&id]).await.unwrap();
        let committed = tokio::time::Instant::now();
        assert_eq!(consumer.ids().await, [id]);
        late.push(committed.elapsed());
    }
    late.sort();
    println!("after COMMIT: p50 {:?}, p95 {:?}, p99 {:?}", late[100], late[190], late[198]);
    // Two orders of magnitude above what it is, so that a busy machine does not fail the test.
    assert!(late[100] < Duration::from_millis(20), "p50 {:?}", late[100]);
    consumer.stop().await;
}

#[tokio::test]
async fn stalled_consumer_loses_nothing_and_keeps_its_connection() {
    let rig = items().await;
    let mut consumer = rig.leader().await;
    let walsender = rig.walsender().await;
    for from in (0..30_000_i64).step_by(1000) {
        let many =
            "insert into items select i, repeat('x', 1000) from generate_series($1::int8, $1::int8 + 999) i";
        rig.sql.execute(many, &[&from]).await.unwrap();
    }
    // Everything between the server and us is full by now: 30 MB against a few.
    assert!(rig.confirmed().await < rig.log_end().await);
    let mut expected = 0..30_000_i64;
    for _ in 0..30 {
        for id in consumer.ids().await {
            assert_eq!(Some(id), expected.next());
        }
    }
    assert_eq!(expected.next(), None);
    assert_eq!(rig.walsender().await, walsender);
    consumer.stop().await;
}

#[tokio::test]
async fn unpublished_changes_are_not_read() {
    let schema = "create table items (id int8 primary key); create table secrets (id int8 primary key)";
    let rig = rig(schema, &["items"]).await;
    let mut consumer = rig.leader().await;
    rig.sql.batch_execute("insert into secrets values (1); insert into items values (2)").await.unwrap();
    let WalEvent::Batch(batch) = consumer.event().await else { panic!("no batch") };
    assert_eq!(super::rig::ids(&batch), [2]);
    consumer.stop().await;
}

/// Makes the server stream everything above 64 kB in blocks.
async fn stream_early(rig: &Rig) {
    let alter = format!("alter database {} set logical_decoding_work_mem = '64kB'", rig.db.name);
    rig.sql.batch_execute(&alter).await.unwrap();
}

#[tokio::test]
async fn a_streamed_transaction_may_change_its_table_and_take_it_back() {
    let rig = items().await;
    stream_early(&rig).await;
    let mut consumer = rig.leader().await;
    let fill = |from: i64, columns: &str| {
        let to = from + 999;
        format!("insert into items select i, repeat('x', 300){columns} from generate_series({from}, {to}) i;")
    };
    let sql = [
        "begin;".to_owned(),
        fill(0, ""),
        "savepoint a; alter table items add extra int;".to_owned(),
        fill(10_000, ", 5"),
        "rollback to a;".to_owned(),
        fill(1000, ""),
        "alter table items add kept text;".to_owned(),
        fill(2000, ", 'k'"),
        "commit; insert into items values (5000, '', 'after')".to_owned(),
    ];
    rig.sql.batch_execute(&sql.concat()).await.unwrap();
    let batch = consumer.transaction().await;
    assert!(super::rig::ids(&batch).into_iter().eq(0..3000));
    for (at, change) in batch.changes.iter().enumerate() {
        let Change::Row(row) = change else { panic!("{change:?}") };
        assert_eq!(row.cell("kept").and_then(Cell::text), (at >= 2000).then_some("k"), "row {at}");
        assert_eq!(row.relation.position("extra"), None, "row {at}");
    }
    let after = consumer.transaction().await;
    let Change::Row(row) = &after.changes[0] else { panic!("{after:?}") };
    assert_eq!(row.cell("kept").and_then(Cell::text), Some("after"));
    consumer.stop().await;
}

/// The transaction after all others.
const END: i64 = 1_000_000;

/// A table for many writers, a server that streams early, and little memory.
async fn crowded() -> Rig {
    let schema = "create table items (id int8, tx int8, body text, primary key (tx, id))";
    let mut rig = rig(schema, &["items"]).await;
    stream_early(&rig).await;
    rig.config.transaction_memory_max = 100_000;
    rig
}

/// Transactions of all sizes with savepoints, a part of them rolled back.
async fn write(rig: &Rig, writer: u64, transactions: u64) {
    let sql = rig.db.client().await;
    let mut rng = StdRng::seed_from_u64(writer);
    for nth in 0..transactions {
        let tx = writer * 1000 + nth;
        let (mut script, mut id) = (String::from("begin;"), 0);
        for _ in 0..rng.random_range(1..8) {
            let rows = rng.random_range(1..300);
            script += &format!(
                "savepoint s; insert into items select i, {tx}, repeat('x', 200)
                 from generate_series({id}, {id} + {rows}) i;"
            );
            id += rows + 1;
            script += if rng.random_bool(0.4) { "rollback to s;" } else { "release s;" };
        }
        script += if rng.random_bool(0.2) { "rollback" } else { "commit" };
        sql.batch_execute(&script).await.unwrap();
    }
}

/// What is in the table: each transaction with its ids.
async fn written(rig: &Rig) -> Vec<(i64, Vec<i64>)> {
    let sql = "select tx, array_agg(id order by id) from items where tx <> $1 group by tx order by tx";
    let rows = rig.sql.query(sql, &[&END]).await.unwrap();
    assert!(rows.len() > 20, "{}", rows.len());
    rows.iter().map(|row| (row.get(0), row.get(1))).collect()
}

/// The column `tx` of a transaction of [`write`].
fn writer_of(batch: &Batch) -> i64 {
    let Change::Row(first) = &batch.changes[0] else { panic!("{batch:?}") };
    first.cell("tx").and_then(Cell::text).unwrap().parse().unwrap()
}

#[tokio::test]
async fn crashes_and_cut_connections_neither_lose_nor_double_nor_split_transactions() {
    let rig = crowded().await;
    // The slot begins here.
    rig.leader().await.stop().await;
    let finished = CancellationToken::new();
    let moved = tokio::sync::Notify::new();
    let write = async {
        tokio::join!(write(&rig, 1, 20), write(&rig, 2, 20), write(&rig, 3, 20));
        rig.sql.execute("insert into items values (0, $1, '')", &[&END]).await.unwrap();
    };
    let read = async {
        let mut rng = StdRng::seed_from_u64(7);
        let mut confirmed: Vec<(i64, Vec<i64>)> = Vec::new();
        loop {
            let mut consumer = rig.leader().await;
            let mut pending = Vec::new();
            // A life of some transactions, of which the last few are not confirmed.
            for _ in 0..rng.random_range(1..12) {
                let batch = consumer.transaction().await;
                moved.notify_one();
                if writer_of(&batch) == END {
                    confirmed.append(&mut pending);
                    consumer.stop().await;
                    finished.cancel();
                    return confirmed;
                }
                pending.push((writer_of(&batch), super::rig::ids(&batch)));
                if rng.random_bool(0.5) {
                    consumer.stream.confirm.confirm(batch.end_lsn);
                    confirmed.append(&mut pending);
                }
            }
            consumer.crash().await;
        }
    };
    let cut = async {
        while !finished.is_cancelled() {
            if let Some(pid) = rig.walsender().await {
                rig.sql.execute("select pg_terminate_backend($1)", &[&pid]).await.unwrap();
            }
            // However slow the machine is, something comes through between two cuts.
            tokio::select! { () = moved.notified() => {}, () = finished.cancelled() => {} }
            let _ = tokio::time::timeout(Duration::from_millis(300), finished.cancelled()).await;
        }
    };
    let ((), mut seen, ()) = tokio::join!(write, read, cut);
    seen.sort();
    let expected = written(&rig).await;
    let names = |all: &[(i64, Vec<i64>)]| all.iter().map(|(tx, ids)| (*tx, ids.len())).collect::<Vec<_>>();
    assert_eq!(names(&seen), names(&expected));
    assert_eq!(seen, expected);
    assert_eq!(rig.spill_files(), 0);
}

#[tokio::test]
async fn concurrent_transactions_with_savepoints_arrive_as_committed() {
    const TRANSACTIONS: u64 = 12;
    let rig = crowded().await;
    let mut consumer = rig.leader().await;
    let write = |writer: u64| write(&rig, writer, TRANSACTIONS);
    let writers = async { tokio::join!(write(0), write(1), write(2), write(3)) };
    let end = END;
    let read = async {
        let mut seen = Vec::new();
        loop {
            let batch = consumer.transaction().await;
            if writer_of(&batch) == end {
                return seen;
            }
            seen.push((writer_of(&batch), super::rig::ids(&batch)));
        }
    };
    let write_all = async {
        writers.await;
        rig.sql.execute("insert into items values (0, $1, '')", &[&end]).await.unwrap();
    };
    let ((), mut seen) = tokio::join!(write_all, read);
    seen.sort();
    let expected = written(&rig).await;
    let names = |all: &[(i64, Vec<i64>)]| all.iter().map(|(tx, ids)| (*tx, ids.len())).collect::<Vec<_>>();
    assert_eq!(names(&seen), names(&expected));
    assert_eq!(seen, expected);
    assert!(consumer.metrics.spilled_bytes.get() > 0);
    assert_eq!(rig.spill_files(), 0);
    consumer.stop().await;
}

#[tokio::test]
async fn lag_is_counted() {
    let rig = items().await;
    let mut consumer = rig.leader().await;
    rig.sql
        .batch_execute("insert into items select i, repeat('x', 1000) from generate_series(1, 2000) i")
        .await
        .unwrap();
    let batch = consumer.transaction().await;
    let reach = async |from: i64, to: i64| {
        let wait = async {
            while !(from..to).contains(&consumer.metrics.lag_bytes.get()) {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::time::timeout(PATIENCE, wait).await.unwrap();
    };
    reach(1 << 20, i64::MAX).await;
    assert_eq!((consumer.metrics.transactions.get(), consumer.metrics.changes.get()), (1, 2000));
    consumer.stream.confirm.confirm(batch.end_lsn);
    // Other tests write to the same log.
    rig.confirmed_at_least(batch.end_lsn).await;
    consumer.stop().await;
}
