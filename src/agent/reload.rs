//! Another reading of the definitions while the agents work.
//!
//! It is applied as a whole or not at all. A job keeps the definition that it was begun with; a run also keeps it over
//! restarts, as its rows name it. An agent whose definition is gone takes nothing new, finishes what it has, and leaves.
use super::{
    Agents, Definition,
    agent_set::AgentSet,
    command::ActorCommand,
    hosted::{HostedAgent, Shared},
    presence::{Activity, Seen},
    supervisor::{Error, compile},
    unfit_readers,
};
use crate::id::AgentId;
use serde::Serialize;
use std::{collections::HashMap, sync::Arc};

/// What a reload changed. Empty if the definitions are the same as before.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Reloaded {
    /// Agents that were not defined before.
    pub added: Vec<AgentId>,
    /// Agents with another definition than before, or that have become available or unavailable.
    pub changed: Vec<AgentId>,
    /// Agents that are not defined any more.
    pub removed: Vec<AgentId>,
}

impl Reloaded {
    /// Whether nothing changed.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.added.is_empty() && self.changed.is_empty() && self.removed.is_empty()
    }

    fn between(before: &AgentSet, after: &AgentSet) -> Self {
        let mut found = Self::default();
        for (id, definition) in &after.definitions {
            match before.definitions.get(id) {
                None => found.added.push(id.clone()),
                Some(old) => {
                    let is_same = old.hash() == definition.hash()
                        && before.agents.contains_key(id) == after.agents.contains_key(id);
                    found.changed.extend((!is_same).then(|| id.clone()));
                }
            }
        }
        let gone = before.definitions.keys().filter(|id| !after.definitions.contains_key(*id));
        found.removed.extend(gone.cloned());
        found
    }
}

impl Agents {
    /// Works by these definitions from now on. Registering the agents in the negotiation is left to the caller, who
    /// calls this once at a time.
    ///
    /// # Errors
    /// See [`Error`]; nothing has changed then.
    pub async fn reload(&self, definitions: Vec<Definition>) -> Result<Reloaded, Error> {
        let shared = self.shared();
        let env = &shared.parts.env;
        let unfit = match &shared.parts.reader {
            Some(reader) => unfit_readers(&definitions, env, reader).await,
            None => HashMap::new(),
        };
        let compiled = compile(definitions, env)?;
        let before = self.set();
        let after = Arc::new(AgentSet::new(shared, compiled, &unfit, &self.known().lock())?);
        let reloaded = Reloaded::between(&before, &after);
        if reloaded.is_empty() {
            return Ok(reloaded);
        }
        after.log_unavailable();
        for (hosted, definition) in after.redefined() {
            hosted.change(shared, &definition);
        }
        self.known().lock().extend(after.agents.iter().map(|(id, hosted)| (id.clone(), hosted.clone())));
        let removed = before.agents.iter().filter(|(id, _)| !after.agents.contains_key(*id));
        for (_, hosted) in removed.filter(|(_, hosted)| hosted.is_hosted()) {
            hosted.remove(shared);
        }
        let new = after.agents.iter().filter(|(id, _)| !before.agents.contains_key(*id));
        for (_, hosted) in new.filter(|(_, hosted)| hosted.is_hosted()) {
            hosted.show(shared);
        }
        self.replace_set(after);
        Ok(reloaded)
    }
}

impl HostedAgent {
    fn change(&self, shared: &Shared, definition: &Arc<Definition>) {
        let is_hosted = self.is_hosted();
        // Its rooms are those of its org.
        if is_hosted && self.definition().org != definition.org {
            self.leave(shared);
        }
        self.redefine(definition.clone());
        if is_hosted {
            self.show(shared);
        }
    }

    fn remove(&self, shared: &Shared) {
        // Locked until it has left or its actor is told: an actor that goes to sleep meanwhile would show it again.
        let actor = self.actor.lock();
        self.retire();
        match &*actor {
            // A full queue has commands that wake the actor all the same.
            Some(actor) => drop(actor.try_send(ActorCommand::Redefined)),
            None => self.leave(shared),
        }
    }

    /// Shows it by its definition: its actor does, if it has one.
    fn show(&self, shared: &Shared) {
        let actor = self.actor.lock();
        match &*actor {
            Some(actor) => drop(actor.try_send(ActorCommand::Redefined)),
            None => self.present(shared, &Seen::default(), Activity::Asleep),
        }
    }
}
