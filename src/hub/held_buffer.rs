//! A bounded buffer of live messages that wait behind a replay, charged to the outbox of their socket.
use super::{Outbox, outbox::BufferedCharge};
use std::sync::Arc;

/// Messages in their order.
#[derive(Debug)]
pub(super) struct HeldBuffer<T> {
    held: Vec<T>,
    max: usize,
    charge: BufferedCharge,
}

impl<T: Clone> HeldBuffer<T> {
    /// An empty buffer for at most `max` messages for the socket of `outbox`.
    pub(super) fn new(outbox: &Arc<Outbox>, max: usize) -> Self {
        Self { held: Vec::new(), max, charge: BufferedCharge::new(outbox.clone()) }
    }

    /// Appends messages of so many bytes together. Returns false, and appends none, if they do not fit.
    #[must_use]
    pub(super) fn extend(&mut self, messages: &[T], bytes: usize) -> bool {
        if self.held.len() + messages.len() > self.max || !self.charge.grow(bytes) {
            return false;
        }
        self.held.extend_from_slice(messages);
        true
    }

    /// The messages so far.
    pub(super) fn messages(&self) -> &[T] {
        &self.held
    }

    /// The messages. Their charge is freed before they enter the outbox, which charges them again.
    pub(super) fn into_messages(self) -> Vec<T> {
        self.held
    }
}
