//! The policies of the settings: the default and one for each kind that has its own.
use crate::task::{Award, Config, Policy};
use serde_json::{Map, Value};
use std::collections::HashMap;

/// The policies that a task starts from, before the members of its own request.
#[derive(Debug)]
pub(in crate::task) struct Policies {
    pub(in crate::task) default: Policy,
    pub(in crate::task) kinds: HashMap<String, Policy>,
}

impl Policies {
    pub(in crate::task) fn new(config: &Config) -> Self {
        Self { default: config.policy.clone(), kinds: config.of_kinds() }
    }

    /// The policy of tasks of this kind whose request names none.
    pub(in crate::task) fn of_kind(&self, kind: &str) -> &Policy {
        self.kinds.get(kind).unwrap_or(&self.default)
    }

    /// How tasks are awarded whose request does not say it: by kind, and of all other kinds.
    pub(in crate::task) fn awards(&self) -> (Value, Award) {
        let award = |(kind, policy): (&String, &Policy)| (kind.clone(), policy.award.as_str().into());
        (Value::Object(self.kinds.iter().map(award).collect::<Map<_, _>>()), self.default.award)
    }

    /// The policy of a task: that of its kind with the members of `patch`, the column `policy` of its row.
    ///
    /// # Errors
    /// Why the patch is no policy, in one line.
    pub(in crate::task) fn of_task(&self, kind: &str, patch: &Value) -> Result<Policy, String> {
        match patch {
            Value::Object(patch) => self.of_kind(kind).with(patch),
            _ => Err("policy is not an object".into()),
        }
    }
}
