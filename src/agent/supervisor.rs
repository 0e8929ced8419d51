//! The supervisor: the hosted agents, and the actors of those that have work.
use super::{
    CompiledAgent, CronSchedule, Definition, Env, Kind, Metrics, Problem, Registry, WakeIndex,
    actor::Actor,
    assignment_run,
    command::ActorCommand,
    credentials::CredentialIssuer,
    hosted::{HostedAgent, Shared},
    kind::RunnerDeps,
    mailbox::AgentMessage,
    mcp::Servers,
    presence::{Activity, Seen},
    tool::Keeper,
};
use crate::{
    clock::Clock,
    db::Reader,
    id::{AgentId, OrgId},
    llm::Models,
    presence::Tracker,
    scope::{OnExit, Scope},
    task::{Assigned, AssignmentKey, Profile, TaskCommands, Update},
    telemetry::Throttle,
};
use parking_lot::Mutex;
use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};
use tokio::{sync::mpsc, time::Instant};
use tokio_util::sync::CancellationToken;
use tracing::{info_span, warn};

/// Capacity of an actor's queue, besides two commands for each of its slots.
const MAILBOX_MIN: usize = 32;
/// Time limit for jobs to stop once they are released.
const RELEASE_WITHIN: Duration = Duration::from_secs(5);

/// What the agents need from the daemon.
#[derive(Clone)]
pub struct Deps {
    /// Accepts awards and takes results.
    pub tasks: TaskCommands,
    /// Shows their presence.
    pub tracker: Tracker,
    /// The wall clock.
    pub clock: Clock,
    /// Their metrics.
    pub metrics: Metrics,
    /// The models of kind `llm`.
    pub models: Models,
    /// The environment of the variables in definitions.
    pub env: Env,
    /// Issues the credentials of their jobs.
    pub credentials: CredentialIssuer,
    /// Reads from the daemon's database under other logins, for `sql:read`.
    pub reader: Option<Reader>,
    /// Starts the programs of tools so that they outlive the daemon. `None`: they end with it.
    pub keeper: Option<Keeper>,
    /// Agents whose role for `sql:read` is unfit, each with the reason (by `unfit_readers`). They are left out.
    pub unfit: HashMap<AgentId, String>,
}

/// Why the agents cannot be hosted. Nothing was started then.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Two definitions with one id.
    #[error("agent {0} is defined twice")]
    Duplicate(AgentId),
    /// Code that is not registered.
    #[error("agent {agent}: no Rust agent is registered as {name:?}")]
    NotRegistered {
        /// The agent.
        agent: AgentId,
        /// The name of the code.
        name: String,
    },
    /// Definitions with problems, each with the key and what is wrong.
    #[error("{}", lines(.0))]
    Invalid(Vec<(AgentId, Problem)>),
}

fn lines(problems: &[(AgentId, Problem)]) -> String {
    let line = |(agent, Problem { key, message, remedy }): &(AgentId, Problem)| {
        let remedy = remedy.as_ref().map(|remedy| format!("; {remedy}")).unwrap_or_default();
        format!("agent {agent}: {key}: {message}{remedy}")
    };
    problems.iter().map(line).collect::<Vec<_>>().join("\n")
}

/// The hosted agents of one daemon. Clones share them. No call waits for an agent.
#[derive(Clone)]
pub struct Agents(Arc<AgentRegistry>);

struct AgentRegistry {
    agents: HashMap<AgentId, Arc<HostedAgent>>,
    unavailable: Vec<(AgentId, String)>,
    /// Profiles of the unavailable ones.
    left_out: Vec<Profile>,
    wakes: Arc<WakeIndex>,
    cron_schedules: Arc<Vec<CronSchedule>>,
    shared: Arc<Shared>,
}

