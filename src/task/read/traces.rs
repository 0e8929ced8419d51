//! What happened to tasks that have ended and belong to a recorded trace, for its export.
use crate::id::{AssignmentId, TraceContext};
use crate::task::storage::rows::{self, Columns, Unreadable};
use crate::task::storage::statement::sql;
use crate::task::{Error, TaskId, TaskReader, TokenParts};
use chrono::{DateTime, Utc};
use serde_json::Value;
use std::collections::HashMap;
use tokio_postgres::Row;
use uuid::Uuid;

/// Most events that are looked at for one part of the export.
const EVENTS_MAX: i64 = 5_000;

/// A part of the export: the tasks that have ended since the part before.
#[derive(Clone, Debug, Default)]
pub struct Traced {
    /// The tasks, some of them perhaps once more.
    pub tasks: Vec<TracedTask>,
    /// The number of the last event that was looked at.
    pub reached: i64,
    /// About how many events come after it.
    pub waiting: i64,
}

/// A task that has ended.
#[derive(Clone, Debug)]
pub struct TracedTask {
    /// The task.
    pub id: TaskId,
    /// Its org.
    pub org: String,
    /// The kind of work.
    pub kind: String,
    /// Its final state.
    pub state: String,
    /// The reason of the state.
    pub reason: Option<String>,
    /// The wake or schedule that requested it, like `wake:triage#0`. `None` for any other requester: those are people
    /// and programs.
    pub trigger: Option<String>,
    /// The trace and the span that it was requested in.
    pub trace: TraceContext,
    /// When it was requested.
    pub began: DateTime<Utc>,
    /// When it ended.
    pub ended: DateTime<Utc>,
    /// Its events, the newest 100.
    pub events: Vec<TracedEvent>,
    /// Its assignments.
    pub attempts: Vec<TracedAttempt>,
    /// The steps of its runs, without notes.
    pub steps: Vec<TracedStep>,
}

/// An event of a task.
#[derive(Clone, Debug)]
pub struct TracedEvent {
    /// The type, like `awarded`.
    pub kind: String,
    /// The agent that it is about.
    pub agent: Option<String>,
    /// Its time.
    pub at: DateTime<Utc>,
}

/// An assignment that has ended.
#[derive(Clone, Debug)]
pub struct TracedAttempt {
    /// The assignment.
    pub id: AssignmentId,
    /// The agent.
    pub agent: String,
    /// How it ended, like `finished`.
    pub state: String,
    /// When it was awarded.
    pub began: DateTime<Utc>,
    /// When it ended.
    pub ended: DateTime<Utc>,
}

/// A step of a run that has ended.
#[derive(Clone, Debug)]
pub struct TracedStep {
    /// The run.
    pub run: i32,
    /// Its number in the run.
    pub seq: i32,
    /// The assignment that ended it.
    pub assignment: AssignmentId,
    /// How it ended, like `done`.
    pub state: String,
    /// When it was begun last.
    pub began: DateTime<Utc>,
    /// When it ended.
    pub ended: DateTime<Utc>,
    /// What it is.
    pub what: TracedWork,
}

/// What a step was.
#[derive(Clone, Debug)]
pub enum TracedWork {
    /// A question to a model.
    Question {
        /// The provider; empty for one of an earlier version.
        provider: String,
        /// The model that was asked; empty for one of an earlier version.
        model: String,
        /// The model that the endpoint names.
        said: Option<String>,
        /// `finish_reason` of the endpoint.
        finish: Option<String>,
        /// Its tokens. `None` if the endpoint did not count them.
        tokens: Option<TokenParts>,
        /// What it cost.
        microdollars: u64,
        /// The answer, if contents are read.
        answer: Option<Value>,
    },
    /// A call of a tool.
    Call {
        /// The tool.
        name: String,
        /// The provider's own id of the call.
        wire_id: Option<String>,
        /// The class of its effect.
        effect: String,
        /// What it cost.
        microdollars: u64,
        /// The arguments, if contents are read.
        args: Option<Value>,
        /// The result, if contents are read.
        result: Option<String>,
    },
}

impl TaskReader {
    /// Where the export goes on: the number of the last event that was read for it.
    ///
    /// # Errors
    /// `Unavailable`.
    pub async fn trace_export(&self) -> Result<i64, Error> {
        let rows = self.query(sql!("traced_begin"), &[]).await?;
        Ok(rows.first().map(|row| row.read("seq")).transpose()?.unwrap_or(0))
    }

    /// Records how far the export has come.
    ///
    /// # Errors
    /// `Unavailable`.
    pub async fn trace_exported(&self, reached: i64) -> Result<(), Error> {
        self.query(sql!("traced_reached"), &[&reached]).await.map(drop)
    }

    /// The tasks that have ended since the event `after`, and again those of the last 5 seconds before it, but without
    /// events, attempts and steps: [`Self::complete_traced`] reads those of the tasks that are to be sent.
    ///
    /// # Errors
    /// `Unavailable`.
    pub async fn traced(&self, after: i64) -> Result<Traced, Error> {
        let rows = self.query(sql!("traced_tasks"), &[&after, &EVENTS_MAX]).await?;
        let number = |name| rows.first().map_or(Ok(None), |row| row.read::<Option<i64>>(name));
        let (reached, waiting) = (number("reached")?.unwrap_or(after), number("waiting")?.unwrap_or(0));
        let found = rows.iter().filter_map(|row| task(row).transpose());
        Ok(Traced { tasks: found.collect::<Result<_, Unreadable>>()?, reached, waiting })
    }

