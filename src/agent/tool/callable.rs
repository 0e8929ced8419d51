//! What a name of `run.tools` stands for: a declared tool, or one that the daemon has itself.
use crate::{
    agent::{
        ApprovalRule, Definition, Fetch, FoundTool, McpServer, MemorySettings, PartKind, SqlRead, Tool,
        ToolKind,
        definition::{FETCH, FORGET, RECALL, REMEMBER, REQUEST_TASK, SQL_READ, TASKS},
    },
    task::Effect,
};
use serde_json::{Value, json};
use std::{collections::BTreeMap, time::Duration};

/// The name of the tool that reads results that are left out.
const STEP_RESULT: &str = "step_result";

/// A tool that a model may call, besides those of the loop itself.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Callable<'a> {
    /// One with `[[tool]]`.
    Declared(&'a Tool),
    /// `sql:read`.
    SqlRead(&'a SqlRead),
    /// `fetch`.
    Fetch(&'a Fetch),
    /// `request_task`, with the kinds of parts.
    RequestTask(&'a BTreeMap<String, PartKind>),
    /// `tasks`.
    Tasks,
    /// `remember`.
    Remember(MemorySettings),
    /// `forget`.
    Forget(MemorySettings),
    /// `recall`.
    Recall(MemorySettings),
    /// `step_result`, which every run has if the context of one of its models is known.
    StepResult,
    /// One of an MCP server, as the run found it.
    Mcp { server: &'a McpServer, tool: &'a FoundTool },
}

/// The tools in `run.tools`, and those that the run found at its MCP servers.
pub(crate) fn callables(definition: &Definition) -> impl Iterator<Item = Callable<'_>> {
    let of = |name: &'_ String| match name.as_str() {
        SQL_READ => definition.run.sql.as_ref().map(Callable::SqlRead),
        FETCH => definition.run.fetch.as_ref().map(Callable::Fetch),
        REQUEST_TASK => Some(Callable::RequestTask(&definition.run.parts)),
        TASKS => Some(Callable::Tasks),
        REMEMBER => Some(Callable::Remember(definition.run.memory.unwrap_or_default())),
        FORGET => Some(Callable::Forget(definition.run.memory.unwrap_or_default())),
        RECALL => Some(Callable::Recall(definition.run.memory.unwrap_or_default())),
        name => definition.declared(name).map(Callable::Declared),
    };
    let found = definition
        .run
        .mcp
        .iter()
        .flat_map(|server| server.found.iter().map(move |tool| Callable::Mcp { server, tool }));
    let own = definition.run.knows_a_context().then_some(Callable::StepResult);
    definition.run.tools.iter().filter_map(of).chain(found).chain(own)
}

/// The tool with this name in a call. `None` if it is not in `run.tools`.
pub(crate) fn callable<'a>(definition: &'a Definition, name: &str) -> Option<Callable<'a>> {
    callables(definition).find(|tool| tool.name() == name)
}

impl<'a> Callable<'a> {
    /// This tool of a run, as a definition permits it now. `None` if it does not.
    ///
    /// Behaviour is that of the run; the login, the hosts and the servers of tools are permissions, so they are those
    /// of now.
    pub(crate) fn permitted(self, now: &'a Definition) -> Option<Self> {
        match self {
            Self::Declared(tool) => callable(now, &tool.name).map(|_| self),
            Self::Mcp { server, tool } => {
                let mut servers = now.run.mcp.iter();
                let server = servers.find(|it| it.name == server.name && it.allows(&tool.tool))?;
                Some(Self::Mcp { server, tool })
            }
            // It reads nothing but the run itself.
            Self::StepResult => Some(self),
            _ => callable(now, self.name()),
        }
    }

