//! One socket's channels: gives frames to the machines and performs what they ask for.
mod brake;
mod questions;
mod room;
mod say;

use super::{
    Refused,
    attendance::Attending,
    channel::{Action, Channel, Event, not_joined},
    directory::Listed,
    limits::OfSocket,
    replay,
    resume::{self, Proof},
    said::Said,
    shared::{Shared, Wanted},
};
use crate::{
    changes::{Following, Prepared},
    hub::{Outbox, Subscription, history::Place},
    id::ConnId,
    presence::{Member, StateRequest},
    wire::{self, Inbound, PHOENIX_TOPIC, Ref, TOPIC_PREFIX, Version, text},
};
use brake::{Brake, Call};
use bytes::Bytes;
use futures_util::stream::FuturesUnordered;
use parking_lot::Mutex;
use questions::Question;
use room::to_hears;
use say::Tally;
use std::{
    cmp::Reverse,
    collections::{BinaryHeap, HashMap, VecDeque},
    sync::{Arc, atomic::Ordering},
    time::Duration,
};
use tokio::{sync::Notify, time::Instant};
use tracing::{Instrument, Span};

/// Refusals that wait at once on one socket; more are told without delay, so that a flood is not kept.
const REFUSALS_MAX: usize = 64;
/// Topic, event and refs of a frame together.
const ENVELOPE_BYTES_MAX: usize = 4096;
/// Payload of a join or a new token: some of it is kept while the channel is.
const JOIN_BYTES_MAX: usize = 64 << 10;
/// The socket wanted a channel and has had none for long.
const CLOSE_NORMAL: u16 = 1000;
/// A live channel's token is looked at least so often.
const TOKEN_CHECK_PERIOD: Duration = Duration::from_secs(300);

/// With what a socket came.
pub(super) struct SocketKey {
    pub(super) apikey: Arc<str>,
    /// The headers that policies see, as a JSON object.
    pub(super) headers: Arc<str>,
    /// The client's own name for itself.
    pub(super) client: Option<String>,
}

/// One socket, from its handshake to its end. Dropping it leaves every channel.
pub(super) struct Session {
    core: Core,
    /// Boxed: a map keeps room for four, and most sockets have one.
    channels: HashMap<String, Box<Slot>>,
    actions: Vec<Action>,
}

struct Core {
    shared: Arc<Shared>,
    conn: ConnId,
    version: Version,
    outbox: Arc<Outbox>,
    apikey: Arc<str>,
    /// What policies see of the upgrade request, as a JSON object.
    headers: Arc<str>,
    counted: bool,
    joined: usize,
    refusals: usize,
    timers: BinaryHeap<Reverse<Timer>>,
    timer_id: u64,
    /// What is being asked for its channels; only their own frames wait for it.
    questions: FuturesUnordered<Question>,
    /// Joins among them.
    joining: usize,
    close: Option<u16>,
    /// Since when a socket that wanted a channel has none.
    empty_since: Option<Instant>,
    tally: Tally,
    used: OfSocket,
    /// Wakes the reader for [`Session::cut`].
    wake: Arc<Notify>,
    /// What was said since the last [`Core::flush`].
    said: Said,
    /// The client's own name for itself.
    client: Option<String>,
    /// What its heartbeats prove.
    proof: Proof,
}

/// Where a question leaves what it found.
type Found = Arc<Mutex<Option<Prepared>>>;

struct Slot {
    channel: Channel,
    entered: Option<Entered>,
    refusal_timer: u64,
    token_check: Option<(Instant, u64)>,
    /// The question whose answer is waited for.
    question: u64,
    brake: Brake,
    /// The question whether messages of the database come.
    readiness: u64,
    /// Where a join that wants old messages leaves them.
    held: Option<replay::Place>,
    /// The row changes that its channel wants.
    wanted: Wanted,
    /// Where a join or token leaves what was found of them.
    prepared: Option<Found>,
    /// What is to be said before anything else.
    old: Option<replay::Old>,
    span: Span,
}

