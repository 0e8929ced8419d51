//! Reads the agents' files and the settings again while the daemon runs, and applies them as a whole or not at all.
//!
//! It looks at the folder and the settings file every two seconds, and less often at a very large folder. A change counts
//! when two looks in a row find the same files, so that a file that is being written is not read. Every file system and
//! mount can be looked at, while some send no events. SIGHUP and `POST /v1/reload` read at once. Files with a problem
//! change nothing; the process log and `/health` say what is wrong.
use super::{
    leadership::{Registration, hosted_here, register},
    settings::{Settings, SettingsChange},
};
use crate::{
    agent::{Agents, Definition, Reloaded},
    api::{Health, PartState},
    config::{self, Fingerprint, Problem, Problems, load_agents},
    remote::Identity,
    scope::{OnExit, Scope},
    task::Tasks,
};
use serde::Serialize;
use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
    time::Duration,
};
use tokio::{
    sync::{mpsc, oneshot},
    time::{Instant, sleep_until},
};

/// Least time between two looks at the folder.
const EVERY: Duration = Duration::from_secs(2);
/// And this many times the time of the look before: a folder of a hundred thousand files costs no measurable time.
const PAUSE_FACTOR: u32 = 200;
/// Requests that wait; a further one is answered by those.
const WAITING_MAX: usize = 16;
/// Problems that `/health` names; the process log names all.
const NAMED_MAX: usize = 3;

/// The outcome of a reading.
pub type ReloadOutcome = Result<ReloadReport, Problems>;

/// What a reading changed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct ReloadReport {
    /// The agents.
    #[serde(flatten)]
    pub agents: Reloaded,
    /// The settings. `None` if the daemon got them from a program.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub settings: Option<SettingsChange>,
}

/// Asks for a reading of the agents' files. Clones ask the same daemon.
#[derive(Clone)]
pub struct Reload(Option<mpsc::Sender<Option<oneshot::Sender<ReloadOutcome>>>>);

/// Why no files were read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotReloaded {
    /// A program gave the daemon its agents.
    #[error("this daemon got its agents from a program, and reads no files")]
    NoFiles,
    /// The daemon is stopping.
    #[error("the daemon is stopping")]
    Stopping,
}

impl Reload {
    /// A daemon that reads no files.
    pub(super) fn never() -> Self {
        Self(None)
    }

    /// Reads the files at once and applies them. Returns what changed, or the problems for which nothing did.
    ///
    /// # Errors
    /// [`NotReloaded`].
    pub async fn now(&self) -> Result<ReloadOutcome, NotReloaded> {
        let sender = self.0.as_ref().ok_or(NotReloaded::NoFiles)?;
        let (reply, outcome) = oneshot::channel();
        sender.send(Some(reply)).await.map_err(|_| NotReloaded::Stopping)?;
        outcome.await.map_err(|_| NotReloaded::Stopping)
    }

    /// Lets the daemon read the files soon, without an answer. False if it reads none.
    pub fn soon(&self) -> bool {
        // A full queue reads them soon anyway.
        self.0
            .as_ref()
            .is_some_and(|sender| !matches!(sender.try_send(None), Err(mpsc::error::TrySendError::Closed(_))))
    }
}

/// What a reading needs.
pub(super) struct Deps {
    /// The folder of the files.
    pub(super) dir: PathBuf,
    /// The agents that the program gave beside them.
    pub(super) from_code: Vec<Definition>,
    pub(super) agents: Agents,
    pub(super) tasks: Tasks,
    pub(super) identity: Identity,
    pub(super) health: Health,
    pub(super) registration: Registration,
    /// `None` if the program gave the settings.
    pub(super) settings: Option<Settings>,
}

/// Looks at the folder in `scope`. `read`: the files that the agents and settings were read from; without it they are
/// read again as soon as two looks agree.
pub(super) fn start(scope: &Scope, deps: Deps, read: Option<Fingerprint>) -> Reload {
    let (sender, asked) = mpsc::channel(WAITING_MAX);
    let follower = Follower { deps, read, seen: None, refused: false, unregistered: false };
    scope.spawn("agents' files", OnExit::StopDaemon, |stop| async move {
        stop.run_until_cancelled(follower.run(asked)).await;
        Ok(())
    });
    Reload(Some(sender))
}

struct Follower {
    deps: Deps,
    /// The files of the last reading. `None` before the first.
    read: Option<Fingerprint>,
    /// The files of the last look.
    seen: Option<Fingerprint>,
    /// Whether the files of the last reading have problems.
    refused: bool,
    /// Whether agents changed here and the database does not know it yet.
    unregistered: bool,
}

impl Follower {
    async fn run(mut self, mut asked: mpsc::Receiver<Option<oneshot::Sender<ReloadOutcome>>>) {
        let mut look_at = Instant::now();
        loop {
            tokio::select! {
                () = sleep_until(look_at) => {
                    let began = Instant::now();
                    let found = self.found().await;
                    look_at = Instant::now() + EVERY.max(began.elapsed() * PAUSE_FACTOR);
                    self.look(found).await;
                }
                reply = asked.recv() => {
                    let Some(reply) = reply else { return };
                    let outcome = self.reload().await;
                    if let Some(reply) = reply {
                        // The caller may have gone.
                        let _ = reply.send(outcome);
                    }
                }
            }
        }
    }

