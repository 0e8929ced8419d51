//! The hosted agents: who they are, and the actors of those that have something to do.
use super::{
    Clockwork, Definition, Env, Kind, Metrics, Registry, WakeIndex,
    actor::{Actor, Command},
    kind::Parts,
    mail::{Mailbox, Message},
    pass::Passes,
    presence::{Activity, Seen},
    schedule::clockworks,
    spend::Spend,
    work,
};
use crate::{
    clock::Clock,
    id::{AgentId, OrgId},
    llm::Models,
    presence::Tracker,
    scope::{OnExit, Scope},
    task::{Assigned, AssignmentKey, Profile, Tasks, Update},
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

/// Commands that wait for an actor at most, besides two for each of its slots.
const MAILBOX_MIN: usize = 32;
/// How long jobs that are told to let go may take over it.
const RELEASE_WITHIN: Duration = Duration::from_secs(5);

/// What the agents need from the daemon.
#[derive(Clone)]
pub struct Deps {
    /// Where awards are accepted and results handed in.
    pub tasks: Tasks,
    /// Where they are present.
    pub tracker: Tracker,
    /// The wall clock.
    pub clock: Clock,
    /// What they count.
    pub metrics: Metrics,
    /// The models they ask.
    pub models: Models,
    /// Where names of variables in their files are looked up.
    pub env: Env,
    /// What lets their jobs act as them.
    pub passes: Passes,
}

/// Why the agents cannot be hosted. Nothing was started.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Two definitions with one id.
    #[error("agent {0} is defined twice")]
    Duplicate(AgentId),
    /// Code that nobody registered.
    #[error("agent {agent}: no Rust agent is registered as {name:?}")]
    NotRegistered {
        /// Whose code.
        agent: AgentId,
        /// Its name.
        name: String,
    },
}

/// The hosted agents of one daemon. Clones are the same agents; no call waits for an agent.
#[derive(Clone)]
pub struct Agents(Arc<House>);

struct House {
    desks: HashMap<AgentId, Arc<Desk>>,
    unavailable: Vec<(AgentId, String)>,
    wakes: Arc<WakeIndex>,
    clockworks: Arc<Vec<Clockwork>>,
    shared: Arc<Shared>,
}

/// What all actors share.
pub(super) struct Shared {
    pub(super) tasks: Tasks,
    pub(super) tracker: Tracker,
    pub(super) clock: Clock,
    pub(super) metrics: Metrics,
    pub(super) parts: Parts,
    pub(super) passes: Passes,
    pub(super) registry: Registry,
    /// Of the actors.
    actors: Scope,
    /// Of the jobs: they go on when it stops, and end with [`Self::let_go`].
    pub(super) jobs: Scope,
    pub(super) let_go: CancellationToken,
    pub(super) stopping: AtomicBool,
}

/// One agent's place: all there is of it while it sleeps.
pub(super) struct Desk {
    pub(super) definition: Arc<Definition>,
    pub(super) spend: Mutex<Spend>,
    /// What its hook for offers has cost; counts to `spend` too.
    pub(super) thoughts: Mutex<Spend>,
    pub(super) mail: Mutex<Mailbox>,
    /// Whoever puts a command in holds the lock, and so does an actor that goes to sleep.
    pub(super) actor: Mutex<Option<mpsc::Sender<Command>>>,
}

