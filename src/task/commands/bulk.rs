//! Requeues many tasks at once, as after an outage.
use crate::id::Requester;
use crate::task::storage::statement::sql;
use crate::task::{Error, OrgId, TaskCommands, TaskId, TaskState, storage::rows};
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
    pub refused: Vec<NotRequeued>,
    /// Whether there are more: ask again, with the last id as `after`.
    pub more: bool,
}

/// A task that could not be requeued.
#[derive(Clone, Debug, Serialize)]
pub struct NotRequeued {
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
                Err(error) => requeued.refused.push(NotRequeued { id, reason: error.to_string() }),
            }
        }
        Ok(requeued)
    }
}
