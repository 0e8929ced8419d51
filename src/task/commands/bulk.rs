//! Cancels or requeues many tasks at once, as after an outage.
use crate::id::Requester;
use crate::task::storage::rows::Columns;
use crate::task::storage::statement::sql;
use crate::task::{Error, LineFilter, OrgId, TaskCommands, TaskId, TaskState, storage::rows};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// Most tasks that one call requeues.
const TASKS_MAX: i64 = 1000;

/// The tasks to requeue, oldest first.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Requeue {
    /// `failed`, the default, or `canceled`.
    pub state: Option<TaskState>,
    /// Only of this kind.
    pub kind: Option<String>,
    /// Only those that ended for this reason, like `unallocatable`.
    pub reason: Option<String>,
    /// Only those made after this one: where the call before ended.
    pub after: Option<TaskId>,
    /// At most so many; 100 by default, 1,000 at most.
    pub limit: Option<i64>,
    /// Changes nothing and only lists the tasks.
    #[serde(default)]
    pub dry_run: bool,
}

/// The outcome of [`TaskCommands::requeue_all`].
#[derive(Clone, Debug, Default, Serialize)]
pub struct Requeued {
    /// Tasks that were requeued, or would be.
    pub tasks: Vec<TaskId>,
    /// Tasks that could not be requeued, each with the reason.
    pub refused: Vec<NotChanged>,
    /// Whether there are more: ask again, with the last id as `after`.
    pub more: bool,
}

/// A task that could not be changed.
#[derive(Clone, Debug, Serialize)]
pub struct NotChanged {
    /// Its id.
    pub id: TaskId,
    /// The reason, one line.
    pub reason: String,
}

impl TaskCommands {
    /// Requeues all tasks that the filter selects, each in a transaction of its own: of one org or of all, and only
    /// those of one requester if `requester` is given. `by` is recorded.
    ///
    /// # Errors
    /// `BadRequest` for a state that cannot be requeued; `Unavailable`: tasks that were requeued before stay so.
    pub async fn requeue_all(
        &self,
        org: Option<&OrgId>,
        requester: Option<&Requester>,
        by: &Requester,
        filter: &Requeue,
    ) -> Result<Requeued, Error> {
        let state = filter.state.unwrap_or(TaskState::Failed);
        if !matches!(state, TaskState::Failed | TaskState::Canceled) {
            let text =
                format!("state is {}: tasks are tried again that failed or were canceled", state.as_str());
            return Err(Error::BadRequest(text));
        }
        let limit = filter.limit.unwrap_or(100).clamp(1, TASKS_MAX);
        let requester = requester.map(ToString::to_string);
        let (org, after) = (org.map(OrgId::as_str), filter.after.map(TaskId::as_uuid));
        let found = self
            .query(
                sql!("requeueable"),
                &[&org, &requester, &state.as_str(), &filter.kind, &filter.reason, &after, &(limit + 1)],
            )
            .await?;
        let mut ids: Vec<TaskId> = rows::all::<Uuid>(&found, "id")?.into_iter().map(TaskId::from).collect();
        let kept = usize::try_from(limit).unwrap_or(usize::MAX);
        let mut requeued = Requeued { more: ids.len() > kept, ..Requeued::default() };
        ids.truncate(kept);
        if filter.dry_run {
            requeued.tasks = ids;
            return Ok(requeued);
        }
        for id in ids {
            match self.requeue(id, by.clone()).await {
                Ok(_) => requeued.tasks.push(id),
                Err(error @ Error::Unavailable(_)) => return Err(error),
                // It moved in the meantime, or its parent ended.
                Err(error) => requeued.refused.push(NotChanged { id, reason: error.to_string() }),
            }
        }
        Ok(requeued)
    }
}

/// What to do with many tasks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BulkAction {
    /// Cancels those that have not ended.
    Cancel,
    /// Requeues those that failed or were canceled.
    Requeue,
}

