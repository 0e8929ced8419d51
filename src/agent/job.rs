//! The trait that does the work, and one piece of it.
use super::Pass;
use super::{Handled, Message};
use crate::{
    id::AgentId,
    task::{
        AssignmentKey, Error, Failure, Progress, Question, Request, Requested, Short, Start, Tasks, Usage,
    },
};
use parking_lot::Mutex;
use serde_json::Value;
use std::{collections::HashMap, sync::Arc, time::Duration};
use tokio::{sync::Notify, time::Instant};
use tokio_util::sync::CancellationToken;

/// Does the work of an agent. Implement it, register it, and name it in a definition with `kind = "rust"`.
#[async_trait::async_trait]
pub trait Agent: Send + Sync {
    /// Does one job; up to `slots` run at once. When [`Job::stopped`] resolves there are a few seconds to
    /// return; after them the future is dropped. The lease is renewed while the future waits, so long
    /// computing belongs in `spawn_blocking`.
    ///
    /// # Errors
    /// A [`Failure`] with a line for people, and whether another attempt may do better.
    async fn run(&self, job: Job) -> Result<Finished, Failure>;

    /// Hears another agent, or a person: one message at a time, in their order, also while jobs run. Unless
    /// it says otherwise, messages are kept for its next job ([`Job::messages`]). It has 30 seconds.
    ///
    /// # Errors
    /// A [`Failure`]: the message is dropped, and the log says so.
    async fn message(&self, message: &Message) -> Result<Handled, Failure> {
        let _ = message;
        Ok(Handled::Keep)
    }
}

/// How a job ended well.
#[derive(Clone, Debug, PartialEq)]
pub enum Finished {
    /// With this result, at this cost.
    Result {
        /// Any JSON up to `limits.output_bytes`.
        result: Value,
        /// What it used.
        usage: Usage,
    },
    /// It cannot go on without an answer: a person's word or consent, or budget. With the answer the task comes
    /// again, to this agent first, with the checkpoint and the answers in its start.
    Waits(Question),
    /// Someone else has taken it over and reports through `/v1/assignments`; the slot stays taken until then.
    Elsewhere,
}

impl From<Value> for Finished {
    fn from(result: Value) -> Self {
        Self::Result { result, usage: Usage::default() }
    }
}

/// One job: what to do, whom to tell, when to stop.
#[derive(Clone, Debug)]
pub struct Job {
    /// What to work on, and what to report with.
    pub start: Start,
    /// Who works.
    pub agent_id: AgentId,
    /// When it is stopped at the latest.
    pub deadline: Instant,
    reporter: Reporter,
    stop: CancellationToken,
    messages: Vec<Message>,
    purse: Option<Purse>,
    tasks: Option<Tasks>,
    pass: Option<Pass>,
}

/// What the work of a job is paid from, where there is a limit. Clones are the same purse.
#[derive(Clone, Debug)]
pub(crate) struct Purse(Arc<Held>);

#[derive(Debug)]
struct Held {
    tasks: Tasks,
    key: AssignmentKey,
    agent: AgentId,
    per_hour: Option<u64>,
    short: Mutex<Option<Short>>,
}

impl Purse {
    pub(crate) fn new(tasks: Tasks, key: AssignmentKey, agent: AgentId, per_hour: Option<u64>) -> Self {
        Self(Arc::new(Held { tasks, key, agent, per_hour, short: Mutex::default() }))
    }

    /// Reserves the most that the next step may use. A failure ends the job: the task waits for more, or goes
    /// to another agent.
    pub(crate) async fn reserve(&self, most: Usage) -> Result<(), Failure> {
        let Held { tasks, key, agent, per_hour, short } = &*self.0;
        match tasks.reserve(*key, agent, most, *per_hour).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(lacks)) => {
                let message = lacks.to_string();
                *short.lock() = Some(lacks);
                Err(retryable(message))
            }
            Err(error) => Err(retryable(error.to_string())),
        }
    }

    /// Why nothing could be reserved, if that is why the job has ended.
    pub(crate) fn short(&self) -> Option<Short> {
        self.0.short.lock().clone()
    }
}

impl Job {
    /// A job that must end within `timeout`; `stop` asks it to end before.
    #[must_use]
    pub fn new(start: Start, agent_id: AgentId, timeout: Duration, stop: CancellationToken) -> Self {
        let (deadline, reporter) = (Instant::now() + timeout, Reporter::default());
        Self {
            start,
            agent_id,
            deadline,
            reporter,
            stop,
            messages: Vec::new(),
            purse: None,
            tasks: None,
            pass: None,
        }
    }

    /// The same with messages that came for the agent.
    #[must_use]
    pub fn with_messages(mut self, messages: Vec<Message>) -> Self {
        self.messages = messages;
        self
    }

    /// The same, paid from this.
    #[must_use]
    pub(crate) fn with_purse(mut self, purse: Option<Purse>) -> Self {
        self.purse = purse;
        self
    }

    /// What it is paid from, where there is a limit.
    pub(crate) fn purse(&self) -> Option<&Purse> {
        self.purse.as_ref()
    }

    /// The same where parts can be requested, and with what lets it act as its agent.
    #[must_use]
    pub fn in_daemon(mut self, tasks: Tasks, pass: Option<Pass>) -> Self {
        (self.tasks, self.pass) = (Some(tasks), pass);
        self
    }

    /// Where the daemon is, and a token that speaks as this agent while the job lasts.
    #[must_use]
    pub fn pass(&self) -> Option<&Pass> {
        self.pass.as_ref()
    }

