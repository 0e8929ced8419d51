//! What a request hangs on: its parent and its dependencies, locked, checked and marked before it is made.
use super::request::New;
use super::store::{run, sql};
use super::{Error, OnDependencyFailure, TaskId, TaskState};
use deadpool_postgres::Transaction;
use serde_json::{Map, Value, json};
use std::collections::{BTreeSet, HashMap};
use tokio_postgres::Row;
use uuid::Uuid;

/// How requests hang on other tasks.
#[derive(Default)]
pub(super) struct Hung {
    /// What is written for those that do.
    pub(super) more: HashMap<TaskId, Value>,
    /// Those that cannot be made.
    pub(super) refused: HashMap<TaskId, Error>,
}

/// A task that another one hangs on.
struct Kin {
    org: String,
    state: TaskState,
    /// Its live assignment, epoch and assignee.
    live: Option<(Uuid, i64, String)>,
}

/// Checks what these requests hang on, and marks it; costs nothing when none hangs on anything.
pub(super) async fn hang(tx: &Transaction<'_>, batch: &[New]) -> Result<Hung, Error> {
    let mut hung = Hung::default();
    let named: BTreeSet<Uuid> = batch.iter().flat_map(names).collect();
    if named.is_empty() {
        return Ok(hung);
    }
    let named: Vec<Uuid> = named.into_iter().collect();
    let rows = run(tx, sql!("parents"), &[&named]).await?;
    let kin: HashMap<Uuid, Kin> = rows.iter().filter_map(kin).collect();
    let (mut followed, mut parents) = (Vec::new(), Vec::new());
    for new in batch.iter().filter(|new| names(new).next().is_some()) {
        match new.hangs(&kin) {
            Ok(more) => {
                followed.extend(new.request.depends_on.iter().map(|id| id.as_uuid()));
                parents.extend(new.request.parent_id.filter(|_| !new.request.detached).map(TaskId::as_uuid));
                hung.more.insert(new.id, Value::Object(more));
            }
            Err(error) => drop(hung.refused.insert(new.id, error)),
        }
    }
    run(tx, sql!("mark"), &[&followed, &parents]).await?;
    Ok(hung)
}

fn names(new: &New) -> impl Iterator<Item = Uuid> {
    new.request.parent_id.iter().chain(&new.request.depends_on).map(|id| id.as_uuid())
}

fn kin(row: &Row) -> Option<(Uuid, Kin)> {
    let live = row.get::<_, Option<Uuid>>("assignment_id");
    let live = live.map(|assignment| (assignment, row.get("epoch"), row.get("agent_id")));
    let kin = Kin { org: row.get("org"), state: TaskState::parse(row.get("state"))?, live };
    Some((row.get("id"), kin))
}

impl New {
    /// What is written for a request that hangs on these tasks.
    fn hangs(&self, kin: &HashMap<Uuid, Kin>) -> Result<Map<String, Value>, Error> {
        let of = |id: TaskId| {
            let found = kin.get(&id.as_uuid()).filter(|kin| kin.org == self.org.as_str());
            found.ok_or(Error::UnknownTask(id))
        };
        let mut more = Map::new();
        if let Some(parent) = self.request.parent_id {
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
            if self.request.detached {
                more.insert("detached".into(), true.into());
            }
        }
        let states: Vec<TaskState> = self
            .request
            .depends_on
            .iter()
            .map(|id| of(*id).map(|kin| kin.state))
            .collect::<Result<_, _>>()?;
        if !states.is_empty() {
            more.insert("depends_on".into(), json!(self.request.depends_on));
        }
        if self.request.on_dependency_failure == OnDependencyFailure::Run {
            more.insert("run_anyway".into(), true.into());
        }
        if states.iter().any(|state| *state != TaskState::Completed) {
            // With nothing left to wait for, the arbiter decides at its next look.
            let decided = states.iter().all(|state| state.is_final())
                || states.iter().any(|state| matches!(state, TaskState::Failed | TaskState::Canceled));
            more.insert("blocked".into(), if decided { "due".into() } else { "wait".into() });
        }
        Ok(more)
    }
}
