//! Queries of tasks, events and agents.
use crate::task::rounds::score::{Measured, ONE};
use crate::task::storage::rows::{self, Columns, Unreadable};
use crate::task::storage::statement::sql;
use crate::task::{
    AgentId, AgentStatus, Announcement, Error, Event, Filter, Incarnation, OrgId, PREVIEW_CHARS_MAX, Task,
    TaskId, TaskReader, TaskState, plain,
};
use serde::Deserialize;
use serde_json::{Map, Value, json};
use std::time::Duration;
use tokio_postgres::Row;
use uuid::Uuid;

/// Most tasks or events of one answer.
const ROWS_MAX: i64 = 1000;

impl TaskReader {
    /// The task as it is now.
    ///
    /// # Errors
    /// `UnknownTask`.
    pub async fn get(&self, id: TaskId) -> Result<Task, Error> {
        let rows = self.query(sql!("get"), &[&id.as_uuid()]).await?;
        Ok(Task::from_row(rows.first().ok_or(Error::UnknownTask(id))?)?)
    }

    /// The parts of these tasks that agents see before they offer; unknown ids are left out.
    ///
    /// # Errors
    /// `Unavailable`.
    pub async fn announcements(&self, ids: &[TaskId]) -> Result<Vec<Announcement>, Error> {
        let ids: Vec<Uuid> = ids.iter().map(|id| id.as_uuid()).collect();
        let rows = self.query(sql!("announcements"), &[&ids, &PREVIEW_CHARS_MAX]).await?;
        let (found, broken) = rows::split(&rows, announcement)?;
        for one in broken {
            tracing::debug!(task = %one.id, why = one.why, "task row cannot be read, not announced");
        }
        Ok(found)
    }

    /// Waits for the end of the task, at most `within`. Returns the task as it is then.
    ///
    /// # Errors
    /// `UnknownTask`.
    pub async fn wait(&self, id: TaskId, within: Duration) -> Result<Task, Error> {
        let deadline = tokio::time::Instant::now() + within;
        let mut changed = self.changed();
        loop {
            changed.borrow_and_update();
            let task = self.get(id).await?;
            if task.state.is_final() || tokio::time::timeout_at(deadline, changed.changed()).await.is_err() {
                return Ok(task);
            }
        }
    }

    /// Tasks, newest first; fewer than requested if their inputs and results exceed 16 MiB together.
    ///
    /// # Errors
    /// `Unavailable`; `NewerSchema` for a task whose state this version does not know.
    pub async fn list(&self, filter: &Filter) -> Result<Vec<Task>, Error> {
        if filter.kind.as_ref().is_some_and(|kind| kind.contains('\0')) {
            return Err(Error::BadRequest("kind contains the character U+0000, which no kind has".into()));
        }
        let org = filter.org.as_ref().map(OrgId::as_str);
        let state = filter.state.map(TaskState::as_str);
        let before = filter.before.map(TaskId::as_uuid);
        let limit = filter.limit.unwrap_or(100).clamp(1, ROWS_MAX);
        let rows = self.query(sql!("list"), &[&org, &state, &filter.kind, &before, &limit]).await?;
        let mut tasks = Vec::with_capacity(rows.len());
        for row in &rows {
            match Task::from_row(row) {
                Ok(task) => tasks.push(task),
                // A task of a newer schema must not be left out silently.
                Err(why) if why.column == "state" => return Err(why.into()),
                Err(why) => {
                    tracing::warn!(task = ?row.read::<Uuid>("id").ok(), %why, "task row cannot be read, not listed")
                }
            }
        }
        Ok(tasks)
    }

    /// The events of a task with a `seq` above `after`, oldest first.
    ///
    /// # Errors
    /// `UnknownTask` if there is neither an event nor the task.
    pub async fn events(&self, id: TaskId, after: i64, limit: i64) -> Result<Vec<Event>, Error> {
        let rows = self.query(sql!("events"), &[&id.as_uuid(), &after, &limit.clamp(1, ROWS_MAX)]).await?;
        if rows.is_empty() {
            self.get(id).await?;
        }
        Ok(rows.iter().map(Event::from_row).collect::<Result<_, _>>()?)
    }

    /// The agents, of one org or of all.
    ///
    /// # Errors
    /// `Unavailable`.
    pub async fn agents(&self, org: Option<&OrgId>) -> Result<Vec<AgentStatus>, Error> {
        let rows = self.query(sql!("agents"), &[&org.map(OrgId::as_str), &None::<&str>]).await?;
        Ok(rows.iter().filter_map(shown).collect())
    }

    /// One agent.
    ///
    /// # Errors
    /// `UnknownAgent`.
    pub async fn agent(&self, id: &AgentId) -> Result<AgentStatus, Error> {
        let rows = self.query(sql!("agents"), &[&None::<&str>, &Some(id.as_str())]).await?;
        rows.first().and_then(shown).ok_or_else(|| Error::UnknownAgent(id.clone()))
    }
}

