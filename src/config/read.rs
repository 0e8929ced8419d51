//! Reads a tree into a type and finds **everything** that is wrong with it, not the first thing.
//!
//! Serde stops at the first error. So a bad value is noted, taken out of a copy of the tree and
//! the copy is read again; a missing one is filled with a stand-in. Whoever has one fault gets
//! no value, so a stand-in never reaches the daemon. Pure.
use super::{
    node::{Fail, Node, Struct},
    path::{Path, Step},
    words,
};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use std::{cell::RefCell, collections::BTreeMap};

/// Something wrong at a place of the tree.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Fault {
    pub(super) path: Path,
    pub(super) message: String,
    pub(super) remedy: Option<String>,
}

/// How many values are tried for one that is missing, before a word that the error itself names.
const STAND_INS: usize = 6;
/// More faults than anyone reads, and a bound on the passes.
const FAULTS_MAX: usize = 200;

/// What a tree says.
pub(super) struct Reading<T> {
    /// The value without its bad parts, to look for more; none when it cannot do without them.
    /// To be used only when there is no fault.
    pub(super) value: Option<T>,
    /// All that is wrong.
    pub(super) faults: Vec<Fault>,
    taken: Taken,
}

impl<T> Reading<T> {
    /// Where a place of the value was in the tree.
    pub(super) fn original(&self, path: &Path) -> Path {
        self.taken.original(path)
    }
}

/// Reads a tree to the end; without a value there is at least one fault.
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
                if !repair.mend(&fail) {
                    break;
                }
            }
        }
    }
    Reading { value, faults: repair.faults.into_values().collect(), taken: repair.taken }
}

/// The keys that a type knows, by the struct that has them; `tree` must name every struct.
pub(super) fn known_keys<T: DeserializeOwned>(tree: &Value) -> Vec<(Path, &'static [&'static str])> {
    pass::<T>(tree).1.into_iter().map(|s| (s.path, s.known)).collect()
}

fn pass<T: DeserializeOwned>(tree: &Value) -> (Result<T, Fail>, Vec<Struct>) {
    let structs = RefCell::default();
    let outcome = T::deserialize(Node { value: tree, path: Path::default(), structs: &structs });
    (outcome, structs.into_inner())
}

/// A copy of the tree with everything bad taken out so far.
#[derive(Default)]
struct Repair {
    tree: Value,
    /// By place, so that a later pass tells nothing twice.
    faults: BTreeMap<Path, Fault>,
    taken: Taken,
    /// Whether any value is a stand-in.
    made_up: bool,
    /// Tables taken out because nothing stands in for what they lack.
    given_up: Vec<Path>,
    /// A stand-in for a missing value, and which one is being tried.
    stand_in: Option<(Path, usize)>,
}

impl Repair {
    fn note_unknown(&mut self, structs: Vec<Struct>) {
        for Struct { path, known, unknown } in structs {
            for key in unknown {
                let fault = words::unknown_key(self.taken.original(&path).key(&key), &key, known);
                self.faults.entry(fault.path.clone()).or_insert(fault);
            }
        }
    }

    /// Notes the failure and changes the tree so that the next pass gets past it, if that can be.
    fn mend(&mut self, fail: &Fail) -> bool {
        let path = fail.path.clone().unwrap_or_default();
        if let Some((place, tried)) = self.stand_in.clone().filter(|(place, _)| path.0.starts_with(&place.0))
        {
            return match words::first_variant(&fail.message) {
                Some(variant) if tried < STAND_INS => self.put(place, json!(variant), STAND_INS),
                _ => self.stand_in(place, tried + 1),
            };
        }
        if let Some(field) = words::missing_field(&fail.message) {
            let place = self.taken.original(&path).key(field);
            if !self.faults.contains_key(&place) && !self.given_up.contains(&place) {
                let fault = words::missing(self.taken.original(&path), field);
                self.faults.insert(place, fault);
            }
            return self.stand_in(path.key(field), 0);
        }
        let path = culprit(&self.tree, path, &fail.message);
        let original = self.taken.original(&path);
        self.faults.insert(original.clone(), words::wrong(original, &fail.message));
        self.take_out(&path)
    }

