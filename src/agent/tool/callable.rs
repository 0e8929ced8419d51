//! What a name of `run.tools` stands for: a declared tool, or one that the daemon has itself.
use crate::{
    agent::{
        ApprovalRule, Definition, Fetch, SqlRead, Tool, ToolKind,
        definition::{FETCH, SQL_READ},
    },
    task::Effect,
};
use serde_json::{Value, json};
use std::time::Duration;

/// A tool that a model may call, besides those of the loop itself.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Callable<'a> {
    /// One with `[[tool]]`.
    Declared(&'a Tool),
    /// `sql:read`.
    SqlRead(&'a SqlRead),
    /// `fetch`.
    Fetch(&'a Fetch),
}

/// The tools in `run.tools`.
pub(crate) fn callables(definition: &Definition) -> impl Iterator<Item = Callable<'_>> {
    let of = |name: &'_ String| match name.as_str() {
        SQL_READ => definition.run.sql.as_ref().map(Callable::SqlRead),
        FETCH => definition.run.fetch.as_ref().map(Callable::Fetch),
        name => definition.declared(name).map(Callable::Declared),
    };
    definition.run.tools.iter().filter_map(of)
}

/// The tool with this name in a call. `None` if it is not in `run.tools`.
pub(crate) fn callable<'a>(definition: &'a Definition, name: &str) -> Option<Callable<'a>> {
    callables(definition).find(|tool| tool.name() == name)
}

impl Callable<'_> {
    /// The names in calls of the tools that the daemon has itself.
    pub(crate) const BUILT_IN: [&'static str; 2] = ["sql_read", FETCH];

    /// Its name in calls.
    pub(crate) fn name(&self) -> &str {
        match self {
            Self::Declared(tool) => &tool.name,
            Self::SqlRead(_) => "sql_read",
            Self::Fetch(_) => FETCH,
        }
    }

    pub(crate) fn description(&self) -> &str {
        match self {
            Self::Declared(tool) => &tool.description,
            Self::SqlRead(_) => {
                "Runs one select in PostgreSQL, read-only, and returns at most 200 rows. The schema is public"
            }
            Self::Fetch(_) => "Reads a page of the web and returns its text",
        }
    }

    /// The JSON schema of its arguments.
    pub(crate) fn parameters(&self) -> Value {
        match self {
            Self::Declared(tool) => tool.parameters.clone(),
            Self::SqlRead(_) => {
                json!({ "type": "object", "required": ["query"], "additionalProperties": false,
                "properties": { "query": { "type": "string", "minLength": 1, "maxLength": 16_384 } } })
            }
            Self::Fetch(fetch) => {
                let methods: Vec<&str> = fetch.methods.iter().map(|method| method.as_str()).collect();
                json!({ "type": "object", "required": ["url"], "additionalProperties": false, "properties": {
                    "url": { "type": "string", "minLength": 1, "maxLength": 4_096 },
                    "method": { "type": "string", "enum": methods },
                } })
            }
        }
    }

    pub(crate) fn effect(&self) -> Effect {
        match self {
            Self::Declared(tool) => tool.effect(),
            Self::SqlRead(_) | Self::Fetch(_) => Effect::Read,
        }
    }

    /// The declaration. `None` for a tool that the daemon has itself.
    pub(crate) fn declared(&self) -> Option<&Tool> {
        match self {
            Self::Declared(tool) => Some(tool),
            Self::SqlRead(_) | Self::Fetch(_) => None,
        }
    }

    /// Which calls need an approval.
    pub(crate) fn approval(&self) -> Option<&ApprovalRule> {
        self.declared()?.approval.as_ref()
    }

    /// Time limit of a call.
    pub(crate) fn timeout(&self) -> Duration {
        match self {
            Self::Declared(tool) => tool.timeout(),
            Self::SqlRead(_) => Duration::from_secs(5),
            Self::Fetch(_) => Duration::from_secs(10),
        }
    }

    /// Most bytes of a result that the model is shown.
    pub(crate) fn output_bytes(&self) -> usize {
        match self {
            Self::Declared(tool) => tool.output_bytes,
            Self::SqlRead(_) | Self::Fetch(_) => 32 << 10,
        }
    }

    /// The declared statement, which runs with its step. `None` for all others.
    pub(crate) fn statement(&self) -> Option<&Tool> {
        match self {
            Self::Declared(tool) if tool.kind == ToolKind::Sql => Some(tool),
            _ => None,
        }
    }
}
