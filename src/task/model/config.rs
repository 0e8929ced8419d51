//! The settings in the sections `[task]` and `[task.policy]`.
use crate::task::Policy;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::{
    collections::{BTreeMap, HashMap},
    time::Duration,
};

/// A retention of at least this keeps all tasks: a thousand years.
pub const FOREVER: Duration = Duration::from_secs(1000 * 365 * 24 * 3600);
/// Tasks are kept for at least as long as their idempotency keys.
const RETENTION_MIN: Duration = Duration::from_secs(24 * 3600);

/// How tasks are negotiated by default.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Config {
    /// Award, timers and attempts.
    pub policy: Policy,
    /// Members of the policy that differ for tasks of a kind.
    pub kinds: BTreeMap<String, serde_json::Map<String, Value>>,
    /// How long a task is kept after its end, with its events; [`FOREVER`] or more keeps all.
    #[serde(with = "humantime_serde")]
    pub retention: Duration,
    /// The share of tasks without a trace that begin one, in percent; set by the daemon if it exports traces.
    #[serde(skip)]
    pub traced_percent: u8,
    /// Whether `postgres_changes` shows the tables of the negotiation: their changes go through the change log then.
    pub observed: bool,
}

impl Default for Config {
    fn default() -> Self {
        let retention = Duration::from_secs(30 * 24 * 3600);
        Self {
            policy: Policy::default(),
            kinds: BTreeMap::new(),
            retention,
            traced_percent: 0,
            observed: false,
        }
    }
}

impl Config {
    /// Checks the settings.
    ///
    /// # Errors
    /// The member and the reason, in one line.
    pub fn check(&self) -> Result<(), String> {
        self.policy.check()?;
        self.policy.compile_setting()?;
        if self.retention < RETENTION_MIN {
            return Err(format!(
                "retention is {:?}; keep tasks for at least {RETENTION_MIN:?}",
                self.retention
            ));
        }
        for (kind, patch) in &self.kinds {
            self.policy
                .with(patch)
                .and_then(|policy| policy.compile_setting())
                .map_err(|e| format!("kinds.{kind}: {e}"))?;
        }
        Ok(())
    }

    /// The policies of the kinds that have one of their own.
    pub(in crate::task) fn of_kinds(&self) -> HashMap<String, Policy> {
        let of = |(kind, patch): (&String, _)| Some((kind.clone(), self.policy.with(patch).ok()?));
        self.kinds.iter().filter_map(of).collect()
    }
}
