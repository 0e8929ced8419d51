//! Deserializes a tree and finds **every** problem in it, not only the first.
//!
//! Serde stops at the first error. So a bad value is recorded, removed from a copy of the tree, and the copy
//! is read again; a missing value is replaced by a placeholder. A tree with a fault yields no configuration,
//! so no placeholder reaches the daemon. Pure.
use super::{
    messages,
    path::{Path, Step},
    tree_deserializer::{Fail, Node, Struct},
};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use std::{cell::RefCell, collections::BTreeMap};

/// A problem at one path of the tree.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Fault {
    pub(super) path: Path,
    pub(super) message: String,
    pub(super) remedy: Option<String>,
}

/// Number of placeholders that are tried for a missing value, before a variant that the error names.
const PLACEHOLDERS: usize = 6;
/// Most faults, and most passes.
const FAULTS_MAX: usize = 200;

/// The result of reading a tree.
pub(super) struct Reading<T> {
    /// The value without its bad parts, for further checks; `None` if those parts are required. Use it as
    /// configuration only if there is no fault.
    pub(super) value: Option<T>,
    /// Every problem.
    pub(super) faults: Vec<Fault>,
    removed: RemovedItems,
}

impl<T> Reading<T> {
    /// Converts a path in the value to the path in the given tree.
    pub(super) fn original(&self, path: &Path) -> Path {
        self.removed.original(path)
    }
}

/// Reads a tree completely; without a value there is at least one fault.
pub(super) fn read<T: DeserializeOwned>(tree: &Value) -> Reading<T> {
    let mut repair = Repair { tree: tree.clone(), ..Repair::default() };
    let mut value = None;
    for _ in 0..FAULTS_MAX {
        let (outcome, structs) = pass::<T>(&repair.tree);
        repair.note_unknown(structs);
        match outcome {
            Ok(read) => {
                value = Some(read).filter(|_| !repair.made_up);
                break;
            }
            Err(fail) => {
                if !repair.repair(&fail) {
                    break;
                }
            }
        }
    }
    Reading { value, faults: repair.faults.into_values().collect(), removed: repair.removed }
}

/// Returns the known keys of each struct of a type; `tree` must contain every struct.
pub(super) fn known_keys<T: DeserializeOwned>(tree: &Value) -> Vec<(Path, &'static [&'static str])> {
    pass::<T>(tree).1.into_iter().map(|s| (s.path, s.known)).collect()
}

fn pass<T: DeserializeOwned>(tree: &Value) -> (Result<T, Fail>, Vec<Struct>) {
    let structs = RefCell::default();
    let outcome = T::deserialize(Node { value: tree, path: Path::default(), structs: &structs });
    (outcome, structs.into_inner())
}

/// A copy of the tree from which the bad parts found so far are removed.
#[derive(Default)]
struct Repair {
    tree: Value,
    /// By path, so that a later pass does not report a fault again.
    faults: BTreeMap<Path, Fault>,
    removed: RemovedItems,
    /// Whether a value is a placeholder.
    made_up: bool,
    /// Tables removed because no placeholder fits a missing value in them.
    abandoned: Vec<Path>,
    /// A placeholder for a missing value, and its number.
    placeholder: Option<(Path, usize)>,
}

impl Repair {
    fn note_unknown(&mut self, structs: Vec<Struct>) {
        for Struct { path, known, unknown } in structs {
            for key in unknown {
                let fault = messages::unknown_key(self.removed.original(&path).key(&key), &key, known);
                self.faults.entry(fault.path.clone()).or_insert(fault);
            }
        }
    }

    /// Records the failure and changes the tree so that the next pass gets past it; false if that is
    /// impossible.
    fn repair(&mut self, fail: &Fail) -> bool {
        let path = fail.path.clone().unwrap_or_default();
        // The failure is about a placeholder: try the next one, or a variant of the enum that the error
        // names.
        if let Some((place, tried)) =
            self.placeholder.clone().filter(|(place, _)| path.0.starts_with(&place.0))
        {
            return match messages::first_variant(&fail.message) {
                Some(variant) if tried < PLACEHOLDERS => self.put(place, json!(variant), PLACEHOLDERS),
                _ => self.fill(place, tried + 1),
            };
        }
        if let Some(field) = messages::missing_field(&fail.message) {
            let place = self.removed.original(&path).key(field);
            if !self.faults.contains_key(&place) && !self.abandoned.contains(&place) {
                let fault = messages::missing(self.removed.original(&path), field);
                self.faults.insert(place, fault);
            }
            return self.fill(path.key(field), 0);
        }
        let path = culprit(&self.tree, path, &fail.message);
        let original = self.removed.original(&path);
        self.faults.insert(original.clone(), messages::wrong(original, &fail.message));
        self.remove(&path)
    }

    /// Puts placeholder number `which` in a missing place; if none fits, removes the table that lacks the
    /// value.
    fn fill(&mut self, place: Path, which: usize) -> bool {
        let candidates: [Value; PLACEHOLDERS] =
            [json!("x"), json!(1), json!([]), json!({}), json!(false), json!("1s")];
        match candidates.into_iter().nth(which) {
            Some(candidate) => self.put(place, candidate, which),
            None => {
                self.placeholder = None;
                let Some(table) = place.parent() else { return false };
                self.abandoned.push(self.removed.original(&table));
                self.remove(&table)
            }
        }
    }

