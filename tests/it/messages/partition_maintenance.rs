//! The days of `realtime.messages`.
use super::MessagesDaemon;
use crate::support::database;
use convoke::{access::partition_maintenance, scope::Scope};
use std::time::Duration;
use tokio_postgres::Client;

async fn days(sql: &Client) -> Vec<String> {
    let rows = "select c.relname::text from pg_inherits i join pg_class c on c.oid = i.inhrelid
                 where i.inhparent = 'realtime.messages'::regclass and c.relname <> 'messages_default' order by 1";
    sql.query(rows, &[]).await.unwrap().iter().map(|row| row.get(0)).collect()
}

#[tokio::test]
async fn partitions_are_created_ahead_and_dropped_when_old() {
    let (db, scope) = (database().await, Scope::default());
    let (sql, open) = (db.client().await, db.open(&scope).await);
    let retention = Duration::from_secs(72 * 3600);
    sql.batch_execute(
        "select realtime.send('{}', 'e', 'before any day is made');
         insert into realtime.messages (topic, extension, inserted_at) values ('old', 'broadcast', '2020-02-02 03:04');
         create table realtime.messages_2020_01_01 partition of realtime.messages
           for values from ('2020-01-01') to ('2020-01-02');
         insert into convoke.message values ('0/1', 0, 't', gen_random_uuid(), '2020-01-01');",
    )
    .await
    .unwrap();
    for _ in 0..2 {
        partition_maintenance::keep(&open, retention).await.unwrap();
        let expected =
            "select 'messages_' || to_char(timezone('utc', now()) + make_interval(days => n), 'YYYY_MM_DD')
                          from generate_series(-1, 3) as n where n <> 0 order by 1";
        let expected: Vec<String> =
            sql.query(expected, &[]).await.unwrap().iter().map(|row| row.get(0)).collect();
        assert_eq!(days(&sql).await, expected, "today has rows in the default partition, and stays there");
    }
    let left = "select (select count(*) from realtime.messages), (select count(*) from convoke.message)";
    let row = sql.query_one(left, &[]).await.unwrap();
    assert_eq!((row.get::<_, i64>(0), row.get::<_, i64>(1)), (1, 0));
    open.stop().await.unwrap();
}

/// A send takes place while somebody holds the days, and the daemon goes on.
#[tokio::test]
async fn daemon_creates_partitions_at_start() {
    let rig = MessagesDaemon::new().await;
    crate::daemon::soon("the days", async {
        while days(&rig.sql).await.len() < 5 {
            tokio::task::yield_now().await;
        }
    })
    .await;
    let where_to = "select tableoid::regclass::text from realtime.messages";
    rig.send(serde_json::json!({}), "e", "t", true).await;
    let partition: String = rig.sql.query_one(where_to, &[]).await.unwrap().get(0);
    assert!(partition.starts_with("realtime.messages_2"), "{partition}");
}
