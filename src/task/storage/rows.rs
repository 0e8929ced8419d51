//! Reads rows of the task tables as our types, each filled in one place.
//!
//! A value that cannot be decoded is an [`Unreadable`], never a panic and never a default. A reader of many rows sets
//! the unreadable one apart and continues. [`Task`] and [`Event`], which people read, show the rest of the row and
//! name the columns that are missing. A state that this version does not know is reported as a
//! newer schema; no task is ended for it.
use crate::db;
pub(in crate::task) use crate::db::{Columns, Unreadable};
use crate::task::machine::AssignmentState;
use crate::task::{AgentId, AgentPresence, Epoch, Error, Event, OrgId, Task, TaskId, TaskState, Update};
use chrono::{DateTime, Utc};
use serde_json::{
    Value,
    value::{RawValue, to_raw_value},
};
use tokio_postgres::{
    Row,
    types::{FromSqlOwned, Json},
};
use uuid::Uuid;

/// Largest round, attempt or other count that a row may hold: far from an overflow, and far from any real one.
const COUNT_MAX: i32 = 1_000_000_000;
/// Largest epoch and incarnation that a row may hold.
const EPOCH_MAX: i64 = 1 << 53;

/// End of the cause of an [`Unreadable`] that a newer schema explains.
const NEWER_SCHEMA: &str = "the schema is newer than this daemon";

impl From<Unreadable> for Error {
    fn from(unreadable: Unreadable) -> Self {
        if is_newer_schema(&unreadable) {
            return Self::NewerSchema(unreadable.to_string());
        }
        Self::Internal(db::Error::Unreadable(unreadable))
    }
}

/// A task whose row cannot be read, and why.
#[derive(Clone, Debug)]
pub(in crate::task) struct UnreadableTask {
    pub(in crate::task) id: TaskId,
    pub(in crate::task) why: String,
    /// Whether a newer daemon can read it: then this one must not end it.
    pub(in crate::task) newer_schema: bool,
}

impl UnreadableTask {
    pub(in crate::task) fn new(id: TaskId, why: &Unreadable) -> Self {
        Self { id, why: why.to_string(), newer_schema: is_newer_schema(why) }
    }

    /// The answer to a command on this task alone.
    pub(in crate::task) fn refusal(&self) -> Error {
        if self.newer_schema {
            return Error::NewerSchema(self.why.clone());
        }
        Error::BadRequest(format!("task {} cannot be used: {}", self.id, self.why))
    }

    /// A task on which the code panicked.
    pub(in crate::task) fn panicked(id: TaskId, why: String) -> Self {
        Self { id, why, newer_schema: false }
    }
}

fn is_newer_schema(why: &Unreadable) -> bool {
    why.cause.ends_with(NEWER_SCHEMA)
}

/// Reads every row, and sets those apart that cannot be read.
///
/// # Errors
/// If a row has no readable id.
pub(in crate::task) fn split<T>(
    rows: &[Row],
    read: impl Fn(&Row) -> Result<T, Unreadable>,
) -> Result<(Vec<T>, Vec<UnreadableTask>), Unreadable> {
    let (mut good, mut broken) = (Vec::with_capacity(rows.len()), Vec::new());
    for row in rows {
        match read(row) {
            Ok(one) => good.push(one),
            Err(why) => broken.push(UnreadableTask::new(task_id(row, "id")?, &why)),
        }
    }
    Ok((good, broken))
}

pub(in crate::task) fn task_id(row: &Row, column: &str) -> Result<TaskId, Unreadable> {
    row.read::<Uuid>(column).map(TaskId::from)
}

/// A column of every row.
pub(in crate::task) fn all<T: FromSqlOwned>(rows: &[Row], column: &str) -> Result<Vec<T>, Unreadable> {
    rows.iter().map(|row| row.read(column)).collect()
}

