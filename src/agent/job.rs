//! The trait of agents' code, and one job.
use super::JobCredentials;
use super::{AgentMessage, Handled};
use crate::{
    id::AgentId,
    json,
    task::{
        AssignmentKey, Error, Failure, InsufficientBudget, Progress, Question, Request, Requested, Start,
        TaskCommands, Usage,
    },
};
use parking_lot::Mutex;
use serde_json::Value;
use std::{collections::HashMap, sync::Arc, time::Duration};
use tokio::{sync::Notify, time::Instant};
use tokio_util::sync::CancellationToken;

/// The code of an agent. Implement it, register it, and name it in a definition with `kind = "rust"`.
#[async_trait::async_trait]
pub trait Agent: Send + Sync {
    /// Runs one job; up to `slots` run at once. When [`Job::stopped`] resolves, the code has a few seconds to return;
    /// after them the future is dropped. The lease is renewed by the same task, so long computations belong in
    /// `spawn_blocking`.
    ///
    /// # Errors
    /// A [`Failure`] with one line to show, and whether a retry may succeed.
    async fn run(&self, job: Job) -> Result<Finished, Failure>;

    /// Handles a message from another agent or a person: one at a time, in their order, also while jobs run, within 30
    /// seconds. The default keeps messages for the next job ([`Job::messages`]).
    ///
    /// # Errors
    /// A [`Failure`]: the message is dropped and logged at debug.
    async fn message(&self, message: &AgentMessage) -> Result<Handled, Failure> {
        let _ = message;
        Ok(Handled::Keep)
    }
}

/// The result of a successful job.
#[derive(Clone, Debug, PartialEq)]
pub enum Finished {
    /// A result.
    Result {
        /// Any JSON up to `limits.output_bytes`.
        result: Value,
        /// What the job used.
        usage: Usage,
    },
    /// The job needs an answer: input or approval of a person, or budget. With the answer the task is awarded again, to
    /// this agent first, with the checkpoint and the answers in its start.
    Waits(Question),
    /// Another process continues the job and reports through `/v1/assignments`. The slot stays taken until it ends.
    Delegated,
    /// The job goes on later with the same attempt, like after a long wait for a model. Until then it holds no slot.
    Deferred {
        /// Why, one line.
        reason: String,
        /// When it goes on.
        after: Duration,
        /// What the job used.
        usage: Usage,
    },
}

impl From<Value> for Finished {
    fn from(result: Value) -> Self {
        Self::Result { result, usage: Usage::default() }
    }
}

/// One job: its input, its reporter, its deadline.
#[derive(Clone, Debug)]
pub struct Job {
    /// The task and the key of its assignment.
    pub start: Start,
    /// The agent that runs it.
    pub agent_id: AgentId,
    /// The time at which it is stopped.
    pub deadline: Instant,
    reporter: Reporter,
    stop: CancellationToken,
    messages: Vec<AgentMessage>,
    budget: Option<BudgetHandle>,
    tasks: Option<TaskCommands>,
    pass: Option<JobCredentials>,
}

/// The budget of a job, if there is a limit. Clones share it.
#[derive(Clone, Debug)]
pub(crate) struct BudgetHandle(Arc<BudgetHold>);

#[derive(Debug)]
struct BudgetHold {
    tasks: TaskCommands,
    key: AssignmentKey,
    agent: AgentId,
    per_hour: Option<u64>,
    short: Mutex<Option<InsufficientBudget>>,
}

impl BudgetHandle {
    pub(crate) fn new(
        tasks: TaskCommands,
        key: AssignmentKey,
        agent: AgentId,
        per_hour: Option<u64>,
    ) -> Self {
        Self(Arc::new(BudgetHold { tasks, key, agent, per_hour, short: Mutex::default() }))
    }

