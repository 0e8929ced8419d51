//! The parts of a streamed message.
use super::repeats::Repeats;
use serde_json::{Map, Value};

/// A message, as far as its parts have come.
#[derive(Debug, Default)]
pub(super) struct Message {
    members: Map<String, Value>,
    calls: Vec<Slot>,
    /// Finds repetition at the end of its text and its reasoning.
    repeats: [Repeats; TEXTS.len()],
}

/// The members that are texts of the model. Arguments of calls are data, which may repeat itself.
const TEXTS: [&str; 3] = ["content", "reasoning_content", "reasoning"];

/// A call, as far as its parts have come.
#[derive(Debug, Default)]
struct Slot {
    index: Option<u64>,
    id: String,
    name: String,
    arguments: String,
    /// Members that this program does not know, like signatures.
    more: Map<String, Value>,
    more_of_function: Map<String, Value>,
}

impl Message {
    /// Adds a part. Returns whether it had anything that a model has written.
    pub(super) fn add(&mut self, mut part: Map<String, Value>) -> bool {
        let calls = part.remove("tool_calls");
        part.retain(|_, value| !value.is_null());
        let mut has_text = part.iter().any(|(name, value)| name != "role" && value.as_str() != Some(""));
        merge(&mut self.members, part);
        for call in calls.iter().filter_map(Value::as_array).flatten().filter_map(Value::as_object) {
            has_text = true;
            self.add_call(call.clone());
        }
        has_text
    }

    /// Whether one of its texts ends with the same block again and again.
    pub(super) fn repeats(&mut self) -> bool {
        let members = &self.members;
        let text = |name: &str| members.get(name).and_then(Value::as_str).unwrap_or_default();
        TEXTS.iter().zip(&mut self.repeats).any(|(name, repeats)| repeats.at_end_of(text(name)))
    }

    fn add_call(&mut self, mut part: Map<String, Value>) {
        let index = part.remove("index").and_then(|index| index.as_u64());
        let id = text(part.remove("id"));
        let mut function = match part.remove("function") {
            Some(Value::Object(function)) => function,
            _ => Map::new(),
        };
        let name = text(function.remove("name"));
        let arguments = match function.remove("arguments") {
            None | Some(Value::Null) => String::new(),
            Some(Value::String(text)) => text,
            // Whole, as an object.
            Some(other) => other.to_string(),
        };
        let at = self.slot(index, &id, &name);
        let Some(slot) = self.calls.get_mut(at) else { return };
        if slot.id.is_empty() {
            slot.id = id;
        }
        if slot.name.is_empty() {
            slot.name = name;
        }
        slot.arguments.push_str(&arguments);
        part.retain(|_, value| !value.is_null());
        function.retain(|_, value| !value.is_null());
        merge(&mut slot.more, part);
        merge(&mut slot.more_of_function, function);
    }

    /// The place of the call to which a part belongs, which may be a new one. Ids go before indexes: some endpoints
    /// give every call the index 0, and some give the id only once.
    fn slot(&mut self, index: Option<u64>, id: &str, name: &str) -> usize {
        let found = match index {
            Some(_) => self.calls.iter().rposition(|slot| slot.index == index),
            None if !id.is_empty() => self.calls.iter().rposition(|slot| slot.id == id),
            None => self.calls.len().checked_sub(1),
        };
        let begins_another = |slot: &Slot| {
            let other_id = !id.is_empty() && !slot.id.is_empty() && slot.id != id;
            // Whole calls without ids, one after the other.
            let whole = id.is_empty()
                && !name.is_empty()
                && !slot.name.is_empty()
                && serde_json::from_str::<Map<String, Value>>(&slot.arguments).is_ok();
            other_id || whole
        };
        match found {
            Some(at) if !self.calls.get(at).is_some_and(begins_another) => at,
            _ => {
                self.calls.push(Slot { index, ..Slot::default() });
                self.calls.len() - 1
            }
        }
    }

    /// The message as one that was not streamed.
    pub(super) fn whole(self) -> Value {
        let mut members = self.members;
        members.entry("role").or_insert_with(|| "assistant".into());
        members.entry("content").or_insert(Value::Null);
        if !self.calls.is_empty() {
            members.insert("tool_calls".into(), self.calls.into_iter().map(Slot::whole).collect());
        }
        Value::Object(members)
    }
}

impl Slot {
    fn whole(self) -> Value {
        let Self { id, name, arguments, more: mut call, more_of_function: mut function, .. } = self;
        function.insert("name".into(), name.into());
        function.insert("arguments".into(), arguments.into());
        call.insert("id".into(), id.into());
        call.insert("type".into(), "function".into());
        call.insert("function".into(), Value::Object(function));
        Value::Object(call)
    }
}

fn text(value: Option<Value>) -> String {
    match value {
        Some(Value::String(text)) => text,
        _ => String::new(),
    }
}

/// Adds the members of a part: texts and lists are continued, anything else is replaced. Names and roles are no
/// texts of the model: they stay as they came first.
fn merge(into: &mut Map<String, Value>, part: Map<String, Value>) {
    for (name, value) in part {
        match (into.get_mut(&name), value) {
            (Some(Value::String(_)), Value::String(_))
                if matches!(name.as_str(), "role" | "type" | "name" | "id") => {}
            (Some(Value::String(text)), Value::String(more)) => text.push_str(&more),
            (Some(Value::Array(list)), Value::Array(more)) => list.extend(more),
            (Some(Value::Object(members)), Value::Object(more)) => merge(members, more),
            (_, value) => drop(into.insert(name, value)),
        }
    }
}
