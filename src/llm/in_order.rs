//! JSON schemas as they are sent: a model that is held to a schema writes members in the order in which it has them.
use serde::{Serialize, Serializer, ser::SerializeMap};
use serde_json::{Map, Value};

/// JSON whose schemas have their `properties` in the order of `required`, then the others by name. The members of all
/// other objects are sorted: the same value has the same bytes.
pub(crate) struct InOrder<'a>(pub(crate) &'a Value);

/// The value of `properties`, beside this `required`.
struct Properties<'a>(&'a Map<String, Value>, &'a [Value]);

impl Serialize for InOrder<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.0 {
            Value::Object(members) => {
                let required =
                    members.get("required").and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
                let mut map = serializer.serialize_map(Some(members.len()))?;
                for (name, value) in members {
                    match value {
                        Value::Object(properties) if name == "properties" => {
                            map.serialize_entry(name, &Properties(properties, required))?;
                        }
                        _ => map.serialize_entry(name, &InOrder(value))?,
                    }
                }
                map.end()
            }
            Value::Array(items) => serializer.collect_seq(items.iter().map(InOrder)),
            other => other.serialize(serializer),
        }
    }
}

impl Serialize for Properties<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let Self(properties, required) = self;
        let place = |name: &str| required.iter().position(|it| it == name).unwrap_or(usize::MAX);
        let mut members: Vec<_> = properties.iter().collect();
        // Stable: those that are not required stay sorted by name.
        members.sort_by_key(|(name, _)| place(name));
        serializer.collect_map(members.into_iter().map(|(name, value)| (name, InOrder(value))))
    }
}

impl std::fmt::Display for InOrder<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&serde_json::to_string(self).map_err(|_| std::fmt::Error)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn properties_come_in_the_order_of_required_at_every_depth() {
        let call = json!({ "type": "object", "required": ["tool", "arguments", "absent", 3], "properties": {
            "arguments": { "required": ["kind"], "properties": { "input": {}, "a": true, "kind": { "const": 1 } } },
            "also": { "items": [{ "properties": { "b": 1, "a": 2 } }] }, "tool": { "const": "look" } } });
        assert_eq!(
            InOrder(&json!({ "anyOf": [call] })).to_string(),
            "{\"anyOf\":[{\"properties\":{\"tool\":{\"const\":\"look\"},\"arguments\":{\"properties\":{\"kind\":{\"const\":1},\
             \"a\":true,\"input\":{}},\"required\":[\"kind\"]},\"also\":{\"items\":[{\"properties\":{\"a\":2,\"b\":1}}]}},\
             \"required\":[\"tool\",\"arguments\",\"absent\",3],\"type\":\"object\"}]}"
        );
    }

    #[test]
    fn value_of_another_form_is_unchanged() {
        for value in [
            json!(null),
            json!([1, "x", { "b": 1.5, "a": true }]),
            json!({ "properties": 7, "required": ["a"] }),
            json!({ "properties": { "b": 1, "a": 2 }, "required": "a" }),
        ] {
            assert_eq!(InOrder(&value).to_string(), value.to_string());
        }
    }
}
