//! Pool, transactions and migrations on a real server.
use crate::support;
use convoke::{db, scope::Scope};

#[tokio::test]
async fn migrating_twice_does_nothing_the_second_time() {
    let database = support::empty_database().await;
    let db = database.open(&Scope::default()).await;
    let first = db::migrate(&db).await.unwrap();
    assert_eq!(first.applied.first().unwrap(), "V1__wal_position");
    let second = db::migrate(&db).await.unwrap();
    assert_eq!(second.applied, Vec::<String>::new());
    assert_eq!(second.version, first.version);
}
