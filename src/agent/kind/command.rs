//! `kind = "command"`: a process for each task.
//!
//! The input comes as JSON on standard input, the result is the one JSON value on
//! standard output, lines on standard error like `{"progress": 0.5, "activity":
//! "reading"}` are progress; a `{"question": "…", "for": "input"}` (or `"approval"`)
//! before a good end asks instead of answering, and the task comes again with the answer in
//! `CONVOKE_ANSWERS` and the last `{"checkpoint": …}` in `CONVOKE_CHECKPOINT`. No shell reads the command line, and the environment
//! holds what the file lists and `CONVOKE_*`, nothing else. The process leads its
//! own group, which is asked to end (SIGTERM) on cancel and timeout and killed
//! two seconds later, and killed in any case when the process has ended. A
//! process that leaves the group by a session of its own escapes this.
use super::group::Group;
use crate::{
    agent::{
        Agent, Definition, Env, Finished, Job, Reporter,
        job::{one_line, permanent, retryable},
    },
    task::{Failure, Progress, Question, Usage, WaitFor},
};
use serde::Deserialize;
use serde_json::{Value, json};
use std::{
    path::{Path, PathBuf},
    process::{ExitStatus, Stdio},
    sync::Arc,
    time::Duration,
};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    process::{Child, ChildStderr, ChildStdin, ChildStdout},
    time::timeout,
};

/// From SIGTERM to SIGKILL.
const TERM_GRACE: Duration = Duration::from_secs(2);
/// How long output may come after the process has ended, from a descendant that left the group.
const AFTER_EXIT: Duration = Duration::from_secs(1);
/// Longest line of standard error that is looked at, in bytes.
const LINE_BYTES_MAX: u64 = 64 << 10;
/// Largest checkpoint, and most of the messages, that fits into the environment, in bytes.
const CHECKPOINT_BYTES_MAX: usize = 100 << 10;
/// Sets the limit on the address space, then becomes the command.
const LIMITED: &str = "ulimit -v \"$0\" && exec \"$@\"";

/// An agent that is a command.
pub(crate) struct Command {
    definition: Arc<Definition>,
    env: Env,
}

/// The file behind the first word of `argv`: a path is read from `folder`, a name is looked up on `PATH`.
///
/// # Errors
/// One line that names it.
pub(crate) fn program(name: &str, folder: Option<&Path>, env: &Env) -> Result<PathBuf, String> {
    if name.contains('/') {
        let path = folder.map_or_else(|| PathBuf::from(name), |folder| folder.join(name));
        // The process may run in another folder, so the path must not depend on ours.
        let path = std::path::absolute(&path).unwrap_or(path);
        return match runnable(&path) {
            Some(true) => Ok(path),
            Some(false) => Err(format!("{} is not executable", path.display())),
            None => Err(format!("there is no command {}", path.display())),
        };
    }
    let path = env.get("PATH").unwrap_or_else(|| "/usr/local/bin:/usr/bin:/bin".to_owned());
    let mut candidates = std::env::split_paths(&path).map(|folder| folder.join(name));
    let found = candidates.find(|candidate| runnable(candidate) == Some(true) && candidate.is_absolute());
    found.ok_or_else(|| format!("there is no command {name} on PATH"))
}

fn runnable(path: &Path) -> Option<bool> {
    use std::os::unix::fs::PermissionsExt;
    let metadata = path.metadata().ok()?;
    metadata.is_file().then(|| metadata.permissions().mode() & 0o111 != 0)
}

/// What came of a process.
struct Ended {
    status: ExitStatus,
    output: Result<Vec<u8>, TooMuch>,
    last_line: Option<String>,
    question: Option<Asked>,
    checkpoint: Option<Value>,
}

/// What it asked on standard error before it ended.
struct Asked {
    wait_for: WaitFor,
    question: String,
}

/// More output than the limit.
pub(super) struct TooMuch;

impl Command {
    pub(crate) fn new(definition: Arc<Definition>, env: Env) -> Self {
        Self { definition, env }
    }

    fn spawn(&self, job: &Job) -> Result<(Child, Group), Failure> {
        let argv = self.definition.run.argv.as_deref().unwrap_or_default();
        let mut command = process(&self.definition, argv, &self.env).map_err(permanent)?;
        let child = command.envs(ids(job)).spawn().map_err(|e| {
            let name = argv.first().map_or("", String::as_str);
            match e.kind() {
                std::io::ErrorKind::NotFound | std::io::ErrorKind::PermissionDenied => {
                    permanent(format!("{name} cannot be run: {}", e.kind()))
                }
                kind => retryable(format!("{name} cannot be run: {kind}")),
            }
        })?;
        let group = Group::of(child.id());
        Ok((child, group))
    }

