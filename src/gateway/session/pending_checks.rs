//! Checks that take time: joins, tokens and rights. Only frames of the same topic wait for a check.
//!
//! A check is a future polled by the socket's own task. A result that is ready at once is used at once. Otherwise
//! it arrives as an [`Answer`], which is dropped if its channel has ended meanwhile. Checks end with the socket.
use super::{Core, PreparedSlot, Session, Slot};
use crate::{
    access::{Asker, Origin},
    auth::Claims,
    changes::SubscribeError as NotSubscribed,
    gateway::{
        channel::{ChannelEvent, Refusal},
        join::{AskedReplay, Join},
        joined::Unknown,
        limits::TooMuch,
        replay,
        shared::{Asking, Shared, Wanted},
    },
    hub::Room,
    id::Topic,
};
use futures_util::{FutureExt, future::BoxFuture, stream::StreamExt};
use tokio::time::{Instant, sleep};

/// A check of a channel that is not finished.
pub(super) type PendingCheck = BoxFuture<'static, CheckResult>;

/// The result of a check.
pub(in crate::gateway) struct CheckResult {
    topic: String,
    /// The id of the check. A result of a superseded check is dropped.
    id: u64,
    event: ChannelEvent,
}

impl Session {
    /// The next finished check; pending if there is none. Cancel safe.
    pub(in crate::gateway) async fn next_check(&mut self) -> CheckResult {
        match self.core.checks.next().await {
            Some(answer) => answer,
            None => std::future::pending().await,
        }
    }

    /// Passes a finished check to its channel.
    pub(in crate::gateway) async fn check_finished(&mut self, answer: CheckResult) {
        let CheckResult { topic, id, event } = answer;
        if matches!(event, ChannelEvent::Checked(_)) {
            self.core.joining = self.core.joining.saturating_sub(1);
        }
        let Some(slot) = self.channels.get_mut(&topic) else { return };
        if let ChannelEvent::Streams(_) = event {
            if slot.readiness != id {
                return;
            }
        } else if slot.check == id {
            slot.check = 0;
        } else {
            return;
        }
        self.run(&topic, event).await;
        self.count_waiting();
    }
}

impl Core {
    /// Checks a join, and reads the stored messages and row changes that it asks for.
    pub(super) fn check_join(&mut self, topic: &str, slot: &mut Slot, join: Join) -> Option<ChannelEvent> {
        let sub_topic = slot.channel.sub_topic();
        let (counted, channels) = (self.counted, self.joined + self.joining);
        let asking = Asking { sub_topic, counted, channels };
        let room = match self.shared.precheck(&join, &asking) {
            Ok(room) => room,
            Err(refusal) => return Some(ChannelEvent::Checked(Err(refusal))),
        };
        let wait = match self.shared.rates.join(&self.used, Instant::now()) {
            Ok(wait) => wait,
            Err(too_much) => return Some(ChannelEvent::Checked(Err(Refusal::too_fast(too_much)))),
        };
        let (shared, apikey, origin) = (self.shared.clone(), self.apikey.clone(), self.origin());
        let wanted = match join.replay {
            AskedReplay::Yes(replay) => {
                Some((replay, slot.held.insert(replay::ReplaySlot::default()).clone()))
            }
            _ => None,
        };
        slot.wanted = Wanted { items: join.changes.clone(), plain: join.plain };
        let (wanted_changes, found) =
            (slot.wanted.clone(), slot.prepared.insert(PreparedSlot::default()).clone());
        let listener = (self.version, self.outbox.clone());
        let answer = self.start_check(topic, slot, async move {
            if !wait.is_zero() {
                sleep(wait).await;
            }
            let mut outcome = shared.check(&join, &room, apikey, origin.clone()).await;
            if let (Ok(admitted), Some((replay, destination))) = (&outcome, wanted) {
                let may_hear = admitted.grant.broadcast_read;
                let asker = Asker { claims: admitted.claims.clone(), origin };
                match replay::read(&shared, &room, (&asker, may_hear), replay, listener).await {
                    Ok(held) => *destination.lock() = Some(held),
                    Err(refusal) => outcome = Err(refusal),
                }
            }
            if let Ok(admitted) = &mut outcome {
                match prepare(&shared, &wanted_changes, &admitted.claims, &found).await {
                    None => {}
                    Some(Ok(())) => admitted.changes = Some(Ok(())),
                    Some(Err(NotSubscribed::Busy { retry_after })) => {
                        outcome = Err(Refusal::too_fast(TooMuch(retry_after)));
                    }
                    Some(Err(away @ NotSubscribed::Away)) => {
                        outcome = Err(Refusal { at_once: true, ..Refusal::new(away.to_string()) });
                    }
                    Some(Err(refused)) => admitted.changes = Some(Err(refused.to_string())),
                }
            }
            ChannelEvent::Checked(outcome)
        });
        self.joining += usize::from(answer.is_none());
        answer
    }

