//! The parent and the dependencies of a request: locked, checked and marked before it is inserted.
use crate::task::commands::request::NewTask;
use crate::task::storage::rows::{self, Columns, Unreadable};
use crate::task::storage::statement::{run, sql};
use crate::task::storage::transaction::Transaction;
use crate::task::{Error, OnDependencyFailure, OrgId, TaskId, TaskState};
use serde::Serialize;
use std::{
    collections::{BTreeSet, HashMap},
    ops::Not,
};
use tokio_postgres::Row;
use uuid::Uuid;

/// The relations of a batch of requests to other tasks.
#[derive(Default)]
pub(in crate::task) struct Dependencies {
    /// Of requests that name other tasks.
    pub(in crate::task) relations: HashMap<TaskId, Relations>,
    /// Requests that are refused.
    pub(in crate::task) refused: HashMap<TaskId, Error>,
}

/// How a new task relates to others: the object `more` of `request.sql`, which looks only whether a member is there.
#[derive(Debug, Default, Serialize)]
pub(in crate::task) struct Relations {
    /// It continues when its parent ends.
    #[serde(skip_serializing_if = "Not::not")]
    detached: bool,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    depends_on: Vec<TaskId>,
    /// It runs even if a dependency fails.
    #[serde(skip_serializing_if = "Not::not")]
    run_anyway: bool,
    /// It waits for its dependencies.
    #[serde(skip_serializing_if = "Option::is_none")]
    blocked: Option<Blocked>,
}

/// What moves a blocked task.
#[derive(Clone, Copy, Debug, Serialize)]
#[serde(rename_all = "snake_case")]
enum Blocked {
    /// The next poll of the arbiter: its dependencies have ended, or one has failed.
    Due,
    /// The end of a dependency.
    Wait,
}

/// A task that a request names as its parent or a dependency.
struct RelatedTask {
    org: OrgId,
    state: TaskState,
    /// Its live assignment, epoch and assignee.
    live: Option<(Uuid, i64, String)>,
}

/// Locks, checks and marks the tasks that these requests name; sends no statement when they name none.
pub(in crate::task) async fn resolve(tx: &Transaction<'_>, batch: &[NewTask]) -> Result<Dependencies, Error> {
    let mut dependencies = Dependencies::default();
    let named: BTreeSet<Uuid> = batch.iter().flat_map(names).collect();
    if named.is_empty() {
        return Ok(dependencies);
    }
    let named: Vec<Uuid> = named.into_iter().collect();
    let rows = run(tx, sql!("parents"), &[&named]).await?;
    let related: HashMap<Uuid, RelatedTask> = rows.iter().map(related_task).collect::<Result<_, _>>()?;
    let (mut followed, mut parents) = (Vec::new(), Vec::new());
    for new in batch.iter().filter(|new| names(new).next().is_some()) {
        match new.depend_on(&related) {
            Ok(relations) => {
                followed.extend(new.request().depends_on.iter().map(|id| id.as_uuid()));
                parents
                    .extend(new.request().parent_id.filter(|_| !new.request().detached).map(TaskId::as_uuid));
                dependencies.relations.insert(new.id, relations);
            }
            Err(error) => drop(dependencies.refused.insert(new.id, error)),
        }
    }
    run(tx, sql!("mark_followed"), &[&followed, &parents]).await?;
    Ok(dependencies)
}

fn names(new: &NewTask) -> impl Iterator<Item = Uuid> {
    new.request().parent_id.iter().chain(&new.request().depends_on).map(|id| id.as_uuid())
}

fn related_task(row: &Row) -> Result<(Uuid, RelatedTask), Unreadable> {
    let live = match row.read::<Option<Uuid>>("assignment_id")? {
        Some(assignment) => Some((assignment, row.read("epoch")?, row.read("agent_id")?)),
        None => None,
    };
    let related = RelatedTask { org: rows::org(row)?, state: rows::state(row, "state")?, live };
    Ok((row.read("id")?, related))
}

impl NewTask {
    /// Its relations to these tasks.
    fn depend_on(&self, related: &HashMap<Uuid, RelatedTask>) -> Result<Relations, Error> {
        let of = |id: TaskId| {
            let found = related.get(&id.as_uuid()).filter(|task| task.org == self.org);
            found.ok_or(Error::UnknownTask(id))
        };
        if let Some(parent) = self.request().parent_id {
            let (id, parent) = (parent, of(parent)?);
            if let Some((key, agent)) = &self.holder {
                let held = (key.assignment_id.as_uuid(), key.epoch.0, agent.to_string());
                if parent.live.as_ref() != Some(&held) {
                    return Err(Error::Fenced);
                }
            }
            if parent.state.is_final() || parent.state == TaskState::Canceling {
                return Err(Error::ParentEnded { parent: id, state: parent.state });
            }
        }
        let states: Vec<TaskState> = self
            .request()
            .depends_on
            .iter()
            .map(|id| of(*id).map(|task| task.state))
            .collect::<Result<_, _>>()?;
        // Without a task left to wait for, the arbiter decides at its next poll.
        let decided = states.iter().all(|state| state.is_final())
            || states.iter().any(|state| matches!(state, TaskState::Failed | TaskState::Canceled));
        let waits = states.iter().any(|state| *state != TaskState::Completed);
        let request = self.request();
        Ok(Relations {
            detached: request.detached && request.parent_id.is_some(),
            depends_on: request.depends_on.clone(),
            run_anyway: request.on_dependency_failure == OnDependencyFailure::Run,
            blocked: waits.then_some(if decided { Blocked::Due } else { Blocked::Wait }),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::task::storage::statement::members_read;
    use serde_json::{Value, json};

    #[test]
    fn statement_reads_exactly_the_relations() {
        let depends_on = vec![TaskId::generate()];
        let all = Relations { detached: true, depends_on, run_anyway: true, blocked: Some(Blocked::Due) };
        let Value::Object(written) = json!(all) else { panic!("no object") };
        assert_eq!(
            written.keys().map(String::as_str).collect::<BTreeSet<_>>(),
            members_read(sql!("request"))
        );
        assert_eq!(written["blocked"], "due");
        assert_eq!(json!(Relations::default()), json!({}));
    }
}
