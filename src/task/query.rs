//! Reading: tasks, events and agents.
use super::score::{Measured, ONE};
use super::store::{self, sql};
use super::{
    AgentId, AgentStatus, Announcement, Epoch, Error, Event, Filter, Incarnation, OrgId, PREVIEW_CHARS_MAX,
    Task, TaskId, TaskState, Tasks, plain,
};
use crate::db;
use serde::Deserialize;
use serde_json::{Map, Value, json};
use std::time::Duration;
use tokio_postgres::{Row, types::ToSql};
use uuid::Uuid;

/// Tasks or events that one answer holds at most.
const ROWS_MAX: i64 = 1000;

/// A row of `get.sql` or `list.sql`.
pub(super) fn task(row: &Row) -> Option<Task> {
    Some(Task {
        id: TaskId::from(row.get::<_, Uuid>("id")),
        org: OrgId::try_from(row.get::<_, &str>("org")).ok()?,
        kind: row.get("kind"),
        requires: row.get("requires"),
        input: row.get("input"),
        requester: row.get("requester"),
        state: TaskState::parse(row.get("state"))?,
        state_reason: row.get("state_reason"),
        priority: row.get("priority"),
        round: row.get("round"),
        epoch: Epoch(row.get("epoch")),
        attempt: row.get("attempt"),
        attempts_max: row.get("attempts_max"),
        agent_id: store::agent_of(row, "agent_id"),
        progress: row.get("progress"),
        result: row.get("result"),
        error: row.get("error"),
        created_at: row.get("created_at"),
        updated_at: row.get("updated_at"),
        deadline_at: row.get("deadline_at"),
        budget: row.get("budget"),
        run_at: row.get("run_at"),
        parent_id: row.get::<_, Option<Uuid>>("parent_id").map(TaskId::from),
        root_id: Some(TaskId::from(row.get::<_, Uuid>("root_id"))),
        depends_on: row.get::<_, Vec<Uuid>>("depends_on").into_iter().map(TaskId::from).collect(),
        question: row.get("question"),
    })
}

impl Tasks {
    /// The task as it is now.
    ///
    /// # Errors
    /// `UnknownTask`.
    pub async fn get(&self, id: TaskId) -> Result<Task, Error> {
        let rows = self.read(sql!("get"), &[&id.as_uuid()]).await?;
        rows.first().and_then(task).ok_or(Error::UnknownTask(id))
    }

    /// What agents are told of these tasks before they offer; unknown ids are left out.
    ///
    /// # Errors
    /// `Unavailable`.
    pub async fn announcements(&self, ids: &[TaskId]) -> Result<Vec<Announcement>, Error> {
        let ids: Vec<Uuid> = ids.iter().map(|id| id.as_uuid()).collect();
        let rows = self.read(sql!("announcements"), &[&ids, &PREVIEW_CHARS_MAX]).await?;
        let read = |row: &Row| Announcement {
            id: TaskId::from(row.get::<_, Uuid>("id")),
            requires: row.get("requires"),
            priority: row.get("priority"),
            deadline: row.get("deadline_at"),
            requester: row.get("requester"),
            input_preview: row.get("input_preview"),
        };
        Ok(rows.iter().map(read).collect())
    }

    /// The task at its end, or as it is when `within` is over.
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

    /// Tasks, newest first; fewer than asked for when their inputs and results are over 16 MiB together.
    ///
    /// # Errors
    /// `Unavailable`.
    pub async fn list(&self, filter: &Filter) -> Result<Vec<Task>, Error> {
        let org = filter.org.as_ref().map(OrgId::as_str);
        let state = filter.state.map(TaskState::as_str);
        let before = filter.before.map(TaskId::as_uuid);
        let limit = filter.limit.unwrap_or(100).clamp(1, ROWS_MAX);
        let rows = self.read(sql!("list"), &[&org, &state, &filter.kind, &before, &limit]).await?;
        Ok(rows.iter().filter_map(task).collect())
    }

    /// What happened to a task after `after`, oldest first.
    ///
    /// # Errors
    /// `UnknownTask` when there is nothing at all about it.
    pub async fn events(&self, id: TaskId, after: i64, limit: i64) -> Result<Vec<Event>, Error> {
        let rows = self.read(sql!("events"), &[&id.as_uuid(), &after, &limit.clamp(1, ROWS_MAX)]).await?;
        if rows.is_empty() {
            self.get(id).await?;
        }
        Ok(rows.iter().map(event).collect())
    }

    /// The agents, of one org or of all.
    ///
    /// # Errors
    /// `Unavailable`.
    pub async fn agents(&self, org: Option<&OrgId>) -> Result<Vec<AgentStatus>, Error> {
        let rows = self.read(sql!("agents"), &[&org.map(OrgId::as_str), &None::<&str>]).await?;
        Ok(rows.iter().filter_map(agent).collect())
    }

    /// One agent.
    ///
    /// # Errors
    /// `UnknownAgent`.
    pub async fn agent(&self, id: &AgentId) -> Result<AgentStatus, Error> {
        let rows = self.read(sql!("agents"), &[&None::<&str>, &Some(id.as_str())]).await?;
        rows.first().and_then(agent).ok_or_else(|| Error::UnknownAgent(id.clone()))
    }

    pub(super) async fn read(
        &self,
        statement: &str,
        params: &[&(dyn ToSql + Sync)],
    ) -> Result<Vec<Row>, Error> {
        let client = self.shared.database.client().await?;
        let statement = client.prepare_cached(statement).await.map_err(db::Error::from)?;
        Ok(client.query(&statement, params).await.map_err(db::Error::from)?)
    }
}

fn event(row: &Row) -> Event {
    Event {
        seq: row.get("seq"),
        at: row.get("at"),
        task_id: row.get::<_, Option<Uuid>>("task_id").map(TaskId::from),
        agent_id: store::agent_of(row, "agent_id"),
        epoch: row.get::<_, Option<i64>>("epoch").map(Epoch),
        event_type: row.get("type"),
        body: row.get("body"),
    }
}

fn agent(row: &Row) -> Option<AgentStatus> {
    let (statistics, reputation) = statistics(row.get("statistics"));
    Some(AgentStatus {
        id: store::agent_of(row, "id")?,
        org: OrgId::try_from(row.get::<_, &str>("org")).ok()?,
        kind: row.get("kind"),
        description: row.get("description"),
        capabilities: row.get("capabilities"),
        slots: row.get("slots"),
        slots_used: row.get("slots_used"),
        status: row.get("status"),
        incarnation: Incarnation(row.get("incarnation")),
        reputation,
        statistics,
        last_seen_at: row.get("last_seen_at"),
    })
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

/// What was measured of an agent per kind of task, as people read it, and its reputation over all of them.
fn statistics(counts: Value) -> (Value, f64) {
    let share = |millionths: i64| plain(millionths as f32 / ONE as f32);
    let counts: Map<String, Value> = serde_json::from_value(counts).unwrap_or_default();
    let mut all = Measured::default();
    let mut told = Map::new();
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
        told.insert(
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
    (told.into(), share(all.reputation()))
}
