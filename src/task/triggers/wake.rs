//! Tasks from row changes: exactly one task for each change, however often the WAL repeats it.
//!
//! The WAL consumer passes the wakes of one or more transactions; one statement records them in `convoke.wakes` and
//! inserts the tasks. A change that was recorded before makes no task. The caller confirms the WAL position only after
//! the commit.
use crate::id::{Lsn, OrgId, TaskId};
use crate::task::model::policies::Policies;
use crate::task::rounds::awards;
use crate::task::storage::candidate::{Candidate, NewCandidate};
use crate::task::storage::columns::columns;
use crate::task::storage::rows::Columns;
use crate::task::storage::statement::sql;
use crate::task::storage::transaction::Transaction;
use crate::task::{
    AgentId, Burst, Error, Notice, Request, TaskContext, TaskTriggers, Update,
    commands::request::CheckedRequest, triggers::coalesce,
};
use chrono::{DateTime, Utc};
use futures_util::future::ready;
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
        let alone: Vec<NewWake<'_>> = alone.into_iter().map(|wake| NewWake::check(context, wake)).collect();
        let planned = if together.is_empty() { planned(&alone) } else { None };
        let roster_guard = context.roster_guard();
        let (left, count, opened, written, flushed) = if let Some(new) = planned {
            // Everything is known without the answer of the database, so one round trip does it all.
            tx.prepare_all(&[sql!("wake")]).await?;
            let insert = async {
                let rows = record(&tx, &alone).await?;
                let all = rows.len() == alone.len();
                Ok((rows, all))
            };
            let (rows, written, flushed) = awards::award_new(context, &tx, insert, new).await?;
            let (made, opened) = made(&rows);
            (made.len() < rows.len(), rows.len(), opened, written, flushed)
        } else {
            let mut rows = record(&tx, &alone).await?;
            let gathered = coalesce::gather(context, &tx, &together).await?;
            rows.extend(gathered.made);
            let (made, opened) = made(&rows);
            let left = gathered.pending || made.len() < rows.len();
            for (class, task) in &made {
                context.classes.learn(&task.org, &task.requires, *class);
            }
            let ((), written, flushed) = awards::award_new(context, &tx, ready(Ok(((), true))), made).await?;
            (left, rows.len(), opened, written, flushed)
        };
        roster_guard.keep();
        context.metrics.requested.inc_by(count as u64);
        if left {
            context.notify_arbiter();
        }
        context.publish(opened);
        awards::publish(context, written);
        flushed.await
    }
}

/// A wake with the task that it makes.
struct NewWake<'a> {
    wake: &'a Wake,
    task: TaskId,
    /// The checked request, or the reason of its refusal.
    asked: Result<CheckedRequest, String>,
    /// The class of the task, if one like it was made before.
    class: Option<i64>,
}

impl<'a> NewWake<'a> {
    fn check(context: &TaskContext, wake: &'a Wake) -> Self {
        let asked = wake.checked(&context.policies);
        if let Err(reason) = &asked {
            context.log_wake_refused(&wake.trigger, wake.lsn, reason);
        }
        let class =
            asked.as_ref().ok().and_then(|asked| context.classes.known(&wake.org, &asked.request.requires));
        Self { wake, task: TaskId::generate(), asked, class }
    }

    /// The task that is inserted, with its class; `None` if it is for the database to say.
    fn candidate(&self) -> Option<(i64, Candidate)> {
        let request = &self.asked.as_ref().ok()?.request;
        let task = Candidate::new(NewCandidate {
            id: self.task,
            org: self.wake.org.clone(),
            kind: request.kind.clone(),
            requires: request.requires.clone(),
            policy: Value::Object(request.policy.clone()),
            requester: format!("wake:{}", self.wake.trigger).into(),
        });
        Some((self.class?, task))
    }
}

/// The tasks of these wakes, if all of them make one and all classes are known.
fn planned(wakes: &[NewWake<'_>]) -> Option<Vec<(i64, Candidate)>> {
    wakes.iter().map(NewWake::candidate).collect()
}

/// Inserts the wakes and their tasks. Returns a row for each inserted task; a duplicate wake inserts none.
async fn record(tx: &Transaction<'_>, wakes: &[NewWake<'_>]) -> Result<Vec<Row>, Error> {
    if wakes.is_empty() {
        return Ok(Vec::new());
    }
    // A wake without a request gets a row too, with the reason, so that the change is not tried again.
    let rows = wakes.iter().map(|new| (new, new.wake, new.asked.as_ref()));
    let columns = columns!("wake", rows, |(new, wake, asked)| {
        trigger: &str = wake.trigger.as_str(),
        agent_id: &str = wake.agent.as_str(),
        org: &str = wake.org.as_str(),
        lsn: i64 = i64::try_from(wake.lsn.0).unwrap_or(i64::MAX),
        index: i32 = i32::try_from(wake.index).unwrap_or(i32::MAX),
        task_id: Uuid = new.task.as_uuid(),
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
        class: Option<i64> = new.class,
    });
    columns.run(tx, &[]).await
}

/// The tasks that were just inserted, with their classes, and their notices. A task whose row cannot be read is left
/// to the arbiter, which ends it.
pub(in crate::task) fn made(rows: &[Row]) -> (Vec<(i64, Candidate)>, Vec<Notice>) {
    let made = rows.iter().filter_map(|row| Some((row.read("class").ok()?, Candidate::made(row).ok()?)));
    let opened = rows.iter().filter_map(|row| Update::from_row(row).ok().map(Notice::Updated));
    (made.collect(), opened.collect())
}