pub(in crate::task) fn state(row: &Row, column: &str) -> Result<TaskState, Unreadable> {
    known_state(row.read(column)?, column)
}

pub(in crate::task) fn known_state(word: &str, column: &str) -> Result<TaskState, Unreadable> {
    TaskState::parse(word).ok_or_else(|| newer_schema(word, column))
}

/// The state of an assignment; `None` for a null.
pub(in crate::task) fn assignment_state(
    row: &Row,
    column: &str,
) -> Result<Option<AssignmentState>, Unreadable> {
    let Some(word) = row.read::<Option<&str>>(column)? else { return Ok(None) };
    AssignmentState::parse(word).map(Some).ok_or_else(|| newer_schema(word, column))
}

/// Whether an agent is present.
pub(in crate::task) fn agent_presence(row: &Row, column: &str) -> Result<AgentPresence, Unreadable> {
    let word: &str = row.read(column)?;
    AgentPresence::parse(word).ok_or_else(|| newer_schema(word, column))
}

/// A word that this version does not know, in a column whose words a migration may extend.
pub(in crate::task) fn newer_schema(word: &str, column: &str) -> Unreadable {
    Unreadable::new(column, format!("state {word:?} is unknown: {NEWER_SCHEMA}"))
}

pub(in crate::task) fn org(row: &Row) -> Result<OrgId, Unreadable> {
    let name: &str = row.read("org")?;
    OrgId::try_from(name).map_err(|bad| Unreadable::new("org", bad.to_string()))
}

/// The agent that a column names; `None` for a null and for a text that is not an agent id.
pub(in crate::task) fn agent(row: &Row, column: &str) -> Result<Option<AgentId>, Unreadable> {
    Ok(row.read::<Option<&str>>(column)?.and_then(|name| AgentId::try_from(name).ok()))
}

/// A number of rounds, attempts or the like.
pub(in crate::task) fn count(row: &Row, column: &str) -> Result<i32, Unreadable> {
    let count: i32 = row.read(column)?;
    if (0..=COUNT_MAX).contains(&count) {
        return Ok(count);
    }
    Err(Unreadable::new(column, format!("{count} is not between 0 and {COUNT_MAX}")))
}

/// An epoch or an incarnation.
pub(in crate::task) fn number(row: &Row, column: &str) -> Result<i64, Unreadable> {
    let number: i64 = row.read(column)?;
    if (0..=EPOCH_MAX).contains(&number) {
        return Ok(number);
    }
    Err(Unreadable::new(column, format!("{number} is not between 0 and {EPOCH_MAX}")))
}

/// An amount that is never negative, like a cost or a time; a negative one is 0.
pub(in crate::task) fn amount(row: &Row, column: &str) -> Result<u64, Unreadable> {
    Ok(u64::try_from(row.read::<i64>(column)?).unwrap_or(0))
}

/// A time that can be shown and computed with.
pub(in crate::task) fn time(row: &Row, column: &str) -> Result<Option<DateTime<Utc>>, Unreadable> {
    // The text of the driver is only "value too large".
    row.read(column).map_err(|_| {
        Unreadable::new(column, "the time is infinite, or in a year that the daemon does not know")
    })
}

impl Update {
    /// Of `id`, `org`, `kind`, `state`, `state_reason`, `epoch`, `agent_id`, `requester` and `version`.
    pub(in crate::task) fn from_row(row: &Row) -> Result<Self, Unreadable> {
        Ok(Self {
            id: task_id(row, "id")?,
            org: org(row)?,
            kind: row.read("kind")?,
            state: state(row, "state")?,
            state_reason: row.read("state_reason")?,
            epoch: Epoch(row.read("epoch")?),
            agent_id: agent(row, "agent_id")?,
            requester: row.read("requester")?,
            version: row.read("version")?,
        })
    }
}

impl From<Task> for Update {
    fn from(task: Task) -> Self {
        let Task { id, org, kind, state, state_reason, epoch, agent_id, requester, version, .. } = task;
        Self { id, org, kind, state, state_reason, epoch, agent_id, requester, version }
    }
}

