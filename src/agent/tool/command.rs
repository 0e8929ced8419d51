//! A tool that is a program: the arguments as JSON on standard input, the output as the result.
use super::{Outcome, ToolCall};
use crate::agent::{
    Tool,
    job::one_line,
    kind::{Group, feed, program, read_output, spawn_error},
};
use std::{process::Stdio, time::Duration};
use tokio::{
    io::AsyncReadExt,
    process::{Child, ChildStderr, Command},
    time::timeout,
};

/// Time between SIGTERM and SIGKILL.
const TERM_GRACE: Duration = Duration::from_secs(2);
/// Time limit for output after the process has ended, from a descendant that left the group.
const AFTER_EXIT: Duration = Duration::from_secs(1);
/// Most bytes of standard output: a program that writes more is killed.
const OUTPUT_BYTES_MAX: usize = 4 << 20;
/// Bytes of standard error that are read for its last line.
const ERRORS_BYTES_MAX: u64 = 64 << 10;

pub(super) async fn call(call: ToolCall<'_>, tool: &Tool) -> Outcome {
    let mut command = match prepared(call, tool) {
        Ok(command) => command,
        Err(message) => return Outcome::Failed("failed", message, false),
    };
    let child = match command.spawn() {
        Ok(child) => child,
        Err(error) => {
            let path = std::path::Path::new(command.as_std().get_program());
            let (message, again) = spawn_error(path, command.as_std().get_current_dir(), &error);
            return Outcome::Failed("failed", message, again);
        }
    };
    let group = Group::of(child.id());
    let work = work(child, call.args.to_string(), &group);
    tokio::pin!(work);
    let why = tokio::select! {
        outcome = &mut work => return outcome,
        () = tokio::time::sleep(tool.timeout()) => Some("it did not end in time and was stopped"),
        () = call.stop.cancelled() => None,
    };
    group.ask_to_end();
    if timeout(TERM_GRACE, &mut work).await.is_err() {
        group.kill();
    }
    why.map_or(Outcome::Stopped, |why| Outcome::Uncertain(why.into()))
}

fn prepared(call: ToolCall<'_>, tool: &Tool) -> Result<Command, String> {
    let argv = tool.argv.as_deref().unwrap_or_default();
    let (name, arguments) = argv.split_first().ok_or("argv is missing")?;
    let env = &call.parts.env;
    let mut command = Command::new(program(name, call.folder, env)?);
    if let Some(folder) = call.folder.filter(|folder| !folder.as_os_str().is_empty()) {
        command.current_dir(folder);
    }
    command.args(arguments).env_clear();
    command.envs(tool.env.iter().filter_map(|name| Some((name, env.get(name)?))));
    command
        .envs(call.ids.iter().map(|(name, value)| (*name, value)))
        .env("CONVOKE_IDEMPOTENCY_KEY", call.key);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command.process_group(0).kill_on_drop(true);
    Ok(command)
}

async fn work(mut child: Child, input: String, group: &Group) -> Outcome {
    let (stdin, stdout, stderr) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
    let streams = async {
        let feed = feed(stdin, input);
        tokio::join!(feed, read_output(stdout, OUTPUT_BYTES_MAX, group), last_line(stderr))
    };
    tokio::pin!(streams);
    let (status, seen) = tokio::select! {
        status = child.wait() => (status, None),
        seen = &mut streams => (child.wait().await, Some(seen)),
    };
    // Descendants that are left would keep the pipes open.
    group.end();
    let seen = match seen {
        Some(seen) => Some(seen),
        None => timeout(AFTER_EXIT, streams).await.ok(),
    };
    let (Ok(status), Some(((), output, line))) = (status, seen) else {
        return Outcome::Uncertain("the process was lost".into());
    };
    let Ok(output) = output else {
        return Outcome::Uncertain(format!("it wrote more than {OUTPUT_BYTES_MAX} bytes and was killed"));
    };
    match status.code() {
        Some(0) => Outcome::Done(String::from_utf8_lossy(&output).trim_end().to_owned()),
        Some(code) => {
            let line = line.map(|line| format!(": {line}")).unwrap_or_default();
            Outcome::Failed("failed", format!("exit code {code}{line}"), false)
        }
        None => Outcome::Uncertain("it was ended by a signal".into()),
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
