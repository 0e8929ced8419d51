//! The task that owns the socket: reads, answers keepalives, reports confirmed positions, and detects silence.
//!
//! It never waits for the consumer without doing the rest: when its queue is
//! full it stops reading (Postgres retains the WAL) and goes on with feedback.
use super::{
    connection::{Connection, Frame},
    error::Error,
};
use crate::{
    id::Lsn,
    scope::{OnExit, Scope},
};
use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};
use tokio::{
    sync::{mpsc, oneshot},
    time::{Instant, MissedTickBehavior, interval, timeout},
};
use tokio_util::sync::CancellationToken;

/// How many frames, or bytes of them, go over at once, and how many such lots wait.
const LOT_FRAMES_MAX: usize = 512;
const LOT_BYTES_MAX: usize = 1 << 20;
const LOTS_MAX: usize = 4;
/// How long an orderly end may take.
const FINISH_TIMEOUT: Duration = Duration::from_secs(5);

/// When feedback is sent and silence is death.
#[derive(Clone, Copy, Debug)]
pub(super) struct Timing {
    pub(super) status_interval: Duration,
    pub(super) liveness_timeout: Duration,
}

/// The leader's handle on the socket's task. Dropped, the task ends.
pub(super) struct StreamReader {
    /// What came, in order; last of all, perhaps, what the server ended the stream with.
    pub(super) frames: mpsc::Receiver<Result<Vec<Frame>, Error>>,
    /// Cancelled as soon as the connection is of no use any more.
    pub(super) ended: CancellationToken,
    /// What the server may forget.
    pub(super) done: Done,
    /// Whether the server stores text in an encoding that it has to convert.
    pub(super) converts: bool,
    /// Whether values may come that are not UTF-8.
    pub(super) may_have_other_text: bool,
    outcome: oneshot::Receiver<Error>,
    finish: CancellationToken,
}

/// The position up to which the server may remove WAL; reported with the next feedback.
#[derive(Clone, Debug)]
pub(super) struct Done(Arc<AtomicU64>);

impl Done {
    /// Everything up to `lsn`; never moves back.
    pub(super) fn allow(&self, lsn: Lsn) {
        self.0.fetch_max(lsn.0, Ordering::AcqRel);
    }
}

impl StreamReader {
    /// Takes over a connection that streams.
    pub(super) fn spawn(scope: &Scope, connection: Connection, done: Lsn, timing: Timing) -> Self {
        let (lots, frames) = mpsc::channel(LOTS_MAX);
        let (report, outcome) = oneshot::channel();
        let (ended, finish) = (CancellationToken::new(), CancellationToken::new());
        let (converts, may_have_other_text) = (connection.converts(), connection.may_have_other_text());
        let done = Done(Arc::new(AtomicU64::new(done.0)));
        let socket = Socket {
            connection,
            done: done.clone(),
            received: Lsn(0),
            last_received: Instant::now(),
            timing,
        };
        let (end, stop) = (ended.clone(), finish.clone());
        scope.spawn("wal socket", OnExit::Log, |_| async move {
            // Also when the task is dropped or panics.
            let _guard = end.drop_guard();
            if let Err(e) = socket.run(lots, stop).await {
                let _ = report.send(e);
            }
            Ok(())
        });
        Self { frames, ended, outcome, done, converts, may_have_other_text, finish }
    }

    /// Why the connection ended.
    pub(super) async fn error(&mut self) -> Error {
        (&mut self.outcome).await.unwrap_or(Error::Closed)
    }

    /// Tells the server a last time what is done and ends in an orderly way.
    pub(super) async fn finish(mut self) {
        self.finish.cancel();
        self.frames.close();
        if timeout(FINISH_TIMEOUT, self.ended.cancelled()).await.is_err() {
            tracing::warn!("the server did not take the last position in time");
        }
    }
}

type Lots = mpsc::Sender<Result<Vec<Frame>, Error>>;

/// Hands on what the server ended the stream with, behind everything that came before: the next stream may leave out
/// what this one failed on, so what was received must not be lost. The session, and the leader's lock with it, is
/// kept until the consumer has taken it all.
async fn send_end(error: Error, lots: &Lots, finish: &CancellationToken) -> Result<(), Error> {
    let sent = async {
        if lots.send(Err(error)).await.is_ok() {
            lots.closed().await;
        }
    };
    finish.run_until_cancelled(sent).await;
    Ok(())
}

struct Socket {
    connection: Connection,
    done: Done,
    received: Lsn,
    last_received: Instant,
    timing: Timing,
}

impl Socket {
    async fn run(mut self, lots: Lots, finish: CancellationToken) -> Result<(), Error> {
        let Timing { status_interval, liveness_timeout } = self.timing;
        let every = status_interval.min(liveness_timeout / 4).max(Duration::from_millis(10));
        let mut tick = interval(every);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let (mut lot, reply, failed) = self.lot()?;
            if reply {
                self.feedback(false).await?;
            }
            while !lot.is_empty() {
                tokio::select! {
                    biased;
                    () = finish.cancelled() => return self.end().await,
                    room = lots.reserve() => match room {
                        Ok(room) => {
                            room.send(Ok(std::mem::take(&mut lot)));
                            // Nothing was read meanwhile, so silence was not the server's.
                            self.last_received = Instant::now();
                        }
                        Err(_) => return self.end().await,
                    },
                    _ = tick.tick() => self.feedback(false).await?,
                }
            }
            if let Some(error) = failed {
                return send_end(error, &lots, &finish).await;
            }
            tokio::select! {
                biased;
                () = finish.cancelled() => return self.end().await,
                () = lots.closed() => return self.end().await,
                read = self.connection.fill() => {
                    read?;
                    self.last_received = Instant::now();
                }
                _ = tick.tick() => {
                    let silence = self.last_received.elapsed();
                    if silence > liveness_timeout {
                        return Err(Error::Silent(silence));
                    }
                    self.feedback(silence > liveness_timeout / 2).await?;
                }
            }
        }
    }

    /// What has arrived whole, whether the server wants an answer at once, and what it ended the stream with.
    fn lot(&mut self) -> Result<(Vec<Frame>, bool, Option<Error>), Error> {
        let (mut lot, mut bytes, mut answer) = (Vec::new(), 0, false);
        while lot.len() < LOT_FRAMES_MAX && bytes < LOT_BYTES_MAX {
            let frame = match self.connection.try_frame() {
                Err(error) if error.leaves_the_session() => return Ok((lot, answer, Some(error))),
                frame => frame?,
            };
            let Some(frame) = frame else { break };
            let (Frame::Data { wal_end, .. } | Frame::Keepalive { wal_end, .. }) = &frame;
            self.received = self.received.max(*wal_end);
            match &frame {
                Frame::Data { message, .. } => bytes += message.len(),
                Frame::Keepalive { reply, .. } => answer |= reply,
            }
            lot.push(frame);
        }
        Ok((lot, answer, None))
    }

    async fn feedback(&mut self, ping: bool) -> Result<(), Error> {
        let done = Lsn(self.done.0.load(Ordering::Acquire));
        let limit = self.timing.liveness_timeout;
        // A server that accepts no data is treated like one that sends none.
        timeout(limit, self.connection.status(self.received, done, ping))
            .await
            .map_err(|_| Error::Silent(limit))?
    }

    async fn end(mut self) -> Result<(), Error> {
        self.feedback(false).await?;
        self.connection.finish().await
    }
}
