//! Whole transactions, in commit order, however big they are.
use super::rig::{Rig, rig};
use convoke::wal::Event;
use std::time::Duration;

async fn items() -> Rig {
    rig("create table items (id int8 primary key, body text)", &["items"]).await
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
async fn a_huge_transaction_holds_nobody_up_and_comes_whole_without_its_rolled_back_parts() {
    const ROWS: i64 = 200_000;
    let rig = items().await;
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
async fn a_consumer_that_takes_nothing_loses_nothing_and_keeps_its_connection() {
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
async fn what_is_not_published_is_not_seen() {
    let schema = "create table items (id int8 primary key); create table secrets (id int8 primary key)";
    let rig = rig(schema, &["items"]).await;
    let mut consumer = rig.leader().await;
    rig.sql.batch_execute("insert into secrets values (1); insert into items values (2)").await.unwrap();
    let Event::Batch(batch) = consumer.event().await else { panic!("no batch") };
    assert_eq!(super::rig::ids(&batch), [2]);
    consumer.stop().await;
}
