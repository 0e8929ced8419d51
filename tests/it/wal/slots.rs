//! Positions, leaders and slots: what comes again, who streams, and what is never passed over in silence.
use super::rig::{Rig, rig};
use convoke::{
    id::Lsn,
    wal::{WalEvent, position},
};

async fn items() -> Rig {
    rig("create table items (id int8 primary key); create table noise (id int8)", &["items"]).await
}

async fn insert(rig: &Rig, id: i64) {
    rig.sql.execute("insert into items values ($1)", &[&id]).await.unwrap();
}

#[tokio::test]
async fn restart_continues_after_the_confirmed_position() {
    let rig = items().await;
    let mut first = rig.leader().await;
    insert(&rig, 1).await;
    insert(&rig, 2).await;
    assert_eq!(super::rig::ids(&first.confirmed_transaction().await), [1]);
    let second = first.confirmed_transaction().await;
    first.stop().await;
    let stored = position::load(&rig.sql, &rig.config.slot).await.unwrap().unwrap();
    assert!(stored >= second.end_lsn);
    assert!(rig.confirmed().await >= second.end_lsn, "no final word to the server");

    insert(&rig, 3).await;
    let mut again = rig.leader().await;
    assert_eq!(again.ids().await, [3]);
    again.stop().await;
}

#[tokio::test]
async fn unconfirmed_changes_are_read_again_after_a_crash() {
    let rig = items().await;
    let mut first = rig.leader().await;
    for id in 1..=3 {
        insert(&rig, id).await;
    }
    first.confirmed_transaction().await;
    assert_eq!((first.ids().await, first.ids().await), (vec![2], vec![3]));
    first.crash().await;

    let mut again = rig.leader().await;
    assert_eq!((again.ids().await, again.ids().await), (vec![2], vec![3]));
    again.stop().await;
}

#[tokio::test]
async fn position_saved_by_the_consumer_counts_before_the_server_knows_it() {
    let rig = items().await;
    let mut first = rig.leader().await;
    insert(&rig, 1).await;
    insert(&rig, 2).await;
    let done = first.transaction().await;
    position::save(&rig.sql, &rig.config.slot, done.end_lsn).await.unwrap();
    // It never goes back.
    position::save(&rig.sql, &rig.config.slot, Lsn(1)).await.unwrap();
    assert_eq!(position::load(&rig.sql, &rig.config.slot).await.unwrap(), Some(done.end_lsn));
    first.crash().await;

    let mut again = rig.leader().await;
    assert_eq!(again.ids().await, [2]);
    again.stop().await;
}

#[tokio::test]
async fn second_daemon_stands_by_and_takes_over_the_stream() {
    let rig = items().await;
    let mut first = rig.leader().await;
    let mut second = rig.start().await;
    assert_eq!(second.event().await, WalEvent::Standby);
    assert_eq!((first.metrics.leading.get(), second.metrics.leading.get()), (1, 0));
    insert(&rig, 1).await;
    first.confirmed_transaction().await;
    insert(&rig, 2).await;
    first.stop().await;

    let stopped = tokio::time::Instant::now();
    second.leading().await;
    println!("took over after {:?}", stopped.elapsed());
    assert!(stopped.elapsed() < std::time::Duration::from_secs(30));
    assert_eq!(second.ids().await, [2]);
    second.stop().await;
}

#[tokio::test]
async fn leader_that_loses_its_connection_is_replaced() {
    let rig = items().await;
    let mut first = rig.leader().await;
    let mut second = rig.start().await;
    assert_eq!(second.event().await, WalEvent::Standby);
    // Whoever is faster leads now; all that is sure is that there is exactly one stream.
    rig.terminate_walsender().await;
    insert(&rig, 1).await;
    assert!(matches!(first.event().await, WalEvent::Down { .. }));
    let (leader, other) = tokio::select! {
        _ = first.leading() => (&mut first, &second),
        _ = second.leading() => (&mut second, &first),
    };
    assert_eq!(leader.ids().await, [1]);
    assert_eq!((leader.metrics.leading.get(), other.metrics.leading.get()), (1, 0));
    first.stop().await;
    second.stop().await;
}