    /// Reserves the most that the next step may use. A failure ends the job: the task waits for budget, or goes to
    /// another agent.
    pub(crate) async fn reserve(&self, most: Usage) -> Result<(), Failure> {
        let BudgetHold { tasks, key, agent, per_hour, short } = &*self.0;
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

    /// The limit that ended the job. `None` if it was not a limit.
    pub(crate) fn short(&self) -> Option<InsufficientBudget> {
        self.0.short.lock().clone()
    }
}

impl Job {
    /// A job that ends within `timeout`; `stop` cancels it before.
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
            budget: None,
            tasks: None,
            pass: None,
        }
    }

    /// Adds the messages that the agent received.
    #[must_use]
    pub fn with_messages(mut self, messages: Vec<AgentMessage>) -> Self {
        self.messages = messages;
        self
    }

    /// Sets the budget.
    #[must_use]
    pub(crate) fn with_budget(mut self, budget: Option<BudgetHandle>) -> Self {
        self.budget = budget;
        self
    }

    /// The budget. `None` without a limit.
    pub(crate) fn budget(&self) -> Option<&BudgetHandle> {
        self.budget.as_ref()
    }

    /// Allows requests of parts, and sets the credentials of the agent.
    #[must_use]
    pub fn in_daemon(mut self, tasks: TaskCommands, pass: Option<JobCredentials>) -> Self {
        (self.tasks, self.pass) = (Some(tasks), pass);
        self
    }

    /// The commands of the task store. `None` without a daemon.
    pub(crate) fn tasks(&self) -> Option<&TaskCommands> {
        self.tasks.as_ref()
    }

    /// The address of the daemon and a token of the agent, which ends with the job. `None` without a daemon.
    #[must_use]
    pub fn pass(&self) -> Option<&JobCredentials> {
        self.pass.as_ref()
    }

    /// Requests a part of this task, which is canceled with it unless it is detached.
    ///
    /// # Errors
    /// As [`TaskCommands::request_part`]; `Unavailable` where there is no daemon.
    pub async fn request(&self, request: Request) -> Result<Requested, Error> {
        let tasks = self.tasks.as_ref().ok_or(Error::Unavailable(None))?;
        tasks.request_part(&self.start.org, self.start.key, &self.agent_id, request).await
    }

    /// The messages to the agent since its last job that were kept.
    #[must_use]
    pub fn messages(&self) -> &[AgentMessage] {
        &self.messages
    }

    /// The input of the task.
    #[must_use]
    pub fn input(&self) -> &Value {
        &self.start.input
    }

    /// Reports progress from 0 to 1, and the activity in one line. Never blocks; only the latest report counts.
    pub fn progress(&self, progress: f32, activity: &str) {
        let progress =
            Progress { progress: Some(progress), activity: Some(activity.to_owned()), checkpoint: None };
        self.reporter.report(progress);
    }

    /// Stores a checkpoint, which the next assignee receives if this job does not finish.
    pub fn checkpoint(&self, checkpoint: Value) {
        self.reporter.report(Progress { checkpoint: Some(checkpoint), ..Progress::default() });
    }

    /// The reporter, for code that outlives a borrow of the job.
    #[must_use]
    pub fn reporter(&self) -> Reporter {
        self.reporter.clone()
    }

    /// Shows what the job does now in the agent's presence, like `thinking`.
    pub(crate) fn shows(&self, activity: String) {
        self.reporter.report(Progress { progress: None, activity: Some(activity), checkpoint: None });
    }

    /// Resolves when the job must end: it was canceled, its time is up, or the daemon stops.
    pub async fn stopped(&self) {
        self.stop.cancelled().await;
    }

    /// The token behind [`Self::stopped`].
    #[must_use]
    pub fn stop_token(&self) -> CancellationToken {
        self.stop.clone()
    }
}

/// The reporter of a job: holds the latest value of each member of the progress. Clones share it.
#[derive(Clone, Debug, Default)]
pub struct Reporter(Arc<ProgressSlot>);

#[derive(Debug, Default)]
struct ProgressSlot {
    latest: Mutex<Option<Progress>>,
    checkpoint: Mutex<Option<Value>>,
    changed: Notify,
}

