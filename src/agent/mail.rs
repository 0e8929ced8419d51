//! What other agents and people say to a hosted agent.
//!
//! Each agent has a mailbox that is bounded in messages and bytes. What comes is given to the agent's code at
//! once, one message after the other ([`super::Agent::message`]); code that does not take messages has them
//! kept for its next job ([`super::Job::messages`]), the latest ones when there are too many. Lives in memory:
//! a message is a hint, and what must not be lost is a task.
use super::{
    Agent, kind,
    supervisor::{Desk, Shared},
};
use crate::scope::OnExit;
use chrono::{DateTime, Utc};
use futures_util::FutureExt;
use serde::Serialize;
use serde_json::Value;
use std::{collections::VecDeque, panic::AssertUnwindSafe, sync::Arc, time::Duration};
use tokio::time::timeout;
use tracing::{debug, warn};

/// Messages that wait for an agent, and of them those that are kept for its next job.
const MAIL_MAX: usize = 100;
/// Bytes of all of them, as JSON.
const MAIL_BYTES_MAX: usize = 256 << 10;
/// How long an agent may take over one message.
const MESSAGE_WITHIN: Duration = Duration::from_secs(30);

/// A message from another agent, or from a person.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Message {
    /// `agent_message` (to this agent) or `agent_broadcast` (to all of its org).
    pub event: &'static str,
    /// Who sends it, as its token says: an agent's id, or a person's name.
    pub from: String,
    /// When the daemon got it.
    pub at: DateTime<Utc>,
    /// What it says; any JSON.
    pub payload: Value,
}

/// What an agent did with a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Handled {
    /// It is done with it.
    Taken,
    /// It wants to have it with its next job.
    Keep,
}

/// What waits for one agent.
#[derive(Debug, Default)]
pub(super) struct Mailbox {
    coming: VecDeque<(Message, usize)>,
    kept: VecDeque<(Message, usize)>,
    bytes: usize,
    delivering: bool,
}

impl Mailbox {
    /// False when there is no room.
    fn put(&mut self, message: Message) -> bool {
        let bytes = message.payload.to_string().len();
        while self.coming.len() + self.kept.len() >= MAIL_MAX || self.bytes + bytes > MAIL_BYTES_MAX {
            let Some((_, bytes)) = self.kept.pop_front() else { return false };
            self.bytes -= bytes;
        }
        self.bytes += bytes;
        self.coming.push_back((message, bytes));
        true
    }

    fn next(&mut self) -> Option<(Message, usize)> {
        let next = self.coming.pop_front();
        match &next {
            Some((_, bytes)) => self.bytes -= bytes,
            None => self.delivering = false,
        }
        next
    }

    fn keep(&mut self, message: Message, bytes: usize) {
        self.bytes += bytes;
        self.kept.push_back((message, bytes));
    }

    /// What was kept for a job.
    pub(super) fn take(&mut self) -> Vec<Message> {
        let kept = std::mem::take(&mut self.kept);
        self.bytes -= kept.iter().map(|(_, bytes)| bytes).sum::<usize>();
        kept.into_iter().map(|(message, _)| message).collect()
    }
}

impl Desk {
    /// Gives the agent a message; false when its mailbox is full.
    pub(super) fn tell(self: &Arc<Self>, shared: &Arc<Shared>, message: Message) -> bool {
        let mut mail = self.mail.lock();
        if !mail.put(message) {
            shared.metrics.messages_dropped.inc();
            return false;
        }
        shared.metrics.messages.inc();
        if !std::mem::replace(&mut mail.delivering, true) {
            let (desk, own) = (self.clone(), shared.clone());
            shared.jobs.spawn("agent messages", OnExit::Log, |_| async move {
                desk.deliver(&own).await;
                Ok(())
            });
        }
        true
    }

    async fn deliver(&self, shared: &Arc<Shared>) {
        let runner = kind::runner(&self.definition, &shared.parts, &shared.registry).ok().flatten();
        loop {
            let Some((message, bytes)) = self.mail.lock().next() else { return };
            if handle(runner.as_deref(), &message, self.definition.id.as_str()).await == Handled::Keep {
                self.mail.lock().keep(message, bytes);
            }
        }
    }
}

async fn handle(runner: Option<&dyn Agent>, message: &Message, agent: &str) -> Handled {
    let Some(runner) = runner else { return Handled::Keep };
    let handled = AssertUnwindSafe(runner.message(message)).catch_unwind();
    match timeout(MESSAGE_WITHIN, handled).await {
        Ok(Ok(Ok(handled))) => handled,
        Ok(Ok(Err(failure))) => {
            debug!(agent, failure = failure.message, "message not taken");
            Handled::Taken
        }
        Ok(Err(_)) => {
            warn!(agent, "the agent's code panicked over a message");
            Handled::Taken
        }
        Err(_) => {
            warn!(agent, "the agent took too long over a message");
            Handled::Taken
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(n: usize, size: usize) -> Message {
        let payload = serde_json::json!({ "n": n, "text": "x".repeat(size) });
        Message { event: "agent_message", from: "other".into(), at: DateTime::UNIX_EPOCH, payload }
    }

    #[test]
    fn a_mailbox_keeps_the_latest_and_refuses_what_does_not_fit() {
        let mut mail = Mailbox::default();
        assert!(!mail.put(message(0, MAIL_BYTES_MAX)), "larger than all of it");
        for n in 0..MAIL_MAX + 10 {
            assert!(mail.put(message(n, 10)));
            let (message, bytes) = mail.next().unwrap();
            mail.keep(message, bytes);
        }
        let kept = mail.take();
        assert_eq!((kept.len(), &kept[0].payload["n"]), (MAIL_MAX, &Value::from(10)));
        assert_eq!(mail.bytes, 0);
        for n in 0..MAIL_MAX {
            assert!(mail.put(message(n, 10)));
        }
        assert!(!mail.put(message(0, 10)), "what has not been delivered is not thrown away");
    }
}
