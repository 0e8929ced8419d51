//! Tells what commits did: to the agents that must act, and on the channels to whoever listens.
//!
//! Payloads follow `reference/negotiation.md` §6. A message that nobody hears is not
//! even built. What is told here is a hint: the rows are the truth.
use crate::{
    agent::Agents,
    clock::Clock,
    hub::{Hub, Message, Room},
    id::{AgentId, OrgId, Topic},
    scope::{OnExit, Scope},
    task::{Notice, Update},
};
use serde_json::{Value, json};
use tokio::sync::mpsc;

/// The broadcast event of the negotiation.
const EVENT: &str = "coordination";

struct Herald {
    hub: Hub,
    agents: Agents,
    clock: Clock,
}

pub(super) fn start(
    scope: &Scope,
    mut notices: mpsc::Receiver<Vec<Notice>>,
    hub: Hub,
    agents: Agents,
    clock: Clock,
) {
    let herald = Herald { hub, agents, clock };
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
            Notice::Updated(_) | Notice::Announced { .. } | Notice::Offered { .. } => {}
        }
    }

    fn tell(&self, notice: &Notice) {
        match notice {
            Notice::Updated(task) => {
                self.publish(
                    org_room(&task.org),
                    "task_update",
                    task.agent_id.as_ref(),
                    || json!({ "task": task }),
                );
            }
            Notice::Announced { task, round, bids_close_at, eligible } => {
                for agent in eligible {
                    let task = || {
                        json!({ "task": {
                            "id": task.id, "kind": task.kind, "round": round, "bids_close_at": bids_close_at,
                        } })
                    };
                    self.publish(agent_room(agent), "task_request", Some(agent), task);
                }
            }
            Notice::Offered { task, offers } => self.offered(task, offers),
            Notice::Assigned(assigned) => {
                let members = || {
                    json!({
                        "task_id": assigned.key.task_id, "assignment_id": assigned.key.assignment_id,
                        "epoch": assigned.key.epoch, "confirm_by": assigned.confirm_by,
                    })
                };
                self.publish(
                    agent_room(&assigned.agent_id),
                    "task_assignment",
                    Some(&assigned.agent_id),
                    members,
                );
            }
            Notice::Cancel { agent_id, key, reason } => {
                let members = || json!({ "task_id": key.task_id, "assignment_id": key.assignment_id, "reason": reason });
                self.publish(agent_room(agent_id), "task_cancel", Some(agent_id), members);
            }
        }
    }

    fn offered(&self, task: &Update, offers: &[(AgentId, u64, u64, f32)]) {
        for (agent, cost, eta_ms, confidence) in offers {
            let members = || {
                json!({
                    "task_id": task.id,
                    "offer": { "cost": cost, "eta_ms": eta_ms, "confidence": confidence },
                })
            };
            self.publish(org_room(&task.org), "task_offer", Some(agent), members);
        }
    }

    /// Says it if anyone is there.
    fn publish(&self, room: Room, kind: &str, agent: Option<&AgentId>, members: impl FnOnce() -> Value) {
        if self.hub.watchers(&room) == 0 {
            return;
        }
        let mut payload = members();
        if let Some(object) = payload.as_object_mut() {
            object.insert("type".into(), kind.into());
            object.insert("agent_id".into(), agent.map(AgentId::as_str).into());
            object.insert("timestamp".into(), self.clock.now().to_rfc3339().into());
        }
        self.hub.publish(&room, Message::broadcast(EVENT, &payload), None);
    }
}

fn org_room(org: &OrgId) -> Room {
    Room::public(Topic::org(org))
}

fn agent_room(agent: &AgentId) -> Room {
    Room::public(Topic::agent(agent))
}
