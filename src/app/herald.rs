//! Tells what commits did: to the agents that must act, and on the channels to whoever listens.
//!
//! Payloads follow `reference/negotiation.md` §6. A message that nobody hears is not
//! even built. What is told here is a hint: the rows are the truth.
use super::{
    remote::Remote,
    voice::{self, Voice},
};
use crate::{
    agent::Agents,
    id::AgentId,
    scope::{OnExit, Scope},
    task::{Notice, Update, plain},
};
use serde_json::json;
use tokio::sync::mpsc;

struct Herald {
    voice: Voice,
    agents: Agents,
    remote: Remote,
}

pub(super) fn start(
    scope: &Scope,
    mut notices: mpsc::Receiver<Vec<Notice>>,
    voice: Voice,
    agents: Agents,
    remote: Remote,
) {
    let herald = Herald { voice, agents, remote };
    scope.spawn("herald", OnExit::StopDaemon, |stop| async move {
        loop {
            tokio::select! {
                biased;
                () = stop.cancelled() => return Ok(()),
                heard = notices.recv() => match heard {
                    Some(batch) => {
                        // Who must act comes first: the channels can wait a moment.
                        batch.iter().for_each(|notice| herald.act(notice));
                        batch.iter().for_each(|notice| herald.tell(notice));
                    }
                    None => return Ok(()),
                },
            }
        }
    });
}

impl Herald {
    fn act(&self, notice: &Notice) {
        match notice {
            Notice::Assigned(assigned) => self.agents.assigned(assigned.clone()),
            Notice::Cancel { agent_id, key, reason } => self.agents.cancel(*key, agent_id, reason),
            Notice::Announced { task, round, eligible, .. } => self.agents.announced(task, *round, eligible),
            Notice::Updated(_) | Notice::Offered { .. } | Notice::Nudge { .. } => {}
        }
    }

    fn tell(&self, notice: &Notice) {
        match notice {
            Notice::Updated(task) => {
                let (about, members) = (task.agent_id.as_ref(), || json!({ "task": task }));
                self.voice.say(voice::org_room(&task.org), "task_update", about, members);
                // That it was made, the answer to the request has said.
                if task.epoch.0 > 0 || task.state.is_final() {
                    self.remote.copy(&task.requester, "task_update", about, members);
                }
            }
            Notice::Announced { task, round, bids_close_at, eligible } => {
                let (asked, others): (Vec<_>, Vec<_>) =
                    eligible.iter().cloned().partition(|agent| self.remote.is_here(agent));
                self.remote.announce(task.clone(), *round, *bids_close_at, asked);
                for agent in &others {
                    let task = || {
                        json!({ "task": {
                            "id": task.id, "kind": task.kind, "round": round, "bids_close_at": bids_close_at,
                        } })
                    };
                    self.voice.say(voice::agent_room(agent), "task_request", Some(agent), task);
                }
            }
            Notice::Offered { task, round, offers } => self.offered(task, *round, offers),
            Notice::Assigned(assigned) => {
                let members = || {
                    json!({
                        "task_id": assigned.key.task_id, "assignment_id": assigned.key.assignment_id,
                        "epoch": assigned.key.epoch, "confirm_by": assigned.confirm_by,
                    })
                };
                let agent = &assigned.agent_id;
                self.voice.say(voice::agent_room(agent), "task_assignment", Some(agent), members);
                if assigned.requester != agent.as_str() {
                    self.remote.copy(&assigned.requester, "task_assignment", Some(agent), members);
                }
            }
            Notice::Nudge { agent_id, key } => {
                let members = || {
                    json!({
                        "task_id": key.task_id, "assignment_id": key.assignment_id, "epoch": key.epoch,
                    })
                };
                self.voice.say(voice::agent_room(agent_id), "task_nudge", Some(agent_id), members);
            }
            Notice::Cancel { agent_id, key, reason } => {
                let members = || json!({ "task_id": key.task_id, "assignment_id": key.assignment_id, "reason": reason });
                self.voice.say(voice::agent_room(agent_id), "task_cancel", Some(agent_id), members);
            }
        }
    }

    fn offered(&self, task: &Update, round: i32, offers: &[(AgentId, u64, u64, f32)]) {
        for (agent, cost, eta_ms, confidence) in offers {
            let members = || {
                json!({
                    "task_id": task.id, "round": round,
                    "offer": { "cost": cost, "eta_ms": eta_ms, "confidence": plain(*confidence) },
                })
            };
            self.voice.say(voice::org_room(&task.org), "task_offer", Some(agent), members);
            self.remote.copy(&task.requester, "task_offer", Some(agent), members);
        }
    }
}
