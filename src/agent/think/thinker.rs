//! What the jobs of one agent that thinks share, and why a job fails whose rows cannot be written.
use super::catalog::Catalog;
use crate::{
    agent::{
        Definition,
        failover::Choices,
        hex,
        job::{permanent, retryable},
        kind::RunnerDeps,
    },
    task::{Error, Failure, Schemas},
};
use parking_lot::Mutex;
use serde_json::Value;
use sha2::{Digest, Sha256};
use std::{
    collections::HashMap,
    sync::{Arc, Weak},
};

/// The failure of a write that the rows do not permit.
pub(super) const FENCED: &str = "the assignment is over";

/// An agent of kind `llm` with tools.
pub(crate) struct Thinker {
    pub(crate) definition: Arc<Definition>,
    pub(crate) parts: RunnerDeps,
    pub(crate) choices: Choices,
    pub(crate) schemas: Schemas,
    /// Those of the runs under way, by the hash of the definition and the schema of the task's own result.
    pinned: Mutex<HashMap<(String, Option<String>), WeakPinned>>,
}

/// The definition that a run was begun with, and the tools that follow from it. Runs that are equal in both share them.
#[derive(Clone)]
pub(super) struct Pinned {
    pub(super) definition: Arc<Definition>,
    pub(super) catalog: Arc<Catalog>,
    /// What the questions of all runs with this definition have in common.
    pub(super) cache_key: Arc<str>,
}

struct WeakPinned {
    definition: Weak<Definition>,
    catalog: Weak<Catalog>,
    cache_key: Arc<str>,
}

impl WeakPinned {
    fn upgrade(&self) -> Option<Pinned> {
        let (definition, catalog) = (self.definition.upgrade()?, self.catalog.upgrade()?);
        Some(Pinned { definition, catalog, cache_key: self.cache_key.clone() })
    }
}

impl Thinker {
    pub(crate) fn new(
        definition: Arc<Definition>,
        parts: RunnerDeps,
        choices: Choices,
        schemas: Schemas,
    ) -> Self {
        Self { definition, parts, choices, schemas, pinned: Mutex::default() }
    }

    /// The definition with this hash and body, with its tools. `result`: the schema of the task's own result.
    ///
    /// # Errors
    /// If this version cannot read the definition.
    pub(super) fn pinned(
        &self,
        hash: &str,
        body: Value,
        result: Option<&Value>,
    ) -> Result<Pinned, serde_json::Error> {
        let key = (hash.to_owned(), result.map(Value::to_string));
        if let Some(found) = self.pinned.lock().get(&key).and_then(WeakPinned::upgrade) {
            return Ok(found);
        }
        let definition: Definition = serde_json::from_value(body)?;
        let catalog = Catalog::new(&definition, result.or(definition.run.result_schema.as_ref()));
        let cache_key = cache_key(&definition, hash);
        let made = Pinned { definition: Arc::new(definition), catalog: Arc::new(catalog), cache_key };
        let mut pinned = self.pinned.lock();
        pinned.retain(|_, known| known.upgrade().is_some());
        let weak = WeakPinned {
            definition: Arc::downgrade(&made.definition),
            catalog: Arc::downgrade(&made.catalog),
            cache_key: made.cache_key.clone(),
        };
        pinned.insert(key, weak);
        Ok(made)
    }
}

/// What the questions of one version of an agent have in common: its endpoint's cache keeps them together by it.
fn cache_key(definition: &Definition, hash: &str) -> Arc<str> {
    let digest = Sha256::digest(format!("{} {} {hash}", definition.org, definition.id));
    hex(digest.get(..16).unwrap_or_default()).into()
}

/// The failure of a job whose rows could not be written.
pub(super) fn unwritten(error: &Error) -> Failure {
    match error {
        Error::Fenced => retryable(FENCED),
        Error::Unstorable(_) => permanent(error.to_string()),
        error => retryable(error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn questions_of_one_definition_have_one_cache_key() {
        let of = |id: &str| {
            toml::from_str::<Definition>(&format!("id = \"{id}\"\n[run]\nkind = \"llm\"")).unwrap()
        };
        let key = cache_key(&of("one"), "v1");
        assert_eq!((key.len(), &key), (32, &cache_key(&of("one"), "v1")));
        assert_ne!(key, cache_key(&of("one"), "v2"), "another version");
        assert_ne!(key, cache_key(&of("two"), "v1"), "another agent");
    }
}
