//! Stores the confirmed position while a leader streams, reports it to the server, and watches the lag.
//!
//! A position is confirmed to Postgres only after it is stored, so the slot is never ahead of the stored position.
//! The exception is a server that shuts down: it waits until the end of its WAL is confirmed, when nothing can be
//! stored any more. While the database is unavailable, storing and confirming are delayed.
use super::{Config, Confirm, Metrics, error::Error, memory::Memory, position, reader::Done};
use crate::{db::Database, fault, id::Lsn, scope::Scope};
use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};
use tokio::time::{MissedTickBehavior, interval, timeout};
use tokio_postgres::{Client, Row, types::ToSql};
use tracing::{debug, error, warn};

/// An idle stream's position is stored when it is so much further, so that storing it does not cause the next.
const IDLE_STEP_BYTES: u64 = 64 << 10;
/// How its connection is named in `pg_stat_activity`.
pub(super) const APPLICATION_NAME: &str = "convoke wal position";
/// Every so many status intervals the lag is looked at.
const LAG_EVERY: u32 = 5;

/// Positions that the delivering side and the keeper share.
#[derive(Debug, Default)]
pub(super) struct StoredProgress {
    /// The end of the last transaction, or gap, that was handed to the consumer.
    pub(super) delivered: AtomicU64,
    /// Everything up to here was delivered, and there was nothing between the last transaction and here.
    caught_up: AtomicU64,
    /// The highest position that the server was allowed to forget.
    pub(super) reported: AtomicU64,
}

impl StoredProgress {
    pub(super) fn caught_up(&self, lsn: Lsn) {
        self.caught_up.fetch_max(lsn.0, Ordering::AcqRel);
    }

    pub(super) fn reset(&self) {
        for position in [&self.delivered, &self.caught_up, &self.reported] {
            position.store(0, Ordering::Release);
        }
    }

    /// The confirmed position, and the position up to which there was nothing more to hand off.
    fn settled(&self, confirm: &Confirm) -> (Lsn, Lsn) {
        // This order: what was delivered before the stream was caught up is seen as delivered.
        let caught_up = self.caught_up.load(Ordering::Acquire);
        let delivered = self.delivered.load(Ordering::Acquire);
        let confirmed = confirm.position();
        let idle = if confirmed.0 >= delivered { Lsn(caught_up.max(confirmed.0)) } else { confirmed };
        (confirmed, idle)
    }

    /// How far the server may forget when it asks while nothing can be stored.
    pub(super) fn idle(&self, confirm: &Confirm) -> Lsn {
        let (_, idle) = self.settled(confirm);
        self.reported.fetch_max(idle.0, Ordering::AcqRel);
        idle
    }
}

pub(super) struct Keeper<'a> {
    pub(super) database: &'a Database,
    pub(super) config: &'a Config,
    pub(super) confirm: &'a Confirm,
    pub(super) progress: &'a StoredProgress,
    pub(super) memory: &'a Arc<Memory>,
    pub(super) metrics: &'a Metrics,
    pub(super) clients: &'a Scope,
    /// A connection of its own: neither a busy pool nor a dead pooled connection may hold the WAL back.
    pub(super) client: Option<Client>,
    pub(super) stored: Lsn,
    pub(super) done: Done,
}

