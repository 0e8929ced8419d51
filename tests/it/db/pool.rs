//! Pool and transactions on a real server.
use crate::support;
use crate::support::PATIENCE;
use convoke::{
    db::{self, Error},
    scope::Scope,
};
use std::{cell::Cell, time::Duration};
use tokio::time::Instant;
use tokio_postgres::error::SqlState;

#[tokio::test]
async fn pooled_connection_has_the_configured_statement_timeout() {
    let database = support::empty_database().await;
    let config = db::Config { statement_timeout: Duration::from_millis(50), ..database.config() };
    let db = db::Database::open(&config, &Scope::default()).await.unwrap();
    let error = db.client().await.unwrap().execute("select pg_sleep(10)", &[]).await.unwrap_err();
    assert_eq!(error.code(), Some(&SqlState::QUERY_CANCELED));
    assert!(!db::is_transient(&error), "trying again would take as long");
}

#[tokio::test]
async fn transaction_commits_once_and_an_error_rolls_back() {
    let database = support::empty_database().await;
    let db = database.open(&Scope::default()).await;
    let other = database.client().await;
    other.batch_execute("create table t (n int primary key)").await.unwrap();

    let insert = async |n: i32, outcome: Result<i32, Error>| {
        let outcome = Cell::new(Some(outcome));
        let (outcome, n) = (&outcome, &n);
        db.transaction(|tx| async move {
            tx.execute("insert into t values ($1)", &[n]).await?;
            outcome.take().unwrap()
        })
        .await
    };
    assert_eq!(insert(1, Ok(7)).await.unwrap(), 7);
    assert!(insert(2, Err(Error::Closed)).await.is_err());
    let duplicate = insert(1, Ok(8)).await.unwrap_err();
    assert_eq!(duplicate.sqlstate(), Some(&SqlState::UNIQUE_VIOLATION));
    let rows: Vec<i32> =
        other.query("select n from t", &[]).await.unwrap().iter().map(|r| r.get(0)).collect();
    assert_eq!(rows, [1]);
}

#[tokio::test]
async fn ignored_statement_failure_is_an_error_at_commit() {
    let database = support::empty_database().await;
    let db = database.open(&Scope::default()).await;
    let work = db.transaction(|tx| async move {
        let _ = tx.batch_execute("select 1/0").await;
        Ok::<_, Error>(())
    });
    assert_eq!(work.await.unwrap_err().sqlstate(), Some(&SqlState::IN_FAILED_SQL_TRANSACTION));
}

#[tokio::test]
async fn transaction_is_retried_after_lost_connection_or_serialization_failure() {
    let database = support::empty_database().await;
    let db = database.open(&Scope::default()).await;
    let other = database.client().await;
    other.batch_execute("create table t (n int); insert into t values (0)").await.unwrap();
    let runs = Cell::new(0);
    let (other, runs) = (&other, &runs);
    let n = db
        .transaction(|tx| async move {
            runs.set(runs.get() + 1);
            tx.batch_execute("set transaction isolation level repeatable read").await?;
            let pid: i32 = tx.query_one("select pg_backend_pid() from t", &[]).await?.get(0);
            match runs.get() {
                1 => drop(other.execute("select pg_terminate_backend($1, 5000)", &[&pid]).await.unwrap()),
                2 => other.batch_execute("update t set n = 10").await.unwrap(),
                _ => {}
            }
            Ok::<i32, Error>(tx.query_one("update t set n = n + 1 returning n", &[]).await?.get(0))
        })
        .await
        .unwrap();
    assert_eq!((n, runs.get()), (11, 3));
}

#[tokio::test]
async fn dropped_transaction_rolls_back_and_connection_is_reused() {
    let database = support::empty_database().await;
    let config = db::Config { pool_size_max: 1, ..database.config() };
    let db = db::Database::open(&config, &Scope::default()).await.unwrap();
    db.client().await.unwrap().batch_execute("create table t (n int)").await.unwrap();
    let waits = db.transaction(|tx| async move {
        tx.batch_execute("insert into t values (1)").await?;
        tx.batch_execute("select pg_sleep(0.2)").await?;
        Ok::<_, Error>(())
    });
    assert!(tokio::time::timeout(Duration::from_millis(100), waits).await.is_err());
    let client = db.client().await.unwrap();
    let rows: i64 = client.query_one("select count(*) from t", &[]).await.unwrap().get(0);
    assert_eq!(rows, 0);
}

#[tokio::test]
async fn call_after_loss_of_every_connection_succeeds() {
    let database = support::empty_database().await;
    let db = database.open(&Scope::default()).await;
    let kill = "select pg_terminate_backend(pid, 5000) from pg_stat_activity \
                where datname = current_database() and pid <> pg_backend_pid()";
    database.client().await.execute(kill, &[]).await.unwrap();
    let began = Instant::now();
    let one: i32 = loop {
        // The pool detects the loss when the driver's task has read it.
        match db.client().await.unwrap().query_one("select 1", &[]).await {
            Ok(row) => break row.get(0),
            Err(e) => assert!(db::is_transient(&e), "{e:?}"),
        }
        assert!(began.elapsed() < PATIENCE);
    };
    assert_eq!(one, 1);
}

#[tokio::test]
async fn separate_connection_has_a_name_and_no_statement_timeout() {
    let database = support::empty_database().await;
    let scope = Scope::default();
    let db = database.open(&scope).await;
    let client = db.connect("convoke test", &scope).await.unwrap();
    let sql = "select current_setting('application_name'), current_setting('statement_timeout')";
    let row = client.query_one(sql, &[]).await.unwrap();
    assert_eq!((row.get::<_, &str>(0), row.get::<_, &str>(1)), ("convoke test", "0"));
    drop(client);
    scope.drain(PATIENCE).await.unwrap();
}

#[tokio::test]
async fn listening_connection_delivers_notifications_until_it_is_lost() {
    let database = support::empty_database().await;
    let scope = Scope::default();
    let db = database.open(&scope).await;
    let (client, mut notifications) = db.listen("convoke test", &scope).await.unwrap();
    client.batch_execute("listen news").await.unwrap();
    db.client().await.unwrap().batch_execute("notify news, 'hello'").await.unwrap();
    let notification = notifications.recv().await.unwrap();
    assert_eq!((notification.channel(), notification.payload()), ("news", "hello"));
    drop(client);
    assert!(notifications.recv().await.is_none());
    scope.drain(PATIENCE).await.unwrap();
}
