//! The node that leads hosts the agents and arbitrates; the others stand by.
//!
//! Leading follows the log's leader lock. A leader that was away for a moment (the
//! database restarted, say) goes on with its agents as they are, so that no running
//! job is lost; when another node hosted them meanwhile, they begin a new life.
use super::clockwork;
use crate::{
    agent::Agents,
    api::{Health, PartState},
    id::{AgentId, Incarnation},
    scope::Scope,
    task::Tasks,
};
use std::{collections::HashMap, time::Duration};

/// How long the arbiter may take over its last look.
const ARBITER_WITHIN: Duration = Duration::from_secs(5);

pub(super) struct Host {
    scope: Scope,
    tasks: Tasks,
    agents: Agents,
    health: Health,
    /// What this node registered.
    lives: Option<HashMap<AgentId, Incarnation>>,
    arbiter: Option<Scope>,
}

impl Host {
    pub(super) fn new(scope: &Scope, tasks: Tasks, agents: Agents, health: Health) -> Self {
        Self { scope: scope.clone(), tasks, agents, health, lives: None, arbiter: None }
    }

    /// This node leads now.
    pub(super) async fn lead(&mut self) -> Result<(), crate::task::Error> {
        if self.arbiter.is_some() {
            return Ok(());
        }
        let current = match &self.lives {
            Some(lives) => self.tasks.still_registered(lives).await?,
            None => false,
        };
        if !current {
            self.lives = Some(self.tasks.register(self.agents.profiles()).await?);
        }
        let arbiter = self.scope.child();
        self.tasks.arbitrate(&arbiter);
        clockwork::start(&arbiter, self.tasks.clone(), self.agents.clockworks());
        self.arbiter = Some(arbiter);
        let count = self.lives.as_ref().map_or(0, HashMap::len);
        self.health.set("agents", PartState::Ready, format!("{count} hosted here"));
        Ok(())
    }

    /// This node does not lead now.
    pub(super) async fn stand_by(&mut self) {
        if let Some(arbiter) = self.arbiter.take() {
            if let Err(stuck) = arbiter.drain(ARBITER_WITHIN).await {
                tracing::warn!(left = stuck.left, "the arbiter did not stop in time");
            }
            self.tasks.stand_by();
        }
        self.health.set("agents", PartState::Degraded, "hosted by the node that leads");
    }
}