    /// Fills a missing place with something; when nothing fits, its table is given up.
    fn stand_in(&mut self, place: Path, which: usize) -> bool {
        let candidates: [Value; STAND_INS] =
            [json!("x"), json!(1), json!([]), json!({}), json!(false), json!("1s")];
        match candidates.into_iter().nth(which) {
            Some(candidate) => self.put(place, candidate, which),
            None => {
                self.stand_in = None;
                let Some(table) = place.parent() else { return false };
                self.given_up.push(self.taken.original(&table));
                self.take_out(&table)
            }
        }
    }

    fn put(&mut self, place: Path, value: Value, which: usize) -> bool {
        let (Some(table), Some(Step::Key(key))) = (place.parent(), place.0.last()) else { return false };
        let Some(Value::Object(map)) = table.find_mut(&mut self.tree) else { return false };
        map.insert(key.clone(), value);
        self.made_up = true;
        self.stand_in = Some((place, which));
        true
    }

    fn take_out(&mut self, path: &Path) -> bool {
        let (Some(parent), Some(last)) = (path.parent(), path.0.last()) else { return false };
        match (parent.find_mut(&mut self.tree), last) {
            (Some(Value::Object(map)), Step::Key(key)) => map.remove(key).is_some(),
            (Some(Value::Array(items)), Step::Index(index)) if *index < items.len() => {
                items.remove(*index);
                self.taken.0.push(path.clone());
                true
            }
            _ => false,
        }
    }
}

/// Array items taken out of a tree, as they stood then: the items after them moved up by one.
#[derive(Default)]
struct Taken(Vec<Path>);

impl Taken {
    /// Where a place of the repaired tree was in the tree as it was given.
    fn original(&self, path: &Path) -> Path {
        let mut path = path.clone();
        for taken in self.0.iter().rev() {
            let Some((Step::Index(gone), above)) = taken.0.split_last() else { continue };
            if let (true, Some(Step::Index(index))) = (path.0.starts_with(above), path.0.get_mut(above.len()))
                && *index >= *gone
            {
                *index += 1;
            }
        }
        path
    }
}

/// An enum that is told apart by one of its keys fails as a whole: the key is to blame.
fn culprit(tree: &Value, path: Path, message: &str) -> Path {
    let variant = words::unknown_variant(message);
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
    fn a_good_tree_is_read() {
        let tree = json!({ "id": "a", "timeout": "5m", "run": { "kind": "command", "command": ["sh"] } });
        let reading = read::<Agent>(&tree);
        assert_eq!(reading.faults, []);
        assert_eq!(reading.value.unwrap().timeout, Some(Duration::from_secs(300)));
    }

    #[test]
    fn everything_wrong_is_found_at_once() {
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
    fn what_is_left_of_a_bad_tree_can_be_looked_at() {
        let run = json!({ "kind": "http" });
        let tree = json!({ "id": "a", "slots": 300, "run": run, "wake": [7, { "table": "t" }] });
        let reading = read::<Agent>(&tree);
        assert_eq!(reading.value.as_ref().unwrap().wake.len(), 1);
        assert_eq!(reading.original(&Path::parse("wake.0")), Path::parse("wake.1"));
        assert!(read::<Agent>(&json!({ "id": "a" })).value.is_none(), "it has no run");
    }

    #[test]
    fn missing_keys_are_all_told() {
        insta::assert_snapshot!(faults(&json!({ "wake": [{}, {}] })).join("\n"), @r"
        id: missing; add `id = …`
        run: missing; add `run = …`
        wake.0.table: missing; add `table = …`
        wake.1.table: missing; add `table = …`
        ");
    }
}
