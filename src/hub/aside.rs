//! What a subscriber gets otherwise than as it comes: held back while old messages are read, and not a
//! second time what was among them.
use super::{Message, Outbox, rooms::Sink};
use crate::wire::Frame;
use parking_lot::Mutex;
use std::collections::HashSet;

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

    /// Puts `first` out, then what was held, but nothing that is named by `said`; from then on messages go
    /// the usual way. False when more came meanwhile than could be held.
    pub(super) fn release(&self, first: &[Frame], said: HashSet<String>, sink: &Sink, topic: &str) -> bool {
        let mut state = self.0.lock();
        let State::Holding { held, lost } = std::mem::take(&mut *state) else { return true };
        if let Sink::Socket { outbox, .. } = sink {
            first.iter().for_each(|frame| push(outbox, frame));
        }
        held.iter().filter(|message| !said_before(message, &said)).for_each(|m| put(m, sink, topic));
        // Under the lock: whoever waits for it comes after all of these.
        if !said.is_empty() {
            *state = State::Skipping(said);
        }
        !lost
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

fn push(outbox: &Outbox, frame: &Frame) {
    // A closed outbox means that the socket is going.
    let _closed = outbox.push(frame);
}
