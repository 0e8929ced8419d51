//! One term of leadership: from a new connection to its end.
//!
//! The lock that makes a leader and the stream are one session: with the
//! connection both are gone at the same moment, here and on the server.
use super::{
    Config, Confirm, Metrics,
    assembler::Assembler,
    change::{Batch, Event},
    connection::{Connection, Frame},
    error::Error,
    keeper::{APPLICATION_NAME, Keeper, Progress},
    reader::{Reader, Timing},
    slot::{Prepared, Slot, try_lead},
};
use crate::{db::Database, id::Lsn, scope::Scope};
use std::{path::PathBuf, sync::atomic::Ordering, time::Duration};
use tokio::{sync::mpsc, time::sleep};
use tokio_postgres::Client;
use tokio_util::sync::CancellationToken;
use tracing::{error, info};

/// How often one who stands by looks whether the leader is gone.
const STANDBY_POLL: std::ops::Range<Duration> = Duration::from_millis(300)..Duration::from_millis(600);

/// Why this daemon does not stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Idle {
    AnotherLeads,
    Broken,
}

/// Everything that outlives a term.
pub(super) struct Office {
    pub(super) scope: Scope,
    /// Where ordinary connections are driven: a stop need not wait for one whose server is silent.
    pub(super) clients: Scope,
    pub(super) database: Database,
    pub(super) config: Config,
    pub(super) publications: Vec<String>,
    pub(super) spill_dir: PathBuf,
    pub(super) metrics: Metrics,
    pub(super) events: mpsc::Sender<Event>,
    pub(super) confirm: Confirm,
    pub(super) progress: Progress,
    pub(super) stop: CancellationToken,
    /// Why the slot cannot be read although the server thinks so.
    pub(super) broken: Option<String>,
    /// Big transactions come in blocks while they run, so that they hold nobody up.
    pub(super) in_blocks: bool,
    /// What the consumer was last told of why nothing comes.
    pub(super) told: Option<Idle>,
}

impl Office {
    /// The end of what the consumer was told of.
    pub(super) fn delivered(&self) -> Lsn {
        Lsn(self.progress.delivered.load(Ordering::Acquire))
    }