    /// Requests a task that is a part of this one: canceled with it, unless it is detached.
    ///
    /// # Errors
    /// As [`Tasks::request_part`]; `Unavailable` where there is no daemon.
    pub async fn request(&self, request: Request) -> Result<Requested, Error> {
        let tasks = self.tasks.as_ref().ok_or(Error::Unavailable(None))?;
        tasks.request_part(&self.start.org, self.start.key, &self.agent_id, request).await
    }

    /// What others said to the agent since its last job, as far as it was kept.
    #[must_use]
    pub fn messages(&self) -> &[Message] {
        &self.messages
    }

    /// What to work on.
    #[must_use]
    pub fn input(&self) -> &Value {
        &self.start.input
    }

    /// Tells how far it is, from 0 to 1, and what it is doing, one line. Never waits; only the latest counts.
    pub fn progress(&self, progress: f32, activity: &str) {
        let progress =
            Progress { progress: Some(progress), activity: Some(activity.to_owned()), checkpoint: None };
        self.reporter.report(progress);
    }

    /// Leaves what a next assignee can go on from, should this one not come to the end.
    pub fn checkpoint(&self, checkpoint: Value) {
        self.reporter.report(Progress { checkpoint: Some(checkpoint), ..Progress::default() });
    }

    /// Where progress is told, for a helper that outlives a borrow of the job.
    #[must_use]
    pub fn reporter(&self) -> Reporter {
        self.reporter.clone()
    }

    /// Resolves when the job is to end: it was cancelled, its time is up, or the daemon stops.
    pub async fn stopped(&self) {
        self.stop.cancelled().await;
    }

    /// What resolves [`Self::stopped`].
    #[must_use]
    pub fn stop_token(&self) -> CancellationToken {
        self.stop.clone()
    }
}

/// Where a job tells its progress: a slot that holds the latest of each part. Clones are the same slot.
#[derive(Clone, Debug, Default)]
pub struct Reporter(Arc<Told>);

#[derive(Debug, Default)]
struct Told {
    latest: Mutex<Option<Progress>>,
    checkpoint: Mutex<Option<Value>>,
    changed: Notify,
}

impl Reporter {
    /// Tells progress. Never waits. A progress that is no number or outside of 0 to 1 is put right.
    pub fn report(&self, progress: Progress) {
        if progress.checkpoint.is_some() {
            self.0.checkpoint.lock().clone_from(&progress.checkpoint);
        }
        let mut latest = self.0.latest.lock();
        let told = latest.get_or_insert_default();
        let part = progress.progress.filter(|part| part.is_finite()).map(|part| part.clamp(0.0, 1.0));
        told.progress = part.or(told.progress);
        told.activity = progress.activity.map(|text| one_line(&text)).or_else(|| told.activity.take());
        told.checkpoint = progress.checkpoint.or_else(|| told.checkpoint.take());
        drop(latest);
        self.0.changed.notify_one();
    }

    /// The latest, once there is something new. Cancel safe. One waiter at a time.
    pub async fn next(&self) -> Progress {
        loop {
            if let Some(progress) = self.0.latest.lock().take() {
                return progress;
            }
            self.0.changed.notified().await;
        }
    }

    /// The last checkpoint that was told.
    #[must_use]
    pub fn last_checkpoint(&self) -> Option<Value> {
        self.0.checkpoint.lock().clone()
    }
}

/// Longest line of text from an agent that is shown, in bytes.
const LINE_BYTES_MAX: usize = 300;

/// The text as one line without control characters, cut to a length that can be shown.
pub(crate) fn one_line(text: &str) -> String {
    let mut line: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    if line.len() > LINE_BYTES_MAX {
        let end = (0..=LINE_BYTES_MAX).rev().find(|at| line.is_char_boundary(*at)).unwrap_or(0);
        line.truncate(end);
        line.push('…');
    }
    line.trim().to_owned()
}

/// The code behind agents of `kind = "rust"`, by name.
#[derive(Clone, Default)]
pub struct Registry(HashMap<String, Arc<dyn Agent>>);

impl Registry {
    /// Adds code under a name; the same name again replaces it.
    pub fn register(&mut self, name: &str, agent: Arc<dyn Agent>) {
        self.0.insert(name.to_owned(), agent);
    }

    /// The code under that name.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<Arc<dyn Agent>> {
        self.0.get(name).cloned()
    }
}

/// A failure that another attempt may not have, with one line for people.
pub(crate) fn retryable(message: impl Into<String>) -> Failure {
    Failure { message: message.into(), retryable: true, usage: Usage::default() }
}

/// A failure that every attempt will have, with one line for people.
pub(crate) fn permanent(message: impl Into<String>) -> Failure {
    Failure { message: message.into(), retryable: false, usage: Usage::default() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn only_the_latest_progress_counts_and_parts_are_kept() {
        let reporter = Reporter::default();
        let report = |progress, activity: Option<&str>, checkpoint| {
            reporter.report(Progress { progress, activity: activity.map(str::to_owned), checkpoint });
        };
        report(Some(0.2), Some("reading"), Some(Value::from(1)));
        report(Some(7.5), None, None);
        report(Some(f32::NAN), Some("wri\nting"), None);
        let told = reporter.next().await;
        assert_eq!((told.progress, told.activity.as_deref()), (Some(1.0), Some("wri ting")));
        assert_eq!(told.checkpoint, Some(Value::from(1)));
        assert_eq!(reporter.last_checkpoint(), Some(Value::from(1)));
        let nothing = tokio::time::timeout(Duration::from_millis(1), reporter.next()).await;
        assert!(nothing.is_err());
    }

    #[test]
    fn a_line_is_one_line_and_short() {
        assert_eq!(one_line(" a\tb\r\n"), "a b");
        let long = one_line(&"é".repeat(400));
        assert!(long.len() <= LINE_BYTES_MAX + 3 && long.ends_with('…'));
    }
}
