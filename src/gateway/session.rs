//! The channels of one socket: passes frames to their state machines and performs the returned actions.
mod large_messages;
mod memory;
mod pending_checks;
mod publish;
mod room;
mod throttle;

use super::{
    Rejection,
    channel::{Action, Channel, ChannelEvent, not_joined},
    limits::OfSocket,
    publish_batch::PublishBatch,
    replay,
    resume::{self, Proof},
    shared::{Shared, Wanted},
};
use crate::{
    changes::{ChangeSubscription, Prepared},
    hub::{
        Outbox,
        history::ResumeCursor,
        memory::{Account, Charge},
    },
    id::ConnId,
    presence::StateRequest,
    wire::{self, Inbound, PHOENIX_TOPIC, Ref, TOPIC_PREFIX, Version, text},
};
use bytes::Bytes;
use futures_util::stream::FuturesUnordered;
use parking_lot::Mutex;
use pending_checks::PendingCheck;
use publish::LocalCounters;
use room::Entered;
use std::{
    cmp::Reverse,
    collections::{BinaryHeap, HashMap, VecDeque},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};
use throttle::{Call, Throttle};
use tokio::{sync::Notify, time::Instant};
use tracing::{Instrument, Span};

/// Delayed refusals on one socket. Further ones are sent at once, so that a flood of joins is not buffered.
const REFUSALS_MAX: usize = 64;
/// Bytes of topic, event and refs of a frame together.
const ENVELOPE_BYTES_MAX: usize = 4096;
/// Payload bytes of a join or a new token; part of it is kept while the channel exists.
const JOIN_BYTES_MAX: usize = 64 << 10;
/// Close code of a socket that has had no channel for too long.
const CLOSE_NORMAL: u16 = 1000;
/// The longest interval between two checks of a joined channel's token.
const TOKEN_CHECK_PERIOD: Duration = Duration::from_secs(300);

/// The credentials and identity with which a socket was opened.
pub(super) struct SocketKey {
    pub(super) apikey: Arc<str>,
    /// The request headers that policies can read, as a JSON object.
    pub(super) headers: Arc<str>,
    /// The `client_id`, if the client sent one.
    pub(super) client: Option<String>,
}

/// The channels of one socket, from its handshake to its end. Dropping it leaves every channel.
pub(super) struct Session {
    core: Core,
    /// Boxed: a map allocates for four entries at least, and most sockets have one channel.
    channels: HashMap<String, Box<Slot>>,
    actions: Vec<Action>,
}

struct Core {
    shared: Arc<Shared>,
    conn: ConnId,
    version: Version,
    outbox: Arc<Outbox>,
    /// The memory account of the socket.
    account: Arc<Account>,
    /// The charge of the incomplete message.
    partial: Charge,
    /// The charge of the frames that wait in its channels, and their bytes now.
    waiting: Charge,
    waiting_bytes: usize,
    apikey: Arc<str>,
    /// The headers of the upgrade request that policies can read, as a JSON object.
    headers: Arc<str>,
    counted: bool,
    joined: usize,
    refusals: usize,
    timers: BinaryHeap<Reverse<Timer>>,
    timer_id: u64,
    /// Pending checks of its channels. Only frames of the same topic wait for them.
    checks: FuturesUnordered<PendingCheck>,
    /// Pending joins.
    joining: usize,
    close: Option<u16>,
    /// Since when the socket has no channel, from its start or from leaving the last one.
    empty_since: Option<Instant>,
    counters: LocalCounters,
    used: OfSocket,
    /// Wakes the reader for [`Session::end_marked`].
    wake: Arc<Notify>,
    /// See [`Session::is_large`].
    is_large: Arc<AtomicBool>,
    /// The messages published since the last [`Core::flush`].
    batch: PublishBatch,
    /// The `client_id`, if the client sent one.
    client: Option<String>,
    /// The state of its heartbeats.
    proof: Proof,
    /// The next reply is to a presence call that the tracker has: it must follow the difference.
    reply_follows_presence: bool,
}

/// The result of a check of row changes, which the check's future stores here.
type PreparedSlot = Arc<Mutex<Option<Prepared>>>;

