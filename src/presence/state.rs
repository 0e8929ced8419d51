//! The presence of one room as a pure, mergeable value.
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use bytes::{BufMut, Bytes, BytesMut};
use serde_json::{Map, Value};
use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

/// Uniquely identifies a presence entry: the node that created it and that node's sequence number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Dot {
    /// The node.
    pub replica: u32,
    /// Rises with each meta that the node creates, in all rooms together.
    pub counter: u64,
}

impl Dot {
    /// The `phx_ref` that clients see: 16 characters.
    fn to_ref(self) -> String {
        let mut bytes = [0; 12];
        let (node, count) = bytes.split_at_mut(4);
        node.copy_from_slice(&self.replica.to_be_bytes());
        count.copy_from_slice(&self.counter.to_be_bytes());
        URL_SAFE_NO_PAD.encode(bytes)
    }
}

/// The owner of at most one meta in a room.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Owner {
    /// A client's channel.
    Channel(u64),
    /// A hosted agent, by its key.
    Hosted(Arc<str>),
}

/// One entry of one owner, under a key that other owners may use too.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Meta {
    key: Arc<str>,
    prev: Option<Dot>,
    /// A JSON object without `phx_ref` and `phx_ref_prev`.
    json: Arc<str>,
}

/// The presence of one room.
///
/// A state-based CRDT: nodes exchange states, and [`State::merge`] is a join. Only the node that created a meta
/// adds and removes it. So a dot that a node's state has seen and does not hold is removed, on every node.
#[derive(Clone, Debug, Default)]
pub struct State {
    /// By hash: most rooms have one meta, for which a node of a B-tree would take eleven times its room.
    metas: HashMap<Dot, Meta>,
    /// The last known counter of each node. A dot up to it that is not in `metas` has been removed.
    seen: BTreeMap<u32, u64>,
    /// The owners on this node.
    owned: HashMap<Owner, Dot>,
}

impl PartialEq for State {
    /// Compares what nodes agree on. Only one node knows the owner of a meta.
    fn eq(&self, other: &Self) -> bool {
        self.metas == other.metas && self.seen == other.seen
    }
}

impl State {
    /// An empty room on a node whose last meta is `last`. Metas of this node up to `last` that other nodes still
    /// hold count as removed.
    #[must_use]
    pub fn since(last: Dot) -> Self {
        Self { seen: BTreeMap::from([(last.replica, last.counter)]), ..Self::default() }
    }

    /// Sets the meta of `owner` under `key` and replaces its previous one. `dot` must be new.
    ///
    /// Returns an empty difference, and changes nothing, if key and meta are unchanged.
    pub fn track(&mut self, dot: Dot, owner: Owner, key: &str, mut meta: Map<String, Value>) -> Diff {
        meta.remove("phx_ref");
        meta.remove("phx_ref_prev");
        let mut diff = Diff::default();
        let old = self.owned.get(&owner).copied();
        if let Some((old, current)) = old.and_then(|old| Some((old, self.metas.get(&old)?))) {
            if *current.key == *key && is_same(&current.json, &meta) {
                return diff;
            }
            diff.leaves.insert(old, current.clone());
            self.metas.remove(&old);
        }
        let json = Value::Object(meta).to_string().into();
        let meta = Meta { key: key.into(), prev: old, json };
        diff.joins.insert(dot, meta.clone());
        self.metas.insert(dot, meta);
        self.record_seen(dot);
        self.owned.insert(owner, dot);
        diff
    }

    /// Removes the meta of `owner`. Returns an empty difference if it has none.
    pub fn untrack(&mut self, owner: &Owner) -> Diff {
        let meta = self.owned.remove(owner).and_then(|dot| Some((dot, self.metas.remove(&dot)?)));
        Diff { joins: BTreeMap::new(), leaves: meta.into_iter().collect() }
    }

