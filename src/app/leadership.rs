//! Leadership: the leader hosts the agents and runs the arbiter; other nodes stand by.
//!
//! It follows the leader lock of the WAL stream. A leader that lost the lock for a moment (a restart of the database)
//! keeps its agents and their running jobs, unless another node has registered them meanwhile: then they get a new
//! incarnation.
use super::scheduler;
use crate::{
    agent::{Agents, Definition},
    api::{Health, PartState},
    scope::Scope,
    task::{Error, ShownDefinition, Tasks},
};
use std::{sync::Arc, time::Duration};
use tokio::sync::Mutex;

/// Time limit for the last poll of the arbiter.
const ARBITER_WITHIN: Duration = Duration::from_secs(5);
/// Definitions that one statement keeps: as JSON they take four times their room.
const KEPT_AT_ONCE: usize = 500;

pub(super) struct Leadership {
    scope: Scope,
    tasks: Tasks,
    agents: Agents,
    health: Health,
    /// Held while agents are registered: a reload must not fall between the reading of their profiles and the begin of
    /// the lead.
    registration: Registration,
    /// Whether this node has registered its agents.
    registered: bool,
    arbiter: Option<Scope>,
}

/// The right to register the hosted agents.
pub(super) type Registration = Arc<Mutex<()>>;

impl Leadership {
    pub(super) fn new(
        scope: &Scope,
        tasks: Tasks,
        agents: Agents,
        health: Health,
        registration: Registration,
    ) -> Self {
        Self { scope: scope.clone(), tasks, agents, health, registration, registered: false, arbiter: None }
    }

    /// Begins to lead. Does nothing if it leads already.
    ///
    /// # Errors
    /// If the agents cannot be registered; try again.
    pub(super) async fn lead(&mut self) -> Result<(), Error> {
        if self.arbiter.is_some() {
            return Ok(());
        }
        let _registration = self.registration.lock().await;
        let profiles = self.agents.profiles();
        if !self.registered || !self.tasks.still_registered(&profiles).await? {
            register(&self.tasks, &self.agents, false).await?;
            self.registered = true;
        }
        let arbiter = self.scope.child();
        self.tasks.arbitrate(&arbiter);
        scheduler::start(&arbiter, self.tasks.triggers(), self.agents.clone());
        self.arbiter = Some(arbiter);
        self.health.set("agents", PartState::Ready, hosted_here(profiles.len()));
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

/// What `/health` says about the agents of the node that leads.
pub(super) fn hosted_here(count: usize) -> String {
    format!("{count} hosted here")
}

/// Registers the agents, and keeps their definitions. `again`: after a reload, which takes nothing from agents that are
/// registered already. Returns how many are hosted here.
pub(super) async fn register(tasks: &Tasks, agents: &Agents, again: bool) -> Result<usize, Error> {
    let profiles = agents.profiles();
    let count = profiles.len();
    tasks.expect(&agents.expected()).await?;
    if again {
        tasks.register_again(profiles).await?;
    } else {
        tasks.register(profiles).await?;
    }
    let shown = |definition: &Arc<Definition>| ShownDefinition {
        agent: definition.id.clone(),
        hash: definition.hash(),
        body: definition.shown(),
    };
    for definitions in agents.definitions().chunks(KEPT_AT_ONCE) {
        tasks.keep_definitions(&definitions.iter().map(shown).collect::<Vec<_>>()).await?;
    }
    Ok(count)
}
