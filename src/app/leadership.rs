//! Leadership: the leader hosts the agents and runs the arbiter; other nodes stand by.
//!
//! It follows the leader lock of the WAL stream. A leader that lost the lock for a moment (a restart of the database)
//! keeps its agents and their running jobs, unless another node has registered them meanwhile: then they get a new
//! incarnation.
use super::scheduler;
use crate::{
    agent::Agents,
    api::{Health, PartState},
    id::{AgentId, Incarnation},
    scope::Scope,
    task::Tasks,
};
use std::{collections::HashMap, time::Duration};

/// Time limit for the last poll of the arbiter.
const ARBITER_WITHIN: Duration = Duration::from_secs(5);

pub(super) struct Leadership {
    scope: Scope,
    tasks: Tasks,
    agents: Agents,
    health: Health,
    /// The incarnations that this node registered.
    incarnations: Option<HashMap<AgentId, Incarnation>>,
    arbiter: Option<Scope>,
}

impl Leadership {
    pub(super) fn new(scope: &Scope, tasks: Tasks, agents: Agents, health: Health) -> Self {
        Self { scope: scope.clone(), tasks, agents, health, incarnations: None, arbiter: None }
    }

    /// Begins to lead. Does nothing if it leads already.
    ///
    /// # Errors
    /// If the agents cannot be registered; try again.
    pub(super) async fn lead(&mut self) -> Result<(), crate::task::Error> {
        if self.arbiter.is_some() {
            return Ok(());
        }
        let current = match &self.incarnations {
            Some(incarnations) => self.tasks.still_registered(incarnations).await?,
            None => false,
        };
        if !current {
            self.tasks.expect(&self.agents.expected()).await?;
            self.incarnations = Some(self.tasks.register(self.agents.profiles()).await?);
        }
        let arbiter = self.scope.child();
        self.tasks.arbitrate(&arbiter);
        scheduler::start(&arbiter, self.tasks.triggers(), self.agents.cron_schedules());
        self.arbiter = Some(arbiter);
        let count = self.incarnations.as_ref().map_or(0, HashMap::len);
        self.health.set("agents", PartState::Ready, format!("{count} hosted here"));
        Ok(())
    }

    /// Stops to lead.
    pub(super) async fn stand_by(&mut self) {
        if let Some(arbiter) = self.arbiter.take() {
            if let Err(stuck) = arbiter.drain(ARBITER_WITHIN).await {
                tracing::warn!(left = stuck.left, "arbiter did not stop in time");
            }
            self.tasks.stand_by();
        }
        self.health.set("agents", PartState::Degraded, "hosted by the node that leads");
    }
}
