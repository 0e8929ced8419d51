//! Enters the room of a channel and resumes the client's position there.
use super::{Core, Session, Slot};
use crate::{
    changes::{ChangeSubscription, Listener},
    gateway::{
        channel::system,
        channel_registry::Registration,
        replay,
        resume::{self, HeartbeatProof},
    },
    hub::{
        Interests, Room, Subscription,
        history::{HistoryJoin, ResumeCursor},
    },
    id::Topic,
    presence::PresenceHandle,
    remote::{ObserverGuard, PresenceGuard},
    scope::OnExit,
    wire::{Ref, socket, text},
};
use tokio::time::Instant;

/// The resources of a joined channel. Dropping it leaves the room.
pub(super) struct Entered {
    /// Its agent's connection. The first field, because fields drop in order: the agent disconnects first.
    pub(super) agent: Option<PresenceGuard>,
    /// Watches its right to the room of an agent.
    pub(super) observer: Option<ObserverGuard>,
    /// Watches its right to a presence key in the room of an org.
    pub(super) named: Option<ObserverGuard>,
    pub(super) registration: Registration,
    /// The resume position of a client with `client_id`, in a room with a history.
    pub(super) cursor: Option<ResumeCursor>,
    /// Its row changes.
    pub(super) row_changes: Option<ChangeSubscription>,
    pub(super) member: PresenceHandle,
    pub(super) subscription: Subscription,
}

impl Session {
    /// Handles a pong.
    pub(in crate::gateway) fn on_pong(&mut self) {
        self.core.proof.pong(Instant::now());
        for entered in self.channels.values_mut().filter_map(|slot| slot.entered.as_mut()) {
            entered.cursor.iter_mut().for_each(ResumeCursor::probe_answered);
            entered.row_changes.iter_mut().for_each(ChangeSubscription::probe_answered);
        }
    }

    /// Advances the resume positions that a heartbeat proves. Must run before the reply is written, because the next
    /// heartbeat proves what is enqueued by now. Returns whether a ping must follow the reply.
    pub(super) fn advance_positions(&mut self, waits_for_replies: bool) -> bool {
        let heartbeat = self.core.proof.heartbeat(waits_for_replies, Instant::now());
        if heartbeat == HeartbeatProof::Nothing {
            return false;
        }
        let mut lost = false;
        for (topic, slot) in &mut self.channels {
            let Some(entered) = &mut slot.entered else { continue };
            let holds = entered.cursor.as_mut().is_none_or(ResumeCursor::heartbeat);
            let follows = entered.row_changes.as_mut().is_none_or(ChangeSubscription::heartbeat);
            if !(holds && follows) {
                entered.cursor.iter_mut().for_each(ResumeCursor::give_up);
                entered.row_changes.iter_mut().for_each(ChangeSubscription::give_up);
                lost = true;
                let payload = system("resume", "error", resume::NOT_RESUMED, slot.channel.sub_topic());
                self.core.write(None, None, topic, "system", payload.as_bytes());
            }
        }
        if lost {
            // The heartbeat may have been in transit since before the other connection came. The pong to this ping is not.
            let _closed = self.core.outbox.push_control(socket::ping());
        }
        heartbeat == HeartbeatProof::ProvesWithPing
    }
}

