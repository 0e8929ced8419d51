//! Publishes what commits of the negotiation did: to the agents that must act, and on the channels of subscribers.
//!
//! Payloads follow `docs/spec/negotiation.md` §6. A notice is a hint: the rows are the truth.
use super::{
    announcements::{Announcements, Round},
    connected_agents::ConnectedAgents,
    digest::Digests,
    publisher::{self, CoordinationPublisher},
};
use crate::{
    agent::Agents,
    id::{AgentId, Requester},
    task::{Assigned, Notice, OfferSummary, Update, plain},
};
use chrono::{DateTime, Utc};
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

/// Publishes notices.
pub(super) struct NoticePublisher {
    pub(super) publisher: CoordinationPublisher,
    pub(super) agents: Agents,
    pub(super) connected: ConnectedAgents,
    pub(super) announcements: Announcements,
    pub(super) digests: Digests,
}

impl NoticePublisher {
    /// Publishes notices until `stop` is cancelled.
    pub(super) async fn run(&self, mut notices: mpsc::Receiver<Vec<Notice>>, stop: CancellationToken) {
        loop {
            tokio::select! {
                biased;
                () = stop.cancelled() => return,
                received = notices.recv() => match received {
                    Some(batch) => {
                        // Agents before channels: an award costs its agent lease time from the commit on.
                        batch.iter().for_each(|notice| self.notify_hosted(notice));
                        batch.iter().for_each(|notice| self.publish(notice));
                    }
                    None => return,
                },
            }
        }
    }

    fn notify_hosted(&self, notice: &Notice) {
        match notice {
            Notice::Assigned(assigned) => self.agents.assigned(assigned.clone()),
            Notice::Cancel { agent_id, key, reason } => self.agents.cancel(*key, agent_id, reason),
            Notice::Announced { task, round, eligible, .. } => self.agents.announced(task, *round, eligible),
            Notice::Updated(_)
            | Notice::Offered { .. }
            | Notice::Progressed { .. }
            | Notice::Nudge { .. } => {}
        }
    }

    fn publish(&self, notice: &Notice) {
        self.digests.note(notice, |agent| self.connected.org_of(agent));
        match notice {
            // The agent's presence shows its progress.
            Notice::Progressed { .. } => {}
            Notice::Updated(task) => self.updated(task),
            Notice::Announced { task, round, bids_close_at, eligible } => {
                self.announced(task, *round, *bids_close_at, eligible);
            }
            Notice::Offered { task, round, offers } => self.offered(task, *round, offers),
            Notice::Assigned(assigned) => self.assigned(assigned),
            Notice::Nudge { agent_id, key } => {
                let members = || {
                    json!({
                        "task_id": key.task_id, "assignment_id": key.assignment_id, "epoch": key.epoch,
                    })
                };
                self.broadcast_to_agent(agent_id, "task_nudge", members);
            }
            Notice::Cancel { agent_id, key, reason } => {
                let members = || json!({ "task_id": key.task_id, "assignment_id": key.assignment_id, "reason": reason });
                self.broadcast_to_agent(agent_id, "task_cancel", members);
            }
        }
    }

    fn updated(&self, task: &Update) {
        let (about, members) = (task.agent_id.as_ref(), || json!({ "task": task }));
        self.publisher.broadcast(publisher::org_room(&task.org), "task_update", about, members);
        // The reply to the request has already reported the new task.
        if task.epoch.0 > 0 || task.state.is_final() {
            self.send_to_requester(&task.requester, "task_update", about, members);
        }
    }

    fn announced(
        &self,
        task: &Update,
        round: i32,
        bids_close_at: Option<DateTime<Utc>>,
        eligible: &[AgentId],
    ) {
        let is_connected = |agent: &AgentId| self.connected.latest(agent).is_some();
        let (agents, hosted): (Vec<_>, Vec<_>) = eligible.iter().cloned().partition(is_connected);
        self.announcements.push(Round { task: task.clone(), round, bids_close_at, agents });
        for agent in &hosted {
            let members = || {
                json!({ "task": {
                    "id": task.id, "kind": task.kind, "round": round, "bids_close_at": bids_close_at,
                } })
            };
            self.broadcast_to_agent(agent, "task_request", members);
        }
    }

    fn offered(&self, task: &Update, round: i32, offers: &[OfferSummary]) {
        for offer in offers {
            let agent = &offer.agent_id;
            let members = || {
                json!({
                    "task_id": task.id, "round": round,
                    "offer": {
                        "cost": offer.cost_microdollars, "eta_ms": offer.eta_ms,
                        "confidence": plain(offer.confidence),
                    },
                })
            };
            self.publisher.broadcast(publisher::org_room(&task.org), "task_offer", Some(agent), members);
            self.send_to_requester(&task.requester, "task_offer", Some(agent), members);
        }
    }

    fn assigned(&self, assigned: &Assigned) {
        let members = || {
            json!({
                "task_id": assigned.key.task_id, "assignment_id": assigned.key.assignment_id,
                "epoch": assigned.key.epoch, "confirm_by": assigned.confirm_by,
            })
        };
        let agent = &assigned.agent_id;
        self.broadcast_to_agent(agent, "task_assignment", members);
        // An agent that won its own request has this message already.
        if assigned.requester.agent() != Some(agent) {
            self.send_to_requester(&assigned.requester, "task_assignment", Some(agent), members);
        }
    }

    fn broadcast_to_agent(&self, agent: &AgentId, kind: &str, members: impl FnOnce() -> Value) {
        self.publisher.broadcast(publisher::agent_room(agent), kind, Some(agent), members);
    }

    /// Sends to the channels of the requester, if it is a connected agent.
    fn send_to_requester(
        &self,
        requester: &Requester,
        kind: &str,
        about: Option<&AgentId>,
        members: impl FnOnce() -> Value,
    ) {
        let Requester::Agent { org, id: agent } = requester else { return };
        // A token of another org may name an agent of this name: what it requested is not told to this one.
        if self.connected.org_of(agent).is_some_and(|of| of != *org) {
            return;
        }
        let channels = self.connected.channels(agent);
        if !channels.is_empty() {
            let about = about.map(AgentId::as_str);
            self.publisher.send_to(&publisher::agent_room(agent), &channels, kind, about, members());
        }
    }
}
