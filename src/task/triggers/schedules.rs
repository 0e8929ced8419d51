//! Tasks from schedules: exactly one task for each time, with any number of daemons and after any crash.
//!
//! The row of a schedule has the time up to which its firings are decided. A firing advances it and inserts its task
//! in one commit; a second firing of the same time finds it advanced and does nothing.
use crate::fault;
use crate::task::storage::rows::Columns;
use crate::task::storage::statement::{query, run, sql};
use crate::task::storage::transaction::Transaction;
use crate::task::{
    AgentId, Error, Notice, OrgId, Request, Requester, TaskId, TaskState, TaskTriggers, commands::request,
};
use chrono::{DateTime, Utc};

/// A schedule as it is stored.
#[derive(Clone, Debug)]
pub struct Schedule {
    /// Its name: `<agent>#schedule.<index>`.
    pub trigger: String,
    /// The agent that it belongs to.
    pub agent: AgentId,
    /// The org of its tasks.
    pub org: OrgId,
    /// Its times as text. A change resets the time of the last firing.
    pub times: String,
}

impl TaskTriggers {
    /// The time of the database, by which schedules fire.
    ///
    /// # Errors
    /// `Unavailable`.
    pub async fn now(&self) -> Result<DateTime<Utc>, Error> {
        let rows = query(&self.context.database, "select clock_timestamp() as now", &[]).await?;
        Ok(rows.first().ok_or(Error::Unavailable(None))?.read("now")?)
    }

    /// Stores a schedule. Returns the time up to which its firings are decided: now, if it is new or its times have
    /// changed.
    ///
    /// # Errors
    /// `Unavailable`.
    pub async fn schedule(&self, schedule: &Schedule) -> Result<DateTime<Utc>, Error> {
        let Schedule { trigger, agent, org, times } = schedule;
        let rows = query(
            &self.context.database,
            sql!("schedule"),
            &[trigger, &agent.as_str(), &org.as_str(), times],
        )
        .await?;
        Ok(rows.first().ok_or(Error::Unavailable(None))?.read("fired_at")?)
    }

    /// Fires a schedule at one of its times. Returns the task, which is on disk; `None` if that time was fired
    /// before.
    ///
    /// # Errors
    /// `BadRequest` and `TooLarge` for a request that is refused: the time counts as fired.
    pub async fn fire(
        &self,
        schedule: &Schedule,
        at: DateTime<Utc>,
        asked: Request,
    ) -> Result<Option<TaskId>, Error> {
        let context = &self.context;
        let requester = Requester::Other(format!("schedule:{}", schedule.trigger));
        let new = request::NewTask::check(&context.policies, &schedule.org, requester, asked);
        let id = new.as_ref().ok().map(|new| new.id);
        let mut client = context.database.client().await?;
        let tx = Transaction::begin_async(&mut client);
        let moved = run(&tx, sql!("fire"), &[&schedule.trigger, &at, &id.map(TaskId::as_uuid)]).await?;
        if moved.is_empty() {
            return Ok(None);
        }
        let mut notices = Vec::new();
        if let Ok(new) = &new {
            request::insert(&tx, std::slice::from_ref(new)).await?;
            notices.push(Notice::Updated(new.update(TaskState::Open)));
        }
        context.call_arbiter(&tx).await?;
        fault::point(fault::Point::ScheduleBeforeCommit);
        tx.commit_and_flush().await?.await?;
        fault::point(fault::Point::ScheduleFired);
        context.notify_arbiter();
        context.publish(notices);
        new.map(|new| Some(new.id))
    }
}
