//! Publications that are dropped, made again, and missing where the log is read.
use super::rig::{Consumer, PUBLICATION, Rig, ids, rig, start_reading};
use convoke::{
    scope::Scope,
    wal::{self, Cell, Change, WalEvent},
};

const CLIENTS: &str = "supabase_realtime";

async fn two_publications() -> (Rig, Consumer) {
    let schema = "create table items (id int8 primary key); create table seen (id int8 primary key)";
    let rig = rig(schema, &["items"]).await;
    wal::publish(&rig.sql, CLIENTS, &[("public".into(), "seen".into())]).await.unwrap();
    let mut consumer = reading_both(&rig).await;
    consumer.leading().await;
    (rig, consumer)
}

async fn reading_both(rig: &Rig) -> Consumer {
    let scope = Scope::default();
    let database = rig.db.open(&scope).await;
    start_reading(&scope, database, rig.config.clone(), rig.spill_dir(), &[PUBLICATION, CLIENTS])
}

/// The next change of which publications are read; rows of `items` may come before it.
async fn missing(consumer: &mut Consumer) -> Vec<String> {
    loop {
        match consumer.event().await {
            WalEvent::Publications { missing } => return missing,
            WalEvent::Leading { .. } | WalEvent::Batch(_) => {}
            other => panic!("no publications but {other:?}"),
        }
    }
}

#[tokio::test]
async fn dropped_publication_is_read_again_once_it_is_back() {
    let (rig, mut consumer) = two_publications().await;
    rig.sql.batch_execute("drop publication supabase_realtime").await.unwrap();
    rig.sql.batch_execute("insert into items values (1)").await.unwrap();
    assert_eq!(missing(&mut consumer).await, [CLIENTS]);
    assert_eq!(consumer.ids().await, [1]);
    rig.sql.batch_execute("insert into seen values (2); insert into items values (3)").await.unwrap();
    assert_eq!(consumer.ids().await, [3]);

    rig.sql.batch_execute("create publication supabase_realtime for table seen").await.unwrap();
    assert!(missing(&mut consumer).await.is_empty());
    rig.sql.batch_execute("insert into seen values (4); insert into items values (5)").await.unwrap();
    // Both statements are one transaction.
    assert_eq!(consumer.ids().await, [4, 5]);
    assert_eq!((consumer.metrics.gaps.get(), rig.sql.query("select 1", &[]).await.unwrap().len()), (0, 1));
    consumer.stop().await;
}

#[tokio::test]
async fn own_publication_dropped_and_recreated_is_read_again() {
    let (rig, mut consumer) = two_publications().await;
    rig.sql.batch_execute("drop publication convoke").await.unwrap();
    rig.sql.batch_execute("insert into seen values (1)").await.unwrap();
    assert_eq!(missing(&mut consumer).await, [PUBLICATION]);
    assert_eq!(consumer.ids().await, [1]);
    wal::publish(&rig.sql, PUBLICATION, &[("public".into(), "items".into())]).await.unwrap();
    assert!(missing(&mut consumer).await.is_empty());
    rig.sql.batch_execute("insert into items values (2)").await.unwrap();
    assert_eq!(consumer.ids().await, [2]);
    consumer.stop().await;
}

/// What was committed while it existed is decoded as it was then, although it does not exist any more.
#[tokio::test]
async fn backlog_from_before_a_publication_was_dropped_is_read_whole() {
    let (rig, consumer) = two_publications().await;
    consumer.stop().await;
    rig.sql.batch_execute("insert into seen values (1)").await.unwrap();
    rig.sql.batch_execute("drop publication supabase_realtime").await.unwrap();
    rig.sql.batch_execute("insert into items values (2)").await.unwrap();
    rig.sql.batch_execute("create publication supabase_realtime for table seen").await.unwrap();
    rig.sql.batch_execute("insert into items values (3)").await.unwrap();
    let mut again = reading_both(&rig).await;
    assert_eq!(again.ids().await, [1]);
    assert_eq!(again.ids().await, [2]);
    assert_eq!(again.ids().await, [3]);
    let mut last = Vec::new();
    rig.sql.batch_execute("insert into seen values (4)").await.unwrap();
    rig.sql.batch_execute("insert into items values (5)").await.unwrap();
    while last != [5] {
        last = ids_or_mark(&again.transaction().await);
    }
    assert_eq!(again.metrics.gaps.get(), 0);
    again.stop().await;
}