impl Slot {
    fn new(sub_topic: &str) -> Self {
        Self {
            channel: Channel::new(sub_topic),
            entered: None,
            refusal_timer: 0,
            token_check: None,
            question: 0,
            brake: Brake::default(),
            readiness: 0,
            held: None,
            wanted: Wanted::default(),
            prepared: None,
            old: None,
            span: tracing::debug_span!("channel", topic = sub_topic),
        }
    }
}

/// What a joined channel holds; dropping it leaves the room.
struct Entered {
    /// Its agent is gone before anything else of it is.
    attending: Option<Attending>,
    listed: Listed,
    /// Of a client that can come back, in a room with a history.
    place: Option<Place>,
    /// Its row changes.
    following: Option<Following>,
    member: Member,
    subscription: Subscription,
}

#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Timer {
    due: Instant,
    id: u64,
    topic: String,
}

impl Session {
    pub(super) fn new(
        shared: Arc<Shared>,
        conn: ConnId,
        version: Version,
        key: SocketKey,
        outbox: Arc<Outbox>,
    ) -> Self {
        shared.metrics.connections.inc();
        let SocketKey { apikey, headers, client } = key;
        let core = Core {
            shared,
            conn,
            version,
            outbox,
            apikey,
            headers,
            counted: false,
            joined: 0,
            refusals: 0,
            timers: BinaryHeap::new(),
            timer_id: 0,
            questions: FuturesUnordered::new(),
            joining: 0,
            close: None,
            empty_since: None,
            tally: Tally::default(),
            used: OfSocket::default(),
            wake: Arc::default(),
            said: Said::default(),
            client,
            proof: Proof::default(),
        };
        Self { core, channels: HashMap::new(), actions: Vec::new() }
    }

    pub(super) fn id(&self) -> ConnId {
        self.core.conn
    }

    /// Resolves when [`Session::cut`] has something to do. Cancel safe.
    pub(super) fn wake(&self) -> Arc<Notify> {
        self.core.wake.clone()
    }

    /// So many messages came: how long the socket is not read.
    pub(super) fn pace(&self, now: Instant, frames: u64) -> Duration {
        self.core.shared.rates.frames(&self.core.used, now, frames)
    }

    /// The code with which the socket shall be closed now.
    pub(super) fn closing(&self) -> Option<u16> {
        self.core.close
    }

    /// When [`Session::tick`] has something to do.
    pub(super) fn due(&self) -> Option<Instant> {
        let timer = self.core.timers.peek().map(|Reverse(timer)| timer.due);
        timer.into_iter().chain(self.core.swept_at()).min()
    }

    /// Passes on what was said. To be called after the messages that came together, before more are waited
    /// for: those who hear them are visited once for all.
    ///
    /// `heard`: when the first of them was read.
    pub(super) fn flush(&mut self, heard: Instant) {
        self.core.settle(Some(heard));
    }

    /// A text message from the client.
    pub(super) async fn text(&mut self, frame: Bytes) {
        self.received(frame.len(), wire::decode_text(self.core.version, &frame)).await;
        self.core.wait_for_room().await;
    }

    /// A binary message from the client.
    pub(super) async fn binary(&mut self, frame: Bytes) {
        let decoded = match self.core.version {
            Version::V1 => Err(wire::Dropped::UnknownKind(frame.first().copied())),
            Version::V2 => wire::decode_binary(&frame),
        };
        self.received(frame.len(), decoded).await;
        self.core.wait_for_room().await;
    }