impl Agents {
    /// Hosts these agents until [`Self::drain`]. They show as asleep; nothing runs yet. Those that are
    /// [unavailable](Definition::unavailable) are left out and logged.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn start(
        scope: &Scope,
        deps: Deps,
        definitions: Vec<Definition>,
        registry: Registry,
    ) -> Result<Self, Error> {
        let mut compiled = compile(definitions, &deps.env)?;
        let wakes = Arc::new(WakeIndex::new(&compiled, &deps.metrics));
        let schedules = compiled.iter_mut().flat_map(|agent| std::mem::take(&mut agent.schedules));
        let cron_schedules = Arc::new(schedules.collect());
        let servers = Servers::new(scope.child(), deps.env.clone(), deps.models.clone());
        let parts = RunnerDeps {
            env: deps.env,
            models: deps.models,
            clock: deps.clock.clone(),
            reader: deps.reader,
            keeper: deps.keeper,
            servers,
        };
        let shared = Arc::new(Shared {
            tasks: deps.tasks,
            tracker: deps.tracker,
            clock: deps.clock,
            metrics: deps.metrics,
            failed_lines: Throttle::default(),
            parts,
            credentials: deps.credentials,
            registry,
            actors: scope.child(),
            jobs: scope.child(),
            release_jobs: CancellationToken::new(),
            stopping: AtomicBool::new(false),
        });
        let (mut agents, mut unavailable, mut left_out) = (HashMap::new(), Vec::new(), Vec::new());
        for CompiledAgent { definition, .. } in compiled {
            let id = definition.id.clone();
            if agents.contains_key(&id) {
                return Err(Error::Duplicate(id));
            }
            if definition.run.kind == Kind::Rust {
                let name = definition.run.name.clone().unwrap_or_else(|| id.to_string());
                if shared.registry.get(&name).is_none() {
                    return Err(Error::NotRegistered { agent: id, name });
                }
            }
            let unfit = || deps.unfit.get(&id).cloned();
            if let Some(reason) = definition.unavailable(&shared.parts.env).or_else(unfit) {
                warn!(agent = %id, reason, "agent unavailable, left out");
                left_out.push(definition.profile());
                unavailable.push((id, reason));
                continue;
            }
            let (spend, offer_spend) = (Mutex::default(), Mutex::default());
            let (mail, actor) = (Mutex::default(), Mutex::default());
            agents.insert(id, Arc::new(HostedAgent { definition, spend, offer_spend, mail, actor }));
        }
        for hosted in agents.values().filter(|hosted| hosted.is_hosted()) {
            hosted.present(&shared, &Seen::default(), Activity::Asleep);
        }
        Ok(Self(Arc::new(AgentRegistry { agents, unavailable, left_out, wakes, cron_schedules, shared })))
    }

    /// The profiles of the hosted agents, for `Tasks::register`. Without those of kind `remote`, which are registered
    /// when they connect.
    #[must_use]
    pub fn profiles(&self) -> Vec<Profile> {
        let hosted = self.0.agents.values().filter(|hosted| hosted.is_hosted());
        hosted.map(|hosted| hosted.definition.profile()).collect()
    }

    /// The profiles of the agents that are defined and not hosted, for `Tasks::expect`: those of kind `remote`, which
    /// connect later, and the unavailable ones.
    #[must_use]
    pub fn expected(&self) -> Vec<Profile> {
        let remote = self.0.agents.values().filter(|hosted| !hosted.is_hosted());
        remote.map(|hosted| hosted.definition.profile()).chain(self.0.left_out.iter().cloned()).collect()
    }

    /// The definition of an agent. `None` for one without a definition or an unavailable one.
    #[must_use]
    pub fn definition(&self, agent: &AgentId) -> Option<Arc<Definition>> {
        self.0.agents.get(agent).map(|hosted| hosted.definition.clone())
    }

    /// The unavailable agents, each with the reason.
    #[must_use]
    pub fn unavailable(&self) -> &[(AgentId, String)] {
        &self.0.unavailable
    }

    /// Why an agent is unavailable; `None` for any other.
    #[must_use]
    pub fn problem(&self, agent: &AgentId) -> Option<&str> {
        self.0.unavailable.iter().find(|(id, _)| id == agent).map(|(_, reason)| reason.as_str())
    }

    /// What a hosted agent has spent in the last hour, in microdollars, with what is reserved. `None` for any other.
    #[must_use]
    pub fn spent_last_hour(&self, agent: &AgentId) -> Option<u64> {
        let hosted = self.0.agents.get(agent).filter(|hosted| hosted.is_hosted())?;
        Some(hosted.spend.lock().last_hour(Instant::now()))
    }

    /// The schedules of all definitions, those of unavailable agents too.
    #[must_use]
    pub fn cron_schedules(&self) -> Arc<Vec<CronSchedule>> {
        self.0.cron_schedules.clone()
    }

    /// The wakes of all definitions, those of unavailable agents too.
    #[must_use]
    pub fn wakes(&self) -> Arc<WakeIndex> {
        self.0.wakes.clone()
    }

    /// Gives an award to its agent, which wakes it. Ignores an award of an agent that is not hosted here.
    pub fn assigned(&self, assigned: Assigned) {
        let shared = &self.0.shared;
        if let Some(hosted) = self.0.agents.get(&assigned.agent_id).filter(|hosted| hosted.is_hosted()) {
            if shared.stopping.load(Ordering::Relaxed) {
                return assignment_run::refuse(shared.clone(), assigned, "the daemon is stopping");
            }
            let command = ActorCommand::Assigned { assigned: assigned.clone(), at: Instant::now() };
            if !HostedAgent::put(hosted, shared, command) {
                assignment_run::refuse(shared.clone(), assigned, "the agent's mailbox is full");
            }
        }
    }

    /// Cancels the job of an assignment, if its agent is awake and runs it.
    pub fn cancel(&self, key: AssignmentKey, agent: &AgentId, reason: &str) {
        let actor = self.0.agents.get(agent).and_then(|hosted| hosted.actor.lock().clone());
        if let Some(actor) = actor
            && actor.try_send(ActorCommand::Cancel { key, reason: reason.to_owned() }).is_err()
        {
            warn!(agent = %agent, task = %key.task_id, "agent mailbox full, cancel not delivered; job is aborted after the grace period");
        }
    }

    /// Starts the offer hooks of these agents for a round.
    pub fn announced(&self, task: &Update, round: i32, agents: &[AgentId]) {
        if self.0.shared.stopping.load(Ordering::Relaxed) {
            return;
        }
        for hosted in agents.iter().filter_map(|agent| self.0.agents.get(agent)) {
            hosted.asked(&self.0.shared, task.clone(), round);
        }
    }

    /// Delivers a message to a hosted agent; false if its mailbox is full. A message for an agent that is not hosted
    /// is ignored: a remote agent receives it in its room.
    pub fn deliver(&self, agent: &AgentId, message: AgentMessage) -> bool {
        let hosted = self.0.agents.get(agent).filter(|hosted| hosted.is_hosted());
        hosted.is_none_or(|hosted| hosted.deliver(&self.0.shared, message))
    }

    /// The org of each agent with a definition that is available, hosted or remote.
    pub fn orgs(&self) -> impl Iterator<Item = (AgentId, OrgId)> {
        self.0.agents.iter().map(|(id, hosted)| (id.clone(), hosted.definition.org.clone()))
    }

    /// The definitions of the agents of an org that are available, ordered by id.
    pub fn definitions_of(&self, org: &OrgId) -> impl Iterator<Item = Arc<Definition>> {
        let of = |hosted: &&Arc<HostedAgent>| hosted.definition.org == *org;
        let mut found: Vec<_> =
            self.0.agents.values().filter(of).map(|hosted| hosted.definition.clone()).collect();
        found.sort_by(|a, b| a.id.cmp(&b.id));
        found.into_iter()
    }

    /// The hosted agents of an org.
    pub fn of_org(&self, org: &OrgId) -> impl Iterator<Item = &AgentId> {
        let of = |hosted: &Arc<HostedAgent>| hosted.is_hosted() && hosted.definition.org == *org;
        self.0.agents.iter().filter(move |(_, hosted)| of(hosted)).map(|(id, _)| id)
    }

    /// Stops: awards are refused from now on, jobs have `within` to finish and are then released to other agents, and
    /// presence ends. May be called once.
    pub async fn drain(&self, within: Duration) {
        let shared = &self.0.shared;
        shared.stopping.store(true, Ordering::Relaxed);
        if shared.jobs.drain(within).await.is_err() {
            shared.release_jobs.cancel();
            if let Err(stuck) = shared.jobs.drain(RELEASE_WITHIN).await {
                warn!(left = stuck.left, "jobs did not stop in time; their leases will expire");
            }
        }
        let _ = shared.actors.drain(Duration::from_secs(1)).await;
        shared.parts.servers.drain().await;
        for hosted in self.0.agents.values().filter(|hosted| hosted.is_hosted()) {
            hosted.leave(shared);
        }
    }
}