/// The ids, or none for a mark of the stream's own.
fn ids_or_mark(batch: &wal::Batch) -> Vec<i64> {
    let mark = batch.changes.iter().any(|change| matches!(change, wal::Change::Message { .. }));
    if mark { Vec::new() } else { ids(batch) }
}

#[tokio::test]
async fn new_slot_is_made_after_our_publication_so_that_one_gap_covers_both() {
    let (rig, consumer) = two_publications().await;
    consumer.stop().await;
    rig.sql.execute("select pg_drop_replication_slot($1)", &[&rig.config.slot]).await.unwrap();
    rig.sql.batch_execute("drop publication convoke").await.unwrap();
    let mut again = reading_both(&rig).await;
    let gap = again.gap().await;
    again.stream.confirm.confirm(gap.to);
    rig.sql.batch_execute("insert into seen values (1)").await.unwrap();
    loop {
        match again.event().await {
            WalEvent::Leading { .. } => {}
            WalEvent::Batch(batch) => break assert_eq!(ids(&batch), [1]),
            other => panic!("the publication was missing for the new slot: {other:?}"),
        }
    }
    again.stop().await;
}

/// Postgres refuses to decode such a table while both publications are read.
#[tokio::test]
async fn table_with_a_column_list_in_one_publication_is_left_out_and_the_stream_goes_on() {
    let (rig, mut consumer) = two_publications().await;
    rig.sql.batch_execute("create table both_have (id int8 primary key, a int, b int, g int8 generated always as (id) stored)").await.unwrap();
    let tables: [wal::TableName; 2] =
        [("public".into(), "items".into()), ("public".into(), "both_have".into())];
    wal::publish(&rig.sql, PUBLICATION, &tables).await.unwrap();
    rig.sql.batch_execute("alter publication supabase_realtime add table both_have").await.unwrap();
    rig.sql.batch_execute("insert into both_have values (1)").await.unwrap();
    assert_eq!(consumer.ids().await, [1]);
    assert!(wal::unpublishable(&rig.sql, PUBLICATION, &tables, &[CLIENTS]).await.unwrap().is_empty());

    rig.sql.batch_execute("alter publication supabase_realtime drop table both_have").await.unwrap();
    rig.sql.batch_execute("alter publication supabase_realtime add table both_have (id, a)").await.unwrap();
    rig.sql.batch_execute("insert into both_have values (2)").await.unwrap();
    assert_eq!(missing(&mut consumer).await, [CLIENTS], "ours is read on");
    assert_eq!(consumer.ids().await, [2]);

    let outcome = wal::reconcile(&rig.sql, PUBLICATION, &tables, &[CLIENTS]).await.unwrap();
    let [(table, problem)] = &outcome.left_out[..] else { panic!("{outcome:?}") };
    assert_eq!(table, &tables[1]);
    assert!(missing(&mut consumer).await.is_empty(), "both are read again");
    rig.sql.batch_execute("insert into both_have values (3)").await.unwrap();
    assert_eq!(consumer.ids().await, [3], "the clients' publication has it");
    // What the problem says to do mends it.
    let said = problem.to_string();
    let (_, statements) = said.split_once("at all: ").unwrap();
    rig.sql.batch_execute(statements).await.unwrap();
    let outcome = wal::reconcile(&rig.sql, PUBLICATION, &tables, &[CLIENTS]).await.unwrap();
    assert_eq!((outcome.added.len(), outcome.left_out.len()), (1, 0), "{outcome:?}");
    rig.sql.batch_execute("insert into both_have values (4)").await.unwrap();
    assert_eq!(consumer.ids().await, [4]);
    assert_eq!(consumer.metrics.gaps.get(), 0);
    consumer.stop().await;
}

