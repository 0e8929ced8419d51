//! Databases in which text may be no UTF-8.
use super::rig::{PUBLICATION, start};
use crate::support::{TestDb, database_in};
use convoke::{
    scope::Scope,
    wal::{self, Cell, Change, WalEvent},
};

async fn table(encoding: &str) -> (TestDb, tokio_postgres::Client) {
    let db = database_in(encoding).await;
    let sql = db.client().await;
    sql.batch_execute("create table public.items (id int8 primary key, body text)").await.unwrap();
    wal::publish(&sql, PUBLICATION, &[("public".into(), "items".into())]).await.unwrap();
    (db, sql)
}

/// The bodies of the next transaction's rows.
async fn bodies(consumer: &mut super::rig::Consumer) -> Vec<Option<String>> {
    let batch = consumer.transaction().await;
    let body = |change: &Change| match change {
        Change::Row(row) => row.cell("body").and_then(Cell::text).map(ToOwned::to_owned),
        other => panic!("{other:?}"),
    };
    batch.changes.iter().map(body).collect()
}

async fn one_bad_value_fails_alone(encoding: &str, good: &str) {
    let (db, sql) = table(encoding).await;
    let (scope, folder) = (Scope::default(), tempfile::tempdir().unwrap());
    let config = wal::Config { slot: db.slot(), ..wal::Config::default() };
    let mut consumer = start(&scope, db.open(&scope).await, config, folder.path().join("spill"));
    consumer.leading().await;
    // As a client writes it whose encoding is the database's own: the byte is invalid in UTF-8, and has no
    // counterpart there.
    let bad =
        format!("set client_encoding = '{encoding}'; insert into items values (1, E'\\x81'), (2, 'ok')");
    sql.batch_execute(&bad).await.unwrap();
    // The text of a query is read in the encoding from before it.
    sql.batch_execute("set client_encoding = 'UTF8'").await.unwrap();
    sql.batch_execute(&format!("insert into items values (3, '{good}')")).await.unwrap();
    assert_eq!(bodies(&mut consumer).await, [None, Some("ok".to_owned())]);
    assert_eq!(bodies(&mut consumer).await, [Some(good.to_owned())]);
    assert_eq!((consumer.metrics.undecodable.get(), consumer.metrics.gaps.get()), (1, 0));
    consumer.stop().await;
    drop(sql);
}

#[tokio::test]
async fn invalid_utf8_byte_fails_alone_in_a_database_without_encoding() {
    one_bad_value_fails_alone("SQL_ASCII", "grün").await;
}

#[tokio::test]
async fn a_byte_without_counterpart_fails_alone_in_a_database_of_another_encoding() {
    one_bad_value_fails_alone("WIN1252", "grün").await;
}

/// Names are read by everybody who reads the table, and anybody may write a message into the log.
#[tokio::test]
async fn names_and_messages_that_are_no_utf8_do_not_end_the_stream() {
    let (db, sql) = table("SQL_ASCII").await;
    let (scope, folder) = (Scope::default(), tempfile::tempdir().unwrap());
    let config = wal::Config { slot: db.slot(), ..wal::Config::default() };
    let mut consumer = start(&scope, db.open(&scope).await, config, folder.path().join("spill"));
    consumer.leading().await;
    sql.batch_execute(
        "set client_encoding = 'SQL_ASCII';
         select pg_logical_emit_message(true, E'\\xff', 'x');
         do $$ begin execute E'alter table public.items add \"gr\\xfcn\" int'; end $$;
         set client_encoding = 'UTF8'",
    )
    .await
    .unwrap();
    sql.batch_execute("insert into items (id, body) values (1, 'after')").await.unwrap();
    loop {
        let WalEvent::Batch(batch) = consumer.event().await else { panic!("the stream ended") };
        if let Some(Change::Row(row)) = batch.changes.first() {
            assert_eq!(row.cell("body").and_then(Cell::text), Some("after"));
            assert_eq!(row.relation.columns[2].name, "gr\u{fffd}n");
            break;
        }
    }
    consumer.stop().await;
    drop(sql);
}
