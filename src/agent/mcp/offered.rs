//! Which tools of a server are offered, under which names, and with which words. Pure.
//!
//! What a server says about its tools is text of a stranger that a model reads. So it is cleaned and cut, and its
//! SHA-256 is compared with the accepted one.
use crate::{
    agent::{FoundTool, McpServer, definition::CALLED_BYTES_MAX, hex},
    task::Effect,
};
use rmcp::model::Tool;
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};
use std::collections::HashMap;

/// Longest name of a tool at its server, in bytes.
const NAME_BYTES_MAX: usize = 128;
/// Longest description, in bytes.
const DESCRIPTION_BYTES_MAX: usize = 2 << 10;

/// What is pinned of a tool, as JSON with sorted members.
pub(crate) fn pinned_text(tool: &Tool) -> String {
    json!({
        "name": tool.name, "description": tool.description, "inputSchema": *tool.input_schema,
        "outputSchema": tool.output_schema.as_deref(), "annotations": tool.annotations,
    })
    .to_string()
}

/// The tools that the definition allows, sorted by name, each with what is pinned of it.
pub(crate) fn offered(server: &McpServer, listed: &[Tool]) -> Vec<(FoundTool, String)> {
    let allowed = |tool: &&Tool| is_name(&tool.name) && server.allows(&tool.name);
    let mut tools: Vec<&Tool> = listed.iter().filter(allowed).collect();
    // The first of two with one name: a server cannot replace a tool within a list.
    tools.sort_by(|a, b| a.name.cmp(&b.name));
    tools.dedup_by(|later, first| later.name == first.name);
    let mut uses: HashMap<String, usize> = HashMap::new();
    for tool in &tools {
        *uses.entry(server.name_in_calls(&tool.name)).or_default() += 1;
    }
    let mut found: Vec<(FoundTool, String)> = tools
        .into_iter()
        .map(|tool| {
            let name = server.name_in_calls(&tool.name);
            let is_unique = uses.get(&name) == Some(&1) && name.len() <= CALLED_BYTES_MAX;
            let name = if is_unique { name } else { with_hash(server, &tool.name, &name) };
            let text = pinned_text(tool);
            (one(server, tool, name, &text), text)
        })
        .collect();
    found.sort_by(|(a, _), (b, _)| a.name.cmp(&b.name));
    // A server can choose a name that another tool got with its hash. A call must mean one tool only.
    found.dedup_by(|(later, _), (first, _)| later.name == first.name);
    found
}

fn one(server: &McpServer, tool: &Tool, name: String, pinned: &str) -> FoundTool {
    let title = tool.title.as_deref().or(tool.annotations.as_ref().and_then(|it| it.title.as_deref()));
    let description = tool.description.as_deref().or(title).unwrap_or_default();
    let mut parameters = Value::Object((*tool.input_schema).clone());
    if let Value::Object(schema) = &mut parameters {
        schema.remove("$schema");
        clean_words(schema);
    }
    FoundTool {
        name,
        tool: tool.name.to_string(),
        description: cleaned(description),
        parameters,
        effect: effect(server, tool),
        sha256: hex(&Sha256::digest(pinned)),
    }
}

/// The class that the definition gives the tool, or a server that is believed.
fn effect(server: &McpServer, tool: &Tool) -> Effect {
    if let Some(effect) = server.effect(&tool.name) {
        return effect;
    }
    let hints = tool.annotations.as_ref().filter(|_| server.trusted);
    match hints {
        Some(hints) if hints.read_only_hint == Some(true) => Effect::Read,
        Some(hints) if hints.idempotent_hint == Some(true) => Effect::Keyed,
        _ => Effect::Once,
    }
}

/// Whether a tool of this name is offered: one of the characters that the protocol gives names, and all other visible
/// ones of ASCII, which every database can store.
fn is_name(name: &str) -> bool {
    !name.is_empty() && name.len() <= NAME_BYTES_MAX && name.chars().all(|c| c.is_ascii_graphic())
}

/// A name with a hash of the full one, so that it is the same whatever other tools there are.
fn with_hash(server: &McpServer, tool: &str, plain: &str) -> String {
    let hash = hex(&Sha256::digest(format!("{}__{tool}", server.name)));
    let hash = hash.get(..8).unwrap_or_default();
    // The name is ASCII.
    let first = plain.get(..plain.len().min(CALLED_BYTES_MAX - 9)).unwrap_or_default();
    format!("{first}_{hash}")
}

/// A text without characters that a person does not see, cut to the limit.
fn cleaned(text: &str) -> String {
    let text: String = text.chars().filter(|c| !is_hidden(*c)).collect();
    if text.len() <= DESCRIPTION_BYTES_MAX {
        return text;
    }
    let end = (0..=DESCRIPTION_BYTES_MAX).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0);
    format!("{} [cut]", text.get(..end).unwrap_or_default())
}

/// Control, zero-width, direction and tag characters: they can hide an instruction from a person who reads the text.
fn is_hidden(c: char) -> bool {
    (c.is_control() && c != '\n' && c != '\t')
        || matches!(c, '\u{ad}' | '\u{61c}' | '\u{180e}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}'
            | '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e007f}')
}

