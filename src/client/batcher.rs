//! Coalesces small messages: at most ten, or those of 100 ms, go in one broadcast.
use super::{Broadcast, Channel, Error, Payload};
use crate::scope::OnExit;
use bytes::Bytes;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use std::{sync::Arc, time::Duration};
use tokio::{
    sync::{mpsc, oneshot},
    time::{Instant, timeout_at},
};

/// The event of a batch. Its payload is `{"messages":[{"event":…,"payload":…},…]}`.
pub const BATCH_EVENT: &str = "batch_messages";

const MESSAGES_MAX: usize = 10;
const WAIT: Duration = Duration::from_millis(100);
/// Bytes after which a batch is sent without waiting for more.
const BYTES_MAX: usize = 256 << 10;
/// Messages that may wait for earlier batches.
const QUEUE_MAX: usize = 1000;

/// Collects messages for a channel: ten of them, or those of 100 ms, become one broadcast `batch_messages`.
///
/// Dropping it sends what is queued. If the client is closed first, only flushed messages are sent. Receivers split a
/// batch with [`Broadcast::batch`].
#[derive(Debug)]
pub struct Batcher {
    queue: mpsc::Sender<Item>,
    failed: Arc<Mutex<Option<Error>>>,
}

enum Item {
    Message(Entry),
    Flush(oneshot::Sender<()>),
}

#[derive(Serialize, Deserialize)]
struct Entry {
    event: String,
    payload: Box<RawValue>,
}

#[derive(Serialize, Deserialize)]
struct Batch {
    messages: Vec<Entry>,
}

impl Batcher {
    /// A batcher for this channel, which stays subscribed while the batcher lives. Must be called in a Tokio runtime.
    #[must_use]
    pub fn new(channel: Channel) -> Self {
        let (queue, inbox) = mpsc::channel(QUEUE_MAX);
        let failed = Arc::new(Mutex::new(None));
        let failure = failed.clone();
        let scope = channel.client().scope().clone();
        scope.spawn("batcher", OnExit::Log, |stop| async move {
            stop.run_until_cancelled(collect(channel, inbox, &failure)).await;
            Ok(())
        });
        Self { queue, failed }
    }

    /// Queues a message. Waits only if a thousand messages are queued.
    ///
    /// # Errors
    /// [`Error::Payload`]; and once, the error of an earlier batch, whose messages are lost.
    pub async fn send(&self, event: &str, payload: impl Serialize) -> Result<(), Error> {
        self.outcome()?;
        let payload = serde_json::value::to_raw_value(&payload).map_err(|e| Error::Payload(e.to_string()))?;
        let entry = Entry { event: event.to_owned(), payload };
        self.queue.send(Item::Message(entry)).await.map_err(|_| Error::Closed)
    }

    /// Sends the queued messages. Resolves when they are sent, or acknowledged on an acknowledged channel.
    ///
    /// # Errors
    /// The error of this batch or an earlier one.
    pub async fn flush(&self) -> Result<(), Error> {
        let (answer, answered) = oneshot::channel();
        self.queue.send(Item::Flush(answer)).await.map_err(|_| Error::Closed)?;
        answered.await.map_err(|_| Error::Closed)?;
        self.outcome()
    }

    fn outcome(&self) -> Result<(), Error> {
        self.failed.lock().take().map_or(Ok(()), Err)
    }
}

async fn collect(channel: Channel, mut inbox: mpsc::Receiver<Item>, failed: &Mutex<Option<Error>>) {
    while let Some(item) = inbox.recv().await {
        let mut batch = Batch { messages: Vec::new() };
        let (due, mut bytes, mut flushes) = (Instant::now() + WAIT, 0, Vec::new());
        let mut next = Some(item);
        while let Some(item) = next.take() {
            match item {
                Item::Message(entry) => {
                    bytes += entry.event.len() + entry.payload.get().len();
                    batch.messages.push(entry);
                }
                Item::Flush(answer) => {
                    flushes.push(answer);
                    break;
                }
            }
            if batch.messages.len() < MESSAGES_MAX && bytes < BYTES_MAX {
                next = timeout_at(due, inbox.recv()).await.ok().flatten();
            }
        }
        if !batch.messages.is_empty()
            && let Err(error) = channel.broadcast(BATCH_EVENT, &batch).await
        {
            failed.lock().get_or_insert(error);
        }
        for answer in flushes {
            // The caller may have stopped waiting.
            let _gone = answer.send(());
        }
    }
}

impl Broadcast {
    /// The messages of a batch, in order; `None` if this is not a batch.
    #[must_use]
    pub fn batch(&self) -> Option<Vec<Self>> {
        if &*self.event != BATCH_EVENT {
            return None;
        }
        let batch: Batch = self.json().ok()?;
        let entry = |entry: Entry| Self {
            event: entry.event.into(),
            payload: Payload::Json(Bytes::from(Box::<str>::from(entry.payload).into_string())),
            meta: self.meta.clone(),
        };
        Some(batch.messages.into_iter().map(entry).collect())
    }
}
