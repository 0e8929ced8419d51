//! Replays missed messages to a client that returns to a room, then switches it to live messages.
//!
//! The gate of the client's subscription is shut. The messages after its position are read from the
//! journal in pieces; each piece waits until the socket has taken the one before. When few are left,
//! live messages are buffered, the rest up to that moment is replayed, and the gate opens. If
//! completeness cannot be proved, a system message with `meta.gap` precedes what follows.
use super::{Gate, History, ResumeSession, index::Part, position::Holder, record_codec};
use crate::{
    hub::{Message, Outbox, Room, SubscriptionHandle, outbox::Chunk},
    id::ConnId,
    journal::{Error, Key},
    wire::{Ref, Version, socket, text},
};
use bytes::{Bytes, BytesMut};
use parking_lot::Mutex;
use serde_json::{Value, json};
use std::sync::Arc;
use tokio_util::sync::CancellationToken;

/// Messages and bytes that are read and enqueued as one piece.
const PIECE_MESSAGES: usize = 256;
const PIECE_BYTES: usize = 1 << 20;
/// When at most this many messages were in the last pass, live messages are buffered for the final pass.
const REMAINING_MAX: usize = 64;

/// A client in one room.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Client {
    /// The key of its position: a hash of the client and the room.
    pub key: Key,
    /// The owner whose quota of positions it uses.
    pub owner: u64,
    /// The client's id, the same in every room.
    pub id: [u8; 16],
    /// Its connection. If two connections claim one position, the later one holds it.
    pub conn: ConnId,
}

/// A channel that joins a room with a history.
pub struct HistoryJoin {
    /// The room.
    pub room: Room,
    /// The client.
    pub client: Client,
    /// The subscription of the channel.
    pub handle: SubscriptionHandle,
    /// The outbox of its socket.
    pub outbox: Arc<Outbox>,
    /// The serializer of its socket.
    pub version: Version,
    /// The reference of the channel's join.
    pub join_ref: Option<Ref>,
    /// Whether it receives its own messages.
    pub to_self: bool,
}

/// A client's hold on its position in a room while it is joined. Dropping it keeps the position.
pub struct ResumeCursor {
    history: History,
    session: ResumeSession,
    progress: Arc<Mutex<ReplayProgress>>,
    stop: CancellationToken,
}

#[derive(Clone, Copy, Debug)]
struct ReplayProgress {
    /// Everything up to this number is enqueued; `None` before the client has a position.
    number: Option<u64>,
    live: bool,
    /// The notice that its position was contested is enqueued and not yet proved as received.
    settles: bool,
}

impl History {
    /// Admits a client to a room, from its stored position or from now. Shuts the gate of its subscription before
    /// it returns. The future replays the missed messages and opens the gate. It ends early if the
    /// [`ResumeCursor`] is dropped or the socket closes.
    pub fn admit(&self, join: HistoryJoin) -> (ResumeCursor, impl Future<Output = ()> + use<>) {
        join.handle.set_gate(|gate| *gate = Gate::Shut);
        let (known, session) = self.open_session(join.client);
        let number = known.map(|known| known.number);
        let progress = Arc::new(Mutex::new(ReplayProgress { number, live: false, settles: false }));
        let stop = CancellationToken::new();
        let replay =
            Replay { history: self.clone(), join, holder: session.holder(), progress: progress.clone() };
        let cursor = ResumeCursor { history: self.clone(), session, progress, stop: stop.clone() };
        let contested = known.is_some_and(|known| known.contested);
        let run = async move {
            // Ends also when the socket closes or the cursor is dropped.
            let _ended = stop.run_until_cancelled(replay.run(contested)).await;
        };
        (cursor, run)
    }
}

impl ResumeCursor {
    /// Handles a heartbeat, see [`ResumeSession::heartbeat`].
    #[must_use]
    pub fn heartbeat(&mut self) -> bool {
        // The lock of `progress` is released before the session locks the state: no lock is held while another is
        // taken, except `progress` under the gate in `open_gate`.
        if self.session.expects_proof() && std::mem::take(&mut self.progress.lock().settles) {
            self.session.settle();
        }
        let Self { history, session, progress, .. } = self;
        session.heartbeat(|| {
            let progress = *progress.lock();
            // `delivered` is published after the fan-out: messages up to it are in the outbox of every subscriber
            // whose gate is open, so before the reply to this heartbeat.
            if progress.live {
                Some(*history.0.delivered.borrow()).max(progress.number)
            } else {
                progress.number
            }
        })
    }

    /// Handles the client's answer to a probe, see [`ResumeSession::probe_answered`].
    pub fn probe_answered(&mut self) {
        self.session.probe_answered();
    }

    /// The client leaves the room, see [`ResumeSession::leave`].
    pub fn leave(self) {
        self.session.leave();
    }

