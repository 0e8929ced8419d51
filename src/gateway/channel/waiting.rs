//! The frames of a channel that wait for a check, with the memory that they take.
use crate::wire::Inbound;
use std::collections::VecDeque;

/// Memory of a waiting frame, beside its payload and names: the frame in the queue, and its allocations.
pub(super) const FRAME_BYTES: usize = 400;

/// A queue with a running total of its memory.
#[derive(Debug, Default)]
pub(super) struct WaitingFrames {
    frames: VecDeque<Inbound>,
    bytes: usize,
}

/// The memory of a waiting frame.
pub(super) fn frame_bytes(frame: &Inbound) -> usize {
    FRAME_BYTES + frame.topic.len() + frame.event.len() + frame.payload.size()
}

impl WaitingFrames {
    pub(super) fn len(&self) -> usize {
        self.frames.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.frames.is_empty()
    }

    /// Memory of all frames.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    pub(super) fn push_back(&mut self, frame: Inbound) {
        self.bytes += frame_bytes(&frame);
        self.frames.push_back(frame);
    }

    /// For a frame that was taken and must wait again.
    pub(super) fn push_front(&mut self, frame: Inbound) {
        self.bytes += frame_bytes(&frame);
        self.frames.push_front(frame);
    }

    pub(super) fn pop_front(&mut self) -> Option<Inbound> {
        let frame = self.frames.pop_front()?;
        self.bytes -= frame_bytes(&frame);
        Some(frame)
    }

    #[cfg(test)]
    pub(super) fn iter(&self) -> impl Iterator<Item = &Inbound> {
        self.frames.iter()
    }
}
