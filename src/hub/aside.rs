//! What a subscriber gets otherwise than as it comes: held back while old messages are read, and not a
//! second time what was among them.
use super::{Message, Outbox, rooms::Sink};
use crate::wire::Frame;
use parking_lot::Mutex;
use std::collections::{HashMap, HashSet};

/// Messages that are held at most.
const HELD_MAX: usize = 4096;

/// The state of one subscriber; nothing for nearly all of them.
#[derive(Debug, Default)]
pub(super) struct Aside(Mutex<State>);

#[derive(Debug, Default)]
enum State {
    #[default]
    None,
    Holding {
        held: Vec<Message>,
        /// More came than could be held.
        lost: bool,
    },
    /// These ids were said before.
    Skipping(HashSet<String>),
}

impl Aside {
    pub(super) fn holding() -> Self {
        Self(Mutex::new(State::Holding { held: Vec::new(), lost: false }))
    }

    /// Whether the messages were taken care of; else they go the usual way.
    pub(super) fn take(&self, messages: &[Message], sink: &Sink, topic: &str) -> bool {
        match &mut *self.0.lock() {
            State::None => false,
            State::Holding { held, lost } => {
                *lost |= held.len() + messages.len() > HELD_MAX;
                if !*lost {
                    held.extend_from_slice(messages);
                }
                true
            }
            State::Skipping(ids) => {
                if !messages.iter().any(|message| said_before(message, ids)) {
                    return false;
                }
                messages
                    .iter()
                    .filter(|message| !said_before(message, ids))
                    .for_each(|m| put(m, sink, topic));
                true
            }
        }
    }

    /// Puts those of `first` out that were not held, then what was held, in its order, as `first` has it if that has
    /// it; from then on messages go the usual way, but for those of `first`, which come once. Gives whether all that
    /// came meanwhile could be held, and whether something is to be left out later.
    pub(super) fn release(
        &self,
        first: Vec<(String, Option<Frame>)>,
        sink: &Sink,
        topic: &str,
    ) -> (bool, bool) {
        let mut state = self.0.lock();
        let State::Holding { held, lost } = std::mem::take(&mut *state) else { return (true, false) };
        let ids: Vec<Option<String>> = held.iter().map(Message::id).collect();
        let there: HashSet<&String> = ids.iter().flatten().collect();
        let (mut among, mut said) = (HashMap::new(), HashSet::new());
        for (id, frame) in first {
            if there.contains(&id) {
                among.insert(id, frame);
            } else {
                put_frame(frame.as_ref(), sink);
                said.insert(id);
            }
        }
        for (message, id) in held.iter().zip(&ids) {
            match id.as_ref().and_then(|id| among.get(id)) {
                Some(frame) => put_frame(frame.as_ref(), sink),
                None => put(message, sink, topic),
            }
        }
        // Under the lock: whoever waits for it comes after all of these.
        let skips = !said.is_empty();
        if skips {
            *state = State::Skipping(said);
        }
        (!lost, skips)
    }
}

fn said_before(message: &Message, said: &HashSet<String>) -> bool {
    message.id().is_some_and(|id| said.contains(&id))
}

fn put(message: &Message, sink: &Sink, topic: &str) {
    if let Sink::Socket { version, outbox } = sink
        && let Some(frame) = message.encode(*version, topic)
    {
        push(outbox, &frame);
    }
}

fn put_frame(frame: Option<&Frame>, sink: &Sink) {
    if let (Sink::Socket { outbox, .. }, Some(frame)) = (sink, frame) {
        push(outbox, frame);
    }
}

fn push(outbox: &Outbox, frame: &Frame) {
    // A closed outbox means that the socket is going.
    let _closed = outbox.push(frame);
}
