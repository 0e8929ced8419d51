//! Reading: tasks, events, agents, and why a task went where it went.
use super::store::{self, sql};
use super::{
    AgentId, AgentStatus, Announcement, Epoch, Error, Event, Filter, Incarnation, OrgId, PREVIEW_CHARS_MAX,
    Task, TaskId, TaskState, Tasks,
};
use crate::db;
use serde_json::{Value, json};
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

    /// Why a task went where it went: every round with its offers and their score vectors,
    /// who was eligible and made none, and every award with its end.
    ///
    /// # Errors
    /// `UnknownTask`.
    pub async fn why(&self, id: TaskId) -> Result<Value, Error> {
        let task = self.get(id).await?;
        let offers = self.read(sql!("why_offers"), &[&id.as_uuid()]).await?;
        let attempts = self.read(sql!("why_attempts"), &[&id.as_uuid()]).await?;
        let empty = self.read(sql!("events"), &[&id.as_uuid(), &0_i64, &ROWS_MAX]).await?;
        let present: Vec<AgentId> = self.shared.roster.lock().eligible(task.org.as_str(), &task.requires);
        let mut rounds: Vec<Value> = Vec::new();
        for round in 1..=task.round {
            let of_round: Vec<&Row> =
                offers.iter().filter(|row| row.get::<_, i32>("round") == round).collect();
            let silent: Vec<Value> = present
                .iter()
                .filter(|id| !of_round.iter().any(|row| row.get::<_, &str>("agent_id") == id.as_str()))
                .map(|id| json!({ "agent_id": id, "reason": "no free slot, or no answer in time" }))
                .collect();
            let winner = of_round
                .iter()
                .find(|row| matches!(row.get::<_, &str>("state"), "awarded" | "confirmed" | "refused"))
                .map(|row| row.get::<_, String>("agent_id"));
            let reasons = empty
                .iter()
                .find(|row| {
                    row.get::<_, &str>("type") == "no_offers"
                        && row.get::<_, Value>("body").get("round") == Some(&json!(round))
                })
                .and_then(|row| row.get::<_, Value>("body").get("reasons").cloned());
            rounds.push(json!({
                "round": round,
                "offers": of_round.iter().map(|row| offer(row)).collect::<Vec<_>>(),
                "winner": winner,
                "silent": reasons.unwrap_or_else(|| silent.into()),
            }));
        }
        Ok(json!({
            "task": task,
            "rounds": rounds,
            "attempts": attempts.iter().map(attempt).collect::<Vec<_>>(),
        }))
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

fn offer(row: &Row) -> Value {
    json!({
        "agent_id": row.get::<_, &str>("agent_id"),
        "state": row.get::<_, &str>("state"),
        "cost_microdollars": row.get::<_, i64>("cost_microdollars"),
        "eta_ms": row.get::<_, i64>("eta_ms"),
        "confidence": super::plain(row.get("confidence")),
        "note": row.get::<_, Option<&str>>("note"),
        "score": row.get::<_, Option<Value>>("score"),
    })
}

fn attempt(row: &Row) -> Value {
    let time = |name: &str| row.get::<_, Option<chrono::DateTime<chrono::Utc>>>(name);
    json!({
        "assignment_id": row.get::<_, Uuid>("id"),
        "epoch": row.get::<_, i64>("epoch"),
        "agent_id": row.get::<_, &str>("agent_id"),
        "state": row.get::<_, &str>("state"),
        "awarded_at": time("awarded_at"),
        "started_at": time("started_at"),
        "ended_at": time("ended_at"),
        "outcome": row.get::<_, Option<Value>>("outcome"),
    })
}

fn agent(row: &Row) -> Option<AgentStatus> {
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
        statistics: row.get("statistics"),
        last_seen_at: row.get("last_seen_at"),
    })
}