    /// Checks a new token and its rights in the room.
    pub(super) fn check_new_token(
        &mut self,
        topic: &str,
        slot: &mut Slot,
        token: String,
        (private, presence): (bool, bool),
    ) -> Option<ChannelEvent> {
        let room = Topic::new(slot.channel.sub_topic()).map(|topic| Room { topic, private })?;
        let (shared, origin) = (self.shared.clone(), self.origin());
        let (wanted, found) = (slot.wanted.clone(), slot.prepared.insert(PreparedSlot::default()).clone());
        self.start_check(topic, slot, async move {
            let mut outcome = shared.admit(token.into(), &room, presence, origin).await;
            if let Ok(admitted) = &mut outcome {
                let outcome = prepare(&shared, &wanted, &admitted.claims, &found).await;
                admitted.changes = outcome.map(|outcome| outcome.map_err(|refused| refused.to_string()));
            }
            ChannelEvent::Renewed(outcome.map_err(|e| e.system_text(&room.topic)))
        })
    }

    /// Checks the rights of a member beyond reading.
    pub(super) fn check_rights(
        &mut self,
        topic: &str,
        slot: &mut Slot,
        unknown: Unknown,
    ) -> Option<ChannelEvent> {
        let room = slot.entered.as_ref()?.subscription.room().clone();
        let asker = Asker { claims: slot.channel.claims()?.clone(), origin: self.origin() };
        let shared = self.shared.clone();
        self.start_check(topic, slot, async move {
            ChannelEvent::PolicyAnswer(shared.evaluate_rights(&asker, &room, unknown).await)
        })
    }

    /// Waits until the database's broadcasts are streamed.
    pub(super) fn await_replication(&mut self, topic: &str, slot: &mut Slot) {
        self.timer_id += 1;
        let (topic, id, shared) = (topic.to_owned(), self.timer_id, self.shared.clone());
        slot.readiness = id;
        self.checks.push(Box::pin(async move {
            CheckResult { topic, id, event: ChannelEvent::Streams(shared.streams().await) }
        }));
    }

    fn origin(&self) -> Origin {
        Origin { headers: self.headers.clone(), connection: self.conn.0 }
    }

    /// Polls `question` once and returns its event if it is ready. Otherwise queues it; its event comes as an
    /// [`Answer`], and the caller must make frames wait.
    fn start_check(
        &mut self,
        topic: &str,
        slot: &mut Slot,
        check: impl Future<Output = ChannelEvent> + Send + 'static,
    ) -> Option<ChannelEvent> {
        let mut check = Box::pin(check);
        if let Some(event) = check.as_mut().now_or_never() {
            return Some(event);
        }
        self.timer_id += 1;
        let (topic, id) = (topic.to_owned(), self.timer_id);
        slot.check = id;
        self.checks.push(Box::pin(async move { CheckResult { topic, id, event: check.await } }));
        None
    }
}

/// Checks the row changes of a channel and stores the result in `found`. Returns `None` if it asked for none.
async fn prepare(
    shared: &Shared,
    wanted: &Wanted,
    claims: &Claims,
    found: &PreparedSlot,
) -> Option<Result<(), NotSubscribed>> {
    let outcome = shared.prepare(wanted, claims).await?;
    Some(outcome.map(|prepared| *found.lock() = Some(prepared)))
}