    /// Merges the state of another node. Commutative, associative and idempotent. A meta that either side has
    /// removed stays removed.
    pub fn merge(&mut self, other: &Self) -> Diff {
        let mut diff = Diff::default();
        let unknown = |seen: &BTreeMap<u32, u64>, dot: &Dot| {
            seen.get(&dot.replica).is_none_or(|&counter| counter < dot.counter)
        };
        self.metas.retain(|dot, meta| {
            // Absent from the other side: removed there if that side has seen its dot, else not yet known there.
            let stays = other.metas.contains_key(dot) || unknown(&other.seen, dot);
            if !stays {
                diff.leaves.insert(*dot, meta.clone());
            }
            stays
        });
        for (dot, meta) in &other.metas {
            if unknown(&self.seen, dot) {
                self.metas.insert(*dot, meta.clone());
                diff.joins.insert(*dot, meta.clone());
            }
        }
        for (&replica, &counter) in &other.seen {
            self.record_seen(Dot { replica, counter });
        }
        diff
    }

    /// Removes the metas of a dead node. They stay removed when other nodes still send them, because `seen` keeps
    /// the node's counter. A restarted node has a new replica id.
    pub fn forget(&mut self, replica: u32) -> Diff {
        let leaves = self.metas.extract_if(|dot, _| dot.replica == replica).collect();
        self.owned.retain(|_, dot| dot.replica != replica);
        Diff { joins: BTreeMap::new(), leaves }
    }

    /// The number of metas.
    #[must_use]
    pub fn len(&self) -> usize {
        self.metas.len()
    }

    /// Whether the room has no meta.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.metas.is_empty()
    }

    /// The payload of `presence_state`: `{key:{"metas":[…]}}`.
    #[must_use]
    pub fn payload(&self) -> Bytes {
        let mut out = BytesMut::with_capacity(64 * self.metas.len() + 2);
        put_metas(&mut out, self.metas.iter().map(|(dot, meta)| (*dot, meta)));
        out.freeze()
    }

    fn record_seen(&mut self, dot: Dot) {
        let last = self.seen.entry(dot.replica).or_default();
        *last = dot.counter.max(*last);
    }
}

/// Metas that joined and metas that left.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Diff {
    joins: BTreeMap<Dot, Meta>,
    leaves: BTreeMap<Dot, Meta>,
}

impl Diff {
    /// Whether it contains nothing.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.joins.is_empty() && self.leaves.is_empty()
    }

    /// Appends a later difference. A meta that joined and left in between cancels out.
    pub fn extend(&mut self, later: Self) {
        for (dot, meta) in later.leaves {
            if self.joins.remove(&dot).is_none() {
                self.leaves.insert(dot, meta);
            }
        }
        self.joins.extend(later.joins);
    }

    /// The payload of `presence_diff`: `{"joins":…,"leaves":…}`.
    #[must_use]
    pub fn payload(&self) -> Bytes {
        let mut out = BytesMut::with_capacity(128 * (self.joins.len() + self.leaves.len()) + 32);
        out.put_slice(b"{\"joins\":");
        put_metas(&mut out, self.joins.iter().map(|(dot, meta)| (*dot, meta)));
        out.put_slice(b",\"leaves\":");
        put_metas(&mut out, self.leaves.iter().map(|(dot, meta)| (*dot, meta)));
        out.put_u8(b'}');
        out.freeze()
    }
}

fn is_same(json: &str, meta: &Map<String, Value>) -> bool {
    serde_json::from_str::<Map<String, Value>>(json).is_ok_and(|current| current == *meta)
}

fn put_metas<'a>(out: &mut BytesMut, metas: impl Iterator<Item = (Dot, &'a Meta)>) {
    let mut by_key: BTreeMap<&str, Vec<(Dot, &Meta)>> = BTreeMap::new();
    for (dot, meta) in metas {
        by_key.entry(&meta.key).or_default().push((dot, meta));
    }
    out.put_u8(b'{');
    for (at, (key, mut metas)) in by_key.into_iter().enumerate() {
        metas.sort_unstable_by_key(|(dot, _)| *dot);
        if at > 0 {
            out.put_u8(b',');
        }
        crate::wire::text::put_string(out, key);
        out.put_slice(b":{\"metas\":[");
        for (at, (dot, meta)) in metas.into_iter().enumerate() {
            if at > 0 {
                out.put_u8(b',');
            }
            put_meta(out, dot, meta);
        }
        out.put_slice(b"]}");
    }
    out.put_u8(b'}');
}

