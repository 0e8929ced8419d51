//! The agents of one reading of the definitions: who is hosted, who is left out, and their wakes and schedules.
use super::{
    CompiledAgent, CronSchedule, Definition, Kind, Problem, WakeIndex,
    hosted::{HostedAgent, Shared},
    supervisor::Error,
};
use crate::{id::AgentId, task::Profile};
use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};
use tracing::warn;

/// The agents of one set of definitions. Built whole, and then replaced as a whole.
#[derive(Default)]
pub(super) struct AgentSet {
    pub(super) agents: HashMap<AgentId, Arc<HostedAgent>>,
    pub(super) unavailable: Vec<(AgentId, String)>,
    /// Profiles of the unavailable ones.
    pub(super) left_out: Vec<Profile>,
    pub(super) wakes: Arc<WakeIndex>,
    pub(super) cron_schedules: Arc<Vec<CronSchedule>>,
    /// The definitions of all of them, by id.
    pub(super) definitions: BTreeMap<AgentId, Arc<Definition>>,
}

impl AgentSet {
    /// The set of these definitions. Agents that are known already keep their state and their jobs. Changes nothing:
    /// see [`Self::redefined`].
    ///
    /// # Errors
    /// See [`Error`].
    pub(super) fn new(
        shared: &Shared,
        mut compiled: Vec<CompiledAgent>,
        unfit: &HashMap<AgentId, String>,
        known: &HashMap<AgentId, Arc<HostedAgent>>,
    ) -> Result<Self, Error> {
        let wakes = Arc::new(WakeIndex::new(&compiled, &shared.metrics));
        let schedules = compiled.iter_mut().flat_map(|agent| std::mem::take(&mut agent.schedules));
        let cron_schedules = Arc::new(schedules.collect());
        let mut set = Self { wakes, cron_schedules, ..Self::default() };
        for CompiledAgent { definition, .. } in compiled {
            let id = definition.id.clone();
            if set.definitions.insert(id.clone(), definition.clone()).is_some() {
                return Err(Error::Duplicate(id));
            }
            if definition.run.kind == Kind::Rust {
                let name = definition.run.name.clone().unwrap_or_else(|| id.to_string());
                if shared.registry.get(&name).is_none() {
                    return Err(Error::NotRegistered { agent: id, name });
                }
            }
            let hosted = known.get(&id);
            if hosted.is_some_and(|hosted| hosted.is_hosted() != (definition.run.kind != Kind::Remote)) {
                return Err(Error::Invalid(vec![(id, kind_needs_restart())]));
            }
            let unfit = || unfit.get(&id).cloned();
            if let Some(reason) = definition.unavailable(&shared.parts.env).or_else(unfit) {
                set.left_out.push(definition.profile());
                set.unavailable.push((id, reason));
                continue;
            }
            let hosted = hosted.cloned().unwrap_or_else(|| Arc::new(HostedAgent::new(definition)));
            set.agents.insert(id, hosted);
        }
        Ok(set)
    }

    pub(super) fn log_unavailable(&self) {
        for (agent, reason) in &self.unavailable {
            warn!(%agent, reason, "agent unavailable, left out");
        }
    }

    /// The hosted agents whose definition here is not the one that they work by, or that were retired.
    pub(super) fn redefined(&self) -> Vec<(Arc<HostedAgent>, Arc<Definition>)> {
        let other = |(id, hosted): (&AgentId, &Arc<HostedAgent>)| {
            let definition = self.definitions.get(id)?;
            let same = hosted.definition().hash() == definition.hash() && !hosted.is_retired();
            (!same).then(|| (hosted.clone(), definition.clone()))
        };
        self.agents.iter().filter_map(other).collect()
    }
}

fn kind_needs_restart() -> Problem {
    Problem {
        key: "run.kind".into(),
        message: "a running daemon does not change an agent between remote and another kind".into(),
        remedy: Some("restart the daemon, or give the agent another id".into()),
    }
}
