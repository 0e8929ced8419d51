//! The supervisor: the hosted agents, and the actors of those that have work.
use super::{
    CompiledAgent, CronSchedule, Definition, Env, Metrics, Problem, Registry, WakeIndex,
    actor::Actor,
    agent_set::AgentSet,
    assignment_run,
    command::ActorCommand,
    credentials::CredentialIssuer,
    hosted::{HostedAgent, Shared},
    kind::RunnerDeps,
    mailbox::AgentMessage,
    mcp::Servers,
    presence::{Activity, Seen},
    tool::{Keeper, ToolLimits},
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
use parking_lot::{Mutex, RwLock};
use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};
use tokio::{
    sync::{mpsc, watch},
    time::Instant,
};
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
    set: RwLock<Arc<AgentSet>>,
    /// Every agent since the start, also those whose definition was removed: their jobs may still run.
    known: Mutex<HashMap<AgentId, Arc<HostedAgent>>>,
    /// Counts the sets.
    changed: watch::Sender<u64>,
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
        let compiled = compile(definitions, &deps.env)?;
        let servers = Servers::new(scope.child(), deps.env.clone(), deps.models.clone());
        let parts = RunnerDeps {
            env: deps.env,
            models: deps.models,
            clock: deps.clock.clone(),
            reader: deps.reader,
            keeper: deps.keeper,
            schemas: deps.tasks.schemas(),
            tool_limits: ToolLimits::default(),
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
        let set = AgentSet::new(&shared, compiled, &deps.unfit, &HashMap::new())?;
        set.log_unavailable();
        for hosted in set.agents.values().filter(|hosted| hosted.is_hosted()) {
            hosted.present(&shared, &Seen::default(), Activity::Asleep);
        }
        let known = Mutex::new(set.agents.clone());
        let (set, changed) = (RwLock::new(Arc::new(set)), watch::Sender::new(0));
        Ok(Self(Arc::new(AgentRegistry { set, known, changed, shared })))
    }

    /// The present set of agents.
    pub(super) fn set(&self) -> Arc<AgentSet> {
        self.0.set.read().clone()
    }

    pub(super) fn replace_set(&self, set: Arc<AgentSet>) {
        *self.0.set.write() = set;
        self.0.changed.send_modify(|sets| *sets += 1);
    }

    pub(super) fn known(&self) -> &Mutex<HashMap<AgentId, Arc<HostedAgent>>> {
        &self.0.known
    }

    pub(super) fn shared(&self) -> &Arc<Shared> {
        &self.0.shared
    }

    /// Changes with each [`Self::reload`] that was applied.
    #[must_use]
    pub fn changed(&self) -> watch::Receiver<u64> {
        self.0.changed.subscribe()
    }

    /// The profiles of the hosted agents, for `Tasks::register`. Without those of kind `remote`, which are registered
    /// when they connect.
    #[must_use]
    pub fn profiles(&self) -> Vec<Profile> {
        let set = self.set();
        let hosted = set.agents.values().filter(|hosted| hosted.is_hosted());
        hosted.map(|hosted| hosted.definition().profile()).collect()
    }

    /// The profiles of the agents that are defined and not hosted, for `Tasks::expect`: those of kind `remote`, which
    /// connect later, and the unavailable ones.
    #[must_use]
    pub fn expected(&self) -> Vec<Profile> {
        let set = self.set();
        let remote = set.agents.values().filter(|hosted| !hosted.is_hosted());
        remote.map(|hosted| hosted.definition().profile()).chain(set.left_out.iter().cloned()).collect()
    }

    /// The definition of an agent. `None` for one without a definition or an unavailable one.
    #[must_use]
    pub fn definition(&self, agent: &AgentId) -> Option<Arc<Definition>> {
        self.set().agents.get(agent).map(|hosted| hosted.definition())
    }

    /// All definitions, also those of unavailable agents, ordered by id.
    #[must_use]
    pub fn definitions(&self) -> Vec<Arc<Definition>> {
        self.set().definitions.values().cloned().collect()
    }

    /// The unavailable agents, each with the reason.
    #[must_use]
    pub fn unavailable(&self) -> Vec<(AgentId, String)> {
        self.set().unavailable.clone()
    }

    /// Why an agent is unavailable; `None` for any other.
    #[must_use]
    pub fn problem(&self, agent: &AgentId) -> Option<String> {
        self.set().unavailable.iter().find(|(id, _)| id == agent).map(|(_, reason)| reason.clone())
    }

    /// What a hosted agent has spent in the last hour, in microdollars, with what is reserved. `None` for any other.
    #[must_use]
    pub fn spent_last_hour(&self, agent: &AgentId) -> Option<u64> {
        let set = self.set();
        let hosted = set.agents.get(agent).filter(|hosted| hosted.is_hosted())?;
        Some(hosted.spend.lock().last_hour(Instant::now()))
    }

    /// The schedules of all definitions, those of unavailable agents too.
    #[must_use]
    pub fn cron_schedules(&self) -> Arc<Vec<CronSchedule>> {
        self.set().cron_schedules.clone()
    }

    /// The wakes of all definitions, those of unavailable agents too.
    #[must_use]
    pub fn wakes(&self) -> Arc<WakeIndex> {
        self.set().wakes.clone()
    }

    /// Gives an award to its agent, which wakes it. Ignores an award of an agent that is not hosted here.
    pub fn assigned(&self, assigned: Assigned) {
        let shared = &self.0.shared;
        let hosted = self.0.known.lock().get(&assigned.agent_id).cloned();
        if let Some(hosted) = hosted.filter(|hosted| hosted.is_hosted()) {
            if shared.stopping.load(Ordering::Relaxed) {
                return assignment_run::refuse(shared.clone(), assigned, "the daemon is stopping");
            }
            if hosted.is_retired() {
                return assignment_run::refuse(shared.clone(), assigned, "the agent was removed");
            }
            let command = ActorCommand::Assigned { assigned: assigned.clone(), at: Instant::now() };
            if !HostedAgent::put(&hosted, shared, command) {
                assignment_run::refuse(shared.clone(), assigned, "the agent's mailbox is full");
            }
        }
    }

    /// Cancels the job of an assignment, if its agent is awake and runs it.
    pub fn cancel(&self, key: AssignmentKey, agent: &AgentId, reason: &str) {
        let hosted = self.0.known.lock().get(agent).cloned();
        let actor = hosted.and_then(|hosted| hosted.actor.lock().clone());
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
        let set = self.set();
        for hosted in agents.iter().filter_map(|agent| set.agents.get(agent)) {
            hosted.asked(&self.0.shared, task.clone(), round);
        }
    }

    /// Delivers a message to a hosted agent; false if its mailbox is full. A message for an agent that is not hosted
    /// is ignored: a remote agent receives it in its room.
    pub fn deliver(&self, agent: &AgentId, message: AgentMessage) -> bool {
        let set = self.set();
        let hosted = set.agents.get(agent).filter(|hosted| hosted.is_hosted());
        hosted.is_none_or(|hosted| hosted.deliver(&self.0.shared, message))
    }

    /// The org of each agent with a definition that is available, hosted or remote.
    #[must_use]
    pub fn orgs(&self) -> Vec<(AgentId, OrgId)> {
        let set = self.set();
        set.agents.iter().map(|(id, hosted)| (id.clone(), hosted.definition().org.clone())).collect()
    }

    /// The org of an agent's definition, available or not. `None` without one.
    #[must_use]
    pub fn org_of(&self, agent: &AgentId) -> Option<OrgId> {
        self.set().definitions.get(agent).map(|definition| definition.org.clone())
    }

    /// The definitions of the agents of an org that are available, ordered by id.
    #[must_use]
    pub fn definitions_of(&self, org: &OrgId) -> Vec<Arc<Definition>> {
        let set = self.set();
        let mut found: Vec<_> = set.agents.values().map(|hosted| hosted.definition()).collect();
        found.retain(|definition| definition.org == *org);
        found.sort_by(|a, b| a.id.cmp(&b.id));
        found
    }

    /// The hosted agents of an org.
    #[must_use]
    pub fn of_org(&self, org: &OrgId) -> Vec<AgentId> {
        let set = self.set();
        let of = |hosted: &&Arc<HostedAgent>| hosted.is_hosted() && hosted.definition().org == *org;
        set.agents.values().filter(of).map(|hosted| hosted.id.clone()).collect()
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
        let known: Vec<_> = self.0.known.lock().values().cloned().collect();
        for hosted in known.iter().filter(|hosted| hosted.is_hosted()) {
            hosted.leave(shared);
        }
    }
}

/// The definitions, if none has a problem: an embedder's typo must not become an agent that never wakes.
pub(super) fn compile(definitions: Vec<Definition>, env: &Env) -> Result<Vec<CompiledAgent>, Error> {
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
        let room = usize::try_from(self.definition().slots).unwrap_or(0).saturating_mul(2);
        let (sender, mailbox) = mpsc::channel(MAILBOX_MIN.saturating_add(room));
        let put = sender.try_send(command).is_ok();
        let actor = Actor::new(self.clone(), shared.clone(), mailbox, sender.downgrade());
        *slot = Some(sender);
        let span = info_span!("agent", agent = %self.id);
        span.in_scope(|| shared.actors.spawn("agent", OnExit::Log, |stop| actor.run(stop)));
        put
    }
}
