//! A client that comes back to a room: what it missed, then what is live.
//!
//! The client's subscription is behind a gate that is shut. What is behind its position is read
//! from the log in pieces, each when the socket has taken the one before. When nearly all is
//! read, live messages are held; what was numbered until then is read, and the gate opens. What
//! cannot be proved to be all is told by a system message with `meta.gap` before what follows.
use super::{Gate, History, body, index::Part, position::Holder};
use crate::{
    hub::{Ear, Message, Outbox, Room, outbox::Chunk},
    id::ConnId,
    journal::{Error, Key},
    wire::{Ref, Version, socket, text},
};
use bytes::{Bytes, BytesMut};
use parking_lot::Mutex;
use serde_json::{Value, json};
use std::sync::Arc;
use tokio_util::sync::CancellationToken;

/// What is read and put out at once.
const PIECE_MESSAGES: usize = 256;
const PIECE_BYTES: usize = 1 << 20;
/// What may be left to read when live messages begin to be held.
const NEARLY: usize = 64;

/// A client in one room, as its positions know it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Client {
    /// Of its position: who it is, and which room.
    pub key: Key,
    /// Whose client it is: a part of all positions is for each.
    pub owner: u64,
    /// Who it is, in whatever room.
    pub id: [u8; 16],
    /// On which connection: of two, it is on the later one.
    pub conn: ConnId,
}

/// Somebody who joins a room that has a history.
pub struct Returning {
    /// Which room.
    pub room: Room,
    /// Who.
    pub client: Client,
    /// The subscription that it joined with.
    pub ear: Ear,
    /// Its socket.
    pub outbox: Arc<Outbox>,
    /// Its serializer.
    pub version: Version,
    /// Of its channel.
    pub join_ref: Option<Ref>,
    /// Whether it hears its own words.
    pub to_self: bool,
}

/// The place of a client in a room, while it is there. Dropping it keeps the position.
pub struct Place {
    history: History,
    client: Client,
    at: Arc<Mutex<At>>,
    /// What it has got when the reply to the last heartbeat was said.
    mark: Option<u64>,
    proved: bool,
    given_up: bool,
    /// Another connection has its position, and it is not known whether this one is alive.
    lost: bool,
    stop: CancellationToken,
}

#[derive(Clone, Copy, Debug)]
struct At {
    holder: Holder,
    /// Nothing: not yet anywhere. Everything up to it was put out.
    number: Option<u64>,
    live: bool,
    /// The client is being told that its position was contested.
    settles: bool,
}

impl History {
    /// Lets a client into a room: from the position that is known of it, or from now. Shuts the gate of its
    /// subscription at once; the future reads what it missed and opens it, and ends early when the [`Place`] is
    /// dropped or the socket closes.
    pub fn admit(&self, who: Returning) -> (Place, impl Future<Output = ()> + use<>) {
        who.ear.set_gate(|gate| *gate = Gate::Shut);
        let (found, holder) = {
            let now = self.0.clock.micros();
            self.0.state.lock().positions.begin(who.client.key, who.client.conn, now)
        };
        let at = Arc::new(Mutex::new(At {
            holder,
            number: found.map(|found| found.number),
            live: false,
            settles: false,
        }));
        let stop = CancellationToken::new();
        let place = Place {
            history: self.clone(),
            client: who.client,
            at: at.clone(),
            mark: None,
            proved: false,
            given_up: false,
            lost: false,
            stop: stop.clone(),
        };
        let replay = Replay { history: self.clone(), who, at };
        let contested = found.is_some_and(|found| found.contested);
        let run = async move {
            // A socket that closes ends it, and so does whoever drops the place.
            let _ended = stop.run_until_cancelled(replay.run(contested)).await;
        };
        (place, run)
    }
}

impl Place {
    /// The client's next heartbeat came: it has processed everything that was put out before the reply to the
    /// last one. False when another connection of the same client has taken over. That may be well so: the
    /// heartbeat of a connection that was cut can be read late. What comes of something that it is asked now shows
    /// that it is alive: see [`Place::answered`].
    #[must_use]
    pub fn heartbeat(&mut self) -> bool {
        if self.given_up {
            return true;
        }
        let holds = self.mark.is_none_or(|mark| self.prove(mark));
        self.proved |= self.mark.is_some();
        self.lost |= !holds;
        let at = *self.at.lock();
        // Numbers up to what is heard are in the outbox of everybody whose gate is open.
        self.mark = if at.live { Some(*self.history.0.heard.borrow()).max(at.number) } else { at.number };
        holds
    }