impl TaskReader {
    /// The orgs of those of these agents that are registered.
    ///
    /// # Errors
    /// `Unavailable` while the database does not answer.
    pub async fn orgs_of(&self, agents: &[AgentId]) -> Result<Vec<(AgentId, OrgId)>, Error> {
        let ids: Vec<&str> = agents.iter().map(AgentId::as_str).collect();
        let rows = self.query(sql!("orgs_of_agents"), &[&ids]).await?;
        let read = |row: &Row| Some((rows::agent(row, "id").ok()??, rows::org(row).ok()?));
        Ok(rows.iter().filter_map(read).collect())
    }
}

fn announcement(row: &Row) -> Result<Announcement, Unreadable> {
    Ok(Announcement {
        id: rows::task_id(row, "id")?,
        requires: row.read("requires")?,
        priority: row.read("priority")?,
        deadline: rows::time(row, "deadline_at")?,
        requester: row.read("requester")?,
        input_preview: row.read("input_preview")?,
    })
}

/// An agent as clients see it; `None`, with a log line, if its row cannot be read.
fn shown(row: &Row) -> Option<AgentStatus> {
    match agent(row) {
        Ok(agent) => agent,
        Err(why) => {
            tracing::warn!(agent = ?row.read::<String>("id").ok(), %why, "agent row cannot be read, not listed");
            None
        }
    }
}

fn agent(row: &Row) -> Result<Option<AgentStatus>, Unreadable> {
    let (statistics, reputation) = statistics(row.read("statistics").unwrap_or_default());
    let Some(id) = rows::agent(row, "id")? else { return Ok(None) };
    Ok(Some(AgentStatus {
        id,
        org: rows::org(row)?,
        kind: row.read("kind")?,
        description: row.read("description")?,
        capabilities: row.read("capabilities")?,
        slots: row.read("slots")?,
        slots_used: row.read("slots_used")?,
        status: rows::agent_presence(row, "status")?,
        incarnation: Incarnation(row.read("incarnation")?),
        reputation,
        statistics,
        last_seen_at: rows::time(row, "last_seen_at").unwrap_or_default(),
        drained_at: rows::time(row, "drained_at").unwrap_or_default(),
        drained_by: row.read("drained_by")?,
    }))
}

/// The counts of one kind of task in `agents.sql`.
#[derive(Deserialize)]
struct Counts {
    completed: i64,
    failed: i64,
    refused: i64,
    late: i64,
    weight: f64,
    latency_ms_sum: f64,
    cost_microdollars_sum: f64,
    ended_at: [i64; 10],
    succeeded_at: [i64; 10],
}

impl From<Counts> for Measured {
    fn from(of: Counts) -> Self {
        let Counts { completed, failed, refused, late, weight, latency_ms_sum, .. } = of;
        let Counts { cost_microdollars_sum, ended_at, succeeded_at, .. } = of;
        Self {
            completed,
            failed,
            refused,
            late,
            weight,
            latency_ms_sum,
            cost_microdollars_sum,
            ended_at,
            succeeded_at,
        }
    }
}

/// The measurements of an agent by kind of task, as clients see them, and its reputation over all kinds.
fn statistics(counts: Value) -> (Value, f64) {
    let share = |millionths: i64| plain(millionths as f32 / ONE as f32);
    let counts: Map<String, Value> = serde_json::from_value(counts).unwrap_or_default();
    let mut all = Measured::default();
    let mut kinds = Map::new();
    for (kind, counts) in counts {
        let Ok(counts) = serde_json::from_value::<Counts>(counts) else { continue };
        let measured = Measured::from(counts);
        let mean = |sum: f64| (measured.weight > 0.0).then(|| (sum / measured.weight * 10.0).round() / 10.0);
        let tenths = measured.ended_at.iter().zip(&measured.succeeded_at).enumerate();
        let calibration: Vec<Value> = tenths
            .filter(|(_, (ended, _))| **ended > 0)
            .map(|(tenth, (ended, succeeded))| {
                let range = format!(
                    "0.{tenth} to {}",
                    if tenth == 9 { "1".into() } else { format!("0.{}", tenth + 1) }
                );
                json!({ "confidence": range, "attempts": ended, "completed": succeeded })
            })
            .collect();
        kinds.insert(
            kind,
            json!({
                "completed": measured.completed, "failed": measured.failed, "refused": measured.refused,
                "late": measured.late, "latency_ms": mean(measured.latency_ms_sum),
                "cost_microdollars": mean(measured.cost_microdollars_sum).map(f64::round),
                "reputation": share(measured.reputation()), "calibration": calibration,
            }),
        );
        all = all.and(&measured);
    }
    (kinds.into(), share(all.reputation()))
}
