//! Announces rounds to connected remote agents: `task_request` with the input of the task.
//!
//! Inputs are read from the database in batches, away from the notices of commits, so that a slow read delays no
//! award. An announcement is a hint: one that is dropped comes again with the next round.
use super::{
    connected_agents::ConnectedAgents,
    publisher::{self, CoordinationPublisher},
};
use crate::{
    id::AgentId,
    scope::{OnExit, Scope},
    task::{TaskReader, Update},
};
use chrono::{DateTime, Utc};
use serde_json::json;
use tokio::sync::mpsc;

/// Rounds that wait to be announced; more are dropped and logged.
const ROUNDS_MAX: usize = 4096;
/// Rounds whose inputs are read in one statement.
const BATCH_MAX: usize = 100;

/// A round that remote agents may offer in.
pub(super) struct Round {
    pub(super) task: Update,
    pub(super) round: i32,
    pub(super) bids_close_at: Option<DateTime<Utc>>,
    pub(super) agents: Vec<AgentId>,
}

/// The queue of rounds to announce.
pub(super) struct Announcements(mpsc::Sender<Round>);

impl Announcements {
    /// Queues a round. Never blocks.
    pub(super) fn push(&self, round: Round) {
        if round.agents.is_empty() {
            return;
        }
        let (task, number) = (round.task.id, round.round);
        if self.0.try_send(round).is_err() {
            tracing::warn!(task = %task, round = number, "announcement dropped, queue is full");
        }
    }
}

/// Starts the announcer in `scope`.
pub(super) fn start(
    scope: &Scope,
    tasks: TaskReader,
    publisher: CoordinationPublisher,
    connected: ConnectedAgents,
) -> Announcements {
    let (queue, mut rounds) = mpsc::channel(ROUNDS_MAX);
    scope.spawn("remote announcements", OnExit::StopDaemon, |stop| async move {
        let mut batch: Vec<Round> = Vec::new();
        loop {
            tokio::select! {
                biased;
                () = stop.cancelled() => return Ok(()),
                count = rounds.recv_many(&mut batch, BATCH_MAX) => if count == 0 { return Ok(()) },
            }
            announce_rounds(&tasks, &publisher, &connected, &batch).await;
            batch.clear();
        }
    });
    Announcements(queue)
}

async fn announce_rounds(
    tasks: &TaskReader,
    publisher: &CoordinationPublisher,
    connected: &ConnectedAgents,
    rounds: &[Round],
) {
    let ids: Vec<_> = rounds.iter().map(|round| round.task.id).collect();
    let inputs = match tasks.announcements(&ids).await {
        Ok(inputs) => inputs,
        Err(error) => {
            return tracing::warn!(%error, rounds = ids.len(), "failed to read tasks, rounds not announced");
        }
    };
    for Round { task, round, bids_close_at, agents } in rounds {
        let Some(announcement) = inputs.iter().find(|it| it.id == task.id) else { continue };
        let mut members = serde_json::to_value(announcement).unwrap_or_default();
        if let Some(object) = members.as_object_mut() {
            object.insert("kind".into(), json!(task.kind));
            object.insert("round".into(), json!(round));
            object.insert("bids_close_at".into(), json!(bids_close_at));
        }
        let members = json!({ "task": members });
        let requester = announcement.requester.to_string();
        let requester = announcement.requester.agent().map_or(requester.as_str(), AgentId::as_str);
        for agent in agents {
            // Only to the agent's own channels: any token may subscribe to a public room, but not read inputs.
            let channels = connected.channels(agent);
            let room = publisher::agent_room(agent);
            publisher.send_to(&room, &channels, "task_request", Some(requester), members.clone());
        }
    }
}