fn put_meta(out: &mut BytesMut, dot: Dot, meta: &Meta) {
    out.put_slice(b"{\"phx_ref\":\"");
    out.put_slice(dot.to_ref().as_bytes());
    out.put_u8(b'"');
    if let Some(prev) = meta.prev {
        out.put_slice(b",\"phx_ref_prev\":\"");
        out.put_slice(prev.to_ref().as_bytes());
        out.put_u8(b'"');
    }
    // `json` is an object: its members follow ours, without its opening brace.
    let members = meta.json.strip_prefix('{').unwrap_or("}");
    if members != "}" {
        out.put_u8(b',');
    }
    out.put_slice(members.as_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    fn meta(value: Value) -> Map<String, Value> {
        value.as_object().cloned().unwrap()
    }
    fn dot(counter: u64) -> Dot {
        Dot { replica: 7, counter }
    }
    fn json(payload: &Bytes) -> Value {
        serde_json::from_slice(payload).unwrap()
    }
    const ADA: Owner = Owner::Channel(1);

    #[test]
    fn changed_meta_is_one_difference_in_which_the_old_meta_leaves() {
        let mut state = State::default();
        let (first, second) = (dot(1).to_ref(), dot(2).to_ref());
        assert_eq!(first.len(), 16);
        let diff = state.track(dot(1), ADA, "ada", meta(json!({"n": 1, "phx_ref": "mine"})));
        let old = json!({"ada": {"metas": [{"phx_ref": first, "n": 1}]}});
        assert_eq!(json(&diff.payload()), json!({"joins": old, "leaves": {}}));
        let diff = state.track(dot(2), ADA, "ada", meta(json!({})));
        let new = json!({"ada": {"metas": [{"phx_ref": second, "phx_ref_prev": first}]}});
        assert_eq!(json(&diff.payload()), json!({"joins": new, "leaves": old}));
        assert_eq!(json(&state.payload()), new);
    }

    #[test]
    fn unchanged_meta_is_no_difference() {
        let mut state = State::default();
        state.track(dot(1), ADA, "ada", meta(json!({"a": 1, "b": [2]})));
        assert!(state.track(dot(2), ADA, "ada", meta(json!({"b": [2], "a": 1}))).is_empty());
        assert!(!state.untrack(&ADA).is_empty());
        assert!(state.untrack(&ADA).is_empty());
        let again = state.track(dot(3), ADA, "ada", meta(json!({})));
        assert!(!json(&again.payload()).to_string().contains("phx_ref_prev"), "a fresh join");
    }

    #[test]
    fn two_channels_with_one_key_have_two_metas() {
        let mut state = State::default();
        state.track(dot(1), ADA, "k", meta(json!({})));
        state.track(dot(2), Owner::Hosted("k".into()), "k", meta(json!({})));
        assert_eq!(json(&state.payload())["k"]["metas"].as_array().unwrap().len(), 2);
        state.untrack(&ADA);
        assert_eq!(json(&state.payload())["k"]["metas"].as_array().unwrap().len(), 1);
    }

    /// The states of three nodes after random changes and merges.
    fn nodes() -> impl Strategy<Value = Vec<State>> {
        proptest::collection::vec((0usize..3, 0usize..3, 0u64..3, any::<bool>()), 0..40).prop_map(|steps| {
            let mut nodes = vec![State::default(), State::default(), State::default()];
            for (step, (node, from, who, track)) in steps.into_iter().enumerate() {
                let owner = Owner::Channel(who);
                let next = Dot { replica: node as u32, counter: step as u64 + 1 };
                if node != from {
                    let other = nodes[from].clone();
                    nodes[node].merge(&other);
                } else if track {
                    nodes[node].track(next, owner, "k", meta(json!({ "n": step })));
                } else {
                    nodes[node].untrack(&owner);
                }
            }
            nodes
        })
    }
    fn merged(a: &State, b: &State) -> State {
        let mut a = a.clone();
        a.merge(b);
        a
    }

    /// Applies a difference to known metas, as a client does.
    fn applied(mut metas: HashMap<Dot, Meta>, diff: &Diff) -> HashMap<Dot, Meta> {
        metas.extend(diff.joins.clone());
        metas.retain(|dot, _| !diff.leaves.contains_key(dot));
        metas
    }

    proptest! {
        #[test]
        fn metas_of_a_dead_node_leave_and_never_return(nodes in nodes(), dead in 0u32..3) {
            let [a, b, c] = &nodes[..] else { unreachable!() };
            let all = merged(&merged(a, b), c);
            let mut left = all.clone();
            let diff = left.forget(dead);
            prop_assert!(diff.joins.is_empty() && diff.leaves.keys().all(|dot| dot.replica == dead));
            prop_assert!(left.metas.keys().all(|dot| dot.replica != dead));
            prop_assert_eq!(applied(all.metas.clone(), &diff), left.metas.clone());
            prop_assert!(left.forget(dead).is_empty());
            // States that other nodes still hold do not bring the metas back, in whatever order they are merged.
            for other in [a, b, c, &all, a] {
                left.merge(other);
                prop_assert!(left.metas.keys().all(|dot| dot.replica != dead));
            }
            // Nodes that learn of the removal by a merge agree with those that removed the node themselves.
            let (mut saw, by_merge) = (all.clone(), merged(&all, &left));
            saw.forget(dead);
            prop_assert_eq!(saw, by_merge);
        }

        #[test]
        fn dropped_room_does_not_reappear_from_stale_states(nodes in nodes()) {
            let mut again = State::since(Dot { replica: 0, counter: 1000 });
            for other in &nodes {
                again.merge(other);
            }
            prop_assert!(again.metas.keys().all(|dot| dot.replica != 0));
        }

        #[test]
        fn coalesced_differences_have_the_same_result(
            steps in proptest::collection::vec((0u64..4, 0u8..3), 0..30), told in 0usize..30,
        ) {
            let (mut state, mut pending, mut known) = (State::default(), Diff::default(), HashMap::new());
            for (at, (who, what)) in steps.into_iter().enumerate() {
                let owner = Owner::Channel(who);
                pending.extend(match what {
                    0 => state.untrack(&owner),
                    n => state.track(dot(at as u64 + 1), owner, "k", meta(json!({ "n": n }))),
                });
                if at == told {
                    known = applied(known, &std::mem::take(&mut pending));
                }
            }
            prop_assert!(pending.leaves.keys().all(|dot| known.contains_key(dot)), "only known metas leave");
            prop_assert_eq!(applied(known, &pending), state.metas);
        }

        #[test]
        fn merge_is_commutative_associative_and_idempotent(nodes in nodes()) {
            let [a, b, c] = &nodes[..] else { unreachable!() };
            prop_assert_eq!(merged(a, b), merged(b, a));
            prop_assert_eq!(merged(&merged(a, b), c), merged(a, &merged(b, c)));
            prop_assert_eq!(&merged(a, a), a);
            prop_assert_eq!(merged(&merged(a, b), b), merged(a, b));
        }

        #[test]
        fn merge_returns_the_changes(nodes in nodes()) {
            let before = nodes[0].clone();
            let mut after = before.clone();
            let diff = after.merge(&nodes[1]);
            let mut applied: HashMap<_, _> = before.metas;
            for dot in diff.leaves.keys() {
                prop_assert!(applied.remove(dot).is_some());
            }
            for (dot, meta) in diff.joins {
                prop_assert!(applied.insert(dot, meta).is_none());
            }
            prop_assert_eq!(applied, after.metas);
        }
    }
}