    /// The client has answered something. If it was asked after it lost its position, two connections are alive with
    /// one `client_id`, and the next to come is told.
    pub fn answered(&mut self) {
        if std::mem::take(&mut self.lost) {
            let holder = self.at.lock().holder;
            self.history.0.state.lock().positions.contest(self.client.key, holder);
            self.history.0.work.notify_one();
        }
    }

    fn prove(&self, mark: u64) -> bool {
        let shared = &self.history.0;
        let (holder, settles) = {
            let mut at = self.at.lock();
            (at.holder, std::mem::take(&mut at.settles))
        };
        let mut state = shared.state.lock();
        if settles {
            state.positions.settle(self.client.key, holder);
        }
        state.positions.prove(self.client.key, holder, mark, shared.clock.micros())
    }

    /// The client leaves the room. It is here for the last time if it is certain that it knew it was here; a
    /// client that gives up waiting for its join leaves as well, and comes back.
    pub fn leave(self) {
        if self.proved {
            let holder = self.at.lock().holder;
            self.history.0.state.lock().positions.forget(self.client.key, holder);
        }
    }

    /// From now on it proves nothing more; what is being replayed still is.
    pub fn give_up(&mut self) {
        (self.given_up, self.proved) = (true, false);
    }

    /// Whose place it is.
    #[must_use]
    pub fn client(&self) -> Client {
        self.client
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

/// Why nothing more is replayed.
struct Ended;

struct Replay {
    history: History,
    who: Returning,
    at: Arc<Mutex<At>>,
}

/// Why messages may be missing.
#[derive(Clone, Copy)]
enum Gap {
    /// Nothing is known of this client in this room.
    Unknown,
    /// The history does not reach back to it, or has a hole behind it.
    Expired { after: u64, until: u64 },
    /// Two connections had one `client_id` at the same time.
    Contested { after: u64 },
}

impl Replay {
    async fn run(self, contested: bool) {
        let begun = *self.at.lock();
        let outcome = match begun.number {
            None => self.begin().await,
            Some(number) => self.resume(number, contested).await,
        };
        // The socket or the place is gone, and with it whoever could be told.
        let (Ok(()) | Err(Ended)) = outcome;
    }

    /// A client that is not known: its position is where it begins to hear.
    async fn begin(&self) -> Result<(), Ended> {
        let shared = &self.history.0;
        self.who.ear.set_gate(|gate| *gate = Gate::Holding(Vec::new()));
        let holder = self.at.lock().holder;
        let Returning { client, .. } = &self.who;
        let (head, turn) = {
            let mut state = shared.state.lock();
            let head = state.head;
            state.positions.set(client.key, client.owner, holder, head, shared.clock.micros());
            (head, state.turn + 1)
        };
        self.at.lock().number = Some(head);
        shared.work.notify_one();
        self.until_heard(head).await?;
        // From when it is told, nothing is lost: so its position is safe first, if the disk takes anything.
        let (mut stored, mut degraded) = (shared.stored.subscribe(), shared.degraded.subscribe());
        tokio::select! {
            _ = stored.wait_for(|stored| *stored >= turn) => {}
            _ = degraded.wait_for(|degraded| *degraded) => {}
        }
        self.tell(Some(Gap::Unknown), head)?;
        if self.open(head) { Ok(()) } else { self.catch_up(head).await }
    }

    async fn resume(&self, position: u64, contested: bool) -> Result<(), Ended> {
        let shared = &self.history.0;
        shared.metrics.resumed.inc();
        let lost = shared.state.lock().index.lost(&self.who.room);
        let gap = if lost > position {
            Some(Gap::Expired { after: position, until: lost })
        } else {
            contested.then_some(Gap::Contested { after: position })
        };
        self.tell(gap, position)?;
        self.at.lock().settles = contested;
        self.catch_up(position.max(lost)).await
    }

    /// Reads and says everything after `position`, then lets live messages through.
    async fn catch_up(&self, mut position: u64) -> Result<(), Ended> {
        let shared = &self.history.0;
        loop {
            let heard = *shared.heard.borrow();
            let (reached, said) = self.say(position, heard).await?;
            position = reached;
            if said > NEARLY {
                continue;
            }
            self.who.ear.set_gate(|gate| *gate = Gate::Holding(Vec::new()));
            // Whatever is numbered after this finds the gate holding.
            let head = shared.state.lock().head;
            self.until_heard(head).await?;
            position = self.say(position, head).await?.0;
            if self.open(position) {
                return Ok(());
            }
        }
    }

    /// Says what is kept with `after < number <= upto`; gives how far it got and how many messages it were.
    async fn say(&self, mut after: u64, upto: u64) -> Result<(u64, usize), Ended> {
        let mut said = 0;
        while after < upto {
            let part = {
                let state = self.history.0.state.lock();
                state.index.part(&self.who.room, after, upto, PIECE_MESSAGES, PIECE_BYTES)
            };
            let entries = match part {
                Part::Messages(entries) => entries,
                Part::Missing(until) => {
                    self.tell(Some(Gap::Expired { after, until }), until)?;
                    after = until;
                    continue;
                }
            };
            let Some(last) = entries.last().map(|(entry, _)| entry.number) else { break };
            let count = entries.len();
            let read = tokio::task::spawn_blocking(move || {
                let read = |(entry, reader): &(super::index::Entry, crate::journal::Reader)| {
                    reader.read(entry.place.offset, entry.place.size)
                };
                entries.iter().map(read).collect::<Result<Vec<_>, Error>>()
            });
            match read.await {
                Ok(Ok(records)) => self.put_out(&records).await?,
                other => {
                    if let Ok(Err(error)) = other {
                        tracing::error!(%error, "kept messages cannot be read");
                    }
                    self.tell(Some(Gap::Expired { after, until: last }), last)?;
                }
            }
            self.at.lock().number = Some(last);
            (after, said) = (last, said + count);
        }
        Ok((after.max(upto), said))
    }

    async fn put_out(&self, records: &[(u64, Bytes)]) -> Result<(), Ended> {
        let Returning { client, ear, outbox, version, to_self, .. } = &self.who;
        let topic = self.who.room.wire_topic();
        let mut chunk = Chunks::default();
        for (number, payload) in records {
            let Some((by, message)) = body::said(payload) else { continue };
            // Who has lost the right to read does not get what it has not got by now.
            if (by == client.id && !to_self) || !ear.hears().broadcast {
                continue;
            }
            chunk.add(&message.numbered(*number, true), *version, &topic);
        }
        if chunk.frames == 0 {
            return Ok(());
        }
        self.history.0.metrics.replayed.inc_by(chunk.frames as u64);
        outbox.emptied().await.map_err(|_| Ended)?;
        outbox.push_chunk(chunk.finish()).map_err(|_| Ended)
    }

    /// Lets out what was held after `position`, and then everything. False: too much was held, and the gate is
    /// shut again.
    fn open(&self, position: u64) -> bool {
        let Returning { ear, outbox, version, .. } = &self.who;
        let topic = self.who.room.wire_topic();
        ear.set_gate(|gate| {
            let Gate::Holding(held) = gate else { return false };
            let mut chunk = Chunks::default();
            for (number, message) in held.iter().filter(|(number, _)| *number > position) {
                if ear.hears().broadcast {
                    chunk.add(&message.numbered(*number, false), *version, &topic);
                }
            }
            *gate = Gate::Open;
            if chunk.frames > 0 {
                // A closed outbox is seen by its connection.
                let _closed = outbox.push_chunk(chunk.finish());
            }
            let mut at = self.at.lock();
            (at.live, at.number) = (true, Some(position));
            true
        })
    }

    async fn until_heard(&self, number: u64) -> Result<(), Ended> {
        let mut heard = self.history.0.heard.subscribe();
        heard.wait_for(|heard| *heard >= number).await.map(|_| ()).map_err(|_| Ended)
    }

    /// Says where the client begins, and what it may miss.
    fn tell(&self, gap: Option<Gap>, position: u64) -> Result<(), Ended> {
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
            "channel": self.who.room.topic.as_str(),
            "meta": { "position": position.to_string(), "gap": gap },
        });
        let Returning { version, join_ref, outbox, .. } = &self.who;
        let topic = self.who.room.wire_topic();
        let payload = payload.to_string();
        let frame = text::encode(*version, join_ref.as_ref(), None, &topic, "system", payload.as_bytes());
        outbox.push(&frame).map_err(|_| Ended)
    }
}

/// Frames of several messages for one socket.
#[derive(Default)]
struct Chunks {
    bytes: BytesMut,
    frames: usize,
}

impl Chunks {
    fn add(&mut self, message: &Message, version: Version, topic: &str) {
        let Some(frame) = message.encode(version, topic) else { return };
        socket::put_frame(&mut self.bytes, &frame);
        self.frames += 1;
    }
    fn finish(self) -> Chunk {
        Chunk { bytes: self.bytes.freeze(), frames: self.frames }
    }
}