    /// Stops moving the position from now on. A replay in progress continues.
    pub fn give_up(&mut self) {
        self.session.give_up();
    }

    /// The client.
    #[must_use]
    pub fn client(&self) -> Client {
        self.session.client()
    }
}

impl Drop for ResumeCursor {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

/// The replay cannot continue: the socket is closed.
struct Ended;

struct Replay {
    history: History,
    join: HistoryJoin,
    holder: Holder,
    progress: Arc<Mutex<ReplayProgress>>,
}

/// Why messages may be missing.
#[derive(Clone, Copy)]
enum Gap {
    /// The client has no position in this room.
    Unknown,
    /// The history starts after the position, or has a hole after it.
    Expired { after: u64, until: u64 },
    /// Two connections used one `client_id` at the same time.
    Contested { after: u64 },
}

impl Replay {
    async fn run(self, contested: bool) {
        let begun = *self.progress.lock();
        let outcome = match begun.number {
            None => self.start_unknown().await,
            Some(number) => self.resume(number, contested).await,
        };
        // The socket or the cursor is gone, and with it the receiver of an error.
        let (Ok(()) | Err(Ended)) = outcome;
    }

    /// Starts an unknown client: its position is the number after which it receives live messages.
    async fn start_unknown(&self) -> Result<(), Ended> {
        let shared = &self.history.0;
        self.join.handle.set_gate(|gate| *gate = Gate::holding(&self.join.outbox));
        let HistoryJoin { client, .. } = &self.join;
        let (head, cycle) = {
            let mut state = shared.state.lock();
            let head = state.head;
            state.positions.set(client.key, client.owner, self.holder, head, shared.clock.micros());
            (head, state.cycle + 1)
        };
        self.progress.lock().number = Some(head);
        shared.work.notify_one();
        self.wait_delivered(head).await?;
        // The notice promises that nothing is lost from here on. So the position must be on disk before it is
        // sent: the cycle after the current one writes it. A failing disk does not delay the client.
        let (mut stored, mut degraded) = (shared.stored.subscribe(), shared.degraded.subscribe());
        tokio::select! {
            _ = stored.wait_for(|stored| *stored >= cycle) => {}
            _ = degraded.wait_for(|degraded| *degraded) => {}
        }
        self.send_status(Some(Gap::Unknown), head)?;
        if self.open_gate(head) { Ok(()) } else { self.catch_up(head).await }
    }

    async fn resume(&self, position: u64, contested: bool) -> Result<(), Ended> {
        let shared = &self.history.0;
        shared.metrics.resumed.inc();
        let lost = shared.state.lock().index.lost(&self.join.room);
        let gap = if lost > position {
            Some(Gap::Expired { after: position, until: lost })
        } else {
            contested.then_some(Gap::Contested { after: position })
        };
        self.send_status(gap, position)?;
        self.progress.lock().settles = contested;
        self.catch_up(position.max(lost)).await
    }

    /// Replays everything after `position`, then opens the gate.
    async fn catch_up(&self, mut position: u64) -> Result<(), Ended> {
        let shared = &self.history.0;
        loop {
            let delivered = *shared.delivered.borrow();
            let (reached, replayed) = self.replay_range(position, delivered).await?;
            position = reached;
            if replayed > REMAINING_MAX {
                continue;
            }
            self.join.handle.set_gate(|gate| *gate = Gate::holding(&self.join.outbox));
            // Whatever is numbered after this finds the gate holding.
            let head = shared.state.lock().head;
            self.wait_delivered(head).await?;
            position = self.replay_range(position, head).await?.0;
            if self.open_gate(position) {
                return Ok(());
            }
        }
    }

    /// Replays kept messages with `after < number <= upto`. Returns the number reached and the count of messages.
    async fn replay_range(&self, mut after: u64, upto: u64) -> Result<(u64, usize), Ended> {
        let mut replayed = 0;
        while after < upto {
            let part = {
                let state = self.history.0.state.lock();
                state.index.part(&self.join.room, after, upto, PIECE_MESSAGES, PIECE_BYTES)
            };
            let entries = match part {
                Part::Messages(entries) => entries,
                Part::Missing(until) => {
                    self.send_status(Some(Gap::Expired { after, until }), until)?;
                    after = until;
                    continue;
                }
            };
            let Some(last) = entries.last().map(|(entry, _)| entry.number) else { break };
            let count = entries.len();
            // File reads would block the runtime.
            let read = tokio::task::spawn_blocking(move || {
                let read = |(entry, reader): &(super::index::IndexEntry, crate::journal::SegmentReader)| {
                    reader.read(entry.location.offset, entry.location.size)
                };
                entries.iter().map(read).collect::<Result<Vec<_>, Error>>()
            });
            match read.await {
                Ok(Ok(records)) => self.enqueue(&records).await?,
                other => {
                    if let Ok(Err(error)) = other {
                        tracing::error!(%error, "failed to read kept messages for a replay");
                    }
                    self.send_status(Some(Gap::Expired { after, until: last }), last)?;
                }
            }
            self.progress.lock().number = Some(last);
            (after, replayed) = (last, replayed + count);
        }
        Ok((after.max(upto), replayed))
    }