#[tokio::test]
async fn dropped_slot_is_a_gap_until_it_is_confirmed() {
    let rig = items().await;
    let mut first = rig.leader().await;
    insert(&rig, 1).await;
    let done = first.confirmed_transaction().await;
    first.stop().await;
    rig.sql.execute("select pg_drop_replication_slot($1)", &[&rig.config.slot]).await.unwrap();
    insert(&rig, 2).await;

    let mut second = rig.start().await;
    let gap = second.gap().await;
    assert!(gap.from >= Some(done.end_lsn) && gap.to > gap.from.unwrap(), "{gap:?}");
    assert!(gap.reason.contains("missing"), "{gap:?}");
    assert_eq!(second.leading().await, gap.to);
    assert_eq!(second.metrics.gaps.get(), 1);
    insert(&rig, 3).await;
    assert_eq!(second.ids().await, [3]);
    second.crash().await;

    // The gap was not confirmed.
    let mut third = rig.start().await;
    let gap = third.gap().await;
    third.stream.confirm.confirm(gap.to);
    third.leading().await;
    assert_eq!(third.ids().await, [3]);
    third.stop().await;
    let mut fourth = rig.leader().await;
    assert_eq!(fourth.ids().await, [3]);
    assert_eq!(fourth.metrics.gaps.get(), 0);
    fourth.stop().await;
}

#[tokio::test]
async fn slot_dropped_under_a_running_stream_is_a_gap() {
    let rig = items().await;
    let mut consumer = rig.leader().await;
    insert(&rig, 1).await;
    consumer.confirmed_transaction().await;
    let drop = "do $$ declare s text := (select slot_name from pg_replication_slots
                                         where database = current_database()); begin
                for i in 1..1000 loop
                  perform pg_terminate_backend(active_pid, 5000) from pg_replication_slots where slot_name = s;
                  begin
                    perform pg_drop_replication_slot(s);
                    return;
                  exception when object_in_use then null;
                  end;
                end loop; end $$";
    rig.sql.batch_execute(drop).await.unwrap();
    // It may have streamed again between the kill and the drop.
    consumer.gap_at_last().await;
    consumer.leading().await;
    consumer.stop().await;
}

#[tokio::test]
async fn slot_moved_by_another_session_is_a_gap() {
    let rig = items().await;
    let mut first = rig.leader().await;
    insert(&rig, 1).await;
    first.confirmed_transaction().await;
    first.stop().await;
    insert(&rig, 2).await;
    let advance = "select pg_replication_slot_advance($1, pg_current_wal_lsn())";
    rig.sql.execute(advance, &[&rig.config.slot]).await.unwrap();

    let mut second = rig.start().await;
    assert!(second.gap().await.reason.contains("moved to"));
    second.stop().await;
}

#[tokio::test]
async fn position_of_another_cluster_or_beyond_the_wal_is_a_gap() {
    let rig = items().await;
    let changes =
        ["update convoke.wal_position set system_id = '1'", "update convoke.wal_position set lsn = 'FFFF/0'"];
    for change in changes {
        rig.leader().await.stop().await;
        rig.sql.batch_execute(change).await.unwrap();
        let mut consumer = rig.start().await;
        let gap = consumer.gap().await;
        consumer.stream.confirm.confirm(gap.to);
        consumer.leading().await;
        insert(&rig, 1).await;
        assert_eq!(super::rig::ids(&consumer.confirmed_transaction().await), [1]);
        consumer.stop().await;
        rig.sql.batch_execute("delete from items").await.unwrap();
        // The delete is the only thing left to see, without a gap.
        let mut consumer = rig.leader().await;
        consumer.confirmed_transaction().await;
        consumer.stop().await;
    }
}