    /// Serves until told to stop ([`Error::Stopped`]) or something breaks.
    pub(super) async fn term(&mut self) -> Result<(), Error> {
        let stop = self.stop.clone();
        let preparation = async {
            super::slot::check_name(&self.config.slot)?;
            let mut connection = Connection::connect(self.database.target()).await?;
            while !try_lead(&mut connection, &self.config.slot).await? {
                self.idle(Idle::AnotherLeads, "another daemon leads").await?;
                sleep(rand::random_range(STANDBY_POLL)).await;
            }
            let client =
                self.database.connect(APPLICATION_NAME, &self.clients).await.map_err(Error::database)?;
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
        info!(%from, "streaming the log");
        self.told = None;
        self.metrics.leading.set(1);
        let outcome = self.lead(connection, client, from, stored).await;
        for gauge in [&self.metrics.leading, &self.metrics.lag_bytes, &self.metrics.retained_bytes] {
            gauge.set(0);
        }
        if !matches!(outcome, Err(Error::Stopped)) {
            self.metrics.reconnects.inc();
        }
        outcome
    }

    /// Tells the consumer that nothing comes for now, once for each kind of reason.
    pub(super) async fn idle(&mut self, idle: Idle, reason: &str) -> Result<(), Error> {
        if self.told == Some(idle) {
            return Ok(());
        }
        info!(reason, "no changes come");
        self.told = Some(idle);
        let event = match idle {
            Idle::AnotherLeads => Event::Standby,
            Idle::Broken => Event::Down { reason: reason.to_owned() },
        };
        self.tell(event, &CancellationToken::new()).await
    }

    async fn prepare(&self, connection: &mut Connection, client: &Client) -> Result<Prepared, Error> {
        let slot = Slot {
            name: &self.config.slot,
            publications: &self.publications,
            told: Lsn(self.progress.told.load(Ordering::Acquire)),
            broken: self.broken.as_deref(),
        };
        slot.prepare(connection, client).await
    }

    async fn start(&self, connection: &mut Connection, from: Lsn) -> Result<(), Error> {
        connection.start_replication(&self.config.slot, &self.publications, from, self.in_blocks).await
    }

    /// Tells of a gap, if there is one, and finds where to begin.
    async fn begin(&mut self, prepared: Prepared) -> Result<Lsn, Error> {
        let Prepared { from, gap, other_log, stored: _ } = prepared;
        self.broken = None;
        if other_log {
            self.confirm.reset();
            self.progress.reset();
        }
        let Some(gap) = gap else {
            // What this process was told already need not come again.
            return Ok(from.max(self.delivered()));
        };
        error!(from = gap.from.map(|lsn| lsn.to_string()), to = %gap.to, reason = gap.reason, "changes were lost");
        self.metrics.gaps.inc();
        self.progress.delivered.fetch_max(gap.to.0, Ordering::AcqRel);
        self.tell(Event::Gap(gap), &CancellationToken::new()).await?;
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
        self.progress.told.fetch_max(stored.0, Ordering::AcqRel);
        let timing = Timing { status_interval, liveness_timeout };
        let mut reader = Reader::spawn(&self.scope, connection, stored, timing);
        let mut keeper = Keeper {
            database: &self.database,
            config: &self.config,
            confirm: &self.confirm,
            progress: &self.progress,
            metrics: &self.metrics,
            clients: &self.clients,
            client: Some(client),
            stored,
            done: reader.done.clone(),
        };
        let outcome = tokio::select! {
            outcome = self.deliver(&mut reader, from) => outcome,
            () = keeper.run() => Ok(()),
        };
        if let Err(Error::Stopped) = &outcome {
            if let Err(e) = keeper.keep(0).await {
                info!(error = %e, "the last position could not be stored: some changes will come again");
            }
            reader.finish().await;
        }
        outcome
    }

    async fn deliver(&self, reader: &mut Reader, from: Lsn) -> Result<(), Error> {
        let Config { slot, transaction_memory_max, .. } = &self.config;
        let (dir, spilled) = (self.spill_dir.clone(), self.metrics.spilled_bytes.clone());
        let mut assembler = Assembler::new(from, *transaction_memory_max, dir, slot, spilled);
        assembler.clean()?;
        // Only now, because the socket is looked after however long the consumer takes.
        self.report(Event::Leading { from }, reader).await?;
        loop {
            let lot = tokio::select! {
                biased;
                () = self.stop.cancelled() => return Err(Error::Stopped),
                () = reader.ended.cancelled() => return Err(reader.error().await),
                lot = reader.frames.recv() => lot,
            };
            let Some(lot) = lot else { return Err(reader.error().await) };
            for frame in lot {
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

    async fn hand_over(&self, batch: Batch, reader: &mut Reader) -> Result<(), Error> {
        let (changes, end) = (batch.changes.len(), batch.last.then_some(batch.end_lsn));
        self.report(Event::Batch(batch), reader).await?;
        self.metrics.changes.inc_by(changes as u64);
        if let Some(end) = end {
            self.metrics.transactions.inc();
            self.progress.delivered.fetch_max(end.0, Ordering::AcqRel);
        }
        Ok(())
    }

    /// Tells the consumer while the stream lives.
    async fn report(&self, event: Event, reader: &mut Reader) -> Result<(), Error> {
        match self.tell(event, &reader.ended).await {
            Err(_) if reader.ended.is_cancelled() => Err(reader.error().await),
            told => told,
        }
    }

    /// Waits for the consumer, but not longer than there is reason to.
    async fn tell(&self, event: Event, ended: &CancellationToken) -> Result<(), Error> {
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
