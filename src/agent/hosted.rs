//! A hosted agent while it sleeps, and the state that all of them share.
use super::{
    command::ActorCommand,
    credentials::CredentialIssuer,
    definition::{Definition, Kind},
    job::Registry,
    kind::RunnerDeps,
    mailbox::Mailbox,
    metrics::Metrics,
    rolling_spend::RollingSpend,
};
use crate::{
    clock::Clock, id::AgentId, presence::Tracker, scope::Scope, task::TaskCommands, telemetry::Throttle,
};
use parking_lot::{Mutex, RwLock};
use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

/// The state that all hosted agents share.
pub(super) struct Shared {
    pub(super) tasks: TaskCommands,
    pub(super) tracker: Tracker,
    pub(super) clock: Clock,
    pub(super) metrics: Metrics,
    /// Limits the log lines about failed jobs.
    pub(super) failed_lines: Throttle,
    pub(super) parts: RunnerDeps,
    pub(super) credentials: CredentialIssuer,
    pub(super) registry: Registry,
    /// The actors.
    pub(super) actors: Scope,
    /// The jobs. They continue when it stops, and end when [`Self::release_jobs`] is cancelled.
    pub(super) jobs: Scope,
    pub(super) release_jobs: CancellationToken,
    pub(super) stopping: AtomicBool,
}

/// One hosted agent: everything that exists of it while it has no actor.
pub(super) struct HostedAgent {
    pub(super) id: AgentId,
    /// Its latest definition. A job keeps the one that it was begun with.
    definition: RwLock<Arc<Definition>>,
    /// Whether its definition was removed: it finishes what it has, and leaves.
    retired: AtomicBool,
    pub(super) spend: Mutex<RollingSpend>,
    /// The cost of its offer hook, which counts to `spend` too.
    pub(super) offer_spend: Mutex<RollingSpend>,
    pub(super) mail: Mutex<Mailbox>,
    /// The queue of its actor. Locked while a command is put in and while an actor goes to sleep, so that no command
    /// reaches a queue that is not read any more.
    pub(super) actor: Mutex<Option<mpsc::Sender<ActorCommand>>>,
}

impl HostedAgent {
    pub(super) fn new(definition: Arc<Definition>) -> Self {
        Self {
            id: definition.id.clone(),
            definition: RwLock::new(definition),
            retired: AtomicBool::new(false),
            spend: Mutex::default(),
            offer_spend: Mutex::default(),
            mail: Mutex::default(),
            actor: Mutex::default(),
        }
    }

    /// Its latest definition.
    pub(super) fn definition(&self) -> Arc<Definition> {
        self.definition.read().clone()
    }

    /// Whether the daemon runs its code; one of kind `remote` runs elsewhere.
    pub(super) fn is_hosted(&self) -> bool {
        self.definition.read().run.kind != Kind::Remote
    }

    pub(super) fn is_retired(&self) -> bool {
        self.retired.load(Ordering::Relaxed)
    }

    /// Begins later jobs with this definition, and takes a retired agent back.
    pub(super) fn redefine(&self, definition: Arc<Definition>) {
        *self.definition.write() = definition;
        self.retired.store(false, Ordering::Relaxed);
    }

    /// Lets it leave when it has nothing to do any more.
    pub(super) fn retire(&self) {
        self.retired.store(true, Ordering::Relaxed);
    }
}
