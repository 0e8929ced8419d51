//! What keeps live messages behind those that are replayed, for one subscriber.
//!
//! While old messages are read, live ones are passed by: they are kept, so they are read as
//! well. For the last stretch they are held, and let out in order after it.
use crate::hub::Message;

/// Messages that are held at most; more, and they are read from the history instead.
const HELD_MAX: usize = 1024;

/// Whether live messages come through; a gate that is open needs no place.
#[derive(Debug, Default)]
pub(in crate::hub) enum Gate {
    /// As they come.
    #[default]
    Open,
    /// Nothing: what is live now is read later.
    Shut,
    /// They wait.
    Holding(Vec<(u64, Message)>),
}

impl Gate {
    /// Whether the messages were taken care of; a gate that is open leaves them to the caller.
    pub(in crate::hub) fn take(&mut self, messages: &[(u64, Message)]) -> bool {
        match self {
            Self::Open => return false,
            Self::Shut => {}
            Self::Holding(held) if held.len() + messages.len() > HELD_MAX => *self = Self::Shut,
            Self::Holding(held) => held.extend_from_slice(messages),
        }
        true
    }
}