/// Reads a row for people: an unreadable column becomes its default, and its name is remembered.
struct Lenient<'a> {
    row: &'a Row,
    unreadable: Vec<String>,
}

impl Lenient<'_> {
    fn read<T: FromSqlOwned + Default>(&mut self, column: &str) -> T {
        self.row.read(column).unwrap_or_else(|_| {
            self.unreadable.push(column.to_owned());
            T::default()
        })
    }
}

impl Task {
    /// Of a row of `get.sql` or `list.sql`. Columns that cannot be read are empty and named in `unreadable`.
    ///
    /// # Errors
    /// When the row has no id, org or state that could be shown.
    pub(in crate::task) fn from_row(row: &Row) -> Result<Self, Unreadable> {
        let mut cells = Lenient { row, unreadable: Vec::new() };
        let mut task = Self {
            id: task_id(row, "id")?,
            org: org(row)?,
            kind: cells.read("kind"),
            requires: cells.read("requires"),
            input: cells.read("input"),
            requester: cells.read::<String>("requester").as_str().into(),
            state: state(row, "state")?,
            state_reason: cells.read("state_reason"),
            priority: cells.read("priority"),
            round: cells.read("round"),
            epoch: Epoch(cells.read("epoch")),
            attempt: cells.read("attempt"),
            attempts_max: cells.read("attempts_max"),
            agent_id: agent(row, "agent_id")?,
            progress: cells.read("progress"),
            result: cells.read("result"),
            error: cells.read("error"),
            created_at: cells.read("created_at"),
            updated_at: cells.read("updated_at"),
            version: cells.read("version"),
            deadline_at: cells.read("deadline_at"),
            budget: cells.read("budget"),
            run_at: cells.read("run_at"),
            parent_id: cells.read::<Option<Uuid>>("parent_id").map(TaskId::from),
            root_id: Some(TaskId::from(cells.read::<Uuid>("root_id"))),
            depends_on: cells.read::<Vec<Uuid>>("depends_on").into_iter().map(TaskId::from).collect(),
            question: cells.read("question"),
            unreadable: Vec::new(),
        };
        task.unreadable = cells.unreadable;
        Ok(task)
    }
}

impl Event {
    /// Of a row of `events.sql`. A body that cannot be read is `{"unreadable": <why>}`.
    pub(in crate::task) fn from_row(row: &Row) -> Result<Self, Unreadable> {
        Ok(Self {
            seq: row.read("seq")?,
            at: time(row, "at").ok().flatten().unwrap_or_default(),
            task_id: row.read::<Option<Uuid>>("task_id")?.map(TaskId::from),
            agent_id: agent(row, "agent_id")?,
            epoch: row.read::<Option<i64>>("epoch")?.map(Epoch),
            event_type: row.read("type")?,
            body: json(row, "body"),
        })
    }
}

/// JSON for people: `{"unreadable": <why>}` if it cannot be read.
pub(in crate::task) fn json(row: &Row, column: &str) -> Value {
    let read = row.read::<Option<Value>>(column).map(Option::unwrap_or_default);
    read.unwrap_or_else(|why| serde_json::json!({ "unreadable": why.to_string() }))
}

/// The same as text, which is not parsed to be written again.
pub(in crate::task) fn json_text(row: &Row, column: &str) -> Box<RawValue> {
    let read = row.read::<Option<Json<Box<RawValue>>>>(column);
    let text = read.map(|json| json.map_or_else(|| RawValue::NULL.to_owned(), |Json(text)| text));
    // An object with one text is always JSON.
    let unreadable = |why: Unreadable| to_raw_value(&serde_json::json!({ "unreadable": why.to_string() }));
    text.or_else(unreadable).unwrap_or_else(|_| RawValue::NULL.to_owned())
}