/// The definitions, if none has a problem: an embedder's typo must not become an agent that never wakes.
fn compile(definitions: Vec<Definition>, env: &Env) -> Result<Vec<CompiledAgent>, Error> {
    let (mut compiled, mut problems) = (Vec::new(), Vec::new());
    for definition in definitions {
        let id = definition.id.clone();
        match definition.compile(env) {
            Ok(agent) => compiled.push(agent),
            Err(found) => problems.extend(found.into_iter().map(|problem| (id.clone(), problem))),
        }
    }
    if problems.is_empty() { Ok(compiled) } else { Err(Error::Invalid(problems)) }
}

impl HostedAgent {
    /// Puts a command into the queue of the actor, which starts if there is none; false if the queue is full.
    fn put(self: &Arc<Self>, shared: &Arc<Shared>, command: ActorCommand) -> bool {
        let mut slot = self.actor.lock();
        if let Some(actor) = &*slot {
            match actor.try_send(command) {
                Ok(()) => return true,
                Err(mpsc::error::TrySendError::Full(_)) => return false,
                // The actor ended without going to sleep: it panicked. Start another one.
                Err(mpsc::error::TrySendError::Closed(returned)) => {
                    return self.awake(shared, &mut slot, returned);
                }
            }
        }
        self.awake(shared, &mut slot, command)
    }

    fn awake(
        self: &Arc<Self>,
        shared: &Arc<Shared>,
        slot: &mut Option<mpsc::Sender<ActorCommand>>,
        command: ActorCommand,
    ) -> bool {
        let room = usize::try_from(self.definition.slots).unwrap_or(0).saturating_mul(2);
        let (sender, mailbox) = mpsc::channel(MAILBOX_MIN.saturating_add(room));
        let put = sender.try_send(command).is_ok();
        let actor = Actor::new(self.clone(), shared.clone(), mailbox, sender.downgrade());
        *slot = Some(sender);
        let span = info_span!("agent", agent = %self.definition.id);
        span.in_scope(|| shared.actors.spawn("agent", OnExit::Log, |stop| actor.run(stop)));
        put
    }
}