    async fn enqueue(&self, records: &[(u64, Bytes)]) -> Result<(), Ended> {
        let HistoryJoin { client, handle, outbox, version, to_self, .. } = &self.join;
        let topic = self.join.room.wire_topic();
        let mut chunk = FrameBuffer::default();
        for (number, payload) in records {
            let Some((sender, message)) = record_codec::decode(payload) else { continue };
            // The right to read is checked now, not when the message was sent: it may have been revoked since.
            if (sender == client.id && !to_self) || !handle.interests().broadcast {
                continue;
            }
            chunk.add(&message.numbered(*number, true), *version, &topic);
        }
        if chunk.frames == 0 {
            return Ok(());
        }
        self.history.0.metrics.replayed.inc_by(chunk.frames as u64);
        // Backpressure: the next piece waits until the socket has taken the one before, so a replay never
        // overflows the outbox.
        outbox.emptied().await.map_err(|_| Ended)?;
        outbox.push_chunk(chunk.finish()).map_err(|_| Ended)
    }

    /// Delivers the buffered messages after `position` and opens the gate. Returns false if the buffer overflowed and
    /// the gate is shut again.
    fn open_gate(&self, position: u64) -> bool {
        let HistoryJoin { handle, outbox, version, .. } = &self.join;
        let topic = self.join.room.wire_topic();
        handle.set_gate(|gate| {
            let Gate::Holding(held) = gate else { return false };
            let mut chunk = FrameBuffer::default();
            for (number, message) in held.messages().iter().filter(|(number, _)| *number > position) {
                if handle.interests().broadcast {
                    chunk.add(&message.numbered(*number, false), *version, &topic);
                }
            }
            *gate = Gate::Open;
            // Enqueued under the gate's lock: a live message that finds the gate open follows the buffered ones.
            if chunk.frames > 0 {
                // The connection notices a closed outbox by itself.
                let _closed = outbox.push_chunk(chunk.finish());
            }
            let mut progress = self.progress.lock();
            (progress.live, progress.number) = (true, Some(position));
            true
        })
    }

    async fn wait_delivered(&self, number: u64) -> Result<(), Ended> {
        let mut delivered = self.history.0.delivered.subscribe();
        delivered.wait_for(|delivered| *delivered >= number).await.map(|_| ()).map_err(|_| Ended)
    }

    /// Sends the system message with the position where the client starts, and the gap, if any.
    fn send_status(&self, gap: Option<Gap>, position: u64) -> Result<(), Ended> {
        let (status, message, gap) = match gap {
            None => ("ok", "Resumed: what was missed follows", Value::Null),
            Some(Gap::Unknown) => {
                let gap = json!({ "reason": "unknown", "after": null, "until": position.to_string() });
                ("ok", "No earlier position of this client is known: it begins here", gap)
            }
            Some(Gap::Expired { after, until }) => {
                let gap =
                    json!({ "reason": "expired", "after": after.to_string(), "until": until.to_string() });
                ("error", "Messages may be missing: the history does not reach back far enough", gap)
            }
            Some(Gap::Contested { after }) => {
                let gap = json!({ "reason": "contested", "after": after.to_string(), "until": position.to_string() });
                ("error", "Messages may be missing: this client_id was in use twice at the same time", gap)
            }
        };
        if status == "error" {
            self.history.0.metrics.gaps.inc();
        }
        let payload = json!({
            "extension": "resume",
            "status": status,
            "message": message,
            "channel": self.join.room.topic.as_str(),
            "meta": { "position": position.to_string(), "gap": gap },
        });
        let HistoryJoin { version, join_ref, outbox, .. } = &self.join;
        let topic = self.join.room.wire_topic();
        let payload = payload.to_string();
        let frame = text::encode(*version, join_ref.as_ref(), None, &topic, "system", payload.as_bytes());
        outbox.push(&frame).map_err(|_| Ended)
    }
}

/// Encoded frames of several messages for one socket.
#[derive(Default)]
struct FrameBuffer {
    bytes: BytesMut,
    frames: usize,
}

impl FrameBuffer {
    fn add(&mut self, message: &Message, version: Version, topic: &str) {
        let Some(frame) = message.encode(version, topic) else { return };
        socket::put_frame(&mut self.bytes, &frame);
        self.frames += 1;
    }
    fn finish(self) -> Chunk {
        Chunk { bytes: self.bytes.freeze(), frames: self.frames }
    }
}
