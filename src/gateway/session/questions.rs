//! Questions whose answers take their time: only the frames of their own topic wait.
//!
//! A question is a future of the socket's own task. What is known at once is answered at once; the rest
//! comes as an [`Answer`], unless its channel has ended meanwhile. Questions end with the socket.
use super::{Core, Found, Session, Slot};
use crate::{
    access::Asker,
    auth::Claims,
    changes::Refused as NotSubscribed,
    gateway::{
        channel::{Event, Refusal},
        join::{AskedReplay, Join},
        joined::Unknown,
        replay,
        shared::{Asking, Shared, Wanted},
    },
    hub::Room,
    id::Topic,
};
use futures_util::{FutureExt, future::BoxFuture, stream::StreamExt};
use tokio::time::{Instant, sleep};

/// Something asked about a channel that must be waited for.
pub(super) type Question = BoxFuture<'static, Answer>;

/// What a question came to.
pub(in crate::gateway) struct Answer {
    topic: String,
    /// Which question of the channel: what came too late is not heard.
    id: u64,
    event: Event,
}

impl Session {
    /// The next answer to something that was asked for a channel; never, while nothing is. Cancel safe.
    pub(in crate::gateway) async fn next_answer(&mut self) -> Answer {
        match self.core.questions.next().await {
            Some(answer) => answer,
            None => std::future::pending().await,
        }
    }

    /// Goes on with what waited for `answer`.
    pub(in crate::gateway) async fn answered(&mut self, answer: Answer) {
        let Answer { topic, id, event } = answer;
        if matches!(event, Event::Checked(_)) {
            self.core.joining = self.core.joining.saturating_sub(1);
        }
        let Some(slot) = self.channels.get_mut(&topic) else { return };
        if let Event::Streams(_) = event {
            if slot.readiness != id {
                return;
            }
        } else if slot.question == id {
            slot.question = 0;
        } else {
            return;
        }
        self.run(&topic, event).await;
    }
}

impl Core {
    /// May it be joined? Reads what is to be replayed, too.
    pub(super) fn ask_join(&mut self, topic: &str, slot: &mut Slot, join: Join) -> Option<Event> {
        let sub_topic = slot.channel.sub_topic();
        let (counted, channels) = (self.counted, self.joined + self.joining);
        let asking = Asking { sub_topic, counted, channels };
        let room = match self.shared.precheck(&join, &asking) {
            Ok(room) => room,
            Err(refusal) => return Some(Event::Checked(Err(refusal))),
        };
        let wait = match self.shared.rates.join(&self.used, Instant::now()) {
            Ok(wait) => wait,
            Err(too_much) => return Some(Event::Checked(Err(Refusal::too_fast(too_much)))),
        };
        let (shared, apikey, headers) = (self.shared.clone(), self.apikey.clone(), self.headers.clone());
        let wanted = match join.replay {
            AskedReplay::Yes(replay) => Some((replay, slot.held.insert(replay::Place::default()).clone())),
            _ => None,
        };
        slot.wanted = Wanted { items: join.changes.clone(), plain: join.plain };
        let (wanted_changes, found) = (slot.wanted.clone(), slot.prepared.insert(Found::default()).clone());
        let listener = (self.version, self.outbox.clone());
        let answer = self.ask(topic, slot, async move {
            if !wait.is_zero() {
                sleep(wait).await;
            }
            let mut outcome = shared.check(&join, &room, apikey, headers).await;
            if let (Ok(admitted), Some((replay, place))) = (&outcome, wanted) {
                let may_hear = admitted.grant.broadcast_read;
                match replay::read(&shared, &room, may_hear, replay, listener).await {
                    Ok(held) => *place.lock() = Some(held),
                    Err(refusal) => outcome = Err(refusal),
                }
            }
            if let Ok(admitted) = &mut outcome {
                match prepare(&shared, &wanted_changes, &admitted.claims, &found).await {
                    None => {}
                    Some(Ok(())) => admitted.changes = Some(Ok(())),
                    Some(Err(away @ NotSubscribed::Away)) => {
                        outcome = Err(Refusal { at_once: true, ..Refusal::new(away.to_string()) });
                    }
                    Some(Err(refused)) => admitted.changes = Some(Err(refused.to_string())),
                }
            }
            Event::Checked(outcome)
        });
        self.joining += usize::from(answer.is_none());
        answer
    }

    /// Is this token good for this room, and what may it do there?
    pub(super) fn ask_token(
        &mut self,
        topic: &str,
        slot: &mut Slot,
        token: String,
        (private, presence): (bool, bool),
    ) -> Option<Event> {
        let room = Topic::new(slot.channel.sub_topic()).map(|topic| Room { topic, private })?;
        let (shared, headers) = (self.shared.clone(), self.headers.clone());
        let (wanted, found) = (slot.wanted.clone(), slot.prepared.insert(Found::default()).clone());
        self.ask(topic, slot, async move {
            let mut outcome = shared.admit(token.into(), &room, presence, headers).await;
            if let Ok(admitted) = &mut outcome {
                let outcome = prepare(&shared, &wanted, &admitted.claims, &found).await;
                admitted.changes = outcome.map(|outcome| outcome.map_err(|refused| refused.to_string()));
            }
            Event::Renewed(outcome.map_err(|e| e.system_text(&room.topic)))
        })
    }

    /// What may a member do beyond hearing?
    pub(super) fn ask_rights(&mut self, topic: &str, slot: &mut Slot, unknown: Unknown) -> Option<Event> {
        let room = slot.entered.as_ref()?.subscription.room().clone();
        let asker = Asker { claims: slot.channel.claims()?.clone(), headers: self.headers.clone() };
        let shared = self.shared.clone();
        self.ask(topic, slot, async move { Event::Told(shared.tell(&asker, &room, unknown).await) })
    }

    /// Do messages of the database come?
    pub(super) fn ask_replication(&mut self, topic: &str, slot: &mut Slot) {
        self.timer_id += 1;
        let (topic, id, shared) = (topic.to_owned(), self.timer_id, self.shared.clone());
        slot.readiness = id;
        self.questions.push(Box::pin(async move {
            Answer { topic, id, event: Event::Streams(shared.streams().await) }
        }));
    }

    /// What `question` comes to, if that is known at once; else it comes as an [`Answer`], and whoever asked
    /// must be ready to wait.
    fn ask(
        &mut self,
        topic: &str,
        slot: &mut Slot,
        question: impl Future<Output = Event> + Send + 'static,
    ) -> Option<Event> {
        let mut question = Box::pin(question);
        if let Some(event) = question.as_mut().now_or_never() {
            return Some(event);
        }
        self.timer_id += 1;
        let (topic, id) = (topic.to_owned(), self.timer_id);
        slot.question = id;
        self.questions.push(Box::pin(async move { Answer { topic, id, event: question.await } }));
        None
    }
}

/// Checks the row changes that a channel wants, and leaves in `found` what is found; nothing when it wants none.
async fn prepare(
    shared: &Shared,
    wanted: &Wanted,
    claims: &Claims,
    found: &Found,
) -> Option<Result<(), NotSubscribed>> {
    let outcome = shared.prepare(wanted, claims).await?;
    Some(outcome.map(|prepared| *found.lock() = Some(prepared)))
}
