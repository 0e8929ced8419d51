//! Databases that are put back from an older copy, and those that only change their timeline.
use super::rig::{Consumer, Rig, rig_on};
use crate::support::database_on_its_own_server;

const TABLES: &str = "create table items (id int8 primary key); create table noise (body text)";

/// A server with a copy of its files, and two confirmed rows after it.
async fn copied() -> (Rig, Consumer) {
    let mut rig = rig_on(database_on_its_own_server().await, TABLES, &["items"]).await;
    let mut consumer = rig.leader().await;
    insert(&rig, 1).await;
    let first = consumer.confirmed_transaction().await;
    rig.confirmed_at_least(first.end_lsn).await;
    rig.db.own().stop().await;
    rig.db.own().copy();
    rig.db.own().again().await;
    consumer.leading().await;
    rig.sql = rig.db.client().await;
    for id in 2..4 {
        write_noise(&rig).await;
        insert(&rig, id).await;
        let batch = consumer.confirmed_transaction().await;
        assert_eq!(super::rig::ids(&batch), [id]);
        rig.confirmed_at_least(batch.end_lsn).await;
    }
    (rig, consumer)
}

async fn insert(rig: &Rig, id: i64) {
    rig.sql.execute("insert into public.items values ($1)", &[&id]).await.unwrap();
}

async fn write_noise(rig: &Rig) {
    let noise = "insert into public.noise select repeat(md5(i::text), 30) from generate_series(1, 2000) i";
    rig.sql.batch_execute(noise).await.unwrap();
}

async fn restore(rig: &mut Rig) {
    rig.db.own().stop().await;
    rig.db.own().put_back();
    rig.db.own().again().await;
    rig.sql = rig.db.client().await;
}

async fn expect_gap(consumer: &mut Consumer) {
    let gap = consumer.gap_at_last().await;
    assert!(gap.reason.contains("put back from an older copy"), "{gap:?}");
    consumer.leading().await;
    consumer.stream.confirm.confirm(gap.to);
}

#[tokio::test]
async fn database_restored_under_a_running_stream_is_a_gap() {
    let (mut rig, mut consumer) = copied().await;
    restore(&mut rig).await;
    expect_gap(&mut consumer).await;
    insert(&rig, 2).await;
    assert_eq!(consumer.ids().await, [2]);
    consumer.stop().await;
    // The gap was confirmed, so the next process gets none.
    let mut again = rig.leader().await;
    assert_eq!(again.ids().await, [2]);
    assert_eq!(again.metrics.gaps.get(), 0);
    again.stop().await;
}

#[tokio::test]
async fn database_restored_between_two_runs_is_a_gap_although_its_wal_is_longer() {
    let (mut rig, consumer) = copied().await;
    let end = rig.log_end().await;
    consumer.stop().await;
    restore(&mut rig).await;
    while rig.log_end().await <= end {
        write_noise(&rig).await;
    }
    let mut again = rig.start().await;
    expect_gap(&mut again).await;
    insert(&rig, 2).await;
    assert_eq!(again.ids().await, [2]);
    again.stop().await;
}

#[tokio::test]
async fn timeline_that_kept_everything_is_no_gap() {
    let (mut rig, mut consumer) = copied().await;
    rig.db.own().stop().await;
    rig.db.own().make_standby();
    rig.db.own().again().await;
    rig.sql = rig.db.client().await;
    rig.sql.execute("select pg_promote()", &[]).await.unwrap();
    consumer.leading().await;
    insert(&rig, 4).await;
    assert_eq!(consumer.ids().await, [4]);
    assert_eq!(consumer.metrics.gaps.get(), 0);
    let timeline = "select timeline_id from pg_control_checkpoint()";
    let row = rig.sql.query_one(timeline, &[]).await.unwrap();
    assert_eq!(row.get::<_, i32>(0), 2, "it is another timeline");
    consumer.stop().await;
}