    /// Which calls of this tool of a run need an approval now.
    pub(crate) fn approval(self, now: &'a Definition) -> Option<&'a ApprovalRule> {
        match self.permitted(now)? {
            // Whether a person decides is a permission too.
            Self::Declared(tool) => now.declared(&tool.name)?.approval.as_ref(),
            Self::Mcp { server, tool } => server.approval(&tool.tool, tool.effect),
            _ => None,
        }
    }
}

impl Callable<'_> {
    /// The names in calls of the tools that the daemon has itself.
    pub(crate) const BUILT_IN: [&'static str; 8] =
        ["sql_read", FETCH, FORGET, RECALL, REMEMBER, REQUEST_TASK, STEP_RESULT, TASKS];

    /// Its name in calls.
    pub(crate) fn name(&self) -> &str {
        match self {
            Self::Declared(tool) => &tool.name,
            Self::SqlRead(_) => "sql_read",
            Self::Fetch(_) => FETCH,
            Self::RequestTask(_) => REQUEST_TASK,
            Self::Tasks => TASKS,
            Self::Remember(_) => REMEMBER,
            Self::Forget(_) => FORGET,
            Self::Recall(_) => RECALL,
            Self::StepResult => STEP_RESULT,
            Self::Mcp { tool, .. } => &tool.name,
        }
    }

    pub(crate) fn description(&self) -> &str {
        match self {
            Self::Declared(tool) => &tool.description,
            Self::SqlRead(_) => {
                "Runs one select in PostgreSQL, read-only, and returns at most 200 rows. The schema is public"
            }
            Self::Fetch(_) => "Reads a page of the web and returns its text",
            Self::RequestTask(_) => "Requests a part of the task from another agent. It returns at once",
            Self::Tasks => {
                "Returns the parts of the task with their states and results; with wait, when all have ended"
            }
            Self::Remember(_) => {
                "Keeps a value under a key for later tasks. With version, only if the entry has it (0: none)"
            }
            Self::Forget(_) => "Removes what was remembered under a key",
            Self::Recall(_) => {
                "Returns what was remembered: keys that begin with prefix, entries with all of the words"
            }
            Self::StepResult => "Returns a part of the result of an earlier step that was left out",
            Self::Mcp { tool, .. } => &tool.description,
        }
    }

    /// The JSON schema of its arguments.
    pub(crate) fn parameters(&self) -> Value {
        match self {
            Self::Declared(tool) => tool.parameters.clone(),
            Self::RequestTask(parts) => {
                let kinds: Vec<&String> = parts.keys().collect();
                let mut inputs: Vec<Value> = parts.values().map(input_schema).collect();
                inputs.dedup();
                let input = if inputs.len() == 1 { inputs.remove(0) } else { json!({ "anyOf": inputs }) };
                part_parameters(json!({ "type": "string", "enum": kinds }), input)
            }
            Self::Tasks => json!({ "type": "object", "additionalProperties": false,
                "properties": { "wait": { "type": "boolean" } } }),
            Self::Remember(settings) => memory_parameters(
                *settings,
                &["key", "value"],
                json!({ "value": {},
                "version": { "type": "integer", "minimum": 0 },
                "days": { "type": "integer", "minimum": 1, "maximum": 3_650 } }),
            ),
            Self::Forget(settings) => memory_parameters(*settings, &["key"], json!({})),
            Self::Recall(_) => json!({ "type": "object", "additionalProperties": false, "properties": {
                "prefix": { "type": "string", "maxLength": 200 }, "words": { "type": "string", "maxLength": 500 } } }),
            Self::StepResult => {
                json!({ "type": "object", "required": ["step"], "additionalProperties": false,
                "properties": { "step": { "type": "integer", "minimum": 1 }, "from": { "type": "integer", "minimum": 0 } } })
            }
            Self::Mcp { tool, .. } => tool.parameters.clone(),
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

    /// The JSON schemas of each form of its arguments, if `parameters` does not say all: endpoints take only an object
    /// there, without a choice.
    pub(crate) fn forms(&self) -> Vec<Value> {
        match self {
            Self::RequestTask(parts) => {
                let form = |(kind, part): (&String, &PartKind)| {
                    part_parameters(json!({ "const": kind }), input_schema(part))
                };
                parts.iter().map(form).collect()
            }
            _ => Vec::new(),
        }
    }

    pub(crate) fn effect(&self) -> Effect {
        match self {
            Self::Declared(tool) => tool.effect(),
            Self::Mcp { tool, .. } => tool.effect,
            Self::RequestTask(_) | Self::Remember(_) | Self::Forget(_) => Effect::Database,
            Self::SqlRead(_) | Self::Fetch(_) | Self::Tasks | Self::Recall(_) | Self::StepResult => {
                Effect::Read
            }
        }
    }

    /// The declaration. `None` for a tool that the daemon has itself.
    pub(crate) fn declared(&self) -> Option<&Tool> {
        match self {
            Self::Declared(tool) => Some(tool),
            _ => None,
        }
    }

    /// Time limit of a call.
    pub(crate) fn timeout(&self) -> Duration {
        match self {
            Self::Declared(tool) => tool.timeout(),
            Self::Mcp { server, .. } => server.timeout_max,
            Self::Fetch(_) => Duration::from_secs(10),
            Self::Tasks => Duration::from_secs(600),
            _ => Duration::from_secs(5),
        }
    }

    /// Most bytes of a result that the model is shown.
    pub(crate) fn output_bytes(&self) -> usize {
        match self {
            Self::Declared(tool) => tool.output_bytes,
            Self::Mcp { server, .. } => server.result_bytes,
            _ => 32 << 10,
        }
    }

    /// Whether its effect is committed with its step.
    pub(crate) fn commits_with_its_step(&self) -> bool {
        matches!(self, Self::RequestTask(_) | Self::Remember(_) | Self::Forget(_))
            || self.statement().is_some()
    }

    /// The declared statement, which runs with its step. `None` for all others.
    pub(crate) fn statement(&self) -> Option<&Tool> {
        match self {
            Self::Declared(tool) if tool.kind == ToolKind::Sql => Some(tool),
            _ => None,
        }
    }
}

fn part_parameters(kind: Value, input: Value) -> Value {
    json!({ "type": "object", "required": ["kind", "input"], "additionalProperties": false,
        "properties": { "kind": kind, "input": input } })
}

fn input_schema(part: &PartKind) -> Value {
    part.input.clone().unwrap_or_else(|| json!({ "type": "object" }))
}

/// The schema of a change of the memory. Only an agent that has the memory of its org may choose between them.
fn memory_parameters(settings: MemorySettings, required: &[&str], more: Value) -> Value {
    let mut properties = json!({ "key": { "type": "string", "minLength": 1, "maxLength": 200 } });
    if let (Value::Object(properties), Value::Object(more)) = (&mut properties, more) {
        properties.extend(more);
        if settings.org {
            properties.insert("scope".to_owned(), json!({ "type": "string", "enum": ["agent", "org"] }));
        }
    }
    json!({ "type": "object", "required": required, "additionalProperties": false, "properties": properties })
}
