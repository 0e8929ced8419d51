//! Tasks from row changes: exactly one task for each change, however often the WAL repeats it.
//!
//! The WAL consumer passes the wakes of one or more transactions; one statement records them in `convoke.wakes` and
//! inserts the tasks. A change that was recorded before makes no task. The caller confirms the WAL position only after
//! the commit.
use crate::id::{Lsn, OrgId, TaskId};
use crate::task::model::policies::Policies;
use crate::task::rounds::awards;
use crate::task::storage::candidate::Candidate;
use crate::task::storage::columns::columns;
use crate::task::storage::rows::Columns;
use crate::task::storage::transaction::Transaction;
use crate::task::{
    AgentId, Burst, Error, Notice, Request, TaskTriggers, Update, commands::request::CheckedRequest,
    triggers::coalesce,
};
use chrono::{DateTime, Utc};
use serde_json::{Map, Value, value::RawValue};
use tokio_postgres::{Row, types::Json};
use uuid::Uuid;

/// A row change that an agent's `[[wake]]` asked for.
#[derive(Clone, Debug)]
pub struct Wake {
    /// The `[[wake]]`: `<agent>#<index>`.
    pub trigger: String,
    /// The agent that it belongs to.
    pub agent: AgentId,
    /// The org of the task.
    pub org: OrgId,
    /// The commit that the change belongs to.
    pub lsn: Lsn,
    /// The index of the change in that commit.
    pub index: u32,
    /// The request, or why the change makes none.
    pub request: Result<Request, String>,
    /// How it is coalesced with other changes; `None` for a task of its own.
    pub burst: Option<Burst>,
}

impl Wake {
    /// The request, if there is one and it passes all checks.
    fn checked(&self, policies: &Policies) -> Result<CheckedRequest, String> {
        CheckedRequest::new(policies, self.request.clone()?).map_err(|error| error.to_string())
    }
}

impl TaskTriggers {
    /// Records the wakes, inserts their tasks, and awards those that need not queue: one commit, which is on disk when
    /// this returns.
    ///
    /// A wake that the database refuses is recorded as failed, so that it does not block the others.
    ///
    /// # Errors
    /// `Unavailable` or `Internal`: not all were recorded; try again.
    pub async fn record_wakes(&self, wakes: &[Wake]) -> Result<(), Error> {
        match self.wake_batch(wakes).await {
            Err(error @ (Error::Internal(_) | Error::Unstorable(_))) => {
                tracing::warn!(reason = %error.refusal(), wakes = wakes.len(), "batch of wakes failed, wakes are recorded one by one");
                self.wake_one_by_one(wakes).await
            }
            answer => answer,
        }
    }

    async fn wake_one_by_one(&self, wakes: &[Wake]) -> Result<(), Error> {
        for wake in wakes {
            match self.wake_batch(std::slice::from_ref(wake)).await {
                Err(error @ (Error::Internal(_) | Error::Unstorable(_))) => {
                    let refusal = error.refusal();
                    let request = Err(format!("the database refuses the request of this change: {refusal}"));
                    self.wake_batch(&[Wake { request, burst: None, ..wake.clone() }]).await?;
                }
                answer => answer?,
            }
        }
        Ok(())
    }

    async fn wake_batch(&self, wakes: &[Wake]) -> Result<(), Error> {
        let context = &self.context;
        let mut client = context.database.client().await?;
        let tx = Transaction::begin_async(&mut client);
        let (together, alone): (Vec<&Wake>, Vec<&Wake>) = wakes.iter().partition(|wake| wake.burst.is_some());
        let mut rows = self.record(&tx, &alone).await?;
        let gathered = coalesce::gather(context, &tx, &together).await?;
        rows.extend(gathered.made);
        let roster_guard = context.roster_guard();
        let (made, opened) = made(&rows);
        let left = made.len() < rows.len();
        let (written, flushed) = awards::award_new(context, &tx, made).await?;
        roster_guard.keep();
        context.metrics.requested.inc_by(rows.len() as u64);
        if gathered.pending || left {
            context.notify_arbiter();
        }
        context.publish(opened);
        awards::publish(context, written);
        flushed.await
    }

    async fn record(&self, tx: &Transaction<'_>, wakes: &[&Wake]) -> Result<Vec<Row>, Error> {
        if wakes.is_empty() {
            return Ok(Vec::new());
        }
        let requests: Vec<_> = wakes.iter().map(|wake| wake.checked(&self.context.policies)).collect();
        for (wake, request) in wakes.iter().zip(&requests) {
            if let Err(reason) = request {
                self.context.log_wake_refused(&wake.trigger, wake.lsn, reason);
            }
        }
        // A wake without a request gets a row too, with the reason, so that the change is not tried again.
        let rows = wakes.iter().zip(&requests).map(|(wake, asked)| (wake, asked.as_ref()));
        let columns = columns!("wake", rows, |(wake, asked)| {
            trigger: &str = wake.trigger.as_str(),
            agent_id: &str = wake.agent.as_str(),
            org: &str = wake.org.as_str(),
            lsn: i64 = i64::try_from(wake.lsn.0).unwrap_or(i64::MAX),
            index: i32 = i32::try_from(wake.index).unwrap_or(i32::MAX),
            task_id: Uuid = TaskId::generate().as_uuid(),
            kind: Option<&str> = asked.ok().map(|asked| asked.request.kind.as_str()),
            needs: Json<&[String]> = Json(asked.map_or(&[], |asked| asked.request.requires.as_slice())),
            input: Option<Json<&RawValue>> = asked.ok().map(|asked| Json(&*asked.input)),
            priority: i16 = asked.map_or(0, |asked| asked.request.priority),
            deadline_at: Option<DateTime<Utc>> = asked.ok().and_then(|asked| asked.request.deadline),
            policy: Option<Json<&Map<String, Value>>> = asked.ok().map(|asked| Json(&asked.request.policy)),
            attempts_max: i32 = asked.map_or(1, |asked| asked.attempts_max),
            error: Option<&str> = asked.err().map(String::as_str),
            traceparent: Option<String> =
                asked.ok().and_then(|asked| asked.request.traceparent).map(String::from),
        });
        columns.run(tx, &[]).await
    }
}

/// The tasks that were just inserted, with their classes, and their notices. A task whose row cannot be read is left
/// to the arbiter, which ends it.
pub(in crate::task) fn made(rows: &[Row]) -> (Vec<(i64, Candidate)>, Vec<Notice>) {
    let made = rows.iter().filter_map(|row| Some((row.read("class").ok()?, Candidate::made(row).ok()?)));
    let opened = rows.iter().filter_map(|row| Update::from_row(row).ok().map(Notice::Updated));
    (made.collect(), opened.collect())
}
