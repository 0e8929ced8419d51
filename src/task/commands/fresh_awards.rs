//! Awards that this node has just made, with what their accepts need of the rows.
//!
//! An accept of such an award takes one round trip: nothing is read before the statement that starts the assignment,
//! whose conditions are the fence. Only a short way: an award that is not here, or has changed since, is read from the
//! rows.
use crate::id::AssignmentId;
use crate::task::commands::command::{Action, TaskCommand};
use crate::task::{Assigned, Update};
use parking_lot::Mutex;
use serde_json::Value;
use std::collections::HashMap;

/// Capacity of the cache. A full cache evicts all entries, those of awards that were never accepted too.
const AWARDS_MAX: usize = 4096;

/// A pending award: made, and not accepted yet.
#[derive(Clone, Debug)]
pub(in crate::task) struct FreshAward {
    pub(in crate::task) assigned: Assigned,
    /// The awarded task.
    pub(in crate::task) task: Update,
    /// The policy of the task, without that of its kind.
    pub(in crate::task) policy: Value,
}

/// Cache of the pending awards of one node.
#[derive(Debug, Default)]
pub(in crate::task) struct FreshAwards(Mutex<HashMap<AssignmentId, FreshAward>>);

impl FreshAwards {
    /// Keeps the awards of a commit.
    pub(in crate::task) fn keep(&self, awards: Vec<FreshAward>) {
        let mut kept = self.0.lock();
        if kept.len().saturating_add(awards.len()) > AWARDS_MAX {
            kept.clear();
        }
        // A schema may be large, and its results cost more than the read that is saved.
        let small = awards.into_iter().filter(|award| award.policy.get("result_schema").is_none());
        kept.extend(small.take(AWARDS_MAX).map(|award| (award.assigned.key.assignment_id, award)));
    }

    /// The awards that these commands accept, in their order; `None` unless all of them are kept.
    pub(in crate::task) fn take(&self, commands: &[TaskCommand]) -> Option<Vec<FreshAward>> {
        let mut kept = self.0.lock();
        let accepted = |command: &TaskCommand| {
            let (key, agent) =
                command.holder.as_ref().filter(|_| matches!(command.action, Action::Accept))?;
            let award = kept.get(&key.assignment_id)?;
            // Another task, epoch or agent than that of the award is for the fence to refuse.
            (award.assigned.key == *key && award.assigned.agent_id == *agent).then(|| award.clone())
        };
        let awards: Vec<FreshAward> = commands.iter().map(accepted).collect::<Option<_>>()?;
        for award in &awards {
            kept.remove(&award.assigned.key.assignment_id);
        }
        Some(awards)
    }
}