    /// Adds the events, attempts and steps of these tasks. `contents`: with arguments, results and answers.
    ///
    /// # Errors
    /// `Unavailable`.
    pub async fn complete_traced(&self, tasks: &mut [TracedTask], contents: bool) -> Result<(), Error> {
        if tasks.is_empty() {
            return Ok(());
        }
        let ids: Vec<Uuid> = tasks.iter().map(|task| task.id.as_uuid()).collect();
        let mut events = grouped(&self.query(sql!("traced_events"), &[&ids]).await?, event)?;
        let mut attempts = grouped(&self.query(sql!("traced_attempts"), &[&ids]).await?, attempt)?;
        let mut steps = grouped(&self.query(sql!("traced_steps"), &[&ids, &contents]).await?, step)?;
        for task in tasks {
            let id = task.id.as_uuid();
            task.events = events.remove(&id).unwrap_or_default();
            task.attempts = attempts.remove(&id).unwrap_or_default();
            task.steps = steps.remove(&id).unwrap_or_default();
        }
        Ok(())
    }
}

/// The rows by their task. Rows without a time, which nobody but a person writes, are left out.
fn grouped<T>(
    rows: &[Row],
    read: impl Fn(&Row) -> Result<Option<T>, Unreadable>,
) -> Result<HashMap<Uuid, Vec<T>>, Unreadable> {
    let mut by_task: HashMap<Uuid, Vec<T>> = HashMap::new();
    for row in rows {
        if let Some(found) = read(row)? {
            by_task.entry(row.read("task_id")?).or_default().push(found);
        }
    }
    Ok(by_task)
}

/// `None` for the row that only says how far the events were read, and for a task whose trace cannot be read.
fn task(row: &Row) -> Result<Option<TracedTask>, Unreadable> {
    let Some(id) = row.read::<Option<Uuid>>("id")?.map(TaskId::from) else { return Ok(None) };
    let trace = row.read::<Option<&str>>("traceparent")?.and_then(|text| text.parse().ok());
    let times = rows::time(row, "created_at")?.zip(rows::time(row, "updated_at")?);
    let Some((trace, (began, ended))) = trace.zip(times) else { return Ok(None) };
    Ok(Some(TracedTask {
        id,
        org: row.read("org")?,
        kind: row.read("kind")?,
        state: row.read("state")?,
        reason: row.read("state_reason")?,
        trigger: row.read("trigger")?,
        trace,
        began,
        ended,
        events: Vec::new(),
        attempts: Vec::new(),
        steps: Vec::new(),
    }))
}

fn event(row: &Row) -> Result<Option<TracedEvent>, Unreadable> {
    let Some(at) = rows::time(row, "at")? else { return Ok(None) };
    Ok(Some(TracedEvent { kind: row.read("type")?, agent: row.read("agent_id")?, at }))
}

fn attempt(row: &Row) -> Result<Option<TracedAttempt>, Unreadable> {
    let times = rows::time(row, "awarded_at")?.zip(rows::time(row, "ended_at")?);
    let Some((began, ended)) = times else { return Ok(None) };
    let (agent, state) = (row.read("agent_id")?, row.read("state")?);
    Ok(Some(TracedAttempt { id: row.read::<Uuid>("id")?.into(), agent, state, began, ended }))
}

fn step(row: &Row) -> Result<Option<TracedStep>, Unreadable> {
    let times = rows::time(row, "began_at")?.zip(rows::time(row, "ended_at")?);
    let Some((began, ended)) = times else { return Ok(None) };
    let text = |name| Ok::<_, Unreadable>(row.read::<Option<String>>(name)?.unwrap_or_default());
    let what = match row.read::<&str>("kind")? {
        "model" => TracedWork::Question {
            provider: text("provider")?,
            model: text("model_asked")?,
            said: row.read("model_said")?,
            finish: row.read("finish")?,
            tokens: tokens(row)?,
            microdollars: amount(row, "microdollars")?.unwrap_or(0),
            answer: row.read("answer")?,
        },
        _ => TracedWork::Call {
            name: text("name")?,
            wire_id: row.read("wire_id")?,
            effect: text("effect")?,
            microdollars: amount(row, "microdollars")?.unwrap_or(0),
            args: row.read("args")?,
            result: row.read("result")?,
        },
    };
    Ok(Some(TracedStep {
        run: row.read("run")?,
        seq: row.read("seq")?,
        assignment: row.read::<Uuid>("assignment_id")?.into(),
        state: row.read("state")?,
        began,
        ended,
        what,
    }))
}

fn tokens(row: &Row) -> Result<Option<TokenParts>, Unreadable> {
    let count = |name| Ok::<_, Unreadable>(amount(row, name)?.unwrap_or(0));
    let Some(input) = amount(row, "input_tokens")? else { return Ok(None) };
    Ok(Some(TokenParts {
        input,
        cached: count("cached_tokens")?,
        written: count("written_tokens")?,
        output: count("output_tokens")?,
        reasoning: count("reasoning_tokens")?,
    }))
}

fn amount(row: &Row, name: &str) -> Result<Option<u64>, Unreadable> {
    Ok(row.read::<Option<i64>>(name)?.and_then(|count| u64::try_from(count).ok()))
}