    /// Performs what is due.
    pub(super) async fn tick(&mut self, now: Instant) {
        while let Some(Reverse(timer)) = self.core.timers.pop() {
            if timer.due > now {
                self.core.timers.push(Reverse(timer));
                break;
            }
            let Some(slot) = self.channels.get_mut(&timer.topic) else { continue };
            let event = if slot.refusal_timer == timer.id {
                slot.refusal_timer = 0;
                self.core.refusals = self.core.refusals.saturating_sub(1);
                Some(Event::DelayOver)
            } else if slot.token_check.is_some_and(|(_, id)| id == timer.id) {
                slot.token_check = None;
                self.core.check_token(&timer.topic, slot)
            } else {
                self.core.release(&timer, slot).await
            };
            if let Some(event) = event {
                self.run(&timer.topic, event).await;
            }
        }
        if self.core.swept_at().is_some_and(|at| at <= now) {
            self.core.close = Some(CLOSE_NORMAL);
        }
    }

    /// Tells every channel that the server goes; the socket is closed after it.
    pub(super) fn say_goodbye(&mut self) {
        let payload = br#"{"extension":"system","status":"ok","message":"Server requested disconnect"}"#;
        for (topic, slot) in &self.channels {
            if slot.entered.is_some() {
                self.core.write(None, None, topic, "system", payload);
            }
        }
    }

    async fn received(&mut self, size: usize, decoded: Result<Inbound, wire::Dropped>) {
        let tally = &mut self.core.tally;
        tally.frames_in += 1;
        tally.bytes_in += size as u64;
        let frame = match decoded {
            // Names that fill the memory are rubbish, too.
            Ok(frame) if size - frame.payload.size().min(size) > ENVELOPE_BYTES_MAX => {
                tally.dropped += 1;
                tracing::debug!(conn = %self.core.conn, size, "frame dropped: its names are too long");
                return;
            }
            Ok(frame) => frame,
            Err(why) => {
                tally.dropped += 1;
                tracing::debug!(conn = %self.core.conn, %why, "frame dropped");
                return;
            }
        };
        let topic = frame.topic.clone();
        if topic == PHOENIX_TOPIC && frame.event == "heartbeat" {
            self.core.flush();
            let ping = self.core.client.is_some() && self.proved(frame.reference.is_some());
            self.core.write(None, frame.reference.as_ref(), &topic, "phx_reply", &text::reply(true, "{}"));
            if ping {
                let _closed = self.core.outbox.push_control(wire::socket::ping());
            }
            return;
        }
        if matches!(frame.event.as_str(), "phx_join" | "access_token")
            && frame.payload.size() > JOIN_BYTES_MAX
        {
            self.core.flush();
            self.core.oversized(&topic, frame);
            return;
        }
        if !self.channels.contains_key(&topic) {
            let sub_topic = topic.strip_prefix(TOPIC_PREFIX).filter(|_| frame.event == "phx_join");
            let Some(sub_topic) = sub_topic else {
                self.core.flush();
                self.core.answer(&topic, not_joined(frame));
                return;
            };
            let slot = Box::new(Slot::new(sub_topic));
            self.channels.insert(topic.clone(), slot);
            self.core.empty_since = None;
        }
        let Some(slot) = self.channels.get(&topic) else { return };
        let event = self.core.gate(slot, frame);
        self.run(&topic, event).await;
    }

    async fn run(&mut self, topic: &str, event: Event) {
        let Some(slot) = self.channels.get(topic) else { return };
        let span = slot.span.clone();
        self.work(topic, event).instrument(span).await;
    }

    async fn work(&mut self, topic: &str, event: Event) {
        let Some(slot) = self.channels.get_mut(topic) else { return };
        let mut actions = std::mem::take(&mut self.actions);
        let mut next = VecDeque::from([event]);
        while let Some(event) = next.pop_front() {
            slot.channel.on(event, &self.core.shared.limits, Instant::now(), &mut actions);
            for action in actions.drain(..) {
                next.extend(self.core.perform(topic, slot, action).await);
            }
        }
        self.actions = actions;
        if slot.channel.is_idle() {
            self.channels.remove(topic);
            if self.channels.is_empty() {
                self.core.empty_since = Some(Instant::now());
            }
        }
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.core.settle(None);
        let shared = &self.core.shared;
        shared.metrics.connections.dec();
        shared.metrics.channels.dec_by(i64::try_from(self.core.joined).unwrap_or_default());
        if self.core.counted {
            shared.users.fetch_sub(1, Ordering::AcqRel);
        }
    }
}

