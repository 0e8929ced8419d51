//! The mailbox of a hosted agent: messages from other agents and people, bounded in number and bytes.
//!
//! Messages that the agent's code keeps for its next job ([`super::Job::messages`]) stay here; when there are too
//! many, the oldest are evicted. Lives in memory: a message is a hint, and what must not be lost is a task.
use chrono::{DateTime, Utc};
use serde::Serialize;
use serde_json::Value;
use std::collections::VecDeque;

/// Messages of one agent, delivered or kept for its next job.
const MESSAGES_MAX: usize = 100;
/// Bytes of all of them, as JSON.
const BYTES_MAX: usize = 256 << 10;

/// A message from another agent, or from a person.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct AgentMessage {
    /// `agent_message` (to this agent) or `agent_broadcast` (to all of its org).
    pub event: &'static str,
    /// The sender, from its token: an agent's id, or the name of another requester.
    pub from: String,
    /// When the daemon received it.
    pub at: DateTime<Utc>,
    /// Any JSON.
    pub payload: Value,
}

/// The result of [`super::Agent::message`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Handled {
    /// The message is processed.
    Taken,
    /// The agent's next job receives the message.
    Keep,
}

/// The messages of one agent.
#[derive(Debug, Default)]
pub(super) struct Mailbox {
    /// Not yet delivered, each with its bytes.
    pending: VecDeque<(AgentMessage, usize)>,
    /// For the next job, each with its bytes.
    kept: VecDeque<(AgentMessage, usize)>,
    bytes: usize,
    delivering: bool,
}

impl Mailbox {
    /// Adds a message; false if there is no room after the kept ones are evicted.
    pub(super) fn put(&mut self, message: AgentMessage) -> bool {
        let bytes = message.payload.to_string().len();
        while self.pending.len() + self.kept.len() >= MESSAGES_MAX || self.bytes + bytes > BYTES_MAX {
            let Some((_, bytes)) = self.kept.pop_front() else { return false };
            self.bytes -= bytes;
        }
        self.bytes += bytes;
        self.pending.push_back((message, bytes));
        true
    }

    /// Sets whether a delivery runs; returns whether one ran before.
    pub(super) fn begin_delivery(&mut self) -> bool {
        std::mem::replace(&mut self.delivering, true)
    }

    /// The next message to deliver, with its bytes. `None` ends the delivery: the next [`Self::begin_delivery`]
    /// starts another one. Both happen under the lock of the mailbox, so no message is left behind.
    pub(super) fn next(&mut self) -> Option<(AgentMessage, usize)> {
        let next = self.pending.pop_front();
        match &next {
            Some((_, bytes)) => self.bytes -= bytes,
            None => self.delivering = false,
        }
        next
    }

    /// Keeps a delivered message for the next job.
    pub(super) fn keep(&mut self, message: AgentMessage, bytes: usize) {
        self.bytes += bytes;
        self.kept.push_back((message, bytes));
    }

    /// Takes the messages for a job.
    pub(super) fn take(&mut self) -> Vec<AgentMessage> {
        let kept = std::mem::take(&mut self.kept);
        self.bytes -= kept.iter().map(|(_, bytes)| bytes).sum::<usize>();
        kept.into_iter().map(|(message, _)| message).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(n: usize, size: usize) -> AgentMessage {
        let payload = serde_json::json!({ "n": n, "text": "x".repeat(size) });
        AgentMessage { event: "agent_message", from: "other".into(), at: DateTime::UNIX_EPOCH, payload }
    }

    #[test]
    fn mailbox_evicts_kept_messages_and_refuses_when_pending_ones_fill_it() {
        let mut mail = Mailbox::default();
        assert!(!mail.put(message(0, BYTES_MAX)), "larger than the mailbox");
        for n in 0..MESSAGES_MAX + 10 {
            assert!(mail.put(message(n, 10)));
            let (message, bytes) = mail.next().unwrap();
            mail.keep(message, bytes);
        }
        let kept = mail.take();
        assert_eq!((kept.len(), &kept[0].payload["n"]), (MESSAGES_MAX, &Value::from(10)));
        assert_eq!(mail.bytes, 0);
        for n in 0..MESSAGES_MAX {
            assert!(mail.put(message(n, 10)));
        }
        assert!(!mail.put(message(0, 10)), "pending messages are not evicted");
    }
}