impl BulkAction {
    fn fits(self, state: TaskState) -> bool {
        match self {
            Self::Cancel => !state.is_final() && state != TaskState::Canceling,
            Self::Requeue => matches!(state, TaskState::Failed | TaskState::Canceled),
        }
    }
}

/// Tasks to cancel or to requeue: those named, or those that a filter finds.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Bulk {
    /// What to do.
    pub action: BulkAction,
    /// The tasks, at most 1,000.
    #[serde(default)]
    pub ids: Vec<TaskId>,
    /// The filter of `GET /v1/tasks?view=line`, for the newest 1,000 tasks that it finds.
    pub filter: Option<LineFilter>,
    /// The reason of a cancellation.
    pub reason: Option<String>,
    /// Changes nothing and only lists the tasks.
    #[serde(default)]
    pub dry_run: bool,
}

/// The outcome of [`TaskCommands::bulk`].
#[derive(Clone, Debug, Default, Serialize)]
pub struct BulkDone {
    /// Tasks that were changed, or would be.
    pub tasks: Vec<TaskId>,
    /// Tasks that could not be changed, each with the reason.
    pub refused: Vec<NotChanged>,
    /// Whether the filter may find more: ask again.
    pub more: bool,
}

impl TaskCommands {
    /// Cancels or requeues tasks of an org, each in a transaction of its own, and never stops at a refusal. Those whose
    /// state does not fit are left out, or refused if they were named. `by` is recorded.
    ///
    /// # Errors
    /// `BadRequest` without ids and filter, with both, or with too many; `Unavailable`: tasks that were changed before
    /// stay so.
    pub async fn bulk(&self, org: &OrgId, by: &Requester, bulk: Bulk) -> Result<BulkDone, Error> {
        let limit = usize::try_from(TASKS_MAX).unwrap_or(usize::MAX);
        let Bulk { action, ids, filter, reason, dry_run } = bulk;
        if ids.is_empty() == filter.is_none() || ids.len() > limit {
            return Err(Error::BadRequest(format!("name 1 to {limit} ids, or a filter, and not both")));
        }
        let named = !ids.is_empty();
        let mut found = self.states_of(org, ids, filter).await?;
        let mut done = BulkDone { more: !named && found.len() >= limit, ..BulkDone::default() };
        if !named {
            found.retain(|(_, state)| state.is_some_and(|state| action.fits(state)));
        }
        let reason = reason.unwrap_or_else(|| "canceled in bulk".into());
        for (id, state) in found {
            let outcome = match state {
                None => Err(Error::UnknownTask(id)),
                Some(state) if dry_run && !action.fits(state) => Err(Error::Conflict { state }),
                Some(_) if dry_run => Ok(()),
                Some(_) => match action {
                    BulkAction::Cancel => self.cancel_by(id, &reason, by.clone()).await.map(drop),
                    BulkAction::Requeue => self.requeue(id, by.clone()).await.map(drop),
                },
            };
            match outcome {
                Ok(()) => done.tasks.push(id),
                Err(error @ Error::Unavailable(_)) => return Err(error),
                Err(error) => done.refused.push(NotChanged { id, reason: error.to_string() }),
            }
        }
        Ok(done)
    }

    /// The tasks with their states; `None` for one that the org does not have.
    async fn states_of(
        &self,
        org: &OrgId,
        ids: Vec<TaskId>,
        filter: Option<LineFilter>,
    ) -> Result<Vec<(TaskId, Option<TaskState>)>, Error> {
        let Some(mut filter) = filter else {
            let wanted: Vec<Uuid> = ids.iter().map(|id| id.as_uuid()).collect();
            let rows = self.query(sql!("bulk_states"), &[&wanted, &org.as_str()]).await?;
            let mut known = std::collections::HashMap::new();
            for row in &rows {
                known.insert(rows::task_id(row, "id")?, TaskState::parse(row.read("state")?));
            }
            return Ok(ids.into_iter().map(|id| (id, known.get(&id).copied().flatten())).collect());
        };
        (filter.org, filter.limit) = (Some(org.clone()), Some(TASKS_MAX));
        self.matching(&filter).await
    }
}