#[tokio::test]
async fn idle_stream_releases_wal_of_other_databases() {
    let rig = items().await;
    let consumer = rig.leader().await;
    for _ in 0..3 {
        rig.sql.batch_execute("insert into noise select generate_series(1, 20000)").await.unwrap();
        let end = rig.log_end().await;
        // All but a trifle, which would otherwise cause the next.
        rig.confirmed_at_least(Lsn(end.0 - (128 << 10))).await;
    }
    consumer.stop().await;
}

#[tokio::test]
async fn unconfirmed_transaction_retains_wal_on_an_idle_stream() {
    let rig = items().await;
    let mut consumer = rig.leader().await;
    insert(&rig, 1).await;
    let batch = consumer.transaction().await;
    rig.sql.batch_execute("insert into noise select generate_series(1, 20000)").await.unwrap();
    insert(&rig, 2).await;
    consumer.transaction().await;
    assert!(rig.confirmed().await < batch.end_lsn);
    consumer.stream.confirm.confirm(batch.end_lsn);
    rig.confirmed_at_least(batch.end_lsn).await;
    consumer.crash().await;

    let mut again = rig.leader().await;
    assert_eq!(again.ids().await, [2]);
    again.stop().await;
}

#[tokio::test]
async fn missing_publication_and_foreign_slot_are_reported_by_name_until_repaired() {
    let rig = items().await;
    rig.sql.batch_execute("drop publication convoke").await.unwrap();
    let mut consumer = rig.start().await;
    let WalEvent::Down { reason } = consumer.event().await else { panic!("it streams") };
    assert!(reason.contains("publication convoke does not exist"), "{reason}");
    rig.sql.batch_execute("create publication convoke for table items").await.unwrap();
    consumer.leading().await;
    consumer.stop().await;

    let mut config = rig.config.clone();
    config.slot = format!("{}_foreign", rig.config.slot);
    let foreign = "select pg_create_logical_replication_slot($1, 'test_decoding')";
    rig.sql.execute(foreign, &[&config.slot]).await.unwrap();
    let mut consumer = rig.start_with(config.clone()).await;
    let WalEvent::Down { reason } = consumer.event().await else { panic!("it streams") };
    assert!(reason.contains("plugin \"test_decoding\""), "{reason}");
    consumer.stop().await;

    config.slot = "Bad-Name".into();
    let mut consumer = rig.start_with(config).await;
    let WalEvent::Down { reason } = consumer.event().await else { panic!("it streams") };
    assert!(reason.contains("no slot name"), "{reason}");
    consumer.stop().await;
}

#[tokio::test]
async fn publication_that_did_not_exist_for_a_while_is_a_gap() {
    let rig = items().await;
    let mut first = rig.leader().await;
    insert(&rig, 1).await;
    first.confirmed_transaction().await;
    first.stop().await;
    rig.sql.batch_execute("drop publication convoke").await.unwrap();
    insert(&rig, 2).await;
    rig.sql.batch_execute("create publication convoke for table items").await.unwrap();

    let mut second = rig.start().await;
    let gap = second.gap_at_last().await;
    assert!(gap.reason.contains("publication"), "{gap:?}");
    second.leading().await;
    insert(&rig, 3).await;
    assert_eq!(second.ids().await, [3]);
    second.stop().await;
}

#[tokio::test]
async fn gap_is_reported_once_although_the_stream_breaks_before_it_is_stored() {
    let rig = items().await;
    let mut first = rig.leader().await;
    insert(&rig, 1).await;
    first.confirmed_transaction().await;
    first.stop().await;
    rig.sql.execute("select pg_drop_replication_slot($1)", &[&rig.config.slot]).await.unwrap();
    let mut second = rig.start().await;
    assert!(second.gap().await.reason.contains("is missing"));
    second.leading().await;
    // Nothing was confirmed, so nothing is stored: the slot is further than the stored position.
    rig.terminate_walsender().await;
    second.leading().await;
    insert(&rig, 2).await;
    assert_eq!(second.ids().await, [2]);
    assert_eq!(second.metrics.gaps.get(), 1);
    second.crash().await;
    // The gap is still open, and the next process was handed nothing.
    let mut third = rig.start().await;
    assert!(third.gap().await.to > Lsn(0));
    third.stop().await;
}
