//! Large messages of a socket, and the threads of low priority that handle them.
use super::Session;
use crate::{gateway::connection::LARGE_MESSAGE_BYTES, scope::Background};
use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

impl Session {
    /// Whether the socket is read, and its messages are handled, on threads of low priority.
    pub(in crate::gateway) fn is_large(&self) -> Arc<AtomicBool> {
        self.core.is_large.clone()
    }

    /// Sets it, with the bytes that the incomplete message will have.
    pub(in crate::gateway) fn set_large(&self, expected: usize) {
        // Messages that wait for a policy are handled with its answer.
        let is_large = expected + self.core.waiting.bytes() > LARGE_MESSAGE_BYTES;
        self.core.is_large.store(is_large, Ordering::Release);
    }

    /// As [`Session::set_large`], but never clears it. Returns whether this call has set it.
    pub(in crate::gateway) fn becomes_large(&self, expected: usize) -> bool {
        expected > LARGE_MESSAGE_BYTES && !self.core.is_large.swap(true, Ordering::AcqRel)
    }

    /// Counts a large message that is handled where it should be.
    pub(in crate::gateway) fn count_large(&self) {
        if Background::is_here() {
            self.core.shared.metrics.large_messages.inc();
        }
    }
}
