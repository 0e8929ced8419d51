//! The actor of a hosted agent: starts its jobs, follows their phases, and goes to sleep when there are none.
//!
//! It exists from the first award to `idle_timeout` after the last job. A handler never awaits; jobs run in spawned
//! tasks and report back as commands.
use super::{
    Definition, Kind,
    assignment_run::{self, Work},
    command::ActorCommand,
    hosted::{HostedAgent, Shared},
    job::Agent,
    kind,
    presence::{Activity, Seen},
};
use crate::{
    id::AssignmentId,
    scope::OnExit,
    task::{Assigned, AssignmentKey},
};
use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
    time::Duration,
};
use tokio::{
    sync::mpsc,
    time::{Instant, sleep_until},
};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info_span};

/// Commands that are handled before presence is updated.
const BURST: usize = 64;

/// A running job.
struct Running {
    key: AssignmentKey,
    stop: CancellationToken,
    phase: Phase,
    progress: Option<f32>,
    activity: Option<String>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Phase {
    Accepting,
    Working,
    Delegated,
    /// It has released its slot and is still stopping.
    Ending,
}

/// An agent that is awake.
pub(super) struct Actor {
    hosted: Arc<HostedAgent>,
    shared: Arc<Shared>,
    mailbox: mpsc::Receiver<ActorCommand>,
    /// Weak, so that the queue closes when the hosted agent drops its sender.
    own: mpsc::WeakSender<ActorCommand>,
    /// The code of its jobs, and the definition that it was made from.
    runner: Option<(Arc<Definition>, Result<Arc<dyn Agent>, String>)>,
    /// In the order of their awards.
    running: HashMap<AssignmentId, Running>,
    /// Awards whose slot is still held by a job that is ending.
    queue: VecDeque<(Assigned, Instant)>,
    current: Option<AssignmentId>,
    seen: Seen,
    idle_since: Instant,
}

impl Actor {
    pub(super) fn new(
        hosted: Arc<HostedAgent>,
        shared: Arc<Shared>,
        mailbox: mpsc::Receiver<ActorCommand>,
        own: mpsc::WeakSender<ActorCommand>,
    ) -> Self {
        shared.metrics.actors.inc();
        Self {
            hosted,
            shared,
            mailbox,
            own,
            runner: None,
            running: HashMap::new(),
            queue: VecDeque::new(),
            current: None,
            seen: Seen::default(),
            idle_since: Instant::now(),
        }
    }

    pub(super) async fn run(mut self, stop: CancellationToken) -> anyhow::Result<()> {
        debug!("awake");
        loop {
            let idle = self.running.is_empty() && self.queue.is_empty();
            let idle_timeout =
                if self.hosted.is_retired() { Duration::ZERO } else { self.hosted.definition().idle_timeout };
            let asleep_at = self.idle_since + idle_timeout;
            tokio::select! {
                biased;
                () = stop.cancelled() => break,
                command = self.mailbox.recv() => {
                    let Some(command) = command else { break };
                    self.handle(command);
                    for _ in 1..BURST {
                        let Ok(command) = self.mailbox.try_recv() else { break };
                        self.handle(command);
                    }
                    self.present();
                }
                () = sleep_until(asleep_at), if idle => {
                    if self.sleep() {
                        break;
                    }
                }
            }
        }
        debug!("asleep");
        Ok(())
    }

    fn handle(&mut self, command: ActorCommand) {
        match command {
            // What follows each command shows it.
            ActorCommand::Redefined => return,
            ActorCommand::Assigned { assigned, at } => self.assigned(assigned, at),
            ActorCommand::Cancel { key, reason } => {
                debug!(task = %key.task_id, reason, "job canceled");
                self.queue.retain(|(assigned, _)| assigned.key.assignment_id != key.assignment_id);
                if let Some(job) = self.running.get(&key.assignment_id) {
                    job.stop.cancel();
                }
                // The database has freed the slot: the next award may arrive before the job has stopped.
                self.phase(key, Phase::Ending);
                self.begin_next();
            }
            ActorCommand::Started(key) => {
                self.current = Some(key.assignment_id);
                self.phase(key, Phase::Working);
            }
            ActorCommand::Delegated(key) => self.phase(key, Phase::Delegated),
            ActorCommand::Progressed(key, progress) => {
                if let Some(job) = self.running.get_mut(&key.assignment_id) {
                    job.progress = progress.progress.or(job.progress);
                    job.activity = progress.activity.or_else(|| job.activity.take());
                }
            }
            ActorCommand::Fenced(key) => {
                self.phase(key, Phase::Ending);
                self.begin_next();
            }
            ActorCommand::Ended(key) => {
                self.running.remove(&key.assignment_id);
                self.idle_since = Instant::now();
                self.begin_next();
            }
        }
        self.seen.last_active = Some(self.shared.clock.now());
    }