/// A stream has each change of a partition once, under the highest name in any publication of the stream.
#[tokio::test]
async fn table_whose_partition_tree_is_published_under_another_name_is_left_out() {
    let (rig, mut consumer) = two_publications().await;
    let schema = "create table parts (id int8 primary key) partition by range (id);
        create table \"Odd part\" partition of parts for values from (0) to (1000);
        alter publication supabase_realtime set (publish_via_partition_root = false)";
    rig.sql.batch_execute(schema).await.unwrap();
    let named = |names: &[&str]| -> Vec<wal::TableName> {
        names.iter().map(|name| ("public".to_owned(), (*name).to_owned())).collect()
    };
    let to_root = "alter publication \"supabase_realtime\" set (publish_via_partition_root = true)";
    // What clients have, whether by the root, what the wakes name, and what resolves it; then the table of a change.
    let cases = [
        ("parts", true, "parts", None, "parts"),
        ("\"Odd part\"", false, "Odd part", None, "Odd part"),
        ("parts", false, "Odd part", None, "Odd part"),
        ("parts", false, "parts", Some(to_root.to_owned()), "Odd part"),
        (
            "\"Odd part\"",
            false,
            "parts",
            Some(format!(
                "{to_root}; alter publication \"supabase_realtime\" add table \"public\".\"parts\""
            )),
            "Odd part",
        ),
        ("parts", true, "Odd part", Some("let the wake name public.parts".to_owned()), "parts"),
    ];
    let mut id = 0;
    for (clients, by_root, wake, remedy, name) in cases {
        let set = format!(
            "alter publication supabase_realtime set table {clients};
             alter publication supabase_realtime set (publish_via_partition_root = {by_root})"
        );
        rig.sql.batch_execute(&set).await.unwrap();
        let tables = named(&["items", wake]);
        let outcome = wal::reconcile(&rig.sql, PUBLICATION, &tables, &[CLIENTS]).await.unwrap();
        let problems: Vec<String> = outcome.left_out.iter().map(|(_, problem)| problem.to_string()).collect();
        assert_eq!(problems.len(), usize::from(remedy.is_some()), "{clients} {by_root} {wake}: {problems:?}");
        id += 1;
        rig.sql.batch_execute(&format!("insert into parts values ({id})")).await.unwrap();
        let batch = consumer.transaction().await;
        let [Change::Row(row)] = &batch.changes[..] else { panic!("{batch:?}") };
        assert_eq!(row.relation.name, name, "{clients} {by_root} {wake}");
        let Some(remedy) = remedy else { continue };
        let (_, said) = problems[0].split_once("under one name: ").unwrap();
        assert_eq!(said, remedy);
        let wake = if let Some(name) = said.strip_prefix("let the wake name public.") {
            name
        } else {
            rig.sql.batch_execute(said).await.unwrap();
            wake
        };
        let outcome =
            wal::reconcile(&rig.sql, PUBLICATION, &named(&["items", wake]), &[CLIENTS]).await.unwrap();
        assert!(outcome.left_out.is_empty(), "{outcome:?}");
        id += 1;
        rig.sql.batch_execute(&format!("insert into parts values ({id})")).await.unwrap();
        let batch = consumer.transaction().await;
        let [Change::Row(row)] = &batch.changes[..] else { panic!("{batch:?}") };
        assert_eq!(row.relation.name, wake);
    }
    // Two wakes: the changes come under the name of the root.
    let tables = named(&["parts", "Odd part"]);
    let outcome = wal::reconcile(&rig.sql, PUBLICATION, &tables, &[]).await.unwrap();
    let [(table, problem)] = &outcome.left_out[..] else { panic!("{outcome:?}") };
    assert_eq!(table, &tables[1]);
    assert!(problem.to_string().starts_with("another wake has public.parts"), "{problem}");
    consumer.stop().await;
}

