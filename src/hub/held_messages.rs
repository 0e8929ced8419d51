//! Buffers the live messages of one subscriber while a replay is read, then deduplicates live messages that
//! the replay already delivered.
use super::{Message, Outbox, held_buffer::HeldBuffer, rooms::Sink};
use crate::wire::Frame;
use parking_lot::Mutex;
use std::collections::{HashMap, HashSet};

/// Live messages buffered at most; more are lost and reported by [`HeldMessages::release`].
const HELD_MAX: usize = 4096;

/// The state of one subscriber; `None` for almost every subscriber.
#[derive(Debug, Default)]
pub(super) struct HeldMessages(Mutex<State>);

#[derive(Debug, Default)]
enum State {
    #[default]
    None,
    Holding(HeldBuffer<Message>),
    /// The buffer overflowed and is freed. [`HeldMessages::release`] reports the loss.
    Lost,
    /// The replay delivered these ids.
    Skipping(HashSet<String>),
}

impl HeldMessages {
    /// Buffers live messages from now on. Only a socket can have a replay.
    pub(super) fn holding(sink: &Sink) -> Self {
        Self(Mutex::new(match sink {
            Sink::Socket { outbox, .. } => State::Holding(HeldBuffer::new(outbox, HELD_MAX)),
            Sink::Local(_) => State::None,
        }))
    }

    /// True if the messages were buffered or delivered here; false leaves them to the caller. Each message stays
    /// charged to the clients' memory while a clone of it exists.
    pub(super) fn intercept(&self, messages: &[Message], sink: &Sink, topic: &str) -> bool {
        let mut state = self.0.lock();
        match &mut *state {
            State::None => false,
            State::Lost => true,
            State::Holding(held) => {
                if !held.extend(messages, messages.iter().map(Message::size).sum()) {
                    *state = State::Lost;
                }
                true
            }
            State::Skipping(ids) => {
                if !messages.iter().any(|message| is_duplicate(message, ids)) {
                    return false;
                }
                messages
                    .iter()
                    .filter(|message| !is_duplicate(message, ids))
                    .for_each(|m| put(m, sink, topic));
                true
            }
        }
    }

    /// Delivers the replayed messages `first` that are not in the buffer, then the buffer in its order, with the
    /// frame of `first` where it has one. From then on messages with an id of the former are dropped as duplicates.
    /// Returns whether the buffer did not overflow, and whether duplicates are still to be expected.
    pub(super) fn release(
        &self,
        first: Vec<(String, Option<Frame>)>,
        sink: &Sink,
        topic: &str,
    ) -> (bool, bool) {
        let mut state = self.0.lock();
        let (held, lost) = match std::mem::take(&mut *state) {
            State::Holding(held) => (held.into_messages(), false),
            State::Lost => (Vec::new(), true),
            other => {
                *state = other;
                return (true, false);
            }
        };
        let ids: Vec<Option<String>> = held.iter().map(Message::id).collect();
        let held_ids: HashSet<&String> = ids.iter().flatten().collect();
        let (mut replayed, mut delivered) = (HashMap::new(), HashSet::new());
        for (id, frame) in first {
            if held_ids.contains(&id) {
                replayed.insert(id, frame);
            } else {
                put_frame(frame.as_ref(), sink);
                delivered.insert(id);
            }
        }
        for (message, id) in held.iter().zip(&ids) {
            match id.as_ref().and_then(|id| replayed.get(id)) {
                Some(frame) => put_frame(frame.as_ref(), sink),
                None => put(message, sink, topic),
            }
        }
        // Set before the lock is released: a publisher that waits for it delivers after all of these.
        let skips = !delivered.is_empty();
        if skips {
            *state = State::Skipping(delivered);
        }
        (!lost, skips)
    }
}

fn is_duplicate(message: &Message, delivered: &HashSet<String>) -> bool {
    message.id().is_some_and(|id| delivered.contains(&id))
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
    // A closed outbox means that the connection is ending.
    let _closed = outbox.push(frame);
}