    /// The award holds a slot in the database. If the job before it has ended there but not here yet, the award waits;
    /// if more awards wait than there are slots, one is refused.
    fn assigned(&mut self, assigned: Assigned, at: Instant) {
        let slots = self.slots();
        let known =
            |(waiting, _): &(Assigned, Instant)| waiting.key.assignment_id == assigned.key.assignment_id;
        if self.running.contains_key(&assigned.key.assignment_id) || self.queue.iter().any(known) {
            return;
        }
        if self.slots_used() < slots {
            self.begin(assigned, at);
        } else if self.queue.len() < slots {
            self.queue.push_back((assigned, at));
        } else {
            assignment_run::refuse(self.shared.clone(), assigned, "all slots are taken");
        }
    }

    fn begin_next(&mut self) {
        if self.slots_used() < self.slots()
            && let Some((assigned, at)) = self.queue.pop_front()
        {
            self.begin(assigned, at);
        }
    }

    fn slots(&self) -> usize {
        usize::try_from(self.hosted.definition().slots.max(1)).unwrap_or(1)
    }

    fn slots_used(&self) -> usize {
        self.running.values().filter(|job| job.phase != Phase::Ending).count()
    }

    fn begin(&mut self, assigned: Assigned, at: Instant) {
        let Some(commands) = self.own.upgrade() else { return };
        let (hosted, shared) = (&self.hosted, &self.shared);
        let latest = hosted.definition();
        let kept = self.runner.take().filter(|(definition, _)| Arc::ptr_eq(definition, &latest));
        let (definition, runner) = self.runner.insert(kept.unwrap_or_else(|| {
            let runner = kind::runner(&latest, &shared.parts, &shared.registry);
            let none = || "the agent is not hosted here".to_owned();
            (latest, runner.and_then(|runner| runner.ok_or_else(none)))
        }));
        let key = assigned.key;
        let stop = CancellationToken::new();
        let work = Work {
            shared: shared.clone(),
            hosted: hosted.clone(),
            definition: definition.clone(),
            runner: runner.clone(),
            assigned,
            at,
            stop: stop.clone(),
            commands,
        };
        let span = info_span!("run", task = %key.task_id, agent = %hosted.id);
        span.in_scope(|| {
            shared.jobs.spawn("agent job", OnExit::Log, |_| async move {
                work.run().await;
                Ok(())
            });
        });
        let job = Running { key, stop, phase: Phase::Accepting, progress: None, activity: None };
        self.running.insert(key.assignment_id, job);
    }

    fn phase(&mut self, key: AssignmentKey, phase: Phase) {
        if let Some(job) = self.running.get_mut(&key.assignment_id)
            && job.phase != Phase::Ending
        {
            job.phase = phase;
        }
    }

    fn present(&mut self) {
        let started = |job: &&Running| matches!(job.phase, Phase::Working | Phase::Delegated);
        let current = self.current.and_then(|id| self.running.get(&id)).filter(started);
        let current = current.or_else(|| self.running.values().find(started));
        let accepting = self.running.values().filter(|job| job.phase == Phase::Accepting).count();
        self.seen.current_task = current.map(|job| job.key.task_id);
        self.seen.progress = current.and_then(|job| job.progress);
        // Agents of kind `llm` report fixed words and names of tools and accounts. Other kinds report texts of their own,
        // which not everyone who sees the presence may read.
        let is_fixed = self.hosted.definition().run.kind == Kind::Llm;
        self.seen.activity = current.and_then(|job| job.activity.clone()).filter(|_| is_fixed);
        self.seen.queue_depth = self.queue.len() + accepting;
        let mut phases = self.running.values().map(|job| job.phase);
        let activity = match (self.running.is_empty(), phases.all(|phase| phase == Phase::Delegated)) {
            (true, _) => Activity::Idle,
            (false, true) => Activity::Waiting,
            (false, false) => Activity::Working,
        };
        self.hosted.present(&self.shared, &self.seen, activity);
    }

    /// Goes to sleep unless a command arrived meanwhile. A sender waits for the lock and then finds no actor and
    /// starts one, so no command is lost, and the presence of the next actor comes after this one's.
    fn sleep(&mut self) -> bool {
        let hosted = self.hosted.clone();
        let mut slot = hosted.actor.lock();
        if !self.mailbox.is_empty() {
            return false;
        }
        *slot = None;
        if hosted.is_retired() {
            hosted.leave(&self.shared);
        } else {
            hosted.present(&self.shared, &self.seen, Activity::Asleep);
        }
        true
    }
}

impl Drop for Actor {
    fn drop(&mut self) {
        self.shared.metrics.actors.dec();
    }
}