struct Slot {
    channel: Channel,
    entered: Option<Entered>,
    refusal_timer: u64,
    token_check: Option<(Instant, u64)>,
    /// The id of the pending check; 0 for none.
    check: u64,
    throttle: Throttle,
    /// The id of the pending check of replication; 0 for none.
    readiness: u64,
    /// The replay of a join that asked for stored messages; the check's future stores it here.
    held: Option<replay::ReplaySlot>,
    /// The row changes that the channel asked for.
    wanted: Wanted,
    /// The result of the check of row changes.
    prepared: Option<PreparedSlot>,
    /// Stored messages to deliver before live ones.
    old: Option<replay::StoredMessages>,
    /// The charge of its join and its presence; `None` while both are small.
    charge: Option<Charge>,
    /// The part of the charge that belongs to the join.
    join_bytes: usize,
    span: Span,
}

impl Slot {
    fn new(sub_topic: &str) -> Self {
        Self {
            channel: Channel::new(sub_topic),
            entered: None,
            refusal_timer: 0,
            token_check: None,
            check: 0,
            throttle: Throttle::default(),
            readiness: 0,
            held: None,
            wanted: Wanted::default(),
            prepared: None,
            old: None,
            charge: None,
            join_bytes: 0,
            span: tracing::debug_span!("channel", topic = sub_topic),
        }
    }
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
        (conn, version): (ConnId, Version),
        key: SocketKey,
        outbox: Arc<Outbox>,
        account: Arc<Account>,
    ) -> Self {
        shared.metrics.connections.inc();
        let SocketKey { apikey, headers, client } = key;
        let core = Core {
            shared,
            conn,
            version,
            outbox,
            partial: account.charge(),
            waiting: account.charge(),
            waiting_bytes: 0,
            account,
            apikey,
            headers,
            counted: false,
            joined: 0,
            refusals: 0,
            timers: BinaryHeap::new(),
            timer_id: 0,
            checks: FuturesUnordered::new(),
            joining: 0,
            close: None,
            empty_since: Some(Instant::now()),
            counters: LocalCounters::default(),
            used: OfSocket::default(),
            wake: Arc::default(),
            is_large: Arc::default(),
            batch: PublishBatch::default(),
            client,
            proof: Proof::default(),
            reply_follows_presence: false,
        };
        Self { core, channels: HashMap::new(), actions: Vec::new() }
    }

    pub(super) fn id(&self) -> ConnId {
        self.core.conn
    }

    /// Notified when [`Session::end_marked`] must be called.
    pub(super) fn wake(&self) -> Arc<Notify> {
        self.core.wake.clone()
    }

    /// Charges `frames` messages to the read rate. Returns how long the socket must not be read.
    pub(super) fn pace(&self, now: Instant, frames: u64) -> Duration {
        self.core.shared.rates.frames(&self.core.used, now, frames)
    }

    /// The code with which the socket must be closed now.
    pub(super) fn closing(&self) -> Option<u16> {
        self.core.close
    }

    /// When [`Session::tick`] must be called next.
    pub(super) fn due(&self) -> Option<Instant> {
        let timer = self.core.timers.peek().map(|Reverse(timer)| timer.due);
        timer.into_iter().chain(self.core.swept_at()).min()
    }

    /// Publishes what was said. To be called after the messages that came together, before more are waited
    /// for: those who hear them are visited once for all.
    ///
    /// `read_at` is when the first of them was read.
    pub(super) fn flush(&mut self, read_at: Instant) {
        self.core.flush_and_count(Some(read_at));
    }

    /// Handles a text message of the client.
    pub(super) async fn text(&mut self, frame: Bytes) {
        self.handle_frame(frame.len(), wire::decode_text(self.core.version, &frame)).await;
        self.core.wait_for_history().await;
    }

    /// Handles a binary message of the client.
    pub(super) async fn binary(&mut self, frame: Bytes) {
        let decoded = match self.core.version {
            Version::V1 => Err(wire::Dropped::UnknownKind(frame.first().copied())),
            Version::V2 => wire::decode_binary(&frame),
        };
        self.handle_frame(frame.len(), decoded).await;
        self.core.wait_for_history().await;
    }

    /// Handles expired timers.
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
                Some(ChannelEvent::DelayOver)
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

    /// Notifies every channel that the server stops. The caller closes the socket afterwards.
    pub(super) fn notify_shutdown(&mut self) {
        let payload = br#"{"extension":"system","status":"ok","message":"Server requested disconnect"}"#;
        for (topic, slot) in &self.channels {
            if slot.entered.is_some() {
                self.core.write(None, None, topic, "system", payload);
            }
        }
    }

    async fn handle_frame(&mut self, size: usize, decoded: Result<Inbound, wire::Dropped>) {
        let counters = &mut self.core.counters;
        counters.frames_in += 1;
        counters.bytes_in += size as u64;
        let frame = match decoded {
            // Limits the memory that topic, event and refs can take.
            Ok(frame) if size - frame.payload.size().min(size) > ENVELOPE_BYTES_MAX => {
                counters.dropped += 1;
                tracing::debug!(conn = %self.core.conn, size, "frame dropped: its names are too long");
                return;
            }
            Ok(frame) => frame,
            Err(why) => {
                counters.dropped += 1;
                tracing::debug!(conn = %self.core.conn, %why, "frame dropped");
                return;
            }
        };
        let topic = frame.topic.clone();
        if topic == PHOENIX_TOPIC && frame.event == "heartbeat" {
            // The batch goes out before the reply: the reply to a heartbeat is a barrier for everything sent before it.
            self.core.flush();
            let ping = self.core.client.is_some() && self.advance_positions(frame.reference.is_some());
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
        let Some(slot) = self.channels.get_mut(&topic) else { return };
        if !self.core.charge_join(slot, &frame) {
            return;
        }
        let event = self.core.admit_frame(slot, frame);
        self.run(&topic, event).await;
        self.count_waiting();
    }

    /// Whether the socket must end now because of the memory it holds.
    pub(super) fn is_evicted(&self) -> bool {
        self.core.account.is_evicted()
    }

    async fn run(&mut self, topic: &str, event: ChannelEvent) {
        let Some(slot) = self.channels.get(topic) else { return };
        let span = slot.span.clone();
        self.work(topic, event).instrument(span).await;
    }

    async fn work(&mut self, topic: &str, event: ChannelEvent) {
        let Some(slot) = self.channels.get_mut(topic) else { return };
        let mut actions = std::mem::take(&mut self.actions);
        let mut next = VecDeque::from([event]);
        let waited = slot.channel.waiting_bytes();
        // An action may produce a further event at once; it is handled before the next frame.
        while let Some(event) = next.pop_front() {
            slot.channel.on(event, &self.core.shared.limits, Instant::now(), &mut actions);
            for action in actions.drain(..) {
                next.extend(self.core.perform(topic, slot, action).await);
            }
        }
        self.actions = actions;
        // A running total: only this channel has changed, of hundreds maybe.
        self.core.waiting_bytes = self.core.waiting_bytes - waited + slot.channel.waiting_bytes();
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
        self.core.flush_and_count(None);
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

    /// Refuses a join or token that is too large to be parsed.
    fn oversized(&self, topic: &str, frame: Inbound) {
        let what = if frame.event == "phx_join" { "phx_join" } else { "access_token" };
        let why = format!("UnknownErrorOnChannel: {what} is larger than {JOIN_BYTES_MAX} bytes");
        let sub_topic = topic.strip_prefix(TOPIC_PREFIX).unwrap_or(topic);
        self.shared.refused(None, sub_topic, Some(self.conn), Rejection::push(what, "too_large", &why));
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
        self.counters.frames_out.set(self.counters.frames_out.get() + 1);
        // A closed outbox means that the connection is ending: the reply has no receiver.
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

    async fn perform(&mut self, topic: &str, slot: &mut Slot, action: Action) -> Option<ChannelEvent> {
        // Anything but a publish or a reply ends the batch, so that its messages precede the effect of this action.
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
            Action::Check(join) => return self.check_join(topic, slot, join),
            Action::Delay if self.refusals >= REFUSALS_MAX => return Some(ChannelEvent::DelayOver),
            Action::Delay => {
                self.refusals += 1;
                let due = Instant::now() + self.shared.config.join_error_delay;
                slot.refusal_timer = self.start_timer(due, topic);
            }
            Action::Verify { token, private, presence } => {
                return self.check_new_token(topic, slot, token, (private, presence));
            }
            Action::Ask(unknown) => return self.check_rights(topic, slot, unknown),
            Action::Enter { private, interests } => self.enter(topic, slot, private, interests),
            Action::SetInterests(interests) => {
                if let Some(entered) = &slot.entered {
                    entered.subscription.handle().set(interests);
                }
            }
            Action::Replay { join_ref } => {
                let (entered, old) = (slot.entered.as_ref()?, slot.old.take()?);
                if let Some(missing) = old.deliver(&entered.subscription, self.version, join_ref.as_ref()) {
                    let payload = replay::incomplete(slot.channel.sub_topic(), missing);
                    self.write(join_ref.as_ref(), None, topic, "system", payload.as_bytes());
                }
            }
            Action::AwaitReplication => self.await_replication(topic, slot),
            Action::StartChanges => self.start_changes(slot),
            Action::StopChanges => {
                if let Some(entered) = &mut slot.entered {
                    entered.row_changes = None;
                }
            }
            Action::WatchToken => {
                self.watch_token(topic, slot);
                let claims = slot.channel.claims()?;
                let entered = slot.entered.as_mut()?;
                entered.registration.renew(claims.clone());
                entered.observer.iter().chain(&entered.named).for_each(|it| it.renew(claims.clone()));
                let room = entered.subscription.room();
                if let (Some(cursor), Some(id)) = (&mut entered.cursor, &self.client) {
                    // The position of one user must not be moved by another.
                    if cursor.client() != resume::client(id, self.conn, claims, room) {
                        cursor.give_up();
                    }
                }
                if let (Some(row_changes), Some(id)) = (&mut entered.row_changes, &self.client) {
                    let same = resume::for_row_changes(resume::client(id, self.conn, claims, room));
                    if row_changes.client().is_some_and(|client| client != same) {
                        row_changes.give_up();
                    }
                }
                if entered.agent.as_ref().is_some_and(|agent| !agent.is_allowed(room, claims)) {
                    entered.agent = None;
                }
            }
            Action::Exit => {
                (slot.check, slot.readiness) = (0, 0);
                (slot.held, slot.old, slot.prepared) = (None, None, None);
                slot.release_presence();
                slot.throttle.drop_delayed();
                if let Some((_, id)) = slot.token_check.take() {
                    self.stop_timer(id);
                }
                if slot.entered.take().is_some() {
                    self.joined = self.joined.saturating_sub(1);
                    self.shared.metrics.channels.dec();
                }
            }
            Action::DeletePositions => {
                if let Some(entered) = &mut slot.entered {
                    entered.cursor.take().into_iter().for_each(ResumeCursor::leave);
                    entered.row_changes.take().into_iter().for_each(ChangeSubscription::leave);
                }
            }
            Action::Publish { payload, to_self } => self.publish(slot, payload, to_self),
            Action::Track { key, meta } => self.presence_call(topic, slot, Call::Track { key, meta }).await,
            Action::Untrack => self.presence_call(topic, slot, Call::Untrack).await,
            Action::RecordRejection { refused, notified } => {
                return self.record_rejection(topic, slot, refused, notified);
            }
            Action::SendState { .. } if self.presence_too_fast(Instant::now(), 1) => {
                return Some(ChannelEvent::Shutdown("Too many presence messages per second".into()));
            }
            Action::SendState { join_ref } => {
                let entered = slot.entered.as_ref()?;
                let (handle, outbox) = (entered.subscription.handle(), self.outbox.clone());
                entered.member.send_state(StateRequest { handle, outbox, version: self.version, join_ref });
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

    /// Linear, but timers are few: one per channel and one per delayed refusal.
    fn stop_timer(&mut self, id: u64) {
        self.timers.retain(|Reverse(timer)| timer.id != id);
    }

    /// Schedules the next check of a channel's token, unless an earlier one is scheduled.
    fn watch_token(&mut self, topic: &str, slot: &mut Slot) {
        let Some(claims) = slot.channel.claims() else { return };
        let left = (claims.exp - self.shared.clock.now()).to_std().unwrap_or_default();
        // One millisecond more: the token has expired for certain when the timer fires.
        let due = Instant::now() + left.min(TOKEN_CHECK_PERIOD) + Duration::from_millis(1);
        if slot.token_check.is_none_or(|(set, _)| due < set) {
            if let Some((_, id)) = slot.token_check.take() {
                self.stop_timer(id);
            }
            slot.token_check = Some((due, self.start_timer(due, topic)));
        }
    }

    fn check_token(&mut self, topic: &str, slot: &mut Slot) -> Option<ChannelEvent> {
        let claims = slot.channel.claims()?;
        match claims.check_expiry(self.shared.clock.now()) {
            Err(expired) => Some(ChannelEvent::Shutdown(expired.to_string())),
            Ok(()) => {
                self.watch_token(topic, slot);
                None
            }
        }
    }
}
