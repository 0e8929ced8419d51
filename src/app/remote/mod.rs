//! Agents that work from outside, over a websocket (`reference/negotiation.md` §6).
//!
//! Three tasks: [`house`] makes who is here by a socket eligible and lets go of who is
//! not; [`desk`] carries out what agents and requesters say; the crier tells agents
//! that are here which tasks they may offer on. Owns no truth: who is here is the
//! gateway's list, what was negotiated is in the rows. A word that cannot be carried
//! out is answered with `error` on the channel that it came from, to that channel alone.
mod desk;
mod house;
mod words;

use super::voice::{self, Voice};
use crate::{
    agent::{self, Agents},
    gateway::{Attendance, Coordination, Post},
    id::AgentId,
    presence::Tracker,
    scope::{OnExit, Scope},
    task::{Tasks, Update},
};
use chrono::{DateTime, Utc};
use serde_json::{Value, json};
use std::{net::SocketAddr, sync::Arc};
use tokio::sync::mpsc;

/// Announcements that may wait; more are dropped and logged, and come again with the next round.
const ROUNDS_MAX: usize = 4096;
/// Announcements that are read from the database together.
const TOGETHER_MAX: usize = 100;

/// Whether agents may work from outside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Admission {
    Open,
    Listed,
    Off,
}

impl Admission {
    pub(super) fn of(remote: agent::Remote, listen: SocketAddr) -> Self {
        match remote {
            agent::Remote::Auto if listen.ip().is_loopback() => Self::Open,
            agent::Remote::Open => Self::Open,
            agent::Remote::Auto | agent::Remote::Listed => Self::Listed,
            agent::Remote::Off => Self::Off,
        }
    }
}

/// What it works with.
#[derive(Clone)]
pub(super) struct Deps {
    pub(super) tasks: Tasks,
    pub(super) agents: Agents,
    pub(super) tracker: Tracker,
    pub(super) voice: Voice,
    pub(super) attendance: Attendance,
    pub(super) post: Post,
    pub(super) admission: Admission,
}

/// A round that agents outside may offer in.
struct Round {
    task: Update,
    round: i32,
    bids_close_at: Option<DateTime<Utc>>,
    agents: Vec<AgentId>,
}

/// Address of the agents outside. Cloning is cheap.
#[derive(Clone)]
pub(super) struct Remote {
    attendance: Attendance,
    voice: Voice,
    rounds: mpsc::Sender<Round>,
}

impl Remote {
    /// Whether an agent is here by a socket.
    pub(super) fn is_here(&self, agent: &AgentId) -> bool {
        self.attendance.latest(agent).is_some()
    }

    /// Tells an agent outside what became of a task that it asked for, if that is who asked and it is here.
    pub(super) fn copy(
        &self,
        requester: &str,
        kind: &str,
        about: Option<&AgentId>,
        members: impl FnOnce() -> Value,
    ) {
        let Ok(agent) = AgentId::try_from(requester) else { return };
        let channels = self.attendance.channels(&agent);
        if !channels.is_empty() {
            let about = about.map(AgentId::as_str);
            self.voice.tell(&voice::agent_room(&agent), &channels, kind, about, members());
        }
    }

    /// Tells agents that they may offer; never waits.
    pub(super) fn announce(
        &self,
        task: Update,
        round: i32,
        bids_close_at: Option<DateTime<Utc>>,
        agents: Vec<AgentId>,
    ) {
        if agents.is_empty() {
            return;
        }
        let id = task.id;
        if self.rounds.try_send(Round { task, round, bids_close_at, agents }).is_err() {
            tracing::warn!(task = %id, round, "not announced to agents outside: too many rounds wait");
        }
    }
}

/// Starts in `scope`; `said` is what clients say to agents.
pub(super) fn start(scope: &Scope, deps: Deps, said: mpsc::Receiver<Coordination>) -> Remote {
    let (rounds, mut cried) = mpsc::channel(ROUNDS_MAX);
    deps.attendance.know(deps.agents.orgs());
    let remote = Remote { attendance: deps.attendance.clone(), voice: deps.voice.clone(), rounds };
    let house = house::House::new(deps.clone());
    scope.spawn("remote agents", OnExit::StopDaemon, |stop| async move {
        house.serve(stop).await;
        Ok(())
    });
    let desk = Arc::new(desk::Desk::new(deps.clone()));
    scope.spawn("remote commands", OnExit::StopDaemon, |stop| async move {
        desk::serve(desk, said, stop).await;
        Ok(())
    });
    scope.spawn("remote announcements", OnExit::StopDaemon, |stop| async move {
        let mut batch: Vec<Round> = Vec::new();
        loop {
            tokio::select! {
                biased;
                () = stop.cancelled() => return Ok(()),
                count = cried.recv_many(&mut batch, TOGETHER_MAX) => if count == 0 { return Ok(()) },
            }
            cry(&deps, &batch).await;
            batch.clear();
        }
    });
    remote
}

async fn cry(deps: &Deps, rounds: &[Round]) {
    let ids: Vec<_> = rounds.iter().map(|round| round.task.id).collect();
    let known = match deps.tasks.announcements(&ids).await {
        Ok(known) => known,
        Err(error) => {
            return tracing::warn!(%error, rounds = ids.len(), "rounds are not announced to agents outside");
        }
    };
    for Round { task, round, bids_close_at, agents } in rounds {
        let Some(announcement) = known.iter().find(|it| it.id == task.id) else { continue };
        let mut members = serde_json::to_value(announcement).unwrap_or_default();
        if let Some(object) = members.as_object_mut() {
            object.insert("kind".into(), json!(task.kind));
            object.insert("round".into(), json!(round));
            object.insert("bids_close_at".into(), json!(bids_close_at));
        }
        let members = json!({ "task": members });
        for agent in agents {
            // To the agent alone: anybody with a token may listen in its room, but not see inputs.
            let channels = deps.attendance.channels(agent);
            let requester = Some(announcement.requester.as_str());
            deps.voice.tell(&voice::agent_room(agent), &channels, "task_request", requester, members.clone());
        }
    }
}
