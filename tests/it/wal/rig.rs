//! What the tests of the stream share: a database with a publication, and a consumer to ask.
use crate::support::{self, PATIENCE, TestDb};
use convoke::{
    db::Database,
    id::Lsn,
    scope::Scope,
    wal::{self, Batch, Cell, Change, Gap, Metrics, Stream, WalEvent},
};
use std::{path::PathBuf, time::Duration};
use tempfile::TempDir;
use tokio::time::timeout;
use tokio_postgres::Client;

pub const PUBLICATION: &str = "convoke";

/// A database, and everything that is needed to start streams on it.
pub struct Rig {
    pub db: TestDb,
    pub sql: Client,
    pub config: wal::Config,
    spill: TempDir,
}

/// One consumer with a scope of its own.
pub struct Consumer {
    pub scope: Scope,
    pub database: Database,
    pub stream: Stream,
    pub metrics: Metrics,
}

/// A database in which `schema` was run and `tables` of schema public are published.
pub async fn rig(schema: &str, tables: &[&str]) -> Rig {
    rig_on(support::database().await, schema, tables).await
}

/// The same in `db`.
pub async fn rig_on(db: TestDb, schema: &str, tables: &[&str]) -> Rig {
    // The role of the shared server has the name of our schema, which would come first.
    let alter = format!("alter database {} set search_path = public", db.name);
    db.client().await.batch_execute(&alter).await.unwrap();
    let sql = db.client().await;
    sql.batch_execute(schema).await.unwrap();
    let names: Vec<_> = tables.iter().map(|t| ("public".to_owned(), (*t).to_owned())).collect();
    wal::publish(&sql, PUBLICATION, &names).await.unwrap();
    let config =
        wal::Config { slot: db.slot(), status_interval: Duration::from_millis(50), ..wal::Config::default() };
    Rig { db, sql, config, spill: tempfile::tempdir().unwrap() }
}

impl Rig {
    pub fn spill_dir(&self) -> PathBuf {
        self.spill.path().join("spill")
    }

    pub fn spill_files(&self) -> usize {
        std::fs::read_dir(self.spill_dir()).map_or(0, Iterator::count)
    }

    pub async fn start(&self) -> Consumer {
        self.start_with(self.config.clone()).await
    }

    pub async fn start_with(&self, config: wal::Config) -> Consumer {
        let scope = Scope::default();
        let database = self.db.open(&scope).await;
        start(&scope, database, config, self.spill_dir())
    }

    /// A consumer that leads already.
    pub async fn leader(&self) -> Consumer {
        let mut consumer = self.start().await;
        consumer.leading().await;
        consumer
    }

    /// The process that streams from our slot.
    pub async fn walsender(&self) -> Option<i32> {
        let sql = "select active_pid from pg_replication_slots where slot_name = $1";
        self.sql.query_opt(sql, &[&self.config.slot]).await.unwrap().and_then(|row| row.get(0))
    }

    pub async fn terminate_walsender(&self) {
        let pid = self.walsender().await.unwrap();
        self.sql.execute("select pg_terminate_backend($1, 5000)", &[&pid]).await.unwrap();
    }

    pub async fn confirmed(&self) -> Lsn {
        let sql = "select confirmed_flush_lsn::text from pg_replication_slots where slot_name = $1";
        let row = self.sql.query_one(sql, &[&self.config.slot]).await.unwrap();
        row.get::<_, &str>(0).parse().unwrap()
    }

