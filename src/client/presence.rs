//! The presence of a channel, from a whole state and later differences. Pure.
//!
//! Follows `docs/spec/realtime-protocol.md` §6.5: `phx_ref` identifies a meta. A difference's joins apply before its
//! leaves. A new state is compared with the known one, so that a reconnect does not report everyone as left.
use serde::Deserialize;
use serde_json::{Map, Value};
use std::{collections::BTreeMap, sync::Arc};

/// One presence entry under a key.
#[derive(Clone, Debug, PartialEq)]
pub struct Meta {
    /// The server's id of the entry (`phx_ref`).
    pub reference: Arc<str>,
    /// The tracked object.
    pub data: Arc<Map<String, Value>>,
}

/// A change under one key.
#[derive(Clone, Debug, PartialEq)]
pub struct PresenceChange {
    /// The presence key.
    pub key: Arc<str>,
    /// The metas that joined or left; never empty.
    pub changed: Vec<Meta>,
    /// For joins the metas before the change, for leaves the metas after it.
    pub current: Vec<Meta>,
}

/// The effect of one frame: `join`, `leave` and then `sync` of the JavaScript client. A changed meta appears as a
/// join and a leave.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct PresenceSync {
    /// Joins, in the order of their keys.
    pub joins: Vec<PresenceChange>,
    /// Leaves, in the order of their keys.
    pub leaves: Vec<PresenceChange>,
}

/// The presence of a channel: metas by key, the oldest first.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct PresenceState(BTreeMap<Arc<str>, Vec<Meta>>);

impl PresenceState {
    /// The metas under a key; empty for an unknown key.
    #[must_use]
    pub fn get(&self, key: &str) -> &[Meta] {
        self.0.get(key).map(Vec::as_slice).unwrap_or_default()
    }
    /// Each key with its metas.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &[Meta])> {
        self.0.iter().map(|(key, metas)| (&**key, metas.as_slice()))
    }
    /// The number of keys.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }
    /// Whether there is no key.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Applies a `presence_state`.
    pub(super) fn replace(&mut self, state: Metas) -> PresenceSync {
        let mut difference = Difference::default();
        for (key, metas) in &self.0 {
            let kept = state.0.get(key).map(Vec::as_slice).unwrap_or_default();
            let left: Vec<_> = metas.iter().filter(|meta| !contains_ref(kept, meta)).cloned().collect();
            if !left.is_empty() {
                difference.leaves.0.insert(key.clone(), left);
            }
        }
        for (key, metas) in state.0 {
            let known = self.get(&key);
            let new: Vec<_> = metas.into_iter().filter(|meta| !contains_ref(known, meta)).collect();
            if !new.is_empty() {
                difference.joins.0.insert(key, new);
            }
        }
        self.apply(difference)
    }

    /// Applies a `presence_diff`.
    pub(super) fn apply(&mut self, difference: Difference) -> PresenceSync {
        let mut sync = PresenceSync::default();
        for (key, changed) in difference.joins.0 {
            if changed.is_empty() {
                continue;
            }
            let metas = self.0.entry(key.clone()).or_default();
            let current = metas.clone();
            metas.retain(|meta| !contains_ref(&changed, meta));
            metas.extend(changed.iter().cloned());
            sync.joins.push(PresenceChange { key, changed, current });
        }
        for (key, left) in difference.leaves.0 {
            let Some(metas) = self.0.get_mut(&key) else { continue };
            let changed: Vec<_> = metas.extract_if(.., |meta| contains_ref(&left, meta)).collect();
            let current = metas.clone();
            if current.is_empty() {
                self.0.remove(&key);
            }
            if !changed.is_empty() {
                sync.leaves.push(PresenceChange { key, changed, current });
            }
        }
        sync
    }
}

fn contains_ref(metas: &[Meta], meta: &Meta) -> bool {
    metas.iter().any(|other| other.reference == meta.reference)
}

