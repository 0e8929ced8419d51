//! One term of leadership: from a new connection to its end.
//!
//! The lock that makes a leader and the stream are one session: with the
//! connection both are gone at the same moment, here and on the server.
use super::{
    Config, Confirm, Metrics,
    assembler::Assembler,
    change::{Batch, Cell, Change, WalEvent},
    connection::{Connection, Frame},
    error::Error,
    memory::Memory,
    position_store::{APPLICATION_NAME, Keeper, StoredProgress},
    reader::{StreamReader, Timing},
    slot::{Outside, Prepared, ReplicationSlot, try_lead},
};
use crate::{db::Database, id::Lsn, scope::Scope};
use std::{
    collections::BTreeSet,
    path::PathBuf,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};
use tokio::{sync::mpsc, time::sleep};
use tokio_postgres::{Client, types::PgLsn};
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, info, warn};

/// How often publications that are left out are looked for.
const REPUBLISHED_POLL: Duration = Duration::from_millis(300);
/// How often the position of the stream is held against their mark.
const DELIVERED_POLL: Duration = Duration::from_millis(20);

/// How often a standby tries to take the leader lock; random, so that two standbys do not try together.
const STANDBY_POLL: std::ops::Range<Duration> = Duration::from_millis(300)..Duration::from_millis(600);

/// Why this daemon does not stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Idle {
    AnotherLeads,
    Broken,
}

/// Everything that outlives a term.
pub(super) struct LeaderSession {
    pub(super) scope: Scope,
    /// Where ordinary connections are driven: a stop need not wait for one whose server is silent.
    pub(super) clients: Scope,
    pub(super) database: Database,
    pub(super) config: Config,
    pub(super) publications: Vec<String>,
    /// Publications that are not read for now. Postgres looks publications up as the catalog was at the position
    /// that it decodes, and ends a stream that names one that did not exist there, or two that had different
    /// columns of one table.
    pub(super) left_out: BTreeSet<String>,
    /// Text comes as it is stored, because the server cannot convert some value of the next transaction.
    pub(super) raw: bool,
    pub(super) spill_dir: PathBuf,
    pub(super) memory: Arc<Memory>,
    /// The furthest position that the consumer has something of from an earlier life.
    pub(super) reached: Lsn,
    pub(super) metrics: Metrics,
    pub(super) events: mpsc::Sender<WalEvent>,
    pub(super) confirm: Confirm,
    pub(super) progress: StoredProgress,
    pub(super) stop: CancellationToken,
    /// Why the slot cannot be read although the server thinks so.
    pub(super) broken: Option<String>,
    /// Large transactions are streamed in blocks while they run, so that they delay no other transaction.
    pub(super) in_blocks: bool,
    /// The missing publications of the last [`WalEvent::Publications`].
    pub(super) sent_missing: BTreeSet<String>,
    /// The last reported reason for not streaming.
    pub(super) reported_idle: Option<Idle>,
}

impl LeaderSession {
    /// The end of the last transaction or gap that was handed to the consumer.
    pub(super) fn delivered(&self) -> Lsn {
        Lsn(self.progress.delivered.load(Ordering::Acquire))
    }

    /// Leads and streams until the scope stops ([`Error::Stopped`]) or something fails.
    pub(super) async fn term(&mut self) -> Result<(), Error> {
        let stop = self.stop.clone();
        let preparation = async {
            super::slot::check_name(&self.config.slot)?;
            let mut connection = Connection::connect(self.database.target()).await?;
            let mut waited = false;
            while !try_lead(&mut connection, &self.config.slot).await? {
                // The first time it may be our own last session, which the server has not ended yet.
                if waited {
                    self.idle(Idle::AnotherLeads, "another daemon leads").await?;
                }
                waited = true;
                sleep(rand::random_range(STANDBY_POLL)).await;
            }
            let client =
                self.database.connect(APPLICATION_NAME, &self.clients).await.map_err(Error::database)?;
            if self.raw {
                connection.take_text_as_stored().await?;
            }
            let prepared = self.prepare(&mut connection, &client).await?;
            Ok::<_, Error>((connection, client, prepared))
        };
        let (mut connection, client, prepared) = tokio::select! {
            biased;
            () = stop.cancelled() => return Err(Error::Stopped),
            ready = preparation => ready?,
        };
        let stored = prepared.stored;
        let from = self.begin(prepared).await?;
        tokio::select! {
            biased;
            () = stop.cancelled() => return Err(Error::Stopped),
            started = self.start(&mut connection, from) => started?,
        }
        info!(%from, left_out = ?self.left_out, "streaming the WAL");
        self.reported_idle = None;
        self.metrics.leading.set(1);
        let outcome = self.lead(connection, client, from, stored).await;
        if matches!(outcome, Err(Error::Renew)) {
            // The WAL is read past the position that needed these.
            self.left_out.clear();
            self.raw = false;
        }
        for gauge in [&self.metrics.leading, &self.metrics.lag_bytes, &self.metrics.retained_bytes] {
            gauge.set(0);
        }
        if !matches!(outcome, Err(Error::Stopped | Error::Renew)) {
            self.metrics.reconnects.inc();
        }
        outcome
    }