impl Core {
    pub(super) fn enter(&mut self, topic: &str, slot: &mut Slot, private: bool, interests: Interests) {
        let Some(name) = Topic::new(slot.channel.sub_topic()) else { return };
        let room = Room { topic: name, private };
        // Two concurrent joins may exceed the limit by one user, which does not justify undoing a join.
        self.counted = self.counted || self.shared.count_user();
        let (hub, tracker) = (&self.shared.hub, &self.shared.tracker);
        let resumes = self.client.is_some() && interests.broadcast && hub.history(&room).is_some();
        // No live broadcast before the replayed ones: the gate is set below.
        let first = Interests { broadcast: interests.broadcast && !resumes, ..interests };
        let subscription = match slot.held.take().and_then(|place| place.lock().take()) {
            Some(replay::HeldReplay { subscription, old }) => {
                slot.old = Some(old);
                subscription.handle().set(first);
                subscription
            }
            None => hub.subscribe(room.clone(), self.version, self.outbox.clone(), first),
        };
        let resumed = resumes.then(|| self.resume_position(slot, &subscription)).flatten();
        let (cursor, replay) = resumed.unzip();
        subscription.handle().set(interests);
        // Started only now: the replay reads the subscriber's interests to decide what it may deliver.
        if let Some(replay) = replay {
            self.shared.scope.spawn("replay", OnExit::Log, |_| async move {
                replay.await;
                Ok(())
            });
        }
        let Some((key, claims)) = slot.channel.who() else { return };
        // The API key of a page has no org; the user's token may have one.
        if claims.org.is_some() {
            self.account.belongs_to(claims.org.as_ref());
        }
        let (id, handle) = (subscription.id(), (subscription.handle(), self.wake.clone()));
        let (observed, woken) = (subscription.handle(), self.wake.clone());
        let observer = self.shared.identity.observe(&room, &claims, observed, woken);
        let registration = self.shared.directory.enter(room.clone(), id, self.conn, (key, claims), handle);
        let member = tracker.member(room, id);
        let row_changes = None;
        slot.entered = Some(Entered {
            agent: None,
            observer,
            named: None,
            registration,
            cursor,
            row_changes,
            member,
            subscription,
        });
        self.joined += 1;
        self.shared.metrics.joins.inc();
        self.shared.metrics.channels.inc();
        self.watch_token(topic, slot);
    }

    /// Starts the row changes of a channel, or changes them.
    pub(super) fn start_changes(&self, slot: &mut Slot) {
        let prepared = slot.prepared.take().and_then(|found| found.lock().take());
        let (Some(prepared), Some(entered), Some(changes)) =
            (prepared, &mut slot.entered, &self.shared.changes)
        else {
            return;
        };
        if let Some(row_changes) = &entered.row_changes {
            return row_changes.renew(prepared);
        }
        let (Some((_, join_ref)), Some(claims)) = (slot.channel.terms(), slot.channel.claims()) else {
            return;
        };
        let room = entered.subscription.room();
        let kept = self.client.as_ref().filter(|_| self.shared.hub.history(room).is_some());
        let client = kept.map(|id| resume::for_row_changes(resume::client(id, self.conn, claims, room)));
        let (outbox, version) = (self.outbox.clone(), self.version);
        let topic = slot.channel.sub_topic().to_owned();
        entered.row_changes =
            Some(changes.follow(prepared, Listener { topic, outbox, version, join_ref, client }));
    }

    /// Resumes a client in a room with a history; `None` if it has no `client_id`.
    fn resume_position(
        &self,
        slot: &Slot,
        subscription: &Subscription,
    ) -> Option<(ResumeCursor, impl Future<Output = ()> + use<>)> {
        let (to_self, join_ref) = slot.channel.terms()?;
        let room = subscription.room().clone();
        let client = resume::client(self.client.as_ref()?, self.conn, slot.channel.claims()?, &room);
        let (handle, outbox, version) = (subscription.handle(), self.outbox.clone(), self.version);
        let history = self.shared.hub.history(&room)?;
        let who = HistoryJoin { room: room.clone(), client, handle, outbox, version, join_ref, to_self };
        Some(history.admit(who))
    }

    /// Writes a reply. The reply to a presence call follows its difference. The reply to a broadcast in a room with a
    /// history waits until the broadcast is kept.
    pub(super) fn reply(
        &mut self,
        topic: &str,
        slot: &Slot,
        join_ref: Option<&Ref>,
        reference: Option<&Ref>,
        payload: &[u8],
    ) {
        self.counters.frames_out.set(self.counters.frames_out.get() + 1);
        let room = slot.entered.as_ref().map(|entered| entered.subscription.room());
        let frame = text::encode(self.version, join_ref, reference, topic, "phx_reply", payload);
        if std::mem::take(&mut self.reply_follows_presence)
            && let Some(entered) = &slot.entered
        {
            return entered.member.reply(self.outbox.clone(), frame);
        }
        if let Some(frame) = self.batch.hold(room, frame) {
            if !self.batch.replies_may_pass() {
                self.flush();
            }
            // A closed outbox means that the connection is ending: the reply has no receiver.
            let _closed = self.outbox.push(&frame);
        }
    }

    /// Backpressure: waits while histories have more queued than they can write, so the socket is read more slowly.
    pub(super) async fn wait_for_history(&mut self) {
        if self.batch.take_kept() {
            self.shared.hub.wait_for_capacity().await;
        }
    }
}
