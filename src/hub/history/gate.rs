//! Keeps live messages behind those that are replayed, for one subscriber.
//!
//! While old messages are read, live ones are skipped: they are in the history too, so the replay reads them.
//! During the last part of the replay they are buffered, and delivered in order after it.
use crate::hub::{Message, Outbox, held_buffer::HeldBuffer};
use std::sync::Arc;

/// Live messages buffered at most. On overflow the gate shuts, and the replay reads them from the history.
const HELD_MAX: usize = 1024;

/// What happens to live messages. An open gate allocates nothing.
#[derive(Debug, Default)]
pub(in crate::hub) enum Gate {
    /// They are delivered.
    #[default]
    Open,
    /// They are skipped; the replay reads them later.
    Shut,
    /// They are buffered.
    Holding(HeldBuffer<(u64, Message)>),
}

impl Gate {
    /// A gate that buffers messages for the socket of `outbox`.
    pub(super) fn holding(outbox: &Arc<Outbox>) -> Self {
        Self::Holding(HeldBuffer::new(outbox, HELD_MAX))
    }

    /// True if the gate has taken the messages; false, with an open gate, leaves them to the caller.
    pub(in crate::hub) fn take(&mut self, messages: &[(u64, Message)]) -> bool {
        match self {
            Self::Open => return false,
            Self::Shut => {}
            Self::Holding(held) => {
                let bytes = messages.iter().map(|(_, message)| message.size()).sum();
                if !held.extend(messages, bytes) {
                    *self = Self::Shut;
                }
            }
        }
        true
    }
}