    fn put(&mut self, place: Path, value: Value, which: usize) -> bool {
        let (Some(table), Some(Step::Key(key))) = (place.parent(), place.0.last()) else { return false };
        let Some(Value::Object(map)) = table.find_mut(&mut self.tree) else { return false };
        map.insert(key.clone(), value);
        self.made_up = true;
        self.placeholder = Some((place, which));
        true
    }

    fn remove(&mut self, path: &Path) -> bool {
        let (Some(parent), Some(last)) = (path.parent(), path.0.last()) else { return false };
        match (parent.find_mut(&mut self.tree), last) {
            (Some(Value::Object(map)), Step::Key(key)) => map.remove(key).is_some(),
            (Some(Value::Array(items)), Step::Index(index)) if *index < items.len() => {
                items.remove(*index);
                self.removed.0.push(path.clone());
                true
            }
            _ => false,
        }
    }
}

/// Paths of array items removed from a tree, in order. Each removal moves the later items up by one, so their
/// paths must be converted back.
#[derive(Default)]
struct RemovedItems(Vec<Path>);

impl RemovedItems {
    /// Converts a path in the repaired tree to the path in the given tree.
    fn original(&self, path: &Path) -> Path {
        let mut path = path.clone();
        for removed in self.0.iter().rev() {
            let Some((Step::Index(gone), above)) = removed.0.split_last() else { continue };
            if let (true, Some(Step::Index(index))) = (path.0.starts_with(above), path.0.get_mut(above.len()))
                && *index >= *gone
            {
                *index += 1;
            }
        }
        path
    }
}

/// Narrows an error about a tagged enum, which serde reports for the whole table, to the key with the unknown
/// variant.
fn culprit(tree: &Value, path: Path, message: &str) -> Path {
    let variant = messages::unknown_variant(message);
    let key = match (path.find(tree), variant) {
        (Some(Value::Object(map)), Some(variant)) => {
            map.iter().find(|(_, value)| value.as_str() == Some(variant)).map(|(key, _)| key.clone())
        }
        _ => None,
    };
    key.map_or_else(|| path.clone(), |key| path.key(&key))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde::Deserialize;
    use std::time::Duration;

    #[derive(Debug, Deserialize)]
    #[allow(dead_code)]
    struct Agent {
        id: crate::id::AgentId,
        #[serde(default)]
        slots: u8,
        #[serde(default)]
        wake: Vec<Wake>,
        #[serde(default, with = "humantime_serde")]
        timeout: Option<Duration>,
        run: Run,
    }
    #[derive(Debug, Deserialize)]
    #[allow(dead_code)]
    struct Wake {
        table: String,
        #[serde(default)]
        every: bool,
    }
    #[derive(Debug, Deserialize)]
    #[allow(dead_code)]
    struct Run {
        kind: Kind,
        #[serde(default)]
        command: Option<Vec<String>>,
    }
    #[derive(Debug, Deserialize)]
    #[serde(rename_all = "snake_case")]
    enum Kind {
        Command,
        Http,
    }

    fn faults(tree: &Value) -> Vec<String> {
        let faults = read::<Agent>(tree).faults;
        faults
            .into_iter()
            .map(|f| format!("{}: {}; {}", f.path, f.message, f.remedy.unwrap_or_default()))
            .collect()
    }

    #[test]
    fn valid_tree_is_read() {
        let tree = json!({ "id": "a", "timeout": "5m", "run": { "kind": "command", "command": ["sh"] } });
        let reading = read::<Agent>(&tree);
        assert_eq!(reading.faults, []);
        assert_eq!(reading.value.unwrap().timeout, Some(Duration::from_secs(300)));
    }

    #[test]
    fn every_fault_is_found_in_one_read() {
        let tree = json!({
            "id": "Not A Name", "slots": 300, "wakes": [], "timeout": "soon",
            "run": { "kind": "comand" },
            "wake": [{ "table": 5 }, { "tabel": "t" }, { "table": "t", "every": "yes" }, 7],
        });
        insta::assert_snapshot!(faults(&tree).join("\n"), @r#"
        id: "Not A Name" is not a name: use 1 to 63 of a-z, 0-9, - and _, beginning with a letter or digit; 
        run.kind: unknown value "comand"; did you mean "command"?
        slots: found integer 300, expected a whole number from 0 to 255; write a whole number
        timeout: found string "soon", expected a duration; write one like "250ms", "30s" or "5m"
        wake.0.table: found integer 5, expected text; write it in quotes
        wake.1.tabel: unknown key; did you mean `table`?
        wake.1.table: missing; add `table = …`
        wake.2.every: found string "yes", expected true or false; write true or false, without quotes
        wake.3: found integer 7, expected a table; write it as a section or in braces
        wakes: unknown key; did you mean `wake`?
        "#);
    }

    #[test]
    fn valid_rest_of_a_bad_tree_is_returned() {
        let run = json!({ "kind": "http" });
        let tree = json!({ "id": "a", "slots": 300, "run": run, "wake": [7, { "table": "t" }] });
        let reading = read::<Agent>(&tree);
        assert_eq!(reading.value.as_ref().unwrap().wake.len(), 1);
        assert_eq!(reading.original(&Path::parse("wake.0")), Path::parse("wake.1"));
        assert!(read::<Agent>(&json!({ "id": "a" })).value.is_none(), "it has no run");
    }

    #[test]
    fn every_missing_key_is_reported() {
        insta::assert_snapshot!(faults(&json!({ "wake": [{}, {}] })).join("\n"), @r"
        id: missing; add `id = …`
        run: missing; add `run = …`
        wake.0.table: missing; add `table = …`
        wake.1.table: missing; add `table = …`
        ");
    }
}