    /// Reports to the consumer that no changes come for now, once for each kind of reason.
    pub(super) async fn idle(&mut self, idle: Idle, reason: &str) -> Result<(), Error> {
        if self.reported_idle == Some(idle) {
            return Ok(());
        }
        info!(reason, "replication stream idle");
        self.reported_idle = Some(idle);
        let event = match idle {
            Idle::AnotherLeads => WalEvent::Standby,
            Idle::Broken => WalEvent::Down { reason: reason.to_owned() },
        };
        self.send_event(event, &CancellationToken::new()).await
    }

    async fn prepare(&self, connection: &mut Connection, client: &Client) -> Result<Prepared, Error> {
        let slot = ReplicationSlot {
            name: &self.config.slot,
            publications: &self.publications,
            // The stored position follows what the consumer was handed. A term that ends before it is stored,
            // for example of a gap, must not make the next term report the same gap again.
            known: Lsn(self.progress.reported.load(Ordering::Acquire)).max(self.delivered()),
            broken: self.broken.as_deref(),
            outside: Outside { known: self.memory.known(), reached: self.reached.max(self.delivered()) },
        };
        slot.prepare(connection, client).await
    }

    async fn start(&self, connection: &mut Connection, from: Lsn) -> Result<(), Error> {
        let publications = self.publications.iter().filter(|name| !self.left_out.contains(*name));
        let publications: Vec<String> = publications.cloned().collect();
        connection.start_replication(&self.config.slot, &publications, from, self.in_blocks).await
    }

    /// Reports a gap, if there is one, and returns where to begin.
    async fn begin(&mut self, prepared: Prepared) -> Result<Lsn, Error> {
        let Prepared { from, gap, other_log, stored: _, log } = prepared;
        if self.broken.take().is_some() {
            // The slot is new, and so is everything that it will decode.
            self.left_out.clear();
        }
        self.memory.begin(log, other_log);
        if other_log {
            self.confirm.reset();
            self.progress.reset();
            self.reached = Lsn(0);
        }
        self.send_publications().await?;
        let Some(gap) = gap else {
            // The consumer of this process has everything before it already.
            return Ok(from.max(self.delivered()));
        };
        error!(from = gap.from.map(|lsn| lsn.to_string()), to = %gap.to, reason = gap.reason, "changes were lost");
        self.metrics.gaps.inc();
        self.progress.delivered.fetch_max(gap.to.0, Ordering::AcqRel);
        self.send_event(WalEvent::Gap(gap), &CancellationToken::new()).await?;
        Ok(from)
    }

    async fn lead(
        &self,
        connection: Connection,
        client: Client,
        from: Lsn,
        stored: Lsn,
    ) -> Result<(), Error> {
        let Config { status_interval, liveness_timeout, .. } = self.config;
        self.progress.reported.fetch_max(stored.0, Ordering::AcqRel);
        let timing = Timing { status_interval, liveness_timeout };
        let mut reader = StreamReader::spawn(&self.scope, connection, stored, timing);
        let mut keeper = Keeper {
            database: &self.database,
            config: &self.config,
            confirm: &self.confirm,
            progress: &self.progress,
            memory: &self.memory,
            metrics: &self.metrics,
            clients: &self.clients,
            client: Some(client),
            stored,
            done: reader.done.clone(),
        };
        let outcome = tokio::select! {
            outcome = self.deliver(&mut reader, from) => outcome,
            () = keeper.run() => Ok(()),
            () = self.republished() => Err(Error::Renew),
        };
        if let Err(Error::Stopped) = &outcome
            && let Err(e) = keeper.keep(0).await
        {
            info!(error = %e, "last position not stored: some changes will come again");
        }
        if let Err(Error::Stopped | Error::Renew) = &outcome {
            // Until the server has ended the session, the next one does not get the leader's lock.
            reader.finish().await;
        }
        outcome
    }

    /// Reports the publications that are not read, if they have changed.
    async fn send_publications(&mut self) -> Result<(), Error> {
        if self.sent_missing == self.left_out {
            return Ok(());
        }
        self.sent_missing.clone_from(&self.left_out);
        let missing = self.left_out.iter().cloned().collect();
        self.send_event(WalEvent::Publications { missing }, &CancellationToken::new()).await
    }

