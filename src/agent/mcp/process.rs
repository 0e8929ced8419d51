//! A server that is a process: a group of its own, a clean environment, messages on standard input and output.
use super::limited::{Allowance, Limited};
use crate::{
    agent::{
        Env, McpServer,
        job::one_line,
        kind::{group::Group, program, program::spawn_error},
    },
    scope::{OnExit, Scope},
};
use std::{path::Path, process::Stdio, time::Duration};
use tokio::{
    io::AsyncReadExt,
    process::{Child, ChildStderr, ChildStdin, ChildStdout, Command},
    sync::oneshot,
    time::timeout,
};

/// Runs the command, and ends its group with its input.
const GUARD: &str = include_str!("guard.sh");
/// How long the group has to end after its input has ended: two pauses of the guard, and some time.
const END_WITHIN: Duration = Duration::from_millis(4_500);
/// How long a server that did not begin has to end, and its standard error to be read.
const LAST_LINE_WITHIN: Duration = Duration::from_millis(500);
/// Bytes of standard error that are kept for its last line.
const ERRORS_BYTES_MAX: usize = 8 << 10;

/// A running process. It and its group are killed when this is dropped.
pub(super) struct Process {
    child: Child,
    group: Group,
    /// The last line on its standard error, when that has ended.
    last_line: Option<oneshot::Receiver<String>>,
}

/// The pipes of a process: what it writes, and what it reads.
pub(super) type Pipes = (Limited<ChildStdout>, ChildStdin);

impl Process {
    /// Starts the command of a server.
    ///
    /// # Errors
    /// Why it cannot be started, one line.
    pub(super) fn start(
        server: &McpServer,
        folder: Option<&Path>,
        env: &Env,
        scope: &Scope,
        allowance: Allowance,
    ) -> Result<(Self, Pipes), String> {
        let (name, arguments) = server.command.split_first().ok_or("command is missing")?;
        let program = program(name, folder, env)?;
        let mut command = Command::new("/bin/sh");
        command.args(["-c", GUARD, "convoke-mcp"]).arg(&program).args(arguments);
        let cwd = match (folder, &server.cwd) {
            (Some(folder), Some(cwd)) => Some(folder.join(cwd)),
            (folder, cwd) => cwd.clone().or_else(|| folder.map(Path::to_owned)),
        };
        if let Some(cwd) = cwd.filter(|cwd| !cwd.as_os_str().is_empty()) {
            command.current_dir(cwd);
        }
        command.env_clear();
        // A server that wants another PATH sets it.
        command.env("PATH", "/usr/local/bin:/usr/bin:/bin");
        command.envs(server.env.iter().filter_map(|name| Some((name, env.get(name)?)))).envs(&server.env_set);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command.process_group(0).kill_on_drop(true);
        let mut child = command
            .spawn()
            .map_err(|error| spawn_error(&program, command.as_std().get_current_dir(), &error).0)?;
        let group = Group::of(child.id());
        let (line, last_line) = oneshot::channel();
        if let Some(stderr) = child.stderr.take() {
            // It ends with the process, also when the scope stops: the pipe must be read until then.
            scope.spawn("mcp stderr", OnExit::Log, |_| read_errors(stderr, line));
        }
        let pipes = child.stdout.take().zip(child.stdin.take()).ok_or("its pipes are missing")?;
        let (stdout, stdin) = pipes;
        Ok((Self { child, group, last_line: Some(last_line) }, (Limited::new(stdout, allowance), stdin)))
    }

    /// Kills it, and returns the last line on its standard error, empty if there is none.
    pub(super) async fn last_line(&mut self) -> String {
        let Some(line) = self.last_line.take() else { return String::new() };
        // It may be about to end by itself, with a line that says why.
        let _ = timeout(LAST_LINE_WITHIN, self.child.wait()).await;
        self.group.end();
        timeout(LAST_LINE_WITHIN, line).await.ok().and_then(Result::ok).unwrap_or_default()
    }

    /// Waits for the end of the group, whose input has ended, and kills it if it does not end in time.
    pub(super) async fn end(mut self) {
        let _ = timeout(END_WITHIN, self.child.wait()).await;
        self.group.end();
    }
}

/// Reads standard error until its end, so that the server never waits for the pipe, and keeps the last line.
async fn read_errors(mut stderr: ChildStderr, line: oneshot::Sender<String>) -> anyhow::Result<()> {
    let (mut all, mut chunk) = (Vec::new(), vec![0; 4 << 10]);
    while let Ok(read @ 1..) = stderr.read(&mut chunk).await {
        all.extend_from_slice(chunk.get(..read).unwrap_or_default());
        if all.len() > ERRORS_BYTES_MAX {
            all.drain(..all.len() - ERRORS_BYTES_MAX);
        }
    }
    let text = String::from_utf8_lossy(&all);
    let last = text.lines().rev().map(one_line).find(|line| !line.is_empty());
    // Nobody asks for it after a start that succeeded.
    let _ = line.send(last.unwrap_or_default());
    Ok(())
}