impl Agents {
    /// Hosts these agents until [`Self::drain`]. They show as asleep; nothing runs yet. Those that
    /// [cannot work here](Definition::unavailable) are left out and logged.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn start(
        scope: &Scope,
        deps: Deps,
        definitions: Vec<Definition>,
        registry: Registry,
    ) -> Result<Self, Error> {
        let wakes = Arc::new(WakeIndex::new(&definitions, &deps.metrics));
        let clockworks = Arc::new(clockworks(&definitions));
        let parts = Parts { env: deps.env, models: deps.models, clock: deps.clock.clone() };
        let shared = Arc::new(Shared {
            tasks: deps.tasks,
            tracker: deps.tracker,
            clock: deps.clock,
            metrics: deps.metrics,
            parts,
            passes: deps.passes,
            registry,
            actors: scope.child(),
            jobs: scope.child(),
            let_go: CancellationToken::new(),
            stopping: AtomicBool::new(false),
        });
        let (mut desks, mut unavailable) = (HashMap::new(), Vec::new());
        for definition in definitions {
            let id = definition.id.clone();
            if desks.contains_key(&id) {
                return Err(Error::Duplicate(id));
            }
            if definition.run.kind == Kind::Rust {
                let name = definition.run.name.clone().unwrap_or_else(|| id.to_string());
                if shared.registry.get(&name).is_none() {
                    return Err(Error::NotRegistered { agent: id, name });
                }
            }
            if let Some(reason) = definition.unavailable(&shared.parts.env) {
                warn!(agent = %id, reason, "agent left out: it cannot work here");
                unavailable.push((id, reason));
                continue;
            }
            let definition = Arc::new(definition);
            let (spend, thoughts) = (Mutex::default(), Mutex::default());
            let (mail, actor) = (Mutex::default(), Mutex::default());
            desks.insert(id, Arc::new(Desk { definition, spend, thoughts, mail, actor }));
        }
        for desk in desks.values().filter(|desk| desk.is_hosted()) {
            desk.present(&shared, &Seen::default(), Activity::Asleep);
        }
        Ok(Self(Arc::new(House { desks, unavailable, wakes, clockworks, shared })))
    }

    /// What the hosted agents are to the negotiation, for `Tasks::register`. Those of kind `remote` are not
    /// among them: they are there when somebody has joined as them.
    #[must_use]
    pub fn profiles(&self) -> Vec<Profile> {
        let hosted = self.0.desks.values().filter(|desk| desk.is_hosted());
        hosted.map(|desk| desk.definition.profile()).collect()
    }

    /// What an agent's file says; nothing for one without a file, or left out.
    #[must_use]
    pub fn definition(&self, agent: &AgentId) -> Option<Arc<Definition>> {
        self.0.desks.get(agent).map(|desk| desk.definition.clone())
    }

    /// The agents that were left out, each with the reason.
    #[must_use]
    pub fn unavailable(&self) -> &[(AgentId, String)] {
        &self.0.unavailable
    }

    /// The schedules of all definitions, those of agents that were left out too.
    #[must_use]
    pub fn clockworks(&self) -> Arc<Vec<Clockwork>> {
        self.0.clockworks.clone()
    }

    /// The wakes of all definitions, those of agents that were left out too.
    #[must_use]
    pub fn wakes(&self) -> Arc<WakeIndex> {
        self.0.wakes.clone()
    }

    /// An agent won: wakes it. An award for nobody here is for a remote agent or another node.
    pub fn assigned(&self, assigned: Assigned) {
        let shared = &self.0.shared;
        if let Some(desk) = self.0.desks.get(&assigned.agent_id).filter(|desk| desk.is_hosted()) {
            if shared.stopping.load(Ordering::Relaxed) {
                return work::refuse(shared.clone(), assigned, "the daemon is stopping");
            }
            let command = Command::Assigned { assigned: assigned.clone(), at: Instant::now() };
            if !Desk::put(desk, shared, command) {
                work::refuse(shared.clone(), assigned, "the agent's mailbox is full");
            }
        }
    }

    /// An assignee must stop: tells the agent, if it is awake and works on that.
    pub fn cancel(&self, key: AssignmentKey, agent: &AgentId, reason: &str) {
        let actor = self.0.desks.get(agent).and_then(|desk| desk.actor.lock().clone());
        if let Some(actor) = actor
            && actor.try_send(Command::Cancel { key, reason: reason.to_owned() }).is_err()
        {
            warn!(agent = %agent, task = %key.task_id, "cancel not told: the mailbox is full; the grace will end it");
        }
    }

    /// A round began: those of these agents whose offers are made by a hook think about it.
    pub fn announced(&self, task: &Update, round: i32, agents: &[AgentId]) {
        if self.0.shared.stopping.load(Ordering::Relaxed) {
            return;
        }
        for desk in agents.iter().filter_map(|agent| self.0.desks.get(agent)) {
            desk.asked(&self.0.shared, task.clone(), round);
        }
    }

    /// Gives a message to a hosted agent; false when its mailbox is full. What is for nobody here is for an
    /// agent outside, who hears it in its room.
    pub fn tell(&self, agent: &AgentId, message: Message) -> bool {
        let desk = self.0.desks.get(agent).filter(|desk| desk.is_hosted());
        desk.is_none_or(|desk| desk.tell(&self.0.shared, message))
    }

    /// The agents with a file, left out or not, hosted or not: whose they are.
    pub fn orgs(&self) -> impl Iterator<Item = (AgentId, OrgId)> {
        self.0.desks.iter().map(|(id, desk)| (id.clone(), desk.definition.org.clone()))
    }

    /// The hosted agents of an org.
    pub fn of_org(&self, org: &OrgId) -> impl Iterator<Item = &AgentId> {
        let of = |desk: &Arc<Desk>| desk.is_hosted() && desk.definition.org == *org;
        self.0.desks.iter().filter(move |(_, desk)| of(desk)).map(|(id, _)| id)
    }

    /// Stops: awards are refused from now on, jobs get `within` to finish and are then released to
    /// others, presence leaves. May be called once.
    pub async fn drain(&self, within: Duration) {
        let shared = &self.0.shared;
        shared.stopping.store(true, Ordering::Relaxed);
        if shared.jobs.drain(within).await.is_err() {
            shared.let_go.cancel();
            if let Err(stuck) = shared.jobs.drain(RELEASE_WITHIN).await {
                warn!(left = stuck.left, "jobs did not let go; their leases will run out");
            }
        }
        let _ = shared.actors.drain(Duration::from_secs(1)).await;
        for desk in self.0.desks.values().filter(|desk| desk.is_hosted()) {
            desk.leave(shared);
        }
    }
}

impl Desk {
    pub(super) fn is_hosted(&self) -> bool {
        self.definition.run.kind != Kind::Remote
    }

    /// Gives a command to the actor, which is made if there is none; false when its mailbox is full.
    fn put(self: &Arc<Self>, shared: &Arc<Shared>, command: Command) -> bool {
        let mut slot = self.actor.lock();
        if let Some(actor) = &*slot {
            match actor.try_send(command) {
                Ok(()) => return true,
                Err(mpsc::error::TrySendError::Full(_)) => return false,
                // It ended without going to sleep, which is a panic: the next one takes over.
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
        slot: &mut Option<mpsc::Sender<Command>>,
        command: Command,
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