    /// The files as they are now.
    async fn found(&self) -> Fingerprint {
        let (dir, settings) = (self.deps.dir.clone(), self.settings_file());
        let found = tokio::task::spawn_blocking(move || Fingerprint::of(&dir, settings.as_deref()));
        found.await.unwrap_or_default()
    }

    async fn look(&mut self, found: Fingerprint) {
        let is_quiet = self.seen == Some(found);
        if is_quiet && self.read != Some(found) {
            // The outcome is logged.
            let _ = self.reload().await;
        } else if self.unregistered {
            self.register().await;
        }
        self.seen = Some(found);
    }

    async fn reload(&mut self) -> ReloadOutcome {
        let outcome = self.apply().await;
        match &outcome {
            Ok(ReloadReport { agents, .. }) => {
                if !agents.is_empty() {
                    let Reloaded { added, changed, removed } = agents;
                    tracing::info!(?added, ?changed, ?removed, "agents' files reloaded");
                }
                if std::mem::take(&mut self.refused) {
                    self.deps.health.set("definitions", PartState::Ready, "all files are in use");
                }
            }
            Err(problems) => {
                self.refused = true;
                for problem in &problems.0 {
                    tracing::error!(%problem, "files not reloaded: the definitions and settings before them stay");
                }
                self.deps.health.set("definitions", PartState::Degraded, shown(problems));
            }
        }
        outcome
    }

    async fn apply(&mut self) -> ReloadOutcome {
        let (dir, known, file) = (self.deps.dir.clone(), self.read, self.settings_file());
        let options = self.deps.settings.as_ref().map(|settings| settings.options().clone());
        let read = move || {
            // Before the files are read: a change during the reading is found by the next look.
            let files = Fingerprint::of(&dir, file.as_deref());
            let had_files = known.is_some_and(|files| files.has_agents());
            let lost = had_files && !dir.is_dir();
            let definitions = if lost { Err(folder_is_gone(&dir)) } else { load_agents(&dir) };
            (files, definitions, options.as_ref().map(config::load).transpose())
        };
        let read = tokio::task::spawn_blocking(read).await;
        let (files, definitions, settings) =
            read.map_err(|_| unreadable(&self.deps.dir, "reading it failed"))?;
        self.read = Some(files);
        let (definitions, settings) = both(definitions, settings)?;
        let definitions = definitions.into_iter().chain(self.deps.from_code.iter().cloned()).collect();
        let _registration = self.deps.registration.clone().lock_owned().await;
        let before = self.deps.agents.definitions();
        let reloaded = self.deps.agents.reload(definitions).await;
        let reloaded = reloaded.map_err(|error| unreadable(&self.deps.dir, &error.to_string()))?;
        if !reloaded.is_empty() {
            self.unregistered = true;
            self.register_now().await;
            let orgs = before
                .iter()
                .chain(&self.deps.agents.definitions())
                .map(|of| of.org.clone())
                .collect::<BTreeSet<_>>();
            orgs.iter().for_each(|org| self.deps.identity.agents_changed(org));
        }
        let settings = self.deps.settings.as_mut().zip(settings).map(|(own, read)| own.apply(read.config));
        Ok(ReloadReport { agents: reloaded, settings })
    }

    fn settings_file(&self) -> Option<PathBuf> {
        config::file(self.deps.settings.as_ref()?.options())
    }

    async fn register(&mut self) {
        let _registration = self.deps.registration.clone().lock_owned().await;
        self.register_now().await;
    }

    /// Registers the agents if this node leads; else the begin of its lead does.
    async fn register_now(&mut self) {
        let Deps { tasks, agents, health, .. } = &self.deps;
        if !tasks.arbitrates() {
            self.unregistered = false;
            return;
        }
        match register(tasks, agents, true).await {
            Ok(count) => {
                self.unregistered = false;
                health.set("agents", PartState::Ready, hosted_here(count));
            }
            Err(error) => tracing::warn!(%error, "changed agents not registered yet, will retry"),
        }
    }
}

/// Both readings, or the problems of both.
fn both<A, B>(one: Result<A, Problems>, other: Result<B, Problems>) -> Result<(A, B), Problems> {
    match (one, other) {
        (Ok(one), Ok(other)) => Ok((one, other)),
        (one, other) => {
            let problems = one.err().into_iter().chain(other.err()).flat_map(|Problems(found)| found);
            Err(Problems(problems.collect()))
        }
    }
}

fn folder_is_gone(dir: &Path) -> Problems {
    let remedy = "put it back; a restart works without its agents";
    Problems(vec![Problem::of_file(dir.display().to_string(), "the folder is gone", Some(remedy))])
}

fn unreadable(dir: &Path, why: &str) -> Problems {
    Problems(vec![Problem::of_file(dir.display().to_string(), why, None)])
}

/// Places only: `/health` needs no token, and a message may have a value of the file.
fn shown(Problems(problems): &Problems) -> String {
    let place = |problem: &Problem| {
        let line = problem.line.map(|line| format!(":{line}")).unwrap_or_default();
        let key = if problem.key.is_empty() { String::new() } else { format!(": {}", problem.key) };
        format!("{}{line}{key}", problem.file)
    };
    let named: Vec<String> = problems.iter().take(NAMED_MAX).map(place).collect();
    let more = problems.len().saturating_sub(NAMED_MAX);
    let more = if more > 0 { format!(" and {more} more") } else { String::new() };
    format!("not reloaded, problems at {}{more}; the process log says which", named.join(", "))
}