    fn result(&self, ended: Ended) -> Result<Finished, Failure> {
        let output_bytes = self.definition.limits.output_bytes;
        let output = ended.output.map_err(|TooMuch| {
            permanent(format!("the result is over limits.output_bytes, {output_bytes} bytes"))
        })?;
        if !ended.status.success() {
            use std::os::unix::process::ExitStatusExt;
            let how = match (ended.status.code(), ended.status.signal()) {
                (Some(code), _) => format!("the command failed with exit code {code}"),
                (None, Some(signal)) => format!("the command was ended by signal {signal}"),
                (None, None) => "the command failed".to_owned(),
            };
            return Err(retryable(match ended.last_line {
                Some(line) => format!("{how}: {line}"),
                None => how,
            }));
        }
        if let Some(Asked { wait_for, question }) = ended.question {
            let usage = Usage { tokens: 0, microdollars: self.definition.offer.cost_microdollars };
            return Ok(Finished::Waits(Question { wait_for, question, checkpoint: ended.checkpoint, usage }));
        }
        let result: Value = serde_json::from_slice(&output).map_err(|e| match output.trim_ascii() {
            [] => retryable("result is no JSON: the command wrote nothing on standard output"),
            _ => retryable(format!("result is no JSON: line {} column {}", e.line(), e.column())),
        })?;
        let usage = Usage { tokens: 0, microdollars: self.definition.offer.cost_microdollars };
        Ok(Finished::Result { result, usage })
    }
}

/// The process of a command line of this agent: with pipes, in a group of its own, in the folder, with the
/// environment and the limit on memory that its file says.
///
/// # Errors
/// One line: what is missing.
pub(super) fn process(
    definition: &Definition,
    argv: &[String],
    env: &Env,
) -> Result<tokio::process::Command, String> {
    let (run, folder) = (&definition.run, definition.folder.as_deref());
    let (name, arguments) = argv.split_first().ok_or("argv is missing")?;
    let program = program(name, folder, env)?;
    let mut command = match definition.limits.memory_bytes {
        None => tokio::process::Command::new(&program),
        Some(bytes) => {
            let mut shell = tokio::process::Command::new("/bin/sh");
            shell.args(["-c", LIMITED]).arg((bytes / 1024).to_string()).arg(&program);
            shell
        }
    };
    let cwd = match (folder, &run.cwd) {
        (Some(folder), Some(cwd)) => Some(folder.join(cwd)),
        (folder, cwd) => cwd.clone().or_else(|| folder.map(Path::to_owned)),
    };
    if let Some(cwd) = cwd.filter(|cwd| !cwd.as_os_str().is_empty()) {
        command.current_dir(cwd);
    }
    command.args(arguments).env_clear();
    command.envs(run.env.iter().filter_map(|name| Some((name, env.get(name)?)))).envs(&run.env_set);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command.process_group(0).kill_on_drop(true);
    Ok(command)
}

fn ids(job: &Job) -> Vec<(&'static str, String)> {
    let start = &job.start;
    let mut ids = vec![
        ("CONVOKE_TASK_ID", start.key.task_id.to_string()),
        ("CONVOKE_ASSIGNMENT_ID", start.key.assignment_id.to_string()),
        ("CONVOKE_EPOCH", start.key.epoch.to_string()),
        ("CONVOKE_AGENT_ID", job.agent_id.to_string()),
        ("CONVOKE_ORG", start.org.to_string()),
        ("CONVOKE_KIND", start.kind.clone()),
        ("CONVOKE_ATTEMPT", start.attempt.to_string()),
    ];
    let checkpoint = start.checkpoint.as_ref().map(Value::to_string);
    ids.extend(
        checkpoint.filter(|text| text.len() <= CHECKPOINT_BYTES_MAX).map(|text| ("CONVOKE_CHECKPOINT", text)),
    );
    let mut messages = job.messages();
    let mut text = json!(messages).to_string();
    // The oldest go first where the environment has no room for all.
    while let (true, [_, later @ ..]) = (text.len() > CHECKPOINT_BYTES_MAX, messages) {
        messages = later;
        text = json!(messages).to_string();
    }
    ids.extend((!messages.is_empty()).then_some(("CONVOKE_MESSAGES", text)));
    let answers = (!start.answers.is_empty()).then(|| json!(start.answers).to_string());
    ids.extend(
        answers.filter(|text| text.len() <= CHECKPOINT_BYTES_MAX).map(|text| ("CONVOKE_ANSWERS", text)),
    );
    ids.extend(start.rejected.clone().map(|reason| ("CONVOKE_REJECTED", reason)));
    if let Some(pass) = job.pass() {
        ids.extend([("CONVOKE_URL", pass.url.clone()), ("CONVOKE_TOKEN", pass.token.clone())]);
    }
    ids
}

