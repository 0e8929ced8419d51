//! Starts the programs of tools under keepers, and finds what became of them after the daemon was killed.
//!
//! A keeper is this executable as a small process of its own ([`keep`](super::keep)). It holds the lock of the call,
//! runs the program, and writes how it ended into a file that is named after the idempotency key. The lock is taken
//! here before the keeper starts and passed on as its standard output: so it is held without a gap from before the
//! program begins until the outcome is written, whoever dies. A file that is there is the outcome; a lock that is held
//! means that the program still runs; neither means that the outcome is unknown.
use super::run_program::{Ended, Program, TERM_GRACE};
use crate::fault;
use serde::{Deserialize, Serialize};
use std::{
    fs::{self, File, OpenOptions, TryLockError},
    io,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};
use tokio::{
    io::AsyncWriteExt,
    process::{Child, ChildStdin, Command},
    time::{Instant, sleep, timeout},
};
use tokio_util::sync::CancellationToken;

/// The first argument of a keeper.
pub(crate) const KEEP: &str = "keep-call";
/// The line that stops the program.
pub(super) const STOP: &str = "stop";
/// How much longer than its program a keeper may take.
const KEEPER_GRACE: Duration = Duration::from_secs(5);
/// Pause between two looks at a lock.
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// Age at which the files of a call that nobody asks about are removed.
const FORGOTTEN_AFTER: Duration = Duration::from_secs(30 * 86_400);

/// Starts keepers. Cloning is cheap.
#[derive(Clone, Debug)]
pub struct Keeper {
    executable: PathBuf,
    /// Only the daemon's user may read it: outputs of programs are in it.
    folder: PathBuf,
}

/// What a keeper is told: one line on its standard input.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Order {
    pub(super) program: Program,
    /// Whether the program may end if the daemon dies.
    pub(super) finish: bool,
    /// The file of the outcome.
    pub(super) outcome: PathBuf,
}

impl Keeper {
    /// Keepers are this `executable`; their files are in `folder`, which exists. Removes files that are a month old.
    #[must_use]
    pub fn new(executable: PathBuf, folder: PathBuf) -> Self {
        let keeper = Self { executable, folder };
        keeper.remove_old();
        keeper
    }

    /// Runs a program to its end, or until `stop`. If this future is dropped, the keeper goes on as after a death of
    /// the daemon.
    pub(super) async fn run(
        &self,
        key: &str,
        program: Program,
        variables: Vec<(String, String)>,
        finish: bool,
        stop: &CancellationToken,
    ) -> Ended {
        let within = program.timeout;
        let lock = match self.locked(key, within, stop).await {
            Ok(Some(lock)) => lock,
            Ok(None) => return Ended::Unknown("it still runs".into()),
            Err(error) => return Ended::NotStarted(format!("the call cannot be kept: {error}"), true),
        };
        let outcome = self.file(key, "json");
        // Of an earlier try with the same key, whose outcome was looked at.
        let _ = fs::remove_file(&outcome);
        let mut command = Command::new(&self.executable);
        command.arg(KEEP).env_clear().envs(variables);
        command.stdin(Stdio::piped()).stdout(lock).stderr(Stdio::null());
        // Signals to the daemon's group are not for it, and it outlives the daemon.
        command.process_group(0).kill_on_drop(false);
        let order = Order { program, finish, outcome };
        let started = async {
            let mut child = command.spawn()?;
            // The copy of the lock in this process: only the keeper holds it from now on.
            command.stdout(Stdio::null());
            let mut stdin = child.stdin.take().ok_or_else(|| io::Error::other("it has no input"))?;
            let line = format!("{}\n", serde_json::to_string(&order).map_err(io::Error::other)?);
            stdin.write_all(line.as_bytes()).await?;
            Ok::<_, io::Error>((child, stdin))
        };
        let (mut child, stdin) = match started.await {
            Ok(started) => started,
            Err(error) => return Ended::NotStarted(format!("its keeper cannot be started: {error}"), true),
        };
        fault::point(fault::Point::KeeperSpawned);
        wait(&mut child, stdin, stop).await;
        fault::point(fault::Point::KeeperWrote);
        read(&order.outcome).unwrap_or_else(|| Ended::Unknown("its keeper was lost".into()))
    }

    /// How the program of a call that was begun earlier ended. Waits while it runs, for at most its time limit. `None`
    /// if that is unknown, or `stop` came.
    pub(super) async fn found(&self, key: &str, within: Duration, stop: &CancellationToken) -> Option<Ended> {
        // Looked at while nobody runs it: then there is no outcome that could still come.
        let lock = self.locked(key, within, stop).await.ok()??;
        let ended = read(&self.file(key, "json"));
        drop(lock);
        ended.filter(|ended| !matches!(ended, Ended::Unknown(_) | Ended::Stopped))
    }

    /// Removes the files of a call whose result is recorded.
    pub(crate) fn forget(&self, key: &str) {
        for kind in ["json", "lock"] {
            let _ = fs::remove_file(self.file(key, kind));
        }
    }

    /// The lock of a call, after a keeper that holds it has ended. `None` if it still runs after its time, or `stop`
    /// came.
    async fn locked(
        &self,
        key: &str,
        within: Duration,
        stop: &CancellationToken,
    ) -> io::Result<Option<File>> {
        let mut options = OpenOptions::new();
        options.create(true).truncate(false).write(true).mode(0o600);
        let lock = options.open(self.file(key, "lock"))?;
        let until = Instant::now() + within + TERM_GRACE + KEEPER_GRACE;
        loop {
            match lock.try_lock() {
                Ok(()) => return Ok(Some(lock)),
                Err(TryLockError::Error(error)) => return Err(error),
                Err(TryLockError::WouldBlock) => {}
            }
            if Instant::now() >= until {
                return Ok(None);
            }
            tokio::select! {
                () = sleep(LOOK_EVERY) => {}
                () = stop.cancelled() => return Ok(None),
            }
        }
    }

    /// A file of a call. Keys are made by the daemon; anything else in one could name another file.
    fn file(&self, key: &str, kind: &str) -> PathBuf {
        let name: String = key.chars().filter(|c| c.is_ascii_alphanumeric() || *c == '_').collect();
        self.folder.join(format!("{name}.{kind}"))
    }

    fn remove_old(&self) {
        let Ok(entries) = fs::read_dir(&self.folder) else { return };
        for entry in entries.flatten() {
            let age = entry.metadata().and_then(|it| it.modified()).ok().and_then(|at| at.elapsed().ok());
            if age.is_some_and(|age| age > FORGOTTEN_AFTER) {
                let _ = fs::remove_file(entry.path());
            }
        }
    }
}

/// Waits for the end of a keeper. `stop` asks it to stop its program, which it does within seconds.
async fn wait(child: &mut Child, mut stdin: ChildStdin, stop: &CancellationToken) {
    tokio::select! {
        _ = child.wait() => return,
        () = stop.cancelled() => {}
    }
    let _ = stdin.write_all(format!("{STOP}\n").as_bytes()).await;
    let _ = timeout(TERM_GRACE + KEEPER_GRACE, child.wait()).await;
}

fn read(outcome: &Path) -> Option<Ended> {
    serde_json::from_slice(&fs::read(outcome).ok()?).ok()
}