impl Reporter {
    /// Reports progress. Never blocks. A number outside 0 to 1 is clamped; one that is not finite is dropped.
    pub fn report(&self, progress: Progress) {
        if progress.checkpoint.is_some() {
            self.0.checkpoint.lock().clone_from(&progress.checkpoint);
        }
        let mut latest = self.0.latest.lock();
        let slot = latest.get_or_insert_default();
        let part = progress.progress.filter(|part| part.is_finite()).map(|part| part.clamp(0.0, 1.0));
        slot.progress = part.or(slot.progress);
        slot.activity = progress.activity.map(|text| one_line(&text)).or_else(|| slot.activity.take());
        slot.checkpoint = progress.checkpoint.or_else(|| slot.checkpoint.take());
        drop(latest);
        self.0.changed.notify_one();
    }

    /// Waits for a new report and returns the latest. Cancel safe. One waiter at a time.
    pub async fn next(&self) -> Progress {
        loop {
            if let Some(progress) = self.0.latest.lock().take() {
                return progress;
            }
            self.0.changed.notified().await;
        }
    }

    /// The last checkpoint.
    #[must_use]
    pub fn last_checkpoint(&self) -> Option<Value> {
        self.0.checkpoint.lock().clone()
    }
}

/// Longest line of an agent's text that is shown, in bytes.
const LINE_BYTES_MAX: usize = 300;

/// The text as one line without control characters, cut to [`LINE_BYTES_MAX`].
pub(crate) fn one_line(text: &str) -> String {
    let mut line: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    if line.len() > LINE_BYTES_MAX {
        let end = (0..=LINE_BYTES_MAX).rev().find(|at| line.is_char_boundary(*at)).unwrap_or(0);
        line.truncate(end);
        line.push('…');
    }
    line.trim().to_owned()
}

/// The code of agents of kind `rust`, by name.
#[derive(Clone, Default)]
pub struct Registry(HashMap<String, Arc<dyn Agent>>);

impl Registry {
    /// Registers code under a name, in place of any code with this name.
    pub fn register(&mut self, name: &str, agent: Arc<dyn Agent>) {
        self.0.insert(name.to_owned(), agent);
    }

    /// The code of this name.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<Arc<dyn Agent>> {
        self.0.get(name).cloned()
    }
}

/// A failure that a retry may avoid, with one line to show.
pub(crate) fn retryable(message: impl Into<String>) -> Failure {
    Failure { message: message.into(), retryable: true, outage: false, usage: Usage::default() }
}

/// A failure that every attempt will have, with one line to show.
pub(crate) fn permanent(message: impl Into<String>) -> Failure {
    Failure { message: message.into(), retryable: false, outage: false, usage: Usage::default() }
}

/// The failure of a result that cannot be read without loss.
pub(crate) fn unread(refused: &json::Refused) -> Failure {
    match refused {
        json::Refused::Syntax { line, column } => {
            retryable(format!("result is no JSON: line {line} column {column}"))
        }
        // The same program would return the same again.
        _ => permanent(format!("the result cannot be kept: {refused}")),
    }
}

/// A temporary failure of something that the agent depends on, with one line to show.
pub(crate) fn outage(message: impl Into<String>) -> Failure {
    Failure { outage: true, ..retryable(message) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn only_the_latest_value_of_each_member_counts() {
        let reporter = Reporter::default();
        let report = |progress, activity: Option<&str>, checkpoint| {
            reporter.report(Progress { progress, activity: activity.map(str::to_owned), checkpoint });
        };
        report(Some(0.2), Some("reading"), Some(Value::from(1)));
        report(Some(7.5), None, None);
        report(Some(f32::NAN), Some("wri\nting"), None);
        let slot = reporter.next().await;
        assert_eq!((slot.progress, slot.activity.as_deref()), (Some(1.0), Some("wri ting")));
        assert_eq!(slot.checkpoint, Some(Value::from(1)));
        assert_eq!(reporter.last_checkpoint(), Some(Value::from(1)));
        let nothing = tokio::time::timeout(Duration::from_millis(1), reporter.next()).await;
        assert!(nothing.is_err());
    }

    #[test]
    fn shown_text_is_one_short_line() {
        assert_eq!(one_line(" a\tb\r\n"), "a b");
        let long = one_line(&"é".repeat(400));
        assert!(long.len() <= LINE_BYTES_MAX + 3 && long.ends_with('…'));
    }
}
