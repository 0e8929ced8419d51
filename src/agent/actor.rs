//! An agent that is awake: starts its jobs, knows what they do, and goes to sleep when there are none.
//!
//! It lives from the first award to `idle_timeout` after the last job. Handling a
//! command never waits; jobs run in tasks of their own and come back as commands.
use super::{
    Agent, kind,
    presence::{Activity, Seen},
    supervisor::{Desk, Shared},
    work::{self, Work},
};
use crate::{
    id::AssignmentId,
    scope::OnExit,
    task::{Assigned, AssignmentKey, Progress},
};
use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
};
use tokio::{
    sync::mpsc,
    time::{Instant, sleep_until},
};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info_span};

/// Commands that are handled before presence is told.
const BURST: usize = 64;

/// What an actor is told.
pub(super) enum Command {
    /// It won.
    Assigned { assigned: Assigned, at: Instant },
    /// A job must stop.
    Cancel { key: AssignmentKey, reason: String },
    /// A job began to work.
    Started(AssignmentKey),
    /// A job is done by someone else, who reports himself.
    Elsewhere(AssignmentKey),
    /// A job showed work.
    Progressed(AssignmentKey, Progress),
    /// A job lost its assignment, and its slot with it, but has not stopped yet.
    Fenced(AssignmentKey),
    /// A job is over.
    Ended(AssignmentKey),
}

/// A job under way.
struct Running {
    key: AssignmentKey,
    stop: CancellationToken,
    phase: Phase,
    progress: Option<f32>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Phase {
    Accepting,
    Working,
    Elsewhere,
    /// It holds no slot any more.
    Ending,
}

/// An agent that is awake.
pub(super) struct Actor {
    desk: Arc<Desk>,
    shared: Arc<Shared>,
    mailbox: mpsc::Receiver<Command>,
    /// Weak, so that the mailbox closes when the desk lets go of it.
    own: mpsc::WeakSender<Command>,
    runner: Option<Result<Arc<dyn Agent>, String>>,
    /// In the order of their awards.
    running: HashMap<AssignmentId, Running>,
    /// Awards that came before the slot of an ended job was seen to be free.
    queue: VecDeque<(Assigned, Instant)>,
    current: Option<AssignmentId>,
    seen: Seen,
    idle_since: Instant,
}

impl Actor {
    pub(super) fn new(
        desk: Arc<Desk>,
        shared: Arc<Shared>,
        mailbox: mpsc::Receiver<Command>,
        own: mpsc::WeakSender<Command>,
    ) -> Self {
        shared.metrics.actors.inc();
        Self {
            desk,
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
            let asleep_at = self.idle_since + self.desk.definition.idle_timeout;
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

    fn handle(&mut self, command: Command) {
        match command {
            Command::Assigned { assigned, at } => self.assigned(assigned, at),
            Command::Cancel { key, reason } => {
                debug!(task = %key.task_id, reason, "told to stop");
                self.queue.retain(|(assigned, _)| assigned.key.assignment_id != key.assignment_id);
                if let Some(job) = self.running.get(&key.assignment_id) {
                    job.stop.cancel();
                }
                // Whether the slot is free already, the next award tells.
                self.phase(key, Phase::Ending);
                self.begin_next();
            }
            Command::Started(key) => {
                self.current = Some(key.assignment_id);
                self.phase(key, Phase::Working);
            }
            Command::Elsewhere(key) => self.phase(key, Phase::Elsewhere),
            Command::Progressed(key, progress) => {
                if let Some(job) = self.running.get_mut(&key.assignment_id) {
                    job.progress = progress.progress.or(job.progress);
                }
            }
            Command::Fenced(key) => {
                self.phase(key, Phase::Ending);
                self.begin_next();
            }
            Command::Ended(key) => {
                self.running.remove(&key.assignment_id);
                self.idle_since = Instant::now();
                self.begin_next();
            }
        }
        self.seen.last_active = Some(self.shared.clock.now());
    }

    /// The slot was taken by the award. When a job of ours has just ended there but not yet here, the
    /// award waits a moment; when more wait than there are slots, something is wrong and it is refused.
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
            work::refuse(self.shared.clone(), assigned, "all slots are taken");
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
        usize::try_from(self.desk.definition.slots.max(1)).unwrap_or(1)
    }

    fn slots_used(&self) -> usize {
        self.running.values().filter(|job| job.phase != Phase::Ending).count()
    }

    fn begin(&mut self, assigned: Assigned, at: Instant) {
        let Some(tell) = self.own.upgrade() else { return };
        let (desk, shared) = (&self.desk, &self.shared);
        let runner = self.runner.get_or_insert_with(|| {
            let runner = kind::runner(&desk.definition, &shared.parts, &shared.registry)?;
            runner.ok_or_else(|| "the agent is not hosted here".to_owned())
        });
        let key = assigned.key;
        let stop = CancellationToken::new();
        let work = Work {
            shared: shared.clone(),
            desk: desk.clone(),
            runner: runner.clone(),
            assigned,
            at,
            stop: stop.clone(),
            tell,
        };
        let span = info_span!("run", task = %key.task_id, agent = %desk.definition.id);
        span.in_scope(|| {
            shared.jobs.spawn("agent job", OnExit::Log, |_| async move {
                work.run().await;
                Ok(())
            });
        });
        let job = Running { key, stop, phase: Phase::Accepting, progress: None };
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
        let started = |job: &&Running| matches!(job.phase, Phase::Working | Phase::Elsewhere);
        let current = self.current.and_then(|id| self.running.get(&id)).filter(started);
        let current = current.or_else(|| self.running.values().find(started));
        let accepting = self.running.values().filter(|job| job.phase == Phase::Accepting).count();
        self.seen.current_task = current.map(|job| job.key.task_id);
        self.seen.progress = current.and_then(|job| job.progress);
        self.seen.queue_depth = self.queue.len() + accepting;
        let mut phases = self.running.values().map(|job| job.phase);
        let activity = match (self.running.is_empty(), phases.all(|phase| phase == Phase::Elsewhere)) {
            (true, _) => Activity::Idle,
            (false, true) => Activity::Waiting,
            (false, false) => Activity::Working,
        };
        self.desk.present(&self.shared, &self.seen, activity);
    }

    /// Goes to sleep unless a command came meanwhile. Whoever brings one waits for the lock and then
    /// finds no actor, so none is lost, and the presence of the next actor comes after this one's.
    fn sleep(&mut self) -> bool {
        let desk = self.desk.clone();
        let mut slot = desk.actor.lock();
        if !self.mailbox.is_empty() {
            return false;
        }
        *slot = None;
        desk.present(&self.shared, &self.seen, Activity::Asleep);
        true
    }
}

impl Drop for Actor {
    fn drop(&mut self) {
        self.shared.metrics.actors.dec();
    }
}