    /// Waits until the server has taken a confirmation of `lsn`.
    pub async fn confirmed_at_least(&self, lsn: Lsn) {
        let wait = async {
            while self.confirmed().await < lsn {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        timeout(PATIENCE, wait).await.unwrap();
    }

    pub async fn log_end(&self) -> Lsn {
        let row = self.sql.query_one("select pg_current_wal_lsn()::text", &[]).await.unwrap();
        row.get::<_, &str>(0).parse().unwrap()
    }
}

pub fn start(scope: &Scope, database: Database, config: wal::Config, spill: PathBuf) -> Consumer {
    start_reading(scope, database, config, spill, &[PUBLICATION])
}

/// The same with these publications.
pub fn start_reading(
    scope: &Scope,
    database: Database,
    config: wal::Config,
    spill: PathBuf,
    publications: &[&str],
) -> Consumer {
    let metrics = Metrics::default();
    let publications = publications.iter().map(|name| (*name).to_owned()).collect();
    let position_file = spill.parent().map(|folder| folder.join("wal").join("slot.position"));
    let local = wal::Local { spill_dir: spill, position_file, reached: Lsn(0) };
    let stream = wal::start(scope, database.clone(), config, publications, local, metrics.clone());
    Consumer { scope: scope.clone(), database, stream, metrics }
}

impl Consumer {
    pub async fn event(&mut self) -> WalEvent {
        timeout(PATIENCE, self.stream.events.recv()).await.expect("no event in time").expect("no more events")
    }

    /// Waits for the lead, through times of standing by.
    pub async fn leading(&mut self) -> Lsn {
        loop {
            match self.event().await {
                WalEvent::Leading { from } => return from,
                WalEvent::Standby | WalEvent::Down { .. } | WalEvent::Publications { .. } => {}
                other => panic!("not leading but {other:?}"),
            }
        }
    }

    /// The next event, which must be a gap.
    pub async fn gap(&mut self) -> Gap {
        loop {
            match self.event().await {
                WalEvent::Gap(gap) => return gap,
                WalEvent::Standby | WalEvent::Down { .. } | WalEvent::Publications { .. } => {}
                other => panic!("no gap but {other:?}"),
            }
        }
    }

    /// A gap that may come after terms in which nothing was lost yet.
    pub async fn gap_at_last(&mut self) -> Gap {
        let wait = async {
            loop {
                match self.event().await {
                    WalEvent::Gap(gap) => return gap,
                    WalEvent::Batch(batch) => panic!("no gap but {batch:?}"),
                    WalEvent::Leading { .. }
                    | WalEvent::Standby
                    | WalEvent::Down { .. }
                    | WalEvent::Publications { .. } => {}
                }
            }
        };
        timeout(PATIENCE, wait).await.expect("no gap in time")
    }

    /// The next whole transaction, through reconnects.
    pub async fn transaction(&mut self) -> Batch {
        timeout(PATIENCE, self.next_transaction()).await.expect("no whole transaction in time")
    }

    async fn next_transaction(&mut self) -> Batch {
        let mut whole: Option<Batch> = None;
        loop {
            match self.event().await {
                WalEvent::Batch(batch) => {
                    let last = batch.last;
                    match &mut whole {
                        Some(whole) => {
                            assert_eq!(
                                (whole.xid, whole.changes.len()),
                                (batch.xid, batch.first_index as usize)
                            );
                            whole.changes.extend(batch.changes);
                        }
                        None => {
                            assert_eq!(batch.first_index, 0);
                            whole = Some(batch);
                        }
                    }
                    if last {
                        return whole.unwrap();
                    }
                }
                WalEvent::Leading { .. }
                | WalEvent::Standby
                | WalEvent::Down { .. }
                | WalEvent::Publications { .. } => whole = None,
                WalEvent::Gap(gap) => panic!("{gap:?}"),
            }
        }
    }

    /// The next transaction, confirmed.
    pub async fn confirmed_transaction(&mut self) -> Batch {
        let batch = self.transaction().await;
        self.stream.confirm.confirm(batch.end_lsn);
        batch
    }

    /// The ids of the rows of the next transaction.
    pub async fn ids(&mut self) -> Vec<i64> {
        ids(&self.transaction().await)
    }

    /// Ends in an orderly way.
    pub async fn stop(self) {
        self.scope.drain(PATIENCE).await.unwrap();
        self.database.stop().await.unwrap();
    }

    /// Ends as a crash would: nothing is said to the server.
    pub async fn crash(self) {
        drop(self.stream);
        self.scope.drain(PATIENCE).await.unwrap();
        self.database.stop().await.unwrap();
    }
}

/// The column `id` of all rows of a transaction.
pub fn ids(batch: &Batch) -> Vec<i64> {
    let id = |change: &Change| match change {
        Change::Row(row) => row.cell("id").and_then(Cell::text).unwrap().parse().unwrap(),
        other => panic!("{other:?}"),
    };
    batch.changes.iter().map(id).collect()
}