/// Cleans the words of a schema. Its other texts are names and values, which must stay as they are.
fn clean_words(schema: &mut Map<String, Value>) {
    for (name, value) in schema {
        match value {
            Value::String(text) if name == "description" || name == "title" || name == "$comment" => {
                *text = cleaned(text);
            }
            Value::Object(inner) => clean_words(inner),
            Value::Array(items) => items.iter_mut().filter_map(Value::as_object_mut).for_each(clean_words),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn server(more: &str) -> McpServer {
        toml::from_str(&format!("name = \"files\"\ncommand = [\"x\"]\n{more}")).unwrap()
    }

    fn tool(name: &str, more: Value) -> Tool {
        let mut tool = json!({ "name": name, "inputSchema": { "type": "object" } });
        tool.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        serde_json::from_value(tool).unwrap()
    }

    fn names(server: &McpServer, tools: &[Tool]) -> Vec<String> {
        offered(server, tools).into_iter().map(|(tool, _)| tool.name).collect()
    }

    #[test]
    fn only_allowed_tools_are_offered_and_their_names_are_unique() {
        let server = server("allow = [\"*\"]\ndeny = [\"*delete*\"]");
        let long = "x".repeat(100);
        let bare = || json!({});
        let tools = [
            tool("read.file", bare()),
            tool("read-file", bare()),
            tool("Search", bare()),
            tool("delete_all", bare()),
            tool(&long, bare()),
            tool("bad\u{7}name", bare()),
            tool("größe", bare()),
            tool(&"y".repeat(200), bare()),
            tool("Search", json!({ "description": "another" })),
        ];
        let found = names(&server, &tools);
        assert_eq!(found.len(), 4);
        assert!(found[0].starts_with("files__read_file_") && found[1].starts_with("files__read_file_"));
        assert_ne!(found[0], found[1]);
        assert_eq!(found[2], "files__search");
        assert_eq!(found[3].len(), 63);
        let reversed: Vec<Tool> = tools.iter().take(5).rev().cloned().collect();
        assert_eq!(names(&server, &reversed), found, "the order of the server does not matter");
        let taken = found[0].strip_prefix("files__").unwrap().to_owned();
        let tools = [tool("read.file", bare()), tool("read-file", bare()), tool(&taken, bare())];
        assert_eq!(names(&server, &tools), found[..2], "a name in calls is that of one tool");
    }

    #[test]
    fn words_of_a_server_are_cleaned_and_cut() {
        let hidden = "Reads\u{200b} a \u{202e}file\u{e0041}\u{7}.";
        let schema = json!({ "$schema": "x", "type": "object", "properties": {
            "p\u{200b}": { "description": hidden, "enum": ["\u{200b}"] } } });
        let tools = [
            tool("a", json!({ "description": hidden, "inputSchema": schema })),
            tool("b", json!({ "description": "é".repeat(5_000) })),
        ];
        let found = offered(&server("allow = [\"*\"]"), &tools);
        assert_eq!(found[0].0.description, "Reads a file.");
        let parameters = json!({ "type": "object", "properties": {
            "p\u{200b}": { "description": "Reads a file.", "enum": ["\u{200b}"] } } });
        assert_eq!(found[0].0.parameters, parameters);
        assert!(found[1].0.description.len() < 2_060 && found[1].0.description.ends_with(" [cut]"));
    }

    #[test]
    fn effect_is_that_of_the_definition_and_hints_count_only_of_a_trusted_server() {
        let hints = |hint: &str| json!({ "annotations": { hint: true } });
        let tools = [
            tool("get_all", hints("idempotentHint")),
            tool("get_one", json!({})),
            tool("look", hints("readOnlyHint")),
            tool("put", hints("idempotentHint")),
        ];
        let effects = |more: &str| -> Vec<Effect> {
            let more = format!("allow = [\"*\"]\n{more}");
            offered(&server(&more), &tools).into_iter().map(|(tool, _)| tool.effect).collect()
        };
        assert_eq!(effects(""), [Effect::Once; 4]);
        assert_eq!(effects("trusted = true"), [Effect::Keyed, Effect::Once, Effect::Read, Effect::Keyed]);
        let given = "effects = { \"get_*\" = \"read\", get_all = \"keyed\" }";
        assert_eq!(effects(given), [Effect::Keyed, Effect::Read, Effect::Once, Effect::Once]);
    }

    #[test]
    fn hash_changes_with_everything_that_a_model_or_a_check_reads() {
        let hash = |more: Value| Sha256::digest(pinned_text(&tool("a", more)));
        let first = hash(json!({ "description": "d" }));
        assert_eq!(first, hash(json!({ "description": "d", "icons": [] })));
        for more in [
            json!({ "description": "e" }),
            json!({ "description": "d", "inputSchema": { "type": "object", "required": ["x"] } }),
            json!({ "description": "d", "outputSchema": { "type": "object" } }),
            json!({ "description": "d", "annotations": { "readOnlyHint": true } }),
        ] {
            assert_ne!(first, hash(more));
        }
    }
}
