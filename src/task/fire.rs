//! What a clock starts: exactly one task a time, however many daemons look and whenever they are killed.
//!
//! The row of a schedule says up to where its times have been decided about. A firing moves it and makes its
//! task in one commit; whoever comes second finds it moved and makes nothing.
use super::store::{self, run, sql};
use super::{AgentId, Error, Notice, OrgId, Request, TaskId, TaskState, Tasks, Update, request};
use crate::{db, fault, id::Epoch};
use chrono::{DateTime, Utc};

/// A schedule, as it is remembered.
#[derive(Clone, Debug)]
pub struct Schedule {
    /// Which one: `<agent>#schedule.<index>`.
    pub trigger: String,
    /// Whose.
    pub agent: AgentId,
    /// In which org its tasks are made.
    pub org: OrgId,
    /// What it says of times; when that changes, it begins anew.
    pub times: String,
}

impl Tasks {
    /// The time of the database, which decides.
    ///
    /// # Errors
    /// `Unavailable`.
    pub async fn now(&self) -> Result<DateTime<Utc>, Error> {
        let rows = self.read("select clock_timestamp() as now", &[]).await?;
        rows.first().map(|row| row.get("now")).ok_or(Error::Unavailable(None))
    }

    /// Remembers a schedule; gives the time up to which its firings have been decided about: its own first
    /// sight, when it is new or says other times than before.
    ///
    /// # Errors
    /// `Unavailable`.
    pub async fn schedule(&self, schedule: &Schedule) -> Result<DateTime<Utc>, Error> {
        let Schedule { trigger, agent, org, times } = schedule;
        let rows = self.read(sql!("schedule"), &[trigger, &agent.as_str(), &org.as_str(), times]).await?;
        rows.first().map(|row| row.get("fired_at")).ok_or(Error::Unavailable(None))
    }

    /// A time of the schedule has come: makes its task, unless that was done before. Gives the task that it
    /// made, on disk.
    ///
    /// # Errors
    /// `BadRequest` and `TooLarge` for a request that cannot be made: the time counts as fired.
    pub async fn fire(
        &self,
        schedule: &Schedule,
        at: DateTime<Utc>,
        asked: Request,
    ) -> Result<Option<TaskId>, Error> {
        let shared = &self.shared;
        let requester = format!("schedule:{}", schedule.trigger);
        let new = request::New::check(shared, &schedule.org, &requester, asked);
        let id = new.as_ref().ok().map(|new| new.id);
        let mut client = shared.database.client().await?;
        let tx = client.transaction().await.map_err(db::Error::from)?;
        store::relax(&tx).await?;
        let moved = run(&tx, sql!("fire"), &[&schedule.trigger, &at, &id.map(TaskId::as_uuid)]).await?;
        if moved.is_empty() {
            return Ok(None);
        }
        let mut notices = Vec::new();
        if let Ok(new) = &new {
            request::insert(&tx, std::slice::from_ref(new)).await?;
            notices.push(Notice::Updated(Update {
                id: new.id,
                org: schedule.org.clone(),
                kind: new.request.kind.clone(),
                state: TaskState::Open,
                state_reason: None,
                epoch: Epoch(0),
                agent_id: None,
                requester,
            }));
        }
        shared.call_arbiter(&tx).await?;
        fault::point("schedule.before_commit");
        tx.commit().await.map_err(db::Error::from)?;
        store::flush(&client).await?;
        fault::point("schedule.fired");
        shared.committed(notices, true);
        new.map(|new| Some(new.id))
    }
}