    /// Resolves once a publication that is left out can be read, and the WAL is read up to there. Cancel safe.
    async fn republished(&self) {
        if self.left_out.is_empty() {
            return std::future::pending().await;
        }
        let names: Vec<&String> = self.left_out.iter().collect();
        loop {
            sleep(REPUBLISHED_POLL).await;
            // Whoever mended it has committed by then, so everything after the mark is decoded with it.
            let marked = async {
                let client = self.database.client().await.map_err(Error::database)?;
                let sql = include_str!("sql/mark_published.sql");
                let row = client.query_one(sql, &[&names, &self.publications]).await?;
                Ok::<Option<PgLsn>, Error>(row.try_get(0)?)
            };
            match marked.await {
                Ok(Some(mark)) => {
                    while self.delivered() < Lsn(u64::from(mark)) {
                        sleep(DELIVERED_POLL).await;
                    }
                    return;
                }
                Ok(None) => {}
                Err(e) => debug!(error = %e, "lookup of missing publications failed, will retry"),
            }
        }
    }

    async fn deliver(&self, reader: &mut StreamReader, from: Lsn) -> Result<(), Error> {
        let Config { slot, transaction_memory_max, .. } = &self.config;
        let (dir, spilled) = (self.spill_dir.clone(), self.metrics.spilled_bytes.clone());
        let mut assembler = Assembler::new(from, *transaction_memory_max, dir, slot, spilled);
        if reader.converts && self.raw {
            assembler.refuse_other_encodings();
        }
        assembler.clean()?;
        // Only now, because the socket is looked after however long the consumer takes.
        self.report(WalEvent::Leading { from }, reader).await?;
        loop {
            let lot = tokio::select! {
                biased;
                () = self.stop.cancelled() => return Err(Error::Stopped),
                () = reader.ended.cancelled() => return Err(reader.error().await),
                lot = reader.frames.recv() => lot,
            };
            let Some(lot) = lot else { return Err(reader.error().await) };
            for frame in lot? {
                match frame {
                    Frame::Data { message, .. } => {
                        assembler.push(message)?;
                        while let Some(batch) = assembler.pop()? {
                            self.hand_over(batch, reader).await?;
                        }
                    }
                    Frame::Keepalive { wal_end, reply } if assembler.is_between_transactions() => {
                        self.progress.caught_up(wal_end);
                        if reply {
                            // A server asks when it shuts down; it waits, and nothing can be stored.
                            reader.done.allow(self.progress.idle(&self.confirm));
                        }
                    }
                    Frame::Keepalive { .. } => {}
                }
            }
        }
    }

    async fn hand_over(&self, batch: Batch, reader: &mut StreamReader) -> Result<(), Error> {
        let (changes, end) = (batch.changes.len(), batch.last.then_some(batch.end_lsn));
        if reader.may_have_other_text {
            self.count_undecodable(&batch);
        }
        self.report(WalEvent::Batch(batch), reader).await?;
        self.metrics.changes.inc_by(changes as u64);
        if let Some(end) = end {
            self.metrics.transactions.inc();
            self.progress.delivered.fetch_max(end.0, Ordering::AcqRel);
            if self.raw {
                return Err(Error::Renew);
            }
        }
        Ok(())
    }

    /// Counts the values that are no text that we can read.
    fn count_undecodable(&self, batch: &Batch) {
        let rows = batch.changes.iter().filter_map(|change| match change {
            Change::Row(row) => Some(row),
            _ => None,
        });
        let cells = rows.flat_map(|row| row.new.iter().chain(&row.old).flatten());
        let bad = cells.filter(|cell| matches!(cell, Cell::Text(_)) && cell.text().is_none()).count();
        if bad > 0 {
            self.metrics.undecodable.inc_by(bad as u64);
            let (xid, lsn) = (batch.xid, batch.commit_lsn);
            warn!(xid, %lsn, values = bad, "row changes have values that are not valid text: they are delivered with an error");
        }
    }

    /// Sends an event to the consumer, unless the stream ends first.
    async fn report(&self, event: WalEvent, reader: &mut StreamReader) -> Result<(), Error> {
        match self.send_event(event, &reader.ended).await {
            Err(_) if reader.ended.is_cancelled() => Err(reader.error().await),
            sent => sent,
        }
    }

    /// Sends an event. Waits for the consumer until the scope stops or `ended`.
    async fn send_event(&self, event: WalEvent, ended: &CancellationToken) -> Result<(), Error> {
        tokio::select! {
            biased;
            () = self.stop.cancelled() => Err(Error::Stopped),
            () = ended.cancelled() => Err(Error::Closed),
            room = self.events.reserve() => match room {
                Ok(room) => {
                    room.send(event);
                    Ok(())
                }
                Err(_) => {
                    // The consumer may still confirm, and an orderly stop comes after it.
                    tokio::select! {
                        () = self.stop.cancelled() => Err(Error::Stopped),
                        () = ended.cancelled() => Err(Error::Closed),
                    }
                }
            },
        }
    }
}
