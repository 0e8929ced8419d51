//! What one socket said and its room has not heard yet: messages to one room that came together
//! go out together. In a room with a history the replies wait with them, until they are kept.
use crate::{
    hub::{By, Hub, Message, Outbox, Room, SubscriberId},
    wire::Frame,
};
use std::sync::Arc;

#[derive(Default)]
pub(super) struct Said {
    messages: Vec<Message>,
    to: Option<To>,
    /// Something went to a room with a history since this was last asked.
    kept: bool,
}

struct To {
    room: Room,
    except: Option<SubscriberId>,
    client: Option<[u8; 16]>,
    kept: bool,
    then: Vec<Frame>,
}

impl Said {
    /// Whether the next message to `room` goes out with what is here.
    pub(super) fn is_together(&self, room: &Room, except: Option<SubscriberId>) -> bool {
        self.to.as_ref().is_some_and(|to| to.room == *room && to.except == except)
    }

    /// What is added next goes to `room`; what was said before has gone out.
    pub(super) fn begin(
        &mut self,
        hub: &Hub,
        room: Room,
        except: Option<SubscriberId>,
        client: Option<[u8; 16]>,
    ) {
        let kept = hub.history(&room).is_some();
        self.to = Some(To { room, except, client, kept, then: Vec::new() });
    }

    pub(super) fn add(&mut self, message: Message) {
        self.messages.push(message);
    }

    /// Whether a reply may be written before what was said is heard: nobody can tell, unless the sender hears
    /// itself.
    pub(super) fn lets_replies_pass(&self) -> bool {
        self.to.as_ref().is_none_or(|to| to.except.is_some())
    }

    /// Keeps a reply on a channel of `room` until what was said before it in a room with a history is kept;
    /// gives it back when it need not wait.
    pub(super) fn hold(&mut self, room: Option<&Room>, reply: Frame) -> Option<Frame> {
        match self.to.as_mut().filter(|to| to.kept && Some(&to.room) == room) {
            Some(to) => {
                to.then.push(reply);
                None
            }
            None => Some(reply),
        }
    }

    /// Lets it be heard: where, by how many, and who said it.
    pub(super) fn flush(
        &mut self,
        hub: &Hub,
        outbox: &Arc<Outbox>,
    ) -> Option<(Room, usize, Option<SubscriberId>)> {
        let To { room, except, client, kept, then } = self.to.take()?;
        self.kept |= kept;
        let then = then.into_iter().map(|frame| (outbox.clone(), frame)).collect();
        let receivers =
            hub.publish_by(&room, &std::mem::take(&mut self.messages), By { except, client, then });
        Some((room, receivers, except))
    }

    /// Whether something went to a room with a history since this was last asked.
    pub(super) fn take_kept(&mut self) -> bool {
        std::mem::take(&mut self.kept)
    }
}