/// `{key:{"metas":[…]}}`. A meta without a reference is dropped, because it could never be removed.
#[derive(Debug, Default, Deserialize)]
#[serde(from = "BTreeMap<String, WireMetas>")]
pub(super) struct Metas(BTreeMap<Arc<str>, Vec<Meta>>);

/// The payload of `presence_diff`.
#[derive(Debug, Default, Deserialize)]
pub(super) struct Difference {
    #[serde(default)]
    joins: Metas,
    #[serde(default)]
    leaves: Metas,
}

#[derive(Deserialize)]
struct WireMetas {
    metas: Vec<Map<String, Value>>,
}

impl From<BTreeMap<String, WireMetas>> for Metas {
    fn from(wire: BTreeMap<String, WireMetas>) -> Self {
        let meta = |mut data: Map<String, Value>| {
            let reference = data.remove("phx_ref")?.as_str()?.into();
            data.remove("phx_ref_prev");
            Some(Meta { reference, data: Arc::new(data) })
        };
        let entries = wire.into_iter().map(|(key, metas)| {
            let metas = metas.metas.into_iter().filter_map(meta).collect();
            (Arc::from(key), metas)
        });
        Self(entries.collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn state(value: Value) -> Metas {
        serde_json::from_value(value).unwrap()
    }
    fn metas(refs: &[&str]) -> Value {
        let metas: Vec<_> = refs.iter().map(|r| json!({"phx_ref": r, "n": r, "phx_ref_prev": "x"})).collect();
        json!({ "metas": metas })
    }
    fn rows(changes: &[PresenceChange]) -> Vec<(String, String, String)> {
        let refs = |metas: &[Meta]| metas.iter().map(|meta| &*meta.reference).collect::<Vec<_>>().join(" ");
        changes.iter().map(|c| (c.key.to_string(), refs(&c.changed), refs(&c.current))).collect()
    }
    fn row(key: &str, changed: &str, current: &str) -> (String, String, String) {
        (key.into(), changed.into(), current.into())
    }

    #[test]
    fn state_after_a_reconnect_yields_only_the_changes() {
        let mut presence = PresenceState::default();
        presence.replace(state(json!({"ada": metas(&["1"]), "bob": metas(&["2"])})));
        let sync = presence.replace(state(json!({"ada": metas(&["1", "3"]), "eve": metas(&["4"])})));
        assert_eq!(rows(&sync.joins), [row("ada", "3", "1"), row("eve", "4", "")]);
        assert_eq!(rows(&sync.leaves), [row("bob", "2", "")]);
        assert_eq!(
            presence.iter().map(|(key, metas)| (key, metas.len())).collect::<Vec<_>>(),
            [("ada", 2), ("eve", 1)]
        );
        assert_eq!(presence.get("eve")[0].data["n"], "4");
        assert!(!presence.get("eve")[0].data.contains_key("phx_ref_prev"));
    }

    #[test]
    fn changed_meta_joins_before_the_old_one_leaves() {
        let mut presence = PresenceState::default();
        presence.replace(state(json!({"ada": metas(&["1"])})));
        let diff = json!({"joins": {"ada": metas(&["2"])}, "leaves": {"ada": metas(&["1"]), "nobody": metas(&["9"])}});
        let sync = presence.apply(serde_json::from_value(diff).unwrap());
        assert_eq!(rows(&sync.joins), [row("ada", "2", "1")]);
        assert_eq!(rows(&sync.leaves), [row("ada", "1", "2")]);
        let sync = presence.apply(serde_json::from_value(json!({"leaves": {"ada": metas(&["2"])}})).unwrap());
        assert_eq!(rows(&sync.leaves), [row("ada", "2", "")]);
        assert!(presence.is_empty());
    }

    #[test]
    fn meta_without_a_reference_is_dropped() {
        let mut presence = PresenceState::default();
        let sync = presence.replace(state(json!({"ada": {"metas": [{"n": 1}, {"phx_ref": 7}]}})));
        assert_eq!((sync, presence.len()), (PresenceSync::default(), 0));
    }
}