impl Core {
    /// When the socket is closed for having no channel.
    fn swept_at(&self) -> Option<Instant> {
        self.empty_since.map(|since| since + self.shared.config.no_channel_timeout)
    }

    /// Refuses a join or token that is too large to be looked at.
    fn oversized(&self, topic: &str, frame: Inbound) {
        let what = if frame.event == "phx_join" { "phx_join" } else { "access_token" };
        let why = format!("UnknownErrorOnChannel: {what} is larger than {JOIN_BYTES_MAX} bytes");
        let sub_topic = topic.strip_prefix(TOPIC_PREFIX).unwrap_or(topic);
        self.shared.refused(None, sub_topic, Some(self.conn), Refused::push(what, "too_large", &why));
        let Inbound { join_ref, reference, .. } = frame;
        self.answer(topic, Action::Reply { join_ref, reference, ok: false, response: text::reason(&why) });
    }

    fn write(
        &self,
        join_ref: Option<&Ref>,
        reference: Option<&Ref>,
        topic: &str,
        event: &str,
        payload: &[u8],
    ) {
        self.tally.frames_out.set(self.tally.frames_out.get() + 1);
        // A closed outbox means that the socket is going; nobody is left to read the reply.
        let _closed =
            self.outbox.push(&text::encode(self.version, join_ref, reference, topic, event, payload));
    }

    fn answer(&self, topic: &str, action: Action) {
        match action {
            Action::Reply { join_ref, reference, ok, response } => {
                let payload = text::reply(ok, &response);
                self.write(join_ref.as_ref(), reference.as_ref(), topic, "phx_reply", &payload);
            }
            Action::Push { join_ref, reference, event, payload } => {
                self.write(join_ref.as_ref(), reference.as_ref(), topic, event, payload.as_bytes());
            }
            _ => {}
        }
    }