#[async_trait::async_trait]
impl Agent for Command {
    async fn run(&self, job: Job) -> Result<Finished, Failure> {
        let (mut child, group) = self.spawn(&job)?;
        let (stdin, stdout, stderr) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
        let input = job.start.input.to_string();
        let feed = feed(stdin, input);
        let output = read_output(stdout, self.definition.limits.output_bytes, &group);
        let reporter = job.reporter();
        let lines = read_lines(stderr, reporter.clone());
        let work = async {
            let streams = async { tokio::join!(feed, output, lines) };
            tokio::pin!(streams);
            let (status, seen) = tokio::select! {
                status = child.wait() => (status, None),
                seen = &mut streams => (child.wait().await, Some(seen)),
            };
            // What it left behind would keep the pipes open.
            group.end();
            let seen = match seen {
                Some(seen) => Some(seen),
                None => timeout(AFTER_EXIT, streams).await.ok(),
            };
            (status, seen)
        };
        tokio::pin!(work);
        let (status, seen) = tokio::select! {
            ended = &mut work => ended,
            () = job.stopped() => {
                group.ask_to_end();
                if timeout(TERM_GRACE, &mut work).await.is_err() {
                    group.kill();
                }
                return Err(retryable("the command was stopped"));
            }
        };
        let status = status.map_err(|e| retryable(format!("the command was lost: {}", e.kind())))?;
        let ((), output, (last_line, question)) =
            seen.ok_or_else(|| retryable("a process that the command left behind keeps its output open"))?;
        let checkpoint = reporter.last_checkpoint();
        self.result(Ended { status, output, last_line, question, checkpoint })
    }
}

pub(super) async fn feed(stdin: Option<ChildStdin>, input: String) {
    if let Some(mut stdin) = stdin {
        // A command that does not read its input closes the pipe, which is its right.
        let _ = stdin.write_all(input.as_bytes()).await;
        let _ = stdin.write_all(b"\n").await;
    }
}

/// All of the output. The group is killed once it is too much: it would write for ever.
pub(super) async fn read_output(
    stdout: Option<ChildStdout>,
    bytes_max: usize,
    group: &Group,
) -> Result<Vec<u8>, TooMuch> {
    let Some(mut stdout) = stdout else { return Ok(Vec::new()) };
    let (mut all, mut chunk) = (Vec::new(), vec![0; 16 << 10]);
    loop {
        match stdout.read(&mut chunk).await {
            Ok(0) | Err(_) => return Ok(all),
            Ok(read) if all.len() + read > bytes_max => {
                group.kill();
                return Err(TooMuch);
            }
            Ok(read) => all.extend_from_slice(chunk.get(..read).unwrap_or_default()),
        }
    }
}

/// A line of progress on standard error.
#[derive(Deserialize)]
struct Line {
    question: Option<String>,
    #[serde(rename = "for", default)]
    wait_for: WaitFor,
    progress: Option<f32>,
    activity: Option<String>,
    checkpoint: Option<Value>,
}

/// Reports what is progress, and gives the last line that is none, and the last question.
async fn read_lines(stderr: Option<ChildStderr>, reporter: Reporter) -> (Option<String>, Option<Asked>) {
    let Some(stderr) = stderr else { return (None, None) };
    let mut stderr = BufReader::new(stderr);
    let (mut line, mut last, mut asked) = (Vec::new(), None, None);
    loop {
        line.clear();
        match (&mut stderr).take(LINE_BYTES_MAX).read_until(b'\n', &mut line).await {
            Ok(0) | Err(_) => return (last, asked),
            Ok(_) => {}
        }
        let told =
            line.trim_ascii_start().starts_with(b"{").then(|| serde_json::from_slice::<Line>(&line).ok());
        match told.flatten() {
            Some(Line { question, wait_for, progress, activity, checkpoint })
                if question.is_some() || progress.is_some() || activity.is_some() || checkpoint.is_some() =>
            {
                asked = question.map(|question| Asked { wait_for, question }).or(asked);
                reporter.report(Progress { progress, activity, checkpoint });
            }
            _ => {
                let text = one_line(&String::from_utf8_lossy(&line));
                last = Some(text).filter(|text| !text.is_empty()).or(last);
            }
        }
    }
}
