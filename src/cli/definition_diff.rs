//! `convoke agent diff`: the keys in which two versions of a definition differ. Pure.
use serde_json::Value;
use std::collections::BTreeMap;

/// One line for each key that was added (`+`), removed (`-`) or changed (`~`), in the order of the keys.
pub(super) fn lines(before: &Value, after: &Value) -> Vec<String> {
    let (mut old, mut new) = (BTreeMap::new(), BTreeMap::new());
    flatten(String::new(), before, &mut old);
    flatten(String::new(), after, &mut new);
    let mut found = BTreeMap::new();
    for (key, value) in &old {
        match new.get(key) {
            None => drop(found.insert(key, format!("- {key}: {value}"))),
            Some(other) if other != value => {
                found.insert(key, format!("~ {key}: {value} -> {other}"));
            }
            Some(_) => {}
        }
    }
    let added = new.iter().filter(|(key, _)| !old.contains_key(*key));
    found.extend(added.map(|(key, value)| (key, format!("+ {key}: {value}"))));
    found.into_values().collect()
}

/// The values that are no tables, by their keys, like `limits.timeout` or `tool[refund].url`. An entry of a list of
/// tables has its name for a key, so that one that is put in front of others changes nothing of those.
fn flatten<'a>(key: String, value: &'a Value, into: &mut BTreeMap<String, &'a Value>) {
    match value {
        Value::Object(members) if !members.is_empty() => {
            for (name, member) in members {
                let below = if key.is_empty() { name.clone() } else { format!("{key}.{name}") };
                flatten(below, member, into);
            }
        }
        Value::Array(items) if items.iter().any(Value::is_object) => {
            let name = |item: &'a Value| item.get("name").and_then(Value::as_str);
            for (at, item) in items.iter().enumerate() {
                let place =
                    name(item).filter(|own| items.iter().filter(|it| name(it) == Some(own)).count() == 1);
                let place = place.map_or_else(|| at.to_string(), str::to_owned);
                flatten(format!("{key}[{place}]"), item, into);
            }
        }
        value => drop(into.insert(key, value)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn keys_that_were_added_removed_and_changed_are_told() {
        let before = json!({ "id": "a", "slots": 1, "run": { "model": "m", "tools": ["a"] }, "wake": [],
            "tool": [{ "name": "pay", "url": "x" }] });
        let after = json!({ "id": "a", "slots": 2, "run": { "model": "m", "tools": ["a", "b"], "prompt": "p" },
            "tool": [{ "name": "look", "url": "y" }, { "name": "pay", "url": "x" }] });
        assert_eq!(
            lines(&before, &after),
            [
                "+ run.prompt: \"p\"",
                "~ run.tools: [\"a\"] -> [\"a\",\"b\"]",
                "~ slots: 1 -> 2",
                "+ tool[look].name: \"look\"",
                "+ tool[look].url: \"y\"",
                "- wake: []",
            ]
        );
        assert_eq!(lines(&after, &after), Vec::<String>::new());
    }

    #[test]
    fn entries_without_names_or_with_equal_ones_are_told_apart_by_their_places() {
        let of = |first: i32| json!({ "wake": [{ "table": first }, { "table": 2 }] });
        assert_eq!(lines(&of(1), &of(3)), ["~ wake[0].table: 1 -> 3"]);
        let twice = |n: i32| json!({ "tool": [{ "name": "a", "n": 1 }, { "name": "a", "n": n }] });
        assert_eq!(lines(&twice(1), &twice(2)), ["~ tool[1].n: 1 -> 2"]);
    }
}