    async fn perform(&mut self, topic: &str, slot: &mut Slot, action: Action) -> Option<Event> {
        match &action {
            Action::Publish { .. } => {}
            Action::Reply { join_ref, reference, ok, response } => {
                self.reply(topic, slot, join_ref.as_ref(), reference.as_ref(), &text::reply(*ok, response));
                return None;
            }
            _ => self.flush(),
        }
        match action {
            Action::Push { .. } | Action::Reply { .. } => self.answer(topic, action),
            Action::Check(join) => return self.ask_join(topic, slot, join),
            Action::Delay if self.refusals >= REFUSALS_MAX => return Some(Event::DelayOver),
            Action::Delay => {
                self.refusals += 1;
                let due = Instant::now() + self.shared.config.join_error_delay;
                slot.refusal_timer = self.start_timer(due, topic);
            }
            Action::Verify { token, private, presence } => {
                return self.ask_token(topic, slot, token, (private, presence));
            }
            Action::Ask(unknown) => return self.ask_rights(topic, slot, unknown),
            Action::Enter { private, hears } => self.enter(topic, slot, private, hears),
            Action::Hear(hears) => {
                if let Some(entered) = &slot.entered {
                    entered.subscription.ear().set(to_hears(hears));
                }
            }
            Action::Replay { join_ref } => {
                let (entered, old) = (slot.entered.as_ref()?, slot.old.take()?);
                if let Some(missing) = old.say(&entered.subscription, self.version, join_ref.as_ref()) {
                    let payload = replay::incomplete(slot.channel.sub_topic(), missing);
                    self.write(join_ref.as_ref(), None, topic, "system", payload.as_bytes());
                }
            }
            Action::AwaitReplication => self.ask_replication(topic, slot),
            Action::Follow => self.follow(slot),
            Action::Unfollow => {
                if let Some(entered) = &mut slot.entered {
                    entered.following = None;
                }
            }
            Action::WatchToken => {
                self.watch_token(topic, slot);
                let claims = slot.channel.claims()?;
                let entered = slot.entered.as_mut()?;
                entered.listed.renew(claims.clone());
                let room = entered.subscription.room();
                if let (Some(place), Some(id)) = (&mut entered.place, &self.client) {
                    // Another user may not move the position of this one.
                    if place.client() != resume::client(id, self.conn, claims, room) {
                        place.give_up();
                    }
                }
                if let (Some(following), Some(id)) = (&mut entered.following, &self.client) {
                    let same = resume::of_changes(resume::client(id, self.conn, claims, room));
                    if following.client().is_some_and(|client| client != same) {
                        following.give_up();
                    }
                }
                if entered.attending.as_ref().is_some_and(|part| !part.may_stay(room, claims)) {
                    entered.attending = None;
                }
            }
            Action::Exit => {
                (slot.question, slot.readiness) = (0, 0);
                (slot.held, slot.old, slot.prepared) = (None, None, None);
                slot.brake.forget();
                if let Some((_, id)) = slot.token_check.take() {
                    self.stop_timer(id);
                }
                if slot.entered.take().is_some() {
                    self.joined = self.joined.saturating_sub(1);
                    self.shared.metrics.channels.dec();
                }
            }
            Action::Forget => {
                if let Some(entered) = &mut slot.entered {
                    entered.place.take().into_iter().for_each(Place::leave);
                    entered.following.take().into_iter().for_each(Following::leave);
                }
            }
            Action::Publish { payload, to_self } => self.publish(slot, payload, to_self),
            Action::Track { key, meta } => self.call(topic, slot, Call::Track { key, meta }).await,
            Action::Untrack => self.call(topic, slot, Call::Untrack).await,
            Action::Note { refused, told } => return self.note(topic, slot, refused, told),
            Action::SendState { .. } if self.presence_too_fast(Instant::now(), 1) => {
                return Some(Event::Shutdown("Too many presence messages per second".into()));
            }
            Action::SendState { join_ref } => {
                let entered = slot.entered.as_ref()?;
                let (ear, outbox) = (entered.subscription.ear(), self.outbox.clone());
                entered.member.send_state(StateRequest { ear, outbox, version: self.version, join_ref });
            }
            Action::CloseSocket(code) => self.close = Some(code),
        }
        None
    }

    fn start_timer(&mut self, due: Instant, topic: &str) -> u64 {
        self.timer_id += 1;
        self.timers.push(Reverse(Timer { due, id: self.timer_id, topic: topic.to_owned() }));
        self.timer_id
    }

    /// Timers are few: one a channel and one a waiting refusal.
    fn stop_timer(&mut self, id: u64) {
        self.timers.retain(|Reverse(timer)| timer.id != id);
    }

    /// Sets the next look at a channel's token, unless an earlier one is set already.
    fn watch_token(&mut self, topic: &str, slot: &mut Slot) {
        let Some(claims) = slot.channel.claims() else { return };
        let left = (claims.exp - self.shared.clock.now()).to_std().unwrap_or_default();
        let due = Instant::now() + left.min(TOKEN_CHECK_PERIOD) + Duration::from_millis(1);
        if slot.token_check.is_none_or(|(set, _)| due < set) {
            if let Some((_, id)) = slot.token_check.take() {
                self.stop_timer(id);
            }
            slot.token_check = Some((due, self.start_timer(due, topic)));
        }
    }

    fn check_token(&mut self, topic: &str, slot: &mut Slot) -> Option<Event> {
        let claims = slot.channel.claims()?;
        match claims.check_expiry(self.shared.clock.now()) {
            Err(expired) => Some(Event::Shutdown(expired.to_string())),
            Ok(()) => {
                self.watch_token(topic, slot);
                None
            }
        }
    }
}