impl Keeper<'_> {
    /// Works until it is dropped.
    pub(super) async fn run(&mut self) {
        let mut tick = interval(self.config.status_interval.max(Duration::from_millis(10)));
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut alarm = Alarm::Quiet;
        for turn in (0..LAG_EVERY).cycle() {
            tick.tick().await;
            if let Err(e) = self.keep(IDLE_STEP_BYTES).await {
                debug!(error = %e, "WAL position not stored, will retry");
            }
            if turn == 0 {
                match self.lag().await {
                    Ok(level) => alarm = level.raised(alarm),
                    Err(e) => debug!(error = %e, "WAL lag not read, will retry"),
                }
            }
        }
    }

    /// Stores what is settled and lets the server know; `idle_step` keeps trifles back.
    pub(super) async fn keep(&mut self, idle_step: u64) -> Result<(), Error> {
        let (confirmed, idle) = self.progress.settled(self.confirm);
        let far = idle.0 >= self.stored.0.saturating_add(idle_step.max(1));
        let target = if far { idle } else { confirmed };
        if target > self.stored {
            self.store(target).await?;
            fault::point(fault::Point::PositionStored);
            self.remember(target).await;
            self.stored = target;
        }
        self.progress.reported.fetch_max(self.stored.0, Ordering::AcqRel);
        self.done.allow(self.stored);
        Ok(())
    }

    /// On this machine, too; a disk that does not take it costs only the notice of a database that went back.
    async fn remember(&self, target: Lsn) {
        let memory = self.memory.clone();
        let written = tokio::task::spawn_blocking(move || memory.stored(target)).await;
        if let Ok(Err(e)) = written {
            debug!(error = %e, "WAL position file not written");
        }
    }

    async fn store(&mut self, target: Lsn) -> Result<(), Error> {
        let client = self.client().await?;
        let work = timeout(self.config.liveness_timeout, position::save(&client, &self.config.slot, target));
        work.await.map_err(|_| Error::Silent(self.config.liveness_timeout))??;
        self.client = Some(client);
        Ok(())
    }

    async fn slot(&mut self) -> Result<Option<Row>, Error> {
        let client = self.client().await?;
        let sql = include_str!("sql/slot_lag.sql");
        let slot: &[&(dyn ToSql + Sync)] = &[&self.config.slot];
        let work = timeout(self.config.liveness_timeout, client.query_opt(sql, slot));
        let row = work.await.map_err(|_| Error::Silent(self.config.liveness_timeout))??;
        self.client = Some(client);
        Ok(row)
    }

    /// Takes the connection, or makes one. A caller whose statement succeeded puts it back.
    async fn client(&mut self) -> Result<Client, Error> {
        match self.client.take().filter(|client| !client.is_closed()) {
            Some(client) => Ok(client),
            None => self.database.connect(APPLICATION_NAME, self.clients).await.map_err(Error::database),
        }
    }

    async fn lag(&mut self) -> Result<Alarm, Error> {
        let Some(row) = self.slot().await? else { return Ok(Alarm::Quiet) };
        let (lag, retained): (Option<i64>, Option<i64>) = (row.try_get(0)?, row.try_get(1)?);
        let (status, left): (Option<String>, Option<i64>) = (row.try_get(2)?, row.try_get(3)?);
        let (lag, retained) = (lag.unwrap_or_default(), retained.unwrap_or_default());
        self.metrics.lag_bytes.set(lag);
        self.metrics.retained_bytes.set(retained);
        let endangered = status.is_some_and(|status| status == "unreserved" || status == "lost");
        let lag_max = self.config.lag_max;
        let held = u64::try_from(retained).unwrap_or_default();
        Ok(if endangered || held >= lag_max {
            Alarm::Loud { held, lag_max, left }
        } else if held >= lag_max / 4 {
            Alarm::Warning { held, lag_max }
        } else {
            Alarm::Quiet
        })
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Alarm {
    Quiet,
    Warning { held: u64, lag_max: u64 },
    Loud { held: u64, lag_max: u64, left: Option<i64> },
}

impl Alarm {
    fn rank(self) -> u8 {
        match self {
            Self::Quiet => 0,
            Self::Warning { .. } => 1,
            Self::Loud { .. } => 2,
        }
    }

    /// Says it when it is worse than before.
    fn raised(self, before: Self) -> Self {
        if self.rank() > before.rank() {
            match self {
                Self::Quiet => {}
                Self::Warning { held, lag_max } => {
                    warn!(
                        held,
                        lag_max,
                        "replication slot retains much WAL: is the consumer slow or a transaction long?"
                    );
                }
                Self::Loud { held, lag_max, left } => {
                    error!(
                        held,
                        lag_max, left, "replication slot retains too much WAL and may be invalidated"
                    );
                }
            }
        }
        self
    }
}
