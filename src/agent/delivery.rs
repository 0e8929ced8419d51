//! Delivers the messages of a mailbox to the code of its agent, one after the other ([`super::Agent::message`]). The
//! agent's code may keep a message for its next job.
use super::{
    hosted::{HostedAgent, Shared},
    job::Agent,
    kind,
    mailbox::{AgentMessage, Handled},
};
use crate::scope::OnExit;
use futures_util::FutureExt;
use std::{panic::AssertUnwindSafe, sync::Arc, time::Duration};
use tokio::time::timeout;
use tracing::{debug, warn};

/// Time limit of an agent for one message.
const MESSAGE_TIMEOUT: Duration = Duration::from_secs(30);

impl HostedAgent {
    /// Puts a message into the mailbox and starts its delivery; false if the mailbox is full.
    pub(super) fn deliver(self: &Arc<Self>, shared: &Arc<Shared>, message: AgentMessage) -> bool {
        let mut mail = self.mail.lock();
        if !mail.put(message) {
            shared.metrics.messages_dropped.inc();
            return false;
        }
        shared.metrics.messages.inc();
        if !mail.begin_delivery() {
            let (agent, own) = (self.clone(), shared.clone());
            shared.jobs.spawn("agent messages", OnExit::Log, |_| async move {
                agent.deliver_pending(&own).await;
                Ok(())
            });
        }
        true
    }

    async fn deliver_pending(&self, shared: &Arc<Shared>) {
        let runner = kind::runner(&self.definition(), &shared.parts, &shared.registry).ok().flatten();
        loop {
            let Some((message, bytes)) = self.mail.lock().next() else { return };
            if handle(runner.as_deref(), &message, self.id.as_str()).await == Handled::Keep {
                self.mail.lock().keep(message, bytes);
            }
        }
    }
}

async fn handle(runner: Option<&dyn Agent>, message: &AgentMessage, agent: &str) -> Handled {
    let Some(runner) = runner else { return Handled::Keep };
    let handled = AssertUnwindSafe(runner.message(message)).catch_unwind();
    match timeout(MESSAGE_TIMEOUT, handled).await {
        Ok(Ok(Ok(handled))) => handled,
        Ok(Ok(Err(failure))) => {
            debug!(agent, failure = failure.message, "message refused by the agent");
            Handled::Taken
        }
        Ok(Err(_)) => {
            warn!(agent, "agent panicked in its message handler");
            Handled::Taken
        }
        Err(_) => {
            warn!(agent, limit = ?MESSAGE_TIMEOUT, "agent message handler timed out");
            Handled::Taken
        }
    }
}
