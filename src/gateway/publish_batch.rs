//! The unpublished messages of one socket: consecutive messages to one room are published as one batch.
//! In a room with a history their replies wait until the batch is kept.
use crate::{
    hub::{Hub, Message, Origin, Outbox, Room, SubscriberId, memory::Account},
    wire::Frame,
};
use std::sync::Arc;

#[derive(Default)]
pub(super) struct PublishBatch {
    messages: Vec<Message>,
    destination: Option<Destination>,
    /// Whether anything was published to a room with a history since [`PublishBatch::take_kept`].
    kept: bool,
}

struct Destination {
    room: Room,
    except: Option<SubscriberId>,
    client: Option<[u8; 16]>,
    kept: bool,
    replies: Vec<Frame>,
}

impl PublishBatch {
    /// Whether the next message to `room` can join the batch.
    pub(super) fn is_together(&self, room: &Room, except: Option<SubscriberId>) -> bool {
        self.destination
            .as_ref()
            .is_some_and(|destination| destination.room == *room && destination.except == except)
    }

    /// Starts a batch for `room`. The previous one must have been flushed.
    pub(super) fn begin(
        &mut self,
        hub: &Hub,
        room: Room,
        except: Option<SubscriberId>,
        client: Option<[u8; 16]>,
    ) {
        let kept = hub.history(&room).is_some();
        self.destination = Some(Destination { room, except, client, kept, replies: Vec::new() });
    }

    pub(super) fn add(&mut self, message: Message) {
        self.messages.push(message);
    }

    /// Whether a reply may be written before the batch is published. The order is visible only to a sender that
    /// receives its own broadcasts.
    pub(super) fn replies_may_pass(&self) -> bool {
        self.destination.as_ref().is_none_or(|destination| destination.except.is_some())
    }

    /// Holds a reply on a channel of `room` until the batch before it is kept. Returns the reply if it need not wait.
    pub(super) fn hold(&mut self, room: Option<&Room>, reply: Frame) -> Option<Frame> {
        match self
            .destination
            .as_mut()
            .filter(|destination| destination.kept && Some(&destination.room) == room)
        {
            Some(destination) => {
                destination.replies.push(reply);
                None
            }
            None => Some(reply),
        }
    }

    /// Publishes the batch. Returns the room, the number of receivers and the excluded sender.
    pub(super) fn flush(
        &mut self,
        hub: &Hub,
        outbox: &Arc<Outbox>,
        account: &Arc<Account>,
    ) -> Option<(Room, usize, Option<SubscriberId>)> {
        let Destination { room, except, client, kept, replies } = self.destination.take()?;
        self.kept |= kept;
        let acknowledgements = replies.into_iter().map(|frame| (outbox.clone(), frame)).collect();
        let sender = Some(account.clone());
        let receivers = hub.publish_by(
            &room,
            &std::mem::take(&mut self.messages),
            Origin { except, client, acknowledgements, sender },
        );
        Some((room, receivers, except))
    }

    /// Whether anything was published to a room with a history since the last call.
    pub(super) fn take_kept(&mut self) -> bool {
        std::mem::take(&mut self.kept)
    }
}
