//! How a session enters the room of a channel, and takes the place there that its client had.
use super::{Core, Entered, Session, Slot};
use crate::{
    changes::{Following, Listener},
    gateway::{
        channel::{Hearing, system},
        replay,
        resume::{self, Beat},
    },
    hub::{
        Hears, Room, Subscription,
        history::{Place, Returning},
    },
    id::Topic,
    scope::OnExit,
    wire::{Ref, socket, text},
};
use tokio::time::Instant;

impl Session {
    /// A pong came.
    pub(in crate::gateway) fn ponged(&mut self) {
        self.core.proof.pong(Instant::now());
        for entered in self.channels.values_mut().filter_map(|slot| slot.entered.as_mut()) {
            entered.place.iter_mut().for_each(Place::answered);
            entered.following.iter_mut().for_each(Following::answered);
        }
    }

    /// What a heartbeat proves of a client that can come back; before its reply is written, because the next
    /// one proves what is written by now. Gives whether a ping must follow the reply.
    pub(super) fn proved(&mut self, waits_for_replies: bool) -> bool {
        let beat = self.core.proof.beat(waits_for_replies, Instant::now());
        if beat == Beat::Nothing {
            return false;
        }
        let mut lost = false;
        for (topic, slot) in &mut self.channels {
            let Some(entered) = &mut slot.entered else { continue };
            let holds = entered.place.as_mut().is_none_or(Place::heartbeat);
            let follows = entered.following.as_mut().is_none_or(Following::heartbeat);
            if !(holds && follows) {
                entered.place.iter_mut().for_each(Place::give_up);
                entered.following.iter_mut().for_each(Following::give_up);
                lost = true;
                let payload = system("resume", "error", resume::NOT_RESUMED, slot.channel.sub_topic());
                self.core.write(None, None, topic, "system", payload.as_bytes());
            }
        }
        if lost {
            // The heartbeat may have been on its way since before the other one came; the pong is not.
            let _closed = self.core.outbox.push_control(socket::ping());
        }
        beat == Beat::ProvesWithPing
    }
}

impl Core {
    pub(super) fn enter(&mut self, topic: &str, slot: &mut Slot, private: bool, hears: Hearing) {
        let Some(name) = Topic::new(slot.channel.sub_topic()) else { return };
        let room = Room { topic: name, private };
        // A user more than the limit, when two join at once, is not worth undoing a join.
        self.counted = self.counted || self.shared.count_user();
        let (hub, tracker) = (&self.shared.hub, &self.shared.tracker);
        let place_is_kept = self.client.is_some() && hears.broadcast && hub.history(&room).is_some();
        // Nothing is heard before what was missed.
        let first = Hearing { broadcast: hears.broadcast && !place_is_kept, ..hears };
        let subscription = match slot.held.take().and_then(|place| place.lock().take()) {
            Some(replay::Held { subscription, old }) => {
                slot.old = Some(old);
                subscription.ear().set(to_hears(first));
                subscription
            }
            None => hub.subscribe(room.clone(), self.version, self.outbox.clone(), to_hears(first)),
        };
        let place = place_is_kept.then(|| self.take_place(slot, &subscription)).flatten();
        let (place, replay) = place.unzip();
        subscription.ear().set(to_hears(hears));
        // Only now: what is replayed is for who may hear.
        if let Some(replay) = replay {
            self.shared.scope.spawn("replay", OnExit::Log, |_| async move {
                replay.await;
                Ok(())
            });
        }
        let Some((key, claims)) = slot.channel.who() else { return };
        let (id, ear) = (subscription.id(), (subscription.ear(), self.wake.clone()));
        let listed = self.shared.directory.enter(room.clone(), id, self.conn, (key, claims), ear);
        let member = tracker.member(room, id);
        let following = None;
        slot.entered = Some(Entered { attending: None, listed, place, following, member, subscription });
        self.joined += 1;
        self.shared.metrics.joins.inc();
        self.shared.metrics.channels.inc();
        self.watch_token(topic, slot);
    }

    /// Puts out the row changes of a channel, or otherwise than before.
    pub(super) fn follow(&self, slot: &mut Slot) {
        let prepared = slot.prepared.take().and_then(|found| found.lock().take());
        let (Some(prepared), Some(entered), Some(changes)) =
            (prepared, &mut slot.entered, &self.shared.changes)
        else {
            return;
        };
        if let Some(following) = &entered.following {
            return following.renew(prepared);
        }
        let (Some((_, join_ref)), Some(claims)) = (slot.channel.terms(), slot.channel.claims()) else {
            return;
        };
        let room = entered.subscription.room();
        let kept = self.client.as_ref().filter(|_| self.shared.hub.history(room).is_some());
        let client = kept.map(|id| resume::of_changes(resume::client(id, self.conn, claims, room)));
        let (outbox, version) = (self.outbox.clone(), self.version);
        let topic = slot.channel.sub_topic().to_owned();
        entered.following =
            Some(changes.follow(prepared, Listener { topic, outbox, version, join_ref, client }));
    }

    /// Lets a client that may have been here before go on where it was.
    fn take_place(
        &self,
        slot: &Slot,
        subscription: &Subscription,
    ) -> Option<(Place, impl Future<Output = ()> + use<>)> {
        let (to_self, join_ref) = slot.channel.terms()?;
        let room = subscription.room().clone();
        let client = resume::client(self.client.as_ref()?, self.conn, slot.channel.claims()?, &room);
        let (ear, outbox, version) = (subscription.ear(), self.outbox.clone(), self.version);
        let history = self.shared.hub.history(&room)?;
        let who = Returning { room: room.clone(), client, ear, outbox, version, join_ref, to_self };
        Some(history.admit(who))
    }

    /// Writes a reply; one to what was said in a room with a history waits until that is kept.
    pub(super) fn reply(
        &mut self,
        topic: &str,
        slot: &Slot,
        join_ref: Option<&Ref>,
        reference: Option<&Ref>,
        payload: &[u8],
    ) {
        self.tally.frames_out.set(self.tally.frames_out.get() + 1);
        let room = slot.entered.as_ref().map(|entered| entered.subscription.room());
        let frame = text::encode(self.version, join_ref, reference, topic, "phx_reply", payload);
        if let Some(frame) = self.said.hold(room, frame) {
            if !self.said.lets_replies_pass() {
                self.flush();
            }
            // A closed outbox means that the socket is going; nobody is left to read the reply.
            let _closed = self.outbox.push(&frame);
        }
    }

    /// A publisher that says more than can be kept is read more slowly.
    pub(super) async fn wait_for_room(&mut self) {
        if self.said.take_kept() {
            self.shared.hub.has_room().await;
        }
    }
}

pub(super) fn to_hears(hears: Hearing) -> Hears {
    Hears { broadcast: hears.broadcast, presence: hears.presence }
}
