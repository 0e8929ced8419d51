//! `kind = "command"`: a process for each task.
//!
//! The input comes as JSON on standard input, the result is the one JSON value on
//! standard output, lines on standard error like `{"progress": 0.5, "activity":
//! "reading"}` are progress; a `{"question": "…", "for": "input"}` (or `"approval"`)
//! before exit status 0 asks instead of answering, and the task comes again with the answer in
//! `CONVOKE_ANSWERS` and the last `{"checkpoint": …}` in `CONVOKE_CHECKPOINT`. No shell reads the command line, and
//! the environment has only `CONVOKE_*` and the variables of the definition. The process leads its own group, which
//! gets SIGTERM on cancel and timeout and SIGKILL two seconds later, and in any case when the process has ended. A
//! descendant that leaves the group by a session of its own is not killed.
use super::{
    group::Group,
    program::{program, spawn_error},
};
use crate::{
    agent::{
        Agent, Definition, Env, Finished, Job, Reporter,
        job::{one_line, permanent, retryable, unread},
    },
    json,
    task::{Failure, Progress, Question, Usage, WaitFor},
};
use serde::Deserialize;
use serde_json::{Value, json};
use std::{
    path::Path,
    process::{ExitStatus, Stdio},
    sync::Arc,
    time::Duration,
};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    process::{Child, ChildStderr, ChildStdin, ChildStdout},
    time::timeout,
};

/// Time between SIGTERM and SIGKILL.
const TERM_GRACE: Duration = Duration::from_secs(2);
/// Longest line of standard error that is read, in bytes.
const LINE_BYTES_MAX: u64 = 64 << 10;
/// Largest checkpoint, and most of the messages, that fits into the environment, in bytes.
const CHECKPOINT_BYTES_MAX: usize = 100 << 10;
/// Sets the limit on the address space, then becomes the command.
const LIMITED: &str = "ulimit -v \"$0\" && exec \"$@\"";

/// An agent of kind `command`.
pub(crate) struct Command {
    definition: Arc<Definition>,
    env: Env,
}

/// The outcome of a process.
struct Ended {
    status: ExitStatus,
    output: Result<Vec<u8>, TooMuch>,
    last_line: Option<String>,
    question: Option<Asked>,
    checkpoint: Option<Value>,
}

/// The question on standard error before the process ended.
struct Asked {
    wait_for: WaitFor,
    question: String,
}

/// More output than the limit.
pub(in crate::agent) struct TooMuch;

impl Command {
    pub(crate) fn new(definition: Arc<Definition>, env: Env) -> Self {
        Self { definition, env }
    }

    fn spawn(&self, job: &Job) -> Result<(Child, Group), Failure> {
        let argv = self.definition.run.argv.as_deref().unwrap_or_default();
        let mut command = process(&self.definition, argv, &self.env).map_err(permanent)?;
        let child = command.envs(ids(job)).spawn().map_err(|e| {
            let (message, again) = refused(&command, &e);
            if again { retryable(message) } else { permanent(message) }
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
            let usage =
                Usage { tokens: 0, microdollars: self.definition.offer.cost_microdollars, presumed: false };
            return Ok(Finished::Waits(Question {
                wait_for,
                question,
                checkpoint: ended.checkpoint,
                usage,
                calls: Vec::new(),
                approvers: Vec::new(),
            }));
        }
        let result = json::parse(&output).map_err(|e| match (output.trim_ascii(), e) {
            ([], _) => retryable("result is no JSON: the command wrote nothing on standard output"),
            (_, e) => unread(&e),
        })?;
        let usage =
            Usage { tokens: 0, microdollars: self.definition.offer.cost_microdollars, presumed: false };
        Ok(Finished::Result { result, usage })
    }
}

/// The process of a command line of this agent: with pipes, in a group of its own, with the folder, environment and
/// memory limit of the definition.
///
/// # Errors
/// What is missing, one line.
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

/// Why the command was not started, and whether another attempt may do better.
pub(super) fn refused(command: &tokio::process::Command, error: &std::io::Error) -> (String, bool) {
    let command = command.as_std();
    spawn_error(Path::new(command.get_program()), command.get_current_dir(), error)
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
    // The environment has a size limit: the oldest are left out first.
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
    ids.extend(start.traceparent.map(|trace| ("TRACEPARENT", trace.to_string())));
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
        let streams = async { tokio::join!(feed, output, lines) };
        let work = group.wait(&mut child, streams);
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

pub(in crate::agent) async fn feed(stdin: Option<ChildStdin>, input: String) {
    if let Some(mut stdin) = stdin {
        // A command may close the pipe without reading its input.
        let _ = stdin.write_all(input.as_bytes()).await;
        let _ = stdin.write_all(b"\n").await;
    }
}

/// All of the output. The group is killed once it is over the limit, since it may never stop writing.
pub(in crate::agent) async fn read_output(
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

/// Reports progress lines; returns the last other line and the last question.
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
