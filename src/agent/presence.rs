//! The presence of a hosted agent, from evidence of its work.
//!
//! The meta on `org:<org>` and `agent:<id>`, under the agent's id as the key:
//! `agent_id`, `activity_type` (`asleep`, `idle`, `working`, `waiting`),
//! `current_task` (the one that started last, or null), `progress` of it,
//! `queue_depth` (awards that have not started), `last_active` (RFC 3339, or
//! null), `capabilities`, and for an agent of kind `llm` `activity` (`thinking`, `calling look`, `waiting for team`) while it works.
use super::{
    Definition,
    hosted::{HostedAgent, Shared},
};
use crate::{
    hub::Room,
    id::{TaskId, Topic},
};
use chrono::{DateTime, SecondsFormat, Utc};
use serde_json::{Map, Value, json};

/// The activity of an agent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Activity {
    /// It has no actor.
    Asleep,
    /// It has an actor and no job.
    Idle,
    /// It has a job.
    Working,
    /// All its jobs are delegated; their holders report them.
    Waiting,
}

/// The evidence of an agent's work.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Seen {
    pub(super) current_task: Option<TaskId>,
    pub(super) progress: Option<f32>,
    /// The activity of a run: `thinking`, or `calling` with the tools.
    pub(super) activity: Option<String>,
    pub(super) queue_depth: usize,
    pub(super) last_active: Option<DateTime<Utc>>,
}

impl HostedAgent {
    /// Sets the presence in both rooms.
    pub(super) fn present(&self, shared: &Shared, seen: &Seen, activity: Activity) {
        let (id, definition) = (&self.id, self.definition());
        let activity = match activity {
            Activity::Asleep => "asleep",
            Activity::Idle => "idle",
            Activity::Working => "working",
            Activity::Waiting => "waiting",
        };
        // Rounded to thousandths: as f64, the f32 0.3 is 0.30000001192.
        let progress = seen.progress.map(|part| (f64::from(part) * 1e3).round() / 1e3);
        let last_active = seen.last_active.map(|at| at.to_rfc3339_opts(SecondsFormat::Millis, true));
        let mut meta: Map<String, Value> = [
            ("agent_id", json!(id)),
            ("activity_type", json!(activity)),
            ("current_task", json!(seen.current_task)),
            ("progress", json!(progress)),
            ("queue_depth", json!(seen.queue_depth)),
            ("last_active", json!(last_active)),
            ("capabilities", json!(definition.capabilities)),
        ]
        .into_iter()
        .map(|(key, value)| (key.to_owned(), value))
        .collect();
        meta.extend(seen.activity.as_ref().map(|activity| ("activity".to_owned(), json!(activity))));
        let [org, own] = rooms(&definition);
        shared.tracker.set(org, id.as_str(), meta.clone());
        shared.tracker.set(own, id.as_str(), meta);
    }

    /// Leaves both rooms.
    pub(super) fn leave(&self, shared: &Shared) {
        for room in rooms(&self.definition()) {
            shared.tracker.clear(room, self.id.as_str());
        }
    }
}

fn rooms(definition: &Definition) -> [Room; 2] {
    [Room::public(Topic::org(&definition.org)), Room::public(Topic::agent(&definition.id))]
}