/// From version 18, PostgreSQL refuses to decode a table with generated columns that one of two publications has.
#[tokio::test]
async fn generated_columns_are_published_if_the_clients_have_them() {
    let (rig, mut consumer) = two_publications().await;
    let version = "select current_setting('server_version_num')::int >= 180000";
    let has_setting: bool = rig.sql.query_one(version, &[]).await.unwrap().get(0);
    let schema = "create table sums (id int8 primary key, double int8 generated always as (id * 2) stored);
        alter publication supabase_realtime add table sums";
    rig.sql.batch_execute(schema).await.unwrap();
    let tables: [wal::TableName; 1] = [("public".into(), "sums".into())];
    let set = "alter publication supabase_realtime set (publish_generated_columns = stored)";
    assert_eq!(rig.sql.batch_execute(set).await.is_ok(), has_setting);
    for id in 1..=2 {
        let outcome = wal::reconcile(&rig.sql, PUBLICATION, &tables, &[CLIENTS]).await.unwrap();
        assert!(outcome.left_out.is_empty(), "{outcome:?}");
        rig.sql.batch_execute(&format!("insert into sums values ({id})")).await.unwrap();
        let batch = consumer.transaction().await;
        let [Change::Row(row)] = &batch.changes[..] else { panic!("{batch:?}") };
        let double = row.cell("double").and_then(Cell::text);
        assert_eq!(double, has_setting.then(|| (id * 2).to_string()).as_deref());
        // Its own setting follows within one look, also when it was changed by hand.
        let _ =
            rig.sql.batch_execute("alter publication convoke set (publish_generated_columns = none)").await;
    }
    if has_setting {
        // Until then the clients' publication is not read, and ours is.
        rig.sql.batch_execute("insert into sums values (3)").await.unwrap();
        assert_eq!(missing(&mut consumer).await, [CLIENTS]);
        assert_eq!(consumer.ids().await, [3]);
        wal::reconcile(&rig.sql, PUBLICATION, &tables, &[CLIENTS]).await.unwrap();
        assert!(missing(&mut consumer).await.is_empty(), "both are read again");
        rig.sql.batch_execute("insert into sums values (4)").await.unwrap();
        assert_eq!(consumer.ids().await, [4]);
    }
    consumer.stop().await;
}

/// Postgres refuses updates of a published table without a replica identity; ours must not break a user's updates.
#[tokio::test]
async fn table_that_loses_its_replica_identity_is_left_out_and_its_updates_go_on() {
    let rig = rig(
        "create table items (id int8 not null unique);
         create table parts (id int8 not null) partition by range (id);
         create table parts_1 partition of parts for values from (0) to (10);
         create table late (id int8, primary key (id) deferrable)",
        &[],
    )
    .await;
    let tables: Vec<wal::TableName> =
        ["items", "parts", "late"].map(|table| ("public".to_owned(), table.to_owned())).to_vec();
    rig.sql.batch_execute("alter table items replica identity using index items_id_key").await.unwrap();
    rig.sql.batch_execute("alter table parts_1 replica identity full").await.unwrap();
    let outcome = wal::reconcile(&rig.sql, PUBLICATION, &tables, &[]).await.unwrap();
    assert_eq!(outcome.added, tables[..2], "a deferrable key identifies no row");
    rig.sql.batch_execute("alter table items drop constraint items_id_key").await.unwrap();
    rig.sql.batch_execute("alter table parts_1 replica identity default").await.unwrap();
    let outcome = wal::reconcile(&rig.sql, PUBLICATION, &tables, &[]).await.unwrap();
    let problems: Vec<String> = outcome.left_out.iter().map(|(_, problem)| problem.to_string()).collect();
    for (problem, table) in problems.iter().zip(["public.items", "public.late", "public.parts_1"]) {
        assert!(problem.contains(&format!("table {table} has no replica identity")), "{problems:?}");
    }
    assert_eq!(problems.len(), 3);
    rig.sql
        .batch_execute("update items set id = 2; update parts set id = 3; update late set id = 4")
        .await
        .unwrap();
}
