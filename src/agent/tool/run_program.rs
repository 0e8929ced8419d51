//! Runs one program to its end: arguments on standard input, limits on time and output, in a group of its own.
use crate::agent::{
    job::one_line,
    kind::{
        command::{feed, read_output},
        group::Group,
        program::spawn_error,
    },
};
use serde::{Deserialize, Serialize};
use std::{future::Future, path::PathBuf, process::Stdio, time::Duration};
use tokio::{
    io::AsyncReadExt,
    process::{Child, ChildStderr, Command},
    time::{sleep, timeout},
};

/// Time between SIGTERM and SIGKILL.
pub(super) const TERM_GRACE: Duration = Duration::from_secs(2);
/// Most bytes of standard output: a program that writes more is killed.
const OUTPUT_BYTES_MAX: usize = 4 << 20;
/// Bytes of standard error that are read for its last line.
const ERRORS_BYTES_MAX: u64 = 64 << 10;

/// A program and its input. The environment is set apart, because it may have secrets.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Program {
    pub(super) path: PathBuf,
    pub(super) arguments: Vec<String>,
    pub(super) folder: Option<PathBuf>,
    /// Standard input.
    pub(super) input: String,
    /// After this time it is stopped.
    pub(super) timeout: Duration,
}

/// How a program ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Ended {
    /// It did not start: why, and whether a retry may succeed.
    NotStarted(String, bool),
    /// By itself.
    Exited {
        code: i32,
        /// Standard output.
        output: String,
        /// The last line of standard error.
        line: Option<String>,
    },
    /// It may have done its work: why that is unknown.
    Unknown(String),
    /// It was stopped before it ended by itself.
    Stopped,
}

/// How a program is stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stop {
    /// SIGTERM, and SIGKILL two seconds later.
    Ask,
    /// SIGKILL.
    Kill,
}

impl Program {
    /// Its command, with the environment of this process.
    pub(super) fn command(&self) -> Command {
        let mut command = Command::new(&self.path);
        command.args(&self.arguments);
        if let Some(folder) = &self.folder {
            command.current_dir(folder);
        }
        command
    }

    /// Runs `command`, which is that of this program, until it ends or `stop` resolves.
    pub(super) async fn run(&self, mut command: Command, stop: impl Future<Output = Stop>) -> Ended {
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command.process_group(0).kill_on_drop(true);
        let child = match command.spawn() {
            Ok(child) => child,
            Err(error) => {
                let (message, again) = spawn_error(&self.path, self.folder.as_deref(), &error);
                return Ended::NotStarted(message, again);
            }
        };
        let group = Group::of(child.id());
        let work = work(child, self.input.clone(), &group);
        tokio::pin!(work);
        let (how, otherwise) = tokio::select! {
            ended = &mut work => return ended,
            () = sleep(self.timeout) => {
                (Stop::Ask, Ended::Unknown("it did not end in time and was stopped".into()))
            }
            how = stop => (how, Ended::Stopped),
        };
        if how == Stop::Ask {
            group.ask_to_end();
        } else {
            group.kill();
        }
        match timeout(TERM_GRACE, &mut work).await {
            // It came to its end after all.
            Ok(ended @ Ended::Exited { code: 0, .. }) if otherwise == Ended::Stopped => ended,
            Ok(_) => otherwise,
            Err(_) => {
                group.kill();
                otherwise
            }
        }
    }
}

async fn work(mut child: Child, input: String, group: &Group) -> Ended {
    let (stdin, stdout, stderr) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
    let streams = async {
        let feed = feed(stdin, input);
        tokio::join!(feed, read_output(stdout, OUTPUT_BYTES_MAX, group), last_line(stderr))
    };
    let (status, seen) = group.wait(&mut child, streams).await;
    let (Ok(status), Some(((), output, line))) = (status, seen) else {
        return Ended::Unknown("the process was lost".into());
    };
    let Ok(output) = output else {
        return Ended::Unknown(format!("it wrote more than {OUTPUT_BYTES_MAX} bytes and was killed"));
    };
    match status.code() {
        Some(code) => {
            Ended::Exited { code, output: String::from_utf8_lossy(&output).trim_end().to_owned(), line }
        }
        None => Ended::Unknown("it was ended by a signal".into()),
    }
}

/// The last line of standard error. All of it is read, so that the program never waits for the pipe.
async fn last_line(stderr: Option<ChildStderr>) -> Option<String> {
    let mut stderr = stderr?;
    let (mut all, mut chunk) = (Vec::new(), vec![0; 4 << 10]);
    while let Ok(read @ 1..) = stderr.read(&mut chunk).await {
        all.extend_from_slice(chunk.get(..read).unwrap_or_default());
        let most = usize::try_from(ERRORS_BYTES_MAX).unwrap_or(usize::MAX);
        if all.len() > 2 * most {
            all.drain(..all.len() - most);
        }
    }
    let text = String::from_utf8_lossy(&all).into_owned();
    text.lines().rev().map(one_line).find(|line| !line.is_empty())
}
